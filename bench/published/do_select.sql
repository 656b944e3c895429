\set k random(1000000000000000000, 9000000000000000000)
INSERT INTO bench.peer_keys AS k (scope, operation, key, status) VALUES ('tenant-1', 'event', :k, 'completed') ON CONFLICT (scope, operation, key) DO SELECT RETURNING created_at = now() AS first;
