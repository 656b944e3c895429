\set k random(1000000000000000000, 9000000000000000000)
BEGIN;
SELECT status, response_status, response_body FROM bench.peer_keys WHERE scope = 'tenant-1' AND operation = 'payment' AND key = :k AND expires_at > now();
INSERT INTO bench.peer_keys (scope, operation, key) VALUES ('tenant-1', 'payment', :k);
UPDATE bench.peer_keys SET status = 'completed', response_status = 201, response_body = '{"ok": true}', completed_at = now() WHERE scope = 'tenant-1' AND operation = 'payment' AND key = :k;
COMMIT;
