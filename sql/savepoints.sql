-- Savepoints: what is rolled back is undone entirely, the claim, its lock, a
-- completion; what is kept is kept.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
\pset footer off

CREATE TABLE public.savepoints_ledger (what text);
CREATE FUNCTION pg_temp.key_locks() RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM pg_locks
	WHERE locktype = 'advisory' AND objsubid = 18756 AND pid = pg_backend_pid()
$$;

-- A claim made inside is gone, its lock, too, and can be made again.
BEGIN;
SAVEPOINT s;
SELECT outcome FROM idempotency.claim('savepoints', 'inside', '1');
SELECT outcome FROM idempotency.claim('savepoints', 'inside', '2', lease => '1 min');
SELECT pg_temp.key_locks();
ROLLBACK TO s;
SELECT pg_temp.key_locks();
SELECT idempotency.complete('savepoints', 'inside', '1', 200);
\echo :SQLSTATE
ROLLBACK TO s;
SELECT outcome, attempt FROM idempotency.claim('savepoints', 'inside', '1');
SELECT outcome, attempt FROM idempotency.claim('savepoints', 'inside', '2', lease => '1 min');
SELECT idempotency.complete('savepoints', 'inside', '1', 200, 'second') > now() AS done;
RELEASE s;
SELECT pg_temp.key_locks();
COMMIT;
SELECT response_body FROM idempotency.replay('savepoints', 'inside', '1');
SELECT status, attempt FROM idempotency.lookup('savepoints', 'inside', '2');
-- Rolled back and left at that, it does not stand in the way of the commit.
BEGIN;
INSERT INTO public.savepoints_ledger VALUES ('kept');
SAVEPOINT s;
INSERT INTO public.savepoints_ledger VALUES ('undone');
SELECT outcome FROM idempotency.claim('savepoints', 'inside', '3');
ROLLBACK TO s;
COMMIT;
SELECT * FROM public.savepoints_ledger;
-- Released and not completed, it does.
BEGIN;
INSERT INTO public.savepoints_ledger VALUES ('forgotten');
SAVEPOINT s;
SELECT outcome FROM idempotency.claim('savepoints', 'inside', '3');
RELEASE s;
COMMIT;
\echo :SQLSTATE
SELECT * FROM public.savepoints_ledger;

