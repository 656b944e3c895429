-- docs/reference.md names everything that there is, and nothing that there is
-- not: calls with their arguments and results, tables, views and types with
-- their columns, settings, errors. Read from the tree that is tested.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
-- The settings are there once the library is.
SELECT count(*) FROM idempotency.lookup('reference', 'a', 'b');
\getenv top PG_ABS_SRCDIR
\set document `cat "$PG_ABS_SRCDIR/docs/reference.md"`
\set sources `cat "$PG_ABS_SRCDIR"/src/*.c`
\set header `cat "$PG_ABS_SRCDIR/src/idempotency.h"`
-- The document as its sections: heading and text.
CREATE TEMP TABLE section AS
SELECT split_part(s, E'\n', 1) AS heading, s AS content
  FROM regexp_split_to_table(:'document', '\n#{2,3} ') AS s;
SELECT count(*) > 50 AS was_read FROM section;

-- Calls. A heading of one word with a signature below it is a call.
CREATE TEMP TABLE documented_call AS
SELECT heading AS name,
	   trim(regexp_replace(substring(content FROM '```text\n(.*?)```'), '\s+', ' ', 'g')) AS signature
  FROM section WHERE content ~ '^[a-z_]+\n+```text\n';
CREATE TEMP TABLE real_call AS
SELECT p.proname::text AS name,
	   replace(format('%s(%s) returns %s', p.proname,
		   (SELECT string_agg(a.name || ' ' || format_type(a.type, NULL)
							  || CASE WHEN a.i > p.pronargs - p.pronargdefaults THEN ' = NULL' ELSE '' END, ', ' ORDER BY a.i)
			  FROM unnest(p.proargnames[1:p.pronargs], p.proargtypes::oid[]) WITH ORDINALITY AS a(name, type, i)),
		   CASE WHEN p.prokind = 'p' THEN 'procedure' ELSE
			   CASE WHEN p.proretset THEN 'set of ' ELSE '' END
			   || coalesce((SELECT '(' || string_agg(o.name || ' ' || format_type(o.type, NULL), ', ' ORDER BY o.i) || ')'
							  FROM unnest(p.proargnames, p.proargmodes, p.proallargtypes) WITH ORDINALITY AS o(name, mode, type, i)
							 WHERE o.mode = 'o'),
						   replace(format_type(p.prorettype, NULL), 'idempotency.', '')) END),
		   'timestamp with time zone', 'timestamptz') AS signature
  FROM pg_proc AS p WHERE p.pronamespace = 'idempotency'::regnamespace;
-- Not in the document, or otherwise; then what is only in the document.
SELECT name, signature FROM real_call EXCEPT SELECT name, signature FROM documented_call ORDER BY 1;
SELECT name, signature FROM documented_call EXCEPT SELECT name, signature FROM real_call ORDER BY 1;
-- Every default is NULL, as the document says.
SELECT p.proname FROM pg_proc AS p
 WHERE p.pronamespace = 'idempotency'::regnamespace
   AND regexp_replace(pg_get_expr(p.proargdefaults, 0), 'NULL::[][a-z ]+(, )?', '', 'g') <> '';
-- No overloads, ever.
SELECT name FROM real_call GROUP BY name HAVING count(*) > 1;

-- Tables, views, types and their columns, in order.
CREATE TEMP TABLE documented_column AS
SELECT split_part(heading, ' ', 1) AS kind, split_part(heading, ' ', 2) AS relation, m.i, m.c[1] AS name, m.c[2] AS type
  FROM section, regexp_matches(content, '\n\| `([a-z_]+)` \| ([^|]+) \|', 'g') WITH ORDINALITY AS m(c, i)
 WHERE heading ~ '^(table|view|type) ';
CREATE TEMP TABLE real_column AS
SELECT CASE c.relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' ELSE 'type' END AS kind, c.relname::text AS relation,
	   row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum) AS i, a.attname::text AS name,
	   replace(format_type(a.atttypid, NULL), 'timestamp with time zone', 'timestamptz') AS type
  FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE c.relnamespace = 'idempotency'::regnamespace AND c.relkind IN ('r', 'v', 'c', 'p', 'm');
