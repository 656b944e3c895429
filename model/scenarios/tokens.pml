/*
 * tokens: what becomes of the sequence, the clock, the rows and the server
 *
 * One key is claimed again and again. The second passes or is set back; the row is
 * deleted; the server crashes, fails over to a standby that is behind, or is restored
 * from a dump, whose rows are older and whose sequence begins anew.
 */
#define CLIENTS 1
#define SESSIONS 1
#define CANLOSE
#define TOKENS
#define SEQUENCE_BITS 3
#include "../clients.pml"

Row standby;
byte standby_seq;
Row dump;
bit dumped;
bit restored;

proctype Claimer(byte s; byte tries)
{
	LOCALS;

	do
	:: tries == 0 -> break
	:: tries > 0 ->
		{
			d_step { tries--; begin(s, 0) };
			claim(s, 0, 1, 0, 0, 0);
			if
			:: out == CLAIMED -> commit(s)
			:: else -> d_step { rollback(s) }
			fi;
			d_step { ANSWERED(s); RESET }
		} unless {
			broken[s] -> d_step { ANSWERED(s); RESET }
		}
	od
}

/* What is not on that server is gone, and so are the transactions. */
inline lose()
{
	disconnect(1);
	floor_lost = 1;
	canlose = 0
}

proctype World(byte events)
{
	do
	:: events == 0 -> break
	:: atomic { com[0].live -> com[0].live = 0; printf("the lease of key 0 lapses\n") }
	:: atomic { standby.tok != com[0].tok || standby_seq != seqdur -> d_step { COPY(standby, com[0]); standby_seq = seqdur; printf("the standby catches up\n") } }
	:: atomic { events > 0 && sec < 2 -> d_step { events--; sec++; printf("a second passes\n") } }
	:: atomic { events > 0 && sec > 1 && !set_back && !restored -> d_step { events--; sec--; set_back = 1; printf("the clock is set back\n") } }
	:: atomic { events > 0 && wr[0] == 0 && com[0].st != ABSENT -> d_step { events--; CLEAR(com[0]); T(1, 0).same = STALE; floor_lost = 1; printf("the row is deleted\n") } }
	:: atomic { events > 0 -> events--; printf("the server crashes\n"); d_step { crash(0) } }
	:: atomic { events > 0 && canlose -> events--; printf("the server crashes, and what was not flushed is lost\n"); d_step { crash(1) } }
	/* At the fourth failover the timeline's two bits begin anew, and promise no order within a second. */
	:: atomic { events > 0 && timeline < 3 -> d_step { events--; lose(); COPY(com[0], standby); seq = standby_seq; seqdur = seq; timeline++; printf("failover\n") } }
	:: atomic { events > 0 && !dumped -> d_step { events--; COPY(dump, com[0]); dumped = 1; printf("a dump\n") } }
	/* A restore takes longer than a second, and a new server begins with timeline 1. */
	:: atomic { events > 0 && dumped && !set_back && sec < 2 -> d_step { events--; lose(); COPY(com[0], dump); COPY(standby, dump); seq = 0; seqdur = 0; standby_seq = 0; timeline = 1; sec++; restored = 1; printf("the dump is restored elsewhere\n") } }
	od
}

init
{
	atomic {
		run Claimer(1, 3);
		run World(4)
	}
}
