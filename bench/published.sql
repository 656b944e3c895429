-- Tables and functions of the part "published".

-- The way of PL/pgSQL packages for databases where no library in C can be
-- installed: a call that starts, committed at once, the work, and a call that
-- records the answer. No owner, no lease, nothing that tells requests apart.
CREATE TABLE bench.tle_keys
(
	key			text PRIMARY KEY,
	resource	text,
	status		text NOT NULL DEFAULT 'started',
	response	jsonb,
	started_at	timestamptz NOT NULL DEFAULT now(),
	expires_at	timestamptz NOT NULL
);
CREATE INDEX tle_keys_expires_at_idx ON bench.tle_keys (expires_at);

CREATE FUNCTION bench.tle_start(p_key text, p_resource text, p_ttl interval) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
	found_row bench.tle_keys;
BEGIN
	INSERT INTO bench.tle_keys (key, resource, expires_at) VALUES (p_key, p_resource, now() + p_ttl)
		ON CONFLICT (key) DO NOTHING;
	IF FOUND THEN
		RETURN jsonb_build_object('status', 'started');
	END IF;
	SELECT * INTO found_row FROM bench.tle_keys AS k WHERE k.key = p_key;
	RETURN jsonb_build_object('status', found_row.status, 'response', found_row.response);
END
$$;

CREATE FUNCTION bench.tle_commit(p_key text, p_response jsonb) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	UPDATE bench.tle_keys AS k SET status = 'committed', response = p_response
		WHERE k.key = p_key AND k.status = 'started';
	IF NOT FOUND THEN
		RAISE EXCEPTION 'not started';
	END IF;
END
$$;

GRANT SELECT, INSERT, UPDATE ON bench.tle_keys TO application;
