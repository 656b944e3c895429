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
#include "idempotency.h"

#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"

typedef struct Response
{
	Datum values[4];
	bool isnull[4];
} Response;

/* Where the parts of a response are stored, and which arguments they are. */
static const KeyColumn response_columns[4] = {
	KEY_RESPONSE_STATUS, KEY_RESPONSE_BODY, KEY_RESPONSE_HEADERS,
	KEY_RESPONSE_BYTES};
#define RESPONSE_ARGNO 3
#define RESPONSE_BODY 1
#define RESPONSE_BYTES 3

/*
 * Errors: 54000.
 */
static void
check_size(int64 size)
{
	if (size > (int64) idem_max_response_size * 1024)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the response is too large"),
				 errdetail("It has %lld bytes, and at most %lld are allowed.",
						   (long long) size,
						   (long long) idem_max_response_size * 1024),
				 errhint("Nothing was recorded: complete without the body, or raise \"idempotency.max_response_size\".")));
}

pg_noreturn static void
report_other_completion(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_IDEM_OTHER_COMPLETION),
			 errmsg("the claim was completed with another response"),
			 errhint("The first response stands: replay() it.")));
}

/*
 * Reads and checks the response arguments.
 *
 * Errors: 22023 two bodies; 54000 too large.
 */
static void
read_response(Response *response, FunctionCallInfo fcinfo)
{
	int64 size = 0;

	for (int i = 0; i < (int) lengthof(response_columns); i++)
	{
		response->isnull[i] = PG_ARGISNULL(RESPONSE_ARGNO + i);
		response->values[i] = (Datum) 0;
		if (response->isnull[i])
			continue;
		response->values[i] = PG_GETARG_DATUM(RESPONSE_ARGNO + i);
		if (response_columns[i] != KEY_RESPONSE_STATUS)
		{
			response->values[i] =
				PointerGetDatum(PG_DETOAST_DATUM_PACKED(response->values[i]));
			size += VARSIZE_ANY_EXHDR(DatumGetPointer(response->values[i]));
		}
	}

	if (!response->isnull[RESPONSE_BODY] && !response->isnull[RESPONSE_BYTES])
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("response_body and response_bytes exclude each other"),
				 errhint("Use response_body for text and response_bytes for anything else.")));
	check_size(size);
}

/*
 * The checks alone, for a call with the same response arguments.
 *
 * Errors: 22023 two bodies; 54000 too large.
 */
void
idem_check_response(FunctionCallInfo fcinfo)
{
	Response response;

	read_response(&response, fcinfo);
}

static bool
same_bytes(Datum a, Datum b)
{
	struct varlena *x = PG_DETOAST_DATUM_PACKED(a);
	struct varlena *y = PG_DETOAST_DATUM_PACKED(b);

	return VARSIZE_ANY_EXHDR(x) == VARSIZE_ANY_EXHDR(y) &&
		memcmp(VARDATA_ANY(x), VARDATA_ANY(y), VARSIZE_ANY_EXHDR(x)) == 0;
}

static bool
same_response(const Response *response, const KeyRow *row)
{
	for (int i = 0; i < (int) lengthof(response_columns); i++)
	{
		KeyColumn column = response_columns[i];
		Datum a = response->values[i];
		Datum b = row->values[column];

		if (response->isnull[i] != row->isnull[column])
			return false;
		if (response->isnull[i])
			continue;
		if (column == KEY_RESPONSE_STATUS)
		{
			if (DatumGetInt32(a) != DatumGetInt32(b))
				return false;
		}
		else if (column == KEY_RESPONSE_HEADERS)
		{
			if (!DatumGetBool(DirectFunctionCall2(jsonb_eq, a, b)))
				return false;
		}
		else if (!same_bytes(a, b))
			return false;
	}
	return true;
}

/*
 * When the running attempt was claimed.
 */