SELECT * FROM (SELECT * FROM real_column EXCEPT SELECT * FROM documented_column) AS missing ORDER BY 1, 2, 3;
SELECT * FROM (SELECT * FROM documented_column EXCEPT SELECT * FROM real_column) AS invented ORDER BY 1, 2, 3;
SELECT c.relname FROM pg_class AS c
 WHERE c.relnamespace = 'idempotency'::regnamespace AND c.relkind = 'S' AND NOT (c.relname = 'token_seq' OR c.relname LIKE 'cleanup_runs_id%');

-- Settings, with who may set them and the bounds.
CREATE TEMP TABLE documented_setting AS
SELECT m[1] AS name, m[2] AS bounds, m[3] AS who
  FROM section, regexp_matches(content, '\n\| `(idempotency\.[a-z_]+)` \| [^|]+ \| ([^|]*?) ?\| ([a-z]+) \|', 'g') AS m
 WHERE heading = 'Settings';
CREATE TEMP TABLE real_setting AS
SELECT name, CASE WHEN vartype IN ('bool', 'string') THEN '' ELSE min_val || ' to ' || max_val || coalesce(' ' || unit, '') END AS bounds,
	   CASE context WHEN 'user' THEN 'everybody' WHEN 'sighup' THEN 'reload' ELSE context END AS who
  FROM pg_settings WHERE name LIKE 'idempotency.%';
SELECT * FROM real_setting EXCEPT SELECT * FROM documented_setting ORDER BY 1;
SELECT * FROM documented_setting EXCEPT SELECT * FROM real_setting ORDER BY 1;

-- Errors: those of our own, and every standard one that the sources raise.
CREATE TEMP TABLE documented_error AS
SELECT m[1] AS state, coalesce(m[2], '') AS condition
  FROM section, regexp_matches(content, '\n\| `([0-9A-Z]{5})` \| ?([a-z_]+)? ?\|', 'g') AS m
 WHERE heading = 'Errors';
CREATE TEMP TABLE raised_error AS
SELECT DISTINCT concat(m[1], m[2], m[3], m[4], m[5]) AS state, '' AS condition
  FROM regexp_matches(:'header', $$MAKE_SQLSTATE\('(.)', '(.)', '(.)', '(.)', '(.)'\)$$, 'g') AS m;
-- The server says which SQLSTATE a condition has.
CREATE FUNCTION pg_temp.state_of(condition text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('DO %L', format('BEGIN RAISE %I; END', condition));
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
INSERT INTO raised_error
SELECT pg_temp.state_of(condition), condition
  FROM (SELECT DISTINCT regexp_replace(lower(m[1]), '^(t_r_|e_r_i_e_)', '') AS condition
		  FROM regexp_matches(:'sources', '(?<![!=]= )ERRCODE_([A-Z_]+)', 'g') AS m
		 WHERE m[1] !~ '^(IDEM|WARNING)_' AND m[1] NOT IN ('INTERNAL_ERROR', 'TO_CATEGORY')) AS c;
SELECT * FROM raised_error EXCEPT SELECT * FROM documented_error ORDER BY 1;
SELECT * FROM documented_error EXCEPT SELECT * FROM raised_error ORDER BY 1;

-- README.md names every call, setting and error of our own, too.
\set readme `cat "$PG_ABS_SRCDIR/README.md"`
SELECT name FROM real_call
 WHERE NOT :'readme' ~ ('\m' || name || '\M') AND name NOT IN ('config_changed', 'stats_data', 'default_policy', 'key_standing', 'stats_reset', 'call_support')
UNION ALL SELECT name FROM real_setting WHERE NOT :'readme' ~ ('`' || split_part(name, '.', 2) || '`')
UNION ALL SELECT state FROM raised_error WHERE state LIKE 'IK%' AND NOT :'readme' ~ ('`' || state || '`');
