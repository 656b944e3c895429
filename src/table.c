/*-------------------------------------------------------------------------
 *
 * table.c
 *	  The table idempotency_keys: finding it, and seeing to it that it is what
 *	  the rest of the code takes it for.
 *
 * It is looked up by its name in our schema and then has to be the extension's
 * own, an ordinary table that keeps its rows itself, logged, with its columns in
 * their places and the primary key that it was made with. Rows are found and put
 * in past SQL, by that key's index, and everything rests on its being the judge:
 * on any other table a promise cannot be kept, and some would crash the server.
 * That is checked once, and again whenever the server says that something about
 * the table has changed; a call pays nothing for it.
 *
 *-------------------------------------------------------------------------
 */
#include "rows.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/skey.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/dependency.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_opfamily.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#define KEYS IDEM_QUALIFIED_TABLE
#define PUT_TABLE_BACK \
	"Put the table of extension \"" IDEM_EXTENSION_NAME "\" back under this name."
#define UNDO_CHANGE                                                                   \
	"Undo what was changed on the table, or run ALTER EXTENSION " IDEM_EXTENSION_NAME \
	" UPDATE."
#define PUT_KEY_BACK                 \
	"Put it back: ALTER TABLE " KEYS \
	" ADD PRIMARY KEY (scope, operation, key)."

