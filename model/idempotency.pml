/*
 * idempotency.pml - the protocol: what the calls of the extension do, step by step
 *
 * Each inline is a function of src/; README.md has the table. What may be interleaved
 * with others is a step of its own: taking the lock, reading the row with the clock,
 * looking whether it is being written, writing it (which may have to wait). A process
 * that uses these has the locals
 *
 *	mtype out, err, own, verb; bit got, hit, rep, lock_taken;
 *	byte new;
 *
 * A guard is taken out by -DNO_NAME; the file "guards" has them all.
 */
#include "server.pml"


/*----------
 * locks.c
 *----------
 */

/* idem_lock_try(): into got. */
#ifdef NO_ALREADY_HELD
#define GETS_LOCK(s, k) (lockof[H(k)] == 0)
#else
#define GETS_LOCK(s, k) (LOCK_IS_FREE(s, k) && NOBODY_WAITS(s, k))
#endif
inline lock_try(s, k)
{
	d_step {
		got = 0;
		if
		:: GETS_LOCK(s, k) -> lock_take(s, k); got = 1
		:: else
		fi
	}
}

/* idem_lock_wait(), as a deadlock would, blocks for ever. */
inline lock_wait(s, k)
{
	atomic {
		queue[H(k)] = s;
		LOCK_IS_FREE(s, k);
		d_step {
			lock_take(s, k);
			if
			:: queue[H(k)] == s -> queue[H(k)] = 0
			:: else
			fi
		}
	}
}

/*----------
 * keys.c
 *----------
 */

#ifndef SEQUENCE_BITS
#define SEQUENCE_BITS 4
#endif
#define SECOND_SHIFT (SEQUENCE_BITS + 2)
#define SEQUENCE_MASK ((1 << SEQUENCE_BITS) - 1)
#define LOW_BITS ((timeline & 3) << SEQUENCE_BITS | (seq & SEQUENCE_MASK))
#ifdef NO_TIMELINE
#undef LOW_BITS
#define LOW_BITS (1 << SEQUENCE_BITS | (seq & SEQUENCE_MASK))
#endif

/*
 * idem_keys_next_token(): the second, the timeline and the sequence, and in any case
 * more than the row's own. Into new. Within a step.
 */
inline next_token(floor)
{
	seq++;
	CHECK(bound_of_the_sequence, seq <= SEQUENCE_MASK);
#ifdef NO_SECOND
	new = LOW_BITS;
#else
	new = sec << SECOND_SHIFT | LOW_BITS;
#endif
#ifndef NO_FLOOR
	if
	:: new <= floor ->
#ifdef NO_RAISED_BITS
		new = floor + 1
#else
		new = ((floor >> SECOND_SHIFT) + 1) << SECOND_SHIFT | LOW_BITS
#endif
	:: else
	fi
#endif
}

/*
 * idem_keys_find(): the row as it is now, into r; from here on T().same says whether
 * it still is.
 */
inline find(s, k)
{
#ifdef NO_NOW
	/* As the statement's snapshot saw it, which is older than the lock. */
	if
	:: wr[k] == s && dirty[k] -> COPY(r, unc[k])
	:: else -> COPY(r, seen[s])
	fi;
#else
	row_now(s, k);
	T(s, k).same = SAME;
#endif
	T(s, k).had = (r.st != ABSENT)
}

#ifdef NO_NOW
Row seen[SESSIONS + 1];
#endif

/* A statement begins, with a snapshot that only a guard's absence makes use of. */
inline statement(s, k)
{
#ifdef NO_NOW
	d_step { COPY(seen[s], com[k]); T(s, k).same = SAME }
#else
	skip
#endif
}

/*
 * idem_keys_update(): replaces the version that was read by T().d, or says in hit that
 * it is no longer there. The statement's snapshot comes first, then the wait for who
 * is writing the row, then the look at its newest version (EvalPlanQual).
 */
