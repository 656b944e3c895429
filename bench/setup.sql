-- What the measurements need besides the extension: the limit's table, and
-- the tables and functions of the peers, each as its users write it; and at the
-- end what the role that runs the scripts may do.

CREATE SCHEMA bench;
SET search_path = bench;

-- The limit: the extension's own row and indexes, written by a bare INSERT.
CREATE TABLE bare (LIKE idempotency.idempotency_keys INCLUDING ALL);

-- What its tokens come from, where it has any.
CREATE SEQUENCE token_seq CACHE 1;

-- The business row of the measurements "with work".
CREATE TABLE payments
(
	id		bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	account	text NOT NULL,
	amount	bigint NOT NULL
);

-- What a team writes by hand. One table for all peers; system A's columns and
-- a status, which those of B, C and D have.
CREATE TABLE peer_keys
(
	scope			text NOT NULL,
	key				text NOT NULL,
	operation		text NOT NULL,
	status			text NOT NULL DEFAULT 'in_progress',
	response_status	int,
	response_body	text,
	created_at		timestamptz NOT NULL DEFAULT now(),
	completed_at	timestamptz,
	expires_at		timestamptz NOT NULL DEFAULT now() + interval '24 hours',
	PRIMARY KEY (scope, operation, key)
);
CREATE INDEX peer_keys_expires_at_idx ON peer_keys (expires_at);

-- (c) claim and complete in PL/pgSQL, with an advisory lock.
CREATE FUNCTION peer_claim(p_scope text, p_operation text, p_key text,
						   OUT outcome text, OUT response_status int, OUT response_body text)
LANGUAGE plpgsql AS $$
DECLARE
	found_row bench.peer_keys;
BEGIN
	IF NOT pg_try_advisory_xact_lock(hashtextextended(p_scope || '/' || p_operation || '/' || p_key, 0)) THEN
		outcome := 'in_progress';
		RETURN;
	END IF;
	SELECT * INTO found_row FROM bench.peer_keys k
		WHERE k.scope = p_scope AND k.operation = p_operation AND k.key = p_key;
	IF FOUND AND found_row.expires_at > now() THEN
		IF found_row.status = 'completed' THEN
			outcome := 'replay';
			response_status := found_row.response_status;
			response_body := found_row.response_body;
		ELSE
			outcome := 'in_progress';
		END IF;
		RETURN;
	END IF;
	INSERT INTO bench.peer_keys (scope, operation, key) VALUES (p_scope, p_operation, p_key)
		ON CONFLICT (scope, operation, key) DO UPDATE
		SET status = 'in_progress', created_at = now(), completed_at = NULL,
			expires_at = now() + interval '24 hours';
	outcome := 'claimed';
END
$$;

CREATE FUNCTION peer_complete(p_scope text, p_operation text, p_key text, p_status int, p_body text)
RETURNS timestamptz
LANGUAGE plpgsql AS $$
DECLARE
	result timestamptz;
BEGIN
	UPDATE bench.peer_keys k
		SET status = 'completed', response_status = p_status, response_body = p_body, completed_at = now()
		WHERE k.scope = p_scope AND k.operation = p_operation AND k.key = p_key AND k.status = 'in_progress'
		RETURNING k.expires_at INTO result;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'not claimed';
	END IF;
	RETURN result;
END
$$;

-- An application's calls, and the tables above, which it would own or be granted.
SELECT idempotency.grant_usage('application');
GRANT USAGE ON SCHEMA bench TO application;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA bench TO application;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA bench TO application;
