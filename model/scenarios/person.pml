/*
 * person: outcomes that nobody knows, and who decides about them
 *
 * An owner with hold_if_abandoned fails, releases, holds, extends or completes, or is
 * never heard of again; a client that works in its transaction, and may hold the key as
 * well, wants the same key with another request; a person resolves or forgets it, with
 * force and without; clean-up goes on.
 */
#define CLIENTS 3
#define SESSIONS 4
#define RICH
#define OWNERS_VANISH
#define HOLDS
#include "../clients.pml"

proctype Person(byte s; byte calls)
{
	bit retry;
	bit force;
	mtype err = OK;
	bit hit;

	do
	:: calls == 0 -> break
	:: calls > 0 ->
		atomic {
			calls--;
			if
			:: retry = 1
			:: true
			:: force = 1
			fi
		};
		if
		:: !force -> resolve(s, 0, retry)
		:: !retry -> forget(s, 0, force)
		fi;
		if
		:: err == OK -> d_step { become_visible(s, 1); printf("session %d commits\n", s) }; d_step { end_transaction(s); retry = 0; force = 0 }
		:: else -> d_step { rollback(s); retry = 0; force = 0; err = OK }
		fi
	od
}

init
{
	atomic {
		run Leased(1, 1, 0, 1, 0);
		run InTransaction(2, 1, 0, 1);
		run Person(3, 1);
		run Cleaner(4, 1);
		run Clock(3)
	}
}
