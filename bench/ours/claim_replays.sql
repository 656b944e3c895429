\set k random(1, :keys)
SELECT * FROM idempotency.claim('tenant-1', 'payment', :k);
