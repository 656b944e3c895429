/*
 * scripts.c - what clients do
 *
 * Keys are numbers; the last four bits say what a key is for, so that what must hold
 * for it is known to everybody. Lasting ones are executed once in a run, whatever is
 * done to them; passing ones live for fractions of a second, are cleaned up, and are
 * executed again; some are forgotten. Every execution has a number of its own, and
 * its response is a function of that number, byte for byte: so a replay proves by
 * itself whether it is what somebody has recorded.
 *
 * What is judged here at once needs no history: a repeat after an acknowledged
 * completion, the bytes of a replay, the key for the outside party. Everything else
 * is judged by History.pm.
 */
#include "client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MARK_US(x) "(extract(epoch FROM " x ") * 1000000)::bigint"
#define NOW MARK_US("clock_timestamp()")
#define LASTS "360 days"
#define MAX_BODY 6000

enum
{
	KEPT = 6,    /* from here on to LONG no release, so that a row never goes */
	LONG = 7,    /* leases of six hours, which no clock of the torture outlives */
	PASSING = 8, /* and 9 */
	ONCE = 10,
	BATCH = 11,
	FORGOTTEN = 12, /* and 13 */
	HELD = 14,
	RUN = 15
};

static char scope[64], operation[16], key[64];
static int64_t executions; /* of this operation */
static int64_t operation_number;

static int
kind_of(int64_t n)
{
	return (int) (n & 15);
}

static bool
lasts(int64_t n)
{
	int kind = kind_of(n);

	return kind != PASSING && kind != PASSING + 1 && kind != FORGOTTEN && kind != FORGOTTEN + 1;
}

static void
name_key(int64_t n)
{
	/* A batch is of one scope. */
	snprintf(scope, sizeof(scope), "%s-scope-%d", marker, kind_of(n) == BATCH ? 5 : (int) (n % 5));
	snprintf(operation, sizeof(operation), "op-%d", (int) (n & 15));
	snprintf(key, sizeof(key), "%s-key-%lld", marker, (long long) n);
}

/* ---- responses ---- */

static struct
{
	char status[8];
	char headers[200]; /* as jsonb writes them */
	bool binary;
	char body[MAX_BODY];
	char bytes[2 * 256 + 3];
} response;

static bool
is_binary(int64_t execution)
{
	return digest((uint64_t) execution) % 8 == 3;
}

static int64_t
new_execution(bool text)
{
	int64_t execution;

	do
		execution = (round_number << 44) | ((int64_t) client << 36) | (operation_number << 8) | ++executions;
	while (text && is_binary(execution));
	return execution;
}

static void
make_response(int64_t n, int64_t execution)
{
	uint64_t x = digest((uint64_t) execution ^ 77);
	int length = x % 20 == 0 ? 5000 : (int) (x % 120);
	int at;

	response.binary = is_binary(execution);
	snprintf(response.status, sizeof(response.status), "%d", 200 + (int) (x % 100));
	snprintf(response.headers, sizeof(response.headers),
			 "[[\"X-Execution\", \"%lld\"], [\"X-Twice\", \"b\"], [\"X-Twice\", \"a\"]]", (long long) execution);
	at = snprintf(response.body, sizeof(response.body),
				  "{ \"execution\":%lld,  \"key\":%lld, \"at\":1.10, \"\xc3\xa9\":\"%s", (long long) execution,
				  (long long) n, marker);
	for (int i = 0; i < length; i++)
		response.body[at++] = (char) ('a' + digest(x + (uint64_t) i / 7) % 26);
	strcpy(response.body + at, "\" }");
	strcpy(response.bytes, "\\x");
	for (int i = 0; i < 256; i++)
		snprintf(response.bytes + 2 + 2 * i, 3, "%02x", (int) ((x + (uint64_t) i) & 255));
}

static bool
same(const char *a, const char *b)
{
	return (a == NULL) == (b == NULL) && (a == NULL || strcmp(a, b) == 0);
}

