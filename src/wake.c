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
 * second, or a few times a second where it cannot be woken.
 *
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

#include "miscadmin.h"

/* Longest sleep, in microseconds, if we can be woken, and if not. */
#define WAKEABLE_US (1000 * INT64CONST(1000))
#define BLIND_US (50 * INT64CONST(1000))

static ConditionVariable *
wakeup_of(uint64 hash)
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
		ConditionVariablePrepareToSleep(wakeup_of(id->hash));
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
		(void) ConditionVariableTimedSleep(wakeup_of(id->hash), ms, event);
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
 * The wait is over. After an error abort does the same.
 */
void
idem_wake_done(void)
{
	if (idem_shared != NULL)
		ConditionVariableCancelSleep();
}

/*
 * Wakes who waits for a key of this hash. Called when the transaction has
 * committed, so it must not fail.
 */
void
idem_wake_waiters(uint64 hash)
{
	if (idem_shared != NULL)
		ConditionVariableBroadcast(wakeup_of(hash));
}
