-- Bad input gets a clear error with SQLSTATE and hint, and nothing changed.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
\pset format unaligned
\pset fieldsep ' | '
\pset footer off

-- Runs a call, undoes it, and shows how it was refused. Every message is kept,
-- to see at the end that none shows a value.
CREATE TEMP TABLE message (text text);
CREATE FUNCTION pg_temp.try(call text, OUT code text, OUT message text, OUT detail text, OUT hint text) LANGUAGE plpgsql AS $$
DECLARE
	result text;
	token CONSTANT bigint := (SELECT last_value FROM idempotency.token_seq);
BEGIN
	BEGIN
		EXECUTE 'SELECT (' || call || ')::text' INTO result;
		RAISE SQLSTATE 'OK000';
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	END;
	IF code = 'OK000' THEN
		code := 'accepted';
		message := '';
		RETURN;
	END IF;
	INSERT INTO message VALUES (concat_ws(' ', message, detail, hint));
	IF hint = '' THEN
		hint := 'HINT IS MISSING';
	END IF;
	IF token <> (SELECT last_value FROM idempotency.token_seq) THEN
		hint := 'A TOKEN WAS SPENT';
	END IF;
END $$;

-- What is there before, and must be there in the same way afterwards.
SELECT token FROM idempotency.claim('bad_input', 'live', 'hush', '{"hush": 1}', lease => '1 hour') \gset
SELECT token AS other FROM idempotency.claim('bad_input', 'live', 'hush other', lease => '1 hour') \gset
SELECT idempotency.complete('bad_input', 'done', 'hush', 200, 'hush', token => token) > now() AS done FROM idempotency.claim('bad_input', 'done', 'hush', lease => '1 hour');
CREATE FUNCTION pg_temp.everything() RETURNS text LANGUAGE sql AS $$
	SELECT md5(string_agg(k::text || k.xmin || k.ctid, ';' ORDER BY scope, operation, key))
	FROM idempotency.idempotency_keys k
$$;
SELECT pg_temp.everything() AS before \gset

