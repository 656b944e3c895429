/*-------------------------------------------------------------------------
 *
 * keys.c
 *	  The only file that reads and writes rows of idempotency_keys: finding
 *	  the table, the look-up by key, the statements and their plans, and what
 *	  a row says about itself at a given moment.
 *
 * Reading goes through the primary key's index directly. A query would be
 * planned, and a generic plan made while the table was empty is a sequential
 * scan that stays one after a hundred thousand inserts. It would also take
 * predicate locks on index pages, which make SERIALIZABLE transactions on
 * unlike keys fail each other.
 *
 * Writing goes through SPI with plans that are prepared once and kept, and
 * runs with the rights of the table's owner (as ri_triggers.c does), so the
 * caller needs no more than EXECUTE. Every name, type and operator in the
 * statements is qualified. There is one statement to insert a row, one to
 * replace a version of it and one to delete it. The latter two find the
 * version by its ctid, again without touching an index page, and repeat what
 * was decided on, so that they miss if it has changed.
 *
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

#include "access/detoast.h"
#include "access/genam.h"
#include "access/htup_details.h"
#include "access/multixact.h"
#include "access/relation.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "commands/extension.h"
#include "commands/sequence.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "optimizer/cost.h"
#include "storage/bufmgr.h"
#include "storage/procarray.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"


#define KEYS_TABLE "idempotency_keys"
#define KEYS_PRIMARY_KEY "idempotency_keys_pkey"
#define TOKEN_SEQUENCE "token_seq"

/* Names and types of the columns, in the order of KeyColumn. */
static const struct
{
	const char *name;
	Oid type;
} columns[KEY_NCOLUMNS] = {
	[KEY_CREATED_AT] = {"created_at", TIMESTAMPTZOID},
	[KEY_EXPIRES_AT] = {"expires_at", TIMESTAMPTZOID},
	[KEY_COMPLETED_AT] = {"completed_at", TIMESTAMPTZOID},
	[KEY_ATTEMPT] = {"attempt", INT4OID},
	[KEY_RESPONSE_STATUS] = {"response_status", INT4OID},
	[KEY_TOKEN] = {"token", INT8OID},
	[KEY_CLAIMED_AT] = {"claimed_at", TIMESTAMPTZOID},
	[KEY_CHECKPOINTED_AT] = {"checkpointed_at", TIMESTAMPTZOID},
	[KEY_LOCKED_UNTIL] = {"locked_until", TIMESTAMPTZOID},
	[KEY_RESPONSE_EXPIRES_AT] = {"response_expires_at", TIMESTAMPTZOID},
	[KEY_REDACTED_AT] = {"redacted_at", TIMESTAMPTZOID},
	[KEY_CLAIM_ID] = {"claim_id", UUIDOID},
	[KEY_HOLD_IF_ABANDONED] = {"hold_if_abandoned", BOOLOID},
	[KEY_SCOPE] = {"scope", TEXTOID},
	[KEY_OPERATION] = {"operation", TEXTOID},
	[KEY_KEY] = {"key", TEXTOID},
	[KEY_STATUS] = {"status", TEXTOID},
	[KEY_FINGERPRINT] = {"fingerprint", BYTEAOID},
	[KEY_RECOVERY_POINT] = {"recovery_point", TEXTOID},
	[KEY_STATE] = {"state", JSONBOID},
	[KEY_RESPONSE_HEADERS] = {"response_headers", JSONBOID},
	[KEY_RESPONSE_BODY] = {"response_body", TEXTOID},
	[KEY_RESPONSE_BYTES] = {"response_bytes", BYTEAOID},
	[KEY_LAST_ERROR] = {"last_error", TEXTOID},
	[KEY_NOTE] = {"note", TEXTOID},
};

static const char *const status_names[] = {
	[KEY_IN_PROGRESS] = "in_progress",
	[KEY_COMPLETED] = "completed",
	[KEY_FAILED] = "failed",
	[KEY_HELD] = "held",
};

typedef enum KeyStatement
{
	STATEMENT_INSERT,
	STATEMENT_INSERT_IF_ABSENT,
	STATEMENT_UPDATE,
	STATEMENT_DELETE,
	STATEMENT_DELETE_SCOPE,
	STATEMENT_DELETE_EXPIRED,
	STATEMENT_REDACT_DUE,
	STATEMENT_REDACT_SCOPE,
	STATEMENT_ABANDONED,
	STATEMENT_BATCH_INSERT,
	STATEMENT_BATCH_LOOK,
	STATEMENT_BATCH_REPLACE,
	NSTATEMENTS
} KeyStatement;

#define MAX_PARAMETERS (KEY_NCOLUMNS + 4)

/* Caches, for as long as the table is the same; see table_changed(). */
static Oid table_oid = InvalidOid;
static Oid planned_for = InvalidOid;
static SPIPlanPtr plans[NSTATEMENTS];

/*
 * Anything about the table has changed: look at it again. The plans watch
 * over themselves (plancache.c), except that they belong to one table.
 */
static void
table_changed(Datum arg pg_attribute_unused(), Oid relid)
{
	if (relid == InvalidOid || relid == table_oid)
		table_oid = InvalidOid;
}

