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

-- The lower bits of fencing tokens; the upper ones are the second (keys.c). So
-- its position need not travel with a dump, which would set it back where the
-- database is in use.
CREATE SEQUENCE idempotency.token_seq AS pg_catalog.int8 CACHE 1 NO CYCLE;
COMMENT ON SEQUENCE idempotency.token_seq IS
	'Keeps the fencing tokens of one second apart';

-- What makes lock tags unguessable (locks.c). Each database has its own: not
-- dumped, and granted to nobody.
CREATE TABLE idempotency.lock_secret
(
	secret	pg_catalog.uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid()
) USING heap;
COMMENT ON TABLE idempotency.lock_secret IS
	'One row: the secret by which keys become advisory locks, so that pg_locks confirms no guess of a key';
COMMENT ON COLUMN idempotency.lock_secret.secret IS
	'Random; may be changed while nothing is running';
INSERT INTO idempotency.lock_secret DEFAULT VALUES;

-- One row per key. Fixed-width columns first, so that no byte is lost to
-- alignment; what a key completed in one transaction does not need is NULL
-- and costs nothing. table.c checks this order. No CHECK constraint: only
-- this library writes here, and the server would compile the expression anew for
-- every statement.
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
	lease_ms			pg_catalog.int8,
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
	CONSTRAINT idempotency_keys_pkey PRIMARY KEY (scope, operation, key)
)
USING heap
-- Dead rows come in bursts, by clean-up: small and frequent vacuums, not one of a
-- fifth of all keys.
WITH (autovacuum_vacuum_threshold=1000, autovacuum_vacuum_scale_factor=0.02,
	autovacuum_vacuum_cost_delay=1, autovacuum_analyze_scale_factor=0.05);

-- What clean-up walks along. A renewal of a lease changes no indexed column,
-- so it can stay on its page (HOT).
CREATE INDEX idempotency_keys_expires_at_idx
	ON idempotency.idempotency_keys (expires_at);

-- Claims that nobody finished have to be found quickly among millions of
-- completed ones. A key that is completed in its own transaction never enters
-- this index. One that was claimed with a lease leaves it on completion, so
-- that update is not HOT; looking for the abandoned in the whole table would
-- cost more.
CREATE INDEX idempotency_keys_unfinished_idx
	ON idempotency.idempotency_keys (operation)
	WHERE status OPERATOR(pg_catalog.=) ANY
		(ARRAY['in_progress', 'held']::pg_catalog.text[]);
COMMENT ON INDEX idempotency.idempotency_keys_unfinished_idx IS
	'Claims in progress and held keys, for claim_abandoned(), the view abandoned and health()';

-- Responses that go earlier than their keys.
CREATE INDEX idempotency_keys_response_expires_at_idx
	ON idempotency.idempotency_keys (response_expires_at)
	WHERE response_expires_at IS NOT NULL;
COMMENT ON INDEX idempotency.idempotency_keys_response_expires_at_idx IS
	'What clean-up walks along to remove responses before their keys';

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
COMMENT ON COLUMN idempotency.idempotency_keys.lease_ms IS
	'In progress: the length of the lease, by which it is renewed; NULL otherwise';
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
COMMENT ON INDEX idempotency.idempotency_keys_expires_at_idx IS
	'What clean-up walks along';

SELECT pg_catalog.pg_extension_config_dump('idempotency.idempotency_keys', '');

-- Lifetimes and rules per operation. Intervals, so that it reads well; they
-- are stored as a fixed number of hours, minutes and seconds.
CREATE TABLE idempotency.policies
(
	operation			pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
	ttl					pg_catalog.interval,
	failed_ttl			pg_catalog.interval,
	response_ttl		pg_catalog.interval,
	lease				pg_catalog.interval,
	hold_if_abandoned	pg_catalog.bool,
	max_attempts		pg_catalog.int4,
	CONSTRAINT policies_pkey PRIMARY KEY (operation),
	CONSTRAINT policies_ttl_check CHECK (ttl OPERATOR(pg_catalog.>) '0'::pg_catalog.interval),
	CONSTRAINT policies_failed_ttl_check CHECK (failed_ttl OPERATOR(pg_catalog.>) '0'::pg_catalog.interval),
	CONSTRAINT policies_response_ttl_check CHECK (response_ttl OPERATOR(pg_catalog.>) '0'::pg_catalog.interval),
	CONSTRAINT policies_lease_check CHECK (lease OPERATOR(pg_catalog.>) '0'::pg_catalog.interval),
	CONSTRAINT policies_max_attempts_check CHECK (max_attempts OPERATOR(pg_catalog.>) 0)
) USING heap;
COMMENT ON TABLE idempotency.policies IS
	'Lifetimes and rules per operation; written by set_policy() and drop_policy(). NULL means the setting';
COMMENT ON COLUMN idempotency.policies.operation IS
	'The operation that the policy is for';
COMMENT ON COLUMN idempotency.policies.ttl IS
	'How long a key is remembered, counted from the claim';
COMMENT ON COLUMN idempotency.policies.failed_ttl IS
	'How long a failed key is remembered';
COMMENT ON COLUMN idempotency.policies.response_ttl IS
	'How long a response is kept, if less long than its key';
COMMENT ON COLUMN idempotency.policies.lease IS
	'Length of the lease that extend() and checkpoint() renew without being told a length';
