/*-------------------------------------------------------------------------
 *
 * members.c
 *	  The extension's own tables: found by their names, known to be ours, and
 *	  watched for changes.
 *
 * Their owners' rights are about to be used on them. So a relation of such a name
 * that somebody else has put into the schema is not one of them, whatever it
 * looks like.
 *
 * What a backend remembers of a table, that it is good or what is in it, holds
 * until the server says that something about the table has changed. It says so
 * to every backend, at the latest when that takes a lock.
 *
 *-------------------------------------------------------------------------
 */
#include "rows.h"

#include "access/relation.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/*----------
 * What is remembered of them
 *----------
 */

static IdemMemory *member_memories = NULL;

static void
member_changed(Datum arg pg_attribute_unused(), Oid relation)
{
	for (IdemMemory *memory = member_memories; memory != NULL; memory = memory->next)
	{
		memory->changes++;
		if (relation == InvalidOid || relation == memory->valid_for)
			memory->valid_for = InvalidOid;
	}
}

void
idem_member_init(void)
{
	CacheRegisterRelcacheCallback(member_changed, (Datum) 0);
}

/*
 * Has a memory, which stays for ever, forgotten when its table changes.
 */
void
idem_memory_watch(IdemMemory *memory)
{
	memory->valid_for = InvalidOid;
	memory->next = member_memories;
	member_memories = memory;
}

/*
 * Keeps what was just seen of a table. "changes" is what memory->changes was
 * before the look: if anything has changed since, what was seen is good for the
 * call that is running, and not kept for the next.
 */
void
idem_memory_keep(IdemMemory *memory, Oid table, uint64 changes)
{
	memory->valid_for = memory->changes == changes ? table : InvalidOid;
}

/*----------
 * Finding them
 *----------
 */

static Oid
member_find(const char *name)
{
	Oid schema = get_namespace_oid(IDEM_SCHEMA_NAME, true);

	return OidIsValid(schema) ? get_relname_relid(name, schema) : InvalidOid;
}

/*
 * Opens whatever relation has a name in our schema now, or NULL. Another may be
 * put in its place while we wait for the lock.
 */
Relation
idem_member_open_by_name(const char *name, LOCKMODE mode)
{
	Oid oid;

	while (OidIsValid(oid = member_find(name)))
	{
		Relation relation = try_relation_open(oid, mode);

		if (relation != NULL && member_find(name) == oid)
			return relation;
		if (relation != NULL)
			relation_close(relation, mode);
		CHECK_FOR_INTERRUPTS();
	}
	return NULL;
}

bool
idem_member_is_ours(Relation relation)
{
	return getExtensionOfObject(RelationRelationId, RelationGetRelid(relation)) ==
		get_extension_oid(IDEM_EXTENSION_NAME, true);
}

/*
 * Opens a table of ours by its name, or NULL. The lock is kept to the end of the
 * transaction.
 */
Relation
idem_member_try_open(const char *name)
{
	Relation table = idem_member_open_by_name(name, AccessShareLock);

	if (table == NULL ||
		(table->rd_rel->relkind == RELKIND_RELATION && idem_member_is_ours(table)))
		return table;
	relation_close(table, NoLock);
	return NULL;
}

pg_noreturn static void
member_report_missing(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("relation %s.%s does not exist", IDEM_SCHEMA_NAME, name),
			 errhint(IDEM_MEMBER_MISSING_HINT)));
}

/*
 * The same of one that has to be there. Errors: 55000.
 */
Relation
idem_member_open(const char *name)
{
	Relation table = idem_member_try_open(name);

	if (table == NULL)
		member_report_missing(name);
	return table;
}

/*
 * A relation of ours, by its name. Errors: 55000 there is none.
 */
Oid
idem_member_oid(const char *name)
{
	Oid oid = member_find(name);

	if (!OidIsValid(oid))
		member_report_missing(name);
	return oid;
}
