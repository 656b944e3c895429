-- Responses come back exactly as they were given, byte for byte.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;

CREATE TEMP TABLE given (name text, status int, body text, headers jsonb, bytes bytea);
INSERT INTO given VALUES
	('json, odd spacing', 200, E'{ "b" : 1,\t"a":\n[ 1 ,2 ] }  ', NULL, NULL),
	('json, duplicate members', 200, '{"a": 1, "a": 2, "b": 3, "a": 1}', NULL, NULL),
	('json, numbers', 200, '[1.10, 1e2, 1E+2, -0, 0.0, 100000000000000000000.00000000001]', NULL, NULL),
	('json, escapes', 200, '"\u0000 \u00e9 \/ \ud83d\ude00"', NULL, NULL),
	('not json', 500, 'Internal {Server} Error', NULL, NULL),
	('nothing', NULL, NULL, NULL, NULL),
	('empty body', 204, '', NULL, NULL),
	('empty bytes', 204, NULL, NULL, ''),
	('blank', 200, ' ', NULL, NULL),
	('ends in a newline', 200, E'line\r\n', NULL, NULL),
	('4-byte UTF-8', 200, U&'\+01F600\+01F468\200D\+01F469\+10FFFF', NULL, NULL),
	('not normalized', 200, U&'e\0301 \00e9 \FEFF', NULL, NULL),
	('quotes and backslashes', 200, E'\'"\\$1 \\\\ %s $$', NULL, NULL),
	('control characters', 200, E'\x01\x02\x1b\x7f', NULL, NULL),
	('all bytes', 200, NULL, NULL, (SELECT decode(string_agg(lpad(to_hex(b), 2, '0'), '' ORDER BY b), 'hex') FROM generate_series(0, 255) b)),
	('bytes that are no text', 200, NULL, NULL, '\xff00fe5c27'),
	('lowest status', 0, 'x', NULL, NULL),
	('highest status', 2147483647, 'x', NULL, NULL),
	('headers, object', 200, 'x', '{"Content-Type": "text/plain", "X": ["a", "", 7], "n": 1.10}', NULL),
	('headers, pairs', 200, 'x', '[["Set-Cookie", "b=2"], ["Set-Cookie", "a=1"], ["Set-Cookie", "b=2"], ["a", ""]]', NULL),
	('headers, empty', 200, 'x', '[]', NULL),
	('headers, none', 200, 'x', '{}', NULL),
	('headers alone', NULL, NULL, '[["x", ""]]', NULL),
	-- Stored out of line, compressed and not, and just around the limits.
	('large, compressible', 200, repeat('{"a": 1.10} ', 40000), NULL, NULL),
	('large, not compressible', 200, (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 12000) i), NULL, NULL),
	('large bytes', 200, NULL, NULL, (SELECT string_agg(sha256(i::text::bytea), '') FROM generate_series(1, 12000) i)),
	('large headers', 200, 'x', (SELECT jsonb_agg(jsonb_build_array('h' || i, md5(i::text))) FROM generate_series(1, 5000) i), NULL),
	('large body and headers', 200, repeat(U&'\20ac', 100000), (SELECT jsonb_agg(jsonb_build_array('h' || i, md5(i::text))) FROM generate_series(1, 3000) i), NULL);
INSERT INTO given SELECT 'body of ' || n, 200, (SELECT left(string_agg(md5(i::text), ''), n) FROM generate_series(1, n / 32 + 1) i), NULL, NULL
FROM unnest(ARRAY[126, 127, 128, 1990, 1996, 2000, 2032, 2048, 8160, 8192]) n;

-- What was completed in one transaction, later by token, and as a repeat.
BEGIN;
SELECT count(*) AS completed FROM given, LATERAL idempotency.claim('fidelity', 'own', name), LATERAL idempotency.complete('fidelity', 'own', name, status, body, headers, bytes);
SELECT count(*) AS wrong FROM given LEFT JOIN LATERAL idempotency.claim('fidelity', 'own', name) c ON true
WHERE (c.outcome, c.response_status, c.response_headers::text, convert_to(c.response_body, 'UTF8'), c.response_bytes)
	IS DISTINCT FROM ('replay', status, headers::text, convert_to(body, 'UTF8'), bytes);
