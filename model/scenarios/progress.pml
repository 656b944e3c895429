/*
 * progress: no key is stuck for ever
 *
 * Two clients ask until they know that the work was done: one in its transaction, one
 * with a lease. An owner may vanish, a connection break, the server crash, and a lease
 * lapse too early, each once or twice. Then, if nobody is kept from taking steps for
 * ever (weak fairness), everybody gets the answer.
 */
#define CLIENTS 2
#define SESSIONS 2
#define NOTHING_EXPIRES
#define UNTIL_DONE
#define OWNERS_VANISH
#include "../clients.pml"

/* A lease that nobody knows of lapses; another one does so too early. */
proctype Leases(byte early)
{
end:
	do
	:: atomic { com[0].live && known[1] != com[0].tok && known[2] != com[0].tok -> com[0].live = 0; printf("the lease of key 0 lapses\n") }
	:: atomic { com[0].live && early > 0 -> early--; com[0].live = 0; printf("the lease of key 0 lapses too early\n") }
	od
}

init
{
	atomic {
		run InTransaction(1, 1, 0, 0);
		run Leased(2, 1, 0, 0, 0);
		run Leases(1);
		run Faults(1)
	}
}

ltl everybody_gets_an_answer { <> (ended[1] && ended[2]) }