/* A replay in these columns; the execution that it is of, 0 if it is of none. */
static int64_t
check_replay(int64_t n, int status, int headers, int body, int bytes)
{
	const char *at = value(headers) ? strstr(value(headers), "X-Execution\", \"") : NULL;
	int64_t execution = at ? atoll(at + 15) : 0;

	/* Of once() nothing is recorded but that it was. */
	if (execution == 0 && (kind_of(n) == ONCE || kind_of(n) == BATCH))
		return 0;
	if (execution == 0)
	{
		violation(n, "I7: a replay of what nobody has completed");
		return 0;
	}
	make_response(n, execution);
	if (!same(value(status), response.status) || !same(value(headers), response.headers) ||
		!same(value(body), response.binary ? NULL : response.body) ||
		!same(value(bytes), response.binary ? response.bytes : NULL))
		violation(n, "I5: a replay is not what was recorded, byte for byte");
	return execution;
}

/*
 * What may be answered once a completion has been acknowledged, which it was before
 * this was asked.
 */
static void
check_done(int64_t n, int64_t done, const char *answer, int64_t execution)
{
	char words[120];

	if (done == 0 || !lasts(n))
		return;
	if (strcmp(answer, "replay") != 0)
	{
		snprintf(words, sizeof(words), "I6: %s after the completion was acknowledged", answer);
		violation(n, words);
	}
	else if (execution != done && execution != 0)
		violation(n, "I5: two responses of one request");
}

/*
 * Who has looked after the lock was granted meets nobody any more, unless it is somebody
 * who takes no locks: a batch, or clean-up of what has expired.
 */
static void
check_race(int64_t n)
{
	if (strcmp(code, "40001") == 0 && sees_the_present() && lasts(n) && kind_of(n) != BATCH)
		violation(n, "I2: two met at the row, and one of them had its lock");
}

static void
acknowledged(int64_t n, int64_t execution)
{
	if (!lasts(n))
		return;
	if (!__sync_bool_compare_and_swap(&shared->ledger[n].done, 0, execution) && shared->ledger[n].done != execution)
		violation(n, "I4: executed twice");
}

/* ---- calls ---- */

static const char *
milliseconds(char *to, int64_t ms)
{
	if (ms <= 0)
		return NULL;
	sprintf(to, "%lld ms", (long long) ms);
	return to;
}

typedef struct Claim
{
	int64_t n;
	int64_t lease;  /* ms */
	int64_t wait;   /* ms */
	const char *id; /* claim_id */
	bool hold;
	bool wrong; /* for another request */
	bool own;   /* this transaction has claimed it before */
	int64_t token;
} Claim;

#define CLAIM_SQL                                                                                                                                                                                                                             \
	"SELECT c.outcome, c.token, c.response_status, c.response_headers, c.response_body, c.response_bytes, " MARK_US("c.locked_until") ", " NOW ", c.taken_over, c.attempt"                                                                    \
																																	  " FROM idempotency.claim($1, $2, $3, request => $4::jsonb, ttl => $5::interval, lease => $6::interval," \
																																	  " wait => $7::interval, claim_id => $8::uuid, hold_if_abandoned => $9::boolean) AS c"

static char claim_request[40], claim_ttl[40], claim_lease[40], claim_wait[40];

static const char *const *
claim_values(const Claim *claim)
{
	static const char *values[9];
	int64_t n = claim->n;

	name_key(n);
	sprintf(claim_request, "{\"key\": %lld}", (long long) (claim->wrong ? -n : n));
	if (lasts(n) || kind_of(n) == FORGOTTEN || kind_of(n) == FORGOTTEN + 1)
		strcpy(claim_ttl, LASTS);
	else
		milliseconds(claim_ttl, 30 + (int64_t) draw(300));
	values[0] = scope;
	values[1] = operation;
	values[2] = key;
	values[3] = claim_request;
	values[4] = claim_ttl;
	values[5] = milliseconds(claim_lease, claim->lease);
	values[6] = milliseconds(claim_wait, claim->wait);
	values[7] = claim->id;
	values[8] = claim->hold ? "true" : NULL;
	return values;
}

