/*
 * late: an owner comes late, and meanwhile somebody without key locks has had the key
 *
 * A client with a lease; once_batch(), which replaces its claim once that has lapsed
 * and expired; clean-up, which deletes it; forget_scope().
 */
#define CLIENTS 2
#define SESSIONS 4
#define CALLERS_WITHOUT_LOCKS
#include "../clients.pml"
#include "../batch.pml"

init
{
	atomic {
		run Leased(1, 1, 0, 0, 0);
		run Batch(2, 0, 0);
		run ForgetScope(3);
		run Cleaner(4, 1);
		run Clock(3)
	}
}
