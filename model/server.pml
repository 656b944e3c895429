/*
 * server.pml - what the protocol rests on: PostgreSQL, as far as a key can see it
 *
 * Rows with versions, transactions that become visible and then let go of their locks,
 * the unique index, row locks, advisory locks, the sequence, the flush at commit; a
 * clock; connections that break and a server that crashes.
 *
 * A key has at most one version that is committed, "com", and at most one that is
 * not, "unc", of the transaction "wr": whoever wants to write the same row, or insert
 * the same key, waits for that one in the server as well. A row that is only locked
 * (FOR UPDATE) has a writer and is not dirty.
 *
 * No version has an identity here. What a session remembers of the version it read is
 * whether that is still the current one ("same"): that is all that an UPDATE by ctid
 * and contents can tell.
 *
 * Time has no numbers either. A lease is live until the clock says that it is not, a
 * lifetime lasts until it is over; both may happen at any moment, or never. So what is
 * shown holds for all durations.
 */

/* How a row stands, and how the key does; the answers; how claims of a transaction do; how they end. */
mtype = { ABSENT, INPROG, DONE, FAILED, HELD };
mtype = { EXPIRED, COMPLETED, LEASED, ABANDONED, WAITING };
mtype = { CLAIMED, REPLAY, BUSY, MISMATCH, ONHOLD };
mtype = { NOTHING, KEPT, OPEN };
mtype = { COMPLETE, FAIL, RELEASE, HOLD, EXTEND };
/* Errors, by the names that they have in the README. */
mtype = { OK, IK001, IK002, IK003, IK004, IK005, E40001, E55006, E55000 };
/* Why a row is written, for the checks. */
mtype = { CLAIM, END, CLEAN, FORGET, PERSON, BATCH };
/* What a session remembers of a version: it is gone, it is current, or all but its lease is. */
mtype = { STALE, SAME, CHAIN };

#ifndef TOKEN
#define TOKEN byte
#endif

typedef Row
{
	mtype st = ABSENT;
	TOKEN tok;	/* 0: none */
	bit live;	/* locked_until is to come: the lease, or retry_in */
	bit over;	/* expires_at has passed */
	bit hold;	/* hold_if_abandoned */
	bit first;	/* attempt = 1 */
	byte id;	/* claim_id; 0: none */
	byte by;	/* the response: whose */
	bit fp		/* the fingerprint of the request */
};

/* What the running transaction of a session knows of a key: pending.c, and the server. */
typedef Session
{
	mtype pend = NOTHING;
	bit leased;
	TOKEN tok;
	mtype same = STALE;
	bit had;	/* there was a version to replace */
	Row d;		/* the draft: what is to be written */
	mtype why = CLAIM;
	bit on_held;	/* it was held when that was decided */
	byte weff;	/* business rows that it has written and not committed */
	bit snap;	/* its own snapshot still sees what is committed */
	byte seff	/* business rows that its own snapshot sees */
};

#ifndef KEYS
#define KEYS 1
#endif
#ifndef CRASHING
#define CRASHING SESSIONS	/* those before it end with the server */
#endif
#define T(s, k) tx[(s) * KEYS + (k)]

Row com[KEYS];
Row unc[KEYS];
byte wr[KEYS];
bit dirty[KEYS];
bit soft[KEYS];		/* it changes nothing that a version is found again by */
Session tx[(SESSIONS + 1) * KEYS];
bit rr[SESSIONS + 1];		/* REPEATABLE READ */
bit conn[SESSIONS + 1];		/* a call or its answer is on its way */
bit broken[SESSIONS + 1];	/* the connection is, and the client learns of it */

/* Of advisory locks: which key has which, its owner, and how often that one took it. */
#ifndef H
#define H(k) (k)
#endif
byte lockof[KEYS];
byte lockn[KEYS];
byte queue[KEYS];	/* who waits for it; who only tries does not overtake */

/* The sequence, what of it is on disk, the second, and the timeline. */
byte seq;
byte seqdur;
byte sec = 1;
byte timeline = 1;

/* What a crash may undo: the state before the first commit that was not flushed. */
bit canlose;
#ifdef CANLOSE
Row back[KEYS];
byte backeff[KEYS];
#endif

/*
 * What only the checks know: business rows that are committed in this life of the
 * key, the largest token that it has had, the largest that the outside has accepted.
 */
byte eff[KEYS];
TOKEN hi[KEYS];
TOKEN ext[KEYS];
byte owner[KEYS];	/* who was given the last claim with a lease */

