/*
 * index: the unique index judges between those who take key locks and those who do not
 *
 * A client that works in its transaction; once_batch() and forget_scope(), which take
 * no locks. The key is new, or has failed, with a token or without, or has expired.
 */
#define CLIENTS 2
#define SESSIONS 3
#define CALLERS_WITHOUT_LOCKS
#define TOKEN short
#include "../clients.pml"
#include "../batch.pml"

init
{
	atomic {
		some_state(95);
		run InTransaction(1, 2, 0, 0);
		run Batch(2, 0, 0);
		run ForgetScope(3);
		run Clock(2)
	}
}
