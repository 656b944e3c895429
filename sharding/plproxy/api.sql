/*
 * api.sql - the calls of the extension on the front
 *
 * Run by front.sql, and by itself, in one transaction (psql -1), after an upgrade of
 * the extension on the shards.
 *
 * Signatures, defaults and comments are taken from the first shard and not written
 * here, so they are the same by construction. What is written here is, for each
 * function, how it finds its shards; a function that this file does not know makes it
 * fail. For most of them two functions are made: idempotency_front.NAME in PL/Proxy,
 * and idempotency.NAME in PL/pgSQL, which refuses what cannot work before anything is
 * sent, and gives errors their form back.
 */

SET LOCAL search_path TO pg_catalog, pg_temp;

------------------------------------------------------------------------------
-- What the shards have
------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION idempotency_front.shard_functions(
	OUT name pg_catalog.text, OUT arguments pg_catalog.text, OUT types pg_catalog.text[],
	OUT result pg_catalog.text, OUT returns_set pg_catalog.bool, OUT kind pg_catalog.text,
	OUT strictness pg_catalog.text, OUT volatility pg_catalog.text, OUT number_of_rows pg_catalog.int4,
	OUT comment pg_catalog.text)
RETURNS SETOF record
LANGUAGE plproxy
AS $$
	CLUSTER 'idempotency';
	RUN ON 0;
	SELECT p.proname::pg_catalog.text AS name,
		pg_catalog.pg_get_function_arguments(p.oid) AS arguments,
		ARRAY(SELECT pg_catalog.format_type(t.type, NULL)
			FROM pg_catalog.unnest(p.proargtypes) WITH ORDINALITY AS t(type, n) ORDER BY t.n) AS types,
		pg_catalog.pg_get_function_result(p.oid) AS result,
		p.proretset AS returns_set, p.prokind::pg_catalog.text AS kind,
		CASE WHEN p.proisstrict THEN 'STRICT' ELSE 'CALLED ON NULL INPUT' END AS strictness,
		CASE p.provolatile WHEN 'i' THEN 'IMMUTABLE' WHEN 's' THEN 'STABLE' ELSE 'VOLATILE' END AS volatility,
		p.prorows::pg_catalog.int4 AS number_of_rows,
		pg_catalog.obj_description(p.oid, 'pg_proc') AS comment
	FROM pg_catalog.pg_proc AS p
	WHERE p.pronamespace = 'idempotency'::pg_catalog.regnamespace
	ORDER BY p.proname;
$$;
COMMENT ON FUNCTION idempotency_front.shard_functions IS
	'The functions of the extension, as the first shard has them';

CREATE OR REPLACE FUNCTION idempotency_front.shard_types(
	OUT name pg_catalog.text, OUT attributes pg_catalog.text, OUT comment pg_catalog.text,
	OUT attribute_names pg_catalog.text[], OUT attribute_comments pg_catalog.text[])
RETURNS SETOF record
LANGUAGE plproxy
AS $$
	CLUSTER 'idempotency';
	RUN ON 0;
	SELECT c.relname::pg_catalog.text AS name,
		pg_catalog.string_agg(pg_catalog.format('%I %s', a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod)),
			', ' ORDER BY a.attnum) AS attributes,
		pg_catalog.obj_description(c.reltype, 'pg_type') AS comment,
		pg_catalog.array_agg(a.attname::pg_catalog.text ORDER BY a.attnum) AS attribute_names,
		pg_catalog.array_agg(pg_catalog.col_description(c.oid, a.attnum) ORDER BY a.attnum) AS attribute_comments
	FROM pg_catalog.pg_class AS c
	JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
	WHERE c.relnamespace = 'idempotency'::pg_catalog.regnamespace AND c.relkind = 'c'
	GROUP BY c.oid, c.relname, c.reltype
	ORDER BY c.relname;
$$;
COMMENT ON FUNCTION idempotency_front.shard_types IS
	'The result types of the extension, as the first shard has them';

-- Tables and views that can be read through the front. Not the keys: that would fetch
-- all of them; nor the bindings, which are about roles of the shards.
CREATE OR REPLACE FUNCTION idempotency_front.shard_views(
	OUT name pg_catalog.text, OUT columns pg_catalog.text[], OUT types pg_catalog.text[], OUT comment pg_catalog.text)
RETURNS SETOF record
LANGUAGE plproxy
AS $$
	CLUSTER 'idempotency';
	RUN ON 0;
	SELECT c.relname::pg_catalog.text AS name,
		pg_catalog.array_agg(a.attname::pg_catalog.text ORDER BY a.attnum) AS columns,
		pg_catalog.array_agg(pg_catalog.format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum) AS types,
		pg_catalog.obj_description(c.oid, 'pg_class') AS comment
	FROM pg_catalog.pg_class AS c
	JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
	WHERE c.relnamespace = 'idempotency'::pg_catalog.regnamespace AND c.relkind IN ('r', 'v')
		AND c.relname NOT IN ('idempotency_keys', 'lock_secret', 'role_bindings')
	GROUP BY c.oid, c.relname
	ORDER BY c.relname;