-- Identities: NULL, empty, or too long in any part, in every call that has one.
CREATE TEMP TABLE verb AS SELECT * FROM unnest(ARRAY['claim', 'complete', 'fail', 'release', 'extend', 'replay', 'lookup', 'forget', 'effect_key']) WITH ORDINALITY verb (verb, no);
SELECT t.* FROM unnest(ARRAY['NULL, ''b'', ''c''', '''a'', NULL, ''c''', '''a'', ''b'', NULL']) part, pg_temp.try(format('idempotency.claim(%s)', part)) t;
SELECT t.* FROM unnest(ARRAY[''''', ''b'', ''c''', '''a'', '''', ''c''', '''a'', ''b'', ''''']) part, pg_temp.try(format('idempotency.claim(%s)', part)) t;
SELECT t.* FROM unnest(ARRAY['repeat(''x'', 256), ''b'', ''c''', '''a'', repeat(''x'', 256), ''c''', '''a'', ''b'', repeat(''x'', 256)']) part, pg_temp.try(format('idempotency.claim(%s)', part)) t;
SELECT verb, string_agg(t.code, ' ' ORDER BY part.no) AS sqlstates, count(DISTINCT t.message) AS messages, count(DISTINCT t.hint) AS hints
FROM verb, unnest(ARRAY['NULL, ''b'', ''c''', '''a'', NULL, ''c''', '''a'', ''b'', NULL', ''''', ''b'', ''c''', '''a'', '''', ''c''', '''a'', ''b'', ''''',
						'repeat(''x'', 256), ''b'', ''c''', '''a'', repeat(''x'', 256), ''c''', '''a'', ''b'', repeat(''x'', 256)']) WITH ORDINALITY part (part, no),
	 pg_temp.try(format('SELECT count(f) FROM idempotency.%s(%s) f', verb, part)) t
GROUP BY verb, verb.no ORDER BY verb.no;
SELECT t.* FROM unnest(ARRAY['NULL', '''''', 'repeat(''x'', 256)']) scope, pg_temp.try(format('idempotency.forget_scope(%s)', scope)) t;
-- Length is counted in bytes: 85 euro signs are 255 of them.
SELECT n, t.* FROM unnest(ARRAY[85, 86]) n, pg_temp.try(format('idempotency.lookup(''a'', ''b'', repeat(U&''\20ac'', %s))', n)) t;
SELECT n, t.* FROM unnest(ARRAY[63, 64]) n, pg_temp.try(format('idempotency.lookup(''a'', ''b'', repeat(U&''\+01F600'', %s))', n)) t;
-- The longest that any setting allows fit into the index, all three.
SET idempotency.max_key_length = 880;
BEGIN;
SELECT outcome FROM idempotency.claim(repeat(md5('1'), 40)::varchar(880), repeat(md5('2'), 40)::varchar(880), repeat(md5('3'), 40)::varchar(880), lease => '1 hour');
ROLLBACK;
SELECT t.* FROM pg_temp.try('idempotency.lookup(repeat(''x'', 881), ''b'', ''c'')') t;
RESET idempotency.max_key_length;

-- Durations. A month is 30 days, so '1 month -30 days' is nothing. What is
-- asked of "wait" beyond the limit is the limit, not an error.
SET idempotency.max_wait = '1ms';
CREATE TEMP TABLE duration AS
	SELECT * FROM (VALUES (1, 'claim', 'ttl'), (2, 'claim', 'lease'), (3, 'claim', 'wait'), (4, 'complete', 'ttl'), (5, 'fail', 'retry_in'), (6, 'extend', 'lease')) call (no, verb, argument),
		unnest(ARRAY['0', '-1 us', '1 month -30 days', '1 month -31 days', '-1 month 31 days', '366 days', '366 days 1 us', '12 months 6 days', '12 months 7 days', '100000 years', '2147483647 days', '-2147483647 days', '-178000000 years']) WITH ORDINALITY length (length, of);
SELECT verb, argument, length, t.code, t.message, t.hint
FROM duration, pg_temp.try(format('idempotency.%s(''bad_input'', ''live'', ''hush'', %s%s => %L)', verb,
	   CASE WHEN verb <> 'claim' THEN format('token => %s, ', :token) WHEN argument <> 'lease' THEN 'lease => ''1 min'', ' END, argument, length)) t
ORDER BY no, of;
SELECT length, t.* FROM unnest(ARRAY['0', '-1 us', '1 month -30 days', '1 day', '2147483647 days']) length, pg_temp.try(format('idempotency.content_key(''{}'', %L)', length)) t;
SELECT length, t.* FROM unnest(ARRAY['0', '-1 us', '1 day', '250000 years', '2147483647 days']) length, pg_temp.try(format('idempotency.cleanup(%L)', length)) t;
-- Some servers make a negative interval of this one, others refuse it.
SELECT verb, argument, t.code LIKE '22%' AS refused
FROM duration, pg_temp.try(format('idempotency.%s(''bad_input'', ''live'', ''hush'', %s%s => make_interval(secs => 1e300))', verb,
	   CASE WHEN verb <> 'claim' THEN format('token => %s, ', :token) WHEN argument <> 'lease' THEN 'lease => ''1 min'', ' END, argument)) t
WHERE of = 1 ORDER BY no;
RESET idempotency.max_wait;
-- The limit is a setting, and the defaults are kept within it.
SET idempotency.max_ttl = '1h';
SELECT length, t.* FROM unnest(ARRAY['1 hour', '1 hour 1 us']) length, pg_temp.try(format('idempotency.claim(''bad_input'', ''ttl'', ''1'', ttl => %L)', length)) t;
SELECT length, t.* FROM unnest(ARRAY['1 hour', '1 hour 1 us']) length, pg_temp.try(format('idempotency.claim(''bad_input'', ''ttl'', ''1'', lease => %L)', length)) t;
BEGIN;
SELECT expires_at - created_at AS lifetime FROM idempotency.claim('bad_input', 'ttl', '1');
ROLLBACK;
RESET idempotency.max_ttl;

-- Arguments that exclude each other or are out of shape.
SELECT t.* FROM pg_temp.try('idempotency.claim(''bad_input'', ''new'', ''hush'', ''{"hush": 1}'', sha256(''hush''))') t;
SELECT n, t.* FROM unnest(ARRAY[0, 31, 32, 33]) n, pg_temp.try(format('idempotency.claim(''bad_input'', ''new'', ''hush'', fingerprint => decode(repeat(''00'', %s), ''hex''))', n)) t;
SELECT t.* FROM pg_temp.try('idempotency.claim(''bad_input'', ''new'', ''hush'', hold_if_abandoned => true)') t;
SELECT t.* FROM pg_temp.try(format('idempotency.complete(''bad_input'', ''live'', ''hush'', 200, ''hush'', response_bytes => ''hush'', token => %s)', :token)) t;
SELECT t.* FROM unnest(ARRAY['any', 'transaction', 'hush', '']) word, pg_temp.try(format('idempotency.claim(''bad_input'', ''new'', ''hush'', wait_for => %L)', word)) t;
SELECT t.* FROM pg_temp.try('idempotency.content_key(NULL)') t;
SELECT t.* FROM pg_temp.try('idempotency.cleanup(max_rows => -1)') t;
SELECT t.* FROM unnest(ARRAY['grant_usage', 'grant_operator', 'grant_monitor', 'revoke_usage', 'revoke_operator', 'revoke_monitor', 'unbind_role']) call, pg_temp.try(format('idempotency.%s(NULL)', call)) t;
-- Too large: responses, and the texts that are kept.
SET idempotency.max_response_size = '1kB';
SELECT t.* FROM pg_temp.try(format('idempotency.complete(''bad_input'', ''live'', ''hush'', 200, repeat(''hush'', 1000), token => %s)', :token)) t;
SELECT t.* FROM pg_temp.try(format('idempotency.fail(''bad_input'', ''live'', ''hush'', repeat(''hush'', 1000), token => %s)', :token)) t;
SELECT t.* FROM pg_temp.try('idempotency.claim(''bad_input'', ''new'', ''hush'', note => repeat(''hush'', 1000))') t;
RESET idempotency.max_response_size;

-- Tokens: one that never existed, one of another key, none, and none that
-- could be one; on a live key, on a completed one, and on one that is not there.
SELECT verb, key, what, t.code, t.message, t.detail, t.hint
FROM unnest(ARRAY['complete', 'fail', 'release', 'extend']) WITH ORDINALITY verb (verb, no),
	 (VALUES (1, 'live'), (2, 'done'), (3, 'absent')) key (kno, key),
	 (VALUES (1, 'never existed', :token + (1::bigint << 40)), (2, 'of another key', :other), (3, 'none', NULL), (4, 'zero', 0), (5, 'negative', -1)) token (tno, what, token),
	 pg_temp.try(format('idempotency.%s(''bad_input'', %L, ''hush'', token => %L)', verb, key, token)) t
WHERE verb.no = 1 OR key = 'live'
ORDER BY verb.no, kno, tno;

-- Whoever has claimed in this transaction without a lease has no token.
BEGIN;
SELECT outcome FROM idempotency.claim('bad_input', 'open', 'hush');
SELECT verb, t.* FROM unnest(ARRAY['complete', 'fail', 'release', 'extend']) WITH ORDINALITY verb (verb, no), pg_temp.try(format('idempotency.%s(''bad_input'', ''open'', ''hush'', token => %s)', verb, :token)) t ORDER BY no;
ROLLBACK;

-- More claims than one transaction may have.
SET idempotency.max_claims_per_transaction = 3;
BEGIN;
SELECT outcome FROM generate_series(1, 3) i, LATERAL idempotency.claim('bad_input', 'many', i::text);
SELECT t.* FROM pg_temp.try('idempotency.claim(''bad_input'', ''many'', ''4'')') t;
SELECT verb, t.code FROM unnest(ARRAY['complete', 'fail', 'release', 'extend']) verb, pg_temp.try(format('idempotency.%s(''bad_input'', ''live'', ''hush'', token => %s)', verb, :token)) t;
SELECT t.code FROM pg_temp.try('idempotency.forget(''bad_input'', ''live'', ''hush'', true)') t;
-- Those that it has are not in the way, nor is looking.
SELECT outcome FROM idempotency.claim('bad_input', 'many', '3');
SELECT count(*) FROM idempotency.lookup('bad_input', 'live', 'hush');
-- A rolled back one does not count.
SAVEPOINT s;
SELECT idempotency.release('bad_input', 'many', '3');
ROLLBACK TO s;
SELECT count(idempotency.complete('bad_input', 'many', i::text, 200)) FROM generate_series(1, 3) i;
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT count(*) FROM generate_series(1, 3) i, LATERAL idempotency.claim('bad_input', 'many', i::text);
ROLLBACK TO s;
SELECT count(*) FROM generate_series(4, 6) i, LATERAL idempotency.claim('bad_input', 'many', i::text);
ROLLBACK;
RESET idempotency.max_claims_per_transaction;

-- A read-only transaction, where replay and lookup still answer.
BEGIN READ ONLY;
SAVEPOINT s;
SELECT response_body FROM idempotency.replay('bad_input', 'done', 'hush');
SELECT status FROM idempotency.lookup('bad_input', 'live', 'hush');
SELECT idempotency.effect_key('bad_input', 'live', 'hush') IS NOT NULL AS answered;
SELECT * FROM idempotency.claim('bad_input', 'done', 'hush');
\echo :SQLSTATE
ROLLBACK TO s;
SELECT idempotency.complete('bad_input', 'live', 'hush', token => :token);
\echo :SQLSTATE
ROLLBACK TO s;
SELECT idempotency.fail('bad_input', 'live', 'hush', token => :token);
ROLLBACK TO s;
SELECT idempotency.release('bad_input', 'live', 'hush', token => :token);
ROLLBACK TO s;
SELECT idempotency.extend('bad_input', 'live', 'hush', token => :token);
ROLLBACK TO s;
SELECT idempotency.forget('bad_input', 'live', 'hush', true);
ROLLBACK TO s;
SELECT idempotency.forget_scope('bad_input', true);
ROLLBACK TO s;
SELECT idempotency.cleanup();
ROLLBACK TO s;
COMMIT;

-- Nothing changed, no lock is left, and no message told a value.
SELECT pg_temp.everything() = :'before' AS as_before;
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 18756 AND pid = pg_backend_pid();
SELECT count(*) > 100 AS many, count(*) FILTER (WHERE text ~ 'hush|xxxx|00000000|bad_input') AS telling FROM message;
