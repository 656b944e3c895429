-- Digests: fingerprint() is equal exactly where jsonb = says equal;
-- content_key() and effect_key() are the same for the same, and distinct else.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;

CREATE TEMP TABLE request (request jsonb);
INSERT INTO request SELECT r::jsonb FROM unnest(ARRAY[
	-- numbers and their spellings
	'0', '-0', '0.0', '0e5', '1', '1.0', '1e0', '1.00e0', '10e-1', '-1', '-1.0', '1.1', '1.10', '11e-1', '100', '1e2', '1E+2', '100.000', '0.1', '1e-1',
	'123456789012345678901234567890', '123456789012345678901234567890.0', '1.23456789012345678901234567890e29', '123456789012345678901234567891',
	'0.000000000000000000000000000001', '1e-30', '1e-31', '9007199254740992', '9007199254740993', '1e131071', '1e-1000',
	-- scalars, and the like in arrays and objects
	'"1"', '[1]', '["1"]', '[[1]]', '{"1": 1}', '{"1": "1"}', '{"": 1}', '{"": ""}', '""', '" "', '"null"', 'null', '[null]', 'true', 'false', '"true"', '[true]', '[false]', '"t"', '"f"',
	-- empty ones
	'[]', '{}', '[[]]', '[{}]', '{"a": []}', '{"a": {}}', '{"a": null}', '[[], []]', '[[[]]]', '[{}, []]', '[[], {}]', '{"a": [], "b": {}}', '{"a": {}, "b": []}',
	-- order, repetition, spacing
	'{"a": 1, "b": 2}', '{"b": 2, "a": 1}', '{ "b":2 ,"a":1.0 }', '{"a": 0, "a": 1, "b": 2}', '{"a": 1, "b": 3}', '{"a": 2, "b": 1}', '{"aa": 1, "b": 2}', '{"ab": 1, "": 2}',
	'[1, 2]', '[2, 1]', '[1, 2, 1]', '[1, [2]]', '[[1], 2]', '[[1, 2]]', '[1, 2.0]', '[12]', '["1", "2"]', '["12"]', '["1,2"]', '[1, "2"]',
	-- nesting, and parts moved across its boundaries
	'{"a": {"b": 1}, "c": 2}', '{"a": {"b": 1, "c": 2}}', '{"c": 2, "a": {"b": 1.0}}', '{"a": {"c": 2}, "b": 1}', '{"a": "b", "c": 2}', '{"a": ["b", "c", 2]}', '{"a": ["b", {"c": 2}]}',
	'[{"a": 1}, {"b": 2}]', '[{"a": 1, "b": 2}]', '[{"b": 2}, {"a": 1}]', '[["a", 1], ["b", 2]]', '["a", 1, "b", 2]',
	-- texts
	'"a"', '"A"', '"a "', '"ab"', '["a", "b"]', '["ab"]', '"\u00e9"', '"e\u0301"', '"\ud83d\ude00"', '"\\u00e9"', '"\u001f"', '"\n"', '"\\n"', '{"k\u00e9": 1}', '{"ke\u0301": 1}',
	'"{}"', '"[]"', '"[1]"', '{"a": "{\"b\": 1}"}', '["\",\""]']) r;
