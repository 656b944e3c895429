/*-------------------------------------------------------------------------
 *
 * claim.c
 *	  May I do this work? claim(), and the decision that once(), run() and
 *	  claim_abandoned() ask for, too.
 *
 * The decision, in order: take the key's lock without waiting; read the row
 * and the clock afresh; judge. "Yours" keeps the lock until the transaction
 * ends, every other answer gives it back at once. Who does not get the lock
 * looks all the same, since a recorded response can be handed out without it.
 *
 * The lock comes first because of who races with us: between a look and a
 * later lock a rival could claim, work and complete. After the lock is granted
 * a rival's commit is visible to every new snapshot (the server releases locks
 * only after that, CommitTransaction()), so the look is final.
 *
 * A claim with a lease writes its row here. One without a lease writes
 * nothing: it is remembered in pending.c and complete() inserts the finished
 * row, so that a key costs one insert.
 *
 *-------------------------------------------------------------------------
 */
#include "claims.h"
#include "rules.h"
#include "server.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "utils/builtins.h"
#include "utils/typcache.h"

/* When to ask again if the rival's transaction is open: nobody knows. */
#define RIVAL_RETRY_US (1000 * INT64CONST(1000))

static const char *const claim_outcome_names[] = {
	[CLAIM_CLAIMED] = "claimed",
	[CLAIM_REPLAY] = "replay",
	[CLAIM_IN_PROGRESS] = "in_progress",
	[CLAIM_MISMATCH] = "mismatch",
	[CLAIM_HELD] = "held",
};

static const char *const claim_rival_names[] = {
	[RIVAL_TRANSACTION] = "transaction",
	[RIVAL_LEASE] = "lease",
	[RIVAL_RETRY] = "retry",
};

static bool
claim_has_same_id(const ClaimRequest *request, const KeyRow *row)
{
	return request->claim.claim_id != NULL && !row->isnull[KEY_CLAIM_ID] &&
		memcmp(request->claim.claim_id, DatumGetUUIDP(row->values[KEY_CLAIM_ID]),
			   UUID_LEN) == 0;
}

static bool
claim_has_same_fingerprint(const bytea *fingerprint, Datum stored)
{
	bytea *other = DatumGetByteaPP(stored);

	return VARSIZE_ANY_EXHDR(other) == VARSIZE_ANY_EXHDR(fingerprint) &&
		memcmp(VARDATA_ANY(other), VARDATA_ANY(fingerprint),
			   VARSIZE_ANY_EXHDR(fingerprint)) == 0;
}

/*
 * What a row means for this request at this moment. Touches nothing.
 */
static void
claim_judge(const ClaimRequest *request, TimestampTz now, ClaimAnswer *answer)
{
	const KeyRow *row = &answer->row;
	KeyStanding standing = answer->has_row ? idem_state_of(row, now) : STANDING_EXPIRED;

	answer->fresh = standing == STANDING_EXPIRED;
	if (!answer->fresh && request->claim.fingerprint != NULL && !row->isnull[KEY_FINGERPRINT])
	{
		answer->fingerprint_checked = true;
		if (!claim_has_same_fingerprint(request->claim.fingerprint, row->values[KEY_FINGERPRINT]))
		{
			answer->outcome = CLAIM_MISMATCH;
			return;
		}
	}

	/* Its owner did not get the answer. Nobody else has the claim. */
	if ((standing == STANDING_LEASED || standing == STANDING_ABANDONED) &&
		request->claim.lease > 0 && claim_has_same_id(request, row))
	{
		answer->outcome = CLAIM_CLAIMED;
		answer->repeated = true;
		return;
	}

	switch (standing)
	{
		case STANDING_EXPIRED:
		case STANDING_FAILED:
			answer->outcome = CLAIM_CLAIMED;
			break;
		case STANDING_ABANDONED:
			answer->outcome = CLAIM_CLAIMED;
			answer->taken_over = true;
			break;
		case STANDING_COMPLETED:
			answer->outcome = CLAIM_REPLAY;
			break;
		case STANDING_HELD:
			answer->outcome = CLAIM_HELD;
			break;
		case STANDING_LEASED:
		case STANDING_WAITING:
			answer->outcome = CLAIM_IN_PROGRESS;
			answer->rival = standing == STANDING_LEASED ? RIVAL_LEASE : RIVAL_RETRY;
			answer->retry_after = KeyRowTime(row, KEY_LOCKED_UNTIL) - now;
			break;
	}
}