-- Nested: each level undoes its own part and no more.
BEGIN;
SELECT outcome FROM idempotency.claim('savepoints', 'nested', '1');
SAVEPOINT a;
SELECT outcome FROM idempotency.claim('savepoints', 'nested', '2');
SAVEPOINT b;
SELECT idempotency.complete('savepoints', 'nested', '1', 200, 'in b') > now() AS done;
SELECT outcome FROM idempotency.claim('savepoints', 'nested', '3');
SAVEPOINT c;
SELECT idempotency.complete('savepoints', 'nested', '3', 200, 'in c') > now() AS done;
SELECT idempotency.fail('savepoints', 'nested', '2', 'in c');
ROLLBACK TO c;
SELECT k, outcome FROM unnest(ARRAY['1', '2', '3']) k, LATERAL idempotency.claim('savepoints', 'nested', k);
RELEASE c;
RELEASE b;
SELECT pg_temp.key_locks();
ROLLBACK TO a;
SELECT pg_temp.key_locks();
SELECT k, outcome FROM unnest(ARRAY['1', '2', '3']) k, LATERAL idempotency.claim('savepoints', 'nested', k);
SELECT idempotency.complete('savepoints', 'nested', '2', 200, 'in a') > now() AS done;
RELEASE a;
SELECT idempotency.complete('savepoints', 'nested', k, 200, 'outside') > now() AS done FROM unnest(ARRAY['1', '3']) k;
COMMIT;
SELECT k, response_body FROM unnest(ARRAY['1', '2', '3']) k, LATERAL idempotency.replay('savepoints', 'nested', k);
-- What a released savepoint did belongs to the level above: a sibling's end does
-- not touch it, the parent's does.
BEGIN;
SELECT outcome FROM idempotency.claim('savepoints', 'sibling', '1');
SAVEPOINT parent;
SAVEPOINT first;
SELECT idempotency.complete('savepoints', 'sibling', '1', 200, 'in first') > now() AS done;
SELECT outcome FROM idempotency.claim('savepoints', 'sibling', '2');
RELEASE first;
SAVEPOINT second;
ROLLBACK TO second;
SELECT k, outcome FROM unnest(ARRAY['1', '2']) k, LATERAL idempotency.claim('savepoints', 'sibling', k);
SELECT pg_temp.key_locks();
ROLLBACK TO parent;
SELECT k, outcome FROM unnest(ARRAY['1', '2']) k, LATERAL idempotency.claim('savepoints', 'sibling', k);
SELECT idempotency.complete('savepoints', 'sibling', k, 200, 'outside') > now() AS done FROM unnest(ARRAY['1', '2']) k;
COMMIT;
SELECT k, response_body FROM unnest(ARRAY['1', '2']) k, LATERAL idempotency.replay('savepoints', 'sibling', k);
-- Deep, and many of them: completed in the innermost of 50, of which the outer
-- half is kept.
CREATE FUNCTION pg_temp.dive(depth int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM FROM idempotency.claim('savepoints', 'deep', depth::text);
	IF depth < 50 THEN
		PERFORM pg_temp.dive(depth + 1);
	END IF;
	PERFORM idempotency.complete('savepoints', 'deep', depth::text, 200);
	IF depth = 26 THEN
		RAISE division_by_zero;
	END IF;
EXCEPTION WHEN division_by_zero THEN
	NULL;
END $$;
BEGIN;
SELECT pg_temp.dive(1);
SELECT pg_temp.key_locks();
COMMIT;
SELECT count(*), max(k) FROM generate_series(1, 50) k, LATERAL idempotency.replay('savepoints', 'deep', k::text);
-- One savepoint after the other on the same key.
BEGIN;
SELECT outcome FROM idempotency.claim('savepoints', 'loop', '1');
DO $$
BEGIN
	FOR i IN 1..200 LOOP
		BEGIN
			PERFORM idempotency.complete('savepoints', 'loop', '1', i);
			RAISE division_by_zero;
		EXCEPTION WHEN division_by_zero THEN
			NULL;
		END;
	END LOOP;
END $$;
SELECT idempotency.complete('savepoints', 'loop', '1', 201) > now() AS done;
SELECT pg_temp.key_locks();
COMMIT;
SELECT response_status FROM idempotency.replay('savepoints', 'loop', '1');
-- An error inside takes the whole transaction, and the claim, when it is not
-- caught.
BEGIN;
SELECT outcome FROM idempotency.claim('savepoints', 'error', '1');
SAVEPOINT s;
SELECT idempotency.complete('savepoints', 'error', '1', 200) > now() AS done;
SELECT 1 / 0;
COMMIT;
SELECT pg_temp.key_locks();
SELECT count(*) FROM idempotency.lookup('savepoints', 'error', '1');
-- An answer that keeps no lock leaves alone the one that the outer level has.
BEGIN;
SELECT outcome FROM idempotency.claim('savepoints', 'lock', '1');
SAVEPOINT s;
SELECT outcome FROM idempotency.claim('savepoints', 'lock', '1');
SELECT outcome FROM idempotency.claim('savepoints', 'nested', '1', wait => '10 ms');
SELECT pg_temp.key_locks();
ROLLBACK TO s;
SELECT pg_temp.key_locks();
ROLLBACK;
SELECT pg_temp.key_locks();

-- A claim, a call on it inside a savepoint, another call after its end, and
-- commit: every pair, without a lease and with one. A savepoint that is rolled
-- back must leave things as if the inner call had not been made. A block with
-- an exception handler is a savepoint.
CREATE TABLE public.savepoints_cell (lease text, inside text, undone bool, outside text, answer text, locks bigint);
CREATE FUNCTION pg_temp.call(verb text, k text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	s CONSTANT text := 'savepoints';
BEGIN
	RETURN CASE verb
		WHEN 'nothing' THEN '-'
		WHEN 'claim' THEN (SELECT concat_ws(' ', outcome, attempt, response_status, response_body) FROM idempotency.claim(s, 'pair', k))
		WHEN 'claim, lease' THEN (SELECT concat_ws(' ', outcome, attempt, CASE WHEN token > 0 THEN 'with token' END) FROM idempotency.claim(s, 'pair', k, lease => '1 hour'))
		WHEN 'complete' THEN 'done ' || (idempotency.complete(s, 'pair', k, 200, 'body') > now())
		WHEN 'complete otherwise' THEN 'done ' || (idempotency.complete(s, 'pair', k, 500) > now())
		WHEN 'fail' THEN 'done ' || idempotency.fail(s, 'pair', k, 'failed')
		WHEN 'release' THEN 'done ' || idempotency.release(s, 'pair', k)
		WHEN 'release, claim' THEN pg_temp.call('release', k) || ' ' || pg_temp.call('claim', k)
		WHEN 'fail, claim, complete' THEN pg_temp.call('fail', k) || ' ' || pg_temp.call('claim', k) || ' ' || pg_temp.call('complete', k)
		WHEN 'extend' THEN 'done ' || (idempotency.extend(s, 'pair', k) > now())
		WHEN 'forget, force' THEN 'done ' || idempotency.forget(s, 'pair', k, true)
	END;
END $$;
CREATE FUNCTION pg_temp.pair(lease text, inside text, undone bool, outside text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	k CONSTANT text := concat_ws('/', lease, inside, undone, outside);
	answer text;
BEGIN
	PERFORM FROM idempotency.claim('savepoints', 'pair', k, lease => nullif(lease, 'none')::interval);
	BEGIN
		PERFORM pg_temp.call(inside, k);
		IF undone THEN
			RAISE division_by_zero;
		END IF;
	EXCEPTION WHEN division_by_zero THEN
		NULL;
	END;
	BEGIN
		answer := pg_temp.call(outside, k);
	EXCEPTION WHEN OTHERS THEN
		answer := SQLSTATE;
	END;
	INSERT INTO public.savepoints_cell VALUES (lease, inside, undone, outside, answer, pg_temp.key_locks());
END $$;
CREATE TEMP TABLE pairs AS
	SELECT row_number() OVER (ORDER BY lease.no, inside.no, undone, outside.no) AS no, lease.lease, inside.inside, undone, outside.outside
	FROM unnest(ARRAY['none', '1 hour']) WITH ORDINALITY lease (lease, no),
		 unnest(ARRAY['nothing', 'complete', 'fail', 'release', 'release, claim', 'fail, claim, complete', 'extend', 'forget, force']) WITH ORDINALITY inside (inside, no),
		 unnest(ARRAY[true, false]) undone,
		 unnest(ARRAY['nothing', 'claim', 'claim, lease', 'complete', 'complete otherwise', 'fail', 'release', 'extend', 'forget, force']) WITH ORDINALITY outside (outside, no)
	WHERE NOT (lease.lease = 'none' AND inside.inside = 'extend') AND NOT (inside.inside = 'nothing' AND undone);
-- Each is a transaction of its own; those that may not commit say so.
\set ECHO none
\set VERBOSITY sqlstate
\pset tuples_only on
\o /dev/null
SELECT format('SELECT pg_temp.pair(%L, %L, %L, %L)', lease, inside, undone, outside) FROM pairs ORDER BY no \gexec
\o
\pset tuples_only off
\set VERBOSITY default
\set ECHO all
CREATE TEMP TABLE result AS
	SELECT p.no, p.lease, p.inside, p.undone, p.outside, coalesce(c.answer, 'IK004') AS answer, c.locks,
		   coalesce((SELECT concat_ws(' ', l.status, l.attempt, CASE WHEN l.token > 0 THEN 'with token' END, l.last_error)
					 FROM idempotency.lookup('savepoints', 'pair', concat_ws('/', p.lease, p.inside, p.undone, p.outside)) l), '-') AS after
	FROM pairs p LEFT JOIN public.savepoints_cell c USING (lease, inside, undone, outside);
-- One key, one lock, whatever was rolled back.
SELECT locks, count(*) FROM result GROUP BY locks ORDER BY locks;
-- Undone is undone.
SELECT r.lease, r.inside, r.outside, r.answer, r.after, n.answer AS should_be, n.after AS should_stand
FROM result r JOIN result n ON r.lease = n.lease AND r.outside = n.outside AND n.inside = 'nothing'
WHERE r.undone AND (r.answer, r.after) IS DISTINCT FROM (n.answer, n.after);
-- Kept is kept.
\pset format unaligned
SELECT lease, inside, outside, answer, after FROM result WHERE NOT undone ORDER BY no;
DROP TABLE public.savepoints_ledger, public.savepoints_cell;
