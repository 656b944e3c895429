/*-------------------------------------------------------------------------
 *
 * policy.c
 *	  Lifetimes and rules per operation: set_policy(), drop_policy(), and
 *	  what they mean for a call.
 *
 * Order of precedence: argument, policy, setting. For new claims only. Each
 * backend keeps a copy of the table (config.c); there are as many policies as
 * an application has kinds of operations, so it is searched as a list.
 *
 *-------------------------------------------------------------------------
 */
#include "rules.h"

#include "access/htup_details.h"
#include "executor/tuptable.h"
#include "funcapi.h"

/* Columns of the table, in its order; also the arguments of set_policy(). */
enum
{
	POLICY_OPERATION,
	POLICY_TTL,
	POLICY_FAILED_TTL,
	POLICY_RESPONSE_TTL,
	POLICY_LEASE,
	POLICY_HOLD_IF_ABANDONED,
	POLICY_MAX_ATTEMPTS,
	POLICY_NCOLUMNS
};

typedef struct PolicyRow
{
	text *operation;
	IdemPolicy policy;
} PolicyRow;

/*
 * What is not positive counts as not given, as 0 does. The table refuses it; but
 * constraints can be dropped, and a negative lifetime would make every key
 * expire at once.
 */
static int64
policy_duration_column(TupleTableSlot *slot, int column)
{
	bool isnull;
	Datum value = slot_getattr(slot, column + 1, &isnull);

	return isnull ? 0 : Max(idem_interval_us(DatumGetIntervalP(value)), 0);
}

static void *
policy_read_row(TupleTableSlot *slot)
{
	PolicyRow *row = palloc0(sizeof(PolicyRow));
	bool isnull;
	Datum value;

	row->operation = DatumGetTextPCopy(slot_getattr(slot, POLICY_OPERATION + 1, &isnull));
	row->policy.ttl = policy_duration_column(slot, POLICY_TTL);
	row->policy.failed_ttl = policy_duration_column(slot, POLICY_FAILED_TTL);
	row->policy.response_ttl = policy_duration_column(slot, POLICY_RESPONSE_TTL);
	row->policy.lease = policy_duration_column(slot, POLICY_LEASE);
	value = slot_getattr(slot, POLICY_HOLD_IF_ABANDONED + 1, &isnull);
	row->policy.hold_if_abandoned = !isnull && DatumGetBool(value);
	value = slot_getattr(slot, POLICY_MAX_ATTEMPTS + 1, &isnull);
	row->policy.max_attempts = isnull ? 0 : Max(DatumGetInt32(value), 0);
	return row;
}

static IdemConfig policies = {.table = "policies", .read_row = policy_read_row};

/*
 * The rules for an operation: its policy, with the settings in the place of
 * what that leaves open. All durations are set, but response_ttl may be 0.
 *
 * Errors: 55000 the table is missing.
 */
IdemPolicy
idem_policy_for(const text *operation)
{
	IdemPolicy policy = {0};
	ListCell *cell;

	idem_config_refresh(&policies);
	foreach (cell, policies.rows)
	{
		PolicyRow *row = lfirst(cell);

		if (idem_texts_equal(row->operation, operation))
			policy = row->policy;
	}
	if (policy.ttl == 0)
		policy.ttl = idem_default_ttl * USECS_PER_SEC;
	else
		policy.has_ttl = true;
	if (policy.failed_ttl == 0)
		policy.failed_ttl = idem_failed_ttl * USECS_PER_SEC;
	if (policy.lease == 0)
		policy.lease = idem_default_lease * INT64CONST(1000);

	/* The superuser's limit may be lower than what was set before it was. */
	policy.ttl = Min(policy.ttl, IDEM_MAX_TTL_US);
	policy.failed_ttl = Min(policy.failed_ttl, IDEM_MAX_TTL_US);
	policy.lease = Min(policy.lease, IDEM_MAX_TTL_US);
	return policy;
}

static text *
policy_operation_argument(FunctionCallInfo fcinfo)
{
	text *operation;

	if (idem_arg_is_null(fcinfo, 0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("operation must not be null"),
				 errhint("Name the operation that the policy is for.")));
	operation = PG_GETARG_TEXT_PP(0);
	idem_check_identity_part(operation, "operation");
	return operation;
}

