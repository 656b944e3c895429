/*-------------------------------------------------------------------------
 *
 * plans.c
 *	  How the statements on idempotency_keys are executed: their plans, whose
 *	  rights they run with, and what their errors may say.
 *
 * Plans are prepared once per connection and kept, and run with the rights of
 * the table's owner (as ri_triggers.c does it), so the caller needs no more
 * than EXECUTE. The planner is held to the indexes while one is made, and what
 * an error says of a row is kept from everybody.
 *
 *-------------------------------------------------------------------------
 */
#include "statements.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_index.h"
#include "executor/spi.h"
#include "jit/jit.h"
#include "optimizer/cost.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/syscache.h"

/* Plans, for as long as the table is the same. */
static Oid plans_of = InvalidOid;
static SPIPlanPtr plans[NSTATEMENTS];

static SPIPlanPtr
plan_prepare(KeyStatement statement)
{
	Oid types[STATEMENT_MAX_PARAMETERS];
	int ntypes = idem_statement_types(statement, types);
	SPIPlanPtr plan = SPI_prepare_cursor(idem_statement_sql(statement), ntypes, types,
										 CURSOR_OPT_GENERIC_PLAN);

	if (plan == NULL)
		elog(ERROR, "SPI_prepare_cursor failed: %s", SPI_result_code_string(SPI_result));
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
	return plan;
}

/*
 * How the planner is held to the indexes. A plan is kept, and one that was made
 * while the table was small must still be good when it is large: no reading of
 * the whole table, and no collecting of all that has expired for one batch of
 * it. A plan that goes against a setting looks expensive, and would be compiled.
 */
static const struct
{
	bool *setting;
	bool pinned;
} plan_settings[] = {
	{&enable_seqscan, false},
	{&enable_bitmapscan, false},
	{&enable_indexscan, true},
	{&enable_tidscan, true},
	{&jit_enabled, false},
};

typedef struct PlannerSettings
{
	bool values[lengthof(plan_settings)];
	int cache_mode;
} PlannerSettings;

/*
 * The planner's settings are the user's to change, and could turn a look-up into
 * a sequential scan or make every call plan anew. So they are pinned while a plan
 * of ours may be made. They are plain variables; saving and restoring them costs
 * nothing, where a nested GUC level would cost more than the statement. Nothing
 * of a user's may run meanwhile: it would see them, plan by them, and what it
 * SETs would put them back as if they were the user's own.
 */
static void
plan_pin_settings(PlannerSettings *saved)
{
	for (int i = 0; i < (int) lengthof(plan_settings); i++)
	{
		saved->values[i] = *plan_settings[i].setting;
		*plan_settings[i].setting = plan_settings[i].pinned;
	}
	saved->cache_mode = plan_cache_mode;
	plan_cache_mode = PLAN_CACHE_MODE_FORCE_GENERIC_PLAN;
}

static void
plan_unpin_settings(const PlannerSettings *saved)
{
	for (int i = 0; i < (int) lengthof(plan_settings); i++)
		*plan_settings[i].setting = saved->values[i];
	plan_cache_mode = saved->cache_mode;
}

/*
 * Makes a statement's plan, or sees that it is still good, before what hangs on
 * the table can run. The settings are the user's again while it does. Where these
 * make every call plan anew, the trigger has to do without: nothing else keeps
 * our statement to its plan.
 *
 * To simplify an expression the planner may call functions that the table's owner
 * has put there. What they SET is undone while the pins are still in place.
 */