/*
 * Writes the row of a claim with a lease. Its token is larger than the last one
 * that the key had; a claim that is repeated keeps its own, and its lease is not
 * shortened. If its row is gone, somebody else may have had the key meanwhile.
 *
 * Errors: 40001 a caller that takes no locks was faster.
 */
static void
claim_write_leased(const ClaimRequest *request, TimestampTz now, bool repeated, KeyRow *row,
				   const KeyRow *old)
{
	if (repeated)
	{
		(void) idem_state_renew(row, now, request->claim.lease, false);
		if (!idem_keys_update(row, old))
			idem_report_lost_race();
		return;
	}
	KeyRowSet(row, KEY_TOKEN, Int64GetDatum(idem_keys_next_token(KeyRowToken(row))));
	idem_keys_write(row, old);
}

/*
 * Writes the row of a claim that is completed in the same breath.
 */
static void
claim_write_completed(TimestampTz now, KeyRow *row, const KeyRow *old)
{
	idem_state_complete(row, now, KeyRowTime(row, KEY_EXPIRES_AT), 0);
	if (KeyRowToken(row) > 0)
		KeyRowSet(row, KEY_TOKEN, Int64GetDatum(idem_keys_next_token(KeyRowToken(row))));
	idem_keys_write(row, old);
}

/*
 * The claim is ours and its lock kept: write or remember it. Turns the row of
 * the answer, on which the decision was based, into the row of this claim.
 *
 * Errors: 40001 if a caller that takes no locks was faster.
 */
static void
claim_take(const ClaimRequest *request, TimestampTz now, PendingClaim *pending,
		   ClaimAnswer *answer)
{
	KeyRow *old = NULL;
	PendingState state = {.status = PENDING_OPEN};

	if (answer->has_row)
	{
		old = palloc(sizeof(KeyRow));
		*old = answer->row;
	}
	if (!answer->repeated)
	{
		KeyClaim claim = request->claim;

		if (request->keep_lease && old != NULL && KeyRowLease(old) > 0)
			claim.lease = KeyRowLease(old);
		idem_state_claim(&answer->row, &request->id, old, now, &claim);
	}

	if (request->at_once)
	{
		claim_write_completed(now, &answer->row, old);
		state.status = PENDING_COMPLETED;
	}
	else if (request->claim.lease > 0)
	{
		claim_write_leased(request, now, answer->repeated, &answer->row, old);
		state.leased = true;
		state.token = KeyRowToken(&answer->row);
	}

	if (pending == NULL)
		pending = idem_pending_keep(&request->id);
	if (!request->at_once)
	{
		MemoryContext caller = MemoryContextSwitchTo(idem_pending_context());

		state.draft = idem_keys_copy_row(&answer->row);
		if (!state.leased && old != NULL)
			state.over = idem_keys_copy_version(old);
		MemoryContextSwitchTo(caller);
	}
	idem_pending_set(pending, &state);
	answer->has_row = true;
	answer->leased = state.leased;
}

/*
 * A key that this transaction has claimed and not finished: it cannot wait
 * for itself.
 */
static void
claim_answer_own(const ClaimRequest *request, const PendingState *state,
				 ClaimAnswer *answer)
{
	answer->has_row = true;
	answer->row = *state->draft;
	if (claim_has_same_id(request, state->draft))
	{
		answer->outcome = CLAIM_CLAIMED;
		answer->leased = state->leased;
	}
	else
	{
		answer->outcome = CLAIM_IN_PROGRESS;
		answer->rival = RIVAL_TRANSACTION;
		answer->retry_after = RIVAL_RETRY_US;
	}
}

/*
 * One try. "locked" says that the caller has waited for the key's lock and
 * got it. On return the lock is kept only if the answer is "claimed".
 *
 * Errors: 40001 where the transaction's own snapshot does not see what would
 * let it go on; 54000 too many keys.
 */