$$;
COMMENT ON FUNCTION idempotency_front.shard_views IS
	'The views of the extension, as the first shard has them';

DO $$
DECLARE
	type pg_catalog.record;
	i pg_catalog.int4;
BEGIN
	FOR type IN SELECT * FROM idempotency_front.shard_types() LOOP
		IF pg_catalog.to_regtype(pg_catalog.format('idempotency.%I', type.name)) IS NULL THEN
			EXECUTE pg_catalog.format('CREATE TYPE idempotency.%I AS (%s)', type.name, type.attributes);
			EXECUTE pg_catalog.format('REVOKE ALL ON TYPE idempotency.%I FROM PUBLIC', type.name);
		END IF;
		-- Columns are only ever appended.
		FOR i IN (SELECT pg_catalog.count(*) OPERATOR(pg_catalog.+) 1 FROM pg_catalog.pg_attribute AS a
				WHERE a.attrelid OPERATOR(pg_catalog.=) pg_catalog.format('idempotency.%I', type.name)::pg_catalog.regclass)
			.. pg_catalog.cardinality(type.attribute_names)
		LOOP
			EXECUTE pg_catalog.format('ALTER TYPE idempotency.%I ADD ATTRIBUTE %s', type.name,
				pg_catalog.split_part(type.attributes, ', ', i));
		END LOOP;
		EXECUTE pg_catalog.format('COMMENT ON TYPE idempotency.%I IS %L', type.name, type.comment);
		FOR i IN 1 .. pg_catalog.cardinality(type.attribute_names) LOOP
			EXECUTE pg_catalog.format('COMMENT ON COLUMN idempotency.%I.%I IS %L', type.name,
				type.attribute_names[i], type.attribute_comments[i]);
		END LOOP;
	END LOOP;
END
$$;

------------------------------------------------------------------------------
-- How each function finds its shards
------------------------------------------------------------------------------

CREATE TEMPORARY TABLE call (
	name pg_catalog.text PRIMARY KEY,
	-- key: the shard of the key. any: one as good as the other. scope: the shard of the
	-- scope, or all, added up, where keys are routed by identity. sum, any true, least:
	-- all, one after the other, and what becomes of their answers. below: written out
	-- in this file. never: refused. no: not for a client.
	way pg_catalog.text NOT NULL,
	-- This argument must be given, or the call is refused with these words.
	needed pg_catalog.text,
	message pg_catalog.text,
	hint pg_catalog.text
) ON COMMIT DROP;

INSERT INTO call VALUES
	('claim', 'key', 'lease', 'a claim without a lease cannot work through this front',
		'Give it a lease, or have a procedure on the shard claim, do the work and complete in one transaction; or use run().'),
	('complete', 'key', 'token', 'complete() needs a token on this front',
		'Pass the token that claim() returned. In the transaction that claims, complete on the shard.'),
	('fail', 'key', 'token', 'fail() needs a token on this front', 'Pass the token that claim() returned.'),
	('release', 'key', 'token', 'release() needs a token on this front', 'Pass the token that claim() returned.'),
	('extend', 'key', 'token', 'extend() needs a token on this front', 'Pass the token that claim() returned.'),
	('checkpoint', 'key', 'token', 'checkpoint() needs a token on this front', 'Pass the token that claim() returned.'),
	('hold', 'key', 'token', 'hold() needs a token on this front', 'Pass the token that claim() returned.'),
	('forget_scope_on_delete', 'never', NULL, 'a trigger on the front cannot delete keys of a shard',
		'Put it on the table of the shard, where it is in the transaction that deletes.'),
	('maintain', 'never', NULL, 'maintain() cannot be called through this front',
		'The workers of the shards do it; request_cleanup() asks all of them. Or CALL it on each shard.');
INSERT INTO call (name, way)
SELECT pg_catalog.unnest(ARRAY['record_failure', 'replay', 'lookup', 'forget', 'effect_key', 'once', 'run', 'redact',
	'import_completed', 'resolve']), 'key'
