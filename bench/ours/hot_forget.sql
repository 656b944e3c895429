SELECT c.outcome, CASE WHEN c.outcome = 'claimed' THEN idempotency.complete('tenant-1', 'payment', 'hot', 201, '{"ok": true}') END FROM idempotency.claim('tenant-1', 'payment', 'hot') AS c;
SELECT idempotency.forget('tenant-1', 'payment', 'hot');