static TimestampTz
claimed_at(const KeyRow *row)
{
	return KeyRowTime(row, row->isnull[KEY_CLAIMED_AT] ? KEY_CREATED_AT : KEY_CLAIMED_AT);
}

/*
 * The end of a key's life. It counts from the claim, but work may take long:
 * at least half of the lifetime is left once it is completed, or a repeat
 * could come after the expiry of what has only just been done. A held key has
 * no end; completed at last, it gets an ordinary life.
 */
static TimestampTz
expiry_at_completion(const OwnedClaim *own, TimestampTz now, int64 ttl)
{
	TimestampTz planned = KeyRowTime(&own->row, KEY_EXPIRES_AT);

	if (ttl == 0 && planned == DT_NOEND)
		ttl = idem_policy_for(own->id.operation).ttl;
	if (ttl > 0)
		return idem_time_after(now, ttl, "ttl");
	return Max(planned,
			   idem_time_after(now, (planned - claimed_at(&own->row)) / 2, "ttl"));
}

/*
 * Until when a completed key is replayed: its response may go before it does.
 */
static TimestampTz
replayed_until(const KeyRow *row)
{
	return KeyRowTime(row, row->isnull[KEY_RESPONSE_EXPIRES_AT] ? KEY_EXPIRES_AT : KEY_RESPONSE_EXPIRES_AT);
}

/*
 * Makes the claim a completed one and writes it; until when it is replayed.
 */
static TimestampTz
record(OwnedClaim *own, const Response *response, int64 ttl)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz expires_at = expiry_at_completion(own, now, ttl);
	int64 response_ttl = idem_policy_for(own->id.operation).response_ttl;

	own->row.status = KEY_COMPLETED;
	KeyRowSet(&own->row, KEY_COMPLETED_AT, TimestampTzGetDatum(now));
	KeyRowSet(&own->row, KEY_EXPIRES_AT, TimestampTzGetDatum(expires_at));
	KeyRowSetNull(&own->row, KEY_LOCKED_UNTIL);
	KeyRowSetNull(&own->row, KEY_CLAIM_ID);
	KeyRowSetNull(&own->row, KEY_HOLD_IF_ABANDONED);
	KeyRowSetNull(&own->row, KEY_RESPONSE_EXPIRES_AT);
	if (response_ttl > 0 && response_ttl < expires_at - now)
		KeyRowSet(&own->row, KEY_RESPONSE_EXPIRES_AT, TimestampTzGetDatum(now + response_ttl));
	for (int i = 0; i < (int) lengthof(response_columns); i++)
	{
		own->row.values[response_columns[i]] = response->values[i];
		own->row.isnull[response_columns[i]] = response->isnull[i];
	}
	idem_owner_write(own, PENDING_COMPLETED);
	idem_stats_count(IDEM_COMPLETIONS, 1);
	return replayed_until(&own->row);
}

/*
 * Completes a claim that this transaction has just made with a body and
 * nothing else, and returns the row that it became; for run().
 *
 * Errors: 54000 too large.
 */
void
idem_complete_with_body(const KeyIdentity *id, text *body, KeyRow *row)
{
	OwnedClaim own;
	Response response = {.isnull = {true, true, true, true}};

	if (body != NULL)
	{
		check_size(VARSIZE_ANY_EXHDR(body));
		response.values[RESPONSE_BODY] = PointerGetDatum(body);
		response.isnull[RESPONSE_BODY] = false;
	}
	idem_owner_claim_pending(&own, id);
	if (own.completed)
		report_other_completion();
	record(&own, &response, 0);
	*row = own.row;
}

PG_FUNCTION_INFO_V1(idempotency_complete);

/*
 * SQL complete(). A recorded response is never replaced: the very same
 * completion again is a safe retry and gets the same answer, another one is
 * an error.
 *
 * Errors: those of idem_owner_claim() and read_response(); IK003 a second,
 * different completion; IK006 one that cannot be compared any more.
 */
