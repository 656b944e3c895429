-- The four home-grown systems that docs/home-grown.md speaks of: everything that
-- they do works on the extension, and their data can be brought over.
-- In a database of its own: what it counts is all that there is.
SET client_min_messages = warning;
SELECT current_database() AS came_from \gset
DROP DATABASE IF EXISTS regress_home_grown;
CREATE DATABASE regress_home_grown;
\c regress_home_grown
SET client_min_messages = warning;
CREATE EXTENSION idempotency;
DROP ROLE IF EXISTS regress_home_api, regress_home_operator, regress_home_monitor;
RESET client_min_messages;
\set VERBOSITY sqlstate
CREATE SCHEMA home_grown;
SET search_path = home_grown;
CREATE ROLE regress_home_api;
CREATE ROLE regress_home_operator;
CREATE ROLE regress_home_monitor;
GRANT USAGE ON SCHEMA home_grown TO regress_home_api;
SELECT idempotency.grant_usage('regress_home_api'), idempotency.grant_operator('regress_home_operator'), idempotency.grant_monitor('regress_home_monitor');
-- Makes keys of a scope as old as if so much time had passed.
CREATE FUNCTION grow_older(of_scope text, by_time interval) RETURNS bigint LANGUAGE sql AS $$
	WITH aged AS (
		UPDATE idempotency.idempotency_keys SET created_at = created_at - by_time, completed_at = completed_at - by_time, expires_at = expires_at - by_time
		WHERE scope = of_scope RETURNING 1)
	SELECT count(*) FROM aged $$;

--
-- A. Request records (scope home A)
--
-- Per operation: payment and transfer 72 h, log-in 1 h, all others 24 h.
SELECT idempotency.set_policy('payment', ttl => '72 hours'), idempotency.set_policy('transfer', ttl => '72 hours'), idempotency.set_policy('login', ttl => '1 hour');
CREATE TABLE effect (what text);
GRANT INSERT, SELECT ON effect TO regress_home_api;
-- Look up, do the work, save; as the API's role.
SET ROLE regress_home_api;
SELECT count(*) FROM idempotency.replay('home A', 'payment', '6f1c6f0e-0f3a-4c7e-9a57-000000000001');
BEGIN;
SELECT outcome FROM idempotency.claim('home A', 'payment', '6f1c6f0e-0f3a-4c7e-9a57-000000000001');
INSERT INTO effect VALUES ('payment 1');
SELECT idempotency.complete('home A', 'payment', '6f1c6f0e-0f3a-4c7e-9a57-000000000001', 200, '{"paid": 1}') IS NOT NULL;
COMMIT;
SELECT response_status, response_body FROM idempotency.replay('home A', 'payment', '6f1c6f0e-0f3a-4c7e-9a57-000000000001');
-- Duplicate prevention.
SELECT outcome, response_body FROM idempotency.claim('home A', 'payment', '6f1c6f0e-0f3a-4c7e-9a57-000000000001');
SELECT count(*) FROM effect;
-- The API's role can neither change a recorded result nor write the table.
SELECT idempotency.complete('home A', 'payment', '6f1c6f0e-0f3a-4c7e-9a57-000000000001', 200, '{"paid": 2}');
SELECT idempotency.forget('home A', 'payment', '6f1c6f0e-0f3a-4c7e-9a57-000000000001');
UPDATE idempotency.idempotency_keys SET response_body = '';
DELETE FROM idempotency.idempotency_keys;
SELECT count(*) FROM idempotency.idempotency_keys;
-- Lifetimes.
SELECT idempotency.once('home A', 'transfer', '1', ttl => '72 hours'), idempotency.once('home A', 'login', '1'),
	   (SELECT outcome FROM idempotency.run('home A', 'search', '1', 'SELECT 1'));