UNION ALL SELECT pg_catalog.unnest(ARRAY['fingerprint', 'fingerprint_bytes', 'content_key', 'key_standing']), 'any'
UNION ALL SELECT pg_catalog.unnest(ARRAY['forget_scope', 'redact_scope']), 'scope'
UNION ALL SELECT pg_catalog.unnest(ARRAY['set_policy', 'drop_policy', 'request_cleanup', 'unschedule_cleanup', 'stats_reset']), 'any true'
UNION ALL SELECT 'schedule_cleanup', 'least'
UNION ALL SELECT pg_catalog.unnest(ARRAY['once_batch', 'cleanup', 'claim_abandoned', 'health', 'bind_role', 'unbind_role', 'grant_usage',
	'grant_operator', 'grant_monitor', 'revoke_usage', 'revoke_operator', 'revoke_monitor']), 'below'
UNION ALL SELECT pg_catalog.unnest(ARRAY['call_support', 'config_changed', 'stats_data', 'default_policy',
	'export_scopes', 'import_key', 'forget_exported']), 'no';

DO $make$
DECLARE
	f pg_catalog.record;
	arguments pg_catalog.text;	-- $1, $2, ...
	shifted pg_catalog.text;	-- the same after the number of a shard
	inner_result pg_catalog.text;
	checks pg_catalog.text;
	body pg_catalog.text;
	unknown pg_catalog.text;
	-- The caller's arguments are $1, $2 and so on, so that no name of an argument can be
	-- taken for a column.
	frame CONSTANT pg_catalog.text := $frame$
#variable_conflict use_column
DECLARE
	idempotency_answer %1$s;
	idempotency_more %1$s;
	idempotency_shard pg_catalog.int4;
	idempotency_error idempotency_front.error;
BEGIN%2$s
%3$s
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS idempotency_error.code = RETURNED_SQLSTATE, idempotency_error.message = MESSAGE_TEXT,
		idempotency_error.detail = PG_EXCEPTION_DETAIL, idempotency_error.hint = PG_EXCEPTION_HINT,
		idempotency_error.reason = CONSTRAINT_NAME;
	PERFORM idempotency_front.raise_as_shard(idempotency_error);
END
$frame$;
	each_shard CONSTANT pg_catalog.text := $each$
	FOR idempotency_shard IN SELECT * FROM idempotency_front.shards() LOOP
		idempotency_more := idempotency_front.%1$I(idempotency_shard%2$s);
		idempotency_answer := %3$s;
	END LOOP;
	RETURN idempotency_answer;$each$;
