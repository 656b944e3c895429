INSERT INTO bench.bare (created_at, expires_at, completed_at, attempt, response_status, scope, operation, key, status, response_body) VALUES (now(), now() + interval '24 hours', now(), 1, 201, 'tenant-1', 'payment', 'hot', 'completed', '{"ok": true}');
DELETE FROM bench.bare WHERE scope = 'tenant-1' AND operation = 'payment' AND key = 'hot';
