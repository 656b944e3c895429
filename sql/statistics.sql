--
-- Views and health(): what they show of keys in each state. Counters over
-- connections and databases: t/029_counters.pl; on a million keys:
-- t/030_health_size.pl. Needs the library preloaded.
--
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
RESET client_min_messages;
CREATE DATABASE regress_statistics;
\c regress_statistics
SET client_min_messages = warning;
CREATE EXTENSION idempotency;
RESET client_min_messages;

-- Nothing yet.
SELECT count(*) FROM idempotency.keys_by_operation;
SELECT check_name, status, value, threshold FROM idempotency.health() WHERE check_name NOT IN ('worker', 'last_cleanup') ORDER BY check_name;
SELECT status, value IS NOT NULL AS has_value, threshold, detail FROM idempotency.health() WHERE check_name = 'worker';
-- No clean-up has run: that matters once something has been waiting for it.
-- (The worker may have been here already; then there is a record of it.)
BEGIN;
DELETE FROM idempotency.cleanup_runs;
SELECT status, value, threshold, detail FROM idempotency.health() WHERE check_name = 'last_cleanup';
INSERT INTO idempotency.idempotency_keys (created_at, expires_at, attempt, scope, operation, key, status)
VALUES (now() - interval '2 days', now() - interval '2 hours', 1, 's', 'fresh', 'expired', 'completed'),
	(now() - interval '2 days', now() - interval '2 days', 1, 's', 'fresh', 'held', 'held');
SELECT status, value, threshold, detail FROM idempotency.health() WHERE check_name = 'last_cleanup';
UPDATE idempotency.idempotency_keys SET expires_at = now() - interval '4 hours' WHERE key = 'expired';
SELECT status, value, threshold, detail FROM idempotency.health() WHERE check_name = 'last_cleanup';
ROLLBACK;

BEGIN;
SELECT outcome FROM idempotency.claim('s', 'charge', 'done');
SELECT idempotency.complete('s', 'charge', 'done', 200) IS NOT NULL AS done;
COMMIT;
SELECT outcome FROM idempotency.claim('s', 'charge', 'leased', lease => '1 h');
SELECT outcome FROM idempotency.claim('s', 'charge', 'abandoned', lease => '1 microsecond', note => 'trace 1');
SELECT outcome FROM idempotency.claim('s', 'charge', 'abandoned and held', lease => '1 microsecond', hold_if_abandoned => true);
SELECT outcome FROM idempotency.claim('s', 'refund', 'held', lease => '1 h');
SELECT idempotency.checkpoint('s', 'refund', 'held', 'sent', '{"id": 7}', token => token) > now() AS later,
	idempotency.hold('s', 'refund', 'held', 'no answer', token => token) > 0 AS held
FROM idempotency.idempotency_keys WHERE operation = 'refund';
INSERT INTO idempotency.idempotency_keys (created_at, expires_at, completed_at, attempt, scope, operation, key, status)
VALUES (now() - interval '2 days', now() - interval '1 day', now(), 1, 's', 'charge', 'expired', 'completed');

-- A lease that runs and what is held never count as expired.
SELECT outcome FROM idempotency.claim('s', 'long', 'leased', ttl => '1 microsecond', lease => '1 h');
SELECT outcome FROM idempotency.claim('s', 'long', 'abandoned', ttl => '1 microsecond', lease => '1 microsecond', hold_if_abandoned => true);
SELECT outcome FROM idempotency.claim('s', 'long', 'lapsed', ttl => '1 microsecond', lease => '1 microsecond');
SELECT operation, status, keys, expired, oldest <= newest AS ordered FROM idempotency.keys_by_operation ORDER BY 1, 2;
SELECT outcome FROM idempotency.claim('other scope', 'charge', 'leased', lease => '1 h');
SELECT scope, operation, status, keys, expired, oldest <= newest AS ordered FROM idempotency.keys_by_scope ORDER BY 1, 2, 3;
SELECT idempotency.forget_scope('other scope', force => true);
SELECT scope, operation, key, status, token IS NOT NULL AS token, attempt, recovery_point, state, last_error, note,
	claimed_at >= created_at AS claimed, checkpointed_at IS NOT NULL AS checkpointed
