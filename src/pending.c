/*-------------------------------------------------------------------------
 *
 * pending.c
 *	  The claims of the running transaction: what has been claimed, how it
 *	  stands, and how it stood before each open savepoint.
 *
 * A claim without a lease writes nothing until it is completed. Until then it
 * lives here, in memory that ends with the transaction, while its lock keeps
 * rivals away. That is what makes a key cost one row insert, and what frees
 * it the moment the transaction fails.
 *
 * Savepoints. The first change to a claim within a subtransaction pushes the
 * previous state on an undo stack, with the nesting level it belongs to.
 * Rolling back to a savepoint pops and restores; releasing one hands its
 * entries to the level above, less those of claims that have one there. The
 * key's lock is undone by the server in the same way, and so are rows.
 *
 * Memory. A draft holds what checkpoint() was given, and there may be many in
 * one transaction. It is freed as soon as no state needs it: that of the claim
 * or one to go back to.
 *
 * The only state that outlives a call is reset at the end of every
 * transaction: COMMIT, ABORT and also PREPARE, after which the connection
 * goes on with a transaction that has claimed nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "claims.h"

#include "access/xact.h"
#include "utils/memutils.h"

typedef struct PendingUndo PendingUndo;

/* One chunk with the texts of its identity. */
struct PendingClaim
{
	KeyIdentity id;
	PendingState state;
	PendingUndo *undo;   /* the newest of its own, or NULL */
	PendingClaim *next;  /* in the same bucket */
	PendingClaim *older; /* made before, of any hash */
};

struct PendingUndo
{
	int level; /* nesting level that made the change; one for each claim */
	PendingClaim *claim;
	bool created; /* no previous state: forget the claim */
	PendingState state;
	PendingUndo *older;    /* of the same claim */
	PendingUndo *previous; /* of any */
};

/*
 * All claims by their hash: as many buckets as there are claims or more. The first
 * few are always there, since most transactions have one claim, and making a hash
 * table (dynahash.c) costs as much as all else that is done here.
 */
#define FIRST_BUCKETS 16
static PendingClaim *pending_first_buckets[FIRST_BUCKETS];
static PendingClaim **pending_buckets = pending_first_buckets;
static int pending_nbuckets = FIRST_BUCKETS; /* a power of two */

/* What these point to lives in TopTransactionContext; see pending_reset(). */
static PendingClaim *pending_newest = NULL;
static PendingUndo *pending_undo = NULL;
static int pending_nclaims = 0; /* entries, each with its lock */
static int pending_nopen = 0;   /* without a lease and unfinished */

static void (*pending_claim_opens)(void) = NULL;

static void
pending_reset(void)
{
	if (pending_newest != NULL)
		memset(pending_first_buckets, 0, sizeof(pending_first_buckets));
	pending_buckets = pending_first_buckets;
	pending_nbuckets = FIRST_BUCKETS;
	pending_newest = NULL;
	pending_undo = NULL;
	pending_nclaims = 0;
	pending_nopen = 0;
}

static bool
pending_is_left_open(const PendingState *state)
{
	return state->status == PENDING_OPEN && !state->leased;
}

static void
pending_change(PendingClaim *claim, const PendingState *state)
{
	pending_nopen += pending_is_left_open(state) - pending_is_left_open(&claim->state);
	claim->state = *state;
}

/*
 * Frees the rows of a state that is given up, save those that a state beside it
 * in the claim's history has as well. A state takes its rows over from the one
 * before, so they are nowhere else.
 */
static void
pending_free_rows(const PendingState *state, const PendingState *newer, const PendingState *older)
{
	if (state->draft != NULL && (newer == NULL || newer->draft != state->draft) &&
		(older == NULL || older->draft != state->draft))
		pfree(state->draft);
	if (state->over != NULL && (newer == NULL || newer->over != state->over) &&
		(older == NULL || older->over != state->over))
		pfree(state->over);
}

/*
 * Keeps the claim's state for a rollback of the current savepoint. False if
 * there is none, or one is kept already: then the state is given up.
 */