/* True if it is ours. */
static bool
claim_key(Claim *claim)
{
	int64_t n = claim->n;
	int64_t done = shared->ledger[n].done;
	int64_t execution = 0;
	Extra extra = {0};

	if (claim->lease > 0)
		note_intention("claim", n, 0);
	if (!call("claim", n, CLAIM_SQL, 9, claim_values(claim)))
	{
		check_race(n);
		return false;
	}
	snprintf(outcome, sizeof(outcome), "%s", value(0));
	if (strcmp(outcome, "replay") == 0)
	{
		execution = check_replay(n, 2, 3, 4, 5);
		if (claim->wrong)
			violation(n, "I9: a replay for another request");
	}
	if (!claim->wrong && !claim->own)
		check_done(n, done, outcome, execution);
	else if (claim->wrong && done && lasts(n) && !claim->own && strcmp(outcome, "mismatch") != 0)
		violation(n, "I9: a completed key for another request, and no mismatch");
	if (!claim->wrong && strcmp(outcome, "mismatch") == 0)
		violation(n, "I9: the right request was refused as another one");
	extra.token = claim->token = number(1);
	extra.until = number(6);
	extra.server = number(7);
	extra.execution = execution;
	extra.flags = claim->own ? "own" : claim->wrong ? "wrong"
		: claim->id                                 ? "id"
													: "-";
	note_call("claim", n, &extra);
	return strcmp(outcome, "claimed") == 0;
}

static bool
complete_key(int64_t n, int64_t execution, int64_t token, bool refuse_repeat)
{
	char text_token[24];
	const char *values[9];
	Extra extra = {.execution = execution, .token = token};

	name_key(n);
	make_response(n, execution);
	sprintf(text_token, "%lld", (long long) token);
	values[0] = scope;
	values[1] = operation;
	values[2] = key;
	values[3] = response.status;
	values[4] = response.binary ? NULL : response.body;
	values[5] = response.headers;
	values[6] = response.binary ? response.bytes : NULL;
	values[7] = token ? text_token : NULL;
	values[8] = refuse_repeat ? "true" : NULL;
	note_intention("complete", n, token);
	me->calls++;
	ask("SELECT " MARK_US("x") ", " NOW " FROM idempotency.complete($1, $2, $3, $4::int, $5, $6::jsonb, $7::bytea,"
							   " token => $8::bigint, refuse_repeat => $9::boolean) AS x",
		9, values);
	extra.server = code[0] ? 0 : number(1);
	note_call("complete", n, &extra);
	check_race(n);
	return code[0] == '\0';
}

/* fail, release, hold, extend, checkpoint; the same but for their arguments. */
static bool
owner_call(const char *kind, int64_t n, int64_t token)
{
	char sql[300];
	char text_token[24];
	const char *values[4];
	Extra extra = {.token = token};
	const char *more = strcmp(kind, "fail") == 0 ? ", error => 'came to nothing'"
		: strcmp(kind, "hold") == 0              ? ", reason => 'nobody knows'"
		: strcmp(kind, "checkpoint") == 0        ? ", 'step-1', '{\"at\": 1}'"
												 : "";
	bool times = strcmp(kind, "extend") == 0 || strcmp(kind, "checkpoint") == 0;

	name_key(n);
	snprintf(sql, sizeof(sql), "SELECT %s, " NOW " FROM idempotency.%s($1, $2, $3%s, token => $4::bigint) AS x",
			 times ? MARK_US("x") : strcmp(kind, "hold") == 0 ? "x"
															  : "0",
			 kind, more);
	sprintf(text_token, "%lld", (long long) token);
	values[0] = scope;
	values[1] = operation;
	values[2] = key;
	values[3] = token ? text_token : NULL;
	note_intention(kind, n, token);
	me->calls++;
	if (ask(sql, 4, values))
	{
		extra.until = times ? number(0) : 0;
		extra.server = number(1);
		if (strcmp(kind, "hold") == 0)
			extra.token = number(0);
	}
	note_call(kind, n, &extra);
	if (strcmp(code, "lost") == 0 && !in_transaction())
		connect_again();
	return code[0] == '\0';
}

