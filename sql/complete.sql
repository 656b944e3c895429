-- complete(): the response is recorded once, and says how long it will last.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;

-- Every part may be left out; completed is completed all the same.
BEGIN;
SELECT k, outcome FROM unnest(ARRAY['nothing', 'status', 'body', 'headers', 'bytes', 'all']) k, LATERAL idempotency.claim('complete', 'parts', k);
SELECT idempotency.complete('complete', 'parts', 'nothing') > now() AS done;
SELECT idempotency.complete('complete', 'parts', 'status', 204) > now() AS done;
SELECT idempotency.complete('complete', 'parts', 'body', response_body => '') > now() AS done;
SELECT idempotency.complete('complete', 'parts', 'headers', response_headers => '[["A", "1"], ["A", "2"]]') > now() AS done;
SELECT idempotency.complete('complete', 'parts', 'bytes', response_bytes => '\x00ff') > now() AS done;
SELECT idempotency.complete('complete', 'parts', 'all', 200, 'body', '{"A": "1"}') > now() AS done;
COMMIT;
\pset null NULL
SELECT k, outcome, response_status, response_headers, response_body, response_bytes
FROM unnest(ARRAY['nothing', 'status', 'body', 'headers', 'bytes', 'all']) k, LATERAL idempotency.claim('complete', 'parts', k);
SELECT k, r.response_status, r.response_headers, r.response_body, r.response_bytes, r.completed_at >= r.created_at AS dated
FROM unnest(ARRAY['nothing', 'status', 'body', 'headers', 'bytes', 'all']) k, LATERAL idempotency.replay('complete', 'parts', k) r;
\pset null ''

-- The very same completion again gives the same answer; another one is an
-- error, and the first stands. In the transaction of the claim ...
BEGIN;
SELECT outcome FROM idempotency.claim('complete', 'again', 'own');
SELECT idempotency.complete('complete', 'again', 'own', 200, 'body', '{"A": "1", "B": "2"}') AS first \gset
SELECT idempotency.complete('complete', 'again', 'own', 200, 'body', '{"B": "2", "A": "1"}') = :'first' AS same_answer;
SAVEPOINT s;
SELECT idempotency.complete('complete', 'again', 'own', 201, 'body', '{"A": "1", "B": "2"}');
\echo :SQLSTATE
ROLLBACK TO s;
SELECT idempotency.complete('complete', 'again', 'own', 200, 'BODY', '{"A": "1", "B": "2"}');
ROLLBACK TO s;
SELECT idempotency.complete('complete', 'again', 'own', 200, NULL, '{"A": "1", "B": "2"}');
ROLLBACK TO s;
SELECT idempotency.complete('complete', 'again', 'own', 200, 'body', '{"A": "1"}');
ROLLBACK TO s;
SELECT idempotency.complete('complete', 'again', 'own', 200, response_bytes => 'body');
ROLLBACK TO s;
COMMIT;
SELECT response_status, response_body, response_headers, expires_at = :'first' AS as_promised FROM idempotency.replay('complete', 'again', 'own');
-- ... but not in a later one, where nothing says that the caller is the owner.
SELECT idempotency.complete('complete', 'again', 'own', 200, 'body', '{"A": "1", "B": "2"}');
\echo :SQLSTATE
-- By token, also later.
SELECT token AS other FROM idempotency.claim('complete', 'again', 'other', lease => '1 hour') \gset
SELECT token FROM idempotency.claim('complete', 'again', 'leased', lease => '1 hour') \gset
SELECT idempotency.complete('complete', 'again', 'leased', 200, response_bytes => '\x00', token => :token) AS first \gset
SELECT idempotency.complete('complete', 'again', 'leased', 200, response_bytes => '\x00', token => :token) = :'first' AS same_answer;
SELECT idempotency.complete('complete', 'again', 'leased', 200, response_bytes => '\x0000', token => :token);
\echo :SQLSTATE
SELECT idempotency.complete('complete', 'again', 'leased', 200, response_bytes => '\x00', token => :other);
\echo :SQLSTATE
SELECT response_bytes FROM idempotency.replay('complete', 'again', 'leased');
-- A retry with another lifetime changes nothing.
SELECT idempotency.complete('complete', 'again', 'leased', 200, response_bytes => '\x00', token => :token, ttl => '300 days') = :'first' AS same_answer;