BEGIN
	SELECT pg_catalog.string_agg(s.name, ', ') INTO unknown
	FROM idempotency_front.shard_functions() AS s
	WHERE NOT EXISTS (SELECT FROM pg_temp.call AS c WHERE c.name OPERATOR(pg_catalog.=) s.name);
	IF unknown IS NOT NULL THEN
		RAISE EXCEPTION 'the shards have functions that this front does not know: %', unknown
			USING ERRCODE = '55000', HINT = 'Use the front.sql of the version that the shards have.';
	END IF;

	FOR f IN SELECT * FROM idempotency_front.shard_functions() JOIN pg_temp.call USING (name) WHERE way OPERATOR(pg_catalog.<>) ALL (ARRAY['below', 'no'])
	LOOP
		SELECT COALESCE(pg_catalog.string_agg('$' || n, ', ' ORDER BY n), ''), COALESCE(pg_catalog.string_agg(', $' || (n + 1), '' ORDER BY n), '')
		INTO arguments, shifted
		FROM pg_catalog.generate_subscripts(f.types, 1) AS n;
		checks := '';

		-- Refused altogether.
		IF f.way OPERATOR(pg_catalog.=) 'never' THEN
			EXECUTE pg_catalog.format($create$CREATE OR REPLACE %s idempotency.%I(%s)%s LANGUAGE plpgsql AS %L$create$,
				CASE f.kind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END, f.name, f.arguments,
				CASE f.kind WHEN 'p' THEN '' ELSE ' RETURNS ' || f.result END,
				pg_catalog.format(E'BEGIN\n\tPERFORM idempotency_front.refuse(%L, %L);\nEND', f.message, f.hint));
			CONTINUE;
		END IF;

		IF f.volatility OPERATOR(pg_catalog.=) 'VOLATILE' THEN
			checks := pg_catalog.format(E'\n\tPERFORM idempotency_front.check_writable(%L);', f.name);
		END IF;
		IF f.needed IS NOT NULL THEN
			checks := pg_catalog.format(E'\n\tIF %I.%I IS NULL THEN\n\t\tPERFORM idempotency_front.refuse(%L, %L);\n\tEND IF;',
				f.name, f.needed, f.message, f.hint) || checks;
		END IF;

		-- The function in PL/Proxy. Where it goes to shards by number, that is its
		-- first argument.
		IF f.way OPERATOR(pg_catalog.=) ANY (ARRAY['key', 'any']) THEN
			body := pg_catalog.format(E'\n\tCLUSTER ''idempotency'';\n\tRUN ON %s;\n\tTARGET idempotency.%s;\n',
				CASE f.way WHEN 'any' THEN 'ANY' ELSE 'idempotency_front.shard_of(scope, operation, key)' END, f.name);
			EXECUTE pg_catalog.format('CREATE OR REPLACE FUNCTION idempotency_front.%I(%s) RETURNS %s LANGUAGE plproxy %s AS %L',
				f.name, f.arguments, f.result, f.strictness, body);
			IF f.returns_set THEN
				body := pg_catalog.format(E'\tRETURN QUERY SELECT * FROM idempotency_front.%I(%s);', f.name, arguments);
			ELSIF f.result OPERATOR(pg_catalog.~~) 'idempotency.%' THEN
				body := pg_catalog.format(E'\tSELECT * INTO idempotency_answer FROM idempotency_front.%I(%s);\n\tRETURN idempotency_answer;', f.name, arguments);
			ELSE
				body := pg_catalog.format(E'\tRETURN idempotency_front.%I(%s);', f.name, arguments);
			END IF;
		ELSE
			EXECUTE pg_catalog.format('CREATE OR REPLACE FUNCTION idempotency_front.%I(shard pg_catalog.int4%s) RETURNS %s LANGUAGE plproxy AS %L',
				f.name, (SELECT pg_catalog.string_agg(', ' || t, '') FROM pg_catalog.unnest(f.types) AS t), f.result,
				pg_catalog.format(E'\n\tCLUSTER ''idempotency'';\n\tRUN ON shard;\n\tSELECT idempotency.%s(%s);\n', f.name,
					pg_catalog.substr(shifted, 3)));
			body := pg_catalog.format(each_shard, f.name, CASE arguments WHEN '' THEN '' ELSE ', ' || arguments END,
				CASE f.way
					WHEN 'any true' THEN 'COALESCE(idempotency_answer, false) OR idempotency_more'
					WHEN 'least' THEN 'LEAST(idempotency_answer, idempotency_more)'
					ELSE 'COALESCE(idempotency_answer, 0) OPERATOR(pg_catalog.+) idempotency_more' END);
			IF f.way OPERATOR(pg_catalog.=) 'scope' THEN
				body := pg_catalog.format(E'\tIF NOT idempotency_front.by_identity() THEN\n'
					'\t\tRETURN idempotency_front.%I(idempotency_front.shard_of($1, NULL, NULL), %s);\n\tEND IF;%s', f.name, arguments, body);
			END IF;
		END IF;

		EXECUTE pg_catalog.format('CREATE OR REPLACE FUNCTION idempotency.%I(%s) RETURNS %s LANGUAGE plpgsql %s %s%s AS %L',
			f.name, f.arguments, f.result, CASE f.volatility WHEN 'IMMUTABLE' THEN 'STABLE' ELSE f.volatility END, f.strictness,
			CASE WHEN f.returns_set THEN ' ROWS ' || f.number_of_rows ELSE '' END,
			pg_catalog.format(frame, CASE WHEN f.returns_set THEN 'pg_catalog.int4' ELSE f.result END, checks, body));
		EXECUTE pg_catalog.format('COMMENT ON FUNCTION idempotency.%I IS %L', f.name, f.comment);
		EXECUTE pg_catalog.format('COMMENT ON FUNCTION idempotency_front.%I IS %L', f.name, 'Sends ' || f.name || '() to its shard');
	END LOOP;

	-- The views, with the number of the shard as the last column.
	FOR f IN SELECT v.name, v.columns, v.comment,
			pg_catalog.string_agg(pg_catalog.format(', OUT %I %s', c.name, c.type), '' ORDER BY c.n) AS declared,
			pg_catalog.string_agg(pg_catalog.quote_ident(c.name), ', ' ORDER BY c.n) AS listed
		FROM idempotency_front.shard_views() AS v
		CROSS JOIN LATERAL ROWS FROM (pg_catalog.unnest(v.columns), pg_catalog.unnest(v.types)) WITH ORDINALITY AS c(name, type, n)
		GROUP BY v.name, v.columns, v.comment
	LOOP
		EXECUTE pg_catalog.format('CREATE OR REPLACE FUNCTION idempotency_front.%I(shard pg_catalog.int4%s) RETURNS SETOF record LANGUAGE plproxy AS %L',
			f.name, f.declared, pg_catalog.format(E'\n\tCLUSTER ''idempotency'';\n\tRUN ON shard;\n\tSELECT %s FROM idempotency.%s;\n', f.listed, f.name));
		EXECUTE pg_catalog.format('CREATE OR REPLACE FUNCTION idempotency_front.%I(%s, OUT shard pg_catalog.int4) RETURNS SETOF record LANGUAGE plpgsql VOLATILE AS %L',
			'all_' || f.name, pg_catalog.substr(f.declared, 3),
			pg_catalog.format(frame, 'pg_catalog.int4', '', pg_catalog.format(
				E'\tFOR idempotency_shard IN SELECT * FROM idempotency_front.shards() LOOP\n'
				'\t\tRETURN QUERY SELECT v.*, idempotency_shard FROM idempotency_front.%I(idempotency_shard) AS v;\n\tEND LOOP;', f.name)));
		EXECUTE pg_catalog.format('COMMENT ON FUNCTION idempotency_front.%I IS %L', f.name, 'Reads ' || f.name || ' of one shard');
		EXECUTE pg_catalog.format('COMMENT ON FUNCTION idempotency_front.%I IS %L', 'all_' || f.name, 'Reads ' || f.name || ' of all shards, one after the other');
		-- Policies are the same everywhere, unless set_policy() has failed on the way.
		EXECUTE pg_catalog.format(CASE f.name
				WHEN 'effective_policies' THEN 'CREATE OR REPLACE VIEW idempotency.%1$I AS SELECT DISTINCT %2$s FROM idempotency_front.%3$I()'
				ELSE 'CREATE OR REPLACE VIEW idempotency.%1$I AS SELECT %2$s, shard FROM idempotency_front.%3$I()' END,
			f.name, f.listed, 'all_' || f.name);
		EXECUTE pg_catalog.format('COMMENT ON VIEW idempotency.%I IS %L', f.name, f.comment);
	END LOOP;

	-- Privileges and bindings: of the role that the shards know.
	FOR f IN SELECT * FROM idempotency_front.shard_functions() WHERE name OPERATOR(pg_catalog.~) '^(grant|revoke)_|^(un)?bind_role$'
	LOOP
		EXECUTE pg_catalog.format('CREATE OR REPLACE FUNCTION idempotency_front.%I(shard pg_catalog.int4, role pg_catalog.text%s) RETURNS pg_catalog.bool LANGUAGE plproxy AS %L',
			f.name, CASE WHEN pg_catalog.cardinality(f.types) OPERATOR(pg_catalog.>) 1 THEN ', scope_pattern pg_catalog.text' ELSE '' END,
			pg_catalog.format(E'\n\tCLUSTER ''idempotency'';\n\tRUN ON shard;\n\tSELECT idempotency.%s($2::pg_catalog.text::pg_catalog.regrole%s);\n', f.name,
				CASE WHEN pg_catalog.cardinality(f.types) OPERATOR(pg_catalog.>) 1 THEN ', $3' ELSE '' END));
		body := pg_catalog.format(each_shard, f.name, ', idempotency_front.shard_role($1)'
				|| CASE WHEN pg_catalog.cardinality(f.types) OPERATOR(pg_catalog.>) 1 THEN ', $2' ELSE '' END,
			'COALESCE(idempotency_answer, false) OR idempotency_more');
		IF f.name OPERATOR(pg_catalog.~~) 'grant%' THEN
			body := E'\tPERFORM idempotency_front.open_to($1);' || body;
		END IF;
		EXECUTE pg_catalog.format('CREATE OR REPLACE FUNCTION idempotency.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L',
			f.name, f.arguments, f.result, pg_catalog.format(frame, f.result, pg_catalog.format(E'\n\tPERFORM idempotency_front.check_writable(%L);', f.name), body));
		EXECUTE pg_catalog.format('COMMENT ON FUNCTION idempotency.%I IS %L', f.name, f.comment);
		EXECUTE pg_catalog.format('COMMENT ON FUNCTION idempotency_front.%I IS %L', f.name, 'Sends ' || f.name || '() to a shard');
	END LOOP;