/*
 * Scratch, good within one step, and no part of the state; but Spin's breadth-first
 * search cannot do with such variables.
 */
#ifdef BREADTH_FIRST
#define HIDDEN
#else
#define HIDDEN hidden
#endif
HIDDEN Row r;
HIDDEN mtype sd = EXPIRED;
HIDDEN byte i;
HIDDEN byte j;
HIDDEN byte tmp;

/*
 * The properties. A check that fails prints its own name.
 */
HIDDEN byte I1_tokens_grow;
HIDDEN byte I1_tokens_are_distinct;
HIDDEN byte I2_one_owner;
HIDDEN byte I3_fencing;
HIDDEN byte I4_one_result;
HIDDEN byte I6_no_lost_completion;
HIDDEN byte I7_no_phantom;
HIDDEN byte I8_atomic_effect;
HIDDEN byte I9_fingerprint;
HIDDEN byte I11_keys_apart;
HIDDEN byte I12_purge_safety;
HIDDEN byte I15_no_residue;
HIDDEN byte held_is_held;
HIDDEN byte no_lost_race;
HIDDEN byte no_wait;
HIDDEN byte what_is_answered_is_seen;
HIDDEN byte bound_of_the_sequence;
#define CHECK(name, holds) assert((holds) || name)

#define COPY(a, b) a.st = b.st; a.tok = b.tok; a.live = b.live; a.over = b.over; \
	a.hold = b.hold; a.first = b.first; a.id = b.id; a.by = b.by; a.fp = b.fp
#define CLEAR(a) a.st = ABSENT; a.tok = 0; a.live = 0; a.over = 0; \
	a.hold = 0; a.first = 0; a.id = 0; a.by = 0; a.fp = 0

/*----------
 * Advisory locks
 *----------
 */

#ifdef NO_LOCKS
#define LOCK_IS_FREE(s, k) (true)
#define NOBODY_WAITS(s, k) (true)
#else
#define LOCK_IS_FREE(s, k) (lockof[H(k)] == 0 || lockof[H(k)] == (s))
#define NOBODY_WAITS(s, k) (queue[H(k)] == 0 || queue[H(k)] == (s) || lockof[H(k)] == (s))
#endif

inline lock_take(s, k)
{
#ifndef NO_LOCKS
	lockof[H(k)] = s;
	lockn[H(k)]++
#else
	skip
#endif
}

inline lock_give(s, k)
{
#ifndef NO_LOCKS
	lockn[H(k)]--;
	if
	:: lockn[H(k)] == 0 -> lockof[H(k)] = 0
	:: else
	fi
#else
	skip
#endif
}

/*----------
 * Transactions
 *----------
 */

inline forget_session(s)
{
	for (i : 0 .. KEYS - 1) {
		T(s, i).pend = NOTHING;
		T(s, i).leased = 0;
		T(s, i).tok = 0;
		T(s, i).same = STALE;
		T(s, i).had = 0;
		CLEAR(T(s, i).d);
		T(s, i).why = CLAIM;
		T(s, i).on_held = 0;
		T(s, i).weff = 0;
		T(s, i).snap = 0;
		T(s, i).seff = 0
	}
	rr[s] = 0
}

inline free_locks(s)
{
#ifdef NO_TRANSACTION_LOCK
	/* It is the session's, as pg_advisory_lock() takes it. */
	skip
#else
	for (i : 0 .. KEYS - 1) {
		if
		:: lockof[i] == s -> lockof[i] = 0; lockn[i] = 0
		:: else
		fi;
		if
		:: queue[i] == s -> queue[i] = 0
		:: else
		fi
	}
#endif
}

/* With a snapshot of its own that is taken here, or with one for each statement. */
inline begin(s, own_snapshot)
{
	conn[s] = 1;
	rr[s] = own_snapshot;
	if
	:: own_snapshot ->
		for (i : 0 .. KEYS - 1) {
			T(s, i).snap = 1;
			T(s, i).seff = eff[i]
		}
	:: else
	fi
}

inline rollback(s)
{
	for (i : 0 .. KEYS - 1) {
		if
		:: wr[i] == s -> wr[i] = 0; dirty[i] = 0; soft[i] = 0; CLEAR(unc[i])
		:: else
		fi
	}
	free_locks(s);
	forget_session(s)
}

#ifdef TOKENS
bit given[256];
bit set_back;	/* the clock was */
bit floor_lost;	/* a row was, or a token of it */
#define TOKENS_MAY_FALL (set_back && floor_lost)
#else
#define TOKENS_MAY_FALL (false)
#endif

