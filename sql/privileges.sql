-- Nobody has a privilege by default; grant_usage(), grant_operator() and
-- grant_monitor() give what the application, a person who decides and a monitor
-- need, and no more. revoke_usage() and so on take it back, and no more.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
DROP ROLE IF EXISTS regress_nobody, regress_app, "regress Operator", regress_monitor, regress_all, regress_one, regress_other, regress_half, "regress_a""b; --", "regress Mixed";
RESET client_min_messages;
\set SHOW_CONTEXT never

CREATE ROLE regress_nobody;
CREATE ROLE regress_app;
CREATE ROLE "regress Operator";
CREATE ROLE regress_monitor;

-- Everything that belongs to the extension, with the types that come with its
-- relations: owner and what PUBLIC may do.
CREATE VIEW public.privileges_members AS
	WITH RECURSIVE member AS (
		SELECT classid, objid FROM pg_depend
		WHERE refclassid = 'pg_extension'::regclass AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'idempotency') AND deptype = 'e'
		UNION
		SELECT d.classid, d.objid FROM pg_depend d JOIN member m ON d.refclassid = m.classid AND d.refobjid = m.objid AND d.deptype IN ('i', 'a') AND d.objsubid = 0)
	SELECT pg_describe_object(m.classid, m.objid, 0) AS object, o.owner, o.acl
	FROM member m, LATERAL (
		SELECT relowner AS owner, coalesce(relacl, acldefault(CASE WHEN relkind = 'S' THEN 's' ELSE 'r' END::"char", relowner)) AS acl FROM pg_class WHERE m.classid = 'pg_class'::regclass AND oid = m.objid AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
		UNION ALL
		SELECT proowner, coalesce(proacl, acldefault('f', proowner)) FROM pg_proc WHERE m.classid = 'pg_proc'::regclass AND oid = m.objid
		UNION ALL
		SELECT nspowner, coalesce(nspacl, acldefault('n', nspowner)) FROM pg_namespace WHERE m.classid = 'pg_namespace'::regclass AND oid = m.objid
		UNION ALL
		-- An array's privileges are those of its element type. The row type of a
		-- table or view is left as the server makes it: see t/004_dump.pl.
		SELECT typowner, coalesce(typacl, acldefault('T', typowner)) FROM pg_type WHERE m.classid = 'pg_type'::regclass AND oid = m.objid AND typelem = 0
			AND typrelid NOT IN (SELECT oid FROM pg_class WHERE relkind <> 'c')) o;
SELECT count(*) > 30 AS many, count(DISTINCT owner) AS owners FROM public.privileges_members;
SELECT object, privilege_type FROM public.privileges_members, aclexplode(acl) WHERE grantee = 0 ORDER BY 1, 2;
SELECT a.attrelid::regclass, attname, e.* FROM pg_attribute a, aclexplode(attacl) e WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'idempotency'::regnamespace);
-- Nothing in the schema that is not the extension's own.
SELECT relname FROM pg_class c WHERE relnamespace = 'idempotency'::regnamespace AND relkind NOT IN ('i', 't') AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype IN ('e', 'i'));
-- No function runs with the rights of its owner, or of whoever it may be: who
-- may do what is decided in C, for the table alone.
SELECT proname FROM pg_proc WHERE pronamespace = 'idempotency'::regnamespace AND (prosecdef OR prolang <> (SELECT oid FROM pg_language WHERE lanname = 'c'));
SELECT extname, extrelocatable, nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'idempotency';
SELECT bool_or(trusted) AS trusted FROM pg_available_extension_versions WHERE name = 'idempotency';

SELECT idempotency.grant_usage('regress_app'), idempotency.grant_operator('"regress Operator"'), idempotency.grant_monitor('regress_monitor');
-- Again is no error.
SELECT idempotency.grant_usage('regress_app');

-- Who may execute what.
SELECT p.proname, has_function_privilege('regress_nobody', p.oid, 'EXECUTE') AS nobody, has_function_privilege('regress_app', p.oid, 'EXECUTE') AS application,
	   has_function_privilege('regress Operator', p.oid, 'EXECUTE') AS operator, has_function_privilege('regress_monitor', p.oid, 'EXECUTE') AS monitor
