/*
 * lease: work outside of the database, under a committed claim
 *
 * Two clients want one key, one of them with a claim_id by which it repeats a claim
 * whose answer it has not got. Leases lapse, also under owners who are still at it;
 * claims are taken over, late owners come back; clean-up deletes what has expired.
 */
#define CLIENTS 2
#define SESSIONS 3
#define CANLOSE
#include "../clients.pml"

init
{
	atomic {
		run Leased(1, 2, 1, 0, 0);
		run Leased(2, 1, 0, 0, 0);
		run Cleaner(3, 1);
		run Clock(NO_LIMIT)
	}
}