RESET ROLE;
SELECT operation, expires_at - created_at AS lives FROM idempotency.idempotency_keys WHERE scope = 'home A' ORDER BY operation COLLATE "C";
-- Expiry by query: the row is there and counts as absent. By clean-up, with the count.
SELECT grow_older('home A', '25 hours');
SELECT count(*) FROM idempotency.replay('home A', 'payment', '6f1c6f0e-0f3a-4c7e-9a57-000000000001');
SELECT count(*) FROM idempotency.replay('home A', 'search', '1');
SELECT operation, sum(expired) AS expired FROM idempotency.keys_by_operation WHERE operation IN ('payment', 'transfer', 'login', 'search') GROUP BY 1 ORDER BY 1;
SELECT idempotency.cleanup() AS deleted_count;
SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = 'home A' AND expires_at <= now();
-- The monitoring queries, as a monitor.
SET ROLE regress_home_monitor;
SELECT pg_table_size('idempotency.idempotency_keys') > 0 AS table_size, pg_indexes_size('idempotency.idempotency_keys') > 0 AS index_size;
SELECT sum(keys) >= 2 AS records, sum(expired) = 0 AS none_expired FROM idempotency.keys_by_operation;
SELECT operation, keys FROM idempotency.keys_by_operation WHERE operation IN ('payment', 'transfer') ORDER BY 1;
SELECT count(*) AS dead_row_ratio FROM (SELECT 100.0 * n_dead_tup / nullif(n_live_tup + n_dead_tup, 0) FROM pg_stat_all_tables WHERE relid = 'idempotency.idempotency_keys'::regclass) AS r;
SELECT count(*) FROM idempotency.idempotency_keys;
RESET ROLE;
SET ROLE regress_home_operator;
SELECT count(*) AS last_minute FROM idempotency.idempotency_keys WHERE scope = 'home A' AND created_at > now() - interval '1 minute';
RESET ROLE;
-- The hourly schedule needs pg_cron, and says so; t/ runs a real job.
SELECT idempotency.schedule_cleanup('0 * * * *');
-- Moving over.
CREATE TABLE idempotency_records (request_id uuid PRIMARY KEY, operation varchar(100), result_payload text NOT NULL, status_code integer, created_at timestamptz, expires_at timestamptz, CHECK (expires_at > created_at));
INSERT INTO idempotency_records VALUES
	('00000000-0000-0000-0000-000000000001', 'payment', '{"a" : 1.10}', 201, now() - interval '1 hour', now() + interval '71 hours'),
	('00000000-0000-0000-0000-000000000002', 'login', 'ok', NULL, now() - interval '10 minutes', now() + interval '50 minutes'),
	('00000000-0000-0000-0000-000000000003', 'login', 'too old', 200, now() - interval '2 hours', now() - interval '1 hour');
SELECT count(*) FILTER (WHERE imported) AS imported, count(*) AS all
  FROM (SELECT idempotency.import_completed('home A moved', operation, request_id::text, response_status => status_code, response_body => result_payload,
											created_at => created_at, expires_at => expires_at) AS imported FROM idempotency_records) AS i;
SELECT outcome, response_status, response_body, created_at = (SELECT min(created_at) FROM idempotency_records WHERE operation = 'payment') AS as_old
  FROM idempotency.claim('home A moved', 'payment', '00000000-0000-0000-0000-000000000001');
-- Again is no harm: what is known stays.
SELECT idempotency.import_completed('home A moved', 'payment', '00000000-0000-0000-0000-000000000001', response_body => 'other');
SELECT response_body FROM idempotency.replay('home A moved', 'payment', '00000000-0000-0000-0000-000000000001');

--
-- B. Tenant-scoped operation results
--
CREATE TABLE tenant (id text PRIMARY KEY);
CREATE TRIGGER forget_keys AFTER DELETE ON tenant FOR EACH ROW EXECUTE FUNCTION idempotency.forget_scope_on_delete('id');
INSERT INTO tenant VALUES ('home B 1'), ('home B 2');
-- withIdempotency(service, tenantId, operation, payload, fn): fn at most once; the order of members does not matter.
CREATE TABLE invoice (tenant text, amount int);
CREATE FUNCTION with_idempotency(tenant text, operation text, payload jsonb, fn text) RETURNS TABLE (outcome text, result text) LANGUAGE sql AS $$
	SELECT r.outcome, r.response_body FROM idempotency.run(tenant, operation, idempotency.content_key(payload), fn, args => payload || jsonb_build_object('tenant', tenant)) AS r $$;
