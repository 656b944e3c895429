\set k random_zipfian(1, 1000000, 1.1)
INSERT INTO bench.bare (created_at, expires_at, completed_at, attempt, response_status, scope, operation, key, status, response_body) VALUES (now(), now() + interval '24 hours', now(), 1, 201, 'tenant-1', 'payment', :k, 'completed', '{"ok": true}') ON CONFLICT (scope, operation, key) DO NOTHING;
