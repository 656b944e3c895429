\set k random(1000000000000000000, 9000000000000000000)
BEGIN;
INSERT INTO bench.peer_keys AS k (scope, operation, key) VALUES ('tenant-1', 'payment', :k) ON CONFLICT (scope, operation, key) DO UPDATE SET status = k.status RETURNING (xmax = 0) AS claimed, status, response_status, response_body;
UPDATE bench.peer_keys SET status = 'completed', response_status = 201, response_body = '{"ok": true}', completed_at = now() WHERE scope = 'tenant-1' AND operation = 'payment' AND key = :k;
COMMIT;