void
idem_claim_decide(const ClaimRequest *request, bool locked, ClaimAnswer *answer)
{
	PendingClaim *pending = idem_pending_find(&request->id);
	bool agrees;
	TimestampTz now;

	MemSet(answer, 0, sizeof(ClaimAnswer));
	if (pending != NULL &&
		idem_pending_state(pending)->status == PENDING_OPEN)
	{
		claim_answer_own(request, idem_pending_state(pending), answer);
		return;
	}
	if (pending == NULL && !locked)
		locked = idem_lock_try(&request->id);

	answer->has_row = idem_keys_find(&request->id, KEYS_NOW, true,
									 &answer->row, &agrees);
	now = GetCurrentTimestamp();
	claim_judge(request, now, answer);

	if (answer->outcome == CLAIM_CLAIMED &&
		((pending == NULL && !locked) ||
		 (answer->has_row && idem_keys_being_written(&answer->row))))
	{
		/* A rival's transaction is open; what it does is not known yet. */
		answer->outcome = CLAIM_IN_PROGRESS;
		answer->rival = RIVAL_TRANSACTION;
		answer->lock_taken = !locked;
		answer->taken_over = false;
		/* Of a row that has expired nothing is said: it counts as absent. */
		answer->has_row = answer->has_row && !answer->fresh;
		answer->retry_after = RIVAL_RETRY_US;
	}

	if (request->only_abandoned && !answer->taken_over)
		answer->outcome = CLAIM_IN_PROGRESS;

	/*
	 * A transaction with a snapshot of its own goes on with what that shows
	 * of its business tables. It must not do so on the word of a key whose
	 * business rows it cannot see.
	 */
	if (!agrees && (answer->outcome == CLAIM_CLAIMED || answer->outcome == CLAIM_REPLAY))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not decide the claim in this transaction's snapshot"),
				 errdetail("The key was changed after the snapshot was taken."),
				 errhint("Retry the transaction.")));

	if (answer->outcome == CLAIM_CLAIMED)
	{
		if (pending == NULL)
			idem_pending_check_limit();
		claim_take(request, now, pending, answer);
	}
	else if (pending == NULL && locked)
		idem_lock_release(&request->id);
}

/*
 * Whether waiting can change the answer. This transaction cannot wait for a
 * claim of its own.
 */
static bool
claim_worth_waiting(const ClaimRequest *request, const ClaimAnswer *answer)
{
	return request->wait > 0 && answer->outcome == CLAIM_IN_PROGRESS &&
		(answer->rival == RIVAL_TRANSACTION || !request->wait_for_transaction_only) &&
		idem_pending_find(&request->id) == NULL;
}

/*
 * Tries until the answer is not "in progress" or the wait is over. A rival in
 * an open transaction is waited for by its lock, a committed claim by a
 * wake-up (wake.c). No key lock is held while asleep. The clock is monotonic.
 *
 * Whoever waits keeps a connection. If all of an application's do, the owner
 * has none left to complete with; so there is a limit, beyond which the answer
 * is "in progress" at once.
 */
static void
claim_decide_waiting(const ClaimRequest *request, ClaimAnswer *answer)
{
	instr_time start;
	bool locked = false;

	idem_claim_decide(request, locked, answer);
	if (!claim_worth_waiting(request, answer) || !idem_wake_enter(&request->id))
		return;

	INSTR_TIME_SET_CURRENT(start);
	for (;;)
	{
		instr_time elapsed;
		int64 left;

		INSTR_TIME_SET_CURRENT(elapsed);
		INSTR_TIME_SUBTRACT(elapsed, start);
		left = request->wait - (int64) INSTR_TIME_GET_MICROSEC(elapsed);
		if (left <= 0)
			break;

		if (idem_have_homes())
			idem_home_leave();
		if (answer->lock_taken)
			locked = idem_lock_wait_for(&request->id, left);
		else
			idem_wake_sleep(&request->id, Min(left, answer->retry_after));
		idem_home_check(request->id.scope);

		idem_wake_prepare(&request->id);
		idem_claim_decide(request, locked, answer);
		locked = false;
		if (!claim_worth_waiting(request, answer))
			break;
	}
	idem_wake_leave();
}