COMMENT ON COLUMN idempotency.policies.hold_if_abandoned IS
	'True: a claim with a lease that lapses is held for a person to decide';
COMMENT ON COLUMN idempotency.policies.max_attempts IS
	'After so many attempts the key is held';
COMMENT ON CONSTRAINT policies_pkey ON idempotency.policies IS
	'One policy per operation';
COMMENT ON CONSTRAINT policies_ttl_check ON idempotency.policies IS
	'A key is remembered for some time';
COMMENT ON CONSTRAINT policies_failed_ttl_check ON idempotency.policies IS
	'A failed key is remembered for some time';
COMMENT ON CONSTRAINT policies_response_ttl_check ON idempotency.policies IS
	'A response is kept for some time';
COMMENT ON CONSTRAINT policies_lease_check ON idempotency.policies IS
	'A lease lasts for some time';
COMMENT ON CONSTRAINT policies_max_attempts_check ON idempotency.policies IS
	'There is a first attempt';

-- Which scopes a role may use.
CREATE TABLE idempotency.role_bindings
(
	role			pg_catalog.regrole NOT NULL,
	scope_pattern	pg_catalog.text COLLATE pg_catalog."C" NOT NULL,
	CONSTRAINT role_bindings_pkey PRIMARY KEY (role, scope_pattern)
) USING heap;
COMMENT ON TABLE idempotency.role_bindings IS
	'Roles that may only use scopes that match one of their patterns; written by bind_role() and unbind_role()';
COMMENT ON COLUMN idempotency.role_bindings.role IS
	'The role; who has its privileges is bound with it';
COMMENT ON COLUMN idempotency.role_bindings.scope_pattern IS
	'Pattern as for LIKE';
COMMENT ON CONSTRAINT role_bindings_pkey ON idempotency.role_bindings IS
	'Each pattern once per role';

-- What each clean-up did. Bounded: a run removes what is older than the last
-- thousand. Not dumped; it is this server''s own history.
CREATE TABLE idempotency.cleanup_runs
(
	id			pg_catalog.int8 GENERATED ALWAYS AS IDENTITY,
	started_at	pg_catalog.timestamptz NOT NULL,
	finished_at	pg_catalog.timestamptz NOT NULL,
	started_by	pg_catalog.text NOT NULL,
	deleted		pg_catalog.int8 NOT NULL,
	redacted	pg_catalog.int8 NOT NULL,
	batches		pg_catalog.int4 NOT NULL,
	sqlstate	pg_catalog.text,
	error		pg_catalog.text,
	CONSTRAINT cleanup_runs_pkey PRIMARY KEY (id)
) USING heap;
COMMENT ON TABLE idempotency.cleanup_runs IS
	'What the last thousand clean-ups of this database did';
COMMENT ON COLUMN idempotency.cleanup_runs.id IS
	'Number of the run';
COMMENT ON COLUMN idempotency.cleanup_runs.started_at IS
	'When it began';
COMMENT ON COLUMN idempotency.cleanup_runs.finished_at IS
	'When it ended';
COMMENT ON COLUMN idempotency.cleanup_runs.started_by IS
	'worker: the background worker; maintain: a CALL, such as pg_cron''s';
COMMENT ON COLUMN idempotency.cleanup_runs.deleted IS
	'Keys that were deleted';
COMMENT ON COLUMN idempotency.cleanup_runs.redacted IS
	'Responses that were removed before their keys';
COMMENT ON COLUMN idempotency.cleanup_runs.batches IS
	'Transactions that it took';
COMMENT ON COLUMN idempotency.cleanup_runs.sqlstate IS
	'SQLSTATE of the error that ended it; NULL if it came to its end';
COMMENT ON COLUMN idempotency.cleanup_runs.error IS
	'Message of that error';
COMMENT ON CONSTRAINT cleanup_runs_pkey ON idempotency.cleanup_runs IS
	'Number of the run';
COMMENT ON SEQUENCE idempotency.cleanup_runs_id_seq IS
	'Numbers of the runs';

SELECT pg_catalog.pg_extension_config_dump('idempotency.policies', '');
SELECT pg_catalog.pg_extension_config_dump('idempotency.role_bindings', '');

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
	expires_at			pg_catalog.timestamptz,
	locked_until		pg_catalog.timestamptz,
	rival				pg_catalog.text
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
	'claimed: what the work needs to go on from there, or what was recorded with the first claim';
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
	'in_progress: when it makes sense to ask again, in milliseconds; a hint, no longer than max_retry_after where a lease is in the way';
COMMENT ON COLUMN idempotency.claim_result.created_at IS
	'When the key was first claimed; NULL where nothing is committed';
COMMENT ON COLUMN idempotency.claim_result.completed_at IS
	'replay: when the response was recorded';
COMMENT ON COLUMN idempotency.claim_result.expires_at IS
	'Until when the key is remembered';
COMMENT ON COLUMN idempotency.claim_result.locked_until IS
	'claimed with a lease: its end. in_progress: the end of the rival''s lease, or of retry_in';
COMMENT ON COLUMN idempotency.claim_result.rival IS
	'in_progress: what stands in the way. transaction: one that may still roll back; lease: a committed claim; retry: nobody, a failed key before its retry_in';

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
	redacted_at			pg_catalog.timestamptz,
	response_status		pg_catalog.int4,
	response_headers	pg_catalog.jsonb,
	response_body		pg_catalog.text,
	response_bytes		pg_catalog.bytea
);
COMMENT ON TYPE idempotency.lookup_result IS
	'Answer of lookup(): everything about a key';
