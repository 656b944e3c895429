-- What a row means at a moment is said once in C (states.c, which the views ask,
-- too) and once in SQL (statements.c). Here every status meets every position in
-- time, and whoever judges a row must come to the same answer.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
\pset footer off

-- Yesterday and tomorrow: no clock is so slow that the answers change meanwhile.
CREATE TEMP TABLE moment (name text, at timestamptz);
INSERT INTO moment VALUES
	('never', NULL), ('over', now() - interval '1 day'), ('to come', now() + interval '1 day'),
	('infinite', 'infinity');

CREATE TEMP TABLE judged AS
SELECT s.status, e.name AS expires, l.name AS locked, h.hold,
	format('%s, expires %s, locked %s, hold %s', s.status, e.name, l.name, coalesce(h.hold::text, 'null')) AS operation,
	idempotency.key_standing(s.status, e.at, l.at, h.hold, now()) AS standing,
	e.at AS expires_at, l.at AS locked_until
FROM unnest(ARRAY['in_progress', 'completed', 'failed', 'held']) AS s(status),
	moment AS e, moment AS l, (VALUES (NULL), (false), (true)) AS h(hold)
WHERE e.name <> 'never' AND l.name <> 'infinite';
SELECT count(*) AS combinations FROM judged;

-- As a reader would write it down.
SELECT status, coalesce(hold, false) AS hold,
	string_agg(DISTINCT standing, ', ') FILTER (WHERE expires = 'over' AND locked = 'to come') AS "over, locked",
	string_agg(DISTINCT standing, ', ') FILTER (WHERE expires = 'over' AND locked <> 'to come') AS "over, not locked",
	string_agg(DISTINCT standing, ', ') FILTER (WHERE expires <> 'over' AND locked = 'to come') AS "live, locked",
	string_agg(DISTINCT standing, ', ') FILTER (WHERE expires <> 'over' AND locked <> 'to come') AS "live, not locked"
FROM judged GROUP BY 1, 2 ORDER BY 1, 2;

TRUNCATE idempotency.idempotency_keys;
INSERT INTO idempotency.idempotency_keys
	(scope, operation, key, status, created_at, attempt, expires_at, locked_until, hold_if_abandoned, token)
SELECT 'standing', operation, 'k', status, now() - interval '2 days', 3, expires_at, locked_until, hold, 7
FROM judged;