PG_FUNCTION_INFO_V1(idempotency_set_policy);

/*
 * SQL set_policy(): replaces the whole policy of an operation.
 *
 * Errors: 22004, 22001, 22023 arguments; 25006 read-only.
 */
Datum
idempotency_set_policy(PG_FUNCTION_ARGS)
{
	static const char *const durations[] = {"ttl", "failed_ttl", "response_ttl", "lease"};
	Oid types[POLICY_NCOLUMNS] = {
		TEXTOID, INTERVALOID, INTERVALOID, INTERVALOID, INTERVALOID, BOOLOID, INT4OID};
	Datum values[POLICY_NCOLUMNS];
	char nulls[POLICY_NCOLUMNS];

	idem_require_writable("set_policy");
	for (int i = 0; i < POLICY_NCOLUMNS; i++)
	{
		values[i] = idem_arg(fcinfo, i);
		nulls[i] = idem_arg_is_null(fcinfo, i) ? 'n' : ' ';
	}
	values[POLICY_OPERATION] = PointerGetDatum(policy_operation_argument(fcinfo));
	for (int i = 0; i < (int) lengthof(durations); i++)
	{
		/* Stored as it is meant: so many microseconds. */
		Interval *span = palloc0(sizeof(Interval));

		span->time = idem_duration(fcinfo, POLICY_TTL + i, durations[i], 1,
								   IDEM_MAX_TTL_US, 0);
		values[POLICY_TTL + i] = IntervalPGetDatum(span);
	}
	if (!idem_arg_is_null(fcinfo, POLICY_MAX_ATTEMPTS) && PG_GETARG_INT32(POLICY_MAX_ATTEMPTS) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_attempts must be greater than zero"),
				 errhint("Leave it out for no limit.")));

	idem_config_write(&policies,
					  "INSERT INTO idempotency.policies (operation, ttl, failed_ttl,"
					  " response_ttl, lease, hold_if_abandoned, max_attempts)"
					  " VALUES ($1, $2, $3, $4, $5, $6, $7)"
					  " ON CONFLICT (operation) DO UPDATE SET ttl = excluded.ttl,"
					  " failed_ttl = excluded.failed_ttl, response_ttl = excluded.response_ttl,"
					  " lease = excluded.lease, hold_if_abandoned = excluded.hold_if_abandoned,"
					  " max_attempts = excluded.max_attempts",
					  POLICY_NCOLUMNS, types, values, nulls);
	PG_RETURN_BOOL(true);
}

PG_FUNCTION_INFO_V1(idempotency_drop_policy);

/*
 * SQL drop_policy(): true if there was one.
 *
 * Errors: 22004, 22001, 22023 operation; 25006 read-only.
 */
Datum
idempotency_drop_policy(PG_FUNCTION_ARGS)
{
	Datum values[1];
	Oid types[1] = {TEXTOID};

	idem_require_writable("drop_policy");
	values[0] = PointerGetDatum(policy_operation_argument(fcinfo));
	PG_RETURN_BOOL(idem_config_write(&policies,
									 "DELETE FROM idempotency.policies AS p"
									 " WHERE p.operation OPERATOR(pg_catalog.=) $1",
									 1, types, values, NULL) > 0);
}

PG_FUNCTION_INFO_V1(idempotency_default_policy);

/*
 * SQL default_policy(), behind the view "effective_policies": what holds for
 * an operation without a policy, in seconds. A function, because settings are
 * known to current_setting() only once the library is loaded.
 */
Datum
idempotency_default_policy(PG_FUNCTION_ARGS)
{
	Datum values[3];
	bool isnull[3] = {false, false, false};
	TupleDesc desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = Float8GetDatum(Min(idem_default_ttl, idem_max_ttl));
	values[1] = Float8GetDatum(Min(idem_failed_ttl, idem_max_ttl));
	values[2] = Float8GetDatum(Min(idem_default_lease / 1000.0, idem_max_ttl));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, isnull)));
}