END
$make$;

------------------------------------------------------------------------------
-- Those that go to several shards in a way of their own
------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION idempotency_front.cleanup(shard pg_catalog.int4, pg_catalog.interval, pg_catalog.int8, pg_catalog.text, pg_catalog.text)
RETURNS pg_catalog.int8
LANGUAGE plproxy
AS $$
	CLUSTER 'idempotency';
	RUN ON shard;
	SELECT idempotency.cleanup($2, $3, $4, $5);
$$;
COMMENT ON FUNCTION idempotency_front.cleanup IS
	'Sends cleanup() to a shard';

-- max_rows is for all shards together.
CREATE OR REPLACE FUNCTION idempotency.cleanup(
	older_than pg_catalog.interval DEFAULT NULL,
	max_rows pg_catalog.int8 DEFAULT NULL,
	scope pg_catalog.text DEFAULT NULL,
	operation pg_catalog.text DEFAULT NULL)
RETURNS pg_catalog.int8
LANGUAGE plpgsql
AS $$
DECLARE
	deleted pg_catalog.int8 := 0;
	idempotency_shard pg_catalog.int4;
	idempotency_error idempotency_front.error;
BEGIN
	PERFORM idempotency_front.check_writable('cleanup');
	IF $3 IS NOT NULL AND NOT idempotency_front.by_identity() THEN
		RETURN idempotency_front.cleanup(idempotency_front.shard_of($3, NULL, NULL), $1, $2, $3, $4);
	END IF;
	FOR idempotency_shard IN SELECT * FROM idempotency_front.shards() LOOP
		deleted := deleted OPERATOR(pg_catalog.+) idempotency_front.cleanup(idempotency_shard, $1,
			$2 OPERATOR(pg_catalog.-) deleted, $3, $4);
		EXIT WHEN deleted OPERATOR(pg_catalog.>=) $2;
	END LOOP;
	RETURN deleted;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS idempotency_error.code = RETURNED_SQLSTATE, idempotency_error.message = MESSAGE_TEXT,
		idempotency_error.detail = PG_EXCEPTION_DETAIL, idempotency_error.hint = PG_EXCEPTION_HINT,
		idempotency_error.reason = CONSTRAINT_NAME;
	PERFORM idempotency_front.raise_as_shard(idempotency_error);