#ifdef NO_THIS_VERSION
#define IS_THIS_VERSION(s, k) (com[k].st != ABSENT)
#else
#define IS_THIS_VERSION(s, k) (T(s, k).same != STALE)
#endif
inline keys_update(s, k, is_soft)
{
	hit = 0;
	if
	:: T(s, k).same == CHAIN && !rr[s]	/* that version is not in the snapshot */
	:: else ->
		MAY_WRITE(s, k);
		d_step {
			if
			:: rr[s] && !T(s, k).snap -> err = E40001
			:: !(rr[s] && !T(s, k).snap) && IS_THIS_VERSION(s, k) -> row_put(s, k); soft[k] = is_soft; hit = 1
			:: else
			fi
		}
	fi
}

#ifdef CALLERS_WITHOUT_LOCKS
#define LOST_RACE(s) skip
#else
#define LOST_RACE(s) CHECK(no_lost_race, err == OK || rr[s])
#endif

/* keys_insert(): the unique index is the judge. */
#ifdef NO_UNIQUE
inline keys_insert(s, k)
{
	d_step { row_put(s, k) }
}
#else
inline keys_insert(s, k)
{
	MAY_WRITE(s, k);
	d_step {
		row_now(s, k);
		if
		:: r.st != ABSENT -> err = E40001
		:: else -> row_put(s, k)
		fi
	};
	LOST_RACE(s)
}
#endif

/*
 * Where the row of a committed claim has vanished, somebody without key locks may have
 * had the key meanwhile, and be gone as well.
 */
#ifdef NO_GONE_IS_LOST
#define GONE_IS_LOST (false)
#else
#define GONE_IS_LOST (true)
#endif

/*
 * idem_keys_write(): in the place of what was read, or anew where that is gone. One
 * step, but for the waits: who puts the key in between the two may as well have come
 * before the first, which would have missed too.
 */
inline keys_write(s, k, is_soft)
{
	hit = 0;
	if
	:: T(s, k).had -> keys_update(s, k, is_soft)
	:: else
	fi;
	if
	:: !hit && err == OK -> keys_insert(s, k)
	:: else
	fi;
	hit = 0
}

/*----------
 * states.c
 *----------
 */

#ifdef NO_LEASE
#define IS_LEASED(x) (false)
#else
#define IS_LEASED(x) (x.live)
#endif
#ifdef NO_HOLD_IF_ABANDONED
#define IS_TO_BE_HELD(x) (false)
#else
#define IS_TO_BE_HELD(x) (x.hold)
#endif

/* idem_state_of(): how a row stands at this moment, into sd. Within a step. */
inline state_of(x)
{
	if
	:: x.st == ABSENT -> sd = EXPIRED
	:: x.st == DONE -> sd = (x.over -> EXPIRED : COMPLETED)
	:: x.st == HELD -> sd = HELD
	:: x.st == FAILED -> sd = (x.over -> EXPIRED : (x.live -> WAITING : FAILED))
	:: x.st == INPROG ->
		if
		:: IS_LEASED(x) -> sd = LEASED
		:: !IS_LEASED(x) && IS_TO_BE_HELD(x) -> sd = HELD
		:: else -> sd = (x.over -> EXPIRED : ABANDONED)
		fi
	fi
}

/* state_end_claim(): nobody's claim. */
inline end_claim(x)
{
	x.live = 0;
	x.hold = 0;
	x.id = 0
}

/*
 * idem_state_claim(): a new attempt over r, into T().d. What has expired leaves its
 * token alone; what has not leaves all but the claim of it.
 */
inline state_claim(s, k, lease, with_id, with_fp, with_hold)
{
	if
	:: sd == EXPIRED ->
		CLEAR(T(s, k).d);
		T(s, k).d.tok = r.tok;
		T(s, k).d.first = 1
	:: else ->
		COPY(T(s, k).d, r);
#ifdef NO_TAKEOVER_ID
		tmp = r.id;
#endif
		end_claim(T(s, k).d);
#ifdef NO_TAKEOVER_ID
		T(s, k).d.id = tmp;
#endif
		T(s, k).d.first = 0
	fi;
	T(s, k).d.st = INPROG;
	T(s, k).d.over = 0;
	T(s, k).d.fp = with_fp;
	T(s, k).d.live = lease;
	T(s, k).d.hold = with_hold;
	if
	:: with_id != 0 -> T(s, k).d.id = with_id
	:: else
	fi
}

