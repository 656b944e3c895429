/*
 * wake: who waits is woken
 *
 * An owner with a lease, who completes, fails, releases, holds or extends; somebody who
 * waits. Nobody wakes up by itself here, so that a wake-up that is missed is a wait
 * without end.
 */
#define CLIENTS 2
#define SESSIONS 2
#define RICH
#define WAKE
#define NOTHING_EXPIRES
#define ALL_TAKE_LOCKS
#include "../clients.pml"

/* claim_decide_waiting() */
proctype Waiter(byte s)
{
	bit locked;
	LOCALS;

	d_step { begin(s, 0) };
	claim(s, 0, 0, 0, 0, 0);
	do
	:: out != BUSY -> break
	:: out == BUSY ->
		if
		:: lock_taken -> lock_wait(s, 0); locked = 1
		:: else -> wake_sleep(s)
		fi;
#ifdef NO_PREPARE_FIRST
		decide(s, 0, locked, 0, 0, 0, 0, 0);
		wake_prepare(s);
#else
		wake_prepare(s);
		decide(s, 0, locked, 0, 0, 0, 0, 0);
#endif
		locked = 0
	od;
	skip;
	d_step { listed[s] = 0; woken[s] = 0 };
	if
	:: out == CLAIMED -> T(s, 0).weff++; owner_call(s, 0, 0, 0)
	:: else
	fi;
	if
	:: err == OK && (out == CLAIMED || out == REPLAY) -> commit(s)
	:: else -> d_step { rollback(s) }
	fi;
	d_step { ANSWERED(s); RESET }
}

init
{
	atomic {
		run Leased(1, 1, 0, 0, 0);
		run Waiter(2)
	}
}
