/*
 * wire.c - the connection, and what is written down
 *
 * Every call of the extension is a line of the client's history, with the times
 * before it was sent and after it was answered by the monotonic clock. The lines of
 * a transaction are written when its commit is about to be sent, followed by one
 * that says so, and by one that says how it ended. So whatever may have taken effect
 * is on record even if the client is killed at any point (History.pm reads them).
 *
 * An end of the connection leaves a commit unknown. So does a commit whose wait for
 * the synchronous standby was cancelled: it stands here, but not there.
 */
#include "client.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

PGresult *result;
char code[8];
char outcome[24];

static PGconn *conn;
static int64_t sent_at;
static int64_t answered_at;

static struct
{
	bool open;
	bool serialized; /* above READ COMMITTED */
	bool failed;     /* so its keys are free, or may be */
	bool unsure;     /* a wait for the standby was cancelled */
	int64_t number;
	int64_t last_ok; /* when the last statement was sent that was answered well */
	size_t length;
	char lines[65536];
} tx;

int64_t
now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t) t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* ---- history ---- */

static void
flush(void)
{
	if (tx.length > 0 && write(STDOUT_FILENO, tx.lines, tx.length) != (ssize_t) tx.length)
	{
		perror("history");
		exit(3);
	}
	tx.length = 0;
}

static void
add(const char *line)
{
	size_t length = strlen(line);

	if (tx.length + length >= sizeof(tx.lines))
		flush();
	memcpy(tx.lines + tx.length, line, length);
	tx.length += length;
}

void
violation(int64_t key, const char *words)
{
	char line[400];

	snprintf(line, sizeof(line), "V %lld %s\n", (long long) key, words);
	add(line);
	flush();
}

void
note_call(const char *kind, int64_t key, const Extra *extra)
{
	static const Extra nothing;
	char line[400];

	if (extra == NULL)
		extra = &nothing;
	snprintf(line, sizeof(line), "C %lld %s %lld %lld %lld %s %s %lld %lld %lld %lld %s\n",
			 (long long) (tx.open ? tx.number : 0), kind, (long long) key, (long long) sent_at,
			 (long long) answered_at, code[0] ? code : !tx.open && tx.unsure ? "unsure"
																			 : "ok",
			 outcome[0] ? outcome : "-",
			 (long long) extra->token, (long long) extra->server, (long long) extra->until,
			 (long long) extra->execution, extra->flags ? extra->flags : "-");
	add(line);
	if (!tx.open)
		flush();
}

/* A call outside of a transaction block that may take effect is about to be sent. */
void
note_intention(const char *kind, int64_t key, int64_t token)
{
	char line[200];

	if (tx.open)
		return;
	snprintf(line, sizeof(line), "I %s %lld %lld %lld\n", kind, (long long) key,
			 (long long) now_us(), (long long) token);
	add(line);
	flush();
}

static void
note_end(const char *how)
{
	char line[200];

	snprintf(line, sizeof(line), "E %lld %s %lld %lld %s %lld\n", (long long) tx.number, how,
			 (long long) sent_at, (long long) answered_at, code[0] ? code : "ok",
			 (long long) tx.last_ok);
	add(line);
	flush();
	tx.open = false;
}

/* ---- connection ---- */

static void
on_notice(void *arg, const PGresult *notice)
{
	const char *message = PQresultErrorField(notice, PG_DIAG_MESSAGE_PRIMARY);

	(void) arg;
	if (message != NULL && strstr(message, "synchronous replication") != NULL)
		tx.unsure = true;
}

static void
read_answer(PGresult *answer)
{
	PQclear(result);
	result = answer;
	answered_at = now_us();
	me->beat = answered_at;
	switch (PQresultStatus(answer))
	{
		case PGRES_COMMAND_OK:
		case PGRES_TUPLES_OK:
			code[0] = '\0';
			if (!tx.failed)
				tx.last_ok = sent_at;
			break;
		default:
		{
			const char *sqlstate = answer ? PQresultErrorField(answer, PG_DIAG_SQLSTATE) : NULL;

			snprintf(code, sizeof(code), "%s",
					 sqlstate && PQstatus(conn) == CONNECTION_OK ? sqlstate : "lost");
			/* What the pooler says of a server that it has lost. */
			if (sqlstate && (strncmp(sqlstate, "08", 2) == 0 || strncmp(sqlstate, "57P0", 4) == 0))
				strcpy(code, "lost");
			tx.failed = true;
		}
	}
}

static bool
is_lost(void)
{
	return strcmp(code, "lost") == 0;
}

void
connect_again(void)
{
	for (bool first = conn == NULL;; first = false)
	{
		/* Nobody runs into a closed door all the time. */
		if (!first)
			usleep(20000);
		if (conn != NULL)
			PQfinish(conn);
		conn = PQconnectdb(getenv("TORTURE_CONNINFO"));
		if (PQstatus(conn) == CONNECTION_OK)
			break;
		if (shared->stop > 1 || getppid() == 1)
			exit(0);
		me->beat = now_us();
	}
	PQsetNoticeReceiver(conn, on_notice, NULL);
}