/*----------
 * claim.c
 *----------
 */

/* Another key of this transaction has the same lock. */
#if KEYS > 1
#define locked_besides(s, k) (T(s, 1 - (k)).pend != NOTHING && H(0) == H(1))
#else
#define locked_besides(s, k) (false)
#endif
#if CLIENTS == 2 && defined(ALL_TAKE_LOCKS)
#define nobody_else_is_open(s, k) (T(3 - (s), k).pend != OPEN || T(3 - (s), k).leased)
#else
#define nobody_else_is_open(s, k) (true)
#endif

/* claim_judge(): what r means for this request, into out. Within a step. */
inline judge(lease, with_id, with_fp)
{
	state_of(r);
	rep = 0;
	if
#ifndef NO_FINGERPRINT
	:: sd != EXPIRED && r.fp != with_fp -> out = MISMATCH
#endif
	:: else ->
		if
		:: (sd == LEASED || sd == ABANDONED) && lease && with_id != 0 && r.id == with_id ->
			out = CLAIMED;
#ifndef NO_REPEATED
			rep = 1
#endif
		:: else ->
			if
			:: sd == EXPIRED || sd == FAILED || sd == ABANDONED -> out = CLAIMED
			:: sd == COMPLETED -> out = REPLAY
			:: sd == HELD -> out = ONHOLD
			:: sd == LEASED || sd == WAITING -> out = BUSY
			fi
		fi
	fi
}

/* idem_pending_find() */
#ifdef NO_IDENTITY
#define OPENED_BY(s, k) (T(s, 0).pend == OPEN || T(s, 1).pend == OPEN)
#else
#define OPENED_BY(s, k) (T(s, k).pend == OPEN)
#endif

#define TAKE_LOCK(s, k, locked) \
	if \
	:: T(s, k).pend != NOTHING || locked -> got = 1 \
	:: else -> lock_try(s, k) \
	fi
#ifdef NO_LOCK_FIRST
/* Looks first, and takes the lock afterwards. */
#define FIRST_THE_LOCK(s, k, locked) skip
#define THEN_THE_LOCK(s, k, locked) TAKE_LOCK(s, k, locked)
#else
#define FIRST_THE_LOCK(s, k, locked) TAKE_LOCK(s, k, locked)
#define THEN_THE_LOCK(s, k, locked) skip
#endif
#ifdef NO_AGREES
#define MUST_AGREE(s) (false)
#else
#define MUST_AGREE(s) (rr[s])
#endif
#ifdef NO_GIVE_BACK
#define GIVES_BACK (false)
#else
#define GIVES_BACK (true)
#endif

#ifdef NO_WHO_LOST_THE_LOCK
#define LOST_THE_LOCK (false)
#else
#define LOST_THE_LOCK (!got)
#endif

/* idem_keys_being_written() */
#ifdef NO_BEING_WRITTEN
#define BEING_WRITTEN(s, k) (false)
#else
#define BEING_WRITTEN(s, k) (T(s, k).had && T(s, k).same == SAME && !MAY_WRITE(s, k))
#endif

/*
 * idem_claim_decide(): one try. "locked": the caller has waited for the lock and got
 * it. On return the lock is kept only if the answer is CLAIMED; err is 40001 where
 * the transaction must not go on.
 */