/* What the session s made of key i, over what was there: is that allowed? */
inline check_change(s)
{
	/* Clean-up takes nothing that is live or held in its last version. */
	CHECK(I12_purge_safety, T(s, i).why != CLEAN || (com[i].over && com[i].st != HELD
		&& (com[i].st != INPROG || (!com[i].live && !com[i].hold))));
#ifdef TOKENS
	/* None is given twice, whatever became of the first. */
	CHECK(I1_tokens_are_distinct, T(s, i).why != CLAIM || !given[unc[i].tok]);
	given[unc[i].tok] = 1;
#endif
	/* Tokens grow, from one claim to the next and from one life to the next. */
	CHECK(I1_tokens_grow, unc[i].st == ABSENT || unc[i].tok >= com[i].tok);
	CHECK(I1_tokens_grow, TOKENS_MAY_FALL || T(s, i).why != CLAIM || !T(s, i).leased || unc[i].tok > hi[i]
		|| (unc[i].id != 0 && unc[i].tok == com[i].tok && unc[i].id == com[i].id));
	CHECK(I1_tokens_grow, T(s, i).leased || T(s, i).why == CLEAN || T(s, i).why == FORGET || T(s, i).why == PERSON
		|| com[i].tok == 0 || unc[i].tok > com[i].tok);
	/* A live lease is its owner's, and a person's who uses force. */
	CHECK(I2_one_owner, com[i].st != INPROG || !com[i].live || T(s, i).why == PERSON
		|| unc[i].tok == com[i].tok || (T(s, i).why == END && T(s, i).tok == com[i].tok));
	/* Who is given the token of a claim again is who was given it. */
	CHECK(I2_one_owner, T(s, i).why != CLAIM || !T(s, i).leased || unc[i].tok != hi[i] || owner[i] == s);
	/* Whoever ends a claim by its token is the last who was given one. */
	CHECK(I3_fencing, T(s, i).why != END || !T(s, i).leased || T(s, i).tok == com[i].tok);
	/* What is completed stays as it is until it expires or is forgotten. */
	CHECK(I6_no_lost_completion, com[i].st != DONE || com[i].over || T(s, i).why == FORGET || T(s, i).why == PERSON
		|| unc[i].st == DONE);
	CHECK(I4_one_result, com[i].st != DONE || com[i].over || unc[i].st != DONE || unc[i].by == com[i].by);
	/* What is held is freed by a person alone. */
	CHECK(held_is_held, T(s, i).why == PERSON || unc[i].st == DONE || unc[i].st == HELD
		|| !(com[i].st == HELD || (com[i].st == INPROG && com[i].hold && !com[i].live))
		|| (com[i].st == INPROG && T(s, i).why == END && !T(s, i).on_held));
	CHECK(held_is_held, unc[i].st != HELD || unc[i].tok != 0)
}

/*
 * The transaction becomes visible, and is on disk. That these are one step loses
 * nothing: what is on disk and not yet visible becomes so, or becomes so after a
 * crash, and nobody can tell.
 */
inline become_visible(s, flushed)
{
	if
	:: flushed ->
		canlose = 0;
		seqdur = seq
	:: !flushed && !canlose ->
#ifdef CANLOSE
		for (i : 0 .. KEYS - 1) {
			COPY(back[i], com[i]);
			backeff[i] = eff[i]
		}
		canlose = 1
#else
		skip
#endif
	:: else
	fi;
	for (i : 0 .. KEYS - 1) {
		if
		:: wr[i] == s && dirty[i] ->
			check_change(s);
			for (j : 1 .. SESSIONS) {
				if
				:: j != s ->
					T(j, i).snap = 0;
					if
					:: T(j, i).same == SAME && soft[i] -> T(j, i).same = CHAIN
					:: !soft[i] -> T(j, i).same = STALE
					:: else
					fi
				:: else
				fi
			}
			COPY(com[i], unc[i]);
			if
			:: T(s, i).why == CLAIM && T(s, i).leased -> owner[i] = s
			:: else
			fi;
			if
			:: com[i].tok > hi[i] -> hi[i] = com[i].tok
			:: else
			fi;
			if
			:: T(s, i).why == FORGET || T(s, i).why == PERSON -> eff[i] = 0
			:: else
			fi
		:: else
		fi;
		eff[i] = eff[i] + T(s, i).weff;
		/* Work is done once in a life of the key, and never without the key saying so. */
		CHECK(I8_atomic_effect, eff[i] <= 1);
		CHECK(I8_atomic_effect, eff[i] == 0 || com[i].st == DONE);
		CHECK(I8_atomic_effect, com[i].st != DONE || com[i].over || eff[i] == 1);
		if
		:: wr[i] == s -> wr[i] = 0; dirty[i] = 0; soft[i] = 0; CLEAR(unc[i])
		:: else
		fi;
		T(s, i).weff = 0
	}
}

