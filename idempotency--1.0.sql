/* idempotency--1.0.sql: everything that CREATE EXTENSION idempotency creates */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION idempotency" to load this file. \quit

SET LOCAL search_path TO pg_catalog, pg_temp;

-- No IF NOT EXISTS: a schema that somebody else made must not be adopted.
CREATE SCHEMA idempotency;
COMMENT ON SCHEMA idempotency IS
	'Requests that are safe to repeat: claim, complete and replay idempotency keys';

------------------------------------------------------------------------------
-- Storage
------------------------------------------------------------------------------

-- Fencing tokens. A free-standing sequence with CACHE 1: pg_dump restores its
-- position, which it does not for the identity column of an extension's table.
CREATE SEQUENCE idempotency.token_seq AS pg_catalog.int8 CACHE 1 NO CYCLE;
COMMENT ON SEQUENCE idempotency.token_seq IS
	'Fencing tokens of claims with a lease: every later claim gets a larger one';

-- One row per key. Fixed-width columns first, so that no byte is lost to
-- alignment; what a key completed in one transaction does not need is NULL
-- and costs nothing. keys.c relies on this order.
CREATE TABLE idempotency.idempotency_keys
(
	created_at			pg_catalog.timestamptz NOT NULL,
	expires_at			pg_catalog.timestamptz NOT NULL,
	completed_at		pg_catalog.timestamptz,
	attempt				pg_catalog.int4 NOT NULL,
	response_status		pg_catalog.int4,
	token				pg_catalog.int8,
	claimed_at			pg_catalog.timestamptz,
	checkpointed_at		pg_catalog.timestamptz,
	locked_until		pg_catalog.timestamptz,
	response_expires_at	pg_catalog.timestamptz,
	redacted_at			pg_catalog.timestamptz,
	claim_id			pg_catalog.uuid,
	hold_if_abandoned	pg_catalog.bool,
	scope				pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
	operation			pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
	key					pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
	status				pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
	fingerprint			pg_catalog.bytea,
	recovery_point		pg_catalog.text,
	state				pg_catalog.jsonb,
	response_headers	pg_catalog.jsonb,
	response_body		pg_catalog.text,
	response_bytes		pg_catalog.bytea,
	last_error			pg_catalog.text,
	note				pg_catalog.text,
	CONSTRAINT idempotency_keys_pkey PRIMARY KEY (scope, operation, key),
	CONSTRAINT idempotency_keys_status_check CHECK
		(status OPERATOR(pg_catalog.=) ANY
		 (ARRAY['completed', 'in_progress', 'failed', 'held']::pg_catalog.text[]))
);

-- What clean-up walks along. Not partial, and without status: a completion in
-- place then changes no indexed column and can stay on its page (HOT).
CREATE INDEX idempotency_keys_expires_at_idx
	ON idempotency.idempotency_keys (expires_at);

COMMENT ON TABLE idempotency.idempotency_keys IS
	'One row per idempotency key. Written by the functions of this schema only; read it freely as an operator';
COMMENT ON COLUMN idempotency.idempotency_keys.created_at IS
	'When the key was first claimed in its present life';
COMMENT ON COLUMN idempotency.idempotency_keys.expires_at IS
	'From this moment on the key counts as absent (unless it is held or its lease is live), deleted or not';
COMMENT ON COLUMN idempotency.idempotency_keys.completed_at IS
	'When the response was recorded; NULL unless status is completed';
COMMENT ON COLUMN idempotency.idempotency_keys.attempt IS
	'Number of the present or last attempt, from 1';
COMMENT ON COLUMN idempotency.idempotency_keys.response_status IS
	'The recorded status, such as an HTTP status';
COMMENT ON COLUMN idempotency.idempotency_keys.token IS
	'Fencing token of the present or last claim; NULL while every claim was completed in its own transaction';
COMMENT ON COLUMN idempotency.idempotency_keys.claimed_at IS
	'When the present or last attempt was claimed; NULL where that is created_at';
COMMENT ON COLUMN idempotency.idempotency_keys.checkpointed_at IS
	'When recovery_point was last recorded; NULL if never';
COMMENT ON COLUMN idempotency.idempotency_keys.locked_until IS
	'In progress: the end of the lease. Failed: nobody may try again before';
COMMENT ON COLUMN idempotency.idempotency_keys.response_expires_at IS
	'When the response goes, if earlier than the key';
