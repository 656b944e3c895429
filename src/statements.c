/*-------------------------------------------------------------------------
 *
 * statements.c
 *	  The SQL that writes rows of idempotency_keys: its text, its plans, and
 *	  how it is executed. Only keys.c and batch.c use it.
 *
 * Plans are prepared once per connection and kept, and run with the rights of
 * the table's owner (as ri_triggers.c does it), so the caller needs no more
 * than EXECUTE. Every name, type and operator is qualified.
 *
 * There is one statement to insert a row, one to replace a version of it and
 * one to delete it. The latter two find the version by its ctid, without
 * touching an index page, and repeat what was decided on, so that they miss if
 * it has changed. The others deal with many rows at once.
 *
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "jit/jit.h"
#include "lib/stringinfo.h"
#include "optimizer/cost.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/syscache.h"

/*
 * What a key has that is completed in the transaction of its claim, which is what
 * most keys are. An INSERT of so much is cheaper than one of mostly NULLs.
 */
static const KeyColumn lean_columns[] = {
	KEY_CREATED_AT, KEY_EXPIRES_AT, KEY_COMPLETED_AT, KEY_ATTEMPT, KEY_RESPONSE_STATUS,
	KEY_SCOPE, KEY_OPERATION, KEY_KEY, KEY_STATUS, KEY_FINGERPRINT, KEY_RESPONSE_HEADERS,
	KEY_RESPONSE_BODY};

/* Plans, for as long as the table is the same. */
static Oid planned_for = InvalidOid;
static SPIPlanPtr plans[NSTATEMENTS];

/*
 * Which rows clean-up may take; see idem_keys_expired(). $1 is the moment
 * before which they have expired, $2 the present.
 */
#define EXPIRED(alias) \
	alias ".expires_at OPERATOR(pg_catalog.<=) $1 AND (" alias ".status OPERATOR(pg_catalog.=) 'completed'::pg_catalog.text OR " alias ".status OPERATOR(pg_catalog.=) 'failed'::pg_catalog.text OR (" alias ".status OPERATOR(pg_catalog.=) 'in_progress'::pg_catalog.text AND " alias ".locked_until OPERATOR(pg_catalog.<=) $2 AND " alias ".hold_if_abandoned IS NOT TRUE))"

/* Which rows the next claim gets without asking anybody, as of a moment. */
#define RECLAIMABLE(alias, now) \
	"((" alias ".expires_at OPERATOR(pg_catalog.<=) " now " AND (" alias ".status OPERATOR(pg_catalog.=) 'completed'::pg_catalog.text OR (" alias ".status OPERATOR(pg_catalog.=) 'in_progress'::pg_catalog.text AND " alias ".locked_until OPERATOR(pg_catalog.<=) " now " AND " alias ".hold_if_abandoned IS NOT TRUE))) OR (" alias ".status OPERATOR(pg_catalog.=) 'failed'::pg_catalog.text AND (" alias ".locked_until IS NULL OR " alias ".locked_until OPERATOR(pg_catalog.<=) " now ")))"

/* What a redacted row no longer has. */
#define REDACTED                                                            \
	"response_headers = NULL, response_body = NULL, response_bytes = NULL," \
	" state = NULL, last_error = NULL"

#define QUALIFIED_TABLE IDEM_SCHEMA_NAME "." IDEM_KEYS_TABLE

/*
 * A version as it was read: position, and what decisions are based on. The
 * latter matters when a concurrent change makes the server look at the newest
 * version of the row instead.
 */
static void
append_version(StringInfo sql, int first)
{
	appendStringInfo(sql, " WHERE k.ctid OPERATOR(pg_catalog.=) $%d"
						  " AND k.expires_at OPERATOR(pg_catalog.=) $%d"
						  " AND k.status OPERATOR(pg_catalog.=) $%d"
						  " AND COALESCE(k.token, 0) OPERATOR(pg_catalog.=) $%d",
					 first, first + 1, first + 2, first + 3);
}

/*
 * Types of these; their values are in keys.c, version_values().
 */
