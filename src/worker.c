/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  The background processes: when clean-up runs, and where. No SQL here;
 *	  what a clean-up does is in cleanup.c.
 *
 * Two kinds of processes. The launcher lives as long as the server and is
 * attached to no database; every cleanup_interval it lists the databases and
 * sends one short-lived process to each in turn, waiting for its end. Why so:
 * a process that is attached to a database is in the way of DROP DATABASE and
 * of its use as a template, and one process for each of two hundred databases
 * is too many. So at most one is attached at a time, for as long as there is
 * something to delete, and it leaves as soon as somebody wants the database.
 *
 * Time. Deadlines are kept by a monotonic clock, so that a step of the wall
 * clock neither floods nor starves. A latch set for another reason neither
 * starts a round nor postpones it; a reload that changes the interval counts
 * from the start of the last round.
 *
 * A wall clock that jumps ahead, and perhaps back, makes keys look expired that
 * are not, and what is deleted does not come back. So the launcher keeps what the
 * wall clock says less what the monotonic clock says. If a round finds it ahead
 * of that, it deletes only what had expired by the clock as it was before, until
 * the new time has stood for a whole cleanup_interval. The first round after the
 * start of the server has nothing to compare with and believes what it sees.
 *
 * Life. Both start only when recovery is over: nothing runs on a standby, and
 * a promotion starts the launcher without a restart. SIGTERM is die(), so
 * that the processes end wherever they are and answer the server's barriers
 * in CHECK_FOR_INTERRUPTS (DROP DATABASE waits for those). die() makes the
 * launcher exit with code 1: the postmaster starts it anew after RESTART_S
 * unless the server is shutting down. Code 0 would mean never again.
 *
 * Failure. A database that cannot be cleaned must not stop the others, nor
 * fill the log: it is reported once, and left out of the next rounds, each
 * time twice as many.
 *
 *-------------------------------------------------------------------------
 */
#include "server.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "portability/instr_time.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/varlena.h"

#define RESTART_S 5

/* What the clock is set ahead by at once without being a jump. */
#define SLEW_US (60 * USECS_PER_SEC)

/* A failing database is left out of at most so many rounds in a row. */
#define MOST_SKIPPED 24

PGDLLEXPORT void idempotency_launcher_main(Datum arg);
PGDLLEXPORT void idempotency_cleanup_main(Datum arg);

/* How the process for a database ended; idem_shared->worker_result. */
typedef enum WorkerResult
{
	WORKER_DIED = 0, /* it could not even say; also while it runs */
	WORKER_ABSENT,   /* no extension there */
	WORKER_DONE,
	WORKER_FAILED,
	WORKER_MADE_WAY
} WorkerResult;

typedef struct FailingDatabase
{
	Oid database; /* hash key */
	int failures; /* in a row */
	int skip;     /* rounds still to leave out */
} FailingDatabase;

typedef struct DatabaseToClean
{
	Oid database;
	char name[NAMEDATALEN];
} DatabaseToClean;

static int64
worker_monotonic_us(void)
{
	instr_time now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}

/* The process that the launcher waits for. */
static BackgroundWorkerHandle *launcher_current_process = NULL;

/*
 * The next launcher knows nothing of this one's process, and would send
 * another to the same database.
 */
static void
launcher_is_gone(int code pg_attribute_unused(), Datum arg pg_attribute_unused())
{
	if (launcher_current_process != NULL)
		TerminateBackgroundWorker(launcher_current_process);
	LWLockAcquire(idem_shared->lock, LW_EXCLUSIVE);
	if (idem_shared->launcher_pid == MyProcPid)
	{
		idem_shared->launcher_pid = 0;
		idem_shared->launcher_latch = NULL;
	}
	LWLockRelease(idem_shared->lock);
}

/*
 * Looks at the clocks, for the round that begins.
 */
