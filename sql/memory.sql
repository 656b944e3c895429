-- Memory: however often a claim is checkpointed, the transaction keeps no more of
-- it than what it can still go back to.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
\pset footer off

-- What the transaction keeps.
CREATE FUNCTION pg_temp.kept() RETURNS bigint LANGUAGE sql AS $$
	SELECT total_bytes FROM pg_backend_memory_contexts WHERE name = 'TopTransactionContext'
$$;
-- A state of a megabyte.
CREATE FUNCTION pg_temp.checkpoint(key text, n int) RETURNS void LANGUAGE sql AS $$
	SELECT idempotency.checkpoint('memory', 'op', key, 'step ' || n, to_jsonb(repeat(n % 10 || 'x', 500000)))
$$;
-- How the claim stands now.
CREATE FUNCTION pg_temp.stands(key text, OUT outcome text, OUT recovery_point text, OUT state text) LANGUAGE sql AS $$
	SELECT outcome, recovery_point, left(state #>> '{}', 4) || '... ' || length(state #>> '{}')
	FROM idempotency.claim('memory', 'op', key, claim_id => '00000000-0000-0000-0000-000000000001')
$$;

-- Without savepoints; the transaction's own end frees the last one.
BEGIN;
SELECT outcome FROM pg_temp.stands('plain');
SELECT pg_temp.checkpoint('plain', n) FROM generate_series(1, 300) n \g /dev/null
SELECT pg_temp.kept() < 4000000 AS little;
SELECT * FROM pg_temp.stands('plain');
SELECT idempotency.fail('memory', 'op', 'plain');
COMMIT;
-- Claimed over that row, failed and claimed again.
BEGIN;
SELECT * FROM pg_temp.stands('plain');
DO $$
BEGIN
	FOR n IN 1..300 LOOP
		PERFORM idempotency.fail('memory', 'op', 'plain', 'again');
		PERFORM FROM pg_temp.stands('plain');
	END LOOP;
END $$;
SELECT pg_temp.kept() < 4000000 AS little;
SELECT * FROM pg_temp.stands('plain');
ROLLBACK;

-- Within a savepoint: the one before is kept, those in between are not.
BEGIN;
SELECT outcome FROM pg_temp.stands('savepoint');
SELECT pg_temp.checkpoint('savepoint', 1000);
SAVEPOINT a;
SELECT pg_temp.checkpoint('savepoint', n) FROM generate_series(1, 300) n \g /dev/null
SAVEPOINT b;
SELECT pg_temp.checkpoint('savepoint', n) FROM generate_series(1, 299) n \g /dev/null
SELECT pg_temp.kept() < 8000000 AS little;
SELECT * FROM pg_temp.stands('savepoint');
ROLLBACK TO b;
SELECT pg_temp.kept() < 6000000 AS little;
SELECT * FROM pg_temp.stands('savepoint');
SELECT pg_temp.checkpoint('savepoint', 298);
RELEASE b;
SELECT * FROM pg_temp.stands('savepoint');
ROLLBACK TO a;
SELECT pg_temp.kept() < 4000000 AS little;
SELECT * FROM pg_temp.stands('savepoint');
ROLLBACK;

-- A savepoint for each: released, rolled back, and exception blocks in both.
BEGIN;
SELECT outcome FROM pg_temp.stands('each');
DO $$
BEGIN
	FOR n IN 1..300 LOOP
		BEGIN
			PERFORM pg_temp.checkpoint('each', n);
			BEGIN
				PERFORM pg_temp.checkpoint('each', n + 1);
				PERFORM 1 / (n % 2);
			EXCEPTION WHEN division_by_zero THEN
				NULL;
			END;
			PERFORM 1 / (n % 3);
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
	END LOOP;
END $$;
SELECT pg_temp.kept() < 4000000 AS little;
SELECT * FROM pg_temp.stands('each');
SAVEPOINT a;
DO $$
BEGIN
	FOR n IN 1..299 LOOP
		BEGIN
			PERFORM pg_temp.checkpoint('each', n);
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
	END LOOP;
END $$;
SELECT pg_temp.kept() < 6000000 AS little;
SELECT * FROM pg_temp.stands('each');
ROLLBACK TO a;
SELECT pg_temp.kept() < 4000000 AS little;
SELECT * FROM pg_temp.stands('each');
ROLLBACK;

-- Claims that are rolled back leave nothing either.
BEGIN;
SELECT outcome FROM pg_temp.stands('gone');
DO $$
BEGIN
	FOR n IN 1..300 LOOP
		BEGIN
			PERFORM FROM idempotency.claim('memory', 'op', n || repeat('x', 200), note => repeat('x', 100000));
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
	END LOOP;
END $$;
SELECT pg_temp.kept() < 4000000 AS little;
ROLLBACK;

-- A leased claim is remembered, too.
BEGIN;
SELECT outcome FROM idempotency.claim('memory', 'op', 'leased', lease => '1 hour');
SELECT token AS token FROM idempotency.lookup('memory', 'op', 'leased') \gset
SELECT idempotency.checkpoint('memory', 'op', 'leased', 'step ' || n, to_jsonb(repeat('x', 1000000)), token => :token) FROM generate_series(1, 50) n \g /dev/null
SELECT pg_temp.kept() < 4000000 AS little;
ROLLBACK;

-- A trigger on the table that does something with the key that is just being
-- written does not pull the row from under the writer, who still returns it.
CREATE FUNCTION public.memory_meddles() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF new.key = 'meddled' AND new.status = 'completed' THEN
		PERFORM idempotency.checkpoint('memory', 'op', 'meddled', 'meddled', to_jsonb(repeat(i::text, 600)))
		FROM generate_series(1, 9) i;
	END IF;
	RETURN new;
END $$;
CREATE TRIGGER memory_meddles BEFORE INSERT ON idempotency.idempotency_keys FOR EACH ROW EXECUTE FUNCTION public.memory_meddles();
BEGIN;
SELECT outcome, recovery_point, left(state #>> '{}', 4) AS begins, length(state #>> '{}')
FROM idempotency.run('memory', 'op', 'meddled', $$SELECT pg_temp.checkpoint('meddled', 7)$$);
SELECT status, recovery_point, left(state #>> '{}', 4) AS begins, length(state #>> '{}')
FROM idempotency.idempotency_keys WHERE key = 'meddled';
ROLLBACK;
DROP TRIGGER memory_meddles ON idempotency.idempotency_keys;
DROP FUNCTION public.memory_meddles;

SELECT idempotency.forget_scope('memory', force => true);
