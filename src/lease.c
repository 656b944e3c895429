/*-------------------------------------------------------------------------
 *
 * lease.c
 *	  Committed claims while they last: extend() keeps one alive,
 *	  checkpoint() records how far its work got, claim_abandoned() takes over
 *	  those whose owners are gone.
 *
 * A lease that has lapsed may be renewed as long as nobody has taken the
 * claim over; the token tells.
 *
 *-------------------------------------------------------------------------
 */
#include "claims.h"
#include "rules.h"
#include "server.h"

#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

/*
 * The lease ends so much later than now. 0 means as long as it was claimed
 * for, and never makes it shorter than it is: a heartbeat must not lose the
 * claim. Only a length that is asked for can do that.
 */
static TimestampTz
lease_renew(OwnedClaim *own, int64 lease)
{
	bool asked_for = lease > 0;

	if (!asked_for)
		lease = KeyRowLease(&own->row);
	if (lease == 0)
		lease = idem_policy_for(own->id.operation).lease;
	return idem_state_renew(&own->row, GetCurrentTimestamp(), lease, asked_for);
}

PG_FUNCTION_INFO_V1(idempotency_extend);

/*
 * SQL extend(): the lease ends so much later than now, or its own length later.
 *
 * Errors: those of idem_owner_claim(); 22023 lease; 55000 a claim without a
 * lease has none to extend.
 */
Datum
idempotency_extend(PG_FUNCTION_ARGS)
{
	OwnedClaim own;
	int64 lease;
	TimestampTz end;

	idem_require_writable("extend");
	lease = idem_duration(fcinfo, 3, "lease", 1, IDEM_MAX_TTL_US, 0);
	idem_owner_claim(&own, fcinfo, 4, OWNER_OTHER);
	if (!own.leased)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the claim has no lease"),
				 errhint("It lasts as long as its transaction. For work outside the database,"
						 " claim with a lease.")));

	end = lease_renew(&own, lease);
	idem_owner_write(&own, PENDING_OPEN);
	PG_RETURN_TIMESTAMPTZ(end);
}

PG_FUNCTION_INFO_V1(idempotency_checkpoint);

/*
 * SQL checkpoint(): where the next attempt may go on, and with what. State
 * that is not given stays as it is. Returns the lease's new end; a claim
 * without a lease has none, and its checkpoint is recorded if it fails.
 *
 * Errors: those of idem_owner_claim(); 22004 no recovery point; 22023 lease;
 * 54000 too large.
 */
Datum
idempotency_checkpoint(PG_FUNCTION_ARGS)
{
	OwnedClaim own;
	text *recovery_point;
	text *state;
	int64 lease;
	TimestampTz end;

	idem_require_writable("checkpoint");
	if (idem_arg_is_null(fcinfo, 3))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("recovery_point must not be null"),
				 errhint("Name the step that the work has passed.")));
	recovery_point = idem_text_argument(fcinfo, 3, "recovery_point");
	state = idem_text_argument(fcinfo, 4, "state");
	lease = idem_duration(fcinfo, 5, "lease", 1, IDEM_MAX_TTL_US, 0);
	idem_owner_claim(&own, fcinfo, 6, OWNER_OTHER);

	KeyRowSet(&own.row, KEY_RECOVERY_POINT, PointerGetDatum(recovery_point));
	if (state != NULL)
		KeyRowSet(&own.row, KEY_STATE, PointerGetDatum(state));
	KeyRowSet(&own.row, KEY_CHECKPOINTED_AT, TimestampTzGetDatum(GetCurrentTimestamp()));
	if (!own.leased)
	{
		idem_owner_remember(&own);
		PG_RETURN_NULL();
	}
	end = lease_renew(&own, lease);
	idem_owner_write(&own, PENDING_OPEN);
	PG_RETURN_TIMESTAMPTZ(end);
}

/*
 * Takes over one abandoned claim and adds it to the result. False if it is
 * not for this role, or busy, or no longer abandoned.
 */
