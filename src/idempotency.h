/*-------------------------------------------------------------------------
 *
 * idempotency.h
 *	  The map of the extension: shared types, and what each file offers to
 *	  the others, grouped under the file that owns it.
 *
 * Words
 * -----
 * identity		(scope, operation, key): which request
 * claim		the right to do the work for an identity
 * pending		a claim of the running transaction, kept in backend memory
 * leased		a claim whose row is written at once and fenced by a token
 * row			a line of idempotency.idempotency_keys, as a KeyRow
 *
 * How a call flows: arguments.c checks what the user sent; claim.c, owner.c
 * and the verbs decide; locks.c queues rivals; keys.c reads and writes rows, by
 * the SQL of statements.c; pending.c remembers until the transaction ends what it
 * has claimed, and commit.c lets no open claim commit.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_H
#define IDEMPOTENCY_H

#include "postgres.h"

#include "executor/spi.h"
#include "fmgr.h"
#include "nodes/pg_list.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/itemptr.h"
#include "storage/latch.h"
#include "storage/lockdefs.h"
#include "storage/lwlock.h"
#include "utils/relcache.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"

/* SQLSTATEs of our own; documented in README.md, part of the contract. */
#define ERRCODE_IDEM_STALE_CLAIM MAKE_SQLSTATE('I', 'K', '0', '0', '1')
#define ERRCODE_IDEM_NOT_CLAIMED MAKE_SQLSTATE('I', 'K', '0', '0', '2')
#define ERRCODE_IDEM_OTHER_COMPLETION MAKE_SQLSTATE('I', 'K', '0', '0', '3')
#define ERRCODE_IDEM_CLAIM_LEFT_OPEN MAKE_SQLSTATE('I', 'K', '0', '0', '4')
#define ERRCODE_IDEM_HELD MAKE_SQLSTATE('I', 'K', '0', '0', '5')
#define ERRCODE_IDEM_REDACTED MAKE_SQLSTATE('I', 'K', '0', '0', '6')

#define IDEM_EXTENSION_NAME "idempotency"
#define IDEM_SCHEMA_NAME "idempotency"
#define IDEM_KEYS_TABLE "idempotency_keys"
#define IDEM_TOKEN_SEQUENCE "token_seq"

/*
 * Three texts of this many bytes, with their headers, fit into a btree entry
 * of an 8 kB page (2704 bytes, nbtree.h BTMaxItemSize).
 */
#define IDEM_KEY_LENGTH_BOUND 880

/* Who asks for what. The texts may have short headers: use VARDATA_ANY. */
typedef struct KeyIdentity
{
	text *scope;
	text *operation;
	text *key;
	uint64 hash; /* of all three, see locks.c; equal hashes prove nothing */
} KeyIdentity;

typedef enum KeyStatus
{
	KEY_IN_PROGRESS,
	KEY_COMPLETED,
	KEY_FAILED,
	KEY_HELD
} KeyStatus;

/*
 * Columns of idempotency_keys, in the order of the table less one. Fixed-width
 * columns come first, so that no alignment is lost and those that are always
 * there have a constant offset. table.c checks the order against the catalog.
 */
typedef enum KeyColumn
{
	KEY_CREATED_AT,
	KEY_EXPIRES_AT,
	KEY_COMPLETED_AT,
	KEY_ATTEMPT,
	KEY_RESPONSE_STATUS,
	KEY_TOKEN,
	KEY_CLAIMED_AT,
	KEY_CHECKPOINTED_AT,
	KEY_LOCKED_UNTIL,
	KEY_LEASE_MS,
	KEY_RESPONSE_EXPIRES_AT,
	KEY_REDACTED_AT,
	KEY_CLAIM_ID,
	KEY_HOLD_IF_ABANDONED,
	KEY_SCOPE,
	KEY_OPERATION,
	KEY_KEY,
	KEY_STATUS,
	KEY_FINGERPRINT,
	KEY_RECOVERY_POINT,
	KEY_STATE,
	KEY_RESPONSE_HEADERS,
	KEY_RESPONSE_BODY,
	KEY_RESPONSE_BYTES,
	KEY_LAST_ERROR,
	KEY_NOTE,
	KEY_NCOLUMNS
} KeyColumn;

