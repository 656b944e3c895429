-- The forgotten branch: a claim without a lease that is left open cannot
-- commit, and its business rows neither, by whatever way the end comes.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;

CREATE TABLE ik004_ledger (what text);
-- What each of them has to leave: nothing booked, no key, no lock, and a
-- connection that goes on.
CREATE FUNCTION pg_temp.left_behind(OUT booked bigint, OUT keys bigint, OUT locks bigint) LANGUAGE sql AS $$
	SELECT (SELECT count(*) FROM ik004_ledger), (SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = 'ik004'),
		   (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 18756 AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
$$;

-- In a transaction block.
BEGIN;
SELECT outcome FROM idempotency.claim('ik004', 'block', '1');
INSERT INTO ik004_ledger VALUES ('block');
COMMIT;
\echo :SQLSTATE
SELECT * FROM pg_temp.left_behind();
-- The key is free again, and the right branch may come.
BEGIN;
SELECT outcome, attempt FROM idempotency.claim('ik004', 'block', '1');
ROLLBACK;

-- In autocommit: the error comes at the end of the statement that claims.
SELECT outcome FROM idempotency.claim('ik004', 'autocommit', '1');
\echo :SQLSTATE
SELECT * FROM pg_temp.left_behind();
WITH claim AS MATERIALIZED (SELECT outcome FROM idempotency.claim('ik004', 'autocommit', '2'))
INSERT INTO ik004_ledger SELECT outcome FROM claim;
\echo :SQLSTATE
SELECT * FROM pg_temp.left_behind();
-- Claimed and completed in one statement is as good as in one transaction.
SELECT outcome, idempotency.complete('ik004 good', 'autocommit', '1', 200) > now() AS done FROM idempotency.claim('ik004 good', 'autocommit', '1');

-- Several, of which one was forgotten; failed, released and leased ones are fine.
BEGIN;
SELECT k, outcome FROM unnest(ARRAY['1', '2', '3', '4']) k, LATERAL idempotency.claim('ik004', 'several', k);
SELECT outcome FROM idempotency.claim('ik004', 'several', '5', lease => '1 hour');
SELECT idempotency.complete('ik004', 'several', '1') > now() AS done;
SELECT idempotency.fail('ik004', 'several', '2');
SELECT idempotency.release('ik004', 'several', '3');
INSERT INTO ik004_ledger VALUES ('several');
COMMIT;
\echo :SQLSTATE
SELECT * FROM pg_temp.left_behind();
BEGIN;
SELECT k, outcome FROM unnest(ARRAY['1', '2', '3', '4']) k, LATERAL idempotency.claim('ik004 good', 'several', k);
SELECT outcome FROM idempotency.claim('ik004 good', 'several', '5', lease => '1 hour');
SELECT idempotency.complete('ik004 good', 'several', '1') > now() AS done;
SELECT idempotency.fail('ik004 good', 'several', '2');
SELECT idempotency.release('ik004 good', 'several', '3');
SELECT idempotency.forget('ik004 good', 'several', '4', true);
COMMIT;
-- Claimed again after it was failed, released or forgotten, it is open again.
BEGIN;
SELECT outcome FROM idempotency.claim('ik004', 'again', '1');
SELECT idempotency.fail('ik004', 'again', '1');
SELECT outcome FROM idempotency.claim('ik004', 'again', '1');
COMMIT;
\echo :SQLSTATE
BEGIN;
SELECT outcome FROM idempotency.claim('ik004', 'again', '1');
SELECT idempotency.release('ik004', 'again', '1');
SELECT outcome FROM idempotency.claim('ik004', 'again', '1');
COMMIT;
\echo :SQLSTATE
SELECT * FROM pg_temp.left_behind();

-- In PL/pgSQL: a DO block, a function, a function that swallows every error.
DO $$
BEGIN
	PERFORM FROM idempotency.claim('ik004', 'plpgsql', '1');
	INSERT INTO ik004_ledger VALUES ('plpgsql');
END $$;
\echo :SQLSTATE
CREATE FUNCTION pg_temp.forgetful() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM FROM idempotency.claim('ik004', 'plpgsql', '2');
	INSERT INTO ik004_ledger VALUES ('plpgsql');
	BEGIN
		PERFORM 1 / 0;
	EXCEPTION WHEN OTHERS THEN
		NULL;
	END;
	RETURN 'thought to be done';
EXCEPTION WHEN OTHERS THEN
	RETURN 'swallowed';
END $$;
SELECT pg_temp.forgetful();
\echo :SQLSTATE
SELECT * FROM pg_temp.left_behind();

-- In CALL ... COMMIT: what was committed before stays, the rest goes.
CREATE PROCEDURE ik004_batches() LANGUAGE plpgsql AS $$
BEGIN
	PERFORM FROM idempotency.claim('ik004 good', 'procedure', '1');
	PERFORM idempotency.complete('ik004 good', 'procedure', '1');
	COMMIT;
	PERFORM FROM idempotency.claim('ik004', 'procedure', '2');
	INSERT INTO ik004_ledger VALUES ('procedure');
	COMMIT;
	INSERT INTO ik004_ledger VALUES ('never reached');
END $$;
CALL ik004_batches();
\echo :SQLSTATE
SELECT * FROM pg_temp.left_behind();
SELECT status FROM idempotency.lookup('ik004 good', 'procedure', '1');
-- At the end of a procedure that does not commit itself; and one that claims
-- anew after each ROLLBACK.
CREATE OR REPLACE PROCEDURE ik004_batches() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1..3 LOOP
		PERFORM FROM idempotency.claim('ik004', 'procedure', '3');
		INSERT INTO ik004_ledger VALUES ('procedure');
		IF i < 3 THEN
			ROLLBACK;
		END IF;
	END LOOP;
END $$;
CALL ik004_batches();
\echo :SQLSTATE
SELECT * FROM pg_temp.left_behind();

-- A holdable cursor, whose query runs, and claims, during the commit. (The
-- server keeps a cursor that it has materialized before the commit fails.)
BEGIN;
INSERT INTO ik004_ledger VALUES ('cursor');
DECLARE holdable CURSOR WITH HOLD FOR SELECT outcome FROM idempotency.claim('ik004', 'cursor', '1');
COMMIT;
\echo :SQLSTATE
SELECT * FROM pg_temp.left_behind();
CLOSE ALL;
-- With the completion in the same query it is fine.
BEGIN;
DECLARE holdable CURSOR WITH HOLD FOR
	SELECT outcome, idempotency.complete('ik004 good', 'cursor', '1', 200) > now() AS done FROM idempotency.claim('ik004 good', 'cursor', '1');
COMMIT;
FETCH ALL FROM holdable;
CLOSE holdable;

-- A deferred constraint trigger, which runs, and claims, during the commit.
CREATE TABLE ik004_order (id int, complete bool);
CREATE FUNCTION ik004_claim() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM FROM idempotency.claim(CASE WHEN new.complete THEN 'ik004 good' ELSE 'ik004' END, 'trigger', new.id::text);
	IF new.complete THEN
		PERFORM idempotency.complete('ik004 good', 'trigger', new.id::text, 200);
	END IF;
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER claim AFTER INSERT ON ik004_order DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ik004_claim();
BEGIN;
INSERT INTO ik004_order VALUES (1, false);
INSERT INTO ik004_ledger VALUES ('trigger');
COMMIT;
\echo :SQLSTATE
SELECT * FROM pg_temp.left_behind();
INSERT INTO ik004_order VALUES (2, false);
\echo :SQLSTATE
INSERT INTO ik004_order VALUES (3, true);
SELECT id, status FROM ik004_order, LATERAL idempotency.lookup('ik004 good', 'trigger', id::text);
-- One that completes what the transaction has claimed comes early enough.
CREATE FUNCTION ik004_complete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idempotency.complete('ik004 good', 'late', '1', 200);
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER complete AFTER UPDATE ON ik004_order DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ik004_complete();
BEGIN;
SELECT outcome FROM idempotency.claim('ik004 good', 'late', '1');
UPDATE ik004_order SET complete = true WHERE id = 3;
COMMIT;
SELECT status FROM idempotency.lookup('ik004 good', 'late', '1');

-- PREPARE TRANSACTION: the transaction is not prepared.
BEGIN;
SELECT outcome FROM idempotency.claim('ik004', 'prepare', '1');
INSERT INTO ik004_ledger VALUES ('prepare');
PREPARE TRANSACTION 'ik004';
\echo :SQLSTATE
SELECT count(*) FROM pg_prepared_xacts WHERE gid = 'ik004';
SELECT format('ROLLBACK PREPARED %L', gid) FROM pg_prepared_xacts WHERE gid = 'ik004' \gexec
SELECT * FROM pg_temp.left_behind();

-- COMMIT AND CHAIN.
BEGIN;
SELECT outcome FROM idempotency.claim('ik004', 'chain', '1');
INSERT INTO ik004_ledger VALUES ('chain');
COMMIT AND CHAIN;
\echo :SQLSTATE
ROLLBACK;
SELECT * FROM pg_temp.left_behind();

-- Statements sent at once are one transaction.
SELECT outcome FROM idempotency.claim('ik004', 'at once', '1')\; INSERT INTO ik004_ledger VALUES ('at once');
\echo :SQLSTATE
SELECT * FROM pg_temp.left_behind();

-- A ROLLBACK is an end, too, and nobody's mistake.
BEGIN;
SELECT outcome FROM idempotency.claim('ik004', 'rollback', '1');
ROLLBACK;
SELECT * FROM pg_temp.left_behind();

DROP TABLE ik004_ledger, ik004_order;
DROP FUNCTION ik004_claim, ik004_complete;
DROP PROCEDURE ik004_batches;
