-- Planner support: options that nobody gave are no part of the plan, and nothing
-- else of a call changes.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;

-- A call as it was written and as it is planned.
EXPLAIN (VERBOSE, COSTS OFF)
SELECT outcome FROM idempotency.claim('support', 'o', 'k');
EXPLAIN (VERBOSE, COSTS OFF)
SELECT outcome FROM idempotency.claim('support', 'o', 'k', lease => '5 minutes');
EXPLAIN (VERBOSE, COSTS OFF)
SELECT outcome FROM idempotency.claim('support', 'o', 'k', wait_for => 'any');
EXPLAIN (VERBOSE, COSTS OFF)
SELECT idempotency.complete('support', 'o', 'k', 200), idempotency.once('support', 'o', 'k');
EXPLAIN (VERBOSE, COSTS OFF)
SELECT response_body FROM idempotency.run('support', 'o', 'k', 'SELECT 1');

-- What is not constant stays, though it may turn out to be NULL.
PREPARE claim_noted (text, text) AS
	SELECT outcome FROM idempotency.claim('support', 'o', $1, note => $2);
SET plan_cache_mode = force_generic_plan;
EXPLAIN (VERBOSE, COSTS OFF) EXECUTE claim_noted ('k', NULL);
RESET plan_cache_mode;
BEGIN;
EXECUTE claim_noted ('k', NULL);
ROLLBACK;

-- A required argument that is NULL is refused as ever, also where it is the last
-- that is left.
SELECT outcome FROM idempotency.claim('support', 'o', NULL);
SELECT outcome FROM idempotency.claim(NULL, NULL, NULL);
SELECT idempotency.complete('support', 'o', NULL);
SELECT idempotency.once('support', NULL, NULL);
SELECT outcome FROM idempotency.run('support', 'o', 'k', NULL);
SELECT outcome FROM idempotency.run(NULL, NULL, NULL, NULL);

-- Also where the planner simplifies the call more than once, and where it is never
-- reached: for rows that there are none of, as an argument that is inlined, in a
-- condition.
CREATE TABLE inbox (tenant text, event text);
CREATE FUNCTION inlined(b bool) RETURNS text LANGUAGE sql AS $$ SELECT b::text $$;
PREPARE claim_each (text) AS
	SELECT outcome FROM inbox, LATERAL idempotency.claim(tenant, 'o', $1);
EXECUTE claim_each (NULL);
SELECT inlined(idempotency.once(tenant, 'o', NULL)) FROM inbox;
SELECT * FROM inbox WHERE event = idempotency.complete(tenant, 'o', NULL)::text;
SELECT response_body FROM inbox, LATERAL idempotency.run(tenant, 'o', event, NULL);
INSERT INTO inbox VALUES ('support', 'lateral');
EXECUTE claim_each (NULL);
SELECT inlined(idempotency.once(tenant, 'o', NULL)) FROM inbox;
SELECT * FROM inbox WHERE event = idempotency.complete(tenant, 'o', NULL)::text;
SELECT response_body FROM inbox, LATERAL idempotency.run(tenant, 'o', event, NULL);
EXPLAIN (VERBOSE, COSTS OFF)
SELECT outcome FROM inbox, LATERAL idempotency.claim(tenant, 'o', event);
DEALLOCATE claim_each;
DROP FUNCTION inlined;
DROP TABLE inbox;

-- In views, PL/pgSQL and SQL functions; with jit, where the server has it.
CREATE VIEW claims AS SELECT outcome, attempt FROM idempotency.claim('support', 'o', 'view');
SET jit_above_cost = 0;
BEGIN;
SELECT * FROM claims;
SELECT idempotency.complete('support', 'o', 'view') > now() AS completed;
COMMIT;
RESET jit_above_cost;
SELECT * FROM claims;
CREATE FUNCTION in_sql(k text) RETURNS bool LANGUAGE sql AS $$ SELECT idempotency.once('support', 'o', k) $$;
SELECT in_sql('sql'), in_sql('sql');
DO $$
DECLARE
	first bool;
	c idempotency.claim_result;
BEGIN
	FOR i IN 1..7 LOOP
		first := idempotency.once('support', 'o', 'plpgsql');
		c := idempotency.claim('support', 'o', 'plpgsql ' || i);
		PERFORM idempotency.complete('support', 'o', 'plpgsql ' || i, i);
		RAISE NOTICE '% % %', i, first, c.outcome;
	END LOOP;
END $$;
SELECT key, response_status FROM idempotency.idempotency_keys WHERE scope = 'support' ORDER BY key COLLATE "C";

-- Whoever may not execute claim() may not execute what is left of the call.
CREATE ROLE regress_idempotency_stranger;
GRANT USAGE ON SCHEMA idempotency TO regress_idempotency_stranger;
SET ROLE regress_idempotency_stranger;
SELECT outcome FROM idempotency.claim('support', 'o', 'k');
RESET ROLE;

-- It is for the planner alone. Minor versions differ in how they refuse: no value of
-- that type (0A000), or no such function (42883).
DO $$
BEGIN
	PERFORM idempotency.call_support(NULL);
	RAISE NOTICE 'called';
EXCEPTION WHEN feature_not_supported OR undefined_function THEN
	RAISE NOTICE 'refused';
END $$;

DROP OWNED BY regress_idempotency_stranger;
DROP ROLE regress_idempotency_stranger;
DROP VIEW claims;
DROP FUNCTION in_sql;
