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
#include "rules.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "executor/tuptable.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/*
 * Brings the copy up to date, as of the last time that invalidations were
 * processed; see idem_binding_allows(). Whoever reads it may do so until the next
 * call that takes locks. What is invalidated while we read is used once, for the
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
	uint64 changes;

	if (OidIsValid(config->memory.valid_for))
		return;

	table = idem_member_open(config->table);
	if (config->context == NULL)
	{
		config->context = AllocSetContextCreate(TopMemoryContext, "idempotency configuration",
												ALLOCSET_SMALL_SIZES);
		idem_memory_watch(&config->memory);
	}
	changes = config->memory.changes;
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
	if (!IsInParallelMode())
		idem_memory_keep(&config->memory, RelationGetRelid(table), changes);
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
	CacheInvalidateRelcache(((TriggerData *) fcinfo->context)->tg_relation);
	PG_RETURN_POINTER(NULL);
}
