/*-------------------------------------------------------------------------
 *
 * privileges.c
 *	  Who may call what: grant_usage(), grant_operator(), grant_monitor(), and
 *	  revoke_usage(), revoke_operator(), revoke_monitor().
 *
 * Nothing is granted to PUBLIC. These hand out fixed bundles and take them
 * back, so that nobody needs to know which functions make up an application's
 * calls. They run with the caller's own rights, by GRANT and REVOKE: only who
 * may grant all of a bundle can use them.
 *
 * The bundles overlap, and nothing but the objects' own ACLs records who was
 * granted what, so that it is dumped, restored and dropped with the role. To
 * take one away and leave the others whole, each has a mark: one privilege
 * that no other bundle contains. Who was granted that by name has the bundle.
 *
 * No bundle contains more than SELECT on the table. The TRIGGER privilege in
 * particular is as good as superuser, since triggers run when the owner
 * writes.
 *
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

#include "catalog/objectaddress.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

typedef enum Bundle
{
	USAGE = 1 << 0,
	OPERATOR = 1 << 1,
	MONITOR = 1 << 2
} Bundle;

typedef struct Kind
{
	Oid catalog;
	ObjectType type;
	AclMode privilege;
	const char *phrase;
} Kind;

static const Kind privilege_on_schema = {
	NamespaceRelationId, OBJECT_SCHEMA, ACL_USAGE, "USAGE ON SCHEMA"};
static const Kind privilege_on_type = {
	TypeRelationId, OBJECT_TYPE, ACL_USAGE, "USAGE ON TYPE"};
static const Kind privilege_on_table = {
	RelationRelationId, OBJECT_TABLE, ACL_SELECT, "SELECT ON TABLE"};
static const Kind privilege_on_routine = {
	ProcedureRelationId, OBJECT_FUNCTION, ACL_EXECUTE, "EXECUTE ON ROUTINE"};

typedef struct Privilege
{
	const Kind *kind;
	const char *name; /* in our schema; there are no overloads */
	int bundles;      /* that contain it */
	bool mark;        /* of the only one */
} Privilege;