static bool
pending_remember(PendingClaim *claim, bool created)
{
	PendingUndo *entry;
	int level = GetCurrentTransactionNestLevel();

	/* The outermost level has nothing to go back to but its own end. */
	if (level <= 1 || (claim->undo != NULL && claim->undo->level >= level))
		return false;
	entry = MemoryContextAlloc(TopTransactionContext, sizeof(PendingUndo));
	entry->level = level;
	entry->claim = claim;
	entry->created = created;
	entry->state = claim->state;
	entry->older = claim->undo;
	entry->previous = pending_undo;
	claim->undo = entry;
	pending_undo = entry;
	return true;
}

/*
 * Where what a claim needs until the end of the transaction is kept.
 */
MemoryContext
idem_pending_context(void)
{
	return TopTransactionContext;
}

/*
 * The state that an entry of a claim's history goes back to, or NULL.
 */
static const PendingState *
pending_undo_state(const PendingUndo *entry)
{
	return entry == NULL || entry->created ? NULL : &entry->state;
}

static PendingClaim **
pending_bucket_of(uint64 hash)
{
	return &pending_buckets[hash & (pending_nbuckets - 1)];
}

/*
 * Twice as many buckets, once there are as many claims.
 */
static void
pending_grow_buckets(void)
{
	pending_buckets = MemoryContextAllocExtended(TopTransactionContext,
												 sizeof(PendingClaim *) * 2 * pending_nbuckets,
												 MCXT_ALLOC_ZERO | MCXT_ALLOC_HUGE);
	pending_nbuckets *= 2;
	for (PendingClaim *claim = pending_newest; claim != NULL; claim = claim->older)
	{
		PendingClaim **bucket = pending_bucket_of(claim->id.hash);

		claim->next = *bucket;
		*bucket = claim;
	}
}

/*
 * This transaction's entry for a key, or NULL. Compares whole identities: to
 * hold the lock already proves nothing, since unlike keys may share it.
 */
PendingClaim *
idem_pending_find(const KeyIdentity *id)
{
	for (PendingClaim *claim = *pending_bucket_of(id->hash); claim != NULL; claim = claim->next)
		if (claim->id.hash == id->hash && idem_identity_equal(&claim->id, id))
			return claim;
	return NULL;
}

/*
 * The entry that this transaction made last, if it is that of a key whose hash is
 * not known yet; or NULL. Most often it is, and then nobody need compute the hash.
 */
PendingClaim *
idem_pending_find_last(KeyIdentity *id)
{
	if (pending_newest == NULL || !idem_identity_equal(&pending_newest->id, id))
		return NULL;
	id->hash = pending_newest->id.hash;
	return pending_newest;
}

const PendingState *
idem_pending_state(const PendingClaim *claim)
{
	return &claim->state;
}

/*
 * Refuses one key more than a transaction may keep locks for: the lock table
 * is shared by the whole server.
 *
 * Errors: 54000.
 */
void
idem_pending_check_limit(void)
{
	if (pending_nclaims >= idem_max_claims_per_transaction)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("too many keys in one transaction"),
				 errdetail("At most %d may be claimed or decided about.",
						   idem_max_claims_per_transaction),
				 errhint("Commit more often, or raise \"idempotency.max_claims_per_transaction\""
						 " together with \"max_locks_per_transaction\".")));
}

static text *
pending_copy_text(char **to, const text *source)
{
	text *copy = (text *) *to;

	memcpy(copy, source, VARSIZE_ANY(source));
	*to += INTALIGN(VARSIZE_ANY(source));
	return copy;
}

/*
 * Makes the entry for a key whose lock this transaction now keeps. The key
 * must have none yet.
 */
PendingClaim *
idem_pending_keep(const KeyIdentity *id)
{
	PendingClaim **bucket;
	PendingClaim *claim;
	char *texts;

	if (pending_nclaims == pending_nbuckets)
		pending_grow_buckets();
	claim = MemoryContextAlloc(TopTransactionContext,
							   MAXALIGN(sizeof(PendingClaim)) + INTALIGN(VARSIZE_ANY(id->scope)) +
								   INTALIGN(VARSIZE_ANY(id->operation)) + VARSIZE_ANY(id->key));
	MemSet(claim, 0, sizeof(PendingClaim));
	texts = (char *) claim + MAXALIGN(sizeof(PendingClaim));
	claim->id.hash = id->hash;
	claim->id.scope = pending_copy_text(&texts, id->scope);
	claim->id.operation = pending_copy_text(&texts, id->operation);
	claim->id.key = pending_copy_text(&texts, id->key);
	bucket = pending_bucket_of(id->hash);
	pending_remember(claim, true);

	/* Nothing below can fail, so the undo stack and the table agree. */
	claim->next = *bucket;
	*bucket = claim;
	claim->older = pending_newest;
	pending_newest = claim;
	pending_nclaims++;
	return claim;
}