static void
launcher_judge_clock(void)
{
	IdemClock *clock = &idem_shared->clock;
	int64 now = worker_monotonic_us();
	int64 offset = GetCurrentTimestamp() - now;
	int64 jump = 0;

	LWLockAcquire(idem_shared->lock, LW_EXCLUSIVE);
	if (!clock->known || offset <= clock->offset + SLEW_US ||
		(clock->jumped && offset <= clock->ahead + SLEW_US && offset >= clock->ahead - SLEW_US &&
		 now - clock->ahead_since >= idem_cleanup_interval * USECS_PER_SEC))
	{
		clock->known = true;
		clock->offset = offset;
		clock->jumped = false;
	}
	else if (!clock->jumped || offset > clock->ahead + SLEW_US || offset < clock->ahead - SLEW_US)
	{
		clock->jumped = true;
		clock->ahead = offset;
		clock->ahead_since = now;
		jump = offset - clock->offset;
	}
	LWLockRelease(idem_shared->lock);

	if (jump > 0)
		ereport(LOG,
				(errmsg("the clock has jumped ahead by %lld s,"
						" which idempotency clean-up does not believe yet",
						(long long) (jump / USECS_PER_SEC)),
				 errdetail("What has expired only by that is deleted once the clock has stood for"
						   " \"idempotency.cleanup_interval\".")));
}

/*
 * The moment up to which lifetimes are over: what the clock says, but for a jump
 * that is not believed. Also while a process runs, for however long.
 */
static TimestampTz
worker_believed_now(void)
{
	int64 offset;

	LWLockAcquire(idem_shared->lock, LW_SHARED);
	offset = idem_shared->clock.offset;
	LWLockRelease(idem_shared->lock);
	return Min(GetCurrentTimestamp(), worker_monotonic_us() + offset);
}

/*
 * The databases to visit: those that accept connections and are not
 * templates, are not broken by an interrupted DROP, and are not to be skipped.
 * The list is in the caller's context.
 */
static List *
launcher_list_databases(void)
{
	MemoryContext caller = CurrentMemoryContext;
	List *skip = NIL;
	List *result = NIL;
	Relation catalog;
	TableScanDesc scan;
	HeapTuple tuple;

	if (!SplitGUCList(pstrdup(idem_cleanup_skip_databases), ',', &skip))
		skip = NIL;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	catalog = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(catalog, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext scan_context = MemoryContextSwitchTo(caller);
		bool skipped = false;
		ListCell *cell;

		foreach (cell, skip)
			skipped = skipped || strcmp(lfirst(cell), NameStr(database->datname)) == 0;
		if (database->datallowconn && !database->datistemplate && !skipped &&
			!database_is_invalid_form(database))
		{
			DatabaseToClean *entry = palloc(sizeof(DatabaseToClean));

			entry->database = database->oid;
			strlcpy(entry->name, NameStr(database->datname), NAMEDATALEN);
			result = lappend(result, entry);
		}
		MemoryContextSwitchTo(scan_context);
	}
	table_endscan(scan);
	table_close(catalog, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);
	return result;
}

/*
 * Has one database cleaned and waits for the end of it. False: the server has
 * no place for another process.
 */
static bool
launcher_clean_database(const DatabaseToClean *database, WorkerResult *result)
{
	BackgroundWorker worker = {0};

	idem_shared->worker_result = WORKER_DIED;

	snprintf(worker.bgw_name, BGW_MAXLEN, "idempotency cleanup of %s", database->name);
	strlcpy(worker.bgw_type, "idempotency cleanup", BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, IDEM_EXTENSION_NAME, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, CppAsString(idempotency_cleanup_main), BGW_MAXLEN);
	worker.bgw_main_arg = ObjectIdGetDatum(database->database);
	worker.bgw_notify_pid = MyProcPid;
	if (!RegisterDynamicBackgroundWorker(&worker, &launcher_current_process))
	{
		launcher_current_process = NULL;
		return false;
	}
	if (WaitForBackgroundWorkerShutdown(launcher_current_process) == BGWH_POSTMASTER_DIED)
		proc_exit(1);
	launcher_current_process = NULL;
	*result = (WorkerResult) idem_shared->worker_result;
	return true;
}

/*
 * Notes how a database fared, and reports the first failure of a row.
 */