inline end_transaction(s)
{
	free_locks(s);
	forget_session(s)
}

/*----------
 * Rows
 *----------
 */

#define MAY_WRITE(s, k) (wr[k] == 0 || wr[k] == (s))

/* What session s sees of key k now: its own version, or what is committed last. Into r. */
inline row_now(s, k)
{
	if
	:: wr[k] == s && dirty[k] -> COPY(r, unc[k])
	:: else -> COPY(r, com[k])
	fi
}

inline row_put(s, k)
{
	soft[k] = 0;
	COPY(unc[k], T(s, k).d);
	wr[k] = s;
	dirty[k] = 1;
	T(s, k).same = SAME
}

/*----------
 * What happens to everybody
 *----------
 */

/* The connection breaks, or the backend is killed: the transaction is gone. */
inline disconnect(s)
{
	rollback(s);
	broken[s] = conn[s]
}

/* The server crashes: all transactions are gone, and what was not flushed may be. */
inline crash(lose)
{
	for (tmp : 1 .. CRASHING) {
		disconnect(tmp)
	}
	seq = seqdur;
#ifdef CANLOSE
	if
	:: canlose && lose ->
		for (i : 0 .. KEYS - 1) {
			COPY(com[i], back[i]);
			eff[i] = backeff[i]
		}
	:: else
	fi;
	for (i : 0 .. KEYS - 1) {
		CLEAR(back[i]);
		backeff[i] = 0
	}
#endif
	canlose = 0
}

proctype Faults(byte n)
{
	do
	:: n > 0 ->
		if
		:: atomic { conn[1] && !broken[1] -> n--; printf("the connection of session 1 breaks\n"); d_step { disconnect(1) } }
#if CLIENTS > 1
		:: atomic { conn[2] && !broken[2] -> n--; printf("the connection of session 2 breaks\n"); d_step { disconnect(2) } }
#endif
#if CLIENTS > 2
		:: atomic { conn[3] && !broken[3] -> n--; printf("the connection of session 3 breaks\n"); d_step { disconnect(3) } }
#endif
		:: atomic { n--; printf("the server crashes\n"); d_step { crash(0) } }
#ifdef CANLOSE
		:: atomic { canlose; n--; printf("the server crashes, and what was not flushed is lost\n"); d_step { crash(1) } }
#endif
		:: n = 0
		fi
	:: n == 0 -> break
	od
}

/* Without limit, unless the number of events is given. */
#define NO_LIMIT 255
#define GOES_ON events = (events == NO_LIMIT -> NO_LIMIT : events - 1)
#ifdef NOTHING_EXPIRES
#define EXPIRES (false)
#else
#define EXPIRES (true)
#endif

/*
 * The clock. Of all copies of a row only the committed one and the drafts of open
 * claims have to grow old: what becomes visible grows old at once if need be.
 */
proctype Clock(byte events)
{
end:
	do
	:: atomic { events > 0 && com[0].live -> GOES_ON; com[0].live = 0; printf("the lease of key 0 lapses\n") }
	:: atomic { events > 0 && EXPIRES && com[0].st != ABSENT && com[0].st != HELD && !com[0].over -> GOES_ON; com[0].over = 1; eff[0] = 0; printf("key 0 expires\n") }
#if KEYS > 1
	:: atomic { events > 0 && com[1].live -> GOES_ON; com[1].live = 0; printf("the lease of key 1 lapses\n") }
	:: atomic { events > 0 && EXPIRES && com[1].st != ABSENT && com[1].st != HELD && !com[1].over -> GOES_ON; com[1].over = 1; eff[1] = 0; printf("key 1 expires\n") }
#endif
#ifdef DRAFTS_AGE
	:: atomic { T(1, 0).pend == OPEN && T(1, 0).d.st == INPROG && !T(1, 0).leased && !T(1, 0).d.over -> T(1, 0).d.over = 1; printf("the lifetime that session 1 has planned is over\n") }
	:: atomic { T(2, 0).pend == OPEN && T(2, 0).d.st == INPROG && !T(2, 0).leased && !T(2, 0).d.over -> T(2, 0).d.over = 1; printf("the lifetime that session 2 has planned is over\n") }
#endif
	od
}