void
idem_keys_init(void)
{
	CacheRegisterRelcacheCallback(table_changed, (Datum) 0);
}

/*
 * The table is the one that belongs to the extension. A table of that name
 * which somebody else made is not it.
 */
static void
check_table(Relation table)
{
	TupleDesc desc = RelationGetDescr(table);

	if (getExtensionOfObject(RelationRelationId, RelationGetRelid(table)) !=
		get_extension_oid(IDEM_EXTENSION_NAME, true))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s.%s does not belong to extension \"%s\"",
						IDEM_SCHEMA_NAME, KEYS_TABLE, IDEM_EXTENSION_NAME),
				 errhint("Drop the extension and create it again.")));
	if (table->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s.%s is unlogged", IDEM_SCHEMA_NAME, KEYS_TABLE),
				 errdetail("A crash would empty it, and requests would be executed again."),
				 errhint("Run ALTER TABLE %s.%s SET LOGGED.",
						 IDEM_SCHEMA_NAME, KEYS_TABLE)));
	for (int i = 0; i < KEY_NCOLUMNS; i++)
		if (i >= desc->natts ||
			strcmp(NameStr(TupleDescAttr(desc, i)->attname), columns[i].name) != 0 ||
			TupleDescAttr(desc, i)->atttypid != columns[i].type)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("table %s.%s does not have the expected columns",
							IDEM_SCHEMA_NAME, KEYS_TABLE),
					 errhint("Undo what was changed on the table, or run ALTER EXTENSION %s UPDATE.",
							 IDEM_EXTENSION_NAME)));
}

static Oid
relation_oid(const char *name)
{
	Oid schema = get_namespace_oid(IDEM_SCHEMA_NAME, true);
	Oid result = InvalidOid;

	if (OidIsValid(schema))
		result = get_relname_relid(name, schema);
	if (!OidIsValid(result))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("relation %s.%s does not exist", IDEM_SCHEMA_NAME, name),
				 errhint("It was renamed or dropped; restore it, or drop extension \"%s\" and create it again.",
						 IDEM_EXTENSION_NAME)));
	return result;
}

static Relation
open_table(LOCKMODE mode)
{
	Relation table;
	Oid oid = table_oid;

	if (OidIsValid(oid))
	{
		/* Taking the lock processes invalidations: it may change again. */
		table = try_relation_open(oid, mode);
		if (table != NULL && table_oid == oid)
			return table;
		if (table != NULL)
			relation_close(table, mode);
	}

	oid = relation_oid(KEYS_TABLE);
	table = table_open(oid, mode);
	check_table(table);
	table_oid = oid;
	return table;
}

/*----------
 * Reading
 *----------
 */

static bool
is_response(int column)
{
	return column == KEY_RESPONSE_HEADERS || column == KEY_RESPONSE_BODY ||
		column == KEY_RESPONSE_BYTES;
}

/*
 * Copies a column's value out of the scan. What is stored out of line is
 * fetched while the version is still protected by our snapshot; an unwanted
 * response is left as a pointer, which is good for writing it back only.
 */
static Datum
copy_value(Form_pg_attribute attribute, Datum value, bool fetch)
{
	if (attribute->attlen == -1 && fetch &&
		VARATT_IS_EXTERNAL(DatumGetPointer(value)))
		return PointerGetDatum(detoast_external_attr((struct varlena *)
														 DatumGetPointer(value)));
	return datumCopy(value, attribute->attbyval, attribute->attlen);
}

static void
copy_row(KeyRow *row, Relation table, TupleTableSlot *slot, bool with_response)
{
	TupleDesc desc = RelationGetDescr(table);
	char *status;

	slot_getsomeattrs(slot, KEY_NCOLUMNS);
	row->tid = slot->tts_tid;
	for (int i = 0; i < KEY_NCOLUMNS; i++)
	{
		row->isnull[i] = slot->tts_isnull[i];
		row->values[i] = row->isnull[i] ? (Datum) 0 : copy_value(TupleDescAttr(desc, i), slot->tts_values[i], with_response || !is_response(i));
	}

	status = TextDatumGetCString(row->values[KEY_STATUS]);
	for (int i = 0; i < (int) lengthof(status_names); i++)
		if (strcmp(status, status_names[i]) == 0)
		{
			row->status = (KeyStatus) i;
			return;
		}
	elog(ERROR, "unexpected status in %s", KEYS_TABLE);
}

/*
 * Finds the row of a key.
 *
 * KEYS_NOW reads the last committed version, whatever the transaction's
 * isolation level; take the key's lock first where the answer leads to a
 * write. Above READ COMMITTED the transaction has a snapshot of its own, and
 * *agrees says whether that sees the same version, or like us none: if not,
 * the caller may not base an answer on it that lets the transaction go on.
 * KEYS_SNAPSHOT reads what the running statement sees.
 *
 * Above READ COMMITTED all versions are fetched and judged one by one. That
 * way one look serves both snapshots, and no predicate lock is taken, which
 * a scan under an MVCC snapshot would do for the whole index page: unlike
 * keys on it would fail each other's transactions.
 *
 * The row is built in the current memory context. Errors: 55000 if the table
 * is not as expected.
 */
