/*-------------------------------------------------------------------------
 *
 * rows.h
 *	  The table idempotency_keys and its rows: what a row looks like and means,
 *	  and how one is found, written and deleted.
 *
 * Nothing here knows of claims, locks or rules. Whoever calls it has decided.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_ROWS_H
#define IDEMPOTENCY_ROWS_H

#include "idempotency.h"

#include "nodes/params.h"
#include "nodes/pg_list.h"
#include "storage/itemptr.h"
#include "storage/lockdefs.h"
#include "utils/relcache.h"
#include "utils/tuplestore.h"
#include "utils/uuid.h"

#define IDEM_KEYS_TABLE "idempotency_keys"
#define IDEM_QUALIFIED_TABLE IDEM_SCHEMA_NAME "." IDEM_KEYS_TABLE
#define IDEM_TOKEN_SEQUENCE "token_seq"

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

#define KeyRowAttempt(row) DatumGetInt32((row)->values[KEY_ATTEMPT])

/* Of the lease, in microseconds; 0: it has none. */
#define KeyRowLease(row) \
	((row)->isnull[KEY_LEASE_MS] ? 0 : DatumGetInt64((row)->values[KEY_LEASE_MS]) * 1000)

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

/* members.c */

/*
 * Something that a backend remembers of one of our tables, for as long as nothing
 * about that table changes.
 */
typedef struct IdemMemory
{
	Oid valid_for;  /* the table, or InvalidOid: look again */
	uint64 changes; /* see idem_memory_keep() */
	struct IdemMemory *next;
} IdemMemory;

/* What to do where one is missing. */
#define IDEM_MEMBER_MISSING_HINT                                                      \
	"It was renamed or dropped; restore it, or drop extension \"" IDEM_EXTENSION_NAME \
	"\" and create it again."

extern void idem_memory_watch(IdemMemory *memory);
extern void idem_memory_keep(IdemMemory *memory, Oid table, uint64 changes);
extern Relation idem_member_open_by_name(const char *name, LOCKMODE mode);
extern bool idem_member_is_ours(Relation relation);
extern Relation idem_member_try_open(const char *name);
extern Relation idem_member_open(const char *name);
extern Oid idem_member_oid(const char *name);
extern void idem_member_init(void);

/* execute.c */

/* Whose rights were in force; see idem_become(). */
typedef struct IdemCaller
{
	Oid user;
	int context;
	bool plain;
	int settings; /* nest level, unless plain */
} IdemCaller;

extern void idem_become(IdemCaller *caller, Oid owner, bool plain);
extern void idem_unbecome(const IdemCaller *caller);
extern ParamListInfo idem_hidden_parameters(int number, const Oid *types, const Datum *values,
											const char *nulls);
extern uint64 idem_execute_on(const char *table, const char *sql, int nargs, Oid *types,
							  Datum *values, const char *nulls, int64 *number);

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
extern bool idem_table_is_plain(Relation table);
extern void idem_table_init(void);

/* states.c */

/* How a key stands at a moment; see there. */
typedef enum KeyStanding
{
	STANDING_EXPIRED,   /* counts as absent, though it is there */
	STANDING_COMPLETED, /* its response is replayed */
	STANDING_LEASED,    /* somebody is at it */
	STANDING_ABANDONED, /* somebody was: the next claim takes it over */
	STANDING_HELD,      /* a person has to decide */
	STANDING_WAITING,   /* failed, and not to be tried again yet */
	STANDING_FAILED     /* failed: the next claim tries again */
} KeyStanding;

/* What a claim asks for, as far as its row keeps it. */
typedef struct KeyClaim
{
	bytea *fingerprint;    /* or NULL */
	int64 ttl;             /* microseconds, as all durations here */
	int64 lease;           /* 0: none */
	pg_uuid_t *claim_id;   /* or NULL */
	text *note;            /* or NULL */
	struct varlena *state; /* jsonb, or NULL */
	bool hold_if_abandoned;
	int max_attempts; /* the last one is held if it is abandoned; 0: no limit */
} KeyClaim;

extern const char *idem_state_name(KeyStatus status);
extern KeyStatus idem_state_named(const char *name);
extern KeyStanding idem_state_of(const KeyRow *row, TimestampTz now);
extern bool idem_state_lapsed(const KeyRow *row, TimestampTz now);
extern bool idem_state_response_gone(const KeyRow *row, TimestampTz now);
extern void idem_state_check_response(const KeyRow *row);
extern TimestampTz idem_state_claimed_at(const KeyRow *row);
extern TimestampTz idem_state_replayed_until(const KeyRow *row);

extern void idem_state_init(KeyRow *row, const KeyIdentity *id);
extern void idem_state_claim(KeyRow *row, const KeyIdentity *id, const KeyRow *old,
							 TimestampTz now, const KeyClaim *claim);
extern TimestampTz idem_state_renew(KeyRow *row, TimestampTz now, int64 lease, bool may_shorten);
extern void idem_state_complete(KeyRow *row, TimestampTz now, TimestampTz expires_at,
								int64 response_ttl);
extern void idem_state_fail(KeyRow *row, TimestampTz now, int64 retry_in, int64 failed_ttl);
extern void idem_state_release(KeyRow *row, TimestampTz now, int64 failed_ttl);
extern void idem_state_hold(KeyRow *row);
extern void idem_state_redact(KeyRow *row, TimestampTz now);

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

/* keys.c */
typedef enum KeyRead
{
	KEYS_NOW,     /* as it is now: VOLATILE callers, after a lock */
	KEYS_SNAPSHOT /* as the running statement sees it */
} KeyRead;

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

/* What health() counts. */
typedef enum KeyCount
{
	KEYS_EXPIRED,
	KEYS_ABANDONED,
	KEYS_HELD
} KeyCount;

extern bool idem_keys_find(const KeyIdentity *id, KeyRead how,
						   bool with_response, KeyRow *row, bool *agrees);
extern bool idem_keys_being_written(const KeyRow *row);
extern KeyRow *idem_keys_copy_row(const KeyRow *row);
extern KeyRow *idem_keys_copy_version(const KeyRow *row);
extern bool idem_keys_insert_if_absent(KeyRow *row);
extern bool idem_keys_update(KeyRow *row, const KeyRow *old);
extern void idem_keys_write(KeyRow *row, const KeyRow *old);
extern bool idem_keys_delete(const KeyRow *old);
extern uint64 idem_keys_delete_scope(text *scope, bool force);
extern uint64 idem_keys_redact_scope(text *scope);
extern uint64 idem_keys_redact_due(IdemWalk *walk, TimestampTz now, int64 batch);
extern uint64 idem_keys_delete_expired(IdemWalk *walk, TimestampTz now, int64 batch);
extern uint64 idem_keys_cleanup(text *scope, text *operation, TimestampTz before,
								TimestampTz now, int64 max_rows);
extern List *idem_keys_abandoned(text *operation, int64 max_rows, int64 seen);
extern text *idem_keys_next_scope(text *before);
extern uint64 idem_keys_of_scope(text *scope, Tuplestorestate *store);
extern int64 idem_keys_count(KeyCount what, TimestampTz before, int64 enough);
extern int64 idem_keys_next_token(int64 floor);
extern void idem_keys_outlive_token(int64 token);

/* batch.c */
extern int idem_batch_order(const text *a, const text *b);
extern void idem_batch_insert(text *scope, text *operation, Datum *keys, int nkeys,
							  TimestampTz now, TimestampTz expires_at, bool *first, bool *open);

#endif /* IDEMPOTENCY_ROWS_H */