SELECT * FROM with_idempotency('home B 1', 'invoice', '{"amount": 5, "to": "x"}', 'INSERT INTO home_grown.invoice SELECT $1->>''tenant'', ($1->>''amount'')::int RETURNING amount');
SELECT * FROM with_idempotency('home B 1', 'invoice', '{"to": "x", "amount": 5.0}', 'INSERT INTO home_grown.invoice SELECT $1->>''tenant'', ($1->>''amount'')::int RETURNING amount');
SELECT * FROM with_idempotency('home B 2', 'invoice', '{"to": "x", "amount": 5}', 'INSERT INTO home_grown.invoice SELECT $1->>''tenant'', ($1->>''amount'')::int RETURNING amount');
SELECT tenant, count(*) FROM invoice GROUP BY tenant ORDER BY tenant;
-- check(), store(), clear()
SELECT count(*) AS checked FROM idempotency.replay('home B 1', 'report', 'k');
BEGIN;
SELECT outcome FROM idempotency.claim('home B 1', 'report', 'k');
SELECT idempotency.complete('home B 1', 'report', 'k', response_body => '{"rows": 3}') IS NOT NULL AS stored;
COMMIT;
SELECT response_body AS checked FROM idempotency.replay('home B 1', 'report', 'k');
SET ROLE regress_home_operator;
SELECT idempotency.forget('home B 1', 'report', 'k') AS cleared;
RESET ROLE;
SELECT count(*) AS checked FROM idempotency.replay('home B 1', 'report', 'k');
-- 24 hours by default; cleanup(3600) leaves what expired less than an hour ago.
SELECT idempotency.once('home B 1', 'grace', '1', ttl => '24 hours'), idempotency.once('home B 2', 'grace', '1', ttl => '24 hours');
SELECT DISTINCT expires_at - created_at AS lives FROM idempotency.idempotency_keys WHERE operation = 'invoice';
SELECT grow_older('home B 1', '24 hours 30 minutes'), grow_older('home B 2', '25 hours 1 minute');
SELECT idempotency.cleanup(older_than => '3600 seconds') AS cleaned;
SELECT scope, count(*) FROM idempotency.idempotency_keys WHERE scope LIKE 'home B%' GROUP BY scope ORDER BY scope;
-- Keys go with the tenant.
SELECT idempotency.once('home B 1', 'x', 'y'), idempotency.once('home B 2', 'x', 'y');
DELETE FROM tenant WHERE id = 'home B 1';
SELECT scope, count(*) FROM idempotency.idempotency_keys WHERE scope LIKE 'home B%' GROUP BY scope ORDER BY scope;
-- Large JSON results, byte for byte.
BEGIN;
SELECT outcome FROM idempotency.claim('home B 2', 'large', '1');
SELECT idempotency.complete('home B 2', 'large', '1', response_body => repeat('{"a" :  1.10}', 100000)) IS NOT NULL;
COMMIT;
SELECT response_body = repeat('{"a" :  1.10}', 100000) AS same, length(response_body) FROM idempotency.replay('home B 2', 'large', '1');
-- Hit rate, clean-up runs, an alert on a high number of keys.
SELECT count(*) AS hit_rate FROM (SELECT hit_rate_percent FROM idempotency.stats WHERE database = current_database() AND replays > 0) AS s;
CALL idempotency.maintain();
SELECT started_by, error FROM idempotency.cleanup_runs ORDER BY id DESC LIMIT 1;
ANALYZE idempotency.idempotency_keys;
SET idempotency.warn_keys = 1;
SELECT status <> 'ok' AS alert, value > 0 AS value, threshold FROM idempotency.health() WHERE check_name = 'number_of_keys';
RESET idempotency.warn_keys;
-- Moving over.
CREATE TABLE "IdempotencyKey" (id text, key text UNIQUE, "tenantId" text, operation text, result text, "expiresAt" timestamptz, "createdAt" timestamptz, "updatedAt" timestamptz);
INSERT INTO "IdempotencyKey" VALUES ('1', 'hash1', 'home B 2', 'moved', '{"r": 1}', now() + interval '1 hour', now() - interval '1 hour', now() - interval '1 hour');
SELECT idempotency.import_completed("tenantId", operation, key, response_body => result, created_at => "createdAt", completed_at => "updatedAt", expires_at => "expiresAt") FROM "IdempotencyKey";
SELECT outcome, response_body FROM idempotency.claim('home B 2', 'moved', 'hash1');

