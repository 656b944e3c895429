/*-------------------------------------------------------------------------
 *
 * claims.h
 *	  Who may do the work: the lock of a key, waiting for it, what a transaction
 *	  has claimed, and whose claim a key is.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_CLAIMS_H
#define IDEMPOTENCY_CLAIMS_H

#include "rows.h"

/* locks.c */
extern uint64 idem_lock_hash(const KeyIdentity *id);
extern void idem_lock_identity(KeyIdentity *id, FunctionCallInfo fcinfo);
extern bool idem_lock_try(const KeyIdentity *id);
extern void idem_lock_wait(const KeyIdentity *id);
extern bool idem_lock_wait_for(const KeyIdentity *id, int64 microseconds);
extern void idem_lock_release(const KeyIdentity *id);

/* wake.c */
extern void idem_wake_prepare(const KeyIdentity *id);
extern void idem_wake_sleep(const KeyIdentity *id, int64 microseconds);
extern bool idem_wake_enter(const KeyIdentity *id);
extern void idem_wake_leave(void);
extern void idem_wake_waiters(uint64 hash);
extern void idem_wake_init(void);

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
extern PendingClaim *idem_pending_find_last(KeyIdentity *id);
extern void idem_pending_check_limit(void);
extern PendingClaim *idem_pending_keep(const KeyIdentity *id);
extern const PendingState *idem_pending_state(const PendingClaim *claim);
extern void idem_pending_set(PendingClaim *claim, const PendingState *state);
extern MemoryContext idem_pending_context(void);
extern bool idem_pending_left_open(void);
extern void idem_pending_end(bool committed);
extern void idem_pending_init(void (*opens)(void));

/* commit.c */
extern void idem_commit_init(void);

/* claim.c */
typedef struct ClaimRequest
{
	KeyIdentity id;
	KeyClaim claim;
	bool keep_lease; /* a takeover: its length is that of the claim's own, if it has one */
	int64 wait;      /* microseconds; 0: do not */
	bool wait_for_transaction_only;
	bool at_once;        /* once(): completed with the claim */
	bool only_abandoned; /* claim_abandoned(): nothing but a takeover */
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

/* complete.c */
extern void idem_complete_own(const KeyIdentity *id, const IdemResponse *response,
							  KeyRow *row);

#endif /* IDEMPOTENCY_CLAIMS_H */
