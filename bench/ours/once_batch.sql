\set k random(1000000000000000000, 9000000000000000000)
SELECT count(*) FROM idempotency.once_batch('tenant-1', 'event', (SELECT array_agg((:k::bigint + i)::text) FROM generate_series(1, 1000) AS i)) WHERE first;