--
-- C. Processed tickets: scope is the provider
--
SELECT idempotency.set_policy('home C ticket', ttl => '7 days', failed_ttl => '7 days');
SET ROLE regress_home_api;
-- isTicketProcessed
SELECT EXISTS (SELECT FROM idempotency.lookup('zendesk', 'home C ticket', 't1') WHERE status = 'completed') AS is_processed;
-- markTicketProcessed, and again
SELECT idempotency.once('zendesk', 'home C ticket', 't1') AS first, idempotency.once('zendesk', 'home C ticket', 't1') AS first;
SELECT EXISTS (SELECT FROM idempotency.lookup('zendesk', 'home C ticket', 't1') WHERE status = 'completed') AS is_processed;
SELECT idempotency.once('zendesk', 'home C ticket', 't2'), idempotency.once('github', 'home C ticket', 't1');
-- A failed ticket can be processed again.
BEGIN;
SELECT outcome FROM idempotency.claim('github', 'home C ticket', 't9');
SELECT idempotency.fail('github', 'home C ticket', 't9', error => 'no such repository');
COMMIT;
SELECT EXISTS (SELECT FROM idempotency.lookup('github', 'home C ticket', 't9') WHERE status = 'completed') AS is_processed;
RESET ROLE;
-- getProcessingStats, by provider and by success
SET ROLE regress_home_operator;
SELECT scope AS provider, status = 'completed' AS success, sum(keys) AS count FROM idempotency.keys_by_scope WHERE operation = 'home C ticket' GROUP BY 1, 2 ORDER BY 1, 2;
RESET ROLE;
SET ROLE regress_home_monitor;
SELECT status, keys FROM idempotency.keys_by_operation WHERE operation = 'home C ticket' ORDER BY 1;
RESET ROLE;
SET ROLE regress_home_api;
BEGIN;
SELECT outcome, attempt, last_error FROM idempotency.claim('github', 'home C ticket', 't9');
SELECT idempotency.complete('github', 'home C ticket', 't9') IS NOT NULL;
COMMIT;
SELECT EXISTS (SELECT FROM idempotency.lookup('github', 'home C ticket', 't9') WHERE status = 'completed') AS is_processed;
RESET ROLE;
-- Seven days for this operation alone; cleanupOldRecords.
SELECT DISTINCT expires_at - created_at AS lives FROM idempotency.idempotency_keys WHERE operation = 'home C ticket' AND attempt = 1;
SELECT grow_older('zendesk', '6 days 23 hours');
SELECT idempotency.cleanup();
SELECT grow_older('zendesk', '1 hour');
SELECT idempotency.cleanup();
-- checkIdempotencyHealth
SET ROLE regress_home_monitor;
SELECT check_name FROM idempotency.health() WHERE status NOT IN ('ok', 'warn', 'critical');
SELECT count(*) > 5 AS checks FROM idempotency.health();
RESET ROLE;
-- Moving over: processed ones as completed, failed ones not at all.
CREATE TABLE processed_tickets (id uuid, "ticketId" varchar(255) UNIQUE, provider varchar(50), "processedAt" timestamptz, success boolean);
INSERT INTO processed_tickets VALUES (gen_random_uuid(), 'm1', 'zendesk', now() - interval '1 day', true), (gen_random_uuid(), 'm2', 'zendesk', now() - interval '1 day', false),
	(gen_random_uuid(), 'm3', 'zendesk', now() - interval '8 days', true);
SELECT "ticketId", idempotency.import_completed(provider, 'home C ticket', "ticketId", completed_at => "processedAt") FROM processed_tickets WHERE success ORDER BY 1;
SELECT idempotency.once('zendesk', 'home C ticket', 'm1') AS m1, idempotency.once('zendesk', 'home C ticket', 'm2') AS m2;