inline decide(s, k, locked, lease, with_id, with_fp, with_hold, at_once)
{
	if
	:: OPENED_BY(s, k) -> /* claim_answer_own() */
		CHECK(I11_keys_apart, T(s, k).pend == OPEN);
		out = ((with_id != 0 && T(s, k).d.id == with_id) -> CLAIMED : BUSY)
	:: else ->
		FIRST_THE_LOCK(s, k, locked);
		d_step {
			find(s, k);
			judge(lease, with_id, with_fp);
			if
			:: out == CLAIMED && rep -> COPY(T(s, k).d, r); T(s, k).d.live = 1
			:: out == CLAIMED && !rep -> state_claim(s, k, lease, with_id, with_fp, with_hold)
			:: else
			fi;
			/* What is answered is true at that moment, whoever holds which lock. */
			row_now(s, k);
			CHECK(I6_no_lost_completion, out != CLAIMED || r.st != DONE || r.over);
			CHECK(I7_no_phantom, out != REPLAY || (r.st == DONE && eff[k] + T(s, k).weff == 1));
			CHECK(I9_fingerprint, out == MISMATCH || r.st == ABSENT || r.over || r.fp == with_fp)
		};
		THEN_THE_LOCK(s, k, locked);
		atomic { d_step {
			if
			:: out == CLAIMED && (LOST_THE_LOCK || BEING_WRITTEN(s, k)) -> out = BUSY; lock_taken = !got
			:: else -> lock_taken = 0
			fi;
			if
			:: MUST_AGREE(s) && !T(s, k).snap && (out == CLAIMED || out == REPLAY) -> err = E40001
			:: else
			fi;
			/* Nobody is kept out by a lock of its own. */
			CHECK(I11_keys_apart, got || lockof[H(k)] != s);
			/* A claim that would have to wait says so instead. */
			CHECK(no_wait, out != CLAIMED || !T(s, k).had || T(s, k).same != SAME || MAY_WRITE(s, k));
			/* What a transaction with a snapshot goes on with is what that shows. */
			CHECK(what_is_answered_is_seen, err != OK || !rr[s] || (out != CLAIMED && out != REPLAY)
				|| T(s, k).seff == eff[k]);
			if
			:: out != CLAIMED || err != OK ->
				if
				:: T(s, k).pend == NOTHING && got && GIVES_BACK -> lock_give(s, k)
				:: else
				fi;
				CHECK(I15_no_residue, T(s, k).pend != NOTHING || lockof[H(k)] != s || lockn[H(k)] < 1 || locked_besides(s, k));
				CLEAR(T(s, k).d);
				T(s, k).same = STALE;
				T(s, k).had = 0
			:: else ->
				/* claim_take() */
				T(s, k).why = CLAIM;
				T(s, k).leased = lease;
				T(s, k).pend = (at_once -> DONE : OPEN);
				if
				:: at_once ->
					T(s, k).d.st = DONE;
					T(s, k).d.by = s;
					end_claim(T(s, k).d)
				:: else
				fi;
				if
				:: (lease && !rep) || (at_once && T(s, k).d.tok != 0) ->
					next_token(T(s, k).d.tok);
					T(s, k).d.tok = new
				:: else
				fi;
				new = 0;
				T(s, k).tok = (lease -> T(s, k).d.tok : 0);
				CHECK(I2_one_owner, nobody_else_is_open(s, k))
			fi
		};
		if
		:: out == CLAIMED && err == OK && (lease || at_once) && !(rep && GONE_IS_LOST) -> keys_write(s, k, rep)
		:: out == CLAIMED && err == OK && rep && GONE_IS_LOST ->
			keys_update(s, k, 1);
			if
			:: !hit && err == OK -> err = E40001
			:: else
			fi;
			hit = 0
		:: else
		fi;
		rep = 0;
		got = 0;
		printf("session %d: claim of key %d: %e %e\n", s, k, out, err)
		}
	fi
}

/* idempotency_claim(), with no wait. The statement begins. */
inline claim(s, k, lease, with_id, with_fp, with_hold)
{
	statement(s, k);
	decide(s, k, 0, lease, with_id, with_fp, with_hold, 0)
}

/*----------
 * owner.c
 *----------
 */

/* idem_owner_lock(): waits for the lock, and keeps it. */
inline owner_lock(s, k)
{
	if
	:: T(s, k).pend == NOTHING -> lock_wait(s, k); T(s, k).pend = KEPT
	:: else
	fi
}