COMMENT ON COLUMN idempotency.idempotency_keys.redacted_at IS
	'When the response was removed while the key was kept; NULL if it was not';
COMMENT ON COLUMN idempotency.idempotency_keys.claim_id IS
	'Uuid that the claimer gave, by which a claim whose answer was lost is repeated';
COMMENT ON COLUMN idempotency.idempotency_keys.hold_if_abandoned IS
	'True: once the lease lapses the key counts as held; nobody takes it over';
COMMENT ON COLUMN idempotency.idempotency_keys.scope IS
	'Who asks: tenant, account or user';
COMMENT ON COLUMN idempotency.idempotency_keys.operation IS
	'What is asked: a route template or a name';
COMMENT ON COLUMN idempotency.idempotency_keys.key IS
	'Which request: what the client sent, an event id, a ticket number';
COMMENT ON COLUMN idempotency.idempotency_keys.status IS
	'completed, in_progress, failed or held';
COMMENT ON COLUMN idempotency.idempotency_keys.fingerprint IS
	'SHA-256 of the request, 32 bytes; NULL if none was given';
COMMENT ON COLUMN idempotency.idempotency_keys.recovery_point IS
	'The last step that the work has safely passed';
COMMENT ON COLUMN idempotency.idempotency_keys.state IS
	'What the work needs to go on from recovery_point';
COMMENT ON COLUMN idempotency.idempotency_keys.response_headers IS
	'The recorded headers: an object, or an array of [name, value] pairs';
COMMENT ON COLUMN idempotency.idempotency_keys.response_body IS
	'The recorded body, text kept as it was given';
COMMENT ON COLUMN idempotency.idempotency_keys.response_bytes IS
	'The recorded body where it is not text';
COMMENT ON COLUMN idempotency.idempotency_keys.last_error IS
	'What the last failed attempt reported, or why the key is held';
COMMENT ON COLUMN idempotency.idempotency_keys.note IS
	'A remark of the claimer, such as a trace id, or of the person who decided';
COMMENT ON CONSTRAINT idempotency_keys_pkey ON idempotency.idempotency_keys IS
	'The judge of every race: one row per identity';
COMMENT ON CONSTRAINT idempotency_keys_status_check ON idempotency.idempotency_keys IS
	'The four states of a key';
COMMENT ON INDEX idempotency.idempotency_keys_expires_at_idx IS
	'What clean-up walks along';

SELECT pg_catalog.pg_extension_config_dump('idempotency.token_seq', '');
SELECT pg_catalog.pg_extension_config_dump('idempotency.idempotency_keys', '');

------------------------------------------------------------------------------
-- Results. Columns are only ever appended.
------------------------------------------------------------------------------

CREATE TYPE idempotency.claim_result AS
(
	outcome				pg_catalog.text,
	token				pg_catalog.int8,
	attempt				pg_catalog.int4,
	taken_over			pg_catalog.bool,
	recovery_point		pg_catalog.text,
	state				pg_catalog.jsonb,
	last_error			pg_catalog.text,
	response_status		pg_catalog.int4,
	response_headers	pg_catalog.jsonb,
	response_body		pg_catalog.text,
	response_bytes		pg_catalog.bytea,
	fingerprint_checked	pg_catalog.bool,
	retry_after_ms		pg_catalog.int8,
	created_at			pg_catalog.timestamptz,
	completed_at		pg_catalog.timestamptz,
	expires_at			pg_catalog.timestamptz
);
COMMENT ON TYPE idempotency.claim_result IS
	'Answer of claim(): outcome is claimed, replay, in_progress, mismatch or held';
COMMENT ON COLUMN idempotency.claim_result.outcome IS
	'claimed: do the work; replay: done before; in_progress: somebody is at it; mismatch: key used for another request; held: a person decides';
COMMENT ON COLUMN idempotency.claim_result.token IS
	'claimed with a lease: fencing token to complete with';
COMMENT ON COLUMN idempotency.claim_result.attempt IS
	'Number of this attempt, or of the one that answers, from 1';
COMMENT ON COLUMN idempotency.claim_result.taken_over IS
	'claimed: an earlier owner vanished, and what it did outside is unknown';
COMMENT ON COLUMN idempotency.claim_result.recovery_point IS
	'claimed: the last step that an earlier attempt has safely passed';
COMMENT ON COLUMN idempotency.claim_result.state IS
	'claimed: what that attempt left to go on from there';
