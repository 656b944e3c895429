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
 * and the verbs decide; locks.c queues rivals; keys.c reads and writes rows;
 * pending.c remembers until the transaction ends what it has claimed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_H
#define IDEMPOTENCY_H

#include "postgres.h"

#include "fmgr.h"
#include "storage/itemptr.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

/* SQLSTATEs of our own; documented in README.md, part of the contract. */
#define ERRCODE_IDEM_STALE_CLAIM MAKE_SQLSTATE('I', 'K', '0', '0', '1')
#define ERRCODE_IDEM_NOT_CLAIMED MAKE_SQLSTATE('I', 'K', '0', '0', '2')
#define ERRCODE_IDEM_OTHER_COMPLETION MAKE_SQLSTATE('I', 'K', '0', '0', '3')
#define ERRCODE_IDEM_CLAIM_LEFT_OPEN MAKE_SQLSTATE('I', 'K', '0', '0', '4')
#define ERRCODE_IDEM_HELD MAKE_SQLSTATE('I', 'K', '0', '0', '5')
#define ERRCODE_IDEM_REDACTED MAKE_SQLSTATE('I', 'K', '0', '0', '6')

#define IDEM_EXTENSION_NAME "idempotency"
#define IDEM_SCHEMA_NAME "idempotency"

/* Who asks for what. The texts may have short headers: use VARDATA_ANY. */
typedef struct KeyIdentity
{
	text *scope;
	text *operation;
	text *key;
	uint64 hash; /* of all three; equal hashes prove nothing */
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
 * there have a constant offset. keys.c checks the order against the catalog.
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
extern void idem_identity(KeyIdentity *id, FunctionCallInfo fcinfo);
extern void idem_identity_build(KeyIdentity *id, text *scope, text *operation,
								text *key);
extern text *idem_scope_argument(FunctionCallInfo fcinfo);
extern bool idem_identity_equal(const KeyIdentity *a, const KeyIdentity *b);
extern text *idem_text_argument(FunctionCallInfo fcinfo, int argno,
								const char *name);
extern int64 idem_duration(FunctionCallInfo fcinfo, int argno,
						   const char *name, int64 minimum, int64 maximum,
						   int64 otherwise);
extern TimestampTz idem_time_after(TimestampTz start, int64 microseconds,
								   const char *name);
extern int64 idem_setting_duration(int64 microseconds);
extern void idem_require_writable(const char *function);

/* claim.c, complete.c, lease.c, replay.c, forget.c, cleanup.c, privileges.c
 * hold SQL functions only */

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
extern bool idem_keys_insert(KeyRow *row);
extern bool idem_keys_update(KeyRow *row, const KeyRow *old);
extern bool idem_keys_write(KeyRow *row, const KeyRow *old);
extern bool idem_keys_delete(const KeyRow *old);
extern uint64 idem_keys_delete_scope(text *scope, bool force);
extern uint64 idem_keys_delete_expired(TimestampTz before, TimestampTz now,
									   int64 max_rows);
extern int64 idem_keys_next_token(const KeyRow *old);
extern const char *idem_keys_status_name(KeyStatus status);
extern bool idem_keys_expired(const KeyRow *row, TimestampTz now);
extern bool idem_keys_lapsed(const KeyRow *row, TimestampTz now);
extern bool idem_keys_held(const KeyRow *row, TimestampTz now);
extern bool idem_keys_response_gone(const KeyRow *row, TimestampTz now);
extern void idem_keys_init(void);

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
	bool stored;   /* unleased: there was a row to replace */
	int64 token;   /* 0 if not leased */
	KeyRow *draft; /* unleased: the row to write at the end */
} PendingState;

extern PendingClaim *idem_pending_find(const KeyIdentity *id);
extern void idem_pending_check_limit(void);
extern PendingClaim *idem_pending_keep(const KeyIdentity *id);
extern const PendingState *idem_pending_state(const PendingClaim *claim);
extern void idem_pending_set(PendingClaim *claim, const PendingState *state);
extern MemoryContext idem_pending_context(void);
extern void idem_pending_init(void);

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
extern void idem_owner_write(OwnedClaim *own, PendingStatus status);
extern void idem_owner_delete(OwnedClaim *own, PendingStatus status);
extern void pg_attribute_noreturn() idem_report_lost_race(void);
extern void idem_report_if_redacted(const KeyRow *row);

/* settings.c: durations in the unit of the setting, see there */
extern int idem_default_ttl;    /* s */
extern int idem_failed_ttl;     /* s */
extern int idem_default_lease;  /* ms */
extern int idem_max_ttl;        /* s */
extern int idem_max_wait;       /* ms */
extern int idem_max_key_length; /* bytes */
extern int idem_max_claims_per_transaction;
extern int idem_max_response_size; /* kB */

#define IDEM_MAX_TTL_US ((int64) idem_max_ttl * USECS_PER_SEC)

extern void idem_settings_init(void);

#endif /* IDEMPOTENCY_H */
