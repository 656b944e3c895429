/*-------------------------------------------------------------------------
 *
 * stats.c
 *	  Counters: what was answered, and what the last clean-up did, for every
 *	  database of the server.
 *
 * They are atomic additions in shared memory, so they cost next to nothing
 * and survive the backend. They count answers, not commits: a claim that is
 * rolled back was still a claim. They start anew with the server.
 *
 *-------------------------------------------------------------------------
 */
#include "server.h"

#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

/* Where this backend counts. */
static IdemDatabase *stats_own = NULL;

/*
 * The entry of a database, made if need be; NULL if there is no room. Entries
 * are never moved, and given to another database only by
 * idem_stats_forget_dropped(), when theirs is gone and with it every backend
 * that counts there.
 */
IdemDatabase *
idem_stats_database(Oid database)
{
	IdemDatabase *result = NULL;

	if (idem_shared == NULL)
		return NULL;
	LWLockAcquire(idem_shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < IDEM_MAX_DATABASES && result == NULL; i++)
		if (idem_shared->databases[i].database == database)
			result = &idem_shared->databases[i];
	for (int i = 0; i < IDEM_MAX_DATABASES && result == NULL; i++)
		if (!OidIsValid(idem_shared->databases[i].database))
		{
			result = &idem_shared->databases[i];
			result->database = database;
		}
	LWLockRelease(idem_shared->lock);
	return result;
}

static void
stats_clear(IdemDatabase *entry)
{
	for (int i = 0; i < IDEM_NCOUNTERS; i++)
		pg_atomic_write_u64(&entry->counters[i], 0);
}

/*
 * Frees the entries of databases that are no more; "exists" looks into the
 * catalog. Each entry is looked up by itself: a list of the databases that was
 * made before would lack those that have come, and begun to count, since. Only
 * the launcher calls this, so no entry changes its database meanwhile.
 */
void
idem_stats_forget_dropped(bool (*exists)(Oid database))
{
	for (int i = 0; i < IDEM_MAX_DATABASES; i++)
	{
		IdemDatabase *entry = &idem_shared->databases[i];
		Oid database;

		LWLockAcquire(idem_shared->lock, LW_SHARED);
		database = entry->database;
		LWLockRelease(idem_shared->lock);
		if (!OidIsValid(database) || exists(database))
			continue;

		LWLockAcquire(idem_shared->lock, LW_EXCLUSIVE);
		stats_clear(entry);
		MemSet(&entry->cleanup, 0, sizeof(entry->cleanup));
		MemSet(&entry->resume, 0, sizeof(entry->resume));
		entry->database = InvalidOid;
		LWLockRelease(idem_shared->lock);
	}
}

/*
 * Adds to a counter of this database.
 */
void
idem_stats_count(IdemCounter counter, uint64 number)
{
	if (idem_shared == NULL || !idem_track || number == 0)
		return;
	if (stats_own == NULL)
		stats_own = idem_stats_database(MyDatabaseId);
	if (stats_own != NULL)
		pg_atomic_fetch_add_u64(&stats_own->counters[counter], number);
}

/*
 * Notes what a clean-up of this database has done.
 */
void
idem_stats_cleanup(const IdemCleanup *cleanup)
{
	IdemDatabase *entry = idem_stats_database(MyDatabaseId);

	if (entry == NULL)
		return;
	LWLockAcquire(idem_shared->lock, LW_EXCLUSIVE);
	entry->cleanup = *cleanup;
	LWLockRelease(idem_shared->lock);
}

/*
 * The last clean-up of this database that the server knows of.
 */
bool
idem_stats_last_cleanup(IdemCleanup *cleanup)
{
	IdemDatabase *entry = idem_stats_database(MyDatabaseId);

	if (entry == NULL)
		return false;
	LWLockAcquire(idem_shared->lock, LW_SHARED);
	*cleanup = entry->cleanup;
	LWLockRelease(idem_shared->lock);
	return cleanup->finished_at != 0;
}

PG_FUNCTION_INFO_V1(idempotency_stats_data);

/*
 * SQL stats_data(), behind the view "stats": a row for each database that has
 * counted anything.
 *
 * Errors: 55000 not preloaded.
 */
Datum
idempotency_stats_data(PG_FUNCTION_ARGS)
{
#define STATS_COLUMNS (2 + IDEM_NCOUNTERS + 2)
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	IdemDatabase *copy;

	idem_require_shared();
	InitMaterializedSRF(fcinfo, 0);
	copy = palloc(sizeof(idem_shared->databases));
	LWLockAcquire(idem_shared->lock, LW_SHARED);
	memcpy(copy, idem_shared->databases, sizeof(idem_shared->databases));
	LWLockRelease(idem_shared->lock);

	for (int i = 0; i < IDEM_MAX_DATABASES; i++)
	{
		Datum values[STATS_COLUMNS] = {0};
		bool isnull[STATS_COLUMNS] = {0};
		char *name;

		if (!OidIsValid(copy[i].database))
			continue;
		name = get_database_name(copy[i].database);
		if (name == NULL)
			continue;
		values[0] = ObjectIdGetDatum(copy[i].database);
		values[1] = CStringGetTextDatum(name);
		for (int j = 0; j < IDEM_NCOUNTERS; j++)
			values[2 + j] = Int64GetDatum((int64) pg_atomic_read_u64(&copy[i].counters[j]));
		values[2 + IDEM_NCOUNTERS] = TimestampTzGetDatum(copy[i].cleanup.finished_at);
		isnull[2 + IDEM_NCOUNTERS] = copy[i].cleanup.finished_at == 0;
		values[3 + IDEM_NCOUNTERS] = Int64GetDatum(copy[i].cleanup.deleted);
		isnull[3 + IDEM_NCOUNTERS] = copy[i].cleanup.finished_at == 0;
		tuplestore_putvalues(result->setResult, result->setDesc, values, isnull);
	}
	return (Datum) 0;
}

PG_FUNCTION_INFO_V1(idempotency_stats_reset);

/*
 * SQL stats_reset(): this database's counters start from zero.
 *
 * Errors: 55000 not preloaded.
 */
Datum
idempotency_stats_reset(PG_FUNCTION_ARGS)
{
	IdemDatabase *entry;

	(void) fcinfo;
	idem_require_shared();
	entry = idem_stats_database(MyDatabaseId);
	if (entry != NULL)
		stats_clear(entry);
	PG_RETURN_BOOL(entry != NULL);
}
