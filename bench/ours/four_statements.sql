\set k random(1000000000000000000, 9000000000000000000)
BEGIN;
SELECT * FROM idempotency.claim('tenant-1', 'payment', :k);
SELECT idempotency.complete('tenant-1', 'payment', :k, 201, '{"ok": true}');
COMMIT;