COMMENT ON COLUMN idempotency.claim_result.last_error IS
	'claimed: what the last failed attempt reported';
COMMENT ON COLUMN idempotency.claim_result.response_status IS
	'replay: the recorded status';
COMMENT ON COLUMN idempotency.claim_result.response_headers IS
	'replay: the recorded headers';
COMMENT ON COLUMN idempotency.claim_result.response_body IS
	'replay: the recorded body';
COMMENT ON COLUMN idempotency.claim_result.response_bytes IS
	'replay: the recorded body where it is not text';
COMMENT ON COLUMN idempotency.claim_result.fingerprint_checked IS
	'True if this request was compared with the first one; both gave a request or fingerprint';
COMMENT ON COLUMN idempotency.claim_result.retry_after_ms IS
	'in_progress: when it makes sense to ask again, in milliseconds';
COMMENT ON COLUMN idempotency.claim_result.created_at IS
	'When the key was first claimed';
COMMENT ON COLUMN idempotency.claim_result.completed_at IS
	'replay: when the response was recorded';
COMMENT ON COLUMN idempotency.claim_result.expires_at IS
	'Until when the key is remembered';

CREATE TYPE idempotency.replay_result AS
(
	response_status		pg_catalog.int4,
	response_headers	pg_catalog.jsonb,
	response_body		pg_catalog.text,
	response_bytes		pg_catalog.bytea,
	created_at			pg_catalog.timestamptz,
	completed_at		pg_catalog.timestamptz,
	expires_at			pg_catalog.timestamptz
);
COMMENT ON TYPE idempotency.replay_result IS
	'Answer of replay(): a recorded response';
COMMENT ON COLUMN idempotency.replay_result.response_status IS
	'The recorded status';
COMMENT ON COLUMN idempotency.replay_result.response_headers IS
	'The recorded headers';
COMMENT ON COLUMN idempotency.replay_result.response_body IS
	'The recorded body';
COMMENT ON COLUMN idempotency.replay_result.response_bytes IS
	'The recorded body where it is not text';
COMMENT ON COLUMN idempotency.replay_result.created_at IS
	'When the key was first claimed';
COMMENT ON COLUMN idempotency.replay_result.completed_at IS
	'When the response was recorded';
COMMENT ON COLUMN idempotency.replay_result.expires_at IS
	'Until when the key is remembered';

CREATE TYPE idempotency.lookup_result AS
(
	status				pg_catalog.text,
	token				pg_catalog.int8,
	attempt				pg_catalog.int4,
	claim_id			pg_catalog.uuid,
	abandoned			pg_catalog.bool,
	hold_if_abandoned	pg_catalog.bool,
	fingerprint			pg_catalog.bytea,
	recovery_point		pg_catalog.text,
	state				pg_catalog.jsonb,
	last_error			pg_catalog.text,
	note				pg_catalog.text,
	created_at			pg_catalog.timestamptz,
	claimed_at			pg_catalog.timestamptz,
	checkpointed_at		pg_catalog.timestamptz,
	locked_until		pg_catalog.timestamptz,
	completed_at		pg_catalog.timestamptz,
	expires_at			pg_catalog.timestamptz,
	response_expires_at	pg_catalog.timestamptz,
	redacted_at			pg_catalog.timestamptz
);
COMMENT ON TYPE idempotency.lookup_result IS
	'Answer of lookup(): everything about a key except the response';
COMMENT ON COLUMN idempotency.lookup_result.status IS
	'completed, in_progress, failed or held; an abandoned key with hold_if_abandoned counts as held';
COMMENT ON COLUMN idempotency.lookup_result.token IS
	'Fencing token of the present or last claim';
COMMENT ON COLUMN idempotency.lookup_result.attempt IS
	'Number of the present or last attempt, from 1';
COMMENT ON COLUMN idempotency.lookup_result.claim_id IS
	'Uuid that the claimer gave';
COMMENT ON COLUMN idempotency.lookup_result.abandoned IS
	'True if the claim was not finished and its lease has lapsed';
COMMENT ON COLUMN idempotency.lookup_result.hold_if_abandoned IS
	'True: once the lease lapses the key counts as held';
COMMENT ON COLUMN idempotency.lookup_result.fingerprint IS
	'SHA-256 of the request; NULL if none was given';
COMMENT ON COLUMN idempotency.lookup_result.recovery_point IS
	'The last step that the work has safely passed';
