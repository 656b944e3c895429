\set k random_zipfian(1, 1000000, 1.1)
SELECT c.outcome, CASE WHEN c.outcome = 'claimed' THEN bench.peer_complete('tenant-1', 'payment', :k, 201, '{"ok": true}') END FROM bench.peer_claim('tenant-1', 'payment', :k) AS c;
