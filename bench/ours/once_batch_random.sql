SELECT count(*) FROM idempotency.once_batch('tenant-1', 'event', (SELECT array_agg(gen_random_uuid()::text) FROM generate_series(1, 1000) AS i)) WHERE first;