/*
 * Decides, and counts the answer.
 */
void
idem_claim_answer(const ClaimRequest *request, ClaimAnswer *answer)
{
	claim_decide_waiting(request, answer);
	switch (answer->outcome)
	{
		case CLAIM_CLAIMED:
			idem_stats_count(IDEM_CLAIMS, 1);
			if (answer->taken_over)
				idem_stats_count(IDEM_TAKEOVERS, 1);
			if (request->at_once)
				idem_stats_count(IDEM_COMPLETIONS, 1);
			break;
		case CLAIM_REPLAY:
			idem_stats_count(IDEM_REPLAYS, 1);
			break;
		case CLAIM_MISMATCH:
			idem_stats_count(IDEM_MISMATCHES, 1);
			break;
		case CLAIM_IN_PROGRESS:
		case CLAIM_HELD:
			idem_stats_count(IDEM_CONFLICTS, 1);
			break;
	}
}

/*
 * The argument "wait", within the superuser's limit. Errors: 22023.
 */
int64
idem_claim_wait_argument(FunctionCallInfo fcinfo, int argno, int64 otherwise)
{
	return Min(idem_duration(fcinfo, argno, "wait", 0, PG_INT64_MAX, otherwise),
			   idem_max_wait * INT64CONST(1000));
}

/*
 * The argument "wait_for": any rival, or only one that is undecided.
 *
 * Errors: 22023.
 */
static bool
claim_wait_for_argument(FunctionCallInfo fcinfo, int argno)
{
	char *value;

	if (idem_arg_is_null(fcinfo, argno))
		return false;
	value = text_to_cstring(PG_GETARG_TEXT_PP(argno));
	if (strcmp(value, "any") != 0 && strcmp(value, claim_rival_names[RIVAL_TRANSACTION]) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("wait_for must be 'any' or 'transaction'"),
				 errhint("'transaction' waits for a rival that may still roll back,"
						 " not for one that has committed its claim.")));
	return strcmp(value, "any") != 0;
}

static void
claim_read_request(ClaimRequest *request, FunctionCallInfo fcinfo)
{
	KeyClaim *claim = &request->claim;
	IdemPolicy policy;

	MemSet(request, 0, sizeof(ClaimRequest));
	idem_lock_identity(&request->id, fcinfo);
	policy = idem_policy_for(request->id.operation);
	claim->fingerprint = idem_fingerprint_argument(fcinfo, 3, 4);
	claim->ttl = idem_duration(fcinfo, 5, "ttl", 1, IDEM_MAX_TTL_US, policy.ttl);
	claim->lease = idem_duration(fcinfo, 6, "lease", 1, IDEM_MAX_TTL_US, 0);
	request->wait = idem_claim_wait_argument(fcinfo, 7, 0);
	claim->claim_id = idem_arg_is_null(fcinfo, 8) ? NULL : PG_GETARG_UUID_P(8);
	if (idem_arg_is_null(fcinfo, 9))
		claim->hold_if_abandoned = claim->lease > 0 && policy.hold_if_abandoned;
	else
		claim->hold_if_abandoned = PG_GETARG_BOOL(9);
	claim->max_attempts = policy.max_attempts;
	claim->note = idem_text_argument(fcinfo, 10, "note");
	claim->state = idem_text_argument(fcinfo, 11, "state");
	request->wait_for_transaction_only = claim_wait_for_argument(fcinfo, 12);

	if (claim->hold_if_abandoned && claim->lease == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("hold_if_abandoned needs a lease"),
				 errhint("Without a lease a crash rolls the claim back,"
						 " so it is never abandoned.")));
}

/*
 * Columns of claim_result. New ones are appended, and an older version of the
 * type gets the first so many.
 */
#define RESULT_COLUMNS 18

/*
 * The row type that the caller takes claim_result for, with a reference. A scan of
 * the function as a table knows it already (execSRF.c); elsewhere it is looked up,
 * by its number, so that it need not be copied.
 */
