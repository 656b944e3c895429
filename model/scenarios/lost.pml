/*
 * lost: answers that do not arrive, under a committed claim
 *
 * Two clients want one key, one of them with a claim_id by which it repeats a claim
 * whose answer it has not got; both repeat a completion, and refuse to have it twice.
 * Connections break at any point, the server crashes, leases lapse.
 */
#define CLIENTS 2
#define SESSIONS 2
#define NOTHING_EXPIRES
#define CANLOSE
#include "../clients.pml"

init
{
	atomic {
		run Leased(1, 3, 1, 0, 0);
		run Leased(2, 1, 0, 0, 0);
		run Clock(NO_LIMIT);
		run Faults(2)
	}
}