/* Names and types of the columns, in the order of KeyColumn. */
const KeyColumnType idem_table_columns[KEY_NCOLUMNS] = {
	[KEY_CREATED_AT] = {"created_at", TIMESTAMPTZOID},
	[KEY_EXPIRES_AT] = {"expires_at", TIMESTAMPTZOID},
	[KEY_COMPLETED_AT] = {"completed_at", TIMESTAMPTZOID},
	[KEY_ATTEMPT] = {"attempt", INT4OID},
	[KEY_RESPONSE_STATUS] = {"response_status", INT4OID},
	[KEY_TOKEN] = {"token", INT8OID},
	[KEY_CLAIMED_AT] = {"claimed_at", TIMESTAMPTZOID},
	[KEY_CHECKPOINTED_AT] = {"checkpointed_at", TIMESTAMPTZOID},
	[KEY_LOCKED_UNTIL] = {"locked_until", TIMESTAMPTZOID},
	[KEY_LEASE_MS] = {"lease_ms", INT8OID},
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

/* That the table is as it has to be. */
static IdemMemory table_good;

/* Whether it is plain. */
static IdemMemory table_plain_known;
static bool table_plain;

void
idem_table_init(void)
{
	idem_memory_watch(&table_good);
	idem_memory_watch(&table_plain_known);
}

/*----------
 * What may be wrong
 *----------
 */

static bool
table_wrong(IdemTableProblem *problem, const char *message, const char *detail, const char *hint)
{
	*problem = (IdemTableProblem){message, detail, hint};
	return true;
}

static const char *
table_kind_name(char relkind)
{
	switch (relkind)
	{
		case RELKIND_PARTITIONED_TABLE:
			return "a partitioned table";
		case RELKIND_FOREIGN_TABLE:
			return "a foreign table";
		case RELKIND_VIEW:
			return "a view";
		case RELKIND_MATVIEW:
			return "a materialized view";
		default:
			return "not a table";
	}
}

/*
 * Whether Citus keeps the rows of the table elsewhere. All that its catalog lists
 * is such a shell: the rows of a table that is distributed, by a column or as one
 * shard, of a reference table and of a local one that it manages are in shards,
 * which are other tables. What our look-ups read stays behind, empty or out of
 * date, while SQL is sent to the shards.
 *
 * Its catalog is read directly: none of its code runs, and no lock is kept. What
 * makes or unmakes a shell changes the table's triggers too, so that we are told.
 */
static bool
table_is_citus_shell(Relation table)
{
	Oid oid = InvalidOid;
	AttrNumber column = InvalidAttrNumber;
	Relation catalog = NULL;
	SysScanDesc scan;
	ScanKeyData key;
	bool result;

	if (OidIsValid(get_extension_oid("citus", true)))
		oid = get_relname_relid("pg_dist_partition", PG_CATALOG_NAMESPACE);
	if (OidIsValid(oid))
		column = get_attnum(oid, "logicalrelid");
	if (column != InvalidAttrNumber)
		catalog = try_relation_open(oid, AccessShareLock);
	if (catalog == NULL)
		return false;

	ScanKeyInit(&key, column, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(RelationGetRelid(table)));
	scan = systable_beginscan(catalog, InvalidOid, false, NULL, 1, &key);
	result = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	relation_close(catalog, AccessShareLock);
	return result;
}

static bool
table_columns_are_wrong(Relation table, IdemTableProblem *problem)
{
	TupleDesc desc = RelationGetDescr(table);

	for (int i = 0; i < KEY_NCOLUMNS; i++)
		if (i >= desc->natts ||
			strcmp(NameStr(TupleDescAttr(desc, i)->attname), idem_table_columns[i].name) != 0 ||
			TupleDescAttr(desc, i)->atttypid != idem_table_columns[i].type)
			return table_wrong(problem, "table " KEYS " does not have the"
										" expected columns",
							   NULL,
							   UNDO_CHANGE);
	for (int i = KEY_SCOPE; i <= KEY_KEY; i++)
		if (TupleDescAttr(desc, i)->attcollation != C_COLLATION_OID)
			return table_wrong(problem, "table " KEYS " does not have the"
										" expected columns",
							   "The columns scope, operation and key have to have the collation"
							   " \"C\", by which keys are looked for.",
							   UNDO_CHANGE);
	return false;
}

/*
 * The primary key, opened, or NULL; also one that is deferrable or not valid,
 * which the server does not tell of.
 */
static Relation
table_open_primary_key(Relation table)
{
	List *indexes = RelationGetIndexList(table);
	ListCell *cell;

	foreach (cell, indexes)
	{
		Relation index = index_open(lfirst_oid(cell), AccessShareLock);

		if (index->rd_index->indisprimary)
			return index;
		index_close(index, AccessShareLock);
	}
	return NULL;
}

static bool
table_key_is_on_identity(Relation index)
{
	if (index->rd_rel->relam != BTREE_AM_OID || index->rd_index->indnatts != 3)
		return false;
	for (int i = 0; i < 3; i++)
		if (index->rd_index->indkey.values[i] != KEY_SCOPE + i + 1 ||
			index->rd_indcollation[i] != C_COLLATION_OID ||
			index->rd_opfamily[i] != TEXT_BTREE_FAM_OID)
			return false;
	return true;
}

/*
 * Look-ups scan the index by three texts, once_batch() lets it decide at once
 * which keys are new: any other index answers wrongly, or is read out of bounds.
 */
static bool
table_primary_key_is_wrong(Relation table, IdemTableProblem *problem)
{
	Relation index = table_open_primary_key(table);
	bool result = true;

	if (index == NULL)
		return table_wrong(problem, "table " KEYS " has no primary key",
						   "Nothing would keep two requests with one key apart.", PUT_KEY_BACK);
	if (!table_key_is_on_identity(index))
		table_wrong(problem, "the primary key of table " KEYS " is not on"
							 " (scope, operation, key)",
					"It has to be on these columns, in this order, and no others.",
					"Drop it. " PUT_KEY_BACK);
	else if (!index->rd_index->indimmediate)
		table_wrong(problem, "the primary key of table " KEYS " is deferrable",
					"Two requests with one key would be told apart too late.",
					"Drop it. " PUT_KEY_BACK);
	else if (!index->rd_index->indisready ||
			 RelationGetPrimaryKeyIndex_compat(table) != RelationGetRelid(index))
		table_wrong(problem, "the primary key of table " KEYS " is not valid",
					"Keys that are there would not be found.", "Drop it. " PUT_KEY_BACK);
	else
		result = false;
	index_close(index, AccessShareLock);
	return result;
}

/*
 * Whether the table, NULL if there is none, is not what it has to be, and why. Its
 * kind comes first: what follows takes it for an ordinary table. Then Citus, since
 * what it leaves behind may look wrong in other ways too.
 */
static bool
table_is_wrong(Relation table, IdemTableProblem *problem)
{
	if (table == NULL)
		return table_wrong(problem, "relation " KEYS " does not exist", NULL,
						   IDEM_MEMBER_MISSING_HINT);
	if (table->rd_rel->relkind != RELKIND_RELATION)
		return table_wrong(problem,
						   psprintf(KEYS " is %s", table_kind_name(table->rd_rel->relkind)),
						   "Keys are kept in an ordinary table alone.", PUT_TABLE_BACK);
	if (table_is_citus_shell(table))
		return table_wrong(problem, "table " KEYS " is managed by Citus",
						   "Its rows are in shards, where keys are not looked for.",
						   "Take it and the views on it out of the extension, run"
						   " undistribute_table(), save the rows, and create the extension again;"
						   " docs/operations.md has the statements.");
	if (!idem_member_is_ours(table))
		return table_wrong(problem,
						   "table " KEYS
						   " does not belong to extension \"" IDEM_EXTENSION_NAME "\"",
						   NULL,
						   "Drop the extension and create it again.");
	if (table->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
		return table_wrong(problem, "table " KEYS " is unlogged",
						   "A crash would empty it, and requests would be executed again.",
						   "Run ALTER TABLE " KEYS " SET LOGGED.");
	if (table->rd_rel->relam != HEAP_TABLE_AM_OID)
		return table_wrong(problem, "table " KEYS " has another access method"
									" than heap",
						   "Row versions and locks are looked at as heap keeps them.",
						   "Run ALTER TABLE " KEYS " SET ACCESS METHOD heap.");
	if (table->rd_rel->relispartition)
		return table_wrong(problem, "table " KEYS " is a partition",
						   "Its rows could be moved or deleted with another table.",
						   "Run ALTER TABLE on the partitioned table,"
						   " with DETACH PARTITION " KEYS ".");
	if (has_superclass(RelationGetRelid(table)))
		return table_wrong(problem, "table " KEYS " inherits from another table",
						   "Its rows could be changed or deleted with that one's.",
						   "Run ALTER TABLE " KEYS " NO INHERIT with that table's name.");
	/* Looks in the catalog: a child that is gone leaves its mark on the parent. */
	if (find_inheritance_children(RelationGetRelid(table), NoLock) != NIL)
		return table_wrong(problem, "other tables inherit from table " KEYS,
						   "Rows in them are under no common primary key.",
						   "Run ALTER TABLE on each of them, with NO INHERIT " KEYS ".");
	return table_columns_are_wrong(table, problem) || table_primary_key_is_wrong(table, problem);
}

/*----------
 * Using it
 *----------
 */

/*
 * Opens the table, which has to be as expected. The lock is the caller's to
 * keep to the end of the transaction.
 *
 * Errors: 55000.
 */
Relation
idem_table_open(LOCKMODE mode)
{
	Relation table;
	Oid oid = table_good.valid_for;
	uint64 changes;
	IdemTableProblem problem;

	if (OidIsValid(oid))
	{
		/*
		 * Taking the lock processes invalidations. What is still known to be good
		 * then is there, so that nobody need ask the catalog, as
		 * try_relation_open() would.
		 */
		LockRelationOid(oid, mode);
		if (table_good.valid_for == oid)
			return relation_open(oid, NoLock);
		UnlockRelationOid(oid, mode);
	}

	table = idem_member_open_by_name(IDEM_KEYS_TABLE, mode);
	changes = table_good.changes;
	if (table_is_wrong(table, &problem))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s", problem.message),
				 problem.detail != NULL ? errdetail("%s", problem.detail) : 0,
				 errhint("%s", problem.hint)));
	idem_memory_keep(&table_good, RelationGetRelid(table), changes);
	return table;
}