-- Asks a call about one key, and undoes what it did.
CREATE FUNCTION pg_temp.ask(query text, operation text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	answer text;
BEGIN
	BEGIN
		EXECUTE query USING operation INTO answer;
		RAISE EXCEPTION 'undo' USING ERRCODE = 'UNDO0';
	EXCEPTION WHEN SQLSTATE 'UNDO0' THEN
		RETURN answer;
	END;
END $$;

CREATE TEMP TABLE expected (standing text, call text, answer text);
INSERT INTO expected VALUES
	('expired', 'claim', 'claimed 1 f'), ('completed', 'claim', 'replay 3 f'), ('leased', 'claim', 'in_progress 3 f lease'),
	('abandoned', 'claim', 'claimed 4 t'), ('held', 'claim', 'held 3 f'), ('waiting', 'claim', 'in_progress 3 f retry'),
	('failed', 'claim', 'claimed 4 f'),
	('expired', 'once_batch', 'true'), ('completed', 'once_batch', 'false'), ('failed', 'once_batch', 'true'),
	('expired', 'cleanup', '1'), ('expired', 'cleanup of scope', '1'), ('expired', 'cleanup of operation', '1'),
	('abandoned', 'claim_abandoned', '4'),
	('expired', 'lookup', NULL), ('completed', 'lookup', 'completed f'), ('leased', 'lookup', 'in_progress f'),
	('abandoned', 'lookup', 'in_progress t'), ('waiting', 'lookup', 'failed f'), ('failed', 'lookup', 'failed f'),
	('expired', 'keys_by_operation', '1'), ('expired', 'keys_by_scope', '1'),
	('abandoned', 'abandoned', 'in_progress'), ('held', 'abandoned', 'held');

-- What they say where the standing is none of theirs.
CREATE TEMP TABLE call (call text, query text, otherwise text);
INSERT INTO call VALUES
	('claim', $$SELECT concat_ws(' ', outcome, attempt, taken_over, rival) FROM idempotency.claim('standing', $1, 'k')$$, NULL),
	('once_batch', $$SELECT first FROM idempotency.once_batch('standing', $1, '{k}', skip_undecided => true)$$, NULL),
	('cleanup', $$SELECT idempotency.cleanup(scope => 'standing', operation => $1)$$, '0'),
	('cleanup of scope', $$SELECT idempotency.cleanup(scope => 'standing') - (SELECT count(*) FROM judged WHERE standing = 'expired' AND operation <> $1)$$, '0'),
	('cleanup of operation', $$SELECT idempotency.cleanup(operation => $1)$$, '0'),
	('claim_abandoned', $$SELECT attempt FROM idempotency.claim_abandoned($1)$$, NULL),
	('lookup', $$SELECT status || CASE status WHEN 'held' THEN '' ELSE ' ' || abandoned END FROM (SELECT status, left(abandoned::text, 1) AS abandoned FROM idempotency.lookup('standing', $1, 'k')) AS l$$, 'held'),
	('keys_by_operation', $$SELECT expired FROM idempotency.keys_by_operation WHERE operation = $1$$, '0'),
	('keys_by_scope', $$SELECT expired FROM idempotency.keys_by_scope WHERE operation = $1$$, '0'),
	('abandoned', $$SELECT status FROM idempotency.abandoned WHERE operation = $1$$, NULL);

-- Nobody disagrees.
CREATE TEMP TABLE answer AS
SELECT j.operation, j.standing, c.call, pg_temp.ask(c.query, j.operation) AS answer,
	CASE WHEN e.call IS NULL THEN c.otherwise ELSE e.answer END AS expected
FROM judged AS j CROSS JOIN call AS c LEFT JOIN expected AS e USING (standing, call);
SELECT call, count(*) AS asked, count(*) FILTER (WHERE answer IS DISTINCT FROM expected) AS wrong FROM answer GROUP BY 1 ORDER BY 1;
SELECT operation, standing, call, answer, expected FROM answer WHERE answer IS DISTINCT FROM expected ORDER BY 1, 3;

-- health() counts the same, where it has reason to count to the end.
SET idempotency.warn_abandoned = 1000;
SET idempotency.warn_held = 1000;
SELECT check_name, value = (SELECT count(*) FROM judged
	WHERE standing = CASE check_name WHEN 'expired_backlog' THEN 'expired' WHEN 'abandoned_claims' THEN 'abandoned' ELSE 'held' END) AS counted
FROM idempotency.health() WHERE check_name IN ('expired_backlog', 'abandoned_claims', 'held_keys')
ORDER BY 1;

-- Clean-up by the worker's statement takes what has expired, and nothing else.
CALL idempotency.maintain();
SELECT j.standing, count(*) AS rows, count(k.key) AS "left" FROM judged AS j
LEFT JOIN idempotency.idempotency_keys AS k ON k.operation = j.operation GROUP BY 1 ORDER BY 1;

-- A row that a hand has written keeps nobody from seeing the others.
SELECT idempotency.key_standing('done', now(), NULL, NULL, now()) IS NULL AS unknown;
INSERT INTO idempotency.idempotency_keys (scope, operation, key, status, created_at, attempt, expires_at)
VALUES ('standing', 'by hand', 'k', 'done', now(), 1, now() - interval '1 day');
SELECT status, keys, expired FROM idempotency.keys_by_operation WHERE operation = 'by hand';
SELECT count(*) FROM idempotency.abandoned WHERE operation = 'by hand';
SELECT idempotency.key_standing('held', NULL, NULL, NULL, now()) IS NULL AS unknown;
TRUNCATE idempotency.idempotency_keys;