INSERT INTO request SELECT to_jsonb(repeat('x', n)) FROM unnest(ARRAY[254, 255, 256, 65535, 65536, 300000]) n;
INSERT INTO request SELECT jsonb_agg(i) FROM generate_series(1, 3000) i;
INSERT INTO request SELECT jsonb_agg(i::numeric(9, 2)) FROM generate_series(1, 3000) i;
INSERT INTO request SELECT jsonb_object_agg('k' || i, i) FROM generate_series(1, 3000) i;
INSERT INTO request SELECT jsonb_object_agg('k' || i, i + 0.0) FROM generate_series(3000, 1, -1) i;
INSERT INTO request SELECT (repeat('[', 500) || repeat(']', 500))::jsonb;
INSERT INTO request SELECT (repeat('{"a":', 500) || '1' || repeat('}', 500))::jsonb;
INSERT INTO request SELECT (repeat('{"a":', 500) || '1.0' || repeat('}', 500))::jsonb;
-- And some at random, small so that many of them are equal.
SELECT setseed(0.5);
INSERT INTO request
	SELECT CASE i % 4 WHEN 0 THEN jsonb_build_array(a, b, c) WHEN 1 THEN jsonb_build_object(a::text, b, c::text, a) WHEN 2 THEN jsonb_build_array(jsonb_build_array(a), jsonb_build_object(b::text, c)) ELSE to_jsonb(a) END
	FROM (SELECT i, round((random() * 2)::numeric, (random() * 2)::int) AS a, (random() * 2)::int AS b, round((random() * 2)::numeric, 1) AS c FROM generate_series(1, 400) i) r;
CREATE TEMP TABLE digest AS SELECT row_number() OVER () AS no, request, idempotency.fingerprint(request) AS fingerprint, idempotency.content_key(request) AS content_key FROM request;
SELECT count(*) > 500 AS many, count(DISTINCT request) > 150 AS unlike, count(DISTINCT request) < count(*) - 100 AS and_equal_ones FROM request;
-- Every pair: which are wrong, and how many were compared in either way.
SELECT a.request, b.request, a.request = b.request AS equal FROM digest a JOIN digest b ON a.no <= b.no
WHERE (a.request = b.request) <> (a.fingerprint = b.fingerprint) OR (a.request = b.request) <> (a.content_key = b.content_key);
SELECT count(*) > 100000 AS pairs, count(*) FILTER (WHERE a.request = b.request) > 1000 AS equal FROM digest a JOIN digest b ON a.no <= b.no;
SELECT bool_and(length(fingerprint) = 32) AS sha256, bool_and(content_key ~ '^[0-9a-f]{64}$') AS hexadecimal FROM digest;
-- Made of the value, not of the moment, the settings or the server: these stay
-- what they are, or every stored one would be a mismatch after an update.
SELECT request, idempotency.fingerprint(request) FROM unnest(ARRAY['null', '{}', '{"b": [1.50, "x", true], "a": null}']::jsonb[]) request;
SELECT idempotency.fingerprint(NULL) IS NULL AS none;

-- content_key(): without a period always the same; the digest of another kind
-- does not meet it.
SELECT idempotency.content_key('{"a": 1}');
SELECT idempotency.content_key('{"a": 1}') = encode(idempotency.fingerprint('{"a": 1}'), 'hex') AS met;
-- With one, the same within a statement and a period, another for another
-- period, another length, and none at all.
SELECT count(DISTINCT idempotency.content_key('{"a": 1}', '1 us')) AS one FROM generate_series(1, 1000);
SELECT idempotency.content_key('{"a": 1}', '300 days') = idempotency.content_key('{"a": 1.0}', '300 days') AS same;
SELECT count(DISTINCT k) FROM (VALUES (idempotency.content_key('{"a": 1}')), (idempotency.content_key('{"a": 1}', '300 days')), (idempotency.content_key('{"a": 1}', '301 days')), (idempotency.content_key('{"a": 2}', '300 days'))) k (k);
SELECT idempotency.content_key('{"a": 1}', '1 us') AS before \gset
SELECT idempotency.content_key('{"a": 1}', '1 us') <> :'before' AS another;
-- A period is a length of time, the same for everybody everywhere.
DO $$
DECLARE
	key CONSTANT text := idempotency.content_key('{}', '1 day');
BEGIN
	SET LOCAL timezone = 'Pacific/Kiritimati';
	ASSERT idempotency.content_key('{}', '24 hours') = key;
END $$;

