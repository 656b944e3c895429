/*-------------------------------------------------------------------------
 *
 * table.c
 *	  The table idempotency_keys: finding it, and seeing to it that it is what
 *	  the rest of the code takes it for.
 *
 * It is looked up by its name in our schema and then has to belong to the
 * extension, be logged, and have its columns in their places and its primary
 * key: a promise cannot be kept on any other table. That is checked once, and
 * again whenever the server says that something about the table has changed.
 *
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "nodes/nodeFuncs.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

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

/* Valid for as long as nothing about the table changes; see table_changed(). */
static Oid table_oid = InvalidOid;
static Oid plain_for = InvalidOid;
static bool is_plain = false; /* of that table */

/*
 * Anything about the table has changed: look at it again.
 */
static void
table_changed(Datum arg pg_attribute_unused(), Oid relid)
{
	if (relid == InvalidOid || relid == table_oid)
		table_oid = InvalidOid;
	if (relid == InvalidOid || relid == plain_for)
		plain_for = InvalidOid;
}

void
idem_table_init(void)
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
						IDEM_SCHEMA_NAME, IDEM_KEYS_TABLE, IDEM_EXTENSION_NAME),
				 errhint("Drop the extension and create it again.")));
	if (table->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s.%s is unlogged", IDEM_SCHEMA_NAME, IDEM_KEYS_TABLE),
				 errdetail("A crash would empty it, and requests would be executed again."),
				 errhint("Run ALTER TABLE %s.%s SET LOGGED.",
						 IDEM_SCHEMA_NAME, IDEM_KEYS_TABLE)));
	if (!OidIsValid(RelationGetPrimaryKeyIndex_compat(table)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table %s.%s has no primary key", IDEM_SCHEMA_NAME, IDEM_KEYS_TABLE),
				 errdetail("Nothing would keep two requests with one key apart."),
				 errhint("Put it back: PRIMARY KEY (scope, operation, key).")));
	for (int i = 0; i < KEY_NCOLUMNS; i++)
		if (i >= desc->natts ||
			strcmp(NameStr(TupleDescAttr(desc, i)->attname), idem_table_columns[i].name) != 0 ||
			TupleDescAttr(desc, i)->atttypid != idem_table_columns[i].type)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("table %s.%s does not have the expected columns",
							IDEM_SCHEMA_NAME, IDEM_KEYS_TABLE),
					 errhint("Undo what was changed on the table, or run ALTER EXTENSION %s UPDATE.",
							 IDEM_EXTENSION_NAME)));
}

/*
 * A relation of ours, by its name. Errors: 55000 there is none.
 */
Oid
idem_table_relation(const char *name)
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

	oid = idem_table_relation(IDEM_KEYS_TABLE);
	table = table_open(oid, mode);
	check_table(table);
	table_oid = oid;
	return table;
}

/*
 * Whether a function is the server's own and tells nothing of its arguments in
 * an error.
 */
static bool
is_untrusted(Oid function, void *context pg_attribute_unused())
{
	return function >= FirstNormalObjectId || !get_func_leakproof(function);
}

/*
 * Walks an index's predicate. Nodes that are not listed may run functions that
 * check_functions_in_node() does not know of.
 */
static bool
runs_untrusted(Node *node, void *context)
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
	return check_functions_in_node(node, is_untrusted, context) ||
		expression_tree_walker(node, runs_untrusted, context);
}

static bool
index_is_plain(Oid oid)
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
		result = result && !runs_untrusted(stringToNode(TextDatumGetCString(value)), NULL);
	ReleaseSysCache(tuple);
	return result;
}

static bool
look_if_plain(Relation table)
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
		if (!index_is_plain(lfirst_oid(cell)))
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
	while (plain_for != RelationGetRelid(table))
	{
		/* May be invalidated while we look: then we look again. */
		is_plain = false;
		plain_for = RelationGetRelid(table);
		is_plain = look_if_plain(table);
	}
	return is_plain;
}