COMMENT ON COLUMN idempotency.lookup_result.status IS
	'completed, in_progress, failed or held; an abandoned key with hold_if_abandoned counts as held';
COMMENT ON COLUMN idempotency.lookup_result.token IS
	'Fencing token of the present or last claim; shown to operators only, who may read the table';
COMMENT ON COLUMN idempotency.lookup_result.attempt IS
	'Number of the present or last attempt, from 1';
COMMENT ON COLUMN idempotency.lookup_result.claim_id IS
	'Uuid that the claimer gave; shown to operators only';
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
COMMENT ON COLUMN idempotency.lookup_result.response_status IS
	'The recorded status';
COMMENT ON COLUMN idempotency.lookup_result.response_headers IS
	'The recorded headers; NULL once the response was removed';
COMMENT ON COLUMN idempotency.lookup_result.response_body IS
	'The recorded body; NULL once the response was removed';
COMMENT ON COLUMN idempotency.lookup_result.response_bytes IS
	'The recorded body where it is not text; NULL once the response was removed';

------------------------------------------------------------------------------
-- Calls. No overloads, ever: each name has one signature.
------------------------------------------------------------------------------

CREATE FUNCTION idempotency.call_support(request pg_catalog.internal)
RETURNS pg_catalog.internal
AS 'MODULE_PATHNAME', 'idempotency_call_support'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION idempotency.call_support IS
	'For the planner: leaves the options that a call does not give out of its plan';

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
	note pg_catalog.text DEFAULT NULL,
	state pg_catalog.jsonb DEFAULT NULL,
	wait_for pg_catalog.text DEFAULT NULL)
RETURNS idempotency.claim_result
AS 'MODULE_PATHNAME', 'idempotency_claim'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
SUPPORT idempotency.call_support;
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
	ttl pg_catalog.interval DEFAULT NULL,
	token pg_catalog.int8 DEFAULT NULL,
	refuse_repeat pg_catalog.bool DEFAULT NULL)
RETURNS pg_catalog.timestamptz
AS 'MODULE_PATHNAME', 'idempotency_complete'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
SUPPORT idempotency.call_support;
COMMENT ON FUNCTION idempotency.complete IS
	'The work is done: records the response, once, and says until when it will be replayed. The very same completion again changes nothing, or is an error with refuse_repeat: say so wherever rows are written beside it';

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

CREATE FUNCTION idempotency.record_failure(
	scope pg_catalog.text,
	operation pg_catalog.text,
	key pg_catalog.text,
	error pg_catalog.text DEFAULT NULL,
	retry_in pg_catalog.interval DEFAULT NULL,
	request pg_catalog.jsonb DEFAULT NULL,
	fingerprint pg_catalog.bytea DEFAULT NULL)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_record_failure'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.record_failure IS
	'claim() and fail() in one call, after the transaction that claimed was rolled back; false if somebody else has the key by now';

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
	'Heartbeat: renews the lease from now on, by its own length if none is given, and returns its new end';

CREATE FUNCTION idempotency.replay(
	scope pg_catalog.text,
	operation pg_catalog.text,
	key pg_catalog.text)
RETURNS SETOF idempotency.replay_result
AS 'MODULE_PATHNAME', 'idempotency_replay'
LANGUAGE C STABLE CALLED ON NULL INPUT PARALLEL UNSAFE ROWS 1;
COMMENT ON FUNCTION idempotency.replay IS
	'The recorded response, if there is one. Read-only. No row is never a permission to do the work: only claim() gives that';

CREATE FUNCTION idempotency.lookup(
	scope pg_catalog.text,
	operation pg_catalog.text,
	key pg_catalog.text)
RETURNS SETOF idempotency.lookup_result
AS 'MODULE_PATHNAME', 'idempotency_lookup'
LANGUAGE C STABLE CALLED ON NULL INPUT PARALLEL UNSAFE ROWS 1;
COMMENT ON FUNCTION idempotency.lookup IS
	'Everything about a key, with its response where that is still there. Read-only. No row is never a permission to do the work';

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

CREATE FUNCTION idempotency.fingerprint_bytes(
	request pg_catalog.bytea)
RETURNS pg_catalog.bytea
AS 'MODULE_PATHNAME', 'idempotency_fingerprint_bytes'
LANGUAGE C STABLE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.fingerprint_bytes IS
	'The same of a request as it came over the wire: that of the JSON where it is JSON that jsonb takes, of the bytes otherwise';

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

CREATE FUNCTION idempotency.checkpoint(
	scope pg_catalog.text,
	operation pg_catalog.text,
	key pg_catalog.text,
	recovery_point pg_catalog.text,
	state pg_catalog.jsonb DEFAULT NULL,
	lease pg_catalog.interval DEFAULT NULL,
	token pg_catalog.int8 DEFAULT NULL)
RETURNS pg_catalog.timestamptz
AS 'MODULE_PATHNAME', 'idempotency_checkpoint'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.checkpoint IS
	'Records how far the work got, for whoever takes over, and renews the lease';

CREATE FUNCTION idempotency.hold(
	scope pg_catalog.text,
	operation pg_catalog.text,
	key pg_catalog.text,
	reason pg_catalog.text DEFAULT NULL,
	token pg_catalog.int8 DEFAULT NULL)
