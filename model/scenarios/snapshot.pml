/*
 * snapshot: a transaction with a snapshot of its own, REPEATABLE READ or above
 *
 * It must not go on with an answer that its snapshot does not see: it would work on
 * business rows that are older than the key.
 */
#define CLIENTS 2
#define SESSIONS 2
#define ALL_TAKE_LOCKS
#include "../clients.pml"

init
{
	atomic {
		run InTransaction(1, 2, 1, 0);
		run InTransaction(2, 2, 0, 0);
		run Faults(1)
	}
}