COMMIT;
CREATE TEMP TABLE leased AS SELECT name, token FROM given, LATERAL idempotency.claim('fidelity', 'leased', name, lease => '1 hour');
SELECT count(*) AS completed FROM given JOIN leased USING (name), LATERAL idempotency.complete('fidelity', 'leased', name, status, body, headers, bytes, token => token);
-- The very same completion is recognized as such, whatever it is made of.
SELECT count(*) AS completed FROM given JOIN leased USING (name), LATERAL idempotency.complete('fidelity', 'leased', name, status, body, headers, bytes, token => token);
SELECT operation, count(*) AS replayed,
	   count(*) FILTER (WHERE (c.response_status, c.response_headers::text, convert_to(c.response_body, 'UTF8'), c.response_bytes)
			IS DISTINCT FROM (status, headers::text, convert_to(body, 'UTF8'), bytes)) AS claim_wrong,
	   count(*) FILTER (WHERE (r.response_status, r.response_headers::text, convert_to(r.response_body, 'UTF8'), r.response_bytes)
			IS DISTINCT FROM (status, headers::text, convert_to(body, 'UTF8'), bytes)) AS replay_wrong
FROM given, unnest(ARRAY['own', 'leased']) operation, LATERAL idempotency.claim('fidelity', operation, name) c, LATERAL idempotency.replay('fidelity', operation, name) r
WHERE c.outcome = 'replay' GROUP BY operation ORDER BY operation;
-- The same above READ COMMITTED, where the row is found in another way.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) AS replayed,
	   count(*) FILTER (WHERE (c.response_status, c.response_headers::text, convert_to(c.response_body, 'UTF8'), c.response_bytes)
			IS DISTINCT FROM (status, headers::text, convert_to(body, 'UTF8'), bytes)) AS claim_wrong
FROM given, LATERAL idempotency.claim('fidelity', 'own', name) c WHERE c.outcome = 'replay';
COMMIT;

-- Some of it as it looks.
\pset null NULL
SELECT name, response_status, response_body, response_headers, response_bytes FROM given, LATERAL idempotency.replay('fidelity', 'own', name)
WHERE length(response_body) IS NOT DISTINCT FROM least(length(response_body), 50) AND name ~ '^(json|nothing|empty|bytes|headers)' ORDER BY name COLLATE "C";
\pset null ''

-- Stored as text and bytes, so that it looks the same in psql.
SELECT attname, format_type(atttypid, atttypmod), attcompression, attstorage FROM pg_attribute
WHERE attrelid = 'idempotency.idempotency_keys'::regclass AND attname ~ '^response_(status|headers|body|bytes)$' ORDER BY attname COLLATE "C";

-- Large values go through an extension of the lease, a failure and a takeover
-- unharmed: error and note, in and out of line.
CREATE TEMP TABLE note AS SELECT repeat('compressible ', 30000) AS note UNION ALL SELECT (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 9000) i);
CREATE TEMP TABLE noted AS SELECT left(md5(note), 8) AS k, token, note FROM note, LATERAL idempotency.claim('fidelity', 'note', left(md5(note), 8), lease => '1 hour', note => note);
SELECT count(idempotency.extend('fidelity', 'note', k, token => token)) FROM noted;
SELECT count(idempotency.fail('fidelity', 'note', k, note, token => token)) FROM noted;
SELECT count(*) FROM noted n, LATERAL idempotency.claim('fidelity', 'note', k, lease => '1 us') c WHERE c.last_error = n.note AND attempt = 2;
SELECT count(*) FROM noted n, LATERAL idempotency.claim('fidelity', 'note', k, lease => '1 hour') c WHERE c.last_error = n.note AND taken_over;
SELECT count(*) FROM noted n, LATERAL idempotency.lookup('fidelity', 'note', k) l WHERE l.last_error = n.note AND l.note = n.note;