/* The work: a row in the application's table, which has no unique index. */
static bool
book(int64_t n, int64_t execution)
{
	char a[24], b[24];
	const char *values[] = {a, b};

	sprintf(a, "%lld", (long long) n);
	sprintf(b, "%lld", (long long) execution);
	return ask("INSERT INTO effects (key, execution) VALUES ($1::bigint, $2::bigint)", 2, values);
}

static const char *
some_level(void)
{
	static const char *const levels[] = {"READ COMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"};

	return levels[draw(4)];
}

/* Time limits that hit in the middle of things, of this transaction only. */
static bool
some_limit(void)
{
	char sql[100];
	static const char *const limits[] = {"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"};

	if (!chance(4))
		return true;
	snprintf(sql, sizeof(sql), "SET LOCAL %s = %d", limits[draw(3)], 1 + (int) draw(15));
	return ask(sql, -1, NULL);
}

/* ---- in one transaction ---- */

static void
in_one_transaction(int64_t n)
{
	Claim claim = {.n = n, .wait = chance(25) ? 1 + (int64_t) draw(60) : 0, .wrong = chance(6) && kind_of(n) != ONCE && kind_of(n) != BATCH};
	bool savepoint = chance(20);
	bool completed = false;
	bool open = false;
	bool unknown = false;
	bool done;
	int64_t execution = 0;

	if (!begin_transaction(some_level()))
		return;
	if (!some_limit() || (savepoint && !ask("SAVEPOINT s", -1, NULL)))
	{
		roll_back();
		return;
	}
	if (claim_key(&claim))
	{
		int dice = (int) draw(100);

		if (claim.wrong)
		{
			roll_back();
			return;
		}
		if (dice < 3)
			open = true;
		else if (dice < 7)
			owner_call("fail", n, 0);
		else if (dice < 10 && kind_of(n) != KEPT && kind_of(n) != LONG)
			owner_call("release", n, 0);
		else if (dice < 12 && kind_of(n) == HELD)
			owner_call("hold", n, 0);
		else
		{
			if (dice < 16)
			{
				Claim again = {.n = n, .own = true};

				if (claim_key(&again))
					violation(n, "I2: a transaction got a key a second time");
			}
			if (dice < 20 && code[0] == '\0')
				owner_call("checkpoint", n, 0);
			if (dice < 24 || kind_of(n) == BATCH)
				usleep(draw(20000));
			execution = new_execution(false);
			completed = code[0] == '\0' && book(n, execution) && complete_key(n, execution, 0, false);
		}
	}
	if (code[0] && (!savepoint || strcmp(code, "lost") == 0))
	{
		roll_back();
		return;
	}
	if (savepoint)
	{
		bool undo = code[0] || chance(35);

		if (!ask(undo ? "ROLLBACK TO s" : "RELEASE s", -1, NULL))
		{
			roll_back();
			return;
		}
		if (undo)
		{
			outcome[0] = '\0';
			note_call("undo", n, NULL);
			completed = open = false;
		}
	}
	if (chance(8))
	{
		roll_back();
		return;
	}
	if (chance(2))
	{
		vanish();
		return;
	}
	if (chance(7))
		done = prepare_transaction(&unknown);
	else
		done = commit();
	if (open && done)
		violation(n, "a claim was left open, and its transaction was committed");
	if (!open && strcmp(code, "IK004") == 0)
		violation(n, "IK004, and no claim was left open");
	if (done && completed && !unknown && transaction_is_sure())
		acknowledged(n, execution);
}

/* ---- under a lease ---- */

/* Digest of a text, for the ledger. */
static int64_t
digest_of(const char *text)
{
	uint64_t x = 1;

	while (*text)
		x = digest(x ^ (uint64_t) *text++);
	return (int64_t) (x >> 1) + 1;
}

/*
 * The outside party: knows the largest token that it was shown, refuses smaller
 * ones, and does nothing twice for one key of ours.
 */