#ifdef NO_REFUSE_REPEAT
#define REFUSES_REPEATS (false)
#else
#define REFUSES_REPEATS (true)
#endif
#ifdef NO_LATE_EXPIRY
#define GETS_TIME (false)
#else
#define GETS_TIME (true)
#endif

/*
 * owner_find_claim(), with owner_check_token(): does the caller own the claim, by the
 * token or as the transaction that made it? Into err; then T().d is its row. If it is
 * completed, own says whether with the same response.
 */
inline owner_find(s, k, token, to_complete)
{
	atomic {
	err = OK;
	own = OPEN;
	if
	/* A claim of this transaction that so far is only in memory. */
	:: token == 0 && T(s, k).pend == OPEN && !T(s, k).leased
	:: token == 0 && T(s, k).pend != OPEN && T(s, k).pend != DONE && T(s, k).pend != HELD -> err = IK002
	:: else ->
		statement(s, k);
		owner_lock(s, k);
		d_step {
			find(s, k);
			T(s, k).leased = (token != 0 || T(s, k).leased);
			T(s, k).tok = (token != 0 -> token : T(s, k).tok);
			if
			:: r.st == ABSENT -> err = IK001
#ifndef NO_TOKEN
			:: r.st != ABSENT && T(s, k).leased && T(s, k).tok != r.tok ->
				err = ((T(s, k).tok > r.tok && r.tok > 0) -> IK002 : IK001)
#endif
			:: else ->
				state_of(r);
				T(s, k).on_held = (sd == HELD);
				if
				:: r.st == DONE && !to_complete -> err = IK001
				:: r.st == DONE && to_complete -> own = (r.by == s -> DONE : FAILED)
				:: r.st == FAILED -> err = IK002
#ifndef NO_OWNER_OF_HELD
				:: (r.st == INPROG || r.st == HELD) && !to_complete && sd == HELD -> err = IK005
#endif
				:: else
				fi;
				COPY(T(s, k).d, r)
			fi
		}
	fi	}
}

#ifdef NO_OUTDATE
#define OUTDATES(x) (false)
#else
#define OUTDATES(x) (x.tok != 0)
#endif
#ifdef NO_TOKEN_OF_HELD
#define NEEDS_TOKEN(x) (false)
#else
#define NEEDS_TOKEN(x) (x.st == HELD)
#endif

/*
 * idem_owner_write(): a claim without a lease outdates the token of what it was made
 * over, and is put in anew where that has vanished. Where the row of a claim with a
 * lease is gone, the claim is.
 */
inline owner_write(s, k, is_soft)
{
	d_step {
		if
		:: !T(s, k).leased && T(s, k).pend == OPEN && (OUTDATES(T(s, k).d) || NEEDS_TOKEN(T(s, k).d)) ->
			next_token(T(s, k).d.tok);
			T(s, k).d.tok = new;
			new = 0
		:: else
		fi;
		T(s, k).why = END
	};
	if
	:: !T(s, k).leased || (T(s, k).d.st == DONE && !GONE_IS_LOST) -> keys_write(s, k, 0)
	:: else ->
		keys_update(s, k, is_soft);
		if
		:: !hit && err == OK -> err = IK001
		:: else
		fi
	fi;
	hit = 0
}

/*----------
 * complete.c, lease.c
 *----------
 */

/*
 * What an owner does with its claim, by the local "verb". One step for each call
 * between finding the claim and writing its row:
 *
 *	COMPLETE	idempotency_complete(), with complete_record() and complete_expiry()
 *	FAIL		idempotency_fail(): nothing happened
 *	RELEASE		idempotency_release(): as if it had not been claimed
 *	HOLD		idempotency_hold(): nobody knows what happened
 *	EXTEND		idempotency_extend()
 */
