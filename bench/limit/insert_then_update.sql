\set k random(1000000000000000000, 9000000000000000000)
INSERT INTO bench.bare (created_at, expires_at, attempt, token, locked_until, scope, operation, key, status) VALUES (now(), now() + interval '24 hours', 1, nextval('bench.token_seq'), now() + interval '60 seconds', 'tenant-1', 'payment', :k, 'in_progress');
UPDATE bench.bare SET status = 'completed', completed_at = now(), locked_until = NULL, response_status = 201, response_body = '{"ok": true}' WHERE scope = 'tenant-1' AND operation = 'payment' AND key = :k;