static void
ask_outside(int64_t n, int64_t token, int64_t execution)
{
	Ledger *ledger = &shared->ledger[n];
	const char *values[] = {scope, operation, key};
	int64_t largest;
	Extra extra = {.token = token, .execution = execution};

	name_key(n);
	if (!call("effect_key", n, "SELECT idempotency.effect_key($1, $2, $3, 'charge')", 3, values))
		return;
	if (!__sync_bool_compare_and_swap(&ledger->effect, 0, digest_of(value(0))) && ledger->effect != digest_of(value(0)))
		violation(n, "two attempts of one work have different keys for the outside party");
	note_call("effect_key", n, NULL);
	for (largest = ledger->outside; token > largest; largest = ledger->outside)
		if (__sync_bool_compare_and_swap(&ledger->outside, largest, token))
			break;
	strcpy(outcome, token < largest ? "refused" : "repeated");
	if (token >= largest && __sync_bool_compare_and_swap(&ledger->charged, 0, execution))
		strcpy(outcome, "done");
	note_call("outside", n, &extra);
}

static void
finish_lease(int64_t n, int64_t token)
{
	int64_t execution = new_execution(false);
	bool done;
	bool again = false;

	if (chance(70))
		ask_outside(n, token, execution);
	/* Once more where the answer to the commit was lost: by refuse_repeat that is safe. */
	for (int try = 0; try < 2; try++)
	{
		if (!begin_transaction(some_level()))
			return;
		if (!some_limit() || !book(n, execution) || !complete_key(n, execution, token, true))
		{
			bool repeat = again && strcmp(code, "IK001") == 0 &&
				same(PQresultErrorField(result, PG_DIAG_CONSTRAINT_NAME), "completed");

			roll_back();
			if (repeat)
				return;
			if (strcmp(code, "40001") == 0)
				continue;
			return;
		}
		if (chance(5))
		{
			roll_back();
			return;
		}
		if (chance(7))
		{
			bool unknown;

			if (prepare_transaction(&unknown))
				acknowledged(n, execution);
			return;
		}
		done = commit();
		if (done && transaction_is_sure())
			acknowledged(n, execution);
		if (strcmp(code, "lost") != 0)
			return;
		again = true;
	}
}

static void
under_a_lease(int64_t n)
{
	static const int leases[] = {15, 40, 150, 700};
	char id[40];
	Claim claim = {.n = n, .wait = chance(20) ? 1 + (int64_t) draw(60) : 0};
	int64_t lease = kind_of(n) == LONG ? 6 * 3600 * 1000 : leases[draw(4)];
	bool lost = chance(3);
	bool again = lost || chance(10);
	int dice;

	claim.lease = lease;
	claim.hold = kind_of(n) == HELD && chance(40);
	snprintf(id, sizeof(id), "%08x-%04x-4000-8000-%012llx", (unsigned) round_number, client,
			 (unsigned long long) (digest((uint64_t) operation_number) >> 16));
	if (again || chance(20))
		claim.id = id;
	if (lost)
	{
		note_intention("claim", n, 0);
		start_and_vanish(CLAIM_SQL, 9, claim_values(&claim));
	}
	if (!claim_key(&claim))
		return;
	if (again && !lost)
	{
		int64_t first = claim.token;

		/* As if the answer had been lost. */
		if (!claim_key(&claim))
			return;
		if (claim.token != first && lease > 1000000)
			violation(n, "a repeated claim got another token");
	}

	dice = (int) draw(100);
	if (dice < 8)
		return; /* the owner has died */
	if (dice < 16 && !owner_call("extend", n, claim.token))
		return;
	if (dice >= 16 && dice < 24 && !owner_call("checkpoint", n, claim.token))
		return;
	if (dice >= 24 && dice < 29)
	{
		owner_call("fail", n, claim.token);
		return;
	}
	if (dice >= 29 && dice < 33 && kind_of(n) != KEPT && kind_of(n) != LONG)
	{
		owner_call("release", n, claim.token);
		return;
	}
	if (dice >= 33 && dice < 37 && kind_of(n) == HELD)
	{
		owner_call("hold", n, claim.token);
		return;
	}
	/* Some come late. */
	if (dice > 70 && lease < 1000)
		usleep((useconds_t) draw(2000 * (uint64_t) lease));
	finish_lease(n, claim.token);
}

