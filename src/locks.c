/*-------------------------------------------------------------------------
 *
 * locks.c
 *	  The only file that knows how a key becomes a lock.
 *
 * The lock is a queue, no more: it lets rivals for a key find out at once
 * that there is one, or wait for its transaction to end. Who gets the key is
 * decided by the row and its unique index, so a hash collision costs waiting
 * and never a wrong answer.
 *
 * Locks are heavyweight locks of the advisory kind, transaction-level only.
 * The fourth field of their tag is a class of our own: pg_advisory_lock()
 * uses 1 and 2 there (lockfuncs.c), Citus 4 to 15, pg_lake 20 and 21. SQL
 * cannot reach another class, so no user can hold our locks. They show in
 * pg_locks with locktype "advisory" and objsubid 18756.
 *
 * There everybody sees them, of everybody's keys. A digest that can be computed
 * would confirm a guess: is invoice-4711 being paid right now? So it is keyed by
 * a secret that each database makes for itself and only the owner of the
 * extension reads (table lock_secret). It stays where it is: not in dumps, since
 * a restored database makes its own.
 *
 * Locks are taken and given back under the resource owner of the transaction
 * or savepoint, not of the running query: a lock that was waited for inside a
 * subtransaction ends up there, and LockRelease() finds it only there.
 *
 *-------------------------------------------------------------------------
 */
#include "claims.h"
#include "rules.h"
#include "siphash.h"

#include "access/xact.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/resowner.h"

#define IDEM_LOCK_CLASS 0x4944 /* "ID", 18756 */

/*
 * Tests build the library with few bits, to make unlike keys collide.
 */
#ifndef IDEM_LOCK_HASH_BITS
#define IDEM_LOCK_HASH_BITS 64
#endif

static void *
lock_read_secret(TupleTableSlot *slot)
{
	unsigned char *secret = palloc(SIPHASH_KEY_LEN);
	bool isnull;
	Datum value = slot_getattr(slot, 1, &isnull);

	StaticAssertStmt(SIPHASH_KEY_LEN == UUID_LEN, "the secret is a uuid");
	memcpy(secret, DatumGetUUIDP(value), SIPHASH_KEY_LEN);
	return secret;
}

static IdemConfig lock_secret = {.table = "lock_secret", .read_row = lock_read_secret};

/*
 * 64 bits over the three parts, each behind its length, so that moving a
 * boundary between them changes the result; keyed by a secret of the database.
 *
 * Errors: 55000 the secret is missing.
 */
uint64
idem_lock_hash(const KeyIdentity *id)
{
	const text *parts[] = {id->scope, id->operation, id->key};
	unsigned char ordinary[lengthof(parts) * (sizeof(uint32) + IDEM_KEY_LENGTH_BOUND)];
	unsigned char *bytes = ordinary;
	unsigned char *end;
	Size total = 0;

	idem_config_refresh(&lock_secret);
	if (lock_secret.rows == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s.lock_secret is empty", IDEM_SCHEMA_NAME),
				 errhint("Put a secret back: INSERT INTO %s.lock_secret DEFAULT VALUES.",
						 IDEM_SCHEMA_NAME)));
	for (int i = 0; i < (int) lengthof(parts); i++)
		total += sizeof(uint32) + VARSIZE_ANY_EXHDR(parts[i]);
	if (total > sizeof(ordinary))
		bytes = palloc(total); /* only in a row that was written by hand */
	end = bytes;
	for (int i = 0; i < (int) lengthof(parts); i++)
	{
		uint32 length = VARSIZE_ANY_EXHDR(parts[i]);

		memcpy(end, &length, sizeof(length));
		end += sizeof(length);
		memcpy(end, VARDATA_ANY(parts[i]), length);
		end += length;
	}
	return siphash(linitial(lock_secret.rows), bytes, end - bytes) >> (64 - IDEM_LOCK_HASH_BITS);
}

