\set k random(1000000000000000000, 9000000000000000000)
SELECT idempotency.once('tenant-1', 'event', :k);
