-- Settings: defaults, units, bounds, who may set what, and what they do.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
DROP ROLE IF EXISTS regress_settings;
RESET client_min_messages;
\set SHOW_CONTEXT never

-- The library is loaded by the first call, if not before.
SELECT count(*) FROM idempotency.lookup('settings', 'a', 'b');
SELECT name, setting, unit, context, vartype, min_val, max_val, boot_val FROM pg_settings
WHERE name LIKE 'idempotency.%' ORDER BY name COLLATE "C";
-- As they are to be read. (The server may run with others; these are the defaults.)
SELECT name, current_setting(name) FROM pg_settings
WHERE name ~ '^idempotency\.(default_ttl|failed_ttl|once_ttl|default_lease|max_|cleanup_interval|track)' AND setting = boot_val ORDER BY name COLLATE "C";
-- Each says what it is for.
SELECT name AS without_description FROM pg_settings WHERE name LIKE 'idempotency.%' AND coalesce(short_desc, '') = '';

-- A list of names that cannot be read.
ALTER SYSTEM SET idempotency.cleanup_skip_databases = 'one, , two';

-- Units and bounds.
SET idempotency.default_ttl = '90min';
SHOW idempotency.default_ttl;
SET idempotency.default_ttl = '1 fortnight';
SET idempotency.default_lease = 1500;
SHOW idempotency.default_lease;
-- Messages name the unit from 17 on.
\set VERBOSITY sqlstate
SET idempotency.default_ttl = 0;
SET idempotency.default_ttl = '-1';
SET idempotency.max_key_length = 881;
SET idempotency.max_key_length = 0;
SET idempotency.max_response_size = '2GB';
\set VERBOSITY default
SET idempotency.max_response_size = '10MB';
SHOW idempotency.max_response_size;
SET idempotency.max_claims_per_transaction = 0;
SET idempotency.max_wait = 0;
-- Nobody gets far with a misspelled one.
SET idempotency.default_tll = '1h';
RESET ALL;

-- Anybody sets what a call could have said; limits are the superuser's, and may
-- be granted.
CREATE ROLE regress_settings;
SELECT idempotency.grant_usage('regress_settings');
SET ROLE regress_settings;
SET idempotency.default_ttl = '1h';
SET idempotency.failed_ttl = '1h';
SET idempotency.default_lease = '1h';
SET idempotency.max_ttl = '1000d';
SET idempotency.max_wait = '1h';
SET idempotency.max_key_length = 880;
SET idempotency.max_claims_per_transaction = 1000000;
SET idempotency.max_response_size = '500MB';
RESET ROLE;
RESET idempotency.default_ttl;
RESET idempotency.failed_ttl;
RESET idempotency.default_lease;
GRANT SET ON PARAMETER idempotency.max_wait TO regress_settings;
SET ROLE regress_settings;
SET idempotency.max_wait = '2min';
RESET idempotency.max_wait;
RESET ROLE;
REVOKE SET ON PARAMETER idempotency.max_wait FROM regress_settings;
-- The worker's need a reload, and are not for a connection to set.
SELECT name, context FROM pg_settings WHERE name LIKE 'idempotency.cleanup%' AND context <> 'sighup';

-- They take part in transactions, and go with SET LOCAL.
BEGIN;
SET LOCAL idempotency.default_ttl = '1h';
SELECT expires_at - created_at AS lifetime FROM idempotency.claim('settings', 'local', '1');
ROLLBACK;
BEGIN;
SELECT expires_at - created_at AS lifetime FROM idempotency.claim('settings', 'local', '1');
ROLLBACK;
-- NULL and left out mean the same: the default.
BEGIN;
SELECT expires_at - created_at AS lifetime, token FROM idempotency.claim('settings', 'null', '1', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
SELECT idempotency.complete('settings', 'null', '1', NULL, NULL, NULL, NULL, NULL, NULL) > now() AS done;
ROLLBACK;
-- A default beyond the limit is cut to it, in every call that uses one.
SET idempotency.max_ttl = '10min';
SET idempotency.failed_ttl = '1h';
SET idempotency.default_lease = '1h';
SELECT expires_at - created_at AS lifetime, token FROM idempotency.claim('settings', 'limit', '1', lease => '1 min') \gset
\echo :lifetime
BEGIN;
SELECT idempotency.extend('settings', 'limit', '1', token => :token) <= clock_timestamp() + interval '10 min' AS within;
SELECT idempotency.fail('settings', 'limit', '1', token => :token);
SELECT expires_at <= clock_timestamp() + interval '10 min' AS within FROM idempotency.lookup('settings', 'limit', '1');
COMMIT;
RESET ALL;
-- A limit that has come down holds for keys that were there before, too.
SET idempotency.max_key_length = 300;
SELECT outcome FROM idempotency.claim('settings', 'long', repeat('k', 300), lease => '1 hour');
RESET idempotency.max_key_length;
SELECT outcome FROM idempotency.claim('settings', 'long', repeat('k', 300), lease => '1 hour');
-- A response that is there is replayed, whatever the limit is now.
BEGIN;
SELECT outcome FROM idempotency.claim('settings', 'large', '1');
SELECT idempotency.complete('settings', 'large', '1', 200, repeat('x', 5000)) > now() AS done;
COMMIT;
SET idempotency.max_response_size = '1kB';
SELECT length(response_body) FROM idempotency.replay('settings', 'large', '1');
-- None at all.
SET idempotency.max_response_size = 0;
BEGIN;
SELECT outcome FROM idempotency.claim('settings', 'none', '1');
SAVEPOINT s;
SELECT idempotency.complete('settings', 'none', '1', 200, 'x');
ROLLBACK TO s;
SELECT idempotency.complete('settings', 'none', '1', 204, '') > now() AS done;
COMMIT;
RESET ALL;

DROP OWNED BY regress_settings;
DROP ROLE regress_settings;
