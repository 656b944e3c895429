\set k random(1, :keys)
SELECT * FROM idempotency.replay('tenant-1', 'payment', :k);