static int
version_types(Oid *types)
{
	types[0] = TIDOID;
	types[1] = TIMESTAMPTZOID;
	types[2] = TEXTOID;
	types[3] = INT8OID;
	return 4;
}

/*
 * What cleanup() deletes, for each combination of the two arguments that may be
 * NULL a statement, since a plan is made once for all values. One pass, whose
 * memory does not depend on how much there is.
 *
 * Of all ways the planner shall see only the one that is right for any size: with
 * a scope, the primary key's entries of it; without, the index on expires_at from
 * its beginning. And a row that was found is fetched by its ctid. A condition that
 * ends in IS TRUE is one that no index serves.
 */
static void
append_cleanup(StringInfo sql, bool scope, bool operation)
{
	appendStringInfoString(sql, "DELETE FROM ONLY " QUALIFIED_TABLE " AS k"
								" USING (SELECT c.ctid AS place FROM ONLY " QUALIFIED_TABLE " AS c WHERE ");
	if (scope)
		appendStringInfo(sql, "c.scope OPERATOR(pg_catalog.=) $4%s AND (" EXPIRED("c") ") IS TRUE",
						 operation ? " AND c.operation OPERATOR(pg_catalog.=) $5" : "");
	else
		appendStringInfo(sql, EXPIRED("c") "%s ORDER BY c.expires_at",
						 operation ? " AND (c.operation OPERATOR(pg_catalog.=) $5) IS TRUE" : "");
	appendStringInfoString(sql, " LIMIT $3 FOR UPDATE SKIP LOCKED) AS d"
								" WHERE k.ctid OPERATOR(pg_catalog.=) d.place AND (" EXPIRED("k") ") IS TRUE");
}

/*
 * Whether a crash may undo what a statement did. What has expired counts as
 * absent, and what is due is not handed out, be it deleted or not; and whoever
 * commits a new row afterwards flushes all that was written before.
 */
static bool
may_be_lost(KeyStatement statement)
{
	switch (statement)
	{
		case STATEMENT_DELETE_EXPIRED:
		case STATEMENT_CLEANUP:
		case STATEMENT_CLEANUP_OPERATION:
		case STATEMENT_CLEANUP_SCOPE:
		case STATEMENT_CLEANUP_SCOPE_OPERATION:
		case STATEMENT_REDACT_DUE:
			return true;
		default:
			return false;
	}
}