/* ---- the others ---- */

static void
look(int64_t n)
{
	const char *values[] = {scope, operation, key};
	int64_t done = shared->ledger[n].done;
	int64_t execution;
	bool found;

	name_key(n);
	if (chance(30))
	{
		if (!call("lookup", n, "SELECT status FROM idempotency.lookup($1, $2, $3)", 3, values))
			return;
		snprintf(outcome, sizeof(outcome), "%s", value(0) ? value(0) : "none");
		if (done && lasts(n) && strcmp(outcome, "completed") != 0)
			violation(n, "I6: lookup() knows nothing of an acknowledged completion");
		note_call("lookup", n, NULL);
		return;
	}
	if (!call("replay", n,
			  "SELECT response_status, response_headers, response_body, response_bytes"
			  " FROM idempotency.replay($1, $2, $3)",
			  3, values))
		return;
	found = PQntuples(result) > 0;
	execution = found ? check_replay(n, 0, 1, 2, 3) : 0;
	strcpy(outcome, found ? "replay" : "none");
	check_done(n, done, outcome, execution);
	note_call("replay", n, &(Extra){.execution = execution});
}

static void
once(int64_t n)
{
	const char *values[] = {scope, operation, key, LASTS};
	int64_t execution = new_execution(true);
	int64_t done = shared->ledger[n].done;
	bool first;

	if (!begin_transaction(some_level()))
		return;
	name_key(n);
	if (!some_limit() ||
		!call("once", n, "SELECT idempotency.once($1, $2, $3, $4::interval, '50 ms')", 4, values))
	{
		roll_back();
		return;
	}
	first = *value(0) == 't';
	strcpy(outcome, first ? "first" : "again");
	if (first && done)
		violation(n, "I6: once() was true again");
	note_call("once", n, &(Extra){.execution = first ? execution : 0});
	if (first && !book(n, execution))
	{
		roll_back();
		return;
	}
	if (chance(7))
		roll_back();
	else if (commit() && first && transaction_is_sure())
		acknowledged(n, execution);
}

static void
once_batch(int64_t block)
{
	char keys[512] = "{";
	const char *values[] = {scope, operation, keys, LASTS};
	int64_t numbers[16], done[16];
	int64_t execution[16] = {0};
	int count = 0;
	int rows;
	bool fine;

	if (!begin_transaction(some_level()))
		return;
	/* Keys of one scope, some of this block and some of the one before. */
	for (int64_t n = block - BLOCK_KEYS; n < block + BLOCK_KEYS && count < 16; n++)
		if (n >= round_number * KEYS_PER_ROUND && kind_of(n) == BATCH && chance(70))
			numbers[count++] = n;
	for (int i = 0; i < count; i++)
	{
		name_key(numbers[i]);
		done[i] = shared->ledger[numbers[i]].done;
		snprintf(keys + strlen(keys), sizeof(keys) - strlen(keys), "%s%s", i ? "," : "", key);
	}
	strcat(keys, "}");
	if (count == 0 || !some_limit() ||
		!call("once_batch", count ? numbers[0] : 0,
			  "SELECT first FROM idempotency.once_batch($1, $2, $3::text[], $4::interval, true)", 4, values))
	{
		roll_back();
		return;
	}
	rows = PQntuples(result);
	if (rows != count)
		violation(numbers[0], "once_batch() returned another number of keys");
	for (int i = 0; i < rows && i < count; i++)
	{
		if (!PQgetisnull(result, i, 0) && *PQgetvalue(result, i, 0) == 't')
		{
			if (done[i])
				violation(numbers[i], "I6: once_batch() was true again");
			execution[i] = new_execution(true);
		}
	}
	fine = true;
	for (int i = 0; i < count; i++)
	{
		strcpy(outcome, execution[i] ? "first" : "again");
		note_call("once_batch", numbers[i], &(Extra){.execution = execution[i]});
	}
	for (int i = 0; i < count && fine; i++)
		if (execution[i])
			fine = book(numbers[i], execution[i]);
	if (!fine || chance(7))
		roll_back();
	else if (commit() && transaction_is_sure())
		for (int i = 0; i < count; i++)
			if (execution[i])
				acknowledged(numbers[i], execution[i]);
}