/*
 * Changes how a claim stands, until a rollback of the current savepoint. The
 * rows of the new state are those of the old one, or single chunks in
 * idem_pending_context() that are ours from here on.
 */
void
idem_pending_set(PendingClaim *claim, const PendingState *state)
{
	PendingState given_up = claim->state;
	bool kept;

	if (pending_is_left_open(state) && !pending_is_left_open(&claim->state))
		pending_claim_opens();
	kept = pending_remember(claim, false);
	pending_change(claim, state);
	if (!kept)
		pending_free_rows(&given_up, state, pending_undo_state(claim->undo));
}

/*
 * Goes back to an older state.
 */
static void
pending_restore(PendingClaim *claim, const PendingState *state)
{
	pending_free_rows(&claim->state, NULL, state);
	pending_change(claim, state);
}

/*
 * The claim's savepoint is rolled back, and its lock with it.
 */
static void
pending_forget(PendingClaim *claim)
{
	PendingState none = {0};
	PendingClaim **link;

	/* Whatever was made later belongs to the same rollback and is gone. */
	Assert(pending_newest == claim);
	pending_newest = claim->older;

	pending_restore(claim, &none);
	for (link = pending_bucket_of(claim->id.hash); *link != claim; link = &(*link)->next)
		Assert(*link != NULL);
	*link = claim->next;
	pending_nclaims--;
	pfree(claim);
}

/*
 * A savepoint is released: its undo entries become those of the level above.
 * Where that has none to go back to, or has kept an older state of the claim,
 * they are given up.
 */
static void
pending_release_savepoint(int level)
{
	PendingUndo **link = &pending_undo;

	/* Entries stay in order of age, so the newest are on top. */
	while (*link != NULL && (*link)->level >= level)
	{
		PendingUndo *entry = *link;
		PendingClaim *claim = entry->claim;

		Assert(claim->undo == entry);
		if (level > 2 && (entry->older == NULL || entry->older->level < level - 1))
		{
			entry->level = level - 1;
			link = &entry->previous;
			continue;
		}
		if (!entry->created)
			pending_free_rows(&entry->state, &claim->state, pending_undo_state(entry->older));
		claim->undo = entry->older;
		*link = entry->previous;
		pfree(entry);
	}
}

static void
pending_subtransaction_ends(SubXactEvent event, SubTransactionId mySubid pg_attribute_unused(),
							SubTransactionId parentSubid pg_attribute_unused(),
							void *arg pg_attribute_unused())
{
	int level;

	if (pending_undo == NULL)
		return;
	level = GetCurrentTransactionNestLevel();

	if (event == SUBXACT_EVENT_ABORT_SUB)
	{
		while (pending_undo != NULL && pending_undo->level >= level)
		{
			PendingUndo *entry = pending_undo;

			pending_undo = entry->previous;
			entry->claim->undo = entry->older;
			if (entry->created)
				pending_forget(entry->claim);
			else
				pending_restore(entry->claim, &entry->state);
			pfree(entry);
		}
	}
	else if (event == SUBXACT_EVENT_COMMIT_SUB)
		pending_release_savepoint(level);
}

/*
 * The transaction has committed: who waits for a claim that it has finished
 * need wait no longer. Claims without a lease are waited for by their lock.
 */
static void
pending_wake_waiters(void)
{
	for (PendingClaim *claim = pending_newest; claim != NULL; claim = claim->older)
		if (claim->state.leased && claim->state.status != PENDING_OPEN)
			idem_wake_waiters(claim->id.hash);
}

/*
 * Whether the transaction must not commit as it stands.
 */
bool
idem_pending_left_open(void)
{
	return pending_nopen > 0;
}

/*
 * The transaction has committed, or else has been rolled back or prepared.
 */
void
idem_pending_end(bool committed)
{
	if (committed)
		pending_wake_waiters();
	pending_reset();
}

/*
 * "opens" is called when a claim without a lease is about to be opened.
 */
void
idem_pending_init(void (*opens)(void))
{
	pending_claim_opens = opens;
	RegisterSubXactCallback(pending_subtransaction_ends, NULL);
}
