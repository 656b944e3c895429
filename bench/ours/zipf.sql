\set k random_zipfian(1, 1000000, 1.1)
SELECT c.outcome, CASE WHEN c.outcome = 'claimed' THEN idempotency.complete('tenant-1', 'payment', :k, 201, '{"ok": true}') END FROM idempotency.claim('tenant-1', 'payment', :k) AS c;
