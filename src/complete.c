/*-------------------------------------------------------------------------
 *
 * complete.c
 *	  The ends of a claim: complete() records the response, fail() lets the
 *	  next attempt begin, release() undoes the claim, hold() keeps the key
 *	  for a person to decide.
 *
 * Arguments are checked before the claim is touched, so that a completion
 * that is refused leaves the claim as it was.
 *
 *-------------------------------------------------------------------------
 */
#include "claims.h"
#include "rules.h"
#include "server.h"

pg_noreturn static void
complete_report_other(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_IDEM_OTHER_COMPLETION),
			 errmsg("the claim was completed with another response"),
			 errhint("The first response stands: replay() it.")));
}

/*
 * The end of a key's life. It counts from the claim, but work may take long:
 * at least half of the lifetime is left once it is completed, or a repeat
 * could come after the expiry of what has only just been done. A held key has
 * no end; completed at last, it gets an ordinary life.
 */
static TimestampTz
complete_expiry(const OwnedClaim *own, TimestampTz now, int64 ttl)
{
	TimestampTz planned = KeyRowTime(&own->row, KEY_EXPIRES_AT);

	if (ttl == 0 && planned == DT_NOEND)
		ttl = idem_policy_for(own->id.operation).ttl;
	if (ttl > 0)
		return idem_time_after(now, ttl, "ttl");
	return Max(planned,
			   idem_time_after(now, (planned - idem_state_claimed_at(&own->row)) / 2, "ttl"));
}

/*
 * Makes the claim a completed one and writes it; until when it is replayed.
 */
static TimestampTz
complete_record(OwnedClaim *own, const IdemResponse *response, int64 ttl)
{
	TimestampTz now = GetCurrentTimestamp();

	idem_state_complete(&own->row, now, complete_expiry(own, now, ttl),
						idem_policy_for(own->id.operation).response_ttl);
	idem_response_put(response, &own->row);
	idem_owner_write(own, PENDING_COMPLETED);
	idem_stats_count(IDEM_COMPLETIONS, 1);
	return idem_state_replayed_until(&own->row);
}

/*
 * Completes a claim that this transaction has just made, and returns the row
 * that it became; for run().
 *
 * Errors: IK002 the command has failed or released it; IK003 completed it; IK005
 * held it: what is of unknown outcome is not to be replayed as a success.
 */
void
idem_complete_own(const KeyIdentity *id, const IdemResponse *response, KeyRow *row)
{
	OwnedClaim own;

	idem_owner_claim_pending(&own, id, OWNER_COMPLETE);
	if (own.completed)
		complete_report_other();
	if (own.row.status == KEY_HELD)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_HELD),
				 errmsg("the command held the key that it was run for"),
				 errhint("Nothing of it remains. Work whose outcome may be unknown needs a claim"
						 " with a lease, outside of run().")));
	complete_record(&own, response, 0);
	*row = own.row;
}

PG_FUNCTION_INFO_V1(idempotency_complete);

/*
 * SQL complete(). A recorded response is never replaced: the very same
 * completion again is a safe retry and gets the same answer, another one is
 * an error. The retry changes nothing, its ttl included.
 *
 * A retry that succeeds would let rows that were written beside it commit a
 * second time. Whoever writes some says refuse_repeat, and gets an error.
 *
 * Errors: those of idem_owner_claim() and idem_response_read(); IK003 a second,
 * different completion; IK001 a repeat that is to be refused; IK006 one that
 * cannot be compared any more.
 */
Datum
idempotency_complete(PG_FUNCTION_ARGS)
{
	OwnedClaim own;
	IdemResponse response;
	int64 ttl;
	bool refuse_repeat;

	idem_require_writable("complete");
	idem_response_read(&response, fcinfo, 3);
	ttl = idem_duration(fcinfo, 7, "ttl", 1, IDEM_MAX_TTL_US, 0);
	refuse_repeat = !idem_arg_is_null(fcinfo, 9) && PG_GETARG_BOOL(9);
	idem_owner_claim(&own, fcinfo, 8, OWNER_COMPLETE);

	if (own.completed)
	{
		if (refuse_repeat)
			idem_owner_report_completed();
		idem_state_check_response(&own.stored);
		if (!idem_response_same(&response, &own.stored))
			complete_report_other();
		PG_RETURN_TIMESTAMPTZ(idem_state_replayed_until(&own.stored));
	}
	PG_RETURN_TIMESTAMPTZ(complete_record(&own, &response, ttl));
}

static void
complete_set_error(OwnedClaim *own, text *error)
{
	KeyRowSetNull(&own->row, KEY_LAST_ERROR);
	if (error != NULL)
		KeyRowSet(&own->row, KEY_LAST_ERROR, PointerGetDatum(error));
}

/*
 * Makes an open claim a failed one, or a held one after the last attempt that
 * the policy allows, and writes it.
 */