RETURNS pg_catalog.int8
AS 'MODULE_PATHNAME', 'idempotency_hold'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.hold IS
	'The outcome is unknown: nobody gets the key until its owner completes it or a person decides. Returns the token by which either does';

CREATE FUNCTION idempotency.resolve(
	scope pg_catalog.text,
	operation pg_catalog.text,
	key pg_catalog.text,
	decision pg_catalog.text,
	note pg_catalog.text DEFAULT NULL)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_resolve'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.resolve IS
	'A person decides about a held or abandoned key: retry or forget. A known result is recorded by complete() with the token that lookup() shows';

CREATE FUNCTION idempotency.once(
	scope pg_catalog.text,
	operation pg_catalog.text,
	key pg_catalog.text,
	ttl pg_catalog.interval DEFAULT NULL,
	wait pg_catalog.interval DEFAULT NULL)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_once'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
SUPPORT idempotency.call_support;
COMMENT ON FUNCTION idempotency.once IS
	'For consumers of events, inside their own transaction: true the first time, false ever after';

CREATE FUNCTION idempotency.once_batch(
	scope pg_catalog.text,
	operation pg_catalog.text,
	keys pg_catalog.text[],
	ttl pg_catalog.interval DEFAULT NULL,
	skip_undecided pg_catalog.bool DEFAULT NULL,
	OUT key pg_catalog.text,
	OUT first pg_catalog.bool)
RETURNS SETOF pg_catalog.record
AS 'MODULE_PATHNAME', 'idempotency_once_batch'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE ROWS 1000;
COMMENT ON FUNCTION idempotency.once_batch IS
	'once() for many keys in one statement, in the order given. With skip_undecided, first is NULL for a key that a claim holds up, instead of an error for all';

CREATE FUNCTION idempotency.run(
	scope pg_catalog.text,
	operation pg_catalog.text,
	key pg_catalog.text,
	command pg_catalog.text,
	args pg_catalog.jsonb DEFAULT NULL,
	request pg_catalog.jsonb DEFAULT NULL,
	ttl pg_catalog.interval DEFAULT NULL,
	wait pg_catalog.interval DEFAULT NULL,
	response_status pg_catalog.int4 DEFAULT NULL,
	response_headers pg_catalog.jsonb DEFAULT NULL,
	fingerprint pg_catalog.bytea DEFAULT NULL)
RETURNS idempotency.claim_result
AS 'MODULE_PATHNAME', 'idempotency_run'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE
SUPPORT idempotency.call_support;
COMMENT ON FUNCTION idempotency.run IS
	'Claims the key, executes the command as the caller, with args as $1, and records its result with that status and those headers, in one call; a repeat replays';

CREATE FUNCTION idempotency.claim_abandoned(
	operation pg_catalog.text DEFAULT NULL,
	lease pg_catalog.interval DEFAULT NULL,
	max_rows pg_catalog.int4 DEFAULT NULL,
	OUT scope pg_catalog.text,
	OUT operation pg_catalog.text,
	OUT key pg_catalog.text,
	OUT token pg_catalog.int8,
	OUT attempt pg_catalog.int4,
	OUT recovery_point pg_catalog.text,
	OUT state pg_catalog.jsonb,
	OUT note pg_catalog.text,
	OUT last_error pg_catalog.text,
	OUT created_at pg_catalog.timestamptz,
	OUT locked_until pg_catalog.timestamptz)
RETURNS SETOF pg_catalog.record
AS 'MODULE_PATHNAME', 'idempotency_claim_abandoned'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE ROWS 100;
COMMENT ON FUNCTION idempotency.claim_abandoned IS
	'Takes over claims whose owners are gone, so that their work is driven to its end';

CREATE FUNCTION idempotency.redact(
	scope pg_catalog.text,
	operation pg_catalog.text,
	key pg_catalog.text)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_redact'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.redact IS
	'Removes response, state and error of a finished key and keeps the rest: a repeat is still recognised';

CREATE FUNCTION idempotency.redact_scope(
	scope pg_catalog.text)
RETURNS pg_catalog.int8
AS 'MODULE_PATHNAME', 'idempotency_redact_scope'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.redact_scope IS
	'The same for all finished keys of a scope; says how many';

CREATE FUNCTION idempotency.forget_scope_on_delete()
RETURNS pg_catalog.trigger
AS 'MODULE_PATHNAME', 'idempotency_forget_scope_on_delete'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.forget_scope_on_delete IS
	'AFTER DELETE trigger for a table of tenants: their keys go with them. Its argument names the column that is the scope';

CREATE FUNCTION idempotency.import_completed(
	scope pg_catalog.text,
	operation pg_catalog.text,
	key pg_catalog.text,
	response_status pg_catalog.int4 DEFAULT NULL,
	response_body pg_catalog.text DEFAULT NULL,
	response_headers pg_catalog.jsonb DEFAULT NULL,
	response_bytes pg_catalog.bytea DEFAULT NULL,
	created_at pg_catalog.timestamptz DEFAULT NULL,
	completed_at pg_catalog.timestamptz DEFAULT NULL,
	expires_at pg_catalog.timestamptz DEFAULT NULL,
	request pg_catalog.jsonb DEFAULT NULL,
	fingerprint pg_catalog.bytea DEFAULT NULL)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_import_completed'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.import_completed IS
	'Puts in a key that was completed elsewhere, for moving over from a home-grown table; false if it is known here or has expired';

