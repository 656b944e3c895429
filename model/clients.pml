/*
 * clients.pml - those who call: what several scenarios share
 *
 * A client ends a call that has failed by a rollback, and begins again. If its
 * connection breaks it does not know whether it has committed; it asks again.
 */
#include "idempotency.pml"

#define LOCALS mtype out = BUSY; mtype err = OK; mtype own = OPEN; mtype verb = COMPLETE; \
	bit got; bit hit; bit rep; bit lock_taken; TOKEN new
#define RESET out = BUSY; err = OK; own = OPEN; verb = COMPLETE; got = 0; hit = 0; rep = 0; lock_taken = 0; new = 0

/* Some ask until they know that the work was done. Whoever ends has "ended". */
#ifdef UNTIL_DONE
#define TRIED skip
#define SATISFIED(s) if :: out == REPLAY -> tries = 0 :: else fi
#define ENDS(s) ended[s] = 1
#define KNOWS(s, token) known[s] = token
bit ended[SESSIONS + 1];
TOKEN known[SESSIONS + 1];
#else
#define TRIED tries--
#define SATISFIED(s) skip
#define ENDS(s) skip
#define KNOWS(s, token) skip
#endif

/* The answer, of whatever kind, has arrived; or the connection is known to be gone. */
#define ANSWERED(s) conn[s] = 0; broken[s] = 0

/*
 * Work that is only SQL, in the transaction of the claim. Some of these clients forget
 * to end their claim, some roll back to a savepoint before it and go on.
 */
proctype InTransaction(byte s; byte tries; bit snapshot; bit fp)
{
	LOCALS;

	do
	:: tries == 0 -> break
	:: tries > 0 ->
		{
			d_step { TRIED; begin(s, snapshot) };
			claim(s, 0, 0, 0, fp, 0);
			atomic {
			if
			:: err == OK && out == CLAIMED ->
				if
				:: T(s, 0).weff++; printf("session %d does the work\n", s)
#ifndef UNTIL_DONE
				:: verb = FAIL
#endif
#ifdef RICH
				:: verb = RELEASE
#ifdef HOLDS
				:: verb = HOLD
#endif
				:: d_step { /* ROLLBACK TO a savepoint before the claim */
						free_locks(s);
						savepoint_rolled_back(s, 0);
						printf("session %d rolls back to a savepoint, and goes on\n", s)
					}
#endif
				fi;
				if
				:: owner_call(s, 0, 0, 0)
#ifdef RICH
				:: verb == COMPLETE -> printf("session %d forgets to complete\n", s)
#endif
				fi
			:: else
			fi
			};
			if
			:: err == OK && (out == CLAIMED || out == REPLAY) -> commit(s); d_step { SATISFIED(s); ANSWERED(s); RESET }
			:: else -> d_step { rollback(s); ANSWERED(s); RESET }
			fi
		} unless {
			broken[s] -> d_step { ANSWERED(s); RESET }
		}
	od;
	ENDS(s)
}

/*
 * Work outside of the database: a claim with a lease that commits, the effect, which
 * the other side takes only if no larger token came before, and the completion
 * together with rows of its own, in a transaction that is repeated if its answer
 * is lost.
 */
proctype Leased(byte s; byte tries; byte id; bit may_hold; bit fp)
{
	TOKEN token;
	bit worked;
	LOCALS;

	do
	:: tries == 0 && token == 0 -> break
	:: tries > 0 && token == 0 ->
		{
			d_step { TRIED; begin(s, 0) };
			claim(s, 0, 1, id, fp, may_hold);
			if
			:: err == OK && out == CLAIMED ->
				new = T(s, 0).tok;
				commit(s)
			:: else -> d_step { rollback(s); new = 0 }
			fi;
			/* The answer to COMMIT arrives; from here on the client has the token. */
			d_step { token = new; KNOWS(s, token); SATISFIED(s); ANSWERED(s); RESET }
		} unless {
			broken[s] -> d_step { ANSWERED(s); RESET }
		}
	:: token != 0 && !worked ->
		/* Outside, at any time. What the other side is handed is compared there. */
		d_step {
			/* Who still has the claim is let in. */
			CHECK(I1_tokens_grow, com[0].st != INPROG || com[0].tok != token || token >= ext[0]);
			if
			:: token >= ext[0] -> ext[0] = token; printf("session %d does the work outside\n", s)
			:: else -> printf("session %d is refused outside\n", s)
			fi;
			worked = 1
		}
	:: token != 0 && worked ->
		{
			d_step { begin(s, 0) };
			if
			:: T(s, 0).weff++
#ifdef RICH
			:: verb = FAIL
			:: verb = RELEASE
			:: verb = HOLD
			:: verb = EXTEND
#endif
			fi;
			owner_call(s, 0, token, 1);
			if
			:: err == OK -> commit(s)
			:: else -> d_step { rollback(s) }
			fi;
			d_step {
				if
				:: verb != EXTEND || err != OK ->
					tries = (err == OK -> 0 : tries);
					token = 0;
					KNOWS(s, 0);
					worked = 0
				:: else
				fi;
				ANSWERED(s);
				RESET
			}
		} unless {
			broken[s] -> d_step { ANSWERED(s); RESET }
		}
#ifdef OWNERS_VANISH
	:: token != 0 ->
		printf("session %d is never heard of again\n", s);
		d_step { token = 0; KNOWS(s, 0); tries = 0; worked = 0 }
#endif
	od;
	ENDS(s)
}

proctype Cleaner(byte s; byte passes)
{
	bit hit;

	do
	:: passes == 0 -> break
	:: passes > 0 ->
		{
			passes--;
			conn[s] = 1;
			cleanup_batch(s, 0);
			if
			:: d_step { become_visible(s, 0); end_transaction(s) }
			:: d_step { rollback(s) }
			fi;
			d_step { ANSWERED(s); hit = 0 }
		} unless {
			broken[s] -> d_step { ANSWERED(s); hit = 0 }
		}
	od
}

/* The key is new, or has failed, with a token or without, or has expired. */
/* The token is one that the clock, set back since, is behind. */
inline some_state(token)
{
	if
	:: true
	:: d_step { com[0].st = FAILED; com[0].tok = token; hi[0] = token; seq = 1; seqdur = 1 }
	:: d_step { com[0].st = FAILED }
	:: d_step { com[0].st = DONE; com[0].over = 1; com[0].tok = token; hi[0] = token; seq = 1; seqdur = 1 }
	fi
}
