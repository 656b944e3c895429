\set k random(1000000000000000000, 9000000000000000000)
SELECT task_id, run_id, attempt, created FROM absurd.spawn_task('default', 'payment', '{"amount": 100}', jsonb_build_object('max_attempts', 5, 'idempotency_key', :k::text));
