\set k random(1000000000000000000, 9000000000000000000)
INSERT INTO bench.bare (created_at, expires_at, completed_at, attempt, scope, operation, key, status) SELECT now(), now() + interval '30 days', now(), 1, 'tenant-1', 'event', u.key, 'completed' FROM unnest((SELECT array_agg((:k::bigint + i)::text) FROM generate_series(1, 1000) AS i)) AS u (key);
