\set k random(1000000000000000000, 9000000000000000000)
INSERT INTO bench.bare (created_at, expires_at, completed_at, attempt, response_status, scope, operation, key, status, response_body) VALUES (now(), now() + :lifetime::int * interval '1 second', now(), 1, 201, 'tenant-1', 'payment', :k, 'completed', '{"ok": true}');