CREATE FUNCTION idempotency.export_scopes(
	scopes pg_catalog.text[] DEFAULT NULL,
	minimum pg_catalog.int4 DEFAULT NULL,
	maximum pg_catalog.int4 DEFAULT NULL)
RETURNS SETOF idempotency.idempotency_keys
AS 'MODULE_PATHNAME', 'idempotency_export_scopes'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE ROWS 1000;
COMMENT ON FUNCTION idempotency.export_scopes IS
	'Keys of scopes that move to another node, by name or by the range of their hashes; until the transaction ends nobody else decides about them';

CREATE FUNCTION idempotency.import_key(
	exported idempotency.idempotency_keys)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_import_key'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.import_key IS
	'Puts in a key that export_scopes() has returned on another node, with its token and its lease; false if it has expired, or is here already and as far';

CREATE FUNCTION idempotency.forget_exported(
	scopes pg_catalog.text[] DEFAULT NULL,
	minimum pg_catalog.int4 DEFAULT NULL,
	maximum pg_catalog.int4 DEFAULT NULL)
RETURNS pg_catalog.int8
AS 'MODULE_PATHNAME', 'idempotency_forget_exported'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.forget_exported IS
	'Deletes the keys that scopes have left behind on this node after their move, and says how many; refused for a scope that is at home here';

CREATE FUNCTION idempotency.cleanup(
	older_than pg_catalog.interval DEFAULT NULL,
	max_rows pg_catalog.int8 DEFAULT NULL,
	scope pg_catalog.text DEFAULT NULL,
	operation pg_catalog.text DEFAULT NULL)
RETURNS pg_catalog.int8
AS 'MODULE_PATHNAME', 'idempotency_cleanup'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.cleanup IS
	'Deletes keys that expired at least older_than ago, of one scope or operation or of all, here and now, and says how many';

------------------------------------------------------------------------------
-- Rules per operation and role
------------------------------------------------------------------------------

CREATE FUNCTION idempotency.config_changed()
RETURNS pg_catalog.trigger
AS 'MODULE_PATHNAME', 'idempotency_config_changed'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.config_changed IS
	'Tells every connection that policies or role_bindings have changed';

-- ALWAYS: logical replication applies rows in a session that skips others.
-- For each row: it fires no statement triggers, but for TRUNCATE.
CREATE TRIGGER config_changed
	AFTER INSERT OR UPDATE OR DELETE ON idempotency.policies
	FOR EACH ROW EXECUTE FUNCTION idempotency.config_changed();
ALTER TABLE idempotency.policies ENABLE ALWAYS TRIGGER config_changed;
COMMENT ON TRIGGER config_changed ON idempotency.policies IS
	'Tells every connection that the table has changed';
CREATE TRIGGER config_emptied
	AFTER TRUNCATE ON idempotency.policies
	FOR EACH STATEMENT EXECUTE FUNCTION idempotency.config_changed();
ALTER TABLE idempotency.policies ENABLE ALWAYS TRIGGER config_emptied;
COMMENT ON TRIGGER config_emptied ON idempotency.policies IS
	'Tells every connection that the table was emptied';

-- ALWAYS: logical replication applies rows in a session that skips others.
-- For each row: it fires no statement triggers, but for TRUNCATE.
CREATE TRIGGER config_changed
	AFTER INSERT OR UPDATE OR DELETE ON idempotency.role_bindings
	FOR EACH ROW EXECUTE FUNCTION idempotency.config_changed();
ALTER TABLE idempotency.role_bindings ENABLE ALWAYS TRIGGER config_changed;
COMMENT ON TRIGGER config_changed ON idempotency.role_bindings IS
	'Tells every connection that the table has changed';
CREATE TRIGGER config_emptied
	AFTER TRUNCATE ON idempotency.role_bindings
	FOR EACH STATEMENT EXECUTE FUNCTION idempotency.config_changed();
ALTER TABLE idempotency.role_bindings ENABLE ALWAYS TRIGGER config_emptied;
COMMENT ON TRIGGER config_emptied ON idempotency.role_bindings IS
	'Tells every connection that the table was emptied';

CREATE TRIGGER config_changed
	AFTER INSERT OR UPDATE OR DELETE ON idempotency.lock_secret
	FOR EACH ROW EXECUTE FUNCTION idempotency.config_changed();
ALTER TABLE idempotency.lock_secret ENABLE ALWAYS TRIGGER config_changed;
COMMENT ON TRIGGER config_changed ON idempotency.lock_secret IS
	'Tells every connection that the table has changed';
CREATE TRIGGER config_emptied
	AFTER TRUNCATE ON idempotency.lock_secret
	FOR EACH STATEMENT EXECUTE FUNCTION idempotency.config_changed();
ALTER TABLE idempotency.lock_secret ENABLE ALWAYS TRIGGER config_emptied;
COMMENT ON TRIGGER config_emptied ON idempotency.lock_secret IS
	'Tells every connection that the table was emptied';