FROM idempotency.abandoned ORDER BY operation, key;
SELECT check_name, status, value, threshold, detail FROM idempotency.health()
WHERE check_name IN ('expired_backlog', 'abandoned_claims', 'held_keys') ORDER BY check_name;

-- Thresholds are settings; ten times as much is critical, 0 switches off.
SET idempotency.warn_expired = 1;
SET idempotency.warn_abandoned = 3;
SET idempotency.warn_held = 0;
SELECT check_name, status, value, threshold FROM idempotency.health()
WHERE check_name IN ('expired_backlog', 'abandoned_claims', 'held_keys') ORDER BY check_name;
SET idempotency.warn_held = 1;
SELECT count(idempotency.hold('s', 'many', g::text, 'unknown', token => c.token))
FROM generate_series(1, 9) AS g, LATERAL idempotency.claim('s', 'many', g::text, lease => '1 h') AS c;
SELECT status, value >= 10 AS ten FROM idempotency.health() WHERE check_name = 'held_keys';

-- Somebody with the TRIGGER privilege is as good as the tables' owner.
CREATE ROLE regress_statistics_planter;
GRANT TRIGGER ON idempotency.idempotency_keys TO regress_statistics_planter;
SELECT status, value, threshold, detail FROM idempotency.health() WHERE check_name = 'trigger_privileges';
REVOKE TRIGGER ON idempotency.idempotency_keys FROM regress_statistics_planter;
SELECT status, value FROM idempotency.health() WHERE check_name = 'trigger_privileges';
DROP ROLE regress_statistics_planter;

-- The last clean-up.
CALL idempotency.maintain();
SELECT status, value < 60 AS recently, threshold > 0 AS threshold, detail FROM idempotency.health() WHERE check_name = 'last_cleanup';
SELECT deleted, hit_rate_percent, last_cleanup IS NOT NULL AS cleaned, last_cleanup_deleted
FROM idempotency.stats WHERE database = current_database();
UPDATE idempotency.cleanup_runs SET finished_at = now() - interval '1 year';
SELECT status, value > 86400 AS long_ago FROM idempotency.health() WHERE check_name = 'last_cleanup';

-- In a read-only transaction, too: whoever monitors may be read-only.
BEGIN READ ONLY;
SELECT count(*) FROM idempotency.health();
SELECT count(*) FROM idempotency.abandoned;
SELECT count(*) FROM idempotency.effective_policies;
SELECT count(*) >= 1 AS some FROM idempotency.stats;
COMMIT;
-- At any isolation level, and whatever the search_path.
BEGIN ISOLATION LEVEL SERIALIZABLE;
SET LOCAL search_path = pg_temp;
SELECT pg_catalog.count(*) FROM idempotency.health();
COMMIT;
-- The table renamed: that is what is reported.
ALTER TABLE idempotency.idempotency_keys RENAME TO renamed;
SELECT check_name, status, detail FROM idempotency.health();
ALTER TABLE idempotency.renamed RENAME TO idempotency_keys;
-- The same of the tables beside, without which calls fail, or health() would.
ALTER TABLE idempotency.cleanup_runs RENAME TO renamed;
SELECT check_name, status, detail FROM idempotency.health();
-- Nor is it there where another relation has its name: a table that is not the
-- extension's, or a view, though that be.
CREATE TABLE idempotency.cleanup_runs (LIKE idempotency.renamed);
SELECT check_name, status, detail FROM idempotency.health();
DROP TABLE idempotency.cleanup_runs;
CREATE VIEW idempotency.cleanup_runs AS TABLE idempotency.renamed;
ALTER EXTENSION idempotency ADD VIEW idempotency.cleanup_runs;
SELECT check_name, status, detail FROM idempotency.health();
ALTER EXTENSION idempotency DROP VIEW idempotency.cleanup_runs;
DROP VIEW idempotency.cleanup_runs;
ALTER TABLE idempotency.renamed RENAME TO cleanup_runs;
DELETE FROM idempotency.lock_secret;
SELECT check_name, status, detail FROM idempotency.health();
SELECT outcome FROM idempotency.claim('s', 'o', 'k');
INSERT INTO idempotency.lock_secret DEFAULT VALUES;
SELECT count(*) FROM idempotency.health();
\c contrib_regression
DROP DATABASE regress_statistics WITH (FORCE);
