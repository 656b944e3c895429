\set k random(1000000000000000000, 9000000000000000000)
BEGIN;
SELECT status, token, attempt, hold_if_abandoned, recovery_point, state, last_error, response_status, response_headers, response_body, response_bytes, true, NULL::bigint, created_at, completed_at, expires_at FROM bench.bare WHERE scope = 'tenant-1' AND operation = 'payment' AND key = :k;
INSERT INTO bench.bare (created_at, expires_at, completed_at, attempt, response_status, scope, operation, key, status, response_body) VALUES (now(), now() + interval '24 hours', now(), 1, 201, 'tenant-1', 'payment', :k, 'completed', '{"ok": true}');
COMMIT;
