\set k random(1000000000000000000, 9000000000000000000)
BEGIN;
SELECT * FROM bench.peer_claim('tenant-1', 'payment', :k);
SELECT bench.peer_complete('tenant-1', 'payment', :k, 201, '{"ok": true}');
COMMIT;