static SPIPlanPtr
prepare(KeyStatement statement)
{
	StringInfoData sql;
	Oid types[STATEMENT_MAX_PARAMETERS];
	int ntypes = 0;
	SPIPlanPtr plan;

	initStringInfo(&sql);
	switch (statement)
	{
		case STATEMENT_INSERT:
		case STATEMENT_INSERT_LEAN:
		case STATEMENT_INSERT_IF_ABSENT:
			ntypes = statement == STATEMENT_INSERT_LEAN ? (int) lengthof(lean_columns) : KEY_NCOLUMNS;
			appendStringInfoString(&sql, "INSERT INTO " QUALIFIED_TABLE " (");
			for (int i = 0; i < ntypes; i++)
			{
				KeyColumn column = statement == STATEMENT_INSERT_LEAN ? lean_columns[i] : (KeyColumn) i;

				appendStringInfo(&sql, "%s%s", i > 0 ? ", " : "", idem_table_columns[column].name);
				types[i] = idem_table_columns[column].type;
			}
			appendStringInfoString(&sql, ") VALUES (");
			for (int i = 0; i < ntypes; i++)
				appendStringInfo(&sql, "%s$%d", i > 0 ? ", " : "", i + 1);
			appendStringInfoChar(&sql, ')');
			if (statement == STATEMENT_INSERT_IF_ABSENT)
				appendStringInfoString(&sql, " ON CONFLICT (scope, operation, key) DO NOTHING");
			break;
		case STATEMENT_UPDATE:
			appendStringInfoString(&sql, "UPDATE ONLY " QUALIFIED_TABLE " AS k SET ");
			for (int i = 0; i < KEY_NCOLUMNS; i++)
			{
				appendStringInfo(&sql, "%s%s = $%d", i > 0 ? ", " : "",
								 idem_table_columns[i].name, i + 1);
				types[ntypes++] = idem_table_columns[i].type;
			}
			append_version(&sql, ntypes + 1);
			ntypes += version_types(types + ntypes);
			break;
		case STATEMENT_DELETE:
			appendStringInfoString(&sql, "DELETE FROM ONLY " QUALIFIED_TABLE " AS k");
			append_version(&sql, 1);
			ntypes = version_types(types);
			break;
		case STATEMENT_DELETE_SCOPE:
			appendStringInfoString(&sql, "DELETE FROM ONLY " QUALIFIED_TABLE " AS k"
										 " WHERE k.scope OPERATOR(pg_catalog.=) $1"
										 " AND ($2 OR k.status OPERATOR(pg_catalog.=) 'completed'::pg_catalog.text"
										 " OR k.status OPERATOR(pg_catalog.=) 'failed'::pg_catalog.text)");
			types[ntypes++] = TEXTOID;
			types[ntypes++] = BOOLOID;
			break;
		case STATEMENT_DELETE_EXPIRED:

			/*
			 * The condition is repeated outside: a row that was taken over
			 * between the two looks is judged by its last version. $4 is where
			 * the batch before this one ended: the index still has an entry for
			 * what that deleted, and while any snapshot is older, each of them
			 * would have to be looked at again.
			 */
			appendStringInfoString(&sql, "DELETE FROM ONLY " QUALIFIED_TABLE " AS k"
										 " WHERE k.ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
										 "SELECT c.ctid FROM ONLY " QUALIFIED_TABLE " AS c"
										 " WHERE " EXPIRED("c") " AND c.expires_at OPERATOR(pg_catalog.>=) $4 ORDER BY c.expires_at LIMIT $3 FOR UPDATE SKIP LOCKED))"
																" AND " EXPIRED("k") " RETURNING k.expires_at");
			types[ntypes++] = TIMESTAMPTZOID;
			types[ntypes++] = TIMESTAMPTZOID;
			types[ntypes++] = INT8OID;
			types[ntypes++] = TIMESTAMPTZOID;
			break;
		case STATEMENT_CLEANUP:
		case STATEMENT_CLEANUP_OPERATION:
		case STATEMENT_CLEANUP_SCOPE:
		case STATEMENT_CLEANUP_SCOPE_OPERATION:
			append_cleanup(&sql,
						   statement == STATEMENT_CLEANUP_SCOPE ||
							   statement == STATEMENT_CLEANUP_SCOPE_OPERATION,
						   statement == STATEMENT_CLEANUP_OPERATION ||
							   statement == STATEMENT_CLEANUP_SCOPE_OPERATION);
			types[ntypes++] = TIMESTAMPTZOID;
			types[ntypes++] = TIMESTAMPTZOID;
			types[ntypes++] = INT8OID;
			types[ntypes++] = TEXTOID;
			types[ntypes++] = TEXTOID;
			break;
		case STATEMENT_REDACT_DUE:

			/*
			 * $3 is where the batch before this one ended, as above. For IS
			 * TRUE see append_cleanup().
			 */
			appendStringInfoString(&sql, "UPDATE ONLY " QUALIFIED_TABLE " AS k SET " REDACTED ", redacted_at = $1, response_expires_at = NULL"
										 " FROM (SELECT c.ctid AS place, c.response_expires_at AS due FROM ONLY " QUALIFIED_TABLE " AS c"
										 " WHERE c.response_expires_at OPERATOR(pg_catalog.<=) $1"
										 " AND c.response_expires_at OPERATOR(pg_catalog.>=) $3"
										 " ORDER BY c.response_expires_at LIMIT $2 FOR UPDATE SKIP LOCKED) AS d"
										 " WHERE k.ctid OPERATOR(pg_catalog.=) d.place"
										 " AND (k.response_expires_at OPERATOR(pg_catalog.<=) $1) IS TRUE RETURNING d.due");
			types[ntypes++] = TIMESTAMPTZOID;
			types[ntypes++] = INT8OID;
			types[ntypes++] = TIMESTAMPTZOID;
			break;
		case STATEMENT_REDACT_SCOPE:
			appendStringInfoString(&sql, "UPDATE ONLY " QUALIFIED_TABLE " AS k SET " REDACTED ", redacted_at = $2, response_expires_at = NULL"
										 " WHERE k.scope OPERATOR(pg_catalog.=) $1 AND k.redacted_at IS NULL"
										 " AND (k.status OPERATOR(pg_catalog.=) 'completed'::pg_catalog.text"
										 " OR k.status OPERATOR(pg_catalog.=) 'failed'::pg_catalog.text)");
			types[ntypes++] = TEXTOID;
			types[ntypes++] = TIMESTAMPTZOID;
			break;
		case STATEMENT_ABANDONED:
			appendStringInfoString(&sql, "SELECT k.scope, k.operation, k.key FROM ONLY " QUALIFIED_TABLE " AS k"
										 " WHERE k.status OPERATOR(pg_catalog.=) 'in_progress'::pg_catalog.text"
										 " AND ($1 IS NULL OR k.operation OPERATOR(pg_catalog.=) $1)"
										 " AND k.locked_until OPERATOR(pg_catalog.<=) $2"
										 " AND k.expires_at OPERATOR(pg_catalog.>) $2"
										 " AND k.hold_if_abandoned IS NOT TRUE"
										 " ORDER BY k.locked_until LIMIT $3 OFFSET $4");
			types[ntypes++] = TEXTOID;
			types[ntypes++] = TIMESTAMPTZOID;
			types[ntypes++] = INT8OID;
			types[ntypes++] = INT8OID;
			break;
		case STATEMENT_BATCH_INSERT:
		case STATEMENT_BATCH_REPLACE:

			/*
			 * The array comes in the order of the index and is inserted in
			 * that order: so overlapping batches meet in the same order. Each
			 * key expires a microsecond after the one before; see batch.c.
			 */
			appendStringInfoString(&sql, "INSERT INTO " QUALIFIED_TABLE " AS k"
										 " (created_at, expires_at, completed_at, attempt, scope, operation, key, status, token)"
										 " SELECT $4, $5 OPERATOR(pg_catalog.+) ((u.n OPERATOR(pg_catalog.-) 1)::pg_catalog.float8"
										 " OPERATOR(pg_catalog.*) '1 microsecond'::pg_catalog.interval),"
										 " $4, 1, $1, $2, u.key, 'completed'::pg_catalog.text, u.token"
										 " FROM ROWS FROM (pg_catalog.unnest($3), pg_catalog.unnest($6)) WITH ORDINALITY AS u(key, token, n)");
			if (statement == STATEMENT_BATCH_INSERT)
				appendStringInfoString(&sql, " ON CONFLICT (scope, operation, key) DO NOTHING");
			else
			{
				appendStringInfoString(&sql, " ON CONFLICT (scope, operation, key) DO UPDATE SET ");
				for (int i = 0; i < KEY_NCOLUMNS; i++)
					appendStringInfo(&sql, "%s%s = excluded.%s", i > 0 ? ", " : "",
									 idem_table_columns[i].name, idem_table_columns[i].name);

				/* A claim that came after the look has a token of its own. */
				appendStringInfoString(&sql, " WHERE " RECLAIMABLE("k", "$4") " AND (k.token IS NULL OR k.token OPERATOR(pg_catalog.<) excluded.token)");
			}
			appendStringInfoString(&sql, " RETURNING k.key");
			types[ntypes++] = TEXTOID;
			types[ntypes++] = TEXTOID;
			types[ntypes++] = TEXTARRAYOID;
			types[ntypes++] = TIMESTAMPTZOID;
			types[ntypes++] = TIMESTAMPTZOID;
			types[ntypes++] = INT8ARRAYOID;
			break;
		case STATEMENT_BATCH_LOOK:

			/*
			 * One probe of the index for each key. With "= ANY ($3)" a plan
			 * made while the table was small compares every row of the
			 * operation with every key. OFFSET 0 keeps the planner from
			 * making another join of it.
			 */
			appendStringInfoString(&sql, "SELECT k.key, CASE WHEN k.hold_if_abandoned AND k.locked_until OPERATOR(pg_catalog.<=) $4"
										 " THEN 'held'::pg_catalog.text ELSE k.status END, " RECLAIMABLE("k", "$4") ", COALESCE(k.token, 0) FROM pg_catalog.unnest($3) AS u(key) CROSS JOIN LATERAL"
																													" (SELECT * FROM ONLY " QUALIFIED_TABLE " AS o"
																													" WHERE o.scope OPERATOR(pg_catalog.=) $1"
																													" AND o.operation OPERATOR(pg_catalog.=) $2"
																													" AND o.key OPERATOR(pg_catalog.=) u.key OFFSET 0) AS k");
			types[ntypes++] = TEXTOID;
			types[ntypes++] = TEXTOID;
			types[ntypes++] = TEXTARRAYOID;
			types[ntypes++] = TIMESTAMPTZOID;
			break;
		case NSTATEMENTS:
			pg_unreachable();
	}

	plan = SPI_prepare_cursor(sql.data, ntypes, types, CURSOR_OPT_GENERIC_PLAN);
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
} planner[] = {
	{&enable_seqscan, false},
	{&enable_bitmapscan, false},
	{&enable_indexscan, true},
	{&enable_tidscan, true},
	{&jit_enabled, false},
};