static void
launcher_note_result(HTAB *failing, const DatabaseToClean *database, WorkerResult result)
{
	bool found;
	FailingDatabase *entry;

	if (result != WORKER_FAILED && result != WORKER_DIED)
	{
		(void) hash_search(failing, &database->database, HASH_REMOVE, &found);
		if (found)
			ereport(LOG,
					(errmsg("idempotency clean-up of database \"%s\" works again",
							database->name)));
		return;
	}

	entry = hash_search(failing, &database->database, HASH_ENTER, &found);
	if (!found)
		entry->failures = 0;
	entry->failures++;
	entry->skip = Min((1 << Min(entry->failures - 1, 10)) - 1, MOST_SKIPPED);
	if (entry->failures > 1)
		return;
	if (result == WORKER_DIED)
		ereport(LOG,
				(errmsg("idempotency clean-up of database \"%s\" failed", database->name),
				 errdetail("The process ended before its work was done."),
				 errhint("This is reported once and tried again less and less often.")));
	else
	{
		IdemDatabase *stats = idem_stats_database(database->database);

		ereport(LOG,
				(errcode(stats != NULL ? stats->cleanup.sqlerrcode : ERRCODE_INTERNAL_ERROR),
				 errmsg("idempotency clean-up of database \"%s\" failed", database->name),
				 stats != NULL ? errdetail("%s", stats->cleanup.message) : 0,
				 errhint("This is reported once and tried again less and less often.")));
	}
}

static bool
launcher_database_exists(Oid database)
{
	MemoryContext caller = CurrentMemoryContext;
	bool exists;

	StartTransactionCommand();
	exists = get_database_name(database) != NULL;
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);
	return exists;
}

static bool
launcher_leaves_out(HTAB *failing, Oid database)
{
	FailingDatabase *entry = hash_search(failing, &database, HASH_FIND, NULL);

	if (entry == NULL || entry->skip <= 0)
		return false;
	entry->skip--;
	return true;
}

/*
 * One round through all databases. A round that was asked for leaves nobody
 * out, and begins everywhere at the beginning.
 */
static void
launcher_clean_all(HTAB *failing, bool requested)
{
	List *databases;
	List *failed = NIL;
	bool lacking = false;
	ListCell *cell;
	HASH_SEQ_STATUS walk;
	FailingDatabase *entry;

	LWLockAcquire(idem_shared->lock, LW_EXCLUSIVE);
	idem_shared->round_started_at = GetCurrentTimestamp();
	idem_shared->round_is_whole = requested;
	LWLockRelease(idem_shared->lock);

	launcher_judge_clock();
	databases = launcher_list_databases();
	idem_stats_forget_dropped(launcher_database_exists);
	hash_seq_init(&walk, failing);
	while ((entry = hash_seq_search(&walk)) != NULL)
		failed = lappend_oid(failed, entry->database);
	foreach (cell, failed)
		if (!launcher_database_exists(lfirst_oid(cell)))
			hash_search(failing, &lfirst_oid(cell), HASH_REMOVE, NULL);

	foreach (cell, databases)
	{
		DatabaseToClean *database = lfirst(cell);
		WorkerResult result;

		CHECK_FOR_INTERRUPTS();
		if (!requested && launcher_leaves_out(failing, database->database))
			continue;
		if (!launcher_clean_database(database, &result))
		{
			lacking = true;
			break;
		}
		if (result == WORKER_DIED && !launcher_database_exists(database->database))
			continue; /* dropped since we made the list */
		launcher_note_result(failing, database, result);
	}

	if (lacking && !idem_shared->workers_lacking)
		ereport(LOG,
				(errmsg("out of background worker slots for idempotency clean-up"),
				 errhint("Raise \"max_worker_processes\". This is reported once.")));
	LWLockAcquire(idem_shared->lock, LW_EXCLUSIVE);
	idem_shared->workers_lacking = lacking;
	idem_shared->round_finished_at = GetCurrentTimestamp();
	LWLockRelease(idem_shared->lock);
}

static bool
launcher_take_request(void)
{
	bool requested;

	LWLockAcquire(idem_shared->lock, LW_EXCLUSIVE);
	requested = idem_shared->round_requested;
	idem_shared->round_requested = false;
	LWLockRelease(idem_shared->lock);
	return requested;
}

/*
 * The launcher.
 */