bool
idem_keys_find(const KeyIdentity *id, KeyRead how, bool with_response,
			   KeyRow *row, bool *agrees)
{
	Relation table = open_table(AccessShareLock);
	Relation index = index_open(RelationGetPrimaryKeyIndex_compat(table),
								AccessShareLock);
	TupleTableSlot *slot = table_slot_create(table, NULL);
	bool two_snapshots = how == KEYS_NOW && IsolationUsesXactSnapshot();
	Snapshot snapshot = RegisterSnapshot(how == KEYS_NOW ? GetLatestSnapshot() : GetActiveSnapshot());
	bool found = false;
	bool same = true;
	ScanKeyData keys[3];
	IndexScanDesc scan;

	/* ScanKeyInit compares texts in the "C" collation, as the columns do. */
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ,
				PointerGetDatum(id->scope));
	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_TEXTEQ,
				PointerGetDatum(id->operation));
	ScanKeyInit(&keys[2], 3, BTEqualStrategyNumber, F_TEXTEQ,
				PointerGetDatum(id->key));

	scan = index_beginscan_compat(table, index,
								  two_snapshots ? SnapshotAny : snapshot, 3);
	index_rescan(scan, keys, 3, NULL, 0);
	while (index_getnext_slot(scan, ForwardScanDirection, slot))
	{
		bool current = true;

		if (two_snapshots)
		{
			bool seen;

			current = table_tuple_satisfies_snapshot(table, slot, snapshot);
			seen = table_tuple_satisfies_snapshot(table, slot,
												  GetTransactionSnapshot());
			if (current && !seen)
			{
				bool isnull;

				/* What this transaction wrote itself it knows. */
				seen = TransactionIdIsCurrentTransactionId(
					DatumGetTransactionId(slot_getsysattr(slot,
														  MinTransactionIdAttributeNumber,
														  &isnull)));
			}
			same = same && seen == current;
		}
		if (current && !found)
		{
			copy_row(row, table, slot, with_response);
			found = true;
			if (!two_snapshots)
				break;
		}
		CHECK_FOR_INTERRUPTS();
	}
	index_endscan(scan);
	UnregisterSnapshot(snapshot);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, NoLock);
	table_close(table, NoLock);
	if (agrees != NULL)
		*agrees = same;
	return found;
}

/*
 * Whether another transaction has locked the row in the slot, to write it.
 */
static bool
locked_by_other(TupleTableSlot *slot)
{
	BufferHeapTupleTableSlot *stored = (BufferHeapTupleTableSlot *) slot;
	TransactionId xmax;
	uint16 mask;

	if (!TTS_IS_BUFFERTUPLE(slot))
		return false;
	LockBuffer(stored->buffer, BUFFER_LOCK_SHARE);
	xmax = HeapTupleHeaderGetRawXmax(stored->base.tuple->t_data);
	mask = stored->base.tuple->t_data->t_infomask;
	LockBuffer(stored->buffer, BUFFER_LOCK_UNLOCK);

	if (mask & HEAP_XMAX_INVALID)
		return false;
	if (mask & HEAP_XMAX_IS_MULTI)
		return MultiXactIdIsRunning(xmax, HEAP_XMAX_IS_LOCKED_ONLY(mask));
	return !TransactionIdIsCurrentTransactionId(xmax) &&
		TransactionIdIsInProgress(xmax);
}

/*
 * Whether another transaction is about to delete or replace this version
 * right now. That can only be clean-up, forget_scope() or another caller that
 * takes no key locks; writing would wait for it. Clean-up locks all rows of a
 * batch before it deletes the first, and a dirty snapshot does not tell of
 * row locks.
 */
bool
idem_keys_being_written(const KeyRow *row)
{
	Relation table = open_table(AccessShareLock);
	TupleTableSlot *slot = table_slot_create(table, NULL);
	ItemPointerData tid = row->tid;
	SnapshotData dirty;
	bool result;

	InitDirtySnapshot(dirty);
	result = table_tuple_fetch_row_version(table, &tid, &dirty, slot) &&
		(TransactionIdIsValid(dirty.xmax) || locked_by_other(slot));
	ExecDropSingleTupleTableSlot(slot);
	table_close(table, NoLock);
	return result;
}

/*----------
 * Writing
 *----------
 */

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

#define QUALIFIED_TABLE IDEM_SCHEMA_NAME "." KEYS_TABLE

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

static int
version_types(Oid *types)
{
	types[0] = TIDOID;
	types[1] = TIMESTAMPTZOID;
	types[2] = TEXTOID;
	types[3] = INT8OID;
	return 4;
}

static int
version_values(const KeyRow *row, Datum *values)
{
	values[0] = PointerGetDatum(&row->tid);
	values[1] = row->values[KEY_EXPIRES_AT];
	values[2] = row->values[KEY_STATUS];
	values[3] = row->isnull[KEY_TOKEN] ? Int64GetDatum(0) : row->values[KEY_TOKEN];
	return 4;
}