Datum
idempotency_complete(PG_FUNCTION_ARGS)
{
	OwnedClaim own;
	Response response;
	int64 ttl;

	idem_require_writable("complete");
	read_response(&response, fcinfo);
	ttl = idem_duration(fcinfo, 8, "ttl", 1, IDEM_MAX_TTL_US, 0);
	idem_owner_claim(&own, fcinfo, 7, OWNER_COMPLETE);

	if (own.completed)
	{
		idem_report_if_redacted(&own.stored);
		if (!same_response(&response, &own.stored))
			report_other_completion();
		PG_RETURN_TIMESTAMPTZ(replayed_until(&own.stored));
	}
	PG_RETURN_TIMESTAMPTZ(record(&own, &response, ttl));
}

/*
 * Makes own->row a held one: nobody gets it until a person decides, and it
 * does not expire.
 */
static void
set_held(OwnedClaim *own)
{
	own->row.status = KEY_HELD;
	KeyRowSetNull(&own->row, KEY_LOCKED_UNTIL);
	KeyRowSet(&own->row, KEY_EXPIRES_AT, TimestampTzGetDatum(DT_NOEND));
	KeyRowSetNull(&own->row, KEY_CLAIM_ID);
	KeyRowSetNull(&own->row, KEY_HOLD_IF_ABANDONED);
}

static void
set_error(OwnedClaim *own, text *error)
{
	KeyRowSetNull(&own->row, KEY_LAST_ERROR);
	if (error != NULL)
		KeyRowSet(&own->row, KEY_LAST_ERROR, PointerGetDatum(error));
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
	IdemPolicy policy;

	idem_require_writable("fail");
	error = idem_text_argument(fcinfo, 3, "error");
	retry_in = idem_duration(fcinfo, 4, "retry_in", 0, IDEM_MAX_TTL_US, 0);
	idem_owner_claim(&own, fcinfo, 5, OWNER_OTHER);

	policy = idem_policy_for(own.id.operation);
	set_error(&own, error);
	idem_stats_count(IDEM_FAILURES, 1);
	if (policy.max_attempts > 0 &&
		DatumGetInt32(own.row.values[KEY_ATTEMPT]) >= policy.max_attempts)
	{
		/* It was the last attempt that the policy allows. */
		set_held(&own);
		idem_owner_write(&own, PENDING_HELD);
	}
	else
	{
		idem_keys_set_failed(&own.row, retry_in, policy.failed_ttl);
		idem_owner_write(&own, PENDING_FAILED);
	}
	PG_RETURN_BOOL(true);
}

PG_FUNCTION_INFO_V1(idempotency_hold);

/*
 * SQL hold(): the outcome is unknown. From here on only complete() is open to
 * the owner, and only a person may let somebody else do the work.
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
	set_error(&own, reason);
	set_held(&own);
	idem_owner_write(&own, PENDING_HELD);
	PG_RETURN_BOOL(true);
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
	int attempt;

	idem_require_writable("release");
	idem_owner_claim(&own, fcinfo, 3, OWNER_OTHER);

	if (!own.row.isnull[KEY_CHECKPOINTED_AT] &&
		KeyRowTime(&own.row, KEY_CHECKPOINTED_AT) >= claimed_at(&own.row))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot release a claim after a checkpoint"),
				 errhint("Call fail() if you know that nothing more happened, otherwise leave it to the next attempt.")));

	attempt = DatumGetInt32(own.row.values[KEY_ATTEMPT]);
	if (!own.leased || attempt == 1)
		idem_owner_delete(&own, PENDING_RELEASED);
	else
	{
		idem_keys_set_failed(&own.row, 0, idem_policy_for(own.id.operation).failed_ttl);
		KeyRowSet(&own.row, KEY_ATTEMPT, Int32GetDatum(attempt - 1));
		idem_owner_write(&own, PENDING_RELEASED);
	}
	PG_RETURN_BOOL(true);
}