/*
 * One row. Datums belong to the context that was current when the row was
 * read or built; they are never changed in place, so rows may share them.
 */
typedef struct KeyRow
{
	ItemPointerData tid; /* the version that was read */
	KeyStatus status;    /* what values[KEY_STATUS] says */
	Datum values[KEY_NCOLUMNS];
	bool isnull[KEY_NCOLUMNS];
} KeyRow;

#define KeyRowTime(row, col) \
	((row)->isnull[col] ? 0 : DatumGetTimestampTz((row)->values[col]))

/* 0: it never had one. */
#define KeyRowToken(row) \
	((row)->isnull[KEY_TOKEN] ? 0 : DatumGetInt64((row)->values[KEY_TOKEN]))

static inline void
KeyRowSet(KeyRow *row, KeyColumn col, Datum value)
{
	row->values[col] = value;
	row->isnull[col] = false;
}

static inline void
KeyRowSetNull(KeyRow *row, KeyColumn col)
{
	row->values[col] = (Datum) 0;
	row->isnull[col] = true;
}

/* arguments.c */
extern void idem_identity_unbound(KeyIdentity *id, FunctionCallInfo fcinfo);
extern void idem_identity(KeyIdentity *id, FunctionCallInfo fcinfo);
extern text *idem_scope_argument(FunctionCallInfo fcinfo);
extern bool idem_identity_equal(const KeyIdentity *a, const KeyIdentity *b);
extern text *idem_text_argument(FunctionCallInfo fcinfo, int argno,
								const char *name);
extern void idem_check_identity_part(text *part, const char *name);
extern bool idem_texts_equal(const text *a, const text *b);
extern int64 idem_interval_us(const Interval *span);
extern int64 idem_duration(FunctionCallInfo fcinfo, int argno,
						   const char *name, int64 minimum, int64 maximum,
						   int64 otherwise);
extern TimestampTz idem_time_after(TimestampTz start, int64 microseconds,
								   const char *name);
extern Oid idem_role_argument(FunctionCallInfo fcinfo);
extern char *idem_role_name(Oid role);
extern void idem_require_writable(const char *function);

/* claim.c */
typedef struct ClaimRequest
{
	KeyIdentity id;
	bytea *fingerprint; /* or NULL */
	int64 ttl;          /* microseconds, as all durations here */
	bool keep_lease;
	int64 lease; /* 0: none */
	int64 wait;  /* 0: do not */
	bool wait_for_transaction_only;
	pg_uuid_t *claim_id; /* or NULL */
	bool hold_if_abandoned;
	int max_attempts;      /* 0: no limit */
	text *note;            /* or NULL */
	struct varlena *state; /* jsonb, or NULL */
	bool at_once;          /* once(): completed with the claim */
	bool only_abandoned;   /* claim_abandoned(): nothing but a takeover */
} ClaimRequest;

typedef enum ClaimOutcome
{
	CLAIM_CLAIMED,
	CLAIM_REPLAY,
	CLAIM_IN_PROGRESS,
	CLAIM_MISMATCH,
	CLAIM_HELD
} ClaimOutcome;

/* What stands in the way of a claim that is "in progress". */
typedef enum ClaimRival
{
	RIVAL_TRANSACTION, /* undecided: it may still roll back */
	RIVAL_LEASE,       /* a committed claim whose lease is live */
	RIVAL_RETRY        /* nobody: a failed key before its retry_in */
} ClaimRival;

typedef struct ClaimAnswer
{
	ClaimOutcome outcome;
	bool has_row; /* a row that the answer is about */
	KeyRow row;
	bool fresh;    /* claimed: nothing is kept of that row */
	bool repeated; /* claimed before under the same claim_id */
	bool taken_over;
	bool leased;
	bool fingerprint_checked;
	ClaimRival rival;  /* in progress */
	bool lock_taken;   /* in progress: by somebody else, who can be waited for */
	int64 retry_after; /* in progress: until it may change by itself, in microseconds */
} ClaimAnswer;