static SPIPlanPtr
prepare(KeyStatement statement)
{
	StringInfoData sql;
	Oid types[MAX_PARAMETERS];
	int ntypes = 0;
	SPIPlanPtr plan;

	initStringInfo(&sql);
	switch (statement)
	{
		case STATEMENT_INSERT:
		case STATEMENT_INSERT_IF_ABSENT:
			appendStringInfoString(&sql, "INSERT INTO " QUALIFIED_TABLE " (");
			for (int i = 0; i < KEY_NCOLUMNS; i++)
				appendStringInfo(&sql, "%s%s", i > 0 ? ", " : "", columns[i].name);
			appendStringInfoString(&sql, ") VALUES (");
			for (int i = 0; i < KEY_NCOLUMNS; i++)
			{
				appendStringInfo(&sql, "%s$%d", i > 0 ? ", " : "", i + 1);
				types[ntypes++] = columns[i].type;
			}
			appendStringInfoChar(&sql, ')');
			if (statement == STATEMENT_INSERT_IF_ABSENT)
				appendStringInfoString(&sql, " ON CONFLICT (scope, operation, key) DO NOTHING");
			break;
		case STATEMENT_UPDATE:
			appendStringInfoString(&sql, "UPDATE ONLY " QUALIFIED_TABLE " AS k SET ");
			for (int i = 0; i < KEY_NCOLUMNS; i++)
			{
				appendStringInfo(&sql, "%s%s = $%d", i > 0 ? ", " : "",
								 columns[i].name, i + 1);
				types[ntypes++] = columns[i].type;
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
			appendStringInfoString(&sql, "DELETE FROM " QUALIFIED_TABLE " AS k"
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
		case STATEMENT_REDACT_DUE:
			appendStringInfoString(&sql, "UPDATE ONLY " QUALIFIED_TABLE " AS k SET " REDACTED ", redacted_at = $1, response_expires_at = NULL"
										 " WHERE k.ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
										 "SELECT c.ctid FROM ONLY " QUALIFIED_TABLE " AS c"
										 " WHERE c.response_expires_at OPERATOR(pg_catalog.<=) $1"
										 " ORDER BY c.response_expires_at LIMIT $2 FOR UPDATE SKIP LOCKED))"
										 " AND k.response_expires_at OPERATOR(pg_catalog.<=) $1");
			types[ntypes++] = TIMESTAMPTZOID;
			types[ntypes++] = INT8OID;
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
			 * that order: so overlapping batches meet in the same order.
			 */
			appendStringInfoString(&sql, "INSERT INTO " QUALIFIED_TABLE " AS k"
										 " (created_at, expires_at, completed_at, attempt, scope, operation, key, status)"
										 " SELECT $4, $5, $4, 1, $1, $2, u.key, 'completed'::pg_catalog.text"
										 " FROM pg_catalog.unnest($3) AS u(key)");
			if (statement == STATEMENT_BATCH_INSERT)
				appendStringInfoString(&sql, " ON CONFLICT (scope, operation, key) DO NOTHING");
			else
			{
				appendStringInfoString(&sql, " ON CONFLICT (scope, operation, key) DO UPDATE SET ");
				for (int i = 0; i < KEY_NCOLUMNS; i++)
					if (i == KEY_TOKEN)
						appendStringInfoString(&sql, ", token = CASE WHEN k.token IS NOT NULL"
													 " THEN pg_catalog.nextval('" IDEM_SCHEMA_NAME "." TOKEN_SEQUENCE "'::pg_catalog.regclass) END");
					else
						appendStringInfo(&sql, "%s%s = excluded.%s", i > 0 ? ", " : "",
										 columns[i].name, columns[i].name);
				appendStringInfoString(&sql, " WHERE " RECLAIMABLE("k", "$4"));
			}
			appendStringInfoString(&sql, " RETURNING k.key");
			types[ntypes++] = TEXTOID;
			types[ntypes++] = TEXTOID;
			types[ntypes++] = TEXTARRAYOID;
			types[ntypes++] = TIMESTAMPTZOID;
			types[ntypes++] = TIMESTAMPTZOID;
			break;
		case STATEMENT_BATCH_LOOK:

			/*
			 * One probe of the index for each key. With "= ANY ($3)" a plan
			 * made while the table was small compares every row of the
			 * operation with every key. OFFSET 0 keeps the planner from
			 * making another join of it.
			 */
			appendStringInfoString(&sql, "SELECT k.key, CASE WHEN k.hold_if_abandoned AND k.locked_until OPERATOR(pg_catalog.<=) $4"
										 " THEN 'held'::pg_catalog.text ELSE k.status END, " RECLAIMABLE("k", "$4") " FROM pg_catalog.unnest($3) AS u(key) CROSS JOIN LATERAL"
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

	plan = SPI_prepare(sql.data, ntypes, types);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
	return plan;
}

/*
 * How the planner is held to the indexes. A plan is kept, and one that was made
 * while the table was small must still be good when it is large: no reading of
 * the whole table, and no sorting of all that has expired for one batch of it.
 */
static const struct
{
	bool *setting;
	bool pinned;
} planner[] = {
	{&enable_seqscan, false},
	{&enable_bitmapscan, false},
	{&enable_sort, false},
	{&enable_indexscan, true},
	{&enable_tidscan, true},
};

/*
 * Executes a statement as the owner of the table and returns the number of
 * rows it touched. What it returned is for "consume" to copy out.
 *
 * The planner's settings are the user's to change, and could turn a look-up
 * into a sequential scan or make every call plan anew. So they are pinned
 * while a plan of ours may be made. They are plain variables; saving and
 * restoring them costs nothing, where a nested GUC level would cost more than
 * the statement.
 *
 * Every transaction that writes a key is flushed to disk locally before it
 * becomes visible, even with synchronous_commit off: a claim that was
 * acknowledged and then lost in a crash would be given twice, with the same
 * token.
 */
static uint64
execute_with(KeyStatement statement, Datum *values, const char *nulls,
			 void (*consume)(void *state), void *state)
{
	Relation table = open_table(RowExclusiveLock);
	bool saved_planner[lengthof(planner)];
	int saved_cache_mode = plan_cache_mode;
	IdemIdentity before;
	int result;
	uint64 processed;

	idem_become(&before, table->rd_rel->relowner);
	for (int i = 0; i < (int) lengthof(planner); i++)
		saved_planner[i] = *planner[i].setting;

	PG_TRY();
	{
		for (int i = 0; i < (int) lengthof(planner); i++)
			*planner[i].setting = planner[i].pinned;
		plan_cache_mode = PLAN_CACHE_MODE_FORCE_GENERIC_PLAN;

		if (planned_for != RelationGetRelid(table))
		{
			for (int i = 0; i < NSTATEMENTS; i++)
			{
				SPIPlanPtr stale = plans[i];

				plans[i] = NULL;
				if (stale != NULL)
					SPI_freeplan(stale);
			}
			planned_for = RelationGetRelid(table);
		}
		if (plans[statement] == NULL)
			plans[statement] = prepare(statement);
		result = SPI_execute_plan(plans[statement], values, nulls, false, 0);
	}
	PG_FINALLY();
	{
		for (int i = 0; i < (int) lengthof(planner); i++)
			*planner[i].setting = saved_planner[i];
		plan_cache_mode = saved_cache_mode;
	}
	PG_END_TRY();

	if (result < 0)
		elog(ERROR, "SPI_execute_plan failed: %s", SPI_result_code_string(result));
	processed = SPI_processed;
	if (consume != NULL)
		consume(state);
	idem_unbecome(&before);
	table_close(table, NoLock);
	if (processed > 0 && result != SPI_OK_SELECT)
		ForceSyncCommit();
	return processed;
}

static Datum
returned(uint64 row, int column)
{
	bool isnull;

	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);
}

static uint64
execute(KeyStatement statement, Datum *values, const char *nulls)
{
	return execute_with(statement, values, nulls, NULL, NULL);
}

static void
row_parameters(KeyRow *row, Datum *values, char *nulls)
{
	KeyRowSet(row, KEY_STATUS,
			  CStringGetTextDatum(idem_keys_status_name(row->status)));
	for (int i = 0; i < KEY_NCOLUMNS; i++)
	{
		values[i] = row->values[i];
		nulls[i] = row->isnull[i] ? 'n' : ' ';
	}
}

/*
 * Whether an error says that the table already has the key. A unique index
 * that an administrator added, or a trigger that writes elsewhere, has a name
 * of its own and is reported as it stands: a retry would not cure it.
 */
static bool
is_key_violation(const ErrorData *error)
{
	return error->sqlerrcode == ERRCODE_UNIQUE_VIOLATION &&
		error->schema_name != NULL && error->constraint_name != NULL &&
		strcmp(error->schema_name, IDEM_SCHEMA_NAME) == 0 &&
		strcmp(error->constraint_name, KEYS_PRIMARY_KEY) == 0;
}

/*
 * Puts a new row in. May wait for a transaction that is inserting or deleting
 * it without the lock.
 *
 * The unique index is the judge. A bare INSERT asks it while it inserts; ON
 * CONFLICT would look for the key first, by a second descent of the index, and
 * announce and confirm the row in shared memory and in the WAL, which together
 * cost a seventh of the processor's time for a key (bench/README.md). To lose is
 * rare, and an error either way. But the server's own error shows the key in its
 * detail, so it is dropped here, before anybody sees it, and another raised.
 *
 * Errors: 40001 somebody who took no lock has put the key in.
 */
static void
insert(KeyRow *row)
{
	Datum values[MAX_PARAMETERS];
	char nulls[MAX_PARAMETERS];
	MemoryContext caller = CurrentMemoryContext;

	row_parameters(row, values, nulls);
	PG_TRY();
	{
		(void) execute(STATEMENT_INSERT, values, nulls);
	}
	PG_CATCH();
	{
		MemoryContext error_context = MemoryContextSwitchTo(caller);

		if (!is_key_violation(CopyErrorData()))
		{
			MemoryContextSwitchTo(error_context);
			PG_RE_THROW();
		}
		FlushErrorState();
		idem_report_lost_race();
	}
	PG_END_TRY();
}

/*
 * Puts a new row in, or says that the key is there already.
 *
 * Errors: 40001 above READ COMMITTED.
 */
bool
idem_keys_insert_if_absent(KeyRow *row)
{
	Datum values[MAX_PARAMETERS];
	char nulls[MAX_PARAMETERS];

	row_parameters(row, values, nulls);
	return execute(STATEMENT_INSERT_IF_ABSENT, values, nulls) == 1;
}

/*
 * Replaces the version "old" by "row", or says that it is no longer there as
 * it was read.
 *
 * Errors: 40001 above READ COMMITTED.
 */
bool
idem_keys_update(KeyRow *row, const KeyRow *old)
{
	Datum values[MAX_PARAMETERS];
	char nulls[MAX_PARAMETERS];
	int nversion;

	row_parameters(row, values, nulls);
	nversion = version_values(old, values + KEY_NCOLUMNS);
	memset(nulls + KEY_NCOLUMNS, ' ', nversion);
	return execute(STATEMENT_UPDATE, values, nulls) == 1;
}

/*
 * Writes a row in the place of "old" (NULL if the key had none). Where that
 * version is gone, because clean-up or forget_scope() came in between, the row
 * is put in anew.
 *
 * Errors: 40001 somebody who took no lock has put another one in, or, above
 * READ COMMITTED, changed the old one.
 */
void
idem_keys_write(KeyRow *row, const KeyRow *old)
{
	if (old == NULL || !idem_keys_update(row, old))
		insert(row);
}

/*
 * Deletes the version "old", or says that it is no longer there.
 *
 * Errors: 40001 above READ COMMITTED.
 */
bool
idem_keys_delete(const KeyRow *old)
{
	Datum values[MAX_PARAMETERS];

	version_values(old, values);
	return execute(STATEMENT_DELETE, values, NULL) == 1;
}

/*
 * Deletes a scope's keys, those unfinished or held only if forced.
 */
uint64
idem_keys_delete_scope(text *scope, bool force)
{
	Datum values[2] = {PointerGetDatum(scope), BoolGetDatum(force)};

	return execute(STATEMENT_DELETE_SCOPE, values, NULL);
}

static void
note_last_expiry(void *state)
{
	TimestampTz *last = state;

	for (uint64 i = 0; i < SPI_processed; i++)
		*last = Max(*last, DatumGetTimestampTz(returned(i, 1)));
}

/*
 * Deletes at most max_rows keys that expired before a moment, the oldest first.
 * Skips what somebody else is writing, and never touches a key that is held or
 * live in its last version. *from is where to begin in the order of expiry, and
 * becomes where to go on; DT_NOBEGIN begins at the beginning.
 */
uint64
idem_keys_delete_expired(TimestampTz *from, TimestampTz before, TimestampTz now,
						 int64 max_rows)
{
	Datum values[4] = {TimestampTzGetDatum(before), TimestampTzGetDatum(now),
					   Int64GetDatum(max_rows), TimestampTzGetDatum(*from)};

	return execute_with(STATEMENT_DELETE_EXPIRED, values, NULL, note_last_expiry, from);
}

/*
 * Removes at most max_rows responses that are due to go before their keys.
 */
uint64
idem_keys_redact_due(TimestampTz now, int64 max_rows)
{
	Datum values[2] = {TimestampTzGetDatum(now), Int64GetDatum(max_rows)};

	return execute(STATEMENT_REDACT_DUE, values, NULL);
}

/*
 * Removes the responses of a scope's finished keys.
 */
uint64
idem_keys_redact_scope(text *scope)
{
	Datum values[2] = {PointerGetDatum(scope), TimestampTzGetDatum(GetCurrentTimestamp())};

	return execute(STATEMENT_REDACT_SCOPE, values, NULL);
}

typedef struct Identities
{
	MemoryContext context;
	List *list;
} Identities;

static void
copy_identities(void *state)
{
	Identities *result = state;
	MemoryContext spi = MemoryContextSwitchTo(result->context);

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple tuple = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		KeyIdentity *id = palloc(sizeof(KeyIdentity));
		bool isnull;

		id->scope = DatumGetTextPCopy(SPI_getbinval(tuple, desc, 1, &isnull));
		id->operation = DatumGetTextPCopy(SPI_getbinval(tuple, desc, 2, &isnull));
		id->key = DatumGetTextPCopy(SPI_getbinval(tuple, desc, 3, &isnull));
		id->hash = idem_lock_hash(id);
		result->list = lappend(result->list, id);
	}
	MemoryContextSwitchTo(spi);
}

/*
 * Keys whose claim was abandoned and may be taken over, the oldest first; of
 * one operation, or of all if that is NULL; without the first few, which the
 * caller has seen. A list of KeyIdentity in the current context. They have to
 * be locked and looked at again.
 */
List *
idem_keys_abandoned(text *operation, int64 max_rows, int64 seen)
{
	Identities result = {CurrentMemoryContext, NIL};
	Datum values[4] = {PointerGetDatum(operation),
					   TimestampTzGetDatum(GetCurrentTimestamp()), Int64GetDatum(max_rows),
					   Int64GetDatum(seen)};
	char nulls[4] = {operation == NULL ? 'n' : ' ', ' ', ' ', ' '};

	execute_with(STATEMENT_ABANDONED, values, nulls, copy_identities, &result);
	return result.list;
}

/* A batch of keys in the order of the index, and what became of each. */
typedef struct Batch
{
	Datum *keys;
	int nkeys;
	bool *first; /* written by this transaction */
	bool *again; /* there, but to be replaced; or gone again */
	bool undecided;
	bool held;
} Batch;

static int
compare_key(const void *a, const void *b)
{
	text *x = (text *) DatumGetPointer(*(const Datum *) a);
	text *y = (text *) DatumGetPointer(*(const Datum *) b);
	int lx = VARSIZE_ANY_EXHDR(x);
	int ly = VARSIZE_ANY_EXHDR(y);
	int order = memcmp(VARDATA_ANY(x), VARDATA_ANY(y), Min(lx, ly));

	return order != 0 ? order : lx - ly;
}

static int
position_of(const Batch *batch, Datum key)
{
	Datum *found = bsearch(&key, batch->keys, batch->nkeys, sizeof(Datum), compare_key);

	if (found == NULL)
		elog(ERROR, "unexpected key in batch");
	return found - batch->keys;
}

static void
mark_first(void *state)
{
	Batch *batch = state;

	for (uint64 i = 0; i < SPI_processed; i++)
		batch->first[position_of(batch, PointerGetDatum(DatumGetTextPP(returned(i, 1))))] = true;
}

static void
judge_existing(void *state)
{
	Batch *batch = state;

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		int position = position_of(batch, PointerGetDatum(DatumGetTextPP(returned(i, 1))));
		char *status = TextDatumGetCString(returned(i, 2));

		if (DatumGetBool(returned(i, 3)))
			continue;
		batch->again[position] = false;
		if (strcmp(status, status_names[KEY_HELD]) == 0)
			batch->held = true;
		else if (strcmp(status, status_names[KEY_COMPLETED]) != 0)
			batch->undecided = true;
	}
}

static ArrayType *
chosen(const Batch *batch, const bool *choice, bool wanted, int *number)
{
	Datum *keys = palloc(sizeof(Datum) * batch->nkeys);

	*number = 0;
	for (int i = 0; i < batch->nkeys; i++)
		if (choice[i] == wanted)
			keys[(*number)++] = batch->keys[i];
	return construct_array(keys, *number, TEXTOID, -1, false, TYPALIGN_INT);
}

/*
 * Inserts completed rows for keys that are sorted as the index is and
 * distinct, and says for each whether it is there for the first time. Takes
 * no key locks. Three statements: new keys; a look at those that were there
 * already; replacing what of these has expired or failed. Batches that overlap
 * meet in the same order in the first and in the last, and the rows of the two
 * are different, so they do not deadlock. What could not be replaced, because
 * somebody else got hold of it after our look, is looked at again: it may be
 * done now, or under a claim that is undecided.
 *
 * Errors: 40001 above READ COMMITTED; 55006 a claim is undecided; IK005.
 */
void
idem_keys_insert_batch(text *scope, text *operation, Datum *keys, int nkeys,
					   TimestampTz now, TimestampTz expires_at, bool *first)
{
	Batch batch = {.keys = keys, .nkeys = nkeys, .first = first};
	Datum values[5] = {PointerGetDatum(scope), PointerGetDatum(operation), (Datum) 0,
					   TimestampTzGetDatum(now), TimestampTzGetDatum(expires_at)};
	int left;

	values[2] = PointerGetDatum(construct_array(keys, nkeys, TEXTOID, -1, false, TYPALIGN_INT));
	if (execute_with(STATEMENT_BATCH_INSERT, values, NULL, mark_first, &batch) == (uint64) nkeys)
		return;

	batch.again = palloc(sizeof(bool) * nkeys);
	for (int i = 0; i < nkeys; i++)
		batch.again[i] = !first[i];
	for (;;)
	{
		values[2] = PointerGetDatum(chosen(&batch, batch.again, true, &left));
		execute_with(STATEMENT_BATCH_LOOK, values, NULL, judge_existing, &batch);
		if (batch.held)
			idem_report_held();
		if (batch.undecided)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("a claim on one of the keys is undecided"),
					 errhint("Roll back and try the batch again later; use once() and claim() on different operations.")));

		values[2] = PointerGetDatum(chosen(&batch, batch.again, true, &left));
		if (left == 0 ||
			execute_with(STATEMENT_BATCH_REPLACE, values, NULL, mark_first, &batch) == (uint64) left)
			return;
		for (int i = 0; i < nkeys; i++)
			batch.again[i] = batch.again[i] && !first[i];
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Whose table it is: the role whose rights everything here runs with.
 */
Oid
idem_keys_owner(void)
{
	Relation table = open_table(AccessShareLock);
	Oid owner = table->rd_rel->relowner;

	table_close(table, NoLock);
	return owner;
}

/*
 * A fencing token for a new claim, larger than that of the row it replaces
 * (NULL if there is none). The sequence alone would see to that, but a dump
 * restored over a used database sets it back.
 */
int64
idem_keys_next_token(const KeyRow *old)
{
	Oid sequence = relation_oid(TOKEN_SEQUENCE);
	int64 floor = 0;
	int64 token = nextval_internal(sequence, false);

	if (old != NULL && !old->isnull[KEY_TOKEN])
		floor = DatumGetInt64(old->values[KEY_TOKEN]);
	if (token <= floor)
	{
		Relation table = open_table(AccessShareLock);
		Oid saved_user;
		int saved_context;

		GetUserIdAndSecContext(&saved_user, &saved_context);
		SetUserIdAndSecContext(table->rd_rel->relowner, saved_context | SECURITY_LOCAL_USERID_CHANGE);
		DirectFunctionCall2(setval_oid, ObjectIdGetDatum(sequence),
							Int64GetDatum(floor));
		SetUserIdAndSecContext(saved_user, saved_context);
		table_close(table, NoLock);
		token = nextval_internal(sequence, false);
	}
	return token;
}

/*----------
 * Rows
 *----------
 */

const char *
idem_keys_status_name(KeyStatus status)
{
	return status_names[status];
}

/*
 * An empty row for a key: everything NULL but the identity.
 */
void
idem_keys_init_row(KeyRow *row, const KeyIdentity *id)
{
	MemSet(row, 0, sizeof(KeyRow));
	memset(row->isnull, true, sizeof(row->isnull));
	ItemPointerSetInvalid(&row->tid);
	row->status = KEY_IN_PROGRESS;
	KeyRowSet(row, KEY_SCOPE, PointerGetDatum(id->scope));
	KeyRowSet(row, KEY_OPERATION, PointerGetDatum(id->operation));
	KeyRowSet(row, KEY_KEY, PointerGetDatum(id->key));
}

/*
 * A copy of a row and all its values in the current memory context.
 */
KeyRow *
idem_keys_copy_row(const KeyRow *row)
{
	KeyRow *copy = palloc(sizeof(KeyRow));

	*copy = *row;
	for (int i = 0; i < KEY_NCOLUMNS; i++)
	{
		if (row->isnull[i])
			continue;
		if (columns[i].type == UUIDOID)
			copy->values[i] = datumCopy(row->values[i], false, UUID_LEN);
		else if (columns[i].type == TEXTOID || columns[i].type == BYTEAOID ||
				 columns[i].type == JSONBOID)
			copy->values[i] = datumCopy(row->values[i], false, -1);
	}
	return copy;
}

/*
 * The same of no more than what a version is found again by, to be replaced or
 * deleted; see append_version().
 */
KeyRow *
idem_keys_copy_version(const KeyRow *row)
{
	KeyRow version = *row;

	for (int i = 0; i < KEY_NCOLUMNS; i++)
		if (i != KEY_EXPIRES_AT && i != KEY_STATUS && i != KEY_TOKEN)
			KeyRowSetNull(&version, i);
	return idem_keys_copy_row(&version);
}

/*
 * Makes a row a failed one, to be claimed again after retry_in; both
 * durations in microseconds.
 *
 * Errors: 22023 out of range.
 */
void
idem_keys_set_failed(KeyRow *row, int64 retry_in, int64 failed_ttl)
{
	TimestampTz retry_at = idem_time_after(GetCurrentTimestamp(), retry_in, "retry_in");

	row->status = KEY_FAILED;
	KeyRowSetNull(row, KEY_LOCKED_UNTIL);
	if (retry_in > 0)
		KeyRowSet(row, KEY_LOCKED_UNTIL, TimestampTzGetDatum(retry_at));
	KeyRowSet(row, KEY_EXPIRES_AT,
			  TimestampTzGetDatum(idem_time_after(retry_at, failed_ttl, "retry_in")));
	KeyRowSetNull(row, KEY_CLAIM_ID);
	KeyRowSetNull(row, KEY_HOLD_IF_ABANDONED);
}

/*
 * The lease is over, and nobody has taken the claim over yet.
 */
bool
idem_keys_lapsed(const KeyRow *row, TimestampTz now)
{
	return row->status == KEY_IN_PROGRESS &&
		KeyRowTime(row, KEY_LOCKED_UNTIL) <= now;
}

/*
 * A person has to decide: held, or abandoned by an owner who asked for that.
 */
bool
idem_keys_held(const KeyRow *row, TimestampTz now)
{
	return row->status == KEY_HELD ||
		(idem_keys_lapsed(row, now) &&
		 !row->isnull[KEY_HOLD_IF_ABANDONED] &&
		 DatumGetBool(row->values[KEY_HOLD_IF_ABANDONED]));
}

/*
 * The key counts as absent. Keep in step with EXPIRED().
 */
bool
idem_keys_expired(const KeyRow *row, TimestampTz now)
{
	if (KeyRowTime(row, KEY_EXPIRES_AT) > now)
		return false;
	return row->status == KEY_COMPLETED || row->status == KEY_FAILED ||
		(idem_keys_lapsed(row, now) && !idem_keys_held(row, now));
}

/*
 * The response was removed, or should be, while the key is kept.
 */
bool
idem_keys_response_gone(const KeyRow *row, TimestampTz now)
{
	return !row->isnull[KEY_REDACTED_AT] ||
		(!row->isnull[KEY_RESPONSE_EXPIRES_AT] &&
		 KeyRowTime(row, KEY_RESPONSE_EXPIRES_AT) <= now);
}