/* As if the process had died: the server finds out at its next read. */
void
vanish(void)
{
	shutdown(PQsocket(conn), SHUT_RDWR);
	strcpy(code, "lost");
	if (tx.open)
		note_end("aborted");
	connect_again();
}

bool
ask(const char *sql, int nvalues, const char *const *values)
{
	sent_at = now_us();
	outcome[0] = '\0';
	if (!tx.open)
		tx.unsure = false;
	read_answer(nvalues < 0 ? PQexec(conn, sql)
							: PQexecParams(conn, sql, nvalues, NULL, values, NULL, NULL, 0));
	return code[0] == '\0';
}

/* Sends a statement and does not wait for its answer, which is lost. */
void
start_and_vanish(const char *sql, int nvalues, const char *const *values)
{
	sent_at = now_us();
	PQsendQueryParams(conn, sql, nvalues, NULL, values, NULL, NULL, 0);
	PQflush(conn);
	usleep(draw(3000));
	connect_again();
}

/*
 * A call of the extension. The caller writes it down, since it knows what of the
 * answer matters; false if it failed, which is written down here.
 */
bool
call(const char *kind, int64_t key, const char *sql, int nvalues, const char *const *values)
{
	bool done = ask(sql, nvalues, values);

	me->calls++;
	if (!done)
	{
		note_call(kind, key, NULL);
		if (is_lost() && !tx.open)
			connect_again();
	}
	return done;
}

const char *
value(int column)
{
	return PQntuples(result) == 0 || PQgetisnull(result, 0, column) ? NULL
																	: PQgetvalue(result, 0, column);
}

int64_t
number(int column)
{
	const char *text = value(column);

	return text ? atoll(text) : 0;
}

/* ---- transactions ---- */

bool
in_transaction(void)
{
	return tx.open;
}

/* Whether what is seen is as it is now, not as it was when the transaction began. */
bool
sees_the_present(void)
{
	return !tx.open || !tx.serialized;
}

bool
begin_transaction(const char *level)
{
	static int64_t last;
	char sql[80];

	snprintf(sql, sizeof(sql), "BEGIN ISOLATION LEVEL %s", level);
	if (!ask(sql, -1, NULL))
	{
		if (is_lost())
			connect_again();
		return false;
	}
	tx.open = true;
	tx.unsure = tx.failed = false;
	tx.serialized = strcmp(level, "READ COMMITTED") != 0;
	/* Of no other transaction of the run, whatever process it was. */
	tx.number = (int64_t) client << 56 | now_us();
	if (tx.number <= last)
		tx.number = last + 1;
	last = tx.number;
	return true;
}

/* Whether the transaction that has just ended is safe from a failover, too. */
bool
transaction_is_sure(void)
{
	return !tx.unsure;
}

static void
about_to_end(const char *how)
{
	char line[80];

	snprintf(line, sizeof(line), "P %lld %s\n", (long long) tx.number, how);
	add(line);
	flush();
}

bool
commit(void)
{
	bool done;

	about_to_end("commit");
	done = ask("COMMIT", -1, NULL);
	/* A transaction that has failed answers ROLLBACK. */
	if (done && strcmp(PQcmdStatus(result), "COMMIT") != 0)
		strcpy(code, "rolled"), done = false;
	note_end(done ? (tx.unsure ? "unknown" : "committed") : is_lost() ? "unknown"
																	  : "aborted");
	if (is_lost())
		connect_again();
	return done;
}

void
roll_back(void)
{
	if (!tx.open)
		return;
	if (is_lost())
	{
		note_end("aborted");
		connect_again();
		return;
	}
	ask("ROLLBACK", -1, NULL);
	if (is_lost())
	{
		note_end("aborted");
		connect_again();
		return;
	}
	note_end("aborted");
}

/*
 * PREPARE TRANSACTION and its end, or not: what nobody ends is found at the end of the
 * round by whoever drives keys to their end.
 */
bool
prepare_transaction(bool *unknown)
{
	char sql[100];
	char gid[60];
	bool keep = chance(70);
	bool leave = chance(10);
	bool done;

	*unknown = false;
	snprintf(gid, sizeof(gid), "torture_%d_%lld", client, (long long) tx.number);
	snprintf(sql, sizeof(sql), "PREPARE TRANSACTION '%s'", gid);
	about_to_end("prepare");
	done = ask(sql, -1, NULL);
	if (done && strcmp(PQcmdStatus(result), "PREPARE TRANSACTION") != 0)
		strcpy(code, "rolled"), done = false;
	if (!done || leave)
	{
		*unknown = is_lost() || done;
		note_end(*unknown ? "unknown" : "aborted");
		if (is_lost())
			connect_again();
		return false;
	}
	snprintf(sql, sizeof(sql), "%s PREPARED '%s'", keep ? "COMMIT" : "ROLLBACK", gid);
	done = ask(sql, -1, NULL);
	*unknown = !done || (keep && tx.unsure);
	note_end(*unknown ? "unknown" : keep ? "committed"
										 : "aborted");
	if (is_lost())
		connect_again();
	return done && keep && !*unknown;
}