END
$$;
COMMENT ON FUNCTION idempotency.cleanup IS
	'Deletes keys that expired at least older_than ago, of one scope or operation or of all, here and now, and says how many';

CREATE OR REPLACE FUNCTION idempotency_front.once_batch(shard pg_catalog.int4, pg_catalog.text, pg_catalog.text, pg_catalog.text[],
	pg_catalog.interval, pg_catalog.bool, OUT key pg_catalog.text, OUT first pg_catalog.bool)
RETURNS SETOF record
LANGUAGE plproxy
AS $$
	CLUSTER 'idempotency';
	RUN ON shard;
	SELECT b.key, b.first FROM idempotency.once_batch($2, $3, $4, $5, $6) AS b;
$$;
COMMENT ON FUNCTION idempotency_front.once_batch IS
	'Sends once_batch() to a shard';

-- Routed by scope it is one call. Routed by identity, the shards commit one after the
-- other, so an error of a later one could not undo what an earlier one has booked,
-- and nobody would ever be told that it was the first time. So this needs
-- skip_undecided, whose NULL says of the keys of a shard that failed what is true:
-- not known.
CREATE OR REPLACE FUNCTION idempotency.once_batch(
	scope pg_catalog.text,
	operation pg_catalog.text,
	keys pg_catalog.text[],
	ttl pg_catalog.interval DEFAULT NULL,
	skip_undecided pg_catalog.bool DEFAULT NULL,
	OUT key pg_catalog.text,
	OUT first pg_catalog.bool)
RETURNS SETOF record
LANGUAGE plpgsql ROWS 1000
AS $$
#variable_conflict use_column
DECLARE
	part pg_catalog.record;
	places pg_catalog.int4[];
	answers pg_catalog.bool[];
	answer pg_catalog.bool[];
	idempotency_error idempotency_front.error;
BEGIN
	PERFORM idempotency_front.check_writable('once_batch');
	IF NOT idempotency_front.by_identity() THEN
		RETURN QUERY SELECT b.key, b.first FROM idempotency_front.once_batch(idempotency_front.shard_of($1, $2, NULL), $1, $2, $3, $4, $5) AS b;
		RETURN;
	END IF;

	places := ARRAY(SELECT idempotency_front.shard_of($1, $2, k.key)
		FROM pg_catalog.unnest($3) WITH ORDINALITY AS k(key, n) ORDER BY k.n);
	IF (SELECT pg_catalog.count(DISTINCT p) FROM pg_catalog.unnest(places) AS p) OPERATOR(pg_catalog.<=) 1 THEN
		RETURN QUERY SELECT b.key, b.first FROM idempotency_front.once_batch(COALESCE(places[1], 0), $1, $2, $3, $4, $5) AS b;
		RETURN;
	END IF;
	IF $5 IS NOT TRUE THEN
		PERFORM idempotency_front.refuse('the keys of this batch are on several shards',
			'Say skip_undecided => true: then first is NULL for the keys of a shard that fails, and the others are booked.');
	END IF;
	FOR part IN
		SELECT p.place, pg_catalog.array_agg(k.key ORDER BY k.n) AS keys, pg_catalog.array_agg(k.n ORDER BY k.n) AS positions
		FROM ROWS FROM (pg_catalog.unnest($3), pg_catalog.unnest(places)) WITH ORDINALITY AS k(key, place, n)
		CROSS JOIN LATERAL (SELECT k.place) AS p
		GROUP BY p.place
		ORDER BY p.place
	LOOP
		BEGIN
			answer := ARRAY(SELECT b.first
				FROM idempotency_front.once_batch(part.place, $1, $2, part.keys, $4, $5) WITH ORDINALITY AS b(key, first, n)
				ORDER BY b.n);
			FOR i IN 1 .. pg_catalog.cardinality(part.positions) LOOP
				answers[part.positions[i]] := answer[i];
			END LOOP;
		EXCEPTION WHEN OTHERS THEN
			RAISE WARNING 'shard % has not answered, so its keys are undecided', part.place
				USING ERRCODE = SQLSTATE, DETAIL = SQLERRM;
		END;
	END LOOP;
	RETURN QUERY SELECT k.key, answers[k.n]
		FROM pg_catalog.unnest($3) WITH ORDINALITY AS k(key, n) ORDER BY k.n;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS idempotency_error.code = RETURNED_SQLSTATE, idempotency_error.message = MESSAGE_TEXT,
		idempotency_error.detail = PG_EXCEPTION_DETAIL, idempotency_error.hint = PG_EXCEPTION_HINT,
		idempotency_error.reason = CONSTRAINT_NAME;
	PERFORM idempotency_front.raise_as_shard(idempotency_error);