extern void idem_claim_decide(const ClaimRequest *request, bool locked,
							  ClaimAnswer *answer);
extern void idem_claim_answer(const ClaimRequest *request, ClaimAnswer *answer);
extern Datum idem_claim_result(FunctionCallInfo fcinfo, const ClaimAnswer *answer,
							   bool with_response);
extern int64 idem_claim_wait_argument(FunctionCallInfo fcinfo, int argno, int64 otherwise);

/* response.c: in the order of the arguments of complete() */
typedef enum IdemResponsePart
{
	IDEM_RESPONSE_STATUS,
	IDEM_RESPONSE_BODY,
	IDEM_RESPONSE_HEADERS,
	IDEM_RESPONSE_BYTES,
	IDEM_RESPONSE_PARTS
} IdemResponsePart;

typedef struct IdemResponse
{
	Datum values[IDEM_RESPONSE_PARTS];
	bool isnull[IDEM_RESPONSE_PARTS];
} IdemResponse;

extern void idem_response_read(IdemResponse *response, FunctionCallInfo fcinfo, int argno);
extern void idem_response_set(IdemResponse *response, IdemResponsePart part, Datum value);
extern void idem_response_check(const IdemResponse *response);
extern bool idem_response_same(const IdemResponse *response, const KeyRow *row);
extern void idem_response_put(const IdemResponse *response, KeyRow *row);

/* complete.c */
extern void idem_complete_own(const KeyIdentity *id, const IdemResponse *response,
							  KeyRow *row);

/* table.c */
typedef struct KeyColumnType
{
	const char *name;
	Oid type;
} KeyColumnType;

/* Why the table cannot be used. */
typedef struct IdemTableProblem
{
	const char *message;
	const char *detail; /* or NULL */
	const char *hint;
} IdemTableProblem;

extern const KeyColumnType idem_table_columns[KEY_NCOLUMNS];
extern Relation idem_table_open(LOCKMODE mode);
extern bool idem_table_problem(IdemTableProblem *problem);
extern Oid idem_table_relation(const char *name);
extern bool idem_table_is_plain(Relation table);
extern void idem_table_init(void);

/* keys.c */
typedef enum KeyRead
{
	KEYS_NOW,     /* as it is now: VOLATILE callers, after a lock */
	KEYS_SNAPSHOT /* as the running statement sees it */
} KeyRead;

extern bool idem_keys_find(const KeyIdentity *id, KeyRead how,
						   bool with_response, KeyRow *row, bool *agrees);
extern bool idem_keys_being_written(const KeyRow *row);
extern void idem_keys_init_row(KeyRow *row, const KeyIdentity *id);
extern KeyRow *idem_keys_copy_row(const KeyRow *row);
extern KeyRow *idem_keys_copy_version(const KeyRow *row);
extern bool idem_keys_insert_if_absent(KeyRow *row);
extern bool idem_keys_update(KeyRow *row, const KeyRow *old);
extern void idem_keys_write(KeyRow *row, const KeyRow *old);
extern bool idem_keys_delete(const KeyRow *old);
extern uint64 idem_keys_delete_scope(text *scope, bool force);

/*
 * How far a walk along the moments at which keys expire, or responses are due,
 * has come.
 */
typedef struct IdemWalk
{
	TimestampTz from; /* what comes before is done */
	int64 rows;       /* take so many at least: many are of that moment */
	bool more;        /* not at its end */
} IdemWalk;

extern uint64 idem_keys_redact_due(IdemWalk *walk, TimestampTz now, int64 batch);
extern List *idem_keys_abandoned(text *operation, int64 max_rows, int64 seen);
extern uint64 idem_keys_redact_scope(text *scope);
extern void idem_keys_set_failed(KeyRow *row, int64 retry_in, int64 failed_ttl);
extern uint64 idem_keys_delete_expired(IdemWalk *walk, TimestampTz now, int64 batch);
extern uint64 idem_keys_cleanup(text *scope, text *operation, TimestampTz before,
								TimestampTz now, int64 max_rows);
