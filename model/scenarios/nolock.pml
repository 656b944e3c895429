/*
 * nolock: the lock is a queue, the unique index is the judge
 *
 * The locks are compiled out. Then transactions fail with 40001 that need not, and
 * nothing else is wrong.
 */
#define CLIENTS 2
#define SESSIONS 3
#define NO_LOCKS
#define CALLERS_WITHOUT_LOCKS
#include "../clients.pml"

init
{
	atomic {
		some_state(81);
		run InTransaction(1, 2, 0, 0);
		run Leased(2, 2, 0, 0, 0);
		run Cleaner(3, 1);
		run Clock(3)
	}
}