FROM pg_proc p WHERE pronamespace = 'idempotency'::regnamespace ORDER BY proname COLLATE "C";
-- Who may do what with tables, views and sequences; none may grant it on.
SELECT c.relname, r.role, string_agg(CASE WHEN has_table_privilege(r.role, c.oid, p.privilege || ' WITH GRANT OPTION') THEN p.privilege || '*' ELSE p.privilege END, ' ' ORDER BY p.no) AS privileges
FROM pg_class c, unnest(ARRAY['regress_nobody', 'regress_app', 'regress Operator', 'regress_monitor']) WITH ORDINALITY r (role, no),
	 unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) WITH ORDINALITY p (privilege, no)
WHERE relnamespace = 'idempotency'::regnamespace AND relkind IN ('r', 'v') AND has_table_privilege(r.role, c.oid, p.privilege)
GROUP BY c.relname, r.role, r.no ORDER BY c.relname COLLATE "C", r.no;
SELECT c.relname, r.role FROM pg_class c, unnest(ARRAY['regress_nobody', 'regress_app', 'regress Operator', 'regress_monitor']) r (role), unnest(ARRAY['USAGE', 'SELECT', 'UPDATE']) p (privilege)
WHERE relnamespace = 'idempotency'::regnamespace AND relkind = 'S' AND has_sequence_privilege(r.role, c.oid, p.privilege);
SELECT r.role, has_schema_privilege(r.role, 'idempotency', 'USAGE') AS usage, has_schema_privilege(r.role, 'idempotency', 'CREATE') AS "create"
FROM unnest(ARRAY['regress_nobody', 'regress_app', 'regress Operator', 'regress_monitor']) WITH ORDINALITY r (role, no) ORDER BY r.no;