static const Privilege privileges[] = {
	{&privilege_on_schema, IDEM_SCHEMA_NAME, USAGE | OPERATOR | MONITOR, false},

	{&privilege_on_type, "claim_result", USAGE, false},
	{&privilege_on_type, "replay_result", USAGE | OPERATOR, false},
	{&privilege_on_type, "lookup_result", USAGE | OPERATOR, false},

	{&privilege_on_routine, "claim", USAGE, true},
	{&privilege_on_routine, "fail", USAGE, false},
	{&privilege_on_routine, "record_failure", USAGE, false},
	{&privilege_on_routine, "release", USAGE, false},
	{&privilege_on_routine, "extend", USAGE, false},
	{&privilege_on_routine, "checkpoint", USAGE, false},
	{&privilege_on_routine, "hold", USAGE, false},
	{&privilege_on_routine, "once", USAGE, false},
	{&privilege_on_routine, "once_batch", USAGE, false},
	{&privilege_on_routine, "run", USAGE, false},
	{&privilege_on_routine, "claim_abandoned", USAGE, false},
	{&privilege_on_routine, "fingerprint", USAGE, false},
	{&privilege_on_routine, "fingerprint_bytes", USAGE, false},
	{&privilege_on_routine, "content_key", USAGE, false},
	{&privilege_on_routine, "effect_key", USAGE, false},
	{&privilege_on_routine, "complete", USAGE | OPERATOR, false},
	{&privilege_on_routine, "replay", USAGE | OPERATOR, false},
	{&privilege_on_routine, "lookup", USAGE | OPERATOR, false},

	{&privilege_on_routine, "resolve", OPERATOR, true},
	{&privilege_on_routine, "forget", OPERATOR, false},
	{&privilege_on_routine, "forget_scope", OPERATOR, false},
	{&privilege_on_routine, "redact", OPERATOR, false},
	{&privilege_on_routine, "redact_scope", OPERATOR, false},
	{&privilege_on_routine, "import_completed", OPERATOR, false},
	{&privilege_on_routine, "export_scopes", OPERATOR, false},
	{&privilege_on_routine, "import_key", OPERATOR, false},
	{&privilege_on_routine, "forget_exported", OPERATOR, false},
	{&privilege_on_routine, "cleanup", OPERATOR, false},
	{&privilege_on_routine, "maintain", OPERATOR, false},
	{&privilege_on_routine, "request_cleanup", OPERATOR, false},
	{&privilege_on_routine, "schedule_cleanup", OPERATOR, false},
	{&privilege_on_routine, "unschedule_cleanup", OPERATOR, false},
	{&privilege_on_routine, "set_policy", OPERATOR, false},
	{&privilege_on_routine, "drop_policy", OPERATOR, false},
	{&privilege_on_table, "idempotency_keys", OPERATOR, false},
	{&privilege_on_table, "abandoned", OPERATOR, false},

	{&privilege_on_table, "stats", MONITOR, true},
	{&privilege_on_routine, "stats_data", MONITOR, false},
	{&privilege_on_routine, "health", OPERATOR | MONITOR, false},
	{&privilege_on_table, "policies", OPERATOR | MONITOR, false},
	{&privilege_on_table, "cleanup_runs", OPERATOR | MONITOR, false},
	{&privilege_on_table, "keys_by_operation", OPERATOR | MONITOR, false},
	{&privilege_on_table, "keys_by_scope", OPERATOR | MONITOR, false},
	{&privilege_on_routine, "key_standing", OPERATOR | MONITOR, false},

	{&privilege_on_table, "effective_policies", USAGE | OPERATOR | MONITOR, false},
	{&privilege_on_routine, "default_policy", USAGE | OPERATOR | MONITOR, false},
};

/* How one privilege stands, between a role and the one who calls. */
typedef struct PrivilegeState
{
	bool exists;    /* an older script may not have the object */
	bool owned;     /* by the role, which so needs no grant */
	bool grantable; /* by the caller */
	bool granted;   /* to the role by name, by the caller */
	Oid other;      /* somebody else who granted it to the role */
} PrivilegeState;

static Oid
privilege_find_object(const Privilege *privilege)
{
	Oid namespace = get_namespace_oid(IDEM_SCHEMA_NAME, false);
	ObjectWithArgs *function;

	if (privilege->kind == &privilege_on_schema)
		return namespace;
	if (privilege->kind == &privilege_on_type)
		return GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
							   CStringGetDatum(privilege->name),
							   ObjectIdGetDatum(namespace));
	if (privilege->kind == &privilege_on_table)
		return get_relname_relid(privilege->name, namespace);
	function = makeNode(ObjectWithArgs);
	function->objname = list_make2(makeString(IDEM_SCHEMA_NAME),
								   makeString(pstrdup(privilege->name)));
	function->args_unspecified = true;
	return LookupFuncWithArgs(OBJECT_ROUTINE, function, true);
}

/*
 * Asks the ACL as GRANT and REVOKE do: a superuser and a member of the
 * owner's role act for the owner.
 */
