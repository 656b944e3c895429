-- bridge.sql - what moving/move puts between an old table and the extension
--
-- Everything is in one schema, named by "bridge", so that it goes without a trace.
-- What is particular to a system is in the file named by "system": how its rows
-- are read and written. Two triggers are the bridge itself. The one on the old
-- table claims and completes in the extension what an old instance writes, the one
-- on the extension's table writes what a new instance records into the old table;
-- each does so within the transaction that it belongs to. So whoever is second is
-- refused by the key's lock, by the extension's primary key or by the old table's,
-- whichever it meets first, and its work is rolled back with it.
--
-- Whoever is refused is refused at once, without waiting: an old instance holds its
-- row of the old table and wants the key, a new one holds the key and wants that
-- row. If both waited, they would wait for each other.
--
-- "triggers" says whether the triggers are wanted; a dry run reads only.

CREATE SCHEMA :"bridge";

-- What a row of an old table means. "status" is completed, in_progress or failed.
CREATE TYPE :"bridge".request AS (
	scope text, operation text, key text, status text, response_status int, response_body text,
	created_at timestamptz, completed_at timestamptz, expires_at timestamptz);

\i :system

CREATE VIEW :"bridge".requests AS SELECT :"bridge".request_of(o) AS request FROM :old_table AS o;

-- ---- one request -------------------------------------------------------------------

-- By this claim_id a claim is known as one that stands for an old instance. It goes
-- with the claim: what is claimed after it, by whomever, does not carry it.
CREATE FUNCTION :"bridge".old_instance() RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN '6d6f7669-6e67-4000-8000-6f6c64206f6e'::uuid;

CREATE FUNCTION :"bridge".lease() RETURNS interval LANGUAGE sql IMMUTABLE
RETURN (:'lease')::interval;

CREATE FUNCTION :"bridge".is_live(r :"bridge".request) RETURNS boolean LANGUAGE sql VOLATILE
RETURN (r).status IN ('completed', 'in_progress') AND COALESCE((r).expires_at > clock_timestamp(), false);

-- The functions from here on are called by those below, which set the search path.

-- Why a row is not moved; NULL if it is to be. What is "not needed" would have been
-- done again by the old instances, too; what "cannot" be moved would not.
CREATE FUNCTION :"bridge".obstacle(r :"bridge".request) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	-- The settings are known once the library is loaded.
	IF current_setting('idempotency.max_ttl', true) IS NULL THEN
		PERFORM idempotency.fingerprint('null');
	END IF;
	RETURN CASE
		WHEN r.status = 'failed' THEN 'not needed: failed'
		WHEN NOT is_live(r) THEN 'not needed: expired'
		WHEN (r.scope <> '' AND r.operation <> '' AND r.key <> '' AND
		      greatest(octet_length(r.scope), octet_length(r.operation), octet_length(r.key))
		      <= rtrim(current_setting('idempotency.max_key_length'), 'B')::int) IS NOT TRUE
			THEN 'cannot: a part of the identity is missing, empty or longer than idempotency.max_key_length'
		WHEN octet_length(r.response_body) > pg_size_bytes(current_setting('idempotency.max_response_size'))
			THEN 'cannot: the answer is larger than idempotency.max_response_size'
		WHEN r.response_status < 0 THEN 'cannot: the status is negative'
		WHEN r.expires_at > clock_timestamp() + current_setting('idempotency.max_ttl')::interval
			THEN 'cannot: expires after idempotency.max_ttl'
	END;
END $$;

-- How long a request is still remembered, as the extension takes it.
CREATE FUNCTION :"bridge".time_left(r :"bridge".request) RETURNS interval LANGUAGE plpgsql AS $$
BEGIN
	IF current_setting('idempotency.max_ttl', true) IS NULL THEN
		PERFORM idempotency.fingerprint('null');
	END IF;
	RETURN least(r.expires_at - clock_timestamp(), current_setting('idempotency.max_ttl')::interval);
END $$;

-- Makes known to the extension what stands in the old table. May be repeated. What
-- an old instance is still at becomes a claim whose lease never passes it on: once
-- it lapses, a person decides, because nobody knows how far that instance got.
CREATE FUNCTION :"bridge".adopt(r :"bridge".request) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	at timestamptz := clock_timestamp();
	why_not text := obstacle(r);