static void
run(int64_t n)
{
	char args[MAX_BODY + 200], request[40];
	const char *values[8];
	int64_t execution = new_execution(true);
	int64_t done = shared->ledger[n].done;
	int64_t replayed = 0;
	char *at;
	bool in_block = chance(40);
	bool ours;

	if (in_block && !begin_transaction(some_level()))
		return;
	name_key(n);
	make_response(n, execution);
	at = args + sprintf(args, "{\"key\": %lld, \"execution\": %lld, \"body\": \"", (long long) n, (long long) execution);
	for (const char *from = response.body; *from; from++)
	{
		if (*from == '"')
			*at++ = '\\';
		*at++ = *from;
	}
	strcpy(at, "\"}");
	sprintf(request, "{\"key\": %lld}", (long long) n);
	values[0] = scope;
	values[1] = operation;
	values[2] = key;
	values[3] = args;
	values[4] = request;
	values[5] = LASTS;
	values[6] = response.status;
	values[7] = response.headers;
	note_intention("run", n, execution);
	if (!call("run", n,
			  "SELECT outcome, response_status, response_headers, response_body, response_bytes, " NOW
			  " FROM idempotency.run($1, $2, $3, 'INSERT INTO effects (key, execution) VALUES"
			  " (($1->>''key'')::bigint, ($1->>''execution'')::bigint) RETURNING $1->>''body''',"
			  " args => $4::jsonb, request => $5::jsonb, ttl => $6::interval, wait => '20 ms',"
			  " response_status => $7::int, response_headers => $8::jsonb)",
			  8, values))
	{
		roll_back();
		return;
	}
	snprintf(outcome, sizeof(outcome), "%s", value(0));
	ours = strcmp(outcome, "claimed") == 0;
	if (strcmp(outcome, "replay") == 0)
		replayed = check_replay(n, 1, 2, 3, 4);
	check_done(n, done, outcome, replayed);
	note_call("run", n, &(Extra){.execution = ours ? execution : replayed, .server = number(5)});
	if (in_block)
	{
		if (chance(10))
			roll_back();
		else if (commit() && ours && transaction_is_sure())
			acknowledged(n, execution);
	}
	else if (ours && transaction_is_sure())
		acknowledged(n, execution);
}

static void
operator_call(const char *kind, int64_t n, const char *sql)
{
	const char *values[] = {scope, operation, key};

	name_key(n);
	note_intention(kind, n, 0);
	if (call(kind, n, sql, 3, values))
	{
		snprintf(outcome, sizeof(outcome), "%s", value(0) ? value(0) : "-");
		note_call(kind, n, NULL);
	}
}

static void
forget(int64_t n)
{
	if (chance(35))
		operator_call("redact", n, "SELECT idempotency.redact($1, $2, $3)");
	else if (chance(50))
		operator_call("forget", n, "SELECT idempotency.forget($1, $2, $3)");
	else
		operator_call("forget", n, "SELECT idempotency.forget($1, $2, $3, true)");
}

/* Takes over what others have left, and does its work. */
static void
claim_abandoned(int64_t n)
{
	const char *values[] = {operation};
	int64_t numbers[3], tokens[3];
	int count;

	name_key(n);
	note_intention("claim_abandoned", n, 0);
	if (!call("claim_abandoned", n,
			  "SELECT key, token, " MARK_US("locked_until") ", " NOW
															" FROM idempotency.claim_abandoned($1, lease => '200 ms', max_rows => 3)",
			  1, values))
		return;
	count = PQntuples(result);
	strcpy(outcome, count ? "claimed" : "none");
	for (int i = 0; i < count && i < 3; i++)
	{
		Extra extra = {.flags = "abandoned"};

		numbers[i] = atoll(strrchr(PQgetvalue(result, i, 0), '-') + 1);
		extra.token = tokens[i] = atoll(PQgetvalue(result, i, 1));
		extra.until = atoll(PQgetvalue(result, i, 2));
		extra.server = atoll(PQgetvalue(result, i, 3));
		note_call("claim_abandoned", numbers[i], &extra);
	}
	if (count == 0)
		note_call("claim_abandoned", n, NULL);
	for (int i = 0; i < count && i < 3; i++)
		if (chance(80))
			finish_lease(numbers[i], tokens[i]);
}