/*
 * The identity of a call that reads or writes the key: the first three arguments,
 * with the hash.
 *
 * Errors: 22004, 22023, 22001 see idem_identity_argument(); 42501 a scope that the
 * role may not use; 55000 one whose home is another node, and see idem_lock_hash().
 */
void
idem_lock_identity(KeyIdentity *id, FunctionCallInfo fcinfo)
{
	idem_identity_argument(id, fcinfo);
	idem_binding_check(id->scope);
	idem_home_check(id->scope);
	id->hash = idem_lock_hash(id);
}

static LockAcquireResult
lock_acquire(const KeyIdentity *id, bool dont_wait)
{
	LOCKTAG tag;
	ResourceOwner caller = CurrentResourceOwner;
	LockAcquireResult result;

	/* Tests build the library so, to see the unique index judge alone. */
#ifdef IDEM_NO_LOCKS
	return LOCKACQUIRE_OK;
#endif
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) (id->hash >> 32),
						 (uint32) id->hash, IDEM_LOCK_CLASS);
	/* An error leaves the owner to abort processing, which sets it anew. */
	CurrentResourceOwner = CurTransactionResourceOwner;
	result = LockAcquire(&tag, ExclusiveLock, false, dont_wait);
	CurrentResourceOwner = caller;
	return result;
}

/*
 * Takes the key's lock if nobody else has it. The lock counts how often it
 * was taken; one that this transaction has already is taken once more.
 *
 * Errors: 53200 when the lock table is full.
 */
bool
idem_lock_try(const KeyIdentity *id)
{
	return lock_acquire(id, true) != LOCKACQUIRE_NOT_AVAIL;
}

/*
 * Takes the key's lock, waiting as for any lock.
 *
 * Errors: 55P03 after the user's lock_timeout, 40P01 deadlock, 57014
 * cancelled, 53200.
 */
void
idem_lock_wait(const KeyIdentity *id)
{
	(void) lock_acquire(id, false);
}

typedef struct BoundedWait
{
	const KeyIdentity *id;
	int timeout; /* ms */
} BoundedWait;

/*
 * The bound is lock_timeout's own, set for this one wait: so the wait is part of
 * deadlock detection and ends the moment that the holder's transaction does. The
 * setting is a plain variable and not transactional, hence put back on every path.
 */
static void
lock_wait_bounded(void *state)
{
	BoundedWait *wait = state;
	int user_timeout = LockTimeout;

	LockTimeout = wait->timeout;
	PG_TRY();
	{
		idem_lock_wait(wait->id);
	}
	PG_FINALLY();
	{
		LockTimeout = user_timeout;
	}
	PG_END_TRY();
}

/*
 * Takes the key's lock, waiting no longer than the given time, and says
 * whether it got it. Where the user's own lock_timeout is shorter, that one
 * rules, with its error.
 *
 * Errors: as idem_lock_wait().
 */
bool
idem_lock_wait_for(const KeyIdentity *id, int64 microseconds)
{
	int64 bound = Min((microseconds + 999) / 1000, INT_MAX);
	BoundedWait wait = {id, (int) Max(bound, 1)};
	ErrorData *error;

	if (LockTimeout > 0 && LockTimeout <= bound)
	{
		idem_lock_wait(id);
		return true;
	}

	error = idem_catch(lock_wait_bounded, &wait);
	if (error == NULL)
		return true;
	if (error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE)
		ReThrowError(error);
	FreeErrorData(error);
	return false;
}

/*
 * Gives back what one successful call above took. Releasing a
 * transaction-level lock early is sound as long as nothing was decided under
 * it, and the counts leave alone what the transaction holds besides.
 */
void
idem_lock_release(const KeyIdentity *id)
{
	LOCKTAG tag;
	ResourceOwner caller = CurrentResourceOwner;

#ifdef IDEM_NO_LOCKS
	return;
#endif
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) (id->hash >> 32),
						 (uint32) id->hash, IDEM_LOCK_CLASS);
	CurrentResourceOwner = CurTransactionResourceOwner;
	(void) LockRelease(&tag, ExclusiveLock, false);
	CurrentResourceOwner = caller;
}