-- The lifetime counts from the claim ...
SELECT token, expires_at FROM idempotency.claim('complete', 'ttl', 'planned', lease => '1 hour', ttl => '10 hours') \gset
SELECT idempotency.complete('complete', 'ttl', 'planned', token => :token) = :'expires_at' AS as_planned;
-- ... unless complete() says otherwise: shorter or longer, from now ...
SELECT token FROM idempotency.claim('complete', 'ttl', 'shorter', lease => '1 hour', ttl => '10 hours') \gset
BEGIN;
SELECT idempotency.complete('complete', 'ttl', 'shorter', token => :token, ttl => '1 min') BETWEEN now() + interval '1 min' AND clock_timestamp() + interval '1 min' AS as_said;
COMMIT;
SELECT token FROM idempotency.claim('complete', 'ttl', 'longer', lease => '1 hour', ttl => '10 hours') \gset
BEGIN;
SELECT idempotency.complete('complete', 'ttl', 'longer', token => :token, ttl => '30 days') BETWEEN now() + interval '30 days' AND clock_timestamp() + interval '30 days' AS as_said;
COMMIT;
-- ... and half of it is left at completion, however long the work took. (The
-- row is made older to save the time.)
SELECT token FROM idempotency.claim('complete', 'ttl', 'late', lease => '300 days', ttl => '10 hours') \gset
UPDATE idempotency.idempotency_keys SET created_at = created_at - interval '9 hours', expires_at = expires_at - interval '9 hours' WHERE scope = 'complete' AND key = 'late';
BEGIN;
SELECT idempotency.complete('complete', 'ttl', 'late', token => :token) BETWEEN now() + interval '5 hours' AND clock_timestamp() + interval '5 hours' AS half;
COMMIT;
-- The same after the planned end.
SELECT token FROM idempotency.claim('complete', 'ttl', 'very late', lease => '300 days', ttl => '10 hours') \gset
UPDATE idempotency.idempotency_keys SET created_at = created_at - interval '90 hours', expires_at = expires_at - interval '90 hours' WHERE scope = 'complete' AND key = 'very late';
BEGIN;
SELECT idempotency.complete('complete', 'ttl', 'very late', token => :token) BETWEEN now() + interval '5 hours' AND clock_timestamp() + interval '5 hours' AS half;
COMMIT;
-- A later attempt counts from its own claim.
SELECT token FROM idempotency.claim('complete', 'ttl', 'second', lease => '1 hour', ttl => '10 hours') \gset
SELECT idempotency.fail('complete', 'ttl', 'second', token => :token);
UPDATE idempotency.idempotency_keys SET created_at = created_at - interval '9 hours' WHERE scope = 'complete' AND key = 'second';
SELECT token, expires_at FROM idempotency.claim('complete', 'ttl', 'second', lease => '1 hour', ttl => '10 hours') \gset
SELECT idempotency.complete('complete', 'ttl', 'second', token => :token) = :'expires_at' AS as_planned;

-- After the lease has lapsed it is accepted as long as nobody has taken over.
SELECT token FROM idempotency.claim('complete', 'lapsed', '1', lease => '1 us') \gset
SELECT idempotency.complete('complete', 'lapsed', '1', 200, 'late', token => :token) > now() AS done;
-- Taken over, the late owner is refused, and its business transaction with it.
CREATE TEMP TABLE ledger (what text);
SELECT token AS late FROM idempotency.claim('complete', 'lapsed', '2', lease => '1 us') \gset
SELECT outcome, attempt, taken_over, token > :late AS larger, token AS next FROM idempotency.claim('complete', 'lapsed', '2', lease => '1 hour') \gset
\echo :outcome :attempt :taken_over :larger
BEGIN;
INSERT INTO ledger VALUES ('late');
SELECT idempotency.complete('complete', 'lapsed', '2', 200, 'late', token => :late);
\echo :SQLSTATE
COMMIT;
BEGIN;
INSERT INTO ledger VALUES ('next');
SELECT idempotency.complete('complete', 'lapsed', '2', 200, 'next', token => :next) > now() AS done;
COMMIT;
SELECT * FROM ledger;
SELECT response_body FROM idempotency.replay('complete', 'lapsed', '2');

