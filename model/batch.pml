/*
 * batch.pml - once_batch(): once.c and batch.c
 *
 * No key locks. What is new is put in in the order of the keys, waiting for whoever is
 * at one of them; then the others are looked at, and those that have expired or failed
 * replaced, until there is an answer for each.
 */


/* FREE() in statements.c. Within a step. */
#define FREE(x) (x.st == ABSENT || (x.over && (x.st == DONE || x.st == FAILED || \
	(x.st == INPROG && !x.live && !x.hold))) || (x.st == FAILED && !x.live))

#ifdef NO_BATCH_OUTDATES
#define OUT_OF_DATE(k) (true)
#else
#define OUT_OF_DATE(k) (com[k].tok == 0 || com[k].tok < new)
#endif
#ifdef NO_BATCH_LOOKS_AGAIN
#define ROUNDS 1
#else
#define ROUNDS 100
#endif

/* A completed row by session s, with the token "new" or none. Within a step. */
inline batch_row(s, k)
{
	CLEAR(T(s, k).d);
	T(s, k).d.st = DONE;
	T(s, k).d.by = s;
	T(s, k).d.tok = new;
	T(s, k).d.first = 1;
	T(s, k).why = BATCH;
	row_put(s, k);
	T(s, k).weff++
}

/* batch_insert_new(): one key. */
inline batch_insert(s, k)
{
	atomic {
		MAY_WRITE(s, k);
		d_step {
			row_now(s, k);
			if
			:: r.st == ABSENT -> new = 0; batch_row(s, k); printf("session %d: batch: key %d is new\n", s, k)
			:: else -> again[k] = 1; printf("session %d: batch: key %d is there\n", s, k)
			fi
		}
	}
}

/* STATEMENT_BATCH_LOOK and batch_judge_existing(): one key. Within a step. */
inline batch_look(s, k)
{
	if
	:: again[k] ->
		row_now(s, k);
		notes[k] = r.tok;
		state_of(r);
		if
		:: !FREE(r) -> again[k] = 0; undecided = undecided || r.st != DONE
		:: else
		fi
	:: else
	fi
}

#ifdef NO_BATCH_FLOOR
#define BATCH_TOKEN(floor) next_token(0)
#else
#define BATCH_TOKEN(floor) next_token(floor)
#endif

/* STATEMENT_BATCH_REPLACE: one key. */
inline batch_replace(s, k)
{
	atomic {
	if
	:: again[k] ->
		d_step {
			new = 0;
			if
			:: notes[k] != 0 -> BATCH_TOKEN(notes[k])
			:: else
			fi
		};
		MAY_WRITE(s, k);
		d_step {
			if
			:: com[k].st == ABSENT || (FREE(com[k]) && OUT_OF_DATE(k)) -> batch_row(s, k); again[k] = 0; printf("session %d: batch: key %d is replaced\n", s, k)
			:: else
			fi;
			new = 0
		}
	:: else
	fi
	}
}
/* idempotency_once_batch(), idem_batch_insert(): of one key, or of two in the order given. */
proctype Batch(byte s; byte one; byte two)
{
	byte round;
	TOKEN new;
	bit again[2];
	TOKEN notes[2];	/* tokens of rows that are to be replaced */
	bit undecided;

	d_step { begin(s, 0) };
	batch_insert(s, one);
	if
	:: two != one -> batch_insert(s, two)
	:: else
	fi;
	do
	:: !again[one] && !again[two] -> break
	:: (again[one] || again[two]) && !undecided && round == ROUNDS -> break
	:: (again[one] || again[two]) && round < ROUNDS && !undecided ->
		round = (ROUNDS == 1 -> 1 : 0);
		d_step { batch_look(s, one); batch_look(s, two) };
		batch_replace(s, one);
		batch_replace(s, two)
	:: undecided -> break
	od;
	if
	:: undecided -> d_step { rollback(s); ANSWERED(s); printf("session %d: batch: a key is undecided\n", s) }
	:: else ->
		d_step {
			row_now(s, one);
			/* What it says is known was done. */
			CHECK(I7_no_phantom, !again[one] || r.st == DONE)
		};
		d_step { become_visible(s, 1); printf("session %d commits\n", s) };
		d_step { end_transaction(s); ANSWERED(s) }
	fi
}

/* idempotency_forget_scope() */
proctype ForgetScope(byte s)
{
	forget_scope(s, 0);
	if
	:: d_step { become_visible(s, 1); end_transaction(s); printf("forget_scope() commits\n") }
	:: d_step { rollback(s) }
	fi
}