static bool
lease_take_over(const KeyIdentity *id, int64 lease, ReturnSetInfo *result)
{
	static const KeyColumn columns[] = {
		KEY_SCOPE, KEY_OPERATION, KEY_KEY, KEY_TOKEN, KEY_ATTEMPT,
		KEY_RECOVERY_POINT, KEY_STATE, KEY_NOTE, KEY_LAST_ERROR, KEY_CREATED_AT,
		KEY_LOCKED_UNTIL};
	ClaimRequest request = {.id = *id, .only_abandoned = true, .keep_lease = lease == 0};
	ClaimAnswer answer;
	IdemPolicy policy;
	Datum values[lengthof(columns)];
	bool isnull[lengthof(columns)];

	request.id.hash = idem_lock_hash(id);
	if (!idem_binding_allows(id->scope) || idem_pending_find(&request.id) != NULL)
		return false;
	/* What was left behind by a move is driven to its end where it is at home. */
	if (idem_have_homes() && !idem_home_enter(id->scope))
		return false;
	policy = idem_policy_for(id->operation);
	request.claim.ttl = policy.ttl;
	request.claim.lease = lease > 0 ? lease : policy.lease;
	request.claim.max_attempts = policy.max_attempts;
	request.claim.hold_if_abandoned = policy.hold_if_abandoned;
	idem_claim_decide(&request, false, &answer);
	if (answer.outcome != CLAIM_CLAIMED)
		return false;

	idem_stats_count(IDEM_CLAIMS, 1);
	idem_stats_count(IDEM_TAKEOVERS, 1);
	for (int i = 0; i < (int) lengthof(columns); i++)
	{
		values[i] = answer.row.values[columns[i]];
		isnull[i] = answer.row.isnull[columns[i]];
	}
	tuplestore_putvalues(result->setResult, result->setDesc, values, isnull);
	return true;
}

PG_FUNCTION_INFO_V1(idempotency_claim_abandoned);

/*
 * SQL claim_abandoned(): takes over claims whose owners are gone, so that
 * their work is driven to its end though the client never comes back. Keys
 * that somebody is deciding about right now are skipped.
 *
 * Errors: 22001, 22023 arguments; 25006 read-only; 40001, 54000 as claim().
 */
Datum
idempotency_claim_abandoned(PG_FUNCTION_ARGS)
{
	text *operation = idem_arg_is_null(fcinfo, 0) ? NULL : PG_GETARG_TEXT_PP(0);
	int max_rows = idem_arg_is_null(fcinfo, 2) ? 100 : PG_GETARG_INT32(2);
	int taken = 0;
	int skipped = 0; /* candidates that are not for us and still there */
	int64 lease;
	int64 limit;
	bool more;

	idem_require_writable("claim_abandoned");
	if (operation != NULL)
		idem_check_identity_part(operation, "operation");
	lease = idem_duration(fcinfo, 1, "lease", 1, IDEM_MAX_TTL_US, 0);
	if (max_rows < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_rows must be greater than zero"),
				 errhint("It bounds how many claims are taken over at once.")));
	InitMaterializedSRF(fcinfo, 0);

	/*
	 * Some may be busy or not for this role: look at more than are wanted,
	 * and at still more where that was not enough, so that those who come
	 * first do not hide the others for ever.
	 */
	limit = 2 * (int64) max_rows + 10;
	do
	{
		ListCell *cell;
		List *candidates;

		candidates = idem_keys_abandoned(operation, limit, skipped);
		foreach (cell, candidates)
		{
			if (taken == max_rows)
				break;
			if (lease_take_over(lfirst(cell), lease, (ReturnSetInfo *) fcinfo->resultinfo))
				taken++;
			else
				skipped++;
			CHECK_FOR_INTERRUPTS();
		}
		more = list_length(candidates) == limit;
		limit *= 2;
	} while (taken < max_rows && more);
	return (Datum) 0;
}