void
idempotency_launcher_main(Datum arg pg_attribute_unused())
{
	MemoryContext round_context;
	HTAB *failing;
	HASHCTL info = {0};
	int64 last_round = 0; /* start, monotonic; 0: none yet */

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	before_shmem_exit(launcher_is_gone, (Datum) 0);
	LWLockAcquire(idem_shared->lock, LW_EXCLUSIVE);
	idem_shared->launcher_pid = MyProcPid;
	idem_shared->launcher_latch = MyLatch;
	LWLockRelease(idem_shared->lock);

	info.keysize = sizeof(Oid);
	info.entrysize = sizeof(FailingDatabase);
	info.hcxt = TopMemoryContext;
	failing = hash_create("idempotency failing databases", 16, &info,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	round_context = AllocSetContextCreate(TopMemoryContext, "idempotency round",
										  ALLOCSET_DEFAULT_SIZES);

	for (;;)
	{
		bool requested = launcher_take_request();
		int64 now = worker_monotonic_us();
		int64 due = last_round == 0 ? now : last_round + idem_cleanup_interval * USECS_PER_SEC;

		if (requested || (idem_cleanup_enabled && now >= due))
		{
			last_round = now;
			MemoryContextSwitchTo(round_context);
			launcher_clean_all(failing, requested);
			MemoryContextSwitchTo(TopMemoryContext);
			MemoryContextReset(round_context);
		}
		else
		{
			/* Round up: a millisecond too early would spin. */
			long sleep = (long) ((due - now) / 1000 + 1);

			pgstat_report_activity(STATE_IDLE, NULL);
			(void) WaitLatch(MyLatch,
							 WL_LATCH_SET | WL_EXIT_ON_PM_DEATH |
								 (idem_cleanup_enabled ? WL_TIMEOUT : 0),
							 sleep, wait_event_compat("IdempotencyWorkerMain"));
			ResetLatch(MyLatch);
		}
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
	}
}

/*
 * ALTER DATABASE and ALTER ROLE can set anything for the processes that
 * connect. What would make clean-up fail, hang or hold others up is pinned.
 */
static void
worker_pin_settings(void)
{
	static const char *const pinned[][2] = {
		{"search_path", "pg_catalog, pg_temp"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"statement_timeout", "0"},
		{"lock_timeout", "1s"},
		{"idle_in_transaction_session_timeout", "0"},
		{"transaction_timeout", "0"},  /* since PostgreSQL 17 */
		{"synchronous_commit", "off"}, /* see cleanup.c */
		{"row_security", "on"},
		{"session_replication_role", "origin"},
		{"default_tablespace", ""},
		{"temp_tablespaces", ""},
	};

	for (int i = 0; i < (int) lengthof(pinned); i++)
		if (GetConfigOption(pinned[i][0], true, false) != NULL)
			SetConfigOption(pinned[i][0], pinned[i][1], PGC_SUSET, PGC_S_OVERRIDE);
}

/*
 * Keeps as much of a message as there is room for, in whole characters.
 */
static void
worker_keep_message(IdemCleanup *cleanup, const char *message)
{
	int length = pg_mbcliplen(message, strlen(message), sizeof(cleanup->message) - 1);

	memcpy(cleanup->message, message, length);
	cleanup->message[length] = '\0';
}

static bool
worker_still_installed(void)
{
	bool result;

	StartTransactionCommand();
	result = idem_cleanup_installed();
	CommitTransactionCommand();
	return result;
}

/*
 * One batch in a transaction of its own. An error ends the clean-up and goes
 * into *cleanup instead of the log, where the launcher sees to it that it
 * appears once.
 */
static WorkerResult
worker_clean_batch(IdemCleanup *cleanup, IdemProgress *progress, TimestampTz now, bool *more)
{
	MemoryContext context = CurrentMemoryContext;
	volatile WorkerResult result = WORKER_DONE;

	*more = false;
	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		pgstat_report_activity(STATE_RUNNING, "deleting expired idempotency keys");
		if (!idem_cleanup_installed())
			result = WORKER_ABSENT;
		else if (idem_cleanup_in_the_way())
			result = WORKER_MADE_WAY;
		else
			*more = idem_cleanup_batch(cleanup, progress, now);
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		ErrorData *error;

		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		RESUME_INTERRUPTS();
		MemoryContextSwitchTo(context);
		*more = false; /* it may be COMMIT that failed, with more to do */
		cleanup->failed = true;
		cleanup->sqlerrcode = error->sqlerrcode;
		worker_keep_message(cleanup, error->message);
		FreeErrorData(error);
		result = WORKER_FAILED;
	}
	PG_END_TRY();
	if (result == WORKER_FAILED && !worker_still_installed())
		result = WORKER_ABSENT; /* dropped after we had looked */
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);
	MemoryContextSwitchTo(context);
	return result;
}

