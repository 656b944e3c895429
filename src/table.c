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

#include "access/relation.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

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

/* Valid for as long as nothing about the table changes; see table_changed(). */
static Oid table_oid = InvalidOid;

/*
 * Anything about the table has changed: look at it again.
 */
static void
table_changed(Datum arg pg_attribute_unused(), Oid relid)
{
	if (relid == InvalidOid || relid == table_oid)
		table_oid = InvalidOid;
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
 * Whose table it is: the role whose rights everything here runs with.
 */
Oid
idem_table_owner(void)
{
	Relation table = idem_table_open(AccessShareLock);
	Oid owner = table->rd_rel->relowner;

	table_close(table, NoLock);
	return owner;
}