static void
plan_make_ahead(SPIPlanPtr plan)
{
	PlannerSettings settings;
	int level = NewGUCNestLevel();

	plan_pin_settings(&settings);
	PG_TRY();
	{
		ReleaseCachedPlan(SPI_plan_get_cached_plan(plan), CurrentResourceOwner);
	}
	PG_FINALLY();
	{
		AtEOXact_GUC(false, level);
		plan_unpin_settings(&settings);
	}
	PG_END_TRY();
	if (plan_cache_mode == PLAN_CACHE_MODE_FORCE_CUSTOM_PLAN)
		(void) set_config_option("plan_cache_mode", "auto", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Whether an index is on the identity and nothing else: the primary key, under
 * any name, or the copy that REINDEX CONCURRENTLY makes or leaves behind.
 */
static bool
plan_is_identity_index(const char *name)
{
	Oid oid = get_relname_relid(name, get_namespace_oid(IDEM_SCHEMA_NAME, true));
	HeapTuple tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(oid));
	bool result = false;

	if (HeapTupleIsValid(tuple))
	{
		Form_pg_index index = (Form_pg_index) GETSTRUCT(tuple);

		result = index->indnkeyatts == 3 &&
			index->indkey.values[0] == KEY_SCOPE + 1 &&
			index->indkey.values[1] == KEY_OPERATION + 1 &&
			index->indkey.values[2] == KEY_KEY + 1 &&
			heap_attisnull(tuple, Anum_pg_index_indpred, NULL);
		ReleaseSysCache(tuple);
	}
	return result;
}

/*
 * Reports that writing a row failed, with the SQLSTATE of an error that is kept
 * back, and what that alone tells whoever has to deal with it.
 */
static void
plan_report_failure(int code)
{
	int category = ERRCODE_TO_CATEGORY(code);
	const char *message = "writing the row of a key failed";
	const char *hint = "It was raised by the server, or by something that was added to the"
					   " table: a trigger, a rule, a constraint, a default, an index."
					   " What it says may show the row and is kept back: write a row by hand,"
					   " as the table's owner, to see it.";

	if (code == ERRCODE_T_R_SERIALIZATION_FAILURE || code == ERRCODE_T_R_DEADLOCK_DETECTED)
	{
		message = code == ERRCODE_T_R_DEADLOCK_DETECTED
			? "deadlock detected while the row of a key was written"
			: "could not serialize access while the row of a key was written";
		hint = "Retry the transaction.";
	}
	else if (code == ERRCODE_QUERY_CANCELED)
	{
		message = "canceled while the row of a key was written";
		hint = "Somebody asked for it, or \"statement_timeout\" was over.";
	}
	else if (code == ERRCODE_LOCK_NOT_AVAILABLE)
	{
		message = "could not obtain a lock while the row of a key was written";
		hint = "Retry the transaction, or raise \"lock_timeout\".";
	}
	else if (code == ERRCODE_INSUFFICIENT_PRIVILEGE)
	{
		message = "not allowed while the row of a key was written";
		hint = "What hangs on the table runs at once,"
			   " and with the rights of the table's owner alone:"
			   " make its triggers and constraints NOT DEFERRABLE,"
			   " and grant the owner what they need.";
	}
	else if (category == ERRCODE_INSUFFICIENT_RESOURCES)
	{
		message = "the server lacks resources to write the row of a key";
		hint = "The SQLSTATE tells which limit was reached.";
	}
	ereport(ERROR, (errcode(code), errmsg("%s", message), errhint("%s", hint)));
}

/*
 * A constraint or an index of the table by that name, which then is no secret: a
 * trigger can put anything into an error's fields.
 */
static bool
plan_is_of_table(Relation table, const char *name)
{
	Oid index = get_relname_relid(name, RelationGetNamespace(table));

	return OidIsValid(get_relation_constraint_oid(RelationGetRelid(table), name, true)) ||
		(OidIsValid(index) && IndexGetRelation(index, true) == RelationGetRelid(table));
}

/*
 * In PG_CATCH: an error that was raised while a row was written may show it, and
 * so a key or a response: what the server says of a row that a constraint
 * refuses, of a value that cannot be cast, or whatever a trigger makes of it, in
 * any of its fields. It is kept from everybody, before it has reached the log.
 *
 * If it is the primary key that refuses a row, a retry helps. A constraint that
 * an administrator has added is named. Returns if the error is harmless: if the
 * table is plain, and it is not a constraint that complains.
 */
static void
plan_hide_row(Relation table, bool plain, MemoryContext caller)
{
	MemoryContext errors = MemoryContextSwitchTo(caller);
	ErrorData *error = CopyErrorData();
	bool refused = ERRCODE_TO_CATEGORY(error->sqlerrcode) == ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION;

	if (plain && !refused)
	{
		MemoryContextSwitchTo(errors);
		return;
	}
	FlushErrorState();
	if (refused)
	{
		const char *name = error->constraint_name;
		bool ours = name != NULL && plan_is_of_table(table, name);

		if (error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION && name != NULL &&
			error->schema_name != NULL && strcmp(error->schema_name, IDEM_SCHEMA_NAME) == 0 &&
			error->table_name != NULL && strcmp(error->table_name, IDEM_KEYS_TABLE) == 0 &&
			plan_is_identity_index(name))
			idem_report_lost_race();
		ereport(ERROR,
				(errcode(error->sqlerrcode),
				 ours
					 ? errmsg("\"%s\" on table %s refuses the row of a key", name,
							  IDEM_QUALIFIED_TABLE)
					 : errmsg("a constraint on table %s refuses the row of a key",
							  IDEM_QUALIFIED_TABLE),
				 errhint("An index or a constraint that was added to the table refuses the key's"
						 " row: drop it.")));
	}
	plan_report_failure(error->sqlerrcode);
}

/*
 * The context of what is logged meanwhile, by the end of the process or a wait
 * for a lock, can show the statement that a trigger is executing, and so the row.
 */
static void
plan_hide_context(void *arg pg_attribute_unused())
{
	errhidecontext(true);
}

/*
 * Whether a statement that writes fewer columns does the same: the others are NULL,
 * as an INSERT leaves them, or what they are in the version that is replaced.
 */
static bool
plan_is_enough(KeyStatement narrow, const KeyRow *old, const KeyRow *row)
{
	KeyColumns others = ~idem_statements[narrow].columns;

	for (int i = 0; i < KEY_NCOLUMNS; i++)
	{
		if ((others & KEY_COLUMN(i)) == 0)
			continue;
		if (row->isnull[i] != (old == NULL || old->isnull[i]) ||
			(!row->isnull[i] && row->values[i] != old->values[i]))
			return false;
	}
	return true;
}

static void
plan_drop_all(void)
{
	for (int i = 0; i < NSTATEMENTS; i++)
	{
		SPIPlanPtr stale = plans[i];

		plans[i] = NULL;
		if (stale != NULL)
			SPI_freeplan(stale);
	}
}

/*
 * What idem_plan_execute() does, on the table that it has opened.
 */
static uint64
plan_execute_on(Relation table, bool plain, KeyStatement statement, Datum *values,
				const char *nulls, void (*consume)(void *state, uint64 nrows), void *state)
{
	volatile bool writing = plain;
	MemoryContext context = CurrentMemoryContext;
	ErrorContextCallback callback = {.callback = plan_hide_context};
	Oid types[STATEMENT_MAX_PARAMETERS];
	int ntypes = idem_statement_types(statement, types);
	PlannerSettings settings;
	IdemCaller caller;
	int result;
	uint64 processed;

	idem_become(&caller, table->rd_rel->relowner, plain);
	if (plain)
		plan_pin_settings(&settings);
	PG_TRY();
	{
		if (plans_of != RelationGetRelid(table))
		{
			plan_drop_all();
			plans_of = RelationGetRelid(table);
		}
		if (plans[statement] == NULL)
			plans[statement] = plan_prepare(statement);
		if (!plain)
		{
			plan_make_ahead(plans[statement]);
			writing = true;
			callback.previous = error_context_stack;
			error_context_stack = &callback;
		}
		result = SPI_execute_plan_with_paramlist(
			plans[statement], idem_hidden_parameters(ntypes, types, values, nulls), false, 0);
		if (!plain)
			error_context_stack = callback.previous;
	}
	PG_CATCH();
	{
		if (plain)
			plan_unpin_settings(&settings);
		if (writing)
			plan_hide_row(table, plain, context);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (plain)
		plan_unpin_settings(&settings);

	if (result < 0)
		elog(ERROR, "SPI_execute_plan failed: %s", SPI_result_code_string(result));
	processed = SPI_processed;
	if (consume != NULL)
		consume(state, processed);
	idem_unbecome(&caller);
	if (processed > 0 && !idem_statements[statement].reads &&
		!idem_statements[statement].may_be_lost)
		ForceSyncCommit();
	return processed;
}

/*
 * Executes a statement as the owner of the table and returns the number of
 * rows it touched. What it returned is for "consume", or NULL, to copy out by
 * idem_plan_value().
 *
 * Every transaction that writes a key is flushed to disk locally before it
 * becomes visible, even with synchronous_commit off: a claim that was
 * acknowledged and then lost in a crash would be given twice, with the same
 * token. Clean-up is excepted; see may_be_lost in statements.h.
 *
 * Errors: 40001 the primary key has another row; 55000 the table is not as
 * expected; whatever else the statement raises, in words that say nothing of a row
 * (see plan_hide_row()). Before anything is written, planning may raise what it likes:
 * it does not know the row.
 */
uint64
idem_plan_execute(KeyStatement statement, Datum *values, const char *nulls,
				  void (*consume)(void *state, uint64 nrows), void *state)
{
	bool reads = idem_statements[statement].reads;
	Relation table = idem_table_open(reads ? AccessShareLock : RowExclusiveLock);
	uint64 processed = plan_execute_on(table, idem_table_is_plain(table), statement, values, nulls,
									   consume, state);

	table_close(table, NoLock);
	return processed;
}

/*
 * The same of a statement that writes a row: its last parameters are the row's
 * columns, and "own" has those before. "old" is the version that it replaces, or
 * NULL.
 *
 * Each column costs, the more of them the more, so that what most calls write has a
 * narrower statement. Only on a plain table: a column that is not named would get
 * its default, and a trigger may be there for it.
 */
uint64
idem_plan_write(KeyStatement statement, const Datum *own, const KeyRow *old, const KeyRow *row)
{
	Relation table = idem_table_open(RowExclusiveLock);
	bool plain = idem_table_is_plain(table);
	Datum values[STATEMENT_MAX_PARAMETERS];
	char nulls[STATEMENT_MAX_PARAMETERS];
	int number;
	uint64 processed;

	if (plain && statement == STATEMENT_INSERT && plan_is_enough(STATEMENT_INSERT_LEAN, NULL, row))
		statement = STATEMENT_INSERT_LEAN;
	else if (plain && statement == STATEMENT_UPDATE &&
			 plan_is_enough(STATEMENT_UPDATE_END, old, row))
		statement = STATEMENT_UPDATE_END;

	number = idem_statement_own_parameters(statement);
	memcpy(values, own, sizeof(Datum) * number);
	memset(nulls, ' ', number);
	for (int i = 0; i < KEY_NCOLUMNS; i++)
		if (idem_statements[statement].columns & KEY_COLUMN(i))
		{
			values[number] = row->values[i];
			nulls[number++] = row->isnull[i] ? 'n' : ' ';
		}
	processed = plan_execute_on(table, plain, statement, values, nulls, NULL, NULL);
	table_close(table, NoLock);
	return processed;
}

/*
 * A value of a row that a statement returned, to be copied by "consume".
 */
Datum
idem_plan_value(uint64 row, int column)
{
	bool isnull;

	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);
}
