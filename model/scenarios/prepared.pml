/*
 * prepared: PREPARE TRANSACTION
 *
 * A client claims, works, completes or forgets to, and prepares; the same connection
 * goes on, and so does another client. Somebody commits the prepared transaction, or
 * rolls it back; it outlives a crash of the server.
 */
#define CLIENTS 2
#define SESSIONS 3
#define CRASHING 2
#include "../clients.pml"

/* The transaction of session s becomes that of nobody, p. */
inline hand_over(s, p)
{
	for (i : 0 .. KEYS - 1) {
		T(p, i).weff = T(s, i).weff;
		T(p, i).why = T(s, i).why;
		T(s, i).weff = 0;
		if
		:: wr[i] == s -> wr[i] = p
		:: else
		fi;
		if
		:: lockof[i] == s -> lockof[i] = p
		:: else
		fi
	}
}

#ifdef NO_LEFT_OPEN_AT_PREPARE
#define REFUSES_OPEN (false)
#else
#define REFUSES_OPEN (true)
#endif

proctype Preparing(byte s; byte p)
{
	LOCALS;

	d_step { begin(s, 0) };
	claim(s, 0, 0, 0, 0, 0);
	if
	:: out == CLAIMED ->
		atomic {
			T(s, 0).weff++;
			if
			:: owner_call(s, 0, 0, 0)
			:: printf("session %d forgets to complete\n", s)
			fi
		};
		d_step {
			if
			:: LEFT_OPEN(s) && REFUSES_OPEN -> rollback(s)
			:: else ->
				hand_over(s, p);
#ifndef NO_PREPARED_IS_FORGOTTEN
				forget_session(s);
#endif
				printf("session %d prepares\n", s)
			fi
		}
	:: else -> d_step { rollback(s) }
	fi;
	d_step { ANSWERED(s); RESET };
	/* The connection goes on. */
	claim(s, 0, 0, 0, 0, 0);
	if
	:: out == CLAIMED -> T(s, 0).weff++; owner_call(s, 0, 0, 0)
	:: else
	fi;
	if
	:: err == OK && (out == CLAIMED || out == REPLAY) -> commit(s)
	:: else -> d_step { rollback(s) }
	fi
}

proctype Coordinator(byte p)
{
end:
	if
	:: lockof[0] == p -> /* there is one */
		if
		:: d_step { become_visible(p, 1); printf("COMMIT PREPARED\n") }; d_step { end_transaction(p) }
		:: d_step { rollback(p); printf("ROLLBACK PREPARED\n") }
		fi
	fi
}

init
{
	atomic {
		run Preparing(1, 3);
		run InTransaction(2, 2, 0, 0);
		run Coordinator(3)
	}
}
