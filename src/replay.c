/*-------------------------------------------------------------------------
 *
 * replay.c
 *	  Looking without touching: replay() and lookup().
 *
 * Both read what their statement sees, take no key lock and work in read-only
 * transactions and on a hot standby. There they may be behind the primary,
 * which is one more reason why "no row" never permits the work.
 *
 *-------------------------------------------------------------------------
 */
#include "rows.h"
#include "rules.h"

#include "access/table.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

/*
 * Finds a key that is alive. Errors: 22004, 22001, 22023 arguments.
 */
static bool
replay_find_live(FunctionCallInfo fcinfo, bool with_response, KeyRow *row)
{
	KeyIdentity id;

	/* No lock is taken, so the key needs no hash. */
	idem_identity_argument(&id, fcinfo);
	idem_binding_check(id.scope);
	return idem_keys_find(&id, KEYS_SNAPSHOT, with_response, row, NULL) &&
		idem_state_of(row, GetCurrentTimestamp()) != STANDING_EXPIRED;
}

/*
 * Returns one row, made of the first so many columns that the type has.
 */
static void
replay_return_row(ReturnSetInfo *result, Datum *values, bool *isnull, int ncolumns)
{
	idem_check_result_columns(result->setDesc->natts, ncolumns);
	tuplestore_putvalues(result->setResult, result->setDesc, values, isnull);
}

PG_FUNCTION_INFO_V1(idempotency_replay);

/*
 * SQL replay(). Errors: IK006 the response was removed.
 */
Datum
idempotency_replay(PG_FUNCTION_ARGS)
{
	static const KeyColumn columns[] = {
		KEY_RESPONSE_STATUS, KEY_RESPONSE_HEADERS, KEY_RESPONSE_BODY,
		KEY_RESPONSE_BYTES, KEY_CREATED_AT, KEY_COMPLETED_AT, KEY_EXPIRES_AT};
	Datum values[lengthof(columns)];
	bool isnull[lengthof(columns)];
	KeyRow row;

	InitMaterializedSRF(fcinfo, 0);
	if (!replay_find_live(fcinfo, true, &row) || row.status != KEY_COMPLETED)
		return (Datum) 0;
	idem_state_check_response(&row);

	for (int i = 0; i < (int) lengthof(columns); i++)
	{
		values[i] = row.values[columns[i]];
		isnull[i] = row.isnull[columns[i]];
	}
	replay_return_row((ReturnSetInfo *) fcinfo->resultinfo, values, isnull,
					  lengthof(columns));
	return (Datum) 0;
}

PG_FUNCTION_INFO_V1(idempotency_lookup);

/*
 * Whether the caller may see whose claim a key is: an operator, who reads the
 * table. A token lets its holder complete the claim, and a claim_id lets him
 * have the token.
 */
static bool
replay_may_see_owner(void)
{
	Relation table = idem_table_open(AccessShareLock);
	AclResult result = pg_class_aclcheck(RelationGetRelid(table), GetUserId(), ACL_SELECT);

	table_close(table, NoLock);
	return result == ACLCHECK_OK;
}

/*
 * SQL lookup(): the record of a key as it counts now, with the response unless
 * that was removed.
 */
Datum
idempotency_lookup(PG_FUNCTION_ARGS)
{
	static const KeyColumn columns[] = {
		KEY_STATUS, KEY_TOKEN, KEY_ATTEMPT, KEY_CLAIM_ID,
		KEY_NCOLUMNS /* abandoned */, KEY_HOLD_IF_ABANDONED, KEY_FINGERPRINT,
		KEY_RECOVERY_POINT, KEY_STATE, KEY_LAST_ERROR, KEY_NOTE,
		KEY_CREATED_AT, KEY_CLAIMED_AT, KEY_CHECKPOINTED_AT, KEY_LOCKED_UNTIL,
		KEY_COMPLETED_AT, KEY_EXPIRES_AT, KEY_RESPONSE_EXPIRES_AT,
		KEY_REDACTED_AT, KEY_RESPONSE_STATUS, KEY_RESPONSE_HEADERS,
		KEY_RESPONSE_BODY, KEY_RESPONSE_BYTES};
	Datum values[lengthof(columns)];
	bool isnull[lengthof(columns)];
	TimestampTz now = GetCurrentTimestamp();
	KeyRow row;

	InitMaterializedSRF(fcinfo, 0);
	if (!replay_find_live(fcinfo, true, &row))
		return (Datum) 0;
	if (!replay_may_see_owner())
	{
		KeyRowSetNull(&row, KEY_TOKEN);
		KeyRowSetNull(&row, KEY_CLAIM_ID);
	}
	if (idem_state_response_gone(&row, now))
	{
		KeyRowSetNull(&row, KEY_RESPONSE_HEADERS);
		KeyRowSetNull(&row, KEY_RESPONSE_BODY);
		KeyRowSetNull(&row, KEY_RESPONSE_BYTES);
	}

	if (row.isnull[KEY_CLAIMED_AT])
		KeyRowSet(&row, KEY_CLAIMED_AT, row.values[KEY_CREATED_AT]);
	if (row.isnull[KEY_HOLD_IF_ABANDONED])
		KeyRowSet(&row, KEY_HOLD_IF_ABANDONED, BoolGetDatum(false));
	for (int i = 0; i < (int) lengthof(columns); i++)
	{
		if (columns[i] == KEY_NCOLUMNS)
		{
			values[i] = BoolGetDatum(idem_state_lapsed(&row, now));
			isnull[i] = false;
			continue;
		}
		values[i] = row.values[columns[i]];
		isnull[i] = row.isnull[columns[i]];
	}
	if (idem_state_of(&row, now) == STANDING_HELD)
		values[0] = CStringGetTextDatum(idem_state_name(KEY_HELD));
	replay_return_row((ReturnSetInfo *) fcinfo->resultinfo, values, isnull,
					  lengthof(columns));
	return (Datum) 0;
}