END
$$;
COMMENT ON FUNCTION idempotency.once_batch IS
	'once() for many keys in one statement, in the order given. With skip_undecided, first is NULL for a key that a claim holds up, instead of an error for all';

CREATE OR REPLACE FUNCTION idempotency_front.claim_abandoned(shard pg_catalog.int4, pg_catalog.text, pg_catalog.interval, pg_catalog.int4,
	OUT scope pg_catalog.text, OUT operation pg_catalog.text, OUT key pg_catalog.text, OUT token pg_catalog.int8,
	OUT attempt pg_catalog.int4, OUT recovery_point pg_catalog.text, OUT state pg_catalog.jsonb, OUT note pg_catalog.text,
	OUT last_error pg_catalog.text, OUT created_at pg_catalog.timestamptz, OUT locked_until pg_catalog.timestamptz)
RETURNS SETOF record
LANGUAGE plproxy
AS $$
	CLUSTER 'idempotency';
	RUN ON shard;
	SELECT a.scope, a.operation, a.key, a.token, a.attempt, a.recovery_point, a.state, a.note, a.last_error, a.created_at, a.locked_until
		FROM idempotency.claim_abandoned($2, $3, $4) AS a;
$$;
COMMENT ON FUNCTION idempotency_front.claim_abandoned(pg_catalog.int4, pg_catalog.text, pg_catalog.interval, pg_catalog.int4) IS
	'Sends claim_abandoned() to a shard';

-- A shard that does not answer is left out, with a warning: the claims that others
-- have committed have to reach the caller.
CREATE OR REPLACE FUNCTION idempotency_front.claim_abandoned(pg_catalog.text, pg_catalog.interval, pg_catalog.int4,
	OUT scope pg_catalog.text, OUT operation pg_catalog.text, OUT key pg_catalog.text, OUT token pg_catalog.int8,
	OUT attempt pg_catalog.int4, OUT recovery_point pg_catalog.text, OUT state pg_catalog.jsonb, OUT note pg_catalog.text,
	OUT last_error pg_catalog.text, OUT created_at pg_catalog.timestamptz, OUT locked_until pg_catalog.timestamptz)
RETURNS SETOF record
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
	wanted pg_catalog.int4 := COALESCE($3, 100);
	found_here pg_catalog.int4;
	answered pg_catalog.int4 := 0;
	place pg_catalog.int4;
	idempotency_error idempotency_front.error;
BEGIN
	PERFORM idempotency_front.check_writable('claim_abandoned');
	-- Not always the first shard first, or the last would starve.
	FOR place IN SELECT s FROM idempotency_front.shards() AS s ORDER BY pg_catalog.random() LOOP
		BEGIN
			RETURN QUERY SELECT a.* FROM idempotency_front.claim_abandoned(place, $1, $2, wanted) AS a;
			GET DIAGNOSTICS found_here = ROW_COUNT;
			wanted := wanted OPERATOR(pg_catalog.-) found_here;
			answered := answered OPERATOR(pg_catalog.+) 1;
		EXCEPTION WHEN OTHERS THEN
			GET STACKED DIAGNOSTICS idempotency_error.code = RETURNED_SQLSTATE, idempotency_error.message = MESSAGE_TEXT,
				idempotency_error.detail = PG_EXCEPTION_DETAIL, idempotency_error.hint = PG_EXCEPTION_HINT,
				idempotency_error.reason = CONSTRAINT_NAME;
			RAISE WARNING 'shard % was left out', place USING ERRCODE = SQLSTATE, DETAIL = SQLERRM;
		END;
		EXIT WHEN wanted OPERATOR(pg_catalog.<=) 0;
	END LOOP;
	IF answered OPERATOR(pg_catalog.=) 0 AND idempotency_error.code IS NOT NULL THEN
		PERFORM idempotency_front.raise_as_shard(idempotency_error);
	END IF;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS idempotency_error.code = RETURNED_SQLSTATE, idempotency_error.message = MESSAGE_TEXT,
		idempotency_error.detail = PG_EXCEPTION_DETAIL, idempotency_error.hint = PG_EXCEPTION_HINT,
		idempotency_error.reason = CONSTRAINT_NAME;
	PERFORM idempotency_front.raise_as_shard(idempotency_error);
