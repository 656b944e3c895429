/*-------------------------------------------------------------------------
 *
 * cleanup.c
 *	  Deleting expired keys of this database: what one batch does, and the
 *	  three ways to have it done by SQL. Who does it hourly is in worker.c.
 *
 * Expiry does not depend on it: an expired key counts as absent whether or
 * not it has been deleted. Clean-up only gives the space back. So it may stop
 * at any point, skip what others are writing, and make way for anybody:
 * batches are short transactions, between which nothing is held, no lock and
 * no snapshot. They are small, because a claim's commit cannot be flushed
 * without what clean-up has written to the WAL before it: with batches of 5,000
 * keys one claim in a hundred waited eight times as long (bench/README.md). For
 * the same reason nobody waits until a batch is on disk: what a crash undoes is
 * deleted again.
 *
 *-------------------------------------------------------------------------
 */
#include "rules.h"
#include "server.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_database.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

/* cleanup_runs remembers so many. */
#define RUNS_KEPT 1000

/*
 * Whether this database has the extension at all.
 */
bool
idem_cleanup_installed(void)
{
	return OidIsValid(get_extension_oid(IDEM_EXTENSION_NAME, true));
}

/*
 * Whether somebody wants to drop, rename, move or copy this database, and so
 * waits for us to leave. They hold its lock then.
 */
bool
idem_cleanup_in_the_way(void)
{
	LOCKTAG tag;

	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, MyDatabaseId, 0);
	if (LockAcquire(&tag, RowExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	LockRelease(&tag, RowExclusiveLock, false);
	return false;
}

/*
 * One batch, in the current transaction, which is the caller's to commit.
 * Adds to what *cleanup says and returns whether more is left; *progress, at first
 * IDEM_NO_PROGRESS, is how far the run has come. "now" is the moment up to which
 * lifetimes and leases are over; the clock, for those who believe it.
 *
 * Errors: 55000 the table is not as expected; any that deleting may raise.
 */
bool
idem_cleanup_batch(IdemCleanup *cleanup, IdemProgress *progress, TimestampTz now)
{
	int64 deleted = idem_keys_delete_expired(&progress->expired, now, idem_cleanup_batch_size);
	int64 redacted = idem_keys_redact_due(&progress->due, now, idem_cleanup_batch_size);

	cleanup->deleted += deleted;
	cleanup->redacted += redacted;
	cleanup->batches++;
	idem_stats_count(IDEM_DELETED, deleted);
	return progress->expired.more || progress->due.more;
}

/*
 * Lets a clean-up of the worker go on where the last one ended; false if it begins
 * at the beginning.
 *
 * For as long as somebody holds a snapshot the index shows all that was deleted
 * since, and the first batch of a clean-up reads it from its beginning: with
 * rounds a second apart and a million keys deleted that was a third of a
 * processor. What the place leaves behind, such as rows that were locked, or
 * committed after they had expired, is found from the beginning, which is where
 * a clean-up begins when somebody has asked for it, and unless that takes more than
 * a hundredth of the time. So where nobody holds a snapshot they all do.
 */
bool
idem_cleanup_resume(IdemProgress *progress)
{
	IdemDatabase *entry = idem_stats_database(MyDatabaseId);
	TimestampTz now = GetCurrentTimestamp();
	IdemResume resume;
	bool whole;

	if (entry == NULL)
		return false;
	LWLockAcquire(idem_shared->lock, LW_SHARED);
	resume = entry->resume;
	whole = idem_shared->round_is_whole;
	LWLockRelease(idem_shared->lock);
	/* A clock that was set back shows nothing by what it says. */
	if (whole || resume.until == 0 || now < resume.until ||
		(now - resume.whole_at) / 100 >= resume.whole_took)
		return false;
	progress->expired.from = progress->due.from = resume.until;
	return true;
}

/*
 * A clean-up of the worker has come to its end: all that had expired by "until"
 * was looked at. One that did not resume says when it began, and how many
 * microseconds its first batch took; for the others whole_at is 0.
 */
void
idem_cleanup_reached(TimestampTz until, TimestampTz whole_at, int64 whole_took)
{
	IdemDatabase *entry = idem_stats_database(MyDatabaseId);

	if (entry == NULL)
		return;
	LWLockAcquire(idem_shared->lock, LW_EXCLUSIVE);
	entry->resume.until = until;
	if (whole_at != 0)
	{
		entry->resume.whole_at = whole_at;
		entry->resume.whole_took = whole_took;
	}
	LWLockRelease(idem_shared->lock);
}

/*
 * A clean-up has come to its end: notes what it did in shared memory, for all
 * databases to see.
 */
void
idem_cleanup_ends(IdemCleanup *cleanup)
{
	cleanup->finished_at = GetCurrentTimestamp();
	idem_stats_cleanup(cleanup);
}

/*
 * Notes it in this database's table cleanup_runs, too, in the current transaction.
 */
void
idem_cleanup_record(const IdemCleanup *cleanup, const char *by)
{
	Oid types[] = {TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID, INT8OID, INT8OID,
				   INT4OID, TEXTOID, TEXTOID};
	Datum values[lengthof(types)];
	char nulls[lengthof(types) + 1];
	Oid kept_type = INT8OID;
	Datum kept = Int64GetDatum(RUNS_KEPT);

	memset(nulls, ' ', lengthof(types));
	values[0] = TimestampTzGetDatum(cleanup->started_at);
	values[1] = TimestampTzGetDatum(cleanup->finished_at);
	values[2] = CStringGetTextDatum(by);
	values[3] = Int64GetDatum(cleanup->deleted);
	values[4] = Int64GetDatum(cleanup->redacted);
	values[5] = Int32GetDatum(cleanup->batches);
	values[6] = values[7] = (Datum) 0;
	if (cleanup->failed)
	{
		values[6] = CStringGetTextDatum(unpack_sql_state(cleanup->sqlerrcode));
		values[7] = CStringGetTextDatum(cleanup->message);
	}
	else
		nulls[6] = nulls[7] = 'n';

	idem_execute_on("cleanup_runs",
					"INSERT INTO idempotency.cleanup_runs (started_at, finished_at, started_by,"
					" deleted, redacted, batches, sqlstate, error)"
					" VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
					lengthof(types), types, values, nulls, NULL);
	idem_execute_on("cleanup_runs",
					"DELETE FROM idempotency.cleanup_runs AS r"
					" WHERE r.id OPERATOR(pg_catalog.<=)"
					" (SELECT pg_catalog.max(m.id) OPERATOR(pg_catalog.-) $1"
					" FROM idempotency.cleanup_runs AS m)",
					1, &kept_type, &kept, NULL, NULL);
}

PG_FUNCTION_INFO_V1(idempotency_cleanup);

/*
 * SQL cleanup(): deletes here and now, in the caller's transaction, and says
 * how many. Whether its commit is flushed is up to the caller.
 *
 * Errors: 22023, 22001 arguments; 42501 a scope that the role may not use; 25006
 * read-only.
 */
Datum
idempotency_cleanup(PG_FUNCTION_ARGS)
{
	int64 older_than;
	int64 max_rows = idem_arg_is_null(fcinfo, 1) ? PG_INT64_MAX : PG_GETARG_INT64(1);
	text *scope = idem_arg_is_null(fcinfo, 2) ? NULL : PG_GETARG_TEXT_PP(2);
	text *operation = idem_arg_is_null(fcinfo, 3) ? NULL : PG_GETARG_TEXT_PP(3);
	TimestampTz now = GetCurrentTimestamp();
	int64 deleted;

	idem_require_writable("cleanup");
	older_than = idem_duration(fcinfo, 0, "older_than", 0, PG_INT64_MAX, 0);
	if (max_rows < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_rows must not be negative"),
				 errhint("Leave it out to delete everything that has expired.")));
	if (scope != NULL)
	{
		idem_check_identity_part(scope, "scope");
		idem_binding_check(scope);
	}
	if (operation != NULL)
		idem_check_identity_part(operation, "operation");

	deleted = idem_keys_cleanup(scope, operation, idem_time_after(now, -older_than, "older_than"),
								now, max_rows);
	idem_stats_count(IDEM_DELETED, deleted);
	PG_RETURN_INT64(deleted);
}

