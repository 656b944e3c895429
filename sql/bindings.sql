-- bind_role(): a role uses its own scopes only, in every call that has one.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
DROP ROLE IF EXISTS regress_bind_shop, regress_bind_clerk, regress_bind_guest, regress_bind_free, regress_bind_super;
RESET client_min_messages;
CREATE ROLE regress_bind_shop;
CREATE ROLE regress_bind_clerk IN ROLE regress_bind_shop;
CREATE ROLE regress_bind_guest NOINHERIT IN ROLE regress_bind_shop;
CREATE ROLE regress_bind_free;
CREATE ROLE regress_bind_super SUPERUSER;
SELECT idempotency.grant_usage(r), idempotency.grant_operator(r) FROM unnest('{regress_bind_shop,regress_bind_guest,regress_bind_free}'::regrole[]) AS r;
-- From here on, no claim has token 1.
SELECT token > 0 AS claimed FROM idempotency.claim('bind first', 'bind', '1', lease => '1 min');
-- What a call says: "allowed", or SQLSTATE of an error.
CREATE FUNCTION pg_temp.says(call text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE call;
	RETURN 'allowed';
EXCEPTION WHEN OTHERS THEN
	RETURN sqlstate || ' ' || sqlerrm;
END $$;
CREATE TEMP VIEW calls AS SELECT row_number() OVER () AS n, call FROM unnest(ARRAY[
	$$SELECT FROM idempotency.claim(%L, 'bind', 'k', lease => '5 min')$$,
	$$SELECT idempotency.extend(%1$L, 'bind', 'k', token => token) FROM idempotency.lookup(%1$L, 'bind', 'k')$$,
	$$SELECT idempotency.extend(%L, 'bind', 'k', token => 1)$$,
	$$SELECT idempotency.checkpoint(%L, 'bind', 'k', 'p', token => 1)$$,
	$$SELECT idempotency.fail(%L, 'bind', 'k', token => 1)$$,
	$$SELECT idempotency.release(%L, 'bind', 'k', 1)$$,
	$$SELECT idempotency.hold(%L, 'bind', 'k', token => 1)$$,
	$$SELECT idempotency.complete(%L, 'bind', 'k', token => 1)$$,
	$$SELECT idempotency.resolve(%L, 'bind', 'k', 'retry')$$,
	$$SELECT * FROM idempotency.replay(%L, 'bind', 'k')$$,
	$$SELECT * FROM idempotency.lookup(%L, 'bind', 'k')$$,
	$$SELECT idempotency.once(%L, 'bind', 'once')$$,
	$$SELECT * FROM idempotency.once_batch(%L, 'bind', ARRAY['batch'])$$,
	$$SELECT FROM idempotency.run(%L, 'bind', 'run', 'SELECT 1')$$,
	$$SELECT idempotency.import_completed(%L, 'bind', 'import')$$,
	$$SELECT idempotency.redact(%L, 'bind', 'once')$$,
	$$SELECT idempotency.redact_scope(%L)$$,
	$$SELECT idempotency.forget(%L, 'bind', 'once')$$,
	$$SELECT idempotency.forget_scope(%L)$$]) AS call;
GRANT SELECT ON calls TO PUBLIC;

SELECT idempotency.bind_role('regress_bind_shop', 'bind shop:%');
SELECT idempotency.bind_role('regress_bind_shop', 'bind common');
SELECT idempotency.bind_role('regress_bind_shop', 'bind common') AS twice;
SELECT * FROM idempotency.role_bindings ORDER BY scope_pattern;

SET ROLE regress_bind_shop;
SELECT n, left(call, 40) AS call, pg_temp.says(format(call, 'bind other')) AS another_scope FROM calls ORDER BY n;
SELECT n, left(call, 40) AS call, pg_temp.says(format(call, 'bind shop:7')) AS its_own FROM calls ORDER BY n;
SELECT idempotency.once('bind other', 'bind', 'k');
SELECT pg_temp.says($$SELECT idempotency.once('bind common', 'bind', 'k')$$), pg_temp.says($$SELECT idempotency.once('bind commons', 'bind', 'k')$$), pg_temp.says($$SELECT idempotency.once('Bind common', 'bind', 'k')$$);
-- A role that has its privileges is bound with it; one that could only SET
-- ROLE to it is not, nor is one that has nothing to do with it.
SET ROLE regress_bind_clerk;
SELECT pg_temp.says($$SELECT idempotency.once('bind other', 'bind', 'k')$$), pg_temp.says($$SELECT idempotency.once('bind shop:1', 'bind', 'k')$$);
SET ROLE regress_bind_guest;
SELECT pg_temp.says($$SELECT idempotency.once('bind other', 'bind', 'k')$$);
SET ROLE regress_bind_free;
SELECT pg_temp.says($$SELECT idempotency.once('bind other', 'bind', 'k')$$);
-- Its own patterns add to those that it has through others.
RESET ROLE;
SELECT idempotency.bind_role('regress_bind_clerk', 'bind clerk');
SET ROLE regress_bind_clerk;
SELECT pg_temp.says($$SELECT idempotency.once('bind clerk', 'bind', 'k')$$), pg_temp.says($$SELECT idempotency.once('bind shop:1', 'bind', 'k')$$), pg_temp.says($$SELECT idempotency.once('bind other', 'bind', 'k')$$);
SET ROLE regress_bind_shop;
SELECT pg_temp.says($$SELECT idempotency.once('bind clerk', 'bind', 'k')$$);
RESET ROLE;
-- A superuser is never bound.
SELECT idempotency.bind_role('regress_bind_super', 'bind super');
SET ROLE regress_bind_super;
SELECT pg_temp.says($$SELECT idempotency.once('bind other', 'bind', 'super')$$);
RESET ROLE;
-- A SECURITY DEFINER function acts for its owner.
CREATE SCHEMA bind_test;
GRANT USAGE ON SCHEMA bind_test TO PUBLIC;
CREATE FUNCTION bind_test.free(scope text) RETURNS boolean LANGUAGE sql SECURITY DEFINER AS $$ SELECT idempotency.once(scope, 'bind', 'definer') $$;
ALTER FUNCTION bind_test.free OWNER TO regress_bind_free;
CREATE FUNCTION bind_test.shop(scope text) RETURNS boolean LANGUAGE sql SECURITY DEFINER AS $$ SELECT idempotency.once(scope, 'bind', 'definer') $$;
ALTER FUNCTION bind_test.shop OWNER TO regress_bind_shop;
SET ROLE regress_bind_shop;
SELECT pg_temp.says($$SELECT bind_test.free('bind other')$$);
SET ROLE regress_bind_free;
SELECT pg_temp.says($$SELECT bind_test.shop('bind other')$$), pg_temp.says($$SELECT bind_test.shop('bind shop:1')$$);
-- run()'s command is bound like its caller; the tenants' trigger is not.
SET ROLE regress_bind_shop;
SELECT pg_temp.says($$SELECT FROM idempotency.run('bind shop:1', 'bind', 'r', $c$SELECT idempotency.once('bind other', 'bind', 'r')$c$)$$);
RESET ROLE;
CREATE TABLE bind_test.tenant (id text);
CREATE TRIGGER forget AFTER DELETE ON bind_test.tenant FOR EACH ROW EXECUTE FUNCTION idempotency.forget_scope_on_delete('id');
INSERT INTO bind_test.tenant VALUES ('bind other');
GRANT SELECT, DELETE ON bind_test.tenant TO regress_bind_shop;
SET ROLE regress_bind_shop;
DELETE FROM bind_test.tenant;
-- Binding is not for the bound, nor for operators.
SELECT idempotency.bind_role('regress_bind_shop', '%');
SELECT idempotency.unbind_role('regress_bind_shop');
INSERT INTO idempotency.role_bindings VALUES ('regress_bind_shop', '%');
RESET ROLE;
SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = 'bind other';

-- Rolled back, it was not bound; unbound, it is free.
BEGIN;
SELECT idempotency.bind_role('regress_bind_free', 'bind free');
SET LOCAL ROLE regress_bind_free;
SELECT pg_temp.says($$SELECT idempotency.once('bind other', 'bind', 'x')$$);
ROLLBACK;
SET ROLE regress_bind_free;
SELECT pg_temp.says($$SELECT idempotency.once('bind other', 'bind', 'x')$$);
RESET ROLE;
SELECT idempotency.unbind_role('regress_bind_shop') AS unbound, idempotency.unbind_role('regress_bind_shop') AS again;
SET ROLE regress_bind_shop;
SELECT pg_temp.says($$SELECT idempotency.once('bind other', 'bind', 'y')$$);
RESET ROLE;

-- Patterns are those of LIKE, with its escape.
SELECT idempotency.bind_role('regress_bind_shop', 'bind 100\%_');
SET ROLE regress_bind_shop;
SELECT pg_temp.says($$SELECT idempotency.once('bind 100%x', 'bind', 'k')$$), pg_temp.says($$SELECT idempotency.once('bind 100xx', 'bind', 'k')$$), pg_temp.says($$SELECT idempotency.once('bind 100%', 'bind', 'k')$$), pg_temp.says($$SELECT idempotency.once('bind 100%ä', 'bind', 'k')$$);
RESET ROLE;
SELECT idempotency.bind_role('regress_bind_shop', 'bind\');
SELECT idempotency.bind_role('regress_bind_shop', 'bind\%x\');
SELECT idempotency.bind_role('regress_bind_shop', 'bind\\');
SELECT idempotency.bind_role('regress_bind_shop', '');
SELECT idempotency.bind_role('regress_bind_shop', NULL);
SELECT idempotency.bind_role(NULL, '%');
SELECT idempotency.bind_role('regress_bind_nobody', '%');
SELECT idempotency.bind_role('public', '%');
SELECT idempotency.bind_role('-', '%');
SELECT idempotency.bind_role('1', '%');
SELECT idempotency.unbind_role(NULL);
BEGIN READ ONLY;
SELECT idempotency.bind_role('regress_bind_shop', '%');
ROLLBACK;

-- One pattern is taken away as it was given, or all of them.
SELECT idempotency.unbind_role('regress_bind_shop');
SELECT idempotency.bind_role('regress_bind_shop', p) FROM unnest(ARRAY['bind a%', 'bind b', 'bind c']) AS p;
SELECT idempotency.unbind_role('regress_bind_shop', 'bind ab') AS matches_only, idempotency.unbind_role('regress_bind_shop', '') AS empty, idempotency.unbind_role('regress_bind_free', 'bind b') AS of_another, idempotency.unbind_role('regress_bind_shop', 'bind b') AS there, idempotency.unbind_role('regress_bind_shop', 'bind b') AS again;
SELECT scope_pattern FROM idempotency.role_bindings WHERE role = 'regress_bind_shop'::regrole ORDER BY 1;
SET ROLE regress_bind_shop;
SELECT pg_temp.says($$SELECT idempotency.once('bind b', 'bind', 'one')$$), pg_temp.says($$SELECT idempotency.once('bind abc', 'bind', 'one')$$);
RESET ROLE;
SELECT idempotency.unbind_role('regress_bind_shop', NULL) AS all_of_them, idempotency.unbind_role('regress_bind_shop', scope_pattern => 'bind c') AS again;
-- The last one taken away leaves a role that is not bound: any scope again.
SELECT idempotency.bind_role('regress_bind_shop', 'bind c'), idempotency.unbind_role('regress_bind_shop', 'bind c');
SET ROLE regress_bind_shop;
SELECT pg_temp.says($$SELECT idempotency.once('bind b', 'bind', 'one')$$);
RESET ROLE;
SELECT count(*) FROM idempotency.role_bindings WHERE role = 'regress_bind_shop'::regrole;

-- Where the superuser requires it, a role without a binding uses no scope, in
-- no call, whether or not anybody is bound.
SELECT idempotency.unbind_role(r) FROM unnest('{regress_bind_shop,regress_bind_clerk,regress_bind_super}'::regrole[]) AS r;
SELECT idempotency.forget_scope('bind other', true) >= 0 AS cleared;
SELECT outcome FROM idempotency.claim('bind other', 'abandoned', 'k', lease => '1 us');
SELECT count(*) FROM idempotency.role_bindings;
SHOW idempotency.require_binding;
SET idempotency.require_binding = on;
SET ROLE regress_bind_free;
SELECT n, left(call, 40) AS call, pg_temp.says(format(call, 'bind other')) AS unbound FROM calls ORDER BY n;
SELECT * FROM idempotency.claim_abandoned('abandoned');
SELECT idempotency.once('bind other', 'bind', 'required');
SET idempotency.require_binding = off;
-- Nothing of it is in the way of what uses no scope.
SELECT length(idempotency.effect_key('bind other', 'bind', 'k')), length(idempotency.content_key('{}'));
RESET ROLE;
-- A superuser uses any; with a binding, a role uses its own, and so does who
-- has its privileges. Somebody else's binding is none.
SELECT idempotency.once('bind other', 'bind', 'required');
SELECT idempotency.bind_role('regress_bind_shop', 'bind shop:%');
SET ROLE regress_bind_shop;
SELECT pg_temp.says($$SELECT idempotency.once('bind shop:1', 'bind', 'required')$$), pg_temp.says($$SELECT idempotency.once('bind other', 'bind', 'required')$$);
SET ROLE regress_bind_clerk;
SELECT pg_temp.says($$SELECT idempotency.once('bind shop:1', 'bind', 'required 2')$$);
SET ROLE regress_bind_guest;
SELECT pg_temp.says($$SELECT idempotency.once('bind shop:1', 'bind', 'required')$$);
SET ROLE regress_bind_free;
SELECT pg_temp.says($$SELECT idempotency.once('bind shop:1', 'bind', 'required')$$);
-- The current role counts.
SELECT pg_temp.says($$SELECT bind_test.shop('bind shop:2')$$);
SET ROLE regress_bind_shop;
SELECT pg_temp.says($$SELECT bind_test.free('bind shop:3')$$);
RESET ROLE;
-- Operators read the whole table, whatever is bound or required.
SELECT idempotency.grant_operator('regress_bind_free');
SET ROLE regress_bind_free;
SELECT count(*) > 0 AS reads FROM idempotency.idempotency_keys WHERE scope = 'bind other';
RESET ROLE;
RESET idempotency.require_binding;

SET client_min_messages = warning;
DROP SCHEMA bind_test CASCADE;
SELECT count(idempotency.forget_scope(scope, true)) > 0 AS forgotten FROM (SELECT DISTINCT scope FROM idempotency.idempotency_keys WHERE scope ILIKE 'bind%') AS s;
SELECT idempotency.unbind_role(r) FROM unnest('{regress_bind_shop,regress_bind_clerk,regress_bind_super}'::regrole[]) AS r;
DROP OWNED BY regress_bind_shop, regress_bind_clerk, regress_bind_guest, regress_bind_free;
DROP ROLE regress_bind_shop, regress_bind_clerk, regress_bind_guest, regress_bind_free, regress_bind_super;