extern int64 idem_keys_next_token(int64 floor);
extern const char *idem_keys_status_name(KeyStatus status);
extern bool idem_keys_expired(const KeyRow *row, TimestampTz now);
extern bool idem_keys_lapsed(const KeyRow *row, TimestampTz now);
extern bool idem_keys_held(const KeyRow *row, TimestampTz now);
extern bool idem_keys_response_gone(const KeyRow *row, TimestampTz now);
extern void idem_report_if_redacted(const KeyRow *row);

/* statements.c, for keys.c and batch.c alone */
typedef enum KeyStatement
{
	STATEMENT_INSERT,
	STATEMENT_INSERT_LEAN,
	STATEMENT_INSERT_IF_ABSENT,
	STATEMENT_UPDATE,
	STATEMENT_DELETE,
	STATEMENT_DELETE_SCOPE,
	STATEMENT_DELETE_EXPIRED,
	STATEMENT_CLEANUP,
	STATEMENT_CLEANUP_OPERATION,
	STATEMENT_CLEANUP_SCOPE,
	STATEMENT_CLEANUP_SCOPE_OPERATION,
	STATEMENT_REDACT_DUE,
	STATEMENT_REDACT_SCOPE,
	STATEMENT_ABANDONED,
	STATEMENT_BATCH_INSERT,
	STATEMENT_BATCH_LOOK,
	STATEMENT_BATCH_REPLACE,
	NSTATEMENTS
} KeyStatement;

#define STATEMENT_MAX_PARAMETERS (KEY_NCOLUMNS + 4)

extern uint64 idem_statement_execute(KeyStatement statement, Datum *values,
									 const char *nulls,
									 void (*consume)(void *state), void *state);
extern Datum idem_statement_value(uint64 row, int column);

/* batch.c */
extern int idem_batch_order(const text *a, const text *b);
extern void idem_batch_insert(text *scope, text *operation, Datum *keys, int nkeys,
							  TimestampTz now, TimestampTz expires_at, bool *first, bool *open);

/* locks.c */
extern uint64 idem_lock_hash(const KeyIdentity *id);
extern bool idem_lock_try(const KeyIdentity *id);
extern void idem_lock_wait(const KeyIdentity *id);
extern bool idem_lock_wait_for(const KeyIdentity *id, int64 microseconds);
extern void idem_lock_release(const KeyIdentity *id);

/* fingerprint.c */
#define IDEM_FINGERPRINT_LEN 32
extern bytea *idem_fingerprint_argument(FunctionCallInfo fcinfo,
										int request_argno,
										int fingerprint_argno);

/* pending.c */
typedef struct PendingClaim PendingClaim;

typedef enum PendingStatus
{
	PENDING_NONE, /* only the key's lock is kept */
	PENDING_OPEN,
	PENDING_COMPLETED,
	PENDING_FAILED,
	PENDING_HELD,
	PENDING_RELEASED
} PendingStatus;

typedef struct PendingState
{
	PendingStatus status;
	bool leased;   /* its row is in the table */
	KeyRow *over;  /* unleased: the version that it was claimed over, or NULL */
	int64 token;   /* 0 if not leased */
	KeyRow *draft; /* unleased: the row to write at the end */
} PendingState;

extern PendingClaim *idem_pending_find(const KeyIdentity *id);
extern void idem_pending_check_limit(void);
extern PendingClaim *idem_pending_keep(const KeyIdentity *id);
extern const PendingState *idem_pending_state(const PendingClaim *claim);
extern void idem_pending_set(PendingClaim *claim, const PendingState *state);
extern MemoryContext idem_pending_context(void);
extern bool idem_pending_left_open(void);
extern void idem_pending_end(bool committed);
extern void idem_pending_init(void);

/* commit.c */
extern void idem_commit_claim_opens(void);
extern void idem_commit_init(void);

/* owner.c */
typedef enum OwnerVerb
{
	OWNER_COMPLETE, /* also allowed on a held key */
	OWNER_OTHER
} OwnerVerb;