BEGIN
	IF why_not IS NOT NULL THEN
		RETURN why_not;
	ELSIF r.status = 'in_progress' THEN
		RETURN CASE WHEN c.outcome = 'claimed' THEN 'claimed for an old instance' ELSE 'known already' END
			FROM idempotency.claim(r.scope, r.operation, r.key, ttl => time_left(r), lease => lease(),
			                       claim_id => old_instance(), hold_if_abandoned => true) AS c;
	END IF;
	-- The clock of whoever wrote the row may have been ahead.
	RETURN CASE WHEN idempotency.import_completed(r.scope, r.operation, r.key, r.response_status, r.response_body,
	                     created_at => least(r.created_at, r.completed_at, at), completed_at => least(r.completed_at, at),
	                     expires_at => r.expires_at)
		THEN 'moved' ELSE 'known already' END;
END $$;

-- ---- from the old table to the extension -------------------------------------------

CREATE FUNCTION :"bridge".refuse() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE 'the request has been executed, or is being executed, elsewhere'
		USING ERRCODE = refusal(), HINT = 'Roll back, and look again whether it is recorded.';
END $$;

-- An old instance has completed a request: the claim that stood for it is completed,
-- or the key is claimed now. Work that was done for nothing is rolled back.
CREATE FUNCTION :"bridge".finish(r :"bridge".request) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	own bigint := (SELECT l.token FROM idempotency.lookup(r.scope, r.operation, r.key) AS l
	                WHERE l.status IN ('in_progress', 'held') AND l.claim_id = old_instance());
BEGIN
	IF own IS NULL AND (SELECT c.outcome FROM idempotency.claim(r.scope, r.operation, r.key) AS c) <> 'claimed' THEN
		PERFORM refuse();
	END IF;
	PERFORM idempotency.complete(r.scope, r.operation, r.key, r.response_status, r.response_body,
		ttl => time_left(r), token => own);
END $$;

-- An old instance has given up, or has cleared what was recorded.
CREATE FUNCTION :"bridge".give_up(r :"bridge".request) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	own record;
BEGIN
	IF r.status = 'completed' THEN
		PERFORM idempotency.forget(r.scope, r.operation, r.key);
		RETURN;
	END IF;
	SELECT l.status, l.token INTO own FROM idempotency.lookup(r.scope, r.operation, r.key) AS l
	 WHERE l.status IN ('in_progress', 'held') AND l.claim_id = old_instance();
	IF own.status = 'held' THEN
		-- It was slow, and says now that nothing happened.
		PERFORM idempotency.resolve(r.scope, r.operation, r.key, 'retry');
	ELSIF own.status = 'in_progress' THEN
		PERFORM idempotency.fail(r.scope, r.operation, r.key, token => own.token);
	END IF;
END $$;

CREATE FUNCTION :"bridge".old_row_written() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path TO pg_catalog, :"bridge", pg_temp SET moving.side TO 'bridge' AS $$
DECLARE
	was request;
	wanted request;
BEGIN
	IF TG_OP <> 'INSERT' THEN
		was := request_of(OLD);
	END IF;
	IF TG_OP <> 'DELETE' THEN
		wanted := request_of(NEW);
	END IF;
	-- A done request that is called failed would be done again.
	IF is_live(was) AND was.status = 'completed' AND wanted.status = 'failed' THEN
		PERFORM refuse();
	END IF;
	IF is_live(was) IS NOT TRUE THEN
		was := NULL;
	END IF;
	IF is_live(wanted) IS NOT TRUE THEN
		wanted := NULL;
	END IF;
	IF wanted.status IS NULL THEN
		IF was.status IS NOT NULL THEN
			PERFORM give_up(was);
		END IF;
	-- Written for another reason, a column that says nothing of the request. A row that
	-- stays as it is to the last byte is another execution: by an instance that began
	-- in the same microsecond, where there is no answer to tell the two apart.
	ELSIF was IS NOT DISTINCT FROM wanted AND (was.status <> 'completed' OR OLD *<> NEW) THEN
		PERFORM adopt(wanted);
	ELSIF was.status = 'completed'
	   OR (was.scope, was.operation, was.key) IS DISTINCT FROM (wanted.scope, wanted.operation, wanted.key) AND was.status IS NOT NULL THEN
		PERFORM refuse();
	ELSIF wanted.status = 'completed' THEN
		PERFORM finish(wanted);
	ELSIF adopt(wanted) <> 'claimed for an old instance' THEN
		PERFORM refuse();
	END IF;
	RETURN NULL;
END $$;

-- ---- from the extension to the old table -------------------------------------------