static PrivilegeState
privilege_look(const Privilege *privilege, Oid role)
{
	const Kind *kind = privilege->kind;
	Oid object = privilege_find_object(privilege);
	int cache = get_object_catcache_oid(kind->catalog);
	PrivilegeState state = {0};
	HeapTuple tuple;
	Oid owner;
	Oid grantor;
	Datum value;
	bool isnull;
	Acl *acl;
	AclItem *items;
	AclMode options;

	tuple = SearchSysCache1(cache, ObjectIdGetDatum(object));
	if (!HeapTupleIsValid(tuple))
		return state;
	value = SysCacheGetAttr(cache, tuple, get_object_attnum_owner(kind->catalog), &isnull);
	owner = DatumGetObjectId(value);
	value = SysCacheGetAttr(cache, tuple, get_object_attnum_acl(kind->catalog), &isnull);
	acl = isnull ? acldefault(kind->type, owner) : DatumGetAclPCopy(value);
	ReleaseSysCache(tuple);

	select_best_grantor_compat(GetUserId(), kind->privilege, acl, owner, &grantor, &options);
	state.exists = true;
	state.owned = role == owner;
	state.grantable = (options & ACL_GRANT_OPTION_FOR(kind->privilege)) != 0;
	items = ACL_DAT(acl);
	for (int i = 0; i < ACL_NUM(acl); i++)
	{
		if (items[i].ai_grantee != role || (ACLITEM_GET_PRIVS(items[i]) & kind->privilege) == 0)
			continue;
		if (items[i].ai_grantor == grantor)
			state.granted = true;
		else
			state.other = items[i].ai_grantor;
	}
	return state;
}

/*
 * Errors: 42501 the caller may not grant this. GRANT itself would only warn
 * where the caller has the privilege without the right to pass it on.
 */
static void
privilege_require_grantable(const Privilege *privilege, const PrivilegeState *state,
							const char *function)
{
	if (!state->grantable)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for %s()", function),
				 errdetail("The right to grant %s %s is"
						   " missing.",
						   privilege->kind->phrase, privilege->name),
				 errhint("It takes a superuser, the owner of the extension's objects,"
						 " or the grant option for all that belongs to it.")));
}

/*
 * Executes "GRANT ... TO" or "REVOKE ... FROM". Connected to SPI.
 */