-- In practice. Every function is called by everybody, and refused by 42501 just
-- where the table above says so, before it looks at any argument.
CREATE FUNCTION public.privileges_try(call text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE call;
	RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
CREATE FUNCTION public.privileges_sweep(OUT role name, OUT refused bigint, OUT allowed bigint, OUT wrong text) LANGUAGE sql AS $$
	SELECT current_user, count(*) FILTER (WHERE t.code = '42501'), count(*) FILTER (WHERE t.code <> '42501'),
		   string_agg(p.proname || ' ' || t.code, ', ') FILTER (WHERE (t.code = '42501') = (has_schema_privilege('idempotency', 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE')))
	FROM pg_proc p, LATERAL (SELECT public.privileges_try(format(CASE WHEN p.prokind = 'p' THEN 'CALL %s(%s)' ELSE 'SELECT * FROM %s(%s)' END, 'idempotency.' || quote_ident(p.proname),
			CASE WHEN p.proisstrict THEN '''{}''' ELSE array_to_string(array_fill('NULL'::text, ARRAY[p.pronargs::int]), ', ') END)) AS code) t
	WHERE pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'idempotency') AND p.prorettype NOT IN ('trigger'::regtype, 'internal'::regtype) AND p.proname !~ '^request_cleanup$'
$$;
GRANT USAGE ON SCHEMA public TO PUBLIC;
SET ROLE regress_nobody;
SELECT role, allowed, wrong FROM public.privileges_sweep();
SET ROLE regress_app;
SELECT role, allowed > 10 AS some, refused > 5 AS not_all, wrong FROM public.privileges_sweep();
SET ROLE "regress Operator";
SELECT role, allowed > 5 AS some, refused > 5 AS not_all, wrong FROM public.privileges_sweep();
SET ROLE regress_monitor;
SELECT role, refused > 20 AS nearly_all, wrong FROM public.privileges_sweep();
RESET ROLE;

-- The application: makes its calls, and cannot touch what they write.
SELECT set_config('idempotency.max_response_size', '4kB', false);
SET ROLE regress_app;
BEGIN;
SELECT outcome FROM idempotency.claim('privileges', 'own', 'top secret key', '{"secret": "request"}');
SELECT idempotency.complete('privileges', 'own', 'top secret key', 200, 'secret response') > now() AS done;
COMMIT;
SELECT outcome, response_body FROM idempotency.claim('privileges', 'own', 'top secret key');
SELECT response_body FROM idempotency.replay('privileges', 'own', 'top secret key');
SELECT status FROM idempotency.lookup('privileges', 'own', 'top secret key');
SELECT outcome, token FROM idempotency.claim('privileges', 'leased', 'top secret key', '{"secret": "request"}', lease => '1 hour') \gset
SELECT idempotency.extend('privileges', 'leased', 'top secret key', token => :token) > now() AS done;
SELECT idempotency.fail('privileges', 'leased', 'top secret key', 'secret error', token => :token);
SELECT outcome, token FROM idempotency.claim('privileges', 'leased', 'top secret key', lease => '1 hour') \gset
SELECT idempotency.release('privileges', 'leased', 'top secret key', token => :token);
SELECT length(idempotency.fingerprint('{}')), length(idempotency.content_key('{}')), length(idempotency.effect_key('a', 'b', 'c'));
SELECT * FROM idempotency.idempotency_keys;
INSERT INTO idempotency.idempotency_keys (scope, operation, key, status, attempt, created_at, expires_at) VALUES ('privileges', 'own', 'top secret key', 'completed', 1, now(), now());
UPDATE idempotency.idempotency_keys SET response_body = 'forged';
DELETE FROM idempotency.idempotency_keys;
TRUNCATE idempotency.idempotency_keys;
COPY idempotency.idempotency_keys TO STDOUT;
CREATE TRIGGER spy AFTER INSERT ON idempotency.idempotency_keys EXECUTE FUNCTION suppress_redundant_updates_trigger();
CREATE INDEX ON idempotency.idempotency_keys ((1 / 0));
ALTER TABLE idempotency.idempotency_keys DISABLE TRIGGER ALL;
CREATE TEMP TABLE privileges_child () INHERITS (idempotency.idempotency_keys);
SELECT nextval('idempotency.token_seq');
SELECT setval('idempotency.token_seq', 1);
SELECT last_value FROM idempotency.token_seq;
SELECT idempotency.forget('privileges', 'own', 'top secret key');
SELECT idempotency.forget_scope('privileges', true);
SELECT idempotency.cleanup();
SELECT idempotency.grant_usage('regress_app');
SET idempotency.max_key_length = 880;
DROP EXTENSION idempotency;
ALTER EXTENSION idempotency UPDATE;
CREATE TABLE idempotency.mine ();

-- Nor do its errors show keys, requests or responses, of its own or others.
RESET ROLE;
CREATE TABLE public.privileges_errors (call text, code text, texts text);
GRANT INSERT ON public.privileges_errors TO regress_app;
SELECT token FROM idempotency.claim('privileges', 'others', 'top secret key', '{"secret": "request"}', lease => '1 hour') \gset
SET ROLE regress_app;
CREATE PROCEDURE pg_temp.note(call text) LANGUAGE plpgsql AS $$
DECLARE
	code text; message text; detail text; hint text; context text; s text; t text; c text;
BEGIN
	EXECUTE call;
	INSERT INTO public.privileges_errors VALUES (call, 'none', '');
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT, s = SCHEMA_NAME, t = TABLE_NAME, c = CONSTRAINT_NAME;
	INSERT INTO public.privileges_errors VALUES (call, code, concat_ws(' ', message, detail, hint, s, t, c));
END $$;
CALL pg_temp.note('SELECT idempotency.complete(''privileges'', ''others'', ''top secret key'', 200, ''secret response'')');
CALL pg_temp.note('SELECT idempotency.complete(''privileges'', ''others'', ''top secret key'', 200, ''secret response'', token => 9007199254740991)');
CALL pg_temp.note('SELECT idempotency.complete(''privileges'', ''own'', ''top secret key'', 200, ''secret response'', token => 1)');
CALL pg_temp.note('SELECT idempotency.complete(''privileges'', ''absent'', ''top secret key'', 200, ''secret response'', token => 1)');
CALL pg_temp.note('SELECT idempotency.complete(''privileges'', ''own'', ''top secret key'', 200, repeat(''secret response'', 10000))');
CALL pg_temp.note('SELECT idempotency.complete(''privileges'', ''own'', ''top secret key'', 200, ''secret response'', response_bytes => ''secret response'')');
CALL pg_temp.note('SELECT idempotency.fail(''privileges'', ''others'', ''top secret key'', repeat(''secret error'', 10000), token => 1)');
CALL pg_temp.note('SELECT idempotency.fail(''privileges'', ''others'', ''top secret key'', ''secret error'', token => 1)');
CALL pg_temp.note('SELECT FROM idempotency.claim(''privileges'', ''others'', repeat(''top secret key'', 100))');
CALL pg_temp.note('SELECT FROM idempotency.claim(''privileges'', ''others'', ''top secret key'', ttl => ''-1 day'')');
CALL pg_temp.note('SELECT FROM idempotency.claim(''privileges'', ''others'', ''top secret key'', ''{"secret": "request"}'', sha256(''secret request''))');
CALL pg_temp.note('SELECT FROM idempotency.claim(''privileges'', ''others'', ''top secret key'', fingerprint => ''secret request'')');
CALL pg_temp.note('SELECT FROM idempotency.claim(''privileges'', ''others'', ''top secret key'', note => repeat(''secret note'', 10000))');
CALL pg_temp.note('SELECT idempotency.extend(''privileges'', ''own'', ''top secret key'', token => 1)');
CALL pg_temp.note('SELECT idempotency.release(''privileges'', ''others'', ''top secret key'', 1)');
CALL pg_temp.note('SELECT idempotency.forget(''privileges'', ''others'', ''top secret key'', true)');
CALL pg_temp.note('INSERT INTO idempotency.idempotency_keys (scope, operation, key) VALUES (''privileges'', ''others'', ''top secret key'')');
RESET ROLE;
SELECT code, count(*), bool_or(texts ILIKE '%secret%' OR texts LIKE '%privileges%') AS telling FROM public.privileges_errors GROUP BY code ORDER BY code;

-- The operator: decides, and changes nothing by hand.
SET ROLE "regress Operator";
SELECT status FROM idempotency.idempotency_keys WHERE scope = 'privileges' AND operation = 'own' AND key = 'top secret key';
SELECT idempotency.complete('privileges', 'others', 'top secret key', 200, token => :token) > now() AS done;
SELECT idempotency.forget('privileges', 'own', 'top secret key');
SELECT idempotency.forget_scope('privileges', true) > 0 AS done;
SELECT idempotency.cleanup() >= 0 AS done;
SELECT outcome FROM idempotency.claim('privileges', 'own', 'k');
DELETE FROM idempotency.idempotency_keys;
UPDATE idempotency.idempotency_keys SET status = 'failed';
SELECT idempotency.grant_usage('regress_nobody');
-- The monitor: sees numbers, not keys.
SET ROLE regress_monitor;
SELECT * FROM idempotency.idempotency_keys;
SELECT * FROM idempotency.lookup('privileges', 'own', 'k');
SELECT * FROM idempotency.replay('privileges', 'own', 'k');
SELECT idempotency.cleanup();
SET ROLE regress_nobody;
SELECT * FROM idempotency.claim('privileges', 'own', 'k');
RESET ROLE;

-- The user is the caller again after every call, also after one that failed.
BEGIN;
SET LOCAL ROLE regress_app;
SELECT outcome FROM idempotency.claim('privileges', 'own', 'as before');
SELECT current_user;
SELECT idempotency.complete('privileges', 'own', 'as before', 200) > now() AS done;
SELECT current_user;
SAVEPOINT s;
SELECT idempotency.complete('privileges', 'own', 'as before', 500);
ROLLBACK TO s;
SELECT current_user;
SELECT count(*) FROM idempotency.idempotency_keys;
ROLLBACK;

-- What the application writes is written with the rights of the table's owner,
-- whoever that is.
CREATE ROLE regress_all;
BEGIN;
GRANT USAGE ON SCHEMA idempotency TO regress_all;
ALTER TABLE idempotency.idempotency_keys OWNER TO regress_all;
ALTER SEQUENCE idempotency.token_seq OWNER TO regress_all;
SET LOCAL ROLE regress_app;
SELECT outcome FROM idempotency.claim('privileges', 'owner', 'k', lease => '1 hour');
SELECT idempotency.release('privileges', 'owner', 'k');
ROLLBACK;

-- Taken back. Whatever bundles a role has: without one of them it has exactly
-- what a role has that never had that one.
CREATE ROLE regress_one;
CREATE ROLE regress_other;
CREATE FUNCTION public.privileges_of(role regrole) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(object || ' ' || privilege_type || is_grantable || ' ' || grantor::regrole, ', ' ORDER BY object, privilege_type, grantor) FROM public.privileges_members, aclexplode(acl) WHERE grantee = role
$$;
CREATE FUNCTION public.privileges_call(verb text, bundle text, role regrole) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	result boolean;
BEGIN
	EXECUTE format('SELECT idempotency.%I(%L)', verb || '_' || bundle, role) INTO result;
	RETURN result;
END $$;
CREATE FUNCTION public.privileges_pairs(OUT has text, OUT revoked text, OUT was_there boolean, OUT exact boolean, OUT again boolean, OUT left_over boolean) RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
	bundle text;
BEGIN
	FOR has, revoked IN SELECT * FROM unnest(ARRAY['', 'usage', 'operator', 'monitor', 'usage operator', 'operator usage', 'usage monitor', 'monitor usage', 'operator monitor', 'monitor operator', 'usage operator monitor', 'monitor usage operator']) a, unnest(ARRAY['usage', 'operator', 'monitor']) b
	LOOP
		FOREACH bundle IN ARRAY string_to_array(has, ' ') LOOP
			PERFORM public.privileges_call('grant', bundle, 'regress_one');
			IF bundle <> revoked THEN
				PERFORM public.privileges_call('grant', bundle, 'regress_other');
			END IF;
		END LOOP;
		was_there := public.privileges_call('revoke', revoked, 'regress_one');
		exact := public.privileges_of('regress_one') IS NOT DISTINCT FROM public.privileges_of('regress_other');
		again := public.privileges_call('revoke', revoked, 'regress_one');
		FOREACH bundle IN ARRAY '{usage,operator,monitor}'::text[] LOOP
			PERFORM public.privileges_call('revoke', bundle, r) FROM unnest('{regress_one,regress_other}'::regrole[]) r;
		END LOOP;
		left_over := public.privileges_of('regress_one') IS NOT NULL OR public.privileges_of('regress_other') IS NOT NULL;
		RETURN NEXT;
	END LOOP;
END $$;
SELECT * FROM public.privileges_pairs();
-- In practice, too.
SELECT idempotency.grant_usage('regress_one'), idempotency.grant_operator('regress_one'), idempotency.revoke_operator('regress_one');
SET ROLE regress_one;
SELECT role, allowed > 10 AS some, refused > 5 AS not_all, wrong FROM public.privileges_sweep();
RESET ROLE;
SELECT idempotency.revoke_usage('regress_one');

-- Whatever the role is called.
CREATE ROLE "regress_a""b; --";
CREATE ROLE "regress Mixed";
SELECT public.privileges_call(verb, bundle, role), public.privileges_of(role) IS NULL AS nothing FROM unnest('{"\"regress_a\"\"b; --\"","\"regress Mixed\""}'::regrole[]) role, unnest(ARRAY['usage', 'operator', 'monitor']) bundle, unnest(ARRAY['grant', 'revoke']) verb;
-- There is no role PUBLIC, and one that was dropped has a number only.
SELECT idempotency.grant_usage('public');
SELECT idempotency.grant_usage('-');
SELECT idempotency.revoke_usage('-');
SELECT idempotency.grant_usage('1');
SELECT idempotency.revoke_operator('1');
BEGIN READ ONLY;
SELECT idempotency.grant_usage('regress_one');
ROLLBACK;
BEGIN READ ONLY;
SELECT idempotency.revoke_usage('regress_one');
ROLLBACK;

-- What a role has through another is the other's.
SELECT idempotency.grant_usage('regress_other'), idempotency.grant_usage('regress_one');
GRANT regress_other TO regress_one;
SELECT idempotency.revoke_usage('regress_one') AS its_own, idempotency.revoke_usage('regress_one') AS again, has_function_privilege('regress_one', oid, 'EXECUTE') AS through_another FROM pg_proc WHERE oid = 'idempotency.once'::regproc;
-- Nor does that count as one of its bundles.
SELECT idempotency.grant_operator('regress_one'), idempotency.revoke_operator('regress_one'), public.privileges_of('regress_one') IS NULL AS nothing;
REVOKE regress_other FROM regress_one;
SELECT idempotency.revoke_usage('regress_other');
-- An owner needs no grant, and keeps what it has.
SELECT public.privileges_of(current_user::regrole) AS owned \gset
SELECT idempotency.grant_usage(current_user::regrole), idempotency.revoke_usage(current_user::regrole), public.privileges_of(current_user::regrole) = :'owned' AS unchanged;

-- They run with the caller's rights. Who has a bundle may not pass it on, and
-- is told so. (GRANT itself would only warn.)
CREATE ROLE regress_half;
SELECT idempotency.grant_usage('regress_half');
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA idempotency TO regress_half;
SET ROLE regress_half;
SELECT idempotency.grant_usage('regress_one');
SELECT idempotency.grant_operator('regress_one');
SELECT idempotency.revoke_usage('regress_app');
SELECT idempotency.revoke_usage('regress_half');
RESET ROLE;
-- All but one is not enough, and nothing is half-granted.
GRANT USAGE ON SCHEMA idempotency TO regress_half WITH GRANT OPTION;
GRANT USAGE ON TYPE idempotency.claim_result, idempotency.replay_result, idempotency.lookup_result TO regress_half WITH GRANT OPTION;
GRANT EXECUTE ON ALL ROUTINES IN SCHEMA idempotency TO regress_half WITH GRANT OPTION;
SET ROLE regress_half;
SELECT idempotency.grant_usage('regress_one');
RESET ROLE;
SELECT public.privileges_of('regress_one') IS NULL AS nothing;
GRANT SELECT ON ALL TABLES IN SCHEMA idempotency TO regress_half WITH GRANT OPTION;
SET ROLE regress_half;
SELECT idempotency.grant_usage('regress_one');
RESET ROLE;
SELECT DISTINCT grantor::regrole FROM public.privileges_members, aclexplode(acl) WHERE grantee = 'regress_one'::regrole;
-- Who granted it takes it back: others are told that there is something left.
SELECT idempotency.revoke_usage('regress_one');
SELECT idempotency.grant_usage('regress_one');
SELECT idempotency.revoke_usage('regress_one');
SELECT DISTINCT grantor::regrole FROM public.privileges_members, aclexplode(acl) WHERE grantee = 'regress_one'::regrole;
-- Such a grant counts as well. What the two have in common stays, from both.
SELECT idempotency.grant_operator('regress_one'), idempotency.revoke_operator('regress_one');
SELECT has_function_privilege('regress_one', 'idempotency.replay'::regproc, 'EXECUTE') AS shared, has_function_privilege('regress_one', 'idempotency.forget'::regproc, 'EXECUTE') AS operators;
SET ROLE regress_half;
SELECT idempotency.revoke_usage('regress_one');
RESET ROLE;
SELECT idempotency.revoke_usage('regress_one'), public.privileges_of('regress_one') IS NULL AS nothing;
-- It cannot be taken from somebody who has passed it on.
SET ROLE regress_half;
SELECT idempotency.grant_usage('regress_one');
RESET ROLE;
SELECT idempotency.revoke_usage('regress_half');
SET ROLE regress_half;
SELECT idempotency.revoke_usage('regress_one');
RESET ROLE;
SELECT idempotency.revoke_usage('regress_half');
SELECT public.privileges_of('regress_one') IS NULL AS nothing;

-- A script that is older than the library lacks some.
BEGIN;
ALTER EXTENSION idempotency DROP FUNCTION idempotency.content_key;
DROP FUNCTION idempotency.content_key;
SELECT idempotency.grant_usage('regress_one'), idempotency.revoke_usage('regress_one');
ROLLBACK;

DROP FUNCTION public.privileges_pairs, public.privileges_call, public.privileges_of;
DROP VIEW public.privileges_members;
DROP TABLE public.privileges_errors;
DROP FUNCTION public.privileges_sweep, public.privileges_try;
SELECT idempotency.forget_scope('privileges', true) >= 0 AS cleared;
DROP OWNED BY regress_nobody, regress_app, "regress Operator", regress_monitor, regress_all, regress_one, regress_other, regress_half, "regress_a""b; --", "regress Mixed";
DROP ROLE regress_nobody, regress_app, "regress Operator", regress_monitor, regress_all, regress_one, regress_other, regress_half, "regress_a""b; --", "regress Mixed";
-- What was granted is gone with the roles.
SELECT p.proname, e.grantee FROM pg_proc p, aclexplode(proacl) e WHERE pronamespace = 'idempotency'::regnamespace AND e.grantee <> p.proowner;
