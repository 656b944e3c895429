/*-------------------------------------------------------------------------
 *
 * wake.c
 *	  Sleeping until a committed claim is finished, and waking those who do.
 *
 * A rival in an open transaction is waited for by its lock. A claim that is
 * committed holds none; who waits for it sleeps on a condition variable in
 * shared memory, picked by the key's hash, and is woken by the commit of the
 * transaction that completes, fails or releases the claim. A wake-up is a
 * hint: unlike keys share a variable, a prepared transaction is committed by
 * somebody who does not know its keys, and without preloading there are no
 * variables at all. So the sleeper looks by itself, too, at least once a
 * second, or twenty times a second where it cannot be woken.
 *
 * Who waits is counted, since each keeps a connection that somebody else, the
 * owner of the claim perhaps, may need.
 *
 *-------------------------------------------------------------------------
 */
#include "claims.h"
#include "server.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/proc.h"

/* Longest sleep, in microseconds, if we can be woken, and if not. */
#define WAKEABLE_US (1000 * INT64CONST(1000))
#define BLIND_US (50 * INT64CONST(1000))

/* Whether this backend is counted among those who wait. */
static bool wake_waiting = false;
static int wake_waiting_level; /* transaction nesting that began to wait */

static ConditionVariable *
wake_variable(uint64 hash)
{
	return &idem_shared->wakeups[hash % IDEM_NWAKEUPS];
}

/*
 * To be called before the look that decides whether to sleep: what is
 * signalled after that look is then not missed. Looking may read a page from
 * disk, which uses a condition variable of its own and cancels this one; the
 * next sleep then returns at once and we look once more.
 */
void
idem_wake_prepare(const KeyIdentity *id)
{
	if (idem_shared != NULL)
		ConditionVariablePrepareToSleep(wake_variable(id->hash));
}

/*
 * Sleeps until woken, or at most so many microseconds; interruptible.
 */
void
idem_wake_sleep(const KeyIdentity *id, int64 microseconds)
{
	uint32 event = wait_event_compat("IdempotencyClaim");
	long ms;

	if (idem_shared != NULL)
	{
		ms = (long) Max(Min(microseconds, WAKEABLE_US) / 1000, 1);
		(void) ConditionVariableTimedSleep(wake_variable(id->hash), ms, event);
	}
	else
	{
		ms = (long) Max(Min(microseconds, BLIND_US) / 1000, 1);
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 ms, event);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Whether this backend may wait for a key: fewer than max_waiters_per_key do,
 * and fewer than max_waiters at all. If so it counts as one who does, until
 * idem_wake_leave(), and who comes at the same moment sees it. To be counted
 * needs shared memory; without preloading there is no limit.
 */
bool
idem_wake_enter(const KeyIdentity *id)
{
	bool may = true;

	if (idem_shared == NULL)
		return true;
	LWLockAcquire(idem_shared->lock, LW_EXCLUSIVE);
	if (idem_max_waiters > 0 || idem_max_waiters_per_key > 0)
	{
		int waiters = 0;
		int rivals = 0;

		for (int i = 0; i < MaxBackends; i++)
		{
			const IdemWaiter *waiter = &idem_shared->waiters[i];

			if (!waiter->waiting)
				continue;
			waiters++;
			if (waiter->database == MyDatabaseId && waiter->hash == id->hash)
				rivals++;
		}
		may = (idem_max_waiters == 0 || waiters < idem_max_waiters) &&
			(idem_max_waiters_per_key == 0 || rivals < idem_max_waiters_per_key);
	}
	if (may)
	{
		IdemWaiter *own = &idem_shared->waiters[MY_PROC_NUMBER];

		own->database = MyDatabaseId;
		own->hash = id->hash;
		own->waiting = true;
		wake_waiting = true;
		wake_waiting_level = GetCurrentTransactionNestLevel();
	}
	LWLockRelease(idem_shared->lock);
	return may;
}

/*
 * The wait is over. Abort of a transaction or a savepoint does this, too.
 */
void
idem_wake_leave(void)
{
	if (!wake_waiting)
		return;
	wake_waiting = false;
	ConditionVariableCancelSleep();
	LWLockAcquire(idem_shared->lock, LW_EXCLUSIVE);
	idem_shared->waiters[MY_PROC_NUMBER].waiting = false;
	LWLockRelease(idem_shared->lock);
}

/*
 * Wakes who waits for a key of this hash. Called when the transaction has
 * committed, so it must not fail.
 */
void
idem_wake_waiters(uint64 hash)
{
	if (idem_shared != NULL)
		ConditionVariableBroadcast(wake_variable(hash));
}

/*
 * An error while waiting comes up through the level that entered the wait. The
 * bounded wait for a lock rolls back a savepoint of its own, within it.
 */
static void
wake_transaction_ends(XactEvent event, void *arg pg_attribute_unused())
{
	if (event == XACT_EVENT_ABORT)
		idem_wake_leave();
}

static void
wake_subtransaction_ends(SubXactEvent event, SubTransactionId mySubid pg_attribute_unused(),
						 SubTransactionId parentSubid pg_attribute_unused(),
						 void *arg pg_attribute_unused())
{
	if (wake_waiting && event == SUBXACT_EVENT_ABORT_SUB &&
		GetCurrentTransactionNestLevel() <= wake_waiting_level)
		idem_wake_leave();
}

void
idem_wake_init(void)
{
	RegisterXactCallback(wake_transaction_ends, NULL);
	RegisterSubXactCallback(wake_subtransaction_ends, NULL);
}