inline owner_call(s, k, token, refuse_repeat)
{
	owner_find(s, k, token, (verb == COMPLETE));
	atomic {
	if
	:: err == OK && own != OPEN -> /* completed before */
		err = ((refuse_repeat && REFUSES_REPEATS) -> IK001 : (own == DONE -> OK : IK003))
	:: err == OK && own == OPEN ->
		d_step {
			if
			:: verb == COMPLETE ->
				T(s, k).d.st = DONE;
				T(s, k).d.by = s
			:: verb == FAIL -> T(s, k).d.st = FAILED
			:: verb == HOLD -> T(s, k).d.st = HELD
			:: verb == RELEASE && T(s, k).leased && T(s, k).d.first -> CLEAR(T(s, k).d)
			:: verb == RELEASE && T(s, k).leased && !T(s, k).d.first -> T(s, k).d.st = FAILED
			:: verb == RELEASE && !T(s, k).leased
			:: verb == EXTEND -> T(s, k).d.live = 1
			fi;
			if
			:: verb != EXTEND -> end_claim(T(s, k).d)
			:: else
			fi;
			if
			:: verb == FAIL || verb == RELEASE || verb == HOLD || (verb == COMPLETE && GETS_TIME) -> T(s, k).d.over = 0
			:: else
			fi
		};
		if
		:: verb == RELEASE && !T(s, k).leased
		:: else -> owner_write(s, k, verb == EXTEND)
		fi;
		T(s, k).pend = (verb == COMPLETE -> DONE : (verb == HOLD -> HELD : (verb == EXTEND -> OPEN : KEPT)))
	:: else
	fi;
	own = OPEN;
	printf("session %d: %e: %e\n", s, verb, err)
	}
}

/*----------
 * resolve.c, forget.c
 *----------
 */

/* idempotency_resolve(): a person decides about what is held or abandoned. */
inline resolve(s, k, retry)
{
	atomic { err = OK; owner_lock(s, k) };
	d_step {
		find(s, k);
		state_of(r);
		if
		:: sd == HELD || (r.st == INPROG && !r.live) ->
			if
			:: retry ->
				COPY(T(s, k).d, r);
				T(s, k).d.st = FAILED;
				end_claim(T(s, k).d);
				T(s, k).d.over = 0
			:: else -> CLEAR(T(s, k).d)
			fi;
			T(s, k).why = PERSON;
			T(s, k).leased = 1
		:: else -> err = E55000
		fi
	};
	atomic {
	if
	:: err == OK ->
		keys_update(s, k, 0);
		err = (hit -> OK : E40001);
		hit = 0
	:: else
	fi;
	printf("session %d: resolve: %e\n", s, err)
	}
}

/* idempotency_forget() */
inline forget(s, k, force)
{
	atomic { err = OK; owner_lock(s, k) };
	d_step {
		find(s, k);
		state_of(r);
		if
#ifndef NO_HELD_IS_KEPT
		:: !force && sd == HELD -> err = IK005
#endif
		:: !force && (sd == LEASED || sd == ABANDONED) -> err = E55006
		:: else ->
			CLEAR(T(s, k).d);
			T(s, k).why = (force -> PERSON : FORGET);
			T(s, k).leased = 1
		fi
	};
	atomic {
	if
	:: err == OK && T(s, k).had ->
		keys_update(s, k, 0);
		err = (hit -> OK : E40001);
		hit = 0
	:: else
	fi;
	printf("session %d: forget: %e\n", s, err)
	}
}

/* idempotency_forget_scope(), with force: no key locks. */
inline forget_scope(s, k)
{
	atomic {
		MAY_WRITE(s, k) ->
		d_step {
			if
			:: com[k].st != ABSENT -> CLEAR(T(s, k).d); T(s, k).why = PERSON; row_put(s, k)
			:: else
			fi
		}
	}
}

/*----------
 * cleanup.c: STATEMENT_DELETE_EXPIRED in statements.c
 *----------
 */