--
-- D. Booking site: (user, route, key)
--
SELECT idempotency.set_policy('POST /home-bookings', ttl => '7 days', failed_ttl => '1 day');
CREATE TABLE booking (owner text, room int);
-- withIdempotency({userId, route, key}, handler), with a handler that may fail: status, body and the header that tells which.
CREATE FUNCTION book(user_id text, route text, key text, room int, works boolean DEFAULT true, OUT status int, OUT body text, OUT header text) LANGUAGE plpgsql AS $$
DECLARE
	claim record;
BEGIN
	SELECT * INTO claim FROM idempotency.claim(user_id, route, key);
	CASE claim.outcome
		WHEN 'claimed' THEN
			BEGIN
				INSERT INTO home_grown.booking VALUES (user_id, room);
				IF NOT works THEN
					RAISE 'no room';
				END IF;
				status := 201;
				body := format('{"room": %s}', room);
				header := 'X-Idempotency-Stored: true';
				PERFORM idempotency.complete(user_id, route, key, status, body);
			EXCEPTION WHEN raise_exception THEN
				PERFORM idempotency.fail(user_id, route, key, SQLERRM);
				status := 500;
			END;
		WHEN 'replay' THEN
			status := claim.response_status;
			body := claim.response_body;
			header := 'X-Idempotency-Replay: true';
		WHEN 'in_progress' THEN
			status := 409;
			body := 'REQUEST_IN_PROGRESS';
		ELSE
			status := 422;
	END CASE;
END $$;
-- (1) first, (2) repeat after success; (3) the concurrent one is in specs/booking.spec
SELECT * FROM book('home D 1', 'POST /home-bookings', '11111111-1111-4111-8111-111111111111', 7);
SELECT * FROM book('home D 1', 'POST /home-bookings', '11111111-1111-4111-8111-111111111111', 7);
-- (4) repeat after failure: executed again
SELECT * FROM book('home D 1', 'POST /home-bookings', '22222222-2222-4222-8222-222222222222', 8, works => false);
SELECT status, last_error, expires_at - created_at < interval '1 day 1 minute' AS a_day FROM idempotency.lookup('home D 1', 'POST /home-bookings', '22222222-2222-4222-8222-222222222222');
SELECT * FROM book('home D 1', 'POST /home-bookings', '22222222-2222-4222-8222-222222222222', 8);
-- The same key on another route or by another user is another request.
SELECT * FROM book('home D 1', 'POST /home-tours', '11111111-1111-4111-8111-111111111111', 9);
SELECT * FROM book('home D 2', 'POST /home-bookings', '11111111-1111-4111-8111-111111111111', 10);
SELECT room, count(*) FROM booking GROUP BY room ORDER BY room;
SELECT expires_at - created_at AS lives FROM idempotency.idempotency_keys WHERE scope = 'home D 2';
-- No key completed twice.
SELECT scope, operation, key FROM idempotency.idempotency_keys WHERE status = 'completed' GROUP BY 1, 2, 3 HAVING count(*) > 1;
-- Moving over.
CREATE TABLE idempotency_keys (user_id uuid, route text, key uuid, status text, response_status int, response jsonb, created_at timestamptz, completed_at timestamptz);
INSERT INTO idempotency_keys VALUES
	('99999999-9999-4999-8999-999999999999', 'POST /home-bookings', '33333333-3333-4333-8333-333333333333', 'completed', 201, '{"room": 5}', now() - interval '2 days', now() - interval '2 days'),
	('99999999-9999-4999-8999-999999999999', 'POST /home-bookings', '44444444-4444-4444-8444-444444444444', 'in_progress', NULL, NULL, now(), NULL);
SELECT idempotency.import_completed(user_id::text, route, key::text, response_status, response::text, created_at => created_at, completed_at => completed_at)
  FROM idempotency_keys WHERE status = 'completed';
SELECT * FROM book('99999999-9999-4999-8999-999999999999', 'POST /home-bookings', '33333333-3333-4333-8333-333333333333', 5);

-- Leave nothing behind.
DROP OWNED BY regress_home_api, regress_home_operator, regress_home_monitor;
DROP ROLE regress_home_api, regress_home_operator, regress_home_monitor;
\c :came_from
DROP DATABASE regress_home_grown;