-- effect_key(): 36 characters, a UUID; the same for every attempt, another for
-- each step and each request.
SELECT idempotency.effect_key('a', 'b', 'c'), idempotency.effect_key('a', 'b', 'c', 'refund') AS for_a_step;
SELECT idempotency.effect_key('a', 'b', 'c') = idempotency.effect_key('a', 'b', 'c', NULL) AS same;
CREATE TEMP TABLE effect AS
	SELECT scope, operation, key, step, idempotency.effect_key(scope, operation, key, step) AS effect
	FROM unnest(ARRAY['a', 'aa', 'ab', 'A', 'a ']) scope, unnest(ARRAY['a', 'b', 'ab', 'ba']) operation, unnest(ARRAY['a', 'b', 'ab', 'c', U&'\00e9', U&'e\0301']) key, unnest(ARRAY[NULL, '', 'a', 'b', 'ab', 'ca']) step;
SELECT count(*), count(DISTINCT effect) AS distinct_ones, bool_and(length(effect) = 36) AS all_of_36, bool_and(effect::uuid::text = effect) AS uuids,
	   bool_and(effect ~ '^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$') AS of_version_8 FROM effect;
SELECT idempotency.effect_key('fingerprint', 'charge', '1', 'charge card') AS before FROM idempotency.claim('fingerprint', 'charge', '1', lease => '1 us') \gset
SELECT attempt, idempotency.effect_key('fingerprint', 'charge', '1', 'charge card') = :'before' AS same FROM idempotency.claim('fingerprint', 'charge', '1', lease => '1 us');

-- The fingerprint depends on the request alone, so it can be indexed.
CREATE INDEX ON digest (idempotency.fingerprint(request));

-- Of a request as it came over the wire: that of the JSON where it is JSON, so
-- that it makes no difference who parses it; of the bytes otherwise.
SELECT idempotency.fingerprint_bytes(convert_to(' {"b": 1.0, "a": "\u00e9"}', 'UTF8')) = idempotency.fingerprint('{"a": "é", "b": 1}') AS json;
-- Valid JSON that jsonb does not take, and the SQLSTATE of a cast.
CREATE TEMP TABLE wire (what text, bytes bytea);
INSERT INTO wire VALUES
	('null character', '{"a": "\\u0000"}'), ('half a pair', '{"a": "\\ud83d"}'), ('number', '{"a": 1e400000}'),
	('deep', convert_to(repeat('[', 20000) || repeat(']', 20000), 'UTF8')),
	('no json', 'a=1&b=2'), ('no text', '\xff00fe'), ('zero byte', '\x7b7d00'), ('nothing', '');
CREATE FUNCTION pg_temp.as_request(bytes bytea) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idempotency.fingerprint(convert_from(bytes, 'UTF8')::jsonb);
	RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
SELECT what, pg_temp.as_request(bytes), length(idempotency.fingerprint_bytes(bytes)), idempotency.fingerprint_bytes(bytes) = idempotency.fingerprint_bytes(bytes) AS same FROM wire;
SELECT count(DISTINCT idempotency.fingerprint_bytes(bytes)) FROM wire;
-- It goes where a fingerprint goes; a transaction around it goes on.
BEGIN;
SELECT outcome FROM idempotency.claim('fingerprint', 'wire', '1', fingerprint => idempotency.fingerprint_bytes('{"a": "\\u0000"}'));
SELECT idempotency.complete('fingerprint', 'wire', '1', 200) > now() AS done;
COMMIT;
SELECT outcome FROM idempotency.claim('fingerprint', 'wire', '1', fingerprint => idempotency.fingerprint_bytes('{"a": "\\u0001"}'));
SELECT outcome FROM idempotency.claim('fingerprint', 'wire', '1', fingerprint => idempotency.fingerprint_bytes('{"a": "\\u0000"}'));

-- Nor does jsonb take every character in a database of another encoding.
CREATE DATABASE regress_fingerprint ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0;
\c regress_fingerprint
SET client_min_messages = warning;
CREATE EXTENSION idempotency;
SELECT length(idempotency.fingerprint_bytes('{"a": "\\u00e9"}'));
SELECT idempotency.fingerprint_bytes('{"a": "\\u0041"}') = idempotency.fingerprint('{"a": "A"}') AS json;
\c contrib_regression
DROP DATABASE regress_fingerprint WITH (FORCE);