/*
 * Whether idem_table_open() would fail, and why; looks anew each time. The texts
 * are constants or in the current memory context.
 */
bool
idem_table_problem(IdemTableProblem *problem)
{
	Relation table = idem_member_open_by_name(IDEM_KEYS_TABLE, AccessShareLock);
	bool result = table_is_wrong(table, problem);

	if (table != NULL)
		relation_close(table, AccessShareLock);
	return result;
}

/*
 * Whether a function is the server's own and tells nothing of its arguments in
 * an error.
 */
static bool
table_is_untrusted(Oid function, void *context pg_attribute_unused())
{
	return function >= FirstNormalObjectId || !get_func_leakproof(function);
}

/*
 * Walks an index's predicate. Nodes that are not listed may run functions that
 * check_functions_in_node() does not know of.
 */
static bool
table_runs_untrusted(Node *node, void *context)
{
	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_List:
		case T_Var:
		case T_Const:
		case T_OpExpr:
		case T_FuncExpr:
		case T_ScalarArrayOpExpr:
		case T_ArrayExpr:
		case T_BoolExpr:
		case T_BooleanTest:
		case T_NullTest:
		case T_RelabelType:
			break;
		default:
			return true;
	}
	return check_functions_in_node(node, table_is_untrusted, context) ||
		expression_tree_walker(node, table_runs_untrusted, context);
}