static TupleDesc
claim_result_type(FunctionCallInfo fcinfo)
{
	ReturnSetInfo *scan = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid type;

	if (scan != NULL && IsA(scan, ReturnSetInfo) && scan->expectedDesc != NULL &&
		scan->expectedDesc->tdtypeid != RECORDOID)
		return scan->expectedDesc;
	if (get_call_result_type(fcinfo, &type, NULL) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return lookup_rowtype_tupdesc(type, -1);
}

Datum
idem_claim_result(FunctionCallInfo fcinfo, const ClaimAnswer *answer, bool with_response)
{
	const KeyRow *row = &answer->row;
	Datum values[RESULT_COLUMNS] = {0};
	bool isnull[RESULT_COLUMNS];
	TupleDesc desc = claim_result_type(fcinfo);
	HeapTuple tuple;

	idem_check_result_columns(desc->natts, RESULT_COLUMNS);
	memset(isnull, true, sizeof(isnull));

#define RETURN_VALUE(i, value) \
	(values[i] = (value), isnull[i] = false)
#define RETURN_COLUMN(i, column) \
	(values[i] = row->values[column], isnull[i] = row->isnull[column])

	RETURN_VALUE(0, CStringGetTextDatum(claim_outcome_names[answer->outcome]));
	if (answer->outcome == CLAIM_CLAIMED)
	{
		if (answer->leased)
		{
			RETURN_COLUMN(1, KEY_TOKEN);
			RETURN_COLUMN(16, KEY_LOCKED_UNTIL);
		}
		RETURN_COLUMN(4, KEY_RECOVERY_POINT);
		RETURN_COLUMN(5, KEY_STATE);
		RETURN_COLUMN(6, KEY_LAST_ERROR);
	}
	RETURN_VALUE(3, BoolGetDatum(answer->taken_over));
	if (with_response)
	{
		RETURN_COLUMN(7, KEY_RESPONSE_STATUS);
		RETURN_COLUMN(8, KEY_RESPONSE_HEADERS);
		RETURN_COLUMN(9, KEY_RESPONSE_BODY);
		RETURN_COLUMN(10, KEY_RESPONSE_BYTES);
		RETURN_COLUMN(14, KEY_COMPLETED_AT);
	}
	RETURN_VALUE(11, BoolGetDatum(answer->fingerprint_checked));
	if (answer->outcome == CLAIM_IN_PROGRESS)
	{
		int64 retry_after = answer->retry_after;

		/*
		 * A lease is far longer than its work, which most often is done in a
		 * moment. How long it may take at most is in locked_until.
		 */
		if (answer->rival == RIVAL_LEASE)
			retry_after = Min(retry_after, idem_max_retry_after * INT64CONST(1000));
		RETURN_VALUE(12, Int64GetDatum((retry_after + 999) / 1000));
		RETURN_VALUE(17, CStringGetTextDatum(claim_rival_names[answer->rival]));
		if (answer->rival != RIVAL_TRANSACTION)
			RETURN_COLUMN(16, KEY_LOCKED_UNTIL);
	}
	if (answer->has_row)
	{
		RETURN_COLUMN(2, KEY_ATTEMPT);
		RETURN_COLUMN(13, KEY_CREATED_AT);
		RETURN_COLUMN(15, KEY_EXPIRES_AT);
	}
#undef RETURN_VALUE
#undef RETURN_COLUMN

	tuple = heap_form_tuple(desc, values, isnull);
	ReleaseTupleDesc(desc);
	return HeapTupleGetDatum(tuple);
}

PG_FUNCTION_INFO_V1(idempotency_claim);

/*
 * SQL claim(). VOLATILE: what it reads must be newer than the snapshot of the
 * statement that calls it.
 *
 * Errors: 22004, 22001, 22023 arguments; 25006 read-only; 40001, 54000 see
 * idem_claim_decide(); 55P03, 40P01 while waiting; IK006 the response was removed.
 */
Datum
idempotency_claim(PG_FUNCTION_ARGS)
{
	ClaimRequest request;
	ClaimAnswer answer;

	idem_require_writable("claim");
	claim_read_request(&request, fcinfo);
	idem_claim_answer(&request, &answer);
	if (answer.outcome == CLAIM_REPLAY)
		idem_state_check_response(&answer.row);
	PG_RETURN_DATUM(idem_claim_result(fcinfo, &answer, answer.outcome == CLAIM_REPLAY));
}