/*
 * Nobody has to wait until the transaction that begins here is on disk. It keeps
 * what the session has set if somebody has written in it before, which is not
 * ours to risk. The setting ends with the transaction.
 */
static void
cleanup_commit_asynchronously(void)
{
	if (!TransactionIdIsValid(GetTopTransactionIdIfAny()))
		(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
}

PG_FUNCTION_INFO_V1(idempotency_maintain);

/*
 * SQL maintain(): the whole of maintenance, committing each batch. It believes
 * the clock. The user and the security context are what they were on entry
 * whenever it commits; the server insists on that.
 *
 * Errors: 2D000 inside a transaction block, in a function, or with a SET
 * clause, where nothing can be committed; 25006 read-only.
 */
Datum
idempotency_maintain(PG_FUNCTION_ARGS)
{
	IdemCleanup cleanup = {0};
	IdemProgress progress = IDEM_NO_PROGRESS;
	bool more = true;

	if (fcinfo->context == NULL || !IsA(fcinfo->context, CallContext) ||
		castNode(CallContext, fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
				 errmsg("maintain() commits and cannot run inside a transaction block"),
				 errhint("CALL it by itself, or use cleanup() to delete in the running"
						 " transaction.")));
	idem_require_writable("maintain");

	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	cleanup.started_at = GetCurrentTimestamp();
	while (more)
	{
		cleanup_commit_asynchronously();
		PushActiveSnapshot(GetTransactionSnapshot());
		more = !idem_cleanup_in_the_way() &&
			idem_cleanup_batch(&cleanup, &progress, GetCurrentTimestamp());
		if (!more)
		{
			idem_cleanup_ends(&cleanup);
			idem_cleanup_record(&cleanup, "maintain");
		}
		PopActiveSnapshot();
		SPI_commit();
		if (more && idem_cleanup_pause > 0)
		{
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 idem_cleanup_pause,
							 wait_event_compat("IdempotencyCleanupPause"));
			ResetLatch(MyLatch);
		}
		CHECK_FOR_INTERRUPTS();
	}
	SPI_finish();
	PG_RETURN_VOID();
}
