/*-------------------------------------------------------------------------
 *
 * bindings.c
 *	  Which scopes a role may use: bind_role(), unbind_role().
 *
 * Two applications in one database must not be able to replay each other's
 * answers. A role that is bound to a pattern, itself or through a role whose
 * privileges it has, can only use scopes that match one of its patterns; one
 * that is not bound can use any, or none where the superuser requires that
 * (idempotency.require_binding). The role that counts is the current one, so
 * a SECURITY DEFINER function acts for its owner. Superusers are not bound.
 *
 * Each backend keeps a copy of the table (config.c). Where nobody is bound a
 * call pays for a look at an empty list.
 *
 *-------------------------------------------------------------------------
 */
#include "rules.h"

#include "catalog/pg_collation.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"

typedef struct BindingRow
{
	Oid role;
	text *pattern;
} BindingRow;

static void *
binding_read_row(TupleTableSlot *slot)
{
	BindingRow *row = palloc0(sizeof(BindingRow));
	bool isnull;

	row->role = DatumGetObjectId(slot_getattr(slot, 1, &isnull));
	row->pattern = DatumGetTextPCopy(slot_getattr(slot, 2, &isnull));
	return row;
}

static IdemConfig bindings = {.table = "role_bindings", .read_row = binding_read_row};

/*
 * Whether the current role may use a scope.
 *
 * Errors: 42501 it may use none, since it has to be bound and is not; 55000
 * table missing.
 */
bool
idem_binding_allows(text *scope)
{
	bool bound = false;
	ListCell *cell;

	/*
	 * A transaction that has all its locks already would otherwise not learn of a
	 * change before it ends. Every call asks here first, so what it reads of the
	 * other small tables is no older. Where nothing is waiting this costs nothing.
	 */
	AcceptInvalidationMessages();
	idem_config_refresh(&bindings);
	if ((bindings.rows == NIL && !idem_require_binding) || superuser())
		return true;
	foreach (cell, bindings.rows)
	{
		BindingRow *row = lfirst(cell);

		if (!has_privs_of_role(GetUserId(), row->role))
			continue;
		bound = true;
		if (DatumGetBool(DirectFunctionCall2Coll(textlike, C_COLLATION_OID,
												 PointerGetDatum(scope),
												 PointerGetDatum(row->pattern))))
			return true;
	}
	if (!bound && idem_require_binding)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for a role without a binding"),
				 errhint("Where \"idempotency.require_binding\" is on,"
						 " a role can only use scopes that it is bound to by"
						 " idempotency.bind_role().")));
	return !bound;
}

/*
 * Errors: 42501 the current role is bound to other scopes, or to none though
 * it has to be.
 */
void
idem_binding_check(text *scope)
{
	if (!idem_binding_allows(scope))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for this scope"),
				 errhint("The role is bound to other scopes by idempotency.bind_role().")));
}

/*
 * A pattern that ends with half an escape would fail at some later claim, as
 * soon as a scope matches all that comes before. So it is refused here.
 *
 * Errors: 22025.
 */
static void
binding_check_pattern(const text *pattern)
{
	const char *data = VARDATA_ANY(pattern);
	int len = VARSIZE_ANY_EXHDR(pattern);
	int escapes = 0;

	while (escapes < len && data[len - 1 - escapes] == '\\')
		escapes++;
	if (escapes % 2 != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_ESCAPE_SEQUENCE),
				 errmsg("scope_pattern must not end with an escape character"),
				 errhint("Write a backslash twice to mean itself.")));
}

PG_FUNCTION_INFO_V1(idempotency_bind_role);

/*
 * SQL bind_role(): true. A role can be bound to several patterns.
 *
 * Errors: 22004, 22023, 22025 arguments; 42704 no such role; 25006 read-only.
 */
Datum
idempotency_bind_role(PG_FUNCTION_ARGS)
{
	Oid types[2] = {REGROLEOID, TEXTOID};
	Datum values[2] = {idem_arg(fcinfo, 0), idem_arg(fcinfo, 1)};

	idem_require_writable("bind_role");
	(void) idem_role_name(idem_role_argument(fcinfo));
	if (idem_arg_is_null(fcinfo, 1) || VARSIZE_ANY_EXHDR(PG_GETARG_TEXT_PP(1)) == 0)
		ereport(ERROR,
				(errcode(idem_arg_is_null(fcinfo, 1)
							 ? ERRCODE_NULL_VALUE_NOT_ALLOWED
							 : ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("scope_pattern must not be null or empty"),
				 errhint("Give a pattern as for LIKE, such as 'shop:%%'.")));
	binding_check_pattern(PG_GETARG_TEXT_PP(1));
	idem_config_write(&bindings,
					  "INSERT INTO idempotency.role_bindings (role, scope_pattern)"
					  " VALUES ($1, $2) ON CONFLICT (role, scope_pattern) DO NOTHING",
					  2, types, values, NULL);
	PG_RETURN_BOOL(true);
}

PG_FUNCTION_INFO_V1(idempotency_unbind_role);

/*
 * SQL unbind_role(): removes one pattern of a role, or all; true if there was
 * any. A role that was dropped can be named by its OID.
 *
 * Errors: 22004 role; 25006 read-only.
 */
Datum
idempotency_unbind_role(PG_FUNCTION_ARGS)
{
	Oid types[2] = {REGROLEOID, TEXTOID};
	Datum values[2] = {idem_arg(fcinfo, 0), idem_arg(fcinfo, 1)};
	char nulls[2] = {' ', idem_arg_is_null(fcinfo, 1) ? 'n' : ' '};
	uint64 removed;

	idem_require_writable("unbind_role");
	(void) idem_role_argument(fcinfo);
	removed = idem_config_write(&bindings,
								"DELETE FROM idempotency.role_bindings AS b"
								" WHERE b.role::pg_catalog.oid"
								" OPERATOR(pg_catalog.=) $1::pg_catalog.oid"
								" AND ($2 IS NULL"
								" OR b.scope_pattern OPERATOR(pg_catalog.=) $2)",
								2, types, values, nulls);
	PG_RETURN_BOOL(removed > 0);
}