/* What idem_owner_claim() found: an open claim, or one completed before. */
typedef struct OwnedClaim
{
	KeyIdentity id;
	PendingClaim *pending; /* never NULL: its key lock is kept */
	bool leased;           /* its row is in the table */
	KeyRow row;            /* to be changed, then written */
	KeyRow stored;         /* the version in the table, if any */
	bool is_stored;
	bool completed; /* completed before; OWNER_COMPLETE only */
} OwnedClaim;

extern void idem_owner_claim(OwnedClaim *own, FunctionCallInfo fcinfo,
							 int token_argno, OwnerVerb verb);
extern void idem_owner_claim_pending(OwnedClaim *own, const KeyIdentity *id, OwnerVerb verb);
pg_noreturn extern void idem_owner_report_completed(void);
extern PendingClaim *idem_owner_lock(const KeyIdentity *id);
extern void idem_owner_remember(OwnedClaim *own);
extern void idem_owner_write(OwnedClaim *own, PendingStatus status);
extern void idem_owner_delete(OwnedClaim *own, PendingStatus status);

/* errors.c */
pg_noreturn extern void idem_report_held(void);
pg_noreturn extern void idem_report_lost_race(void);
pg_noreturn extern void idem_report_not_written(void);

/* execute.c */
typedef struct IdemIdentity
{
	Oid user;
	int context;
	bool plain;
	int settings; /* nest level, unless plain */
} IdemIdentity;

extern void idem_become(IdemIdentity *before, Oid owner, bool plain);
extern void idem_unbecome(const IdemIdentity *before);
extern Relation idem_try_open_member(const char *name);
extern Relation idem_open_member(const char *name);
extern uint64 idem_execute_on(const char *name, const char *sql, int nargs, Oid *types,
							  Datum *values, const char *nulls, int64 *number);

/* shared.c: NULL unless the library is preloaded */
typedef enum IdemCounter
{
	IDEM_CLAIMS,
	IDEM_REPLAYS,
	IDEM_CONFLICTS,
	IDEM_MISMATCHES,
	IDEM_TAKEOVERS,
	IDEM_COMPLETIONS,
	IDEM_FAILURES,
	IDEM_DELETED,
	IDEM_NCOUNTERS
} IdemCounter;

/* What one clean-up of one database did. */
typedef struct IdemCleanup
{
	TimestampTz started_at;
	TimestampTz finished_at; /* 0: never */
	int64 deleted;           /* keys */
	int64 redacted;          /* responses that went before their keys */
	int batches;
	bool failed;
	int sqlerrcode;
	char message[256]; /* of the failure */
} IdemCleanup;

typedef struct IdemDatabase
{
	Oid database;
	pg_atomic_uint64 counters[IDEM_NCOUNTERS];
	IdemCleanup cleanup;
} IdemDatabase;

/* A backend that waits for a key. */
typedef struct IdemWaiter
{
	bool waiting;
	Oid database;
	uint64 hash;
} IdemWaiter;

/*
 * What the launcher believes of the wall clock, as what that says less what the
 * monotonic clock says; see worker.c.
 */
typedef struct IdemClock
{
	bool known;
	int64 offset; /* believed */
	bool jumped;
	int64 ahead;       /* what it is now, not yet believed */
	int64 ahead_since; /* by the monotonic clock */
} IdemClock;

#define IDEM_MAX_DATABASES 1024
#define IDEM_NWAKEUPS 128

typedef struct IdemShared
{
	LWLock *lock; /* guards all but counters and wakeups */
	IdemDatabase databases[IDEM_MAX_DATABASES];
	pid_t launcher_pid; /* 0: not running */
	Latch *launcher_latch;
	int worker_result; /* of the process that ran last; see worker.c */
	IdemClock clock;
	bool round_requested;
	TimestampTz round_started_at;
	TimestampTz round_finished_at;
	bool workers_lacking; /* could not start a process in the last round */
	ConditionVariable wakeups[IDEM_NWAKEUPS];
	IdemWaiter waiters[FLEXIBLE_ARRAY_MEMBER]; /* by MY_PROC_NUMBER */
} IdemShared;