static void
privilege_execute(const char *verb, const Privilege *privilege, const char *preposition,
				  const char *role)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "%s %s %s%s %s %s", verb, privilege->kind->phrase,
					 privilege->kind == &privilege_on_schema ? "" : IDEM_SCHEMA_NAME ".",
					 privilege->name, preposition, quote_identifier(role));
	if (SPI_execute(sql.data, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not execute %s", verb);
}

/*
 * The role that a call names, with its name; and connects to SPI.
 *
 * GRANT reads an ACL and writes it back, and fails with an internal error, "tuple
 * concurrently updated", where somebody else has written it in between: all bundles
 * are granted on the schema. So one of these calls waits for the transaction of
 * another.
 *
 * Errors: 22004 no role; 42704 no such role; 25006 read-only.
 */
static Oid
privileges_begin(FunctionCallInfo fcinfo, const char *function, char **name)
{
	Oid role;

	idem_require_writable(function);
	role = idem_role_argument(fcinfo);
	*name = idem_role_name(role);
	LockDatabaseObject(NamespaceRelationId, get_namespace_oid(IDEM_SCHEMA_NAME, false), 0,
					   ShareUpdateExclusiveLock);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	return role;
}

/*
 * SQL grant_usage() and so on: true. The role has all of the bundle then, or
 * there was an error.
 *
 * Errors: 22004 no role; 42704 no such role; 42501 the caller may not grant;
 * 25006 read-only.
 */
static Datum
privileges_hand_out(FunctionCallInfo fcinfo, const char *function, Bundle bundle)
{
	char *name;
	Oid role = privileges_begin(fcinfo, function, &name);

	for (int i = 0; i < (int) lengthof(privileges); i++)
	{
		const Privilege *privilege = &privileges[i];
		PrivilegeState state;

		if ((privilege->bundles & bundle) == 0)
			continue;
		state = privilege_look(privilege, role);
		if (!state.exists)
			continue;
		privilege_require_grantable(privilege, &state, function);
		privilege_execute("GRANT", privilege, "TO", name);
	}
	SPI_finish();
	PG_RETURN_BOOL(true);
}

/*
 * Which bundles a role was granted by name, by anybody.
 */
static int
privileges_bundles_of(Oid role)
{
	int bundles = 0;

	for (int i = 0; i < (int) lengthof(privileges); i++)
	{
		PrivilegeState state;

		if (!privileges[i].mark)
			continue;
		state = privilege_look(&privileges[i], role);
		if (state.granted || OidIsValid(state.other))
			bundles |= privileges[i].bundles;
	}
	return bundles;
}

/*
 * SQL revoke_usage() and so on: takes away what belongs to the bundle and to
 * no other that the role was granted; true if there was something to take.
 *
 * REVOKE takes away what the caller granted (a superuser, what the owner
 * did). What somebody else granted stays, and is not passed over: that is an
 * error if there was nothing but that, and a warning otherwise. It cannot
 * always be an error, or two who have granted the same could each not begin.
 *
 * Errors: 22004 no role; 42704 no such role; 42501 the caller may not grant,
 * or all that there is was granted by others; 2BP01 the role has passed it
 * on; 25006 read-only.
 */
static Datum
privileges_take_back(FunctionCallInfo fcinfo, const char *function, Bundle bundle)
{
	const Privilege *left = NULL;
	Oid left_by = InvalidOid;
	bool taken = false;
	char *name;
	Oid role = privileges_begin(fcinfo, function, &name);
	int others = privileges_bundles_of(role) & ~bundle;

	for (int i = 0; i < (int) lengthof(privileges); i++)
	{
		const Privilege *privilege = &privileges[i];
		PrivilegeState state;

		if ((privilege->bundles & bundle) == 0)
			continue;
		state = privilege_look(privilege, role);
		if (!state.exists)
			continue;
		privilege_require_grantable(privilege, &state, function);
		if ((privilege->bundles & others) != 0 || state.owned)
			continue;
		if (state.granted)
		{
			privilege_execute("REVOKE", privilege, "FROM", name);
			taken = true;
		}
		if (OidIsValid(state.other))
		{
			left = privilege;
			left_by = state.other;
		}
	}
	if (left != NULL)
		ereport(taken ? WARNING : ERROR,
				(errcode(taken ? ERRCODE_WARNING_PRIVILEGE_NOT_REVOKED
							   : ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" keeps privileges that others have granted", name),
				 errdetail("For example, %s %s was granted by role \"%s\".", left->kind->phrase,
						   left->name, GetUserNameFromId(left_by, false)),
				 errhint("SET ROLE to that one, and REVOKE them.")));
	SPI_finish();
	PG_RETURN_BOOL(taken);
}

PG_FUNCTION_INFO_V1(idempotency_grant_usage);
Datum
idempotency_grant_usage(PG_FUNCTION_ARGS)
{
	return privileges_hand_out(fcinfo, "grant_usage", USAGE);
}

PG_FUNCTION_INFO_V1(idempotency_grant_operator);
Datum
idempotency_grant_operator(PG_FUNCTION_ARGS)
{
	return privileges_hand_out(fcinfo, "grant_operator", OPERATOR);
}

PG_FUNCTION_INFO_V1(idempotency_grant_monitor);
Datum
idempotency_grant_monitor(PG_FUNCTION_ARGS)
{
	return privileges_hand_out(fcinfo, "grant_monitor", MONITOR);
}

PG_FUNCTION_INFO_V1(idempotency_revoke_usage);
Datum
idempotency_revoke_usage(PG_FUNCTION_ARGS)
{
	return privileges_take_back(fcinfo, "revoke_usage", USAGE);
}

PG_FUNCTION_INFO_V1(idempotency_revoke_operator);
Datum
idempotency_revoke_operator(PG_FUNCTION_ARGS)
{
	return privileges_take_back(fcinfo, "revoke_operator", OPERATOR);
}

PG_FUNCTION_INFO_V1(idempotency_revoke_monitor);
Datum
idempotency_revoke_monitor(PG_FUNCTION_ARGS)
{
	return privileges_take_back(fcinfo, "revoke_monitor", MONITOR);
}