/*
 * Keeps the record of a run, in a transaction of its own. That may fail for
 * the same reason as the run; the launcher knows anyway.
 */
static void
worker_record_run(IdemCleanup *cleanup)
{
	MemoryContext context = CurrentMemoryContext;

	idem_cleanup_ends(cleanup);
	PG_TRY();
	{
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		idem_cleanup_record(cleanup, "worker");
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		AbortCurrentTransaction();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	pgstat_report_stat(true);
}

/*
 * The process for one database.
 */
void
idempotency_cleanup_main(Datum arg)
{
	IdemCleanup cleanup = {0};
	WorkerResult result;
	IdemProgress progress = IDEM_NO_PROGRESS;
	TimestampTz now;
	int64 began;
	int64 first_took = 0;
	bool resumed;
	bool more = true;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(arg), InvalidOid, 0);
	worker_pin_settings();
	MemoryContextSwitchTo(AllocSetContextCreate(TopMemoryContext, "idempotency cleanup",
												ALLOCSET_DEFAULT_SIZES));

	cleanup.started_at = GetCurrentTimestamp();
	resumed = idem_cleanup_resume(&progress);
	began = worker_monotonic_us();
	for (;;)
	{
		now = worker_believed_now();
		result = worker_clean_batch(&cleanup, &progress, now, &more);
		if (cleanup.batches <= 1)
			first_took = worker_monotonic_us() - began;
		if (!more)
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 idem_cleanup_pause,
						 wait_event_compat("IdempotencyCleanupPause"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
	}

	if (result == WORKER_DONE)
		idem_cleanup_reached(now, resumed ? 0 : cleanup.started_at, first_took);
	if (result == WORKER_DONE || result == WORKER_FAILED)
		worker_record_run(&cleanup);
	if (cleanup.deleted > 0 || cleanup.redacted > 0)
		ereport(LOG,
				(errmsg("idempotency clean-up of database \"%s\" deleted %lld keys and removed"
						" %lld responses"
						" in %d batches, %.1f s",
						MyBgworkerEntry->bgw_name + strlen("idempotency cleanup of "),
						(long long) cleanup.deleted, (long long) cleanup.redacted,
						cleanup.batches,
						(cleanup.finished_at - cleanup.started_at) / 1e6)));
	idem_shared->worker_result = result;
}

PG_FUNCTION_INFO_V1(idempotency_request_cleanup);

/*
 * SQL request_cleanup(): a round through all databases, now. True if there is
 * a launcher to do it.
 *
 * Errors: 55000 not preloaded.
 */
Datum
idempotency_request_cleanup(PG_FUNCTION_ARGS)
{
	bool running;

	(void) fcinfo;
	idem_require_shared();
	LWLockAcquire(idem_shared->lock, LW_EXCLUSIVE);
	running = idem_shared->launcher_latch != NULL;
	if (running)
	{
		idem_shared->round_requested = true;
		SetLatch(idem_shared->launcher_latch);
	}
	LWLockRelease(idem_shared->lock);
	PG_RETURN_BOOL(running);
}

void
idem_worker_init(void)
{
	BackgroundWorker worker = {0};

	/* During pg_upgrade the new cluster must stay as it is. */
	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;

	strlcpy(worker.bgw_name, "idempotency launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "idempotency launcher", BGW_MAXLEN);
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = RESTART_S;
	strlcpy(worker.bgw_library_name, IDEM_EXTENSION_NAME, BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, CppAsString(idempotency_launcher_main), BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}