-- A completion that is refused leaves the claim open.
SET idempotency.max_response_size = '1kB';
BEGIN;
SELECT outcome FROM idempotency.claim('complete', 'refused', '1');
SAVEPOINT s;
SELECT idempotency.complete('complete', 'refused', '1', 200, repeat('x', 1025));
\echo :SQLSTATE
ROLLBACK TO s;
SELECT idempotency.complete('complete', 'refused', '1', 200, repeat(U&'\20ac', 342));
ROLLBACK TO s;
SELECT idempotency.complete('complete', 'refused', '1', 200, response_bytes => decode(repeat('00', 1025), 'hex'));
ROLLBACK TO s;
SELECT idempotency.complete('complete', 'refused', '1', 200, response_headers => jsonb_build_object('A', repeat('x', 1024)));
ROLLBACK TO s;
SELECT idempotency.complete('complete', 'refused', '1', 200, repeat('x', 600), jsonb_build_object('A', repeat('x', 600)));
\echo :SQLSTATE
ROLLBACK TO s;
SELECT idempotency.complete('complete', 'refused', '1', 200, repeat('x', 1024)) > now() AS done;
COMMIT;
RESET idempotency.max_response_size;
SELECT token FROM idempotency.claim('complete', 'refused', '2', lease => '1 hour') \gset
SELECT idempotency.complete('complete', 'refused', '2', 200, 'text', response_bytes => 'bytes', token => :token);
\echo :SQLSTATE
SELECT idempotency.complete('complete', 'refused', '2', 200, 'text', token => :token, ttl => '0');
\echo :SQLSTATE
SELECT status FROM idempotency.lookup('complete', 'refused', '2');
SELECT idempotency.complete('complete', 'refused', '2', 200, 'text', token => :token) > now() AS done;

-- A repeat that is to be refused, so that rows written beside it roll back.
CREATE TEMP TABLE refuse_ledger (what text);
SELECT token FROM idempotency.claim('complete', 'refuse', '1', lease => '5 min') \gset
BEGIN;
INSERT INTO refuse_ledger VALUES ('first');
SELECT idempotency.complete('complete', 'refuse', '1', 201, 'paid', token => :token, refuse_repeat => true) > now() AS done;
COMMIT;
BEGIN;
INSERT INTO refuse_ledger VALUES ('again');
SELECT idempotency.complete('complete', 'refuse', '1', 201, 'paid', token => :token, refuse_repeat => true);
\echo :SQLSTATE
COMMIT;
SELECT * FROM refuse_ledger;
-- In the transaction of the claim, too.
BEGIN;
SELECT outcome FROM idempotency.claim('complete', 'refuse', '2');
SELECT idempotency.complete('complete', 'refuse', '2', 201, refuse_repeat => true) > now() AS done;
SELECT idempotency.complete('complete', 'refuse', '2', 201, refuse_repeat => true) > now() AS done;
ROLLBACK;
-- Without it the repeat succeeds and changes nothing, its ttl included.
SELECT idempotency.complete('complete', 'refuse', '1', 201, 'paid', token => :token, ttl => '30 days') = expires_at AS as_it_was FROM idempotency.lookup('complete', 'refuse', '1');

-- What is no response is refused, and the claim stays open.
CREATE FUNCTION pg_temp.refused(status int, headers jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idempotency.complete('complete', 'refuse', 'open', status, 'x', headers);
	RETURN 'accepted';
EXCEPTION WHEN invalid_parameter_value THEN
	RETURN SQLSTATE || ' ' || SQLERRM;
END $$;
BEGIN;
SELECT outcome FROM idempotency.claim('complete', 'refuse', 'open');
SELECT status, headers, pg_temp.refused(status, headers::jsonb) FROM (VALUES
	(-1, NULL), (200, 'null'), (200, '"text"'), (200, '1'), (200, '[1, 2, [3]]'), (200, '["a", "b"]'), (200, '[["a"]]'), (200, '[["a", "b", "c"]]'),
	(200, '[[1, "b"]]'), (200, '[["a", null]]'), (200, '[["a", ["b"]]]'), (200, '[["", "b"]]'), (200, '[{"a": "b"}]'), (200, '{"a": null}'), (200, '{"a": true}'),
	(200, '{"a": {"b": "c"}}'), (200, '{"a": [["b"]]}'), (200, '{"": "b"}'), (200, '{"a b": "c"}'), (200, '{"a:": "c"}'), (200, '{"a": "b\r\nSet-Cookie: c"}'), (200, '{"a\n": "b"}'), (200, '[["a", "b\n"]]'),
	(200, '{"a": "b\r"}'), (200, '{"a\u007f": "b"}'), (200, '{"a": [[]]}'), (200, '[["a", []]]'), (200, '[[]]')
) AS v(status, headers);
SELECT idempotency.complete('complete', 'refuse', 'open', 200, 'x', '{"A": "b", "c": ["d", "e"], "Length": 3}') > now() AS accepted;
COMMIT;