END
$$;
COMMENT ON FUNCTION idempotency_front.claim_abandoned(pg_catalog.text, pg_catalog.interval, pg_catalog.int4) IS
	'Asks all shards, until there are enough';

-- In SQL, because in PL/pgSQL no argument can have the name of a result.
CREATE OR REPLACE FUNCTION idempotency.claim_abandoned(
	operation pg_catalog.text DEFAULT NULL,
	lease pg_catalog.interval DEFAULT NULL,
	max_rows pg_catalog.int4 DEFAULT NULL,
	OUT scope pg_catalog.text,
	OUT operation pg_catalog.text,
	OUT key pg_catalog.text,
	OUT token pg_catalog.int8,
	OUT attempt pg_catalog.int4,
	OUT recovery_point pg_catalog.text,
	OUT state pg_catalog.jsonb,
	OUT note pg_catalog.text,
	OUT last_error pg_catalog.text,
	OUT created_at pg_catalog.timestamptz,
	OUT locked_until pg_catalog.timestamptz)
RETURNS SETOF record
LANGUAGE sql ROWS 100
AS $$
	SELECT a.* FROM idempotency_front.claim_abandoned($1, $2, $3) AS a
$$;
COMMENT ON FUNCTION idempotency.claim_abandoned IS
	'Takes over claims whose owners are gone, so that their work is driven to its end';

CREATE OR REPLACE FUNCTION idempotency_front.health(shard pg_catalog.int4,
	OUT check_name pg_catalog.text, OUT status pg_catalog.text, OUT value pg_catalog.int8,
	OUT threshold pg_catalog.int8, OUT detail pg_catalog.text)
RETURNS SETOF record
LANGUAGE plproxy
AS $$
	CLUSTER 'idempotency';
	RUN ON shard;
	SELECT h.check_name, h.status, h.value, h.threshold, h.detail FROM idempotency.health() AS h;
$$;
COMMENT ON FUNCTION idempotency_front.health IS
	'Asks a shard for its health()';

-- A shard that does not answer is a finding, not an error.
CREATE OR REPLACE FUNCTION idempotency.health(
	OUT check_name pg_catalog.text,
	OUT status pg_catalog.text,
	OUT value pg_catalog.int8,
	OUT threshold pg_catalog.int8,
	OUT detail pg_catalog.text,
	OUT shard pg_catalog.int4)
RETURNS SETOF record
LANGUAGE plpgsql ROWS 40
AS $$
#variable_conflict use_column
DECLARE
	place pg_catalog.int4;
	words pg_catalog.text;
BEGIN
	FOR place IN SELECT * FROM idempotency_front.shards() LOOP
		BEGIN
			RETURN QUERY SELECT h.*, place FROM idempotency_front.health(place) AS h;
		EXCEPTION WHEN OTHERS THEN
			words := CASE SQLSTATE WHEN 'XX000' THEN 'it cannot be reached' ELSE SQLERRM END;
			RETURN QUERY SELECT 'shard'::pg_catalog.text, 'critical'::pg_catalog.text, NULL::pg_catalog.int8, NULL::pg_catalog.int8, words, place;
		END;
	END LOOP;
	RETURN QUERY SELECT 'moves'::pg_catalog.text, CASE m.unfinished WHEN 0 THEN 'ok' ELSE 'warn' END, m.unfinished, 1::pg_catalog.int8,
		CASE m.unfinished WHEN 0 THEN 'no scope is being moved'
			ELSE 'scopes are being moved; call move_scope() again where it was interrupted' END, NULL::pg_catalog.int4
	FROM (SELECT idempotency_front.unfinished_moves()) AS m(unfinished);
END
$$;
COMMENT ON FUNCTION idempotency.health IS
	'Is everything as it should be? One row per check and shard, ok, warn or critical; and one for moves of scopes';

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA idempotency, idempotency_front FROM PUBLIC;
REVOKE ALL ON ALL PROCEDURES IN SCHEMA idempotency, idempotency_front FROM PUBLIC;
