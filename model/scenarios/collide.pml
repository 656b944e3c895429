/*
 * collide: two keys have one lock
 *
 * A client claims both in one transaction, works and completes; another one wants one
 * of them. Unlike keys with one hash wait for each other and get no wrong answer.
 */
#define CLIENTS 2
#define SESSIONS 2
#define KEYS 2
#define H(k) 0
#define ALL_TAKE_LOCKS
#include "../clients.pml"

proctype Both(byte s)
{
	bit mine[2];
	LOCALS;

	d_step { begin(s, 0) };
	claim(s, 0, 0, 0, 0, 0);
	atomic { mine[0] = (out == CLAIMED); T(s, 0).weff = mine[0] };
	claim(s, 1, 0, 0, 0, 0);
	atomic { mine[1] = (out == CLAIMED); T(s, 1).weff = mine[1] };
	/* Nobody gets a key twice in one transaction. */
	claim(s, 0, 0, 0, 0, 0);
	CHECK(I2_one_owner, !mine[0] || out == BUSY);
	/* Who has got one of them does not lose it by asking for the other. */
	CHECK(I11_keys_apart, !(mine[0] || mine[1]) || lockof[0] == s);
	if
	:: mine[1] -> owner_call(s, 1, 0, 0)
	:: else
	fi;
	if
	:: mine[0] -> owner_call(s, 0, 0, 0)
	:: else
	fi;
	commit(s);
	d_step { ANSWERED(s) }
}

init
{
	atomic {
		run Both(1);
		run InTransaction(2, 2, 0, 0)
	}
}