-- The check comes before the write. A live row of the old table that the extension
-- does not know was there before the bridge and has not been moved: bring() is what
-- gets its answer. One of another request, which has the same key in the old table
-- and not here, is no matter of trying again.
CREATE FUNCTION :"bridge".key_written() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path TO pg_catalog, :"bridge", pg_temp SET moving.side TO 'bridge' AS $$
DECLARE
	is_new boolean := TG_OP = 'INSERT';
	there request;
BEGIN
	IF TG_OP = 'DELETE' THEN
		-- What has expired is the old clean-up's own business.
		IF covers(OLD.scope, OLD.operation, OLD.key)
		   AND (OLD.status <> 'completed' OR OLD.expires_at > clock_timestamp()) THEN
			PERFORM remove(OLD.scope, OLD.operation, OLD.key);
		END IF;
		RETURN NULL;
	END IF;
	IF NOT covers(NEW.scope, NEW.operation, NEW.key) THEN
		RETURN NULL;
	END IF;
	IF TG_OP = 'UPDATE' THEN
		is_new := OLD.status = 'failed' OR idempotency.key_standing(OLD.status, OLD.expires_at, OLD.locked_until,
			OLD.hold_if_abandoned, clock_timestamp()) = 'expired';
		IF NOT is_new AND OLD.status = NEW.status AND OLD.redacted_at IS NOT DISTINCT FROM NEW.redacted_at THEN
			RETURN NULL;
		END IF;
	END IF;
	IF is_new THEN
		SELECT (r).* INTO there FROM (SELECT request_of(o) AS r FROM rows_of(NEW.scope, NEW.operation, NEW.key) AS o) AS live
		 WHERE is_live(r);
		IF (there.scope, there.operation, there.key) = (NEW.scope, NEW.operation, NEW.key) THEN
			RAISE 'the request is recorded in the old table' USING ERRCODE = 'serialization_failure';
		ELSIF there.status IS NOT NULL THEN
			RAISE 'the old table has this key for another request' USING ERRCODE = 'unique_violation';
		END IF;
	END IF;
	PERFORM write(NEW);
	RETURN NULL;
END $$;

-- For new instances, before they claim, until all is moved: the answer of the old
-- table, if it has one that was not moved yet.
CREATE FUNCTION :"bridge".bring(scope text, operation text, key text) RETURNS void LANGUAGE plpgsql
SECURITY DEFINER SET search_path TO pg_catalog, :"bridge", pg_temp SET moving.side TO 'bridge' AS $$
BEGIN
	IF covers($1, $2, $3) AND NOT EXISTS (SELECT FROM idempotency.lookup($1, $2, $3)) THEN
		PERFORM adopt(request_of(o)) FROM rows_of($1, $2, $3) AS o;
	END IF;
END $$;

-- ---- moving ------------------------------------------------------------------------

-- Where the next batch begins; no row when no pass is under way.
CREATE TABLE :"bridge".place AS SELECT :walk FROM :old_table WITH NO DATA;
-- What became of the rows of this pass.
CREATE TABLE :"bridge".progress (what text PRIMARY KEY, rows bigint NOT NULL);

CREATE FUNCTION :"bridge".begin_pass() RETURNS void LANGUAGE sql VOLATILE
BEGIN ATOMIC
	DELETE FROM :"bridge".progress;
	INSERT INTO :"bridge".progress SELECT '', count(*) FROM :old_table;
	INSERT INTO :"bridge".place SELECT :walk FROM :old_table ORDER BY :walk LIMIT 1;
END;

-- Locked, so that nobody clears a row between the look at it and its import.
CREATE FUNCTION :"bridge".next_rows(n int) RETURNS SETOF :old_table LANGUAGE sql VOLATILE
BEGIN ATOMIC
	SELECT o.* FROM :old_table AS o
	 WHERE (:walk) >= (SELECT :walk FROM :"bridge".place) ORDER BY :walk LIMIT n FOR SHARE;
END;

CREATE FUNCTION :"bridge".go_on_from(o :old_table) RETURNS void LANGUAGE sql VOLATILE
BEGIN ATOMIC
	DELETE FROM :"bridge".place;
	INSERT INTO :"bridge".place SELECT :walk FROM (SELECT (o).*) AS next;
END;

-- One batch, a transaction of its own. Says whether there is more. Where the next
-- one begins is written in the same transaction, so a mover that is killed anywhere
-- goes on there. Two movers at once take turns.
CREATE FUNCTION :"bridge".batch(n int) RETURNS boolean LANGUAGE plpgsql
SET search_path TO pg_catalog, :"bridge", pg_temp SET moving.side TO 'bridge' AS $$
DECLARE
	r record;
	became text[] := '{}';
	more boolean := false;