static bool
table_index_is_plain(Oid oid)
{
	HeapTuple tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(oid));
	bool result;
	bool isnull;
	Datum value;

	if (!HeapTupleIsValid(tuple))
		return false;
	result = heap_attisnull(tuple, Anum_pg_index_indexprs, NULL);
	value = SysCacheGetAttr(INDEXRELID, tuple, Anum_pg_index_indclass, &isnull);
	if (!isnull)
	{
		oidvector *classes = (oidvector *) DatumGetPointer(value);

		for (int i = 0; i < classes->dim1; i++)
			result = result && classes->values[i] < FirstNormalObjectId;
	}
	value = SysCacheGetAttr(INDEXRELID, tuple, Anum_pg_index_indpred, &isnull);
	if (!isnull)
		result = result && !table_runs_untrusted(stringToNode(TextDatumGetCString(value)), NULL);
	ReleaseSysCache(tuple);
	return result;
}

static bool
table_look_if_plain(Relation table)
{
	TupleDesc desc = RelationGetDescr(table);
	List *indexes;
	ListCell *cell;

	if (table->trigdesc != NULL || table->rd_rules != NULL || table->rd_rel->relispartition)
		return false;
	if (desc->constr != NULL && (desc->constr->num_check > 0 || desc->constr->num_defval > 0))
		return false;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);

		/* A domain has constraints and a default of its own. */
		if (!attribute->attisdropped &&
			(attribute->attidentity != '\0' || attribute->atttypid >= FirstNormalObjectId))
			return false;
	}
	indexes = RelationGetIndexList(table);
	foreach (cell, indexes)
		if (!table_index_is_plain(lfirst_oid(cell)))
			return false;
	list_free(indexes);
	return true;
}

/*
 * Whether nothing of a user's runs when a row of the table is written: no
 * trigger (a foreign key is one), rule, constraint, default, nor an index that
 * calls a function which is not the server's own. Then an error cannot show the
 * row either, but one that a constraint raises. Policies never apply to what the
 * owner does under SECURITY_NOFORCE_RLS.
 *
 * The catalogs are looked at as they are stored: what the relation cache has of
 * an index is simplified by calling its functions, as whoever is asking.
 *
 * The table has to be open under a lock that keeps triggers and constraints from
 * being added. An index that is being made concurrently becomes of account only
 * after it has waited for that lock.
 */
bool
idem_table_is_plain(Relation table)
{
	if (table_plain_known.valid_for != RelationGetRelid(table))
	{
		uint64 changes = table_plain_known.changes;

		table_plain = table_look_if_plain(table);
		idem_memory_keep(&table_plain_known, RelationGetRelid(table), changes);
	}
	return table_plain;
}
