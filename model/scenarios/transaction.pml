/*
 * transaction: work that is only SQL, in the transaction of the claim
 *
 * Two clients want one key. They claim, work and complete, or fail, release, forget to
 * complete, or roll back to a savepoint before the claim and go on. The key expires,
 * clean-up deletes it; connections break, the server crashes and loses what was
 * not flushed.
 */
#define CLIENTS 2
#define SESSIONS 3
#define CANLOSE
#define RICH
#define DRAFTS_AGE
#define ALL_TAKE_LOCKS
#include "../clients.pml"

init
{
	atomic {
		run InTransaction(1, 2, 0, 0);
		run InTransaction(2, 1, 0, 0);
		run Cleaner(3, 1);
		run Clock(NO_LIMIT);
		run Faults(1)
	}
}