CREATE FUNCTION idempotency.set_policy(
	operation pg_catalog.text,
	ttl pg_catalog.interval DEFAULT NULL,
	failed_ttl pg_catalog.interval DEFAULT NULL,
	response_ttl pg_catalog.interval DEFAULT NULL,
	lease pg_catalog.interval DEFAULT NULL,
	hold_if_abandoned pg_catalog.bool DEFAULT NULL,
	max_attempts pg_catalog.int4 DEFAULT NULL)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_set_policy'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.set_policy IS
	'Sets lifetimes and rules for an operation, replacing its whole policy; what is left out means the setting';

CREATE FUNCTION idempotency.drop_policy(
	operation pg_catalog.text)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_drop_policy'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.drop_policy IS
	'Removes the policy of an operation; true if there was one';

CREATE FUNCTION idempotency.bind_role(
	role pg_catalog.regrole,
	scope_pattern pg_catalog.text)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_bind_role'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.bind_role IS
	'From now on the role can only use scopes that match the pattern, or another that it is bound to';

CREATE FUNCTION idempotency.unbind_role(
	role pg_catalog.regrole,
	scope_pattern pg_catalog.text DEFAULT NULL)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_unbind_role'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.unbind_role IS
	'Removes one binding of a role, or all; true if there was any';

------------------------------------------------------------------------------
-- Maintenance, and seeing it work
------------------------------------------------------------------------------

CREATE PROCEDURE idempotency.maintain()
AS 'MODULE_PATHNAME', 'idempotency_maintain'
LANGUAGE C;
COMMENT ON PROCEDURE idempotency.maintain IS
	'Deletes expired keys and responses, committing each batch; what the background worker does';

CREATE FUNCTION idempotency.request_cleanup()
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_request_cleanup'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.request_cleanup IS
	'Asks the background worker to clean up all databases now; false if it is not running';

CREATE FUNCTION idempotency.schedule_cleanup(
	schedule pg_catalog.text DEFAULT NULL)
RETURNS pg_catalog.int8
AS 'MODULE_PATHNAME', 'idempotency_schedule_cleanup'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.schedule_cleanup IS
	'Has pg_cron call maintain(), hourly or by another cron schedule, as job idempotency-cleanup; returns its number';

CREATE FUNCTION idempotency.unschedule_cleanup()
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_unschedule_cleanup'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.unschedule_cleanup IS
	'Removes the job of schedule_cleanup(); true if there was one';

CREATE FUNCTION idempotency.stats_data(
	OUT database_id pg_catalog.oid,
	OUT database pg_catalog.text,
	OUT claims pg_catalog.int8,
	OUT replays pg_catalog.int8,
	OUT conflicts pg_catalog.int8,
	OUT mismatches pg_catalog.int8,
	OUT takeovers pg_catalog.int8,
	OUT completions pg_catalog.int8,
	OUT failures pg_catalog.int8,
	OUT deleted pg_catalog.int8,
	OUT last_cleanup pg_catalog.timestamptz,
	OUT last_cleanup_deleted pg_catalog.int8)
RETURNS SETOF pg_catalog.record
AS 'MODULE_PATHNAME', 'idempotency_stats_data'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL RESTRICTED ROWS 10;
COMMENT ON FUNCTION idempotency.stats_data IS
	'Counters of every database of this server; see the view stats';

CREATE FUNCTION idempotency.stats_reset()
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_stats_reset'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.stats_reset IS
	'Sets the counters of this database to zero';

CREATE FUNCTION idempotency.health(
	OUT check_name pg_catalog.text,
	OUT status pg_catalog.text,
	OUT value pg_catalog.int8,
	OUT threshold pg_catalog.int8,
	OUT detail pg_catalog.text)
RETURNS SETOF pg_catalog.record
AS 'MODULE_PATHNAME', 'idempotency_health'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE ROWS 10;
COMMENT ON FUNCTION idempotency.health IS
	'Is everything as it should be? One row per check, ok, warn or critical; thresholds are the settings idempotency.warn_*';

CREATE FUNCTION idempotency.default_policy(
	OUT ttl_seconds pg_catalog.float8,
	OUT failed_ttl_seconds pg_catalog.float8,
	OUT lease_seconds pg_catalog.float8)
RETURNS pg_catalog.record
AS 'MODULE_PATHNAME', 'idempotency_default_policy'
LANGUAGE C STABLE CALLED ON NULL INPUT PARALLEL RESTRICTED;
COMMENT ON FUNCTION idempotency.default_policy IS
	'What holds for an operation without a policy; see the view effective_policies';

CREATE FUNCTION idempotency.key_standing(
	status pg_catalog.text, expires_at pg_catalog.timestamptz,
	locked_until pg_catalog.timestamptz, hold_if_abandoned pg_catalog.bool,
	at pg_catalog.timestamptz)
RETURNS pg_catalog.text
AS 'MODULE_PATHNAME', 'idempotency_key_standing'
LANGUAGE C IMMUTABLE CALLED ON NULL INPUT PARALLEL SAFE;
COMMENT ON FUNCTION idempotency.key_standing IS
	'How a key with these columns stands at a moment: expired, completed, leased, abandoned, held, waiting or failed';

CREATE VIEW idempotency.stats AS
SELECT d.database_id, d.database, d.claims, d.replays, d.conflicts, d.mismatches,
	d.takeovers, d.completions, d.failures, d.deleted,
	CASE WHEN d.claims OPERATOR(pg_catalog.+) d.replays OPERATOR(pg_catalog.>) 0
		THEN pg_catalog.round((100.0 OPERATOR(pg_catalog.*) d.replays)
			OPERATOR(pg_catalog./) (d.claims OPERATOR(pg_catalog.+) d.replays), 2)::pg_catalog.float8
	END AS hit_rate_percent,
	d.last_cleanup, d.last_cleanup_deleted
