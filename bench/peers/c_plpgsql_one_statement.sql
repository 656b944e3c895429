\set k random(1000000000000000000, 9000000000000000000)
SELECT c.outcome, CASE WHEN c.outcome = 'claimed' THEN bench.peer_complete('tenant-1', 'payment', :k, 201, '{"ok": true}') END FROM bench.peer_claim('tenant-1', 'payment', :k) AS c;
