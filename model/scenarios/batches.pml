/*
 * batches: batches that overlap
 *
 * Two calls of once_batch() with the same two keys, and clean-up. They meet in the
 * order of the keys, so one waits for the other and neither for ever: a state in which
 * nobody can go on is an error here, as everywhere.
 */
#define CLIENTS 2
#define SESSIONS 3
#define KEYS 2
#define CALLERS_WITHOUT_LOCKS
#include "../clients.pml"
#define TWO_BATCHES
#include "../batch.pml"

init
{
	atomic {
		if
		:: true
		:: d_step { com[0].st = FAILED; com[0].tok = 81; hi[0] = 81; com[1].st = FAILED; seq = 1 }
		fi;
		run Batch(1, 0, 1);
#ifdef NO_BATCH_ORDER
		run Batch(2, 1, 0);
#else
		run Batch(2, 0, 1);
#endif
		run Cleaner(3, 1);
		run Clock(2)
	}
}