COMMENT ON COLUMN idempotency.lookup_result.state IS
	'What the work needs to go on from recovery_point';
COMMENT ON COLUMN idempotency.lookup_result.last_error IS
	'What the last failed attempt reported, or why the key is held';
COMMENT ON COLUMN idempotency.lookup_result.note IS
	'A remark of the claimer or of the person who decided';
COMMENT ON COLUMN idempotency.lookup_result.created_at IS
	'When the key was first claimed in its present life';
COMMENT ON COLUMN idempotency.lookup_result.claimed_at IS
	'When the present or last attempt was claimed';
COMMENT ON COLUMN idempotency.lookup_result.checkpointed_at IS
	'When recovery_point was last recorded';
COMMENT ON COLUMN idempotency.lookup_result.locked_until IS
	'In progress: the end of the lease. Failed: nobody may try again before';
COMMENT ON COLUMN idempotency.lookup_result.completed_at IS
	'When the response was recorded';
COMMENT ON COLUMN idempotency.lookup_result.expires_at IS
	'Until when the key is remembered';
COMMENT ON COLUMN idempotency.lookup_result.response_expires_at IS
	'When the response goes, if earlier than the key';
COMMENT ON COLUMN idempotency.lookup_result.redacted_at IS
	'When the response was removed while the key was kept';

------------------------------------------------------------------------------
-- Calls. No overloads, ever: each name has one signature.
------------------------------------------------------------------------------

CREATE FUNCTION idempotency.claim(
	scope pg_catalog.text,
	operation pg_catalog.text,
	key pg_catalog.text,
	request pg_catalog.jsonb DEFAULT NULL,
	fingerprint pg_catalog.bytea DEFAULT NULL,
	ttl pg_catalog.interval DEFAULT NULL,
	lease pg_catalog.interval DEFAULT NULL,
	wait pg_catalog.interval DEFAULT NULL,
	claim_id pg_catalog.uuid DEFAULT NULL,
	hold_if_abandoned pg_catalog.bool DEFAULT NULL,
	note pg_catalog.text DEFAULT NULL)
RETURNS idempotency.claim_result
AS 'MODULE_PATHNAME', 'idempotency_claim'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.claim IS
	'May I do this work? Read it by SELECT ... FROM idempotency.claim(...) and go on only if outcome is claimed. Without a lease, complete() before you commit';

CREATE FUNCTION idempotency.complete(
	scope pg_catalog.text,
	operation pg_catalog.text,
	key pg_catalog.text,
	response_status pg_catalog.int4 DEFAULT NULL,
	response_body pg_catalog.text DEFAULT NULL,
	response_headers pg_catalog.jsonb DEFAULT NULL,
	response_bytes pg_catalog.bytea DEFAULT NULL,
	token pg_catalog.int8 DEFAULT NULL,
	ttl pg_catalog.interval DEFAULT NULL)
RETURNS pg_catalog.timestamptz
AS 'MODULE_PATHNAME', 'idempotency_complete'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.complete IS
	'The work is done: records the response, once, and says until when it will be replayed';

CREATE FUNCTION idempotency.fail(
	scope pg_catalog.text,
	operation pg_catalog.text,
	key pg_catalog.text,
	error pg_catalog.text DEFAULT NULL,
	retry_in pg_catalog.interval DEFAULT NULL,
	token pg_catalog.int8 DEFAULT NULL)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_fail'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.fail IS
	'I know that nothing happened: the next claim gets the key, at once or after retry_in';

CREATE FUNCTION idempotency.release(
	scope pg_catalog.text,
	operation pg_catalog.text,
	key pg_catalog.text,
	token pg_catalog.int8 DEFAULT NULL)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_release'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.release IS
	'Undoes a claim as if it had not been made; refused after a checkpoint';

CREATE FUNCTION idempotency.extend(
	scope pg_catalog.text,
	operation pg_catalog.text,
	key pg_catalog.text,
	lease pg_catalog.interval DEFAULT NULL,
	token pg_catalog.int8 DEFAULT NULL)
RETURNS pg_catalog.timestamptz
AS 'MODULE_PATHNAME', 'idempotency_extend'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.extend IS
	'Heartbeat: renews the lease from now on and returns its new end';

CREATE FUNCTION idempotency.replay(
	scope pg_catalog.text,
	operation pg_catalog.text,
	key pg_catalog.text)
