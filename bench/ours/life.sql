\set k random(1000000000000000000, 9000000000000000000)
SELECT c.outcome, CASE WHEN c.outcome = 'claimed' THEN idempotency.complete('tenant-1', 'payment', :k, 201, '{"ok": true}') END FROM idempotency.claim('tenant-1', 'payment', :k, ttl => :lifetime::int * interval '1 second') AS c;