static void
complete_record_failure(OwnedClaim *own, text *error, int64 retry_in)
{
	IdemPolicy policy = idem_policy_for(own->id.operation);

	complete_set_error(own, error);
	if (policy.max_attempts > 0 &&
		KeyRowAttempt(&own->row) >= policy.max_attempts)
	{
		idem_state_hold(&own->row);
		idem_owner_write(own, PENDING_HELD);
	}
	else
	{
		idem_state_fail(&own->row, GetCurrentTimestamp(), retry_in, policy.failed_ttl);
		idem_owner_write(own, PENDING_FAILED);
	}
	idem_stats_count(IDEM_FAILURES, 1);
}

PG_FUNCTION_INFO_V1(idempotency_fail);

/*
 * SQL fail(): the caller knows that nothing happened.
 *
 * Errors: those of idem_owner_claim(); 22023 retry_in; 54000 error too large.
 */
Datum
idempotency_fail(PG_FUNCTION_ARGS)
{
	OwnedClaim own;
	text *error;
	int64 retry_in;

	idem_require_writable("fail");
	error = idem_text_argument(fcinfo, 3, "error");
	retry_in = idem_duration(fcinfo, 4, "retry_in", 0, IDEM_MAX_TTL_US, 0);
	idem_owner_claim(&own, fcinfo, 5, OWNER_OTHER);
	complete_record_failure(&own, error, retry_in);
	PG_RETURN_BOOL(true);
}

PG_FUNCTION_INFO_V1(idempotency_record_failure);

/*
 * SQL complete_record_failure(): for who has rolled the claim back with its work, and
 * wants the failure to be known all the same. Claims and fails in one call,
 * since in between somebody else could get the key. False if somebody has:
 * then there is nothing to record.
 *
 * Errors: as claim() without a lease and fail().
 */
Datum
idempotency_record_failure(PG_FUNCTION_ARGS)
{
	ClaimRequest request = {0};
	ClaimAnswer answer;
	OwnedClaim own;
	PendingClaim *pending;
	text *error;
	int64 retry_in;
	IdemPolicy policy;

	idem_require_writable("record_failure");
	idem_lock_identity(&request.id, fcinfo);
	error = idem_text_argument(fcinfo, 3, "error");
	retry_in = idem_duration(fcinfo, 4, "retry_in", 0, IDEM_MAX_TTL_US, 0);
	request.claim.fingerprint = idem_fingerprint_argument(fcinfo, 5, 6);
	policy = idem_policy_for(request.id.operation);
	request.claim.ttl = policy.ttl;
	request.claim.max_attempts = policy.max_attempts;

	pending = idem_pending_find(&request.id);
	if (pending == NULL || idem_pending_state(pending)->status != PENDING_OPEN)
	{
		idem_claim_answer(&request, &answer);
		if (answer.outcome != CLAIM_CLAIMED)
			PG_RETURN_BOOL(false);
	}
	idem_owner_claim_pending(&own, &request.id, OWNER_OTHER);
	complete_record_failure(&own, error, retry_in);
	PG_RETURN_BOOL(true);
}

PG_FUNCTION_INFO_V1(idempotency_hold);

/*
 * SQL hold(): the outcome is unknown. From here on only complete() is open to
 * the owner, and only a person may let somebody else do the work. Returns the
 * token by which either does: a claim without a lease had none so far.
 *
 * Errors: those of idem_owner_claim(); 54000 reason too large.
 */
Datum
idempotency_hold(PG_FUNCTION_ARGS)
{
	OwnedClaim own;
	text *reason;

	idem_require_writable("hold");
	reason = idem_text_argument(fcinfo, 3, "reason");
	idem_owner_claim(&own, fcinfo, 4, OWNER_OTHER);
	complete_set_error(&own, reason);
	idem_state_hold(&own.row);
	idem_owner_write(&own, PENDING_HELD);
	PG_RETURN_INT64(KeyRowToken(&own.row));
}

PG_FUNCTION_INFO_V1(idempotency_release);

/*
 * SQL release(). A first attempt leaves no row. A later one goes back to
 * "failed", with the earlier error and the earlier number.
 *
 * Errors: those of idem_owner_claim(); 55000 after a checkpoint, since work
 * that has got somewhere is no longer as if it had not begun.
 */
Datum
idempotency_release(PG_FUNCTION_ARGS)
{
	OwnedClaim own;

	idem_require_writable("release");
	idem_owner_claim(&own, fcinfo, 3, OWNER_OTHER);

	if (!own.row.isnull[KEY_CHECKPOINTED_AT] &&
		KeyRowTime(&own.row, KEY_CHECKPOINTED_AT) >= idem_state_claimed_at(&own.row))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot release a claim after a checkpoint"),
				 errhint("Call fail() if it is certain that nothing more happened;"
						 " otherwise leave it to the next attempt.")));

	if (!own.leased || KeyRowAttempt(&own.row) == 1)
		idem_owner_delete(&own, PENDING_RELEASED);
	else
	{
		idem_state_release(&own.row, GetCurrentTimestamp(),
						   idem_policy_for(own.id.operation).failed_ttl);
		idem_owner_write(&own, PENDING_RELEASED);
	}
	PG_RETURN_BOOL(true);
}