typedef struct PlannerSettings
{
	bool values[lengthof(planner)];
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
pin_planner(PlannerSettings *saved)
{
	for (int i = 0; i < (int) lengthof(planner); i++)
	{
		saved->values[i] = *planner[i].setting;
		*planner[i].setting = planner[i].pinned;
	}
	saved->cache_mode = plan_cache_mode;
	plan_cache_mode = PLAN_CACHE_MODE_FORCE_GENERIC_PLAN;
}

static void
unpin_planner(const PlannerSettings *saved)
{
	for (int i = 0; i < (int) lengthof(planner); i++)
		*planner[i].setting = saved->values[i];
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
plan_ahead(SPIPlanPtr plan)
{
	PlannerSettings settings;
	int level = NewGUCNestLevel();

	pin_planner(&settings);
	PG_TRY();
	{
		ReleaseCachedPlan(SPI_plan_get_cached_plan(plan), CurrentResourceOwner);
	}
	PG_FINALLY();
	{
		AtEOXact_GUC(false, level);
		unpin_planner(&settings);
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
is_identity_index(const char *name)
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
report_failure(int code)
{
	int category = ERRCODE_TO_CATEGORY(code);
	const char *message = "writing the row of a key failed";
	const char *hint = "It was raised by the server, or by something that was added to the table: a trigger, a rule, a constraint, a default, an index."
					   " What it says may show the row and is kept back: write a row by hand, as the table's owner, to see it.";

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
		hint = "What hangs on the table runs at once, and with the rights of the table's owner alone:"
			   " make its triggers and constraints NOT DEFERRABLE, and grant the owner what they need.";
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
is_of_table(Relation table, const char *name)
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
hide_row(Relation table, bool plain, MemoryContext caller)
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

		if (error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION && name != NULL &&
			error->schema_name != NULL && strcmp(error->schema_name, IDEM_SCHEMA_NAME) == 0 &&
			error->table_name != NULL && strcmp(error->table_name, IDEM_KEYS_TABLE) == 0 &&
			is_identity_index(name))
			idem_report_lost_race();
		ereport(ERROR,
				(errcode(error->sqlerrcode),
				 name != NULL && is_of_table(table, name)
					 ? errmsg("\"%s\" on table %s.%s refuses the row of a key", name, IDEM_SCHEMA_NAME, IDEM_KEYS_TABLE)
					 : errmsg("a constraint on table %s.%s refuses the row of a key", IDEM_SCHEMA_NAME, IDEM_KEYS_TABLE),
				 errhint("An index or a constraint that was added to the table refuses the key's row: drop it.")));
	}
	report_failure(error->sqlerrcode);
}

/*
 * The context of what is logged meanwhile, by the end of the process or a wait
 * for a lock, can show the statement that a trigger is executing, and so the row.
 */
static void
hide_context(void *arg pg_attribute_unused())
{
	errhidecontext(true);
}

/*
 * Whether a row has no more than the lean columns; then these are its parameters.
 */
static bool
is_lean(const Datum *values, const char *nulls, Datum *lean_values, char *lean_nulls)
{
	int left_out = 0;

	for (int i = 0; i < KEY_NCOLUMNS; i++)
		left_out += nulls[i] != 'n';
	for (int i = 0; i < (int) lengthof(lean_columns); i++)
	{
		lean_values[i] = values[lean_columns[i]];
		lean_nulls[i] = nulls[lean_columns[i]];
		left_out -= lean_nulls[i] != 'n';
	}
	return left_out == 0;
}

static void
drop_plans(void)
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
 * What idem_statement_execute() does, on the table that it has opened.
 */
static uint64
execute_on(Relation table, bool plain, KeyStatement statement, Datum *values, const char *nulls,
		   void (*consume)(void *state), void *state)
{
	volatile bool writing = plain;
	MemoryContext caller = CurrentMemoryContext;
	ErrorContextCallback callback = {.callback = hide_context};
	PlannerSettings settings;
	IdemIdentity before;
	int result;
	uint64 processed;

	idem_become(&before, table->rd_rel->relowner, plain);
	if (plain)
		pin_planner(&settings);
	PG_TRY();
	{
		if (planned_for != RelationGetRelid(table))
		{
			drop_plans();
			planned_for = RelationGetRelid(table);
		}
		if (plans[statement] == NULL)
			plans[statement] = prepare(statement);
		if (!plain)
		{
			plan_ahead(plans[statement]);
			writing = true;
			callback.previous = error_context_stack;
			error_context_stack = &callback;
		}
		result = SPI_execute_plan(plans[statement], values, nulls, false, 0);
		if (!plain)
			error_context_stack = callback.previous;
	}
	PG_CATCH();
	{
		if (plain)
			unpin_planner(&settings);
		if (writing)
			hide_row(table, plain, caller);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (plain)
		unpin_planner(&settings);

	if (result < 0)
		elog(ERROR, "SPI_execute_plan failed: %s", SPI_result_code_string(result));
	processed = SPI_processed;
	if (consume != NULL)
		consume(state);
	idem_unbecome(&before);
	if (processed > 0 && result != SPI_OK_SELECT && !may_be_lost(statement))
		ForceSyncCommit();
	return processed;
}

/*
 * Executes a statement as the owner of the table and returns the number of
 * rows it touched. What it returned is for "consume", or NULL, to copy out.
 *
 * Every transaction that writes a key is flushed to disk locally before it
 * becomes visible, even with synchronous_commit off: a claim that was
 * acknowledged and then lost in a crash would be given twice, with the same
 * token. Clean-up is excepted; see may_be_lost().
 *
 * Errors: 40001 the primary key has another row; 55000 the table is not as
 * expected; whatever else the statement raises, in words that say nothing of a row
 * (see hide_row()). Before anything is written, planning may raise what it likes:
 * it does not know the row.
 */
uint64
idem_statement_execute(KeyStatement statement, Datum *values, const char *nulls,
					   void (*consume)(void *state), void *state)
{
	Relation table = idem_table_open(RowExclusiveLock);
	bool plain = idem_table_is_plain(table);
	Datum lean_values[lengthof(lean_columns)];
	char lean_nulls[lengthof(lean_columns)];
	uint64 processed;

	/* A column that is not named would get its default, where it has one. */
	if (plain && statement == STATEMENT_INSERT && is_lean(values, nulls, lean_values, lean_nulls))
		processed = execute_on(table, plain, STATEMENT_INSERT_LEAN, lean_values, lean_nulls, consume, state);
	else
		processed = execute_on(table, plain, statement, values, nulls, consume, state);
	table_close(table, NoLock);
	return processed;
}

/*
 * A value of a row that a statement returned, to be copied by "consume".
 */
Datum
idem_statement_value(uint64 row, int column)
{
	bool isnull;

	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);
}