extern IdemShared *idem_shared;
extern void idem_require_shared(const char *what);
extern void idem_shared_init(void);

/* stats.c */
extern IdemDatabase *idem_stats_database(Oid database);
extern void idem_stats_forget_dropped(bool (*exists)(Oid database));
extern void idem_stats_count(IdemCounter counter, uint64 number);
extern void idem_stats_cleanup(const IdemCleanup *cleanup);
extern bool idem_stats_last_cleanup(IdemCleanup *cleanup);

/* config.c */
typedef struct IdemConfig
{
	const char *table;
	void *(*read_row)(struct TupleTableSlot *slot); /* palloc'd copy */
	List *rows;
	Oid loaded; /* valid: the rows are up to date */
	uint64 changes;
	MemoryContext context;
} IdemConfig;

extern void idem_config_refresh(IdemConfig *config);
extern uint64 idem_config_write(const IdemConfig *config, const char *sql, int nargs,
								Oid *types, Datum *values, const char *nulls);
extern void idem_config_init(void);

/* policy.c */
typedef struct IdemPolicy
{
	int64 ttl;    /* microseconds, as the others */
	bool has_ttl; /* it is the policy's, not the setting's */
	int64 failed_ttl;
	int64 response_ttl; /* 0: as long as the key */
	int64 lease;
	bool hold_if_abandoned;
	int max_attempts; /* 0: no limit */
} IdemPolicy;

extern IdemPolicy idem_policy_for(const text *operation);

/* bindings.c */
extern bool idem_binding_allows(text *scope);
extern void idem_binding_check(text *scope);

/* wake.c */
extern void idem_wake_prepare(const KeyIdentity *id);
extern void idem_wake_sleep(const KeyIdentity *id, int64 microseconds);
extern bool idem_wake_enter(const KeyIdentity *id);
extern void idem_wake_leave(void);
extern void idem_wake_init(void);
extern void idem_wake_waiters(uint64 hash);

/* cleanup.c */
typedef struct IdemProgress
{
	IdemWalk expired; /* deleting keys */
	IdemWalk due;     /* removing responses */
} IdemProgress;

#define IDEM_NO_PROGRESS        \
	{                           \
		{DT_NOBEGIN, 0, true},  \
		{                       \
			DT_NOBEGIN, 0, true \
		}                       \
	}

extern bool idem_cleanup_installed(void);
extern bool idem_cleanup_batch(IdemCleanup *cleanup, IdemProgress *progress,
							   TimestampTz now);
extern void idem_cleanup_record(IdemCleanup *cleanup, const char *by);
extern bool idem_cleanup_in_the_way(void);

/* worker.c */
extern void idem_worker_init(void);

/* settings.c: durations in the unit of the setting, see there */
extern int idem_default_ttl;   /* s */
extern int idem_once_ttl;      /* s */
extern int idem_failed_ttl;    /* s */
extern int idem_default_lease; /* ms */
extern int idem_max_ttl;       /* s */
extern int idem_max_wait;      /* ms */
extern int idem_once_wait;     /* ms */
extern int idem_max_waiters;
extern int idem_max_waiters_per_key;
extern int idem_max_retry_after; /* ms */
extern int idem_max_key_length;  /* bytes */
extern int idem_max_claims_per_transaction;
extern int idem_max_response_size; /* kB */
extern bool idem_require_binding;

#define IDEM_MAX_TTL_US ((int64) idem_max_ttl * USECS_PER_SEC)

extern bool idem_track;
extern bool idem_cleanup_enabled;
extern int idem_cleanup_interval;   /* s */
extern int idem_cleanup_batch_size; /* rows */
extern int idem_cleanup_pause;      /* ms */
extern char *idem_cleanup_skip_databases;
extern int idem_warn_expired;
extern int idem_warn_abandoned;
extern int idem_warn_held;
extern int idem_warn_keys;         /* millions would overflow: rows */
extern int idem_warn_table_size;   /* MB */
extern int idem_warn_dead_percent; /* % */

extern void idem_settings_init(void);

#endif /* IDEMPOTENCY_H */