FROM idempotency.stats_data() AS d;
COMMENT ON VIEW idempotency.stats IS
	'Counters of every database since the server started or stats_reset(); they count answers, not commits';
COMMENT ON COLUMN idempotency.stats.database_id IS
	'Its OID';
COMMENT ON COLUMN idempotency.stats.database IS
	'Its name';
COMMENT ON COLUMN idempotency.stats.claims IS
	'Answers claimed, and first times of once()';
COMMENT ON COLUMN idempotency.stats.replays IS
	'Answers replay: duplicates that were found';
COMMENT ON COLUMN idempotency.stats.conflicts IS
	'Answers in_progress and held';
COMMENT ON COLUMN idempotency.stats.mismatches IS
	'Answers mismatch: keys used for another request';
COMMENT ON COLUMN idempotency.stats.takeovers IS
	'Claims that were taken over from an owner who vanished';
COMMENT ON COLUMN idempotency.stats.completions IS
	'Responses recorded';
COMMENT ON COLUMN idempotency.stats.failures IS
	'Failures reported by fail()';
COMMENT ON COLUMN idempotency.stats.deleted IS
	'Expired keys deleted';
COMMENT ON COLUMN idempotency.stats.hit_rate_percent IS
	'Replays among claims and replays, in percent';
COMMENT ON COLUMN idempotency.stats.last_cleanup IS
	'When clean-up last ended there';
COMMENT ON COLUMN idempotency.stats.last_cleanup_deleted IS
	'How many keys it deleted';

CREATE VIEW idempotency.keys_by_operation AS
SELECT k.operation, k.status, pg_catalog.count(*) AS keys,
	pg_catalog.count(*) FILTER (WHERE idempotency.key_standing(k.status, k.expires_at,
		k.locked_until, k.hold_if_abandoned, pg_catalog.statement_timestamp())
		OPERATOR(pg_catalog.=) 'expired'::pg_catalog.text) AS expired,
	pg_catalog.min(k.created_at) AS oldest,
	pg_catalog.max(k.created_at) AS newest
FROM idempotency.idempotency_keys AS k
GROUP BY k.operation, k.status;
COMMENT ON VIEW idempotency.keys_by_operation IS
	'Number of keys by operation and status; reads the whole table';
COMMENT ON COLUMN idempotency.keys_by_operation.operation IS
	'The operation';
COMMENT ON COLUMN idempotency.keys_by_operation.status IS
	'completed, in_progress, failed or held';
COMMENT ON COLUMN idempotency.keys_by_operation.keys IS
	'Number of rows';
COMMENT ON COLUMN idempotency.keys_by_operation.expired IS
	'How many of them have expired and wait to be deleted';
COMMENT ON COLUMN idempotency.keys_by_operation.oldest IS
	'First claim of the oldest';
COMMENT ON COLUMN idempotency.keys_by_operation.newest IS
	'First claim of the newest';

CREATE VIEW idempotency.keys_by_scope AS
SELECT k.scope, k.operation, k.status, pg_catalog.count(*) AS keys,
	pg_catalog.count(*) FILTER (WHERE idempotency.key_standing(k.status, k.expires_at,
		k.locked_until, k.hold_if_abandoned, pg_catalog.statement_timestamp())
		OPERATOR(pg_catalog.=) 'expired'::pg_catalog.text) AS expired,
	pg_catalog.min(k.created_at) AS oldest,
	pg_catalog.max(k.created_at) AS newest
FROM idempotency.idempotency_keys AS k
GROUP BY k.scope, k.operation, k.status;
COMMENT ON VIEW idempotency.keys_by_scope IS
	'Number of keys by scope, operation and status; reads the whole table';
COMMENT ON COLUMN idempotency.keys_by_scope.scope IS
	'Who asks';
COMMENT ON COLUMN idempotency.keys_by_scope.operation IS
	'The operation';
COMMENT ON COLUMN idempotency.keys_by_scope.status IS
	'completed, in_progress, failed or held';
COMMENT ON COLUMN idempotency.keys_by_scope.keys IS
	'Number of rows';
COMMENT ON COLUMN idempotency.keys_by_scope.expired IS
	'How many of them have expired and wait to be deleted';
COMMENT ON COLUMN idempotency.keys_by_scope.oldest IS
	'First claim of the oldest';
COMMENT ON COLUMN idempotency.keys_by_scope.newest IS
	'First claim of the newest';

CREATE VIEW idempotency.abandoned AS
SELECT k.scope, k.operation, k.key,
	CASE WHEN s.standing OPERATOR(pg_catalog.=) 'held'::pg_catalog.text
		THEN s.standing ELSE k.status END AS status,
	k.token, k.attempt, k.recovery_point, k.state, k.last_error, k.note,
	k.created_at, COALESCE(k.claimed_at, k.created_at) AS claimed_at,
	k.checkpointed_at, k.locked_until
FROM idempotency.idempotency_keys AS k
CROSS JOIN LATERAL idempotency.key_standing(k.status, k.expires_at, k.locked_until,
	k.hold_if_abandoned, pg_catalog.statement_timestamp()) AS s(standing)
