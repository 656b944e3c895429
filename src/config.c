/*-------------------------------------------------------------------------
 *
 * config.c
 *	  Small tables of the extension that every backend keeps a copy of:
 *	  "policies", "role_bindings" and "lock_secret".
 *
 * A claim must not pay for a look-up in them. So they are read as a whole at
 * first need. A trigger on each invalidates the table's relation cache entry,
 * which reaches every backend with the commit of the change, and a callback
 * then drops the copy. It fires always and for each row, since logical
 * replication fires no others, and on TRUNCATE.
 *
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "executor/tuptable.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* Every table that was read in this backend. */
static List *watched = NIL;

static void
table_changed(Datum arg pg_attribute_unused(), Oid relid)
{
	ListCell *cell;

	foreach (cell, watched)
	{
		IdemConfig *config = lfirst(cell);

		config->changes++;
		if (relid == InvalidOid || relid == config->loaded)
			config->loaded = InvalidOid;
	}
}

void
idem_config_init(void)
{
	CacheRegisterRelcacheCallback(table_changed, (Datum) 0);
}

/*
 * Brings the copy up to date. Whoever reads it may do so until the next call
 * that takes locks. What is invalidated while we read is used once, for the
 * call that is running, and not kept.
 *
 * Errors: 55000 the table is missing.
 */
void
idem_config_refresh(IdemConfig *config)
{
	Relation table;
	Snapshot snapshot;
	TableScanDesc scan;
	TupleTableSlot *slot;
	uint64 changes_before;

	/*
	 * A transaction that has all its locks already would otherwise not learn
	 * of a change before it ends. Where nothing is waiting this costs nothing.
	 */
	AcceptInvalidationMessages();
	if (OidIsValid(config->loaded))
		return;

	table = idem_open_member(config->table);
	if (config->context == NULL)
	{
		MemoryContext caller = MemoryContextSwitchTo(TopMemoryContext);

		config->context = AllocSetContextCreate(TopMemoryContext, "idempotency configuration",
												ALLOCSET_SMALL_SIZES);
		watched = lappend(watched, config);
		MemoryContextSwitchTo(caller);
	}
	changes_before = config->changes;
	MemoryContextReset(config->context);
	config->rows = NIL;

	/*
	 * A parallel query may not look at anything newer than its own snapshot.
	 * What that shows may be out of date already, so it is not kept.
	 */
	snapshot = RegisterSnapshot(IsInParallelMode() ? GetActiveSnapshot() : GetLatestSnapshot());
	scan = table_beginscan_compat(table, snapshot);
	slot = table_slot_create(table, NULL);
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		MemoryContext caller = MemoryContextSwitchTo(config->context);

		config->rows = lappend(config->rows, config->read_row(slot));
		MemoryContextSwitchTo(caller);
	}
	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	if (config->changes == changes_before && !IsInParallelMode())
		config->loaded = RelationGetRelid(table);
	table_close(table, NoLock);
}

/*
 * Executes a statement on such a table as its owner; says how many rows it
 * touched.
 *
 * Errors: 55000 the table is missing.
 */
uint64
idem_config_write(const IdemConfig *config, const char *sql, int nargs, Oid *types,
				  Datum *values, const char *nulls)
{
	return idem_execute_on(config->table, sql, nargs, types, values, nulls, NULL);
}

PG_FUNCTION_INFO_V1(idempotency_config_changed);

/*
 * SQL config_changed(), the trigger; see the head of this file.
 */
Datum
idempotency_config_changed(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("config_changed() is a trigger function"),
				 errhint("It is not to be called by anybody else.")));
	CacheInvalidateRelcacheByRelid(RelationGetRelid(((TriggerData *) fcinfo->context)->tg_relation));
	PG_RETURN_POINTER(NULL);
}