void
run_operation(int64_t k)
{
	int64_t block = round_number * KEYS_PER_ROUND + k / BLOCK_OPERATIONS * BLOCK_KEYS;
	int64_t n;
	int dice;

	draw_begin(k);
	executions = 0;
	operation_number = k;
	n = block + (int64_t) draw(BLOCK_KEYS);
	dice = (int) draw(100);
	code[0] = '\0';
	if (dice < 20)
		look(n);
	else if (dice < 22)
		claim_abandoned(n);
	else if (kind_of(n) == ONCE && dice < 75)
		once(n);
	else if (kind_of(n) == BATCH && dice < 75)
		once_batch(block);
	else if (kind_of(n) == RUN || (dice < 30 && lasts(n)))
		run(n);
	else if (kind_of(n) == HELD && dice < 40)
		operator_call("resolve", n, "SELECT idempotency.resolve($1, $2, $3, 'retry')");
	else if ((kind_of(n) == FORGOTTEN || kind_of(n) == FORGOTTEN + 1) && dice < 40)
		forget(n);
	else if (dice < 60)
		under_a_lease(n);
	else
		in_one_transaction(n);
	/* Nothing is left open, whatever came. */
	roll_back();
}

/* Clean-up at full rate, by every way there is. */
void
clean_up(int64_t k)
{
	draw_begin(k);
	executions = 0;
	operation_number = k;
	if (chance(15))
	{
		note_intention("maintain", 0, 0);
		if (call("maintain", 0, "CALL idempotency.maintain()", -1, NULL))
			note_call("maintain", 0, NULL);
	}
	else if (chance(30))
	{
		if (call("request_cleanup", 0, "SELECT idempotency.request_cleanup()", -1, NULL))
			note_call("request_cleanup", 0, NULL);
	}
	else if (call("cleanup", 0, "SELECT idempotency.cleanup(max_rows => 5)", -1, NULL))
	{
		snprintf(outcome, sizeof(outcome), "%s", number(0) ? "some" : "none");
		note_call("cleanup", 0, &(Extra){.token = number(0)});
	}
	usleep(2000);
}

/*
 * Faults are over, and leases have lapsed: every key comes to its end by asking again.
 * What is held, a person decides about.
 */
void
drive_to_end(int64_t from, int64_t to)
{
	for (int64_t n = from; n < to; n++)
	{
		executions = 0;
		operation_number = (1 << 27) + n % KEYS_PER_ROUND;
		for (int try = 0;; try++)
		{
			Claim claim = {.n = n, .wait = 5000};
			int64_t execution = new_execution(false);

			draw_begin(operation_number);
			code[0] = '\0';
			if (begin_transaction("READ COMMITTED") && claim_key(&claim) && book(n, execution) &&
				complete_key(n, execution, 0, false))
			{
				if (commit())
				{
					acknowledged(n, execution);
					break;
				}
			}
			else if (code[0] == '\0' && strcmp(outcome, "replay") == 0)
			{
				roll_back();
				break;
			}
			else
			{
				bool held = code[0] == '\0' && strcmp(outcome, "held") == 0;
				bool removed = strcmp(code, "IK006") == 0;

				roll_back();
				if (held)
					operator_call("resolve", n, "SELECT idempotency.resolve($1, $2, $3, 'retry')");
				if (removed)
					operator_call("forget", n, "SELECT idempotency.forget($1, $2, $3)");
			}
			roll_back();
			if (try == 5)
			{
				violation(n, "I10: the key is stuck");
				break;
			}
		}
	}
}