WHERE k.status OPERATOR(pg_catalog.=) ANY (ARRAY['in_progress', 'held']::pg_catalog.text[])
	AND s.standing OPERATOR(pg_catalog.=) ANY (ARRAY['abandoned', 'held']::pg_catalog.text[]);
COMMENT ON VIEW idempotency.abandoned IS
	'What waits for somebody: claims whose owner is gone, and held keys, with what a person needs to decide';
COMMENT ON COLUMN idempotency.abandoned.scope IS
	'Who asked';
COMMENT ON COLUMN idempotency.abandoned.operation IS
	'What was asked';
COMMENT ON COLUMN idempotency.abandoned.key IS
	'Which request';
COMMENT ON COLUMN idempotency.abandoned.status IS
	'in_progress: the next claim takes it over; held: a person decides';
COMMENT ON COLUMN idempotency.abandoned.token IS
	'Token to complete it with';
COMMENT ON COLUMN idempotency.abandoned.attempt IS
	'Number of the attempt';
COMMENT ON COLUMN idempotency.abandoned.recovery_point IS
	'The last step that the work has safely passed';
COMMENT ON COLUMN idempotency.abandoned.state IS
	'What it left to go on from there';
COMMENT ON COLUMN idempotency.abandoned.last_error IS
	'What was reported last';
COMMENT ON COLUMN idempotency.abandoned.note IS
	'A remark of the claimer';
COMMENT ON COLUMN idempotency.abandoned.created_at IS
	'When the key was first claimed';
COMMENT ON COLUMN idempotency.abandoned.claimed_at IS
	'When this attempt was claimed';
COMMENT ON COLUMN idempotency.abandoned.checkpointed_at IS
	'When recovery_point was recorded';
COMMENT ON COLUMN idempotency.abandoned.locked_until IS
	'When the lease lapsed';

CREATE VIEW idempotency.effective_policies AS
SELECT p.operation,
	COALESCE(pg_catalog.date_part('epoch', p.ttl), d.ttl_seconds) AS ttl_seconds,
	COALESCE(pg_catalog.date_part('epoch', p.failed_ttl), d.failed_ttl_seconds) AS failed_ttl_seconds,
	pg_catalog.date_part('epoch', p.response_ttl) AS response_ttl_seconds,
	COALESCE(pg_catalog.date_part('epoch', p.lease), d.lease_seconds) AS lease_seconds,
	COALESCE(p.hold_if_abandoned, false) AS hold_if_abandoned,
	p.max_attempts
FROM idempotency.default_policy() AS d
CROSS JOIN (SELECT q.operation, q.ttl, q.failed_ttl, q.response_ttl, q.lease,
		q.hold_if_abandoned, q.max_attempts
	FROM idempotency.policies AS q
	UNION ALL
	SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL) AS p;
COMMENT ON VIEW idempotency.effective_policies IS
	'What holds for each operation, settings filled in, for publishing; operation NULL: all others';
COMMENT ON COLUMN idempotency.effective_policies.operation IS
	'The operation; NULL: every one without a policy';
COMMENT ON COLUMN idempotency.effective_policies.ttl_seconds IS
	'How long a key is remembered';
COMMENT ON COLUMN idempotency.effective_policies.failed_ttl_seconds IS
	'How long a failed key is remembered';
COMMENT ON COLUMN idempotency.effective_policies.response_ttl_seconds IS
	'How long a response is kept; NULL: as long as its key';
COMMENT ON COLUMN idempotency.effective_policies.lease_seconds IS
	'Length of a lease that is renewed without being told a length';
COMMENT ON COLUMN idempotency.effective_policies.hold_if_abandoned IS
	'Whether abandoned claims are held';
COMMENT ON COLUMN idempotency.effective_policies.max_attempts IS
	'After so many attempts the key is held; NULL: no limit';

------------------------------------------------------------------------------
-- Privileges. Nobody gets anything by default; these hand it out and take it back.
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

CREATE FUNCTION idempotency.revoke_usage(role pg_catalog.regrole)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_revoke_usage'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.revoke_usage IS
	'Takes back what grant_usage() gave, but for what another bundle gave too; true if there was anything';

CREATE FUNCTION idempotency.revoke_operator(role pg_catalog.regrole)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_revoke_operator'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.revoke_operator IS
	'Takes back what grant_operator() gave, but for what another bundle gave too; true if there was anything';

CREATE FUNCTION idempotency.revoke_monitor(role pg_catalog.regrole)
RETURNS pg_catalog.bool
AS 'MODULE_PATHNAME', 'idempotency_revoke_monitor'
LANGUAGE C VOLATILE CALLED ON NULL INPUT PARALLEL UNSAFE;
COMMENT ON FUNCTION idempotency.revoke_monitor IS
	'Takes back what grant_monitor() gave, but for what another bundle gave too; true if there was anything';

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA idempotency FROM PUBLIC;
REVOKE ALL ON ALL PROCEDURES IN SCHEMA idempotency FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA idempotency FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA idempotency FROM PUBLIC;
REVOKE ALL ON TYPE idempotency.claim_result, idempotency.replay_result,
	idempotency.lookup_result FROM PUBLIC;
-- Not on the row types of tables and views: they show nothing, and pg_dump, which
-- does not know of such privileges, would warn of each.
REVOKE ALL ON SCHEMA idempotency FROM PUBLIC;