RETURNS SETOF idempotency.replay_result
AS 'MODULE_PATHNAME', 'idempotency_replay'
LANGUAGE C STABLE CALLED ON NULL INPUT PARALLEL RESTRICTED ROWS 1;
COMMENT ON FUNCTION idempotency.replay IS
	'The recorded response, if there is one. Read-only. No row is never a permission to do the work: only claim() gives that';

CREATE FUNCTION idempotency.lookup(
	scope pg_catalog.text,
	operation pg_catalog.text,
	key pg_catalog.text)
RETURNS SETOF idempotency.lookup_result
AS 'MODULE_PATHNAME', 'idempotency_lookup'
LANGUAGE C STABLE CALLED ON NULL INPUT PARALLEL RESTRICTED ROWS 1;
COMMENT ON FUNCTION idempotency.lookup IS
	'Everything about a key except its response. Read-only. No row is never a permission to do the work';

CREATE FUNCTION idempotency.forget(
	scope pg_catalog.text,
	operation pg_catalog.text,
	key pg_catalog.text,
	force pg_catalog.bool DEFAULT NULL)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_forget'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.forget IS
	'Deletes a key, so that the same request would be executed again; force for one that is in progress or held';

CREATE FUNCTION idempotency.forget_scope(
	scope pg_catalog.text,
	force pg_catalog.bool DEFAULT NULL)
RETURNS pg_catalog.int8
AS 'MODULE_PATHNAME', 'idempotency_forget_scope'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.forget_scope IS
	'Deletes all keys of a scope and says how many; those in progress or held only with force';

CREATE FUNCTION idempotency.fingerprint(
	request pg_catalog.jsonb)
RETURNS pg_catalog.bytea
AS 'MODULE_PATHNAME', 'idempotency_fingerprint'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION idempotency.fingerprint IS
	'SHA-256 of a request, equal exactly where jsonb = says equal: order of members and spelling of numbers do not matter';

CREATE FUNCTION idempotency.content_key(
	request pg_catalog.jsonb,
	period pg_catalog.interval DEFAULT NULL)
RETURNS pg_catalog.text
AS 'MODULE_PATHNAME', 'idempotency_content_key'
LANGUAGE C STABLE CALLED ON NULL INPUT PARALLEL SAFE;
COMMENT ON FUNCTION idempotency.content_key IS
	'A key derived from the content, for clients that send none; with a period, the same content in another period is another request';

CREATE FUNCTION idempotency.effect_key(
	scope pg_catalog.text,
	operation pg_catalog.text,
	key pg_catalog.text,
	step pg_catalog.text DEFAULT NULL)
RETURNS pg_catalog.text
AS 'MODULE_PATHNAME', 'idempotency_effect_key'
LANGUAGE C STABLE CALLED ON NULL INPUT PARALLEL SAFE;
COMMENT ON FUNCTION idempotency.effect_key IS
	'The idempotency key to hand to an outside party: the same for every attempt of this work, another for each step';

CREATE FUNCTION idempotency.cleanup(
	older_than pg_catalog.interval DEFAULT NULL,
	max_rows pg_catalog.int8 DEFAULT NULL)
RETURNS pg_catalog.int8
AS 'MODULE_PATHNAME', 'idempotency_cleanup'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.cleanup IS
	'Deletes keys that expired at least older_than ago, here and now, and says how many';

------------------------------------------------------------------------------
-- Privileges. Nobody gets anything by default; three calls hand it out.
------------------------------------------------------------------------------

CREATE FUNCTION idempotency.grant_usage(role pg_catalog.regrole)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_grant_usage'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.grant_usage IS
	'Lets a role make an application''s calls, and nothing more';

CREATE FUNCTION idempotency.grant_operator(role pg_catalog.regrole)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_grant_operator'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.grant_operator IS
	'Lets a role look at keys and decide about them: complete, forget, clean up';

CREATE FUNCTION idempotency.grant_monitor(role pg_catalog.regrole)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_grant_monitor'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.grant_monitor IS
	'Lets a role watch how the extension is doing, without seeing keys';

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA idempotency FROM PUBLIC;
REVOKE ALL ON ALL PROCEDURES IN SCHEMA idempotency FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA idempotency FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA idempotency FROM PUBLIC;
REVOKE ALL ON TYPE idempotency.claim_result, idempotency.replay_result,
	idempotency.lookup_result FROM PUBLIC;
REVOKE ALL ON SCHEMA idempotency FROM PUBLIC;