BEGIN
	LOCK TABLE progress IN EXCLUSIVE MODE;
	IF NOT EXISTS (SELECT FROM place) THEN
		PERFORM begin_pass();
	END IF;
	FOR r IN SELECT o AS old_row, request_of(o) AS request FROM next_rows(n + 1) AS o LOOP
		IF cardinality(became) = n THEN
			more := true;
			EXIT;
		END IF;
		became := became || adopt(r.request);
	END LOOP;
	IF more THEN
		PERFORM go_on_from(r.old_row);
	ELSE
		DELETE FROM place;
	END IF;
	INSERT INTO progress AS p SELECT what, count(*) FROM unnest(became) AS what GROUP BY what
		ON CONFLICT (what) DO UPDATE SET rows = p.rows + excluded.rows;
	RETURN more;
END $$;

CREATE FUNCTION :"bridge".progress_so_far() RETURNS text LANGUAGE sql STABLE
BEGIN ATOMIC
	SELECT format('%s of about %s rows%s', sum(rows) FILTER (WHERE what <> ''), sum(rows) FILTER (WHERE what = ''),
		string_agg(format('; %s %s', rows, what), '' ORDER BY what) FILTER (WHERE what <> ''))
	  FROM :"bridge".progress;
END;

-- What a move would do now.
CREATE FUNCTION :"bridge".dry_run() RETURNS TABLE (what text, rows bigint) LANGUAGE plpgsql
SET search_path TO pg_catalog, :"bridge", pg_temp AS $$
BEGIN
	RETURN QUERY
	SELECT COALESCE(obstacle(r.request), CASE
			WHEN EXISTS (SELECT FROM idempotency.lookup((r.request).scope, (r.request).operation, (r.request).key)) THEN 'known already'
			WHEN (r.request).status = 'in_progress' THEN 'to be claimed for an old instance'
			ELSE 'to be moved' END) AS what, count(*)
	  FROM (SELECT q.request FROM requests AS q OFFSET 0) AS r GROUP BY 1 ORDER BY 1;
END $$;

-- Both sides in one snapshot. What expires within a minute is left out where the
-- other side does not have it: the two may not agree about the moment.
CREATE FUNCTION :"bridge".compare(OUT old_rows bigint, OUT keys bigint, OUT both_have bigint, OUT same_answer bigint) LANGUAGE plpgsql
SET search_path TO pg_catalog, :"bridge", pg_temp AS $$
DECLARE
	soon timestamptz := clock_timestamp() + interval '1 minute';
BEGIN
	SELECT count(o.key), count(k.key), count(*) FILTER (WHERE o.key IS NOT NULL AND k.key IS NOT NULL),
	       count(*) FILTER (WHERE o.key IS NOT NULL AND k.key IS NOT NULL AND comparable(o.response_status, o.response_body)
	                        IS NOT DISTINCT FROM comparable(k.response_status, k.response_body))
	  INTO old_rows, keys, both_have, same_answer
	  FROM (SELECT (r.request).* FROM (SELECT q.request FROM requests AS q OFFSET 0) AS r WHERE (r.request).status = 'completed') AS o
	  FULL JOIN (SELECT * FROM idempotency.idempotency_keys AS i WHERE i.status = 'completed' AND covers(i.scope, i.operation, i.key)) AS k
	    ON o.scope = k.scope AND o.operation = k.operation AND o.key = k.key
	 WHERE o.expires_at > soon OR k.expires_at > soon;
END $$;

-- ---- who may -----------------------------------------------------------------------

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA :"bridge" FROM PUBLIC;
GRANT USAGE ON SCHEMA :"bridge" TO PUBLIC;
GRANT EXECUTE ON FUNCTION :"bridge".bring TO PUBLIC;

\if :triggers
CREATE TRIGGER :"bridge" AFTER INSERT OR UPDATE OR DELETE ON :old_table FOR EACH ROW
	WHEN (current_setting('moving.side', true) IS DISTINCT FROM 'bridge')
	EXECUTE FUNCTION :"bridge".old_row_written();
CREATE TRIGGER :"bridge" AFTER INSERT OR UPDATE OR DELETE ON idempotency.idempotency_keys FOR EACH ROW
	WHEN (current_setting('moving.side', true) IS DISTINCT FROM 'bridge')
	EXECUTE FUNCTION :"bridge".key_written();
\endif