/* EXPIRED() and FREE(): the same as state_of(), in SQL. Within a step. */
#ifdef NO_LEASE_IN_SQL
#define LAPSED(x) (x.st == INPROG)
#else
#define LAPSED(x) (x.st == INPROG && !x.live)
#endif
#ifdef NO_HOLD_IN_SQL
#define MAY_GO(x) (true)
#else
#define MAY_GO(x) (!x.hold)
#endif
#define FINISHED(x) (x.st == DONE || x.st == FAILED)
inline sql_expired(x)
{
	hit = (x.st != ABSENT && x.over && (FINISHED(x) || (LAPSED(x) && MAY_GO(x))))
}

/*
 * idem_keys_delete_expired(): finds a row, locks it unless somebody else is at it, and
 * deletes it if it is as it was; nobody waits until that is on disk.
 */
inline cleanup_batch(s, k)
{
	d_step {
		sql_expired(com[k]);
#ifndef NO_CLEANUP_LOCKS
		if
		:: hit && wr[k] == 0 -> wr[k] = s	/* FOR UPDATE SKIP LOCKED */
		:: else -> hit = 0
		fi
#endif
	};
	if
	:: hit ->
		atomic {
			MAY_WRITE(s, k) ->
			d_step {
#ifndef NO_CLEANUP_LOCKS
				sql_expired(com[k]);
#else
				hit = com[k].st != ABSENT;
#endif
				if
				:: hit -> CLEAR(T(s, k).d); T(s, k).why = CLEAN; row_put(s, k)
				:: else
				fi
			}
		};
		printf("clean-up deletes key %d\n", k)
	:: else
	fi;
	hit = 0
}

/*----------
 * wake.c
 *----------
 */

#ifdef WAKE
#ifdef NO_WAKE
#define WAKES (false)
#else
#define WAKES (true)
#endif
bit listed[SESSIONS + 1];
bit woken[SESSIONS + 1];

/* idem_wake_prepare(): from here on it will be woken. */
inline wake_prepare(s)
{
	d_step { listed[s] = 1; woken[s] = 0 }
}

/*
 * idem_wake_sleep(). Who is not on the list gets onto it and looks again. That a sleeper
 * also wakes up by itself is left out: it is to be woken.
 */
inline wake_sleep(s)
{
	if
	:: atomic { !listed[s] -> listed[s] = 1; woken[s] = 0 }
	:: atomic { listed[s] && woken[s] -> woken[s] = 0 }
	fi
}

/* pending_wake_waiters(), idem_wake_waiters(): of claims with a lease that are finished. */
inline wake_waiters(s)
{
	d_step {
		if
		:: T(s, 0).leased && T(s, 0).pend != OPEN && WAKES ->
			for (i : 1 .. SESSIONS) {
				woken[i] = listed[i]
			}
		:: else
		fi
	}
}
#endif

/*----------
 * commit.c, pending.c
 *----------
 */

#if KEYS > 1
#define LEFT_OPEN(s) ((T(s, 0).pend == OPEN && !T(s, 0).leased) || (T(s, 1).pend == OPEN && !T(s, 1).leased))
#else
#define LEFT_OPEN(s) (T(s, 0).pend == OPEN && !T(s, 0).leased)
#endif

/* pending_subtransaction_ends(): a rollback to a savepoint before the claim. Its lock goes with it. */
inline savepoint_rolled_back(s, k)
{
	T(s, k).weff = 0;
#ifndef NO_SAVEPOINT
	T(s, k).pend = NOTHING
#else
	skip
#endif
}

/*
 * commit_transaction_ends(): no claim without a lease is left open. Then the server
 * makes visible what was done, those who wait are told, and the locks go.
 */
inline commit(s)
{
	if
#ifndef NO_LEFT_OPEN
	:: LEFT_OPEN(s) -> d_step { rollback(s); err = IK004; printf("session %d: IK004\n", s) }
#endif
	:: else ->
#ifdef NO_FLUSH
		d_step { become_visible(s, 0); printf("session %d commits\n", s) };
#else
		d_step { become_visible(s, 1); printf("session %d commits\n", s) };
#endif
#ifdef WAKE
		wake_waiters(s);
#endif
		d_step { end_transaction(s) }
	fi
}
