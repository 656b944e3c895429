/*-------------------------------------------------------------------------
 *
 * states.c
 *	  The life of a key: the states of its row, how it gets from one to the next,
 *	  and how a row stands at a given moment.
 *
 * Nothing is read or written here; all of it works on rows in memory. The calls
 * decide and write.
 *
 *              claim                  complete
 *   (no row) ----------> IN_PROGRESS ----------> COMPLETED
 *                         |  ^   |                  ^
 *           fail, release |  |   | hold             | complete
 *                         |  |   |                  |
 *                         v  |   '-----> HELD ------'
 *                     FAILED-' claim       |
 *                         ^                |
 *                         '----------------'
 *                          resolve('retry')
 *
 * A claim takes over from one whose lease has lapsed: IN_PROGRESS again, the next
 * attempt. fail() holds the key after the last attempt that the policy allows. An
 * abandoned claim can be resolved like a held key, and is one if its owner has asked
 * for that. redact() removes what a finished key remembers and leaves its state.
 *
 * A claim without a lease is in progress in memory alone (pending.c), so its row
 * goes from none, or FAILED, to what it becomes in one write. A release of the
 * first attempt, forget() and resolve('forget') lead back to no row.
 *
 * Time moves a row, too, without anybody writing it: it makes COMPLETED and FAILED
 * rows expire, and claims lapse. So what a row means is never its status alone,
 * but its standing at a moment: idem_state_of(). The same in SQL, for statements
 * on many rows, is in statements.c; sql/standing.sql compares the two for every
 * state and time.
 *
 * Each transition states all that the new state has, and clears what it does
 * not. What a key keeps from one attempt to the next is what nobody clears here:
 * when it was made, its token, and how far the work got.
 *
 *-------------------------------------------------------------------------
 */
#include "rows.h"

#include "utils/builtins.h"

static const char *const state_names[] = {
	[KEY_IN_PROGRESS] = "in_progress",
	[KEY_COMPLETED] = "completed",
	[KEY_FAILED] = "failed",
	[KEY_HELD] = "held",
};

static const char *const state_standings[] = {
	[STANDING_EXPIRED] = "expired",
	[STANDING_COMPLETED] = "completed",
	[STANDING_LEASED] = "leased",
	[STANDING_ABANDONED] = "abandoned",
	[STANDING_HELD] = "held",
	[STANDING_WAITING] = "waiting",
	[STANDING_FAILED] = "failed",
};

/*----------
 * What a row means
 *----------
 */

/*
 * The value of the column "status".
 */
const char *
idem_state_name(KeyStatus status)
{
	return state_names[status];
}

static bool
state_find(const char *name, KeyStatus *status)
{
	for (int i = 0; i < (int) lengthof(state_names); i++)
		if (strcmp(name, state_names[i]) == 0)
		{
			*status = (KeyStatus) i;
			return true;
		}
	return false;
}

/*
 * The status that a value of that column stands for. Only a hand can have written
 * another one.
 *
 * Errors: 55000.
 */
KeyStatus
idem_state_named(const char *name)
{
	KeyStatus status;

	if (!state_find(name, &status))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("unexpected status in table %s", IDEM_QUALIFIED_TABLE),
				 errhint("None of the calls writes it: correct or delete the row.")));
	return status;
}

/*
 * How a key stands. The one definition of what has expired, what is held and what
 * the next claim gets; compare EXPIRED(), HELD() and the others in statements.c.
 *
 * A lease in progress that is live is never cut short, and a key whose outcome
 * is unknown never expires.
 */
KeyStanding
idem_state_of(const KeyRow *row, TimestampTz now)
{
	bool over = KeyRowTime(row, KEY_EXPIRES_AT) <= now;
	bool locked = KeyRowTime(row, KEY_LOCKED_UNTIL) > now;

	switch (row->status)
	{
		case KEY_COMPLETED:
			return over ? STANDING_EXPIRED : STANDING_COMPLETED;
		case KEY_HELD:
			return STANDING_HELD;
		case KEY_FAILED:
			if (over)
				return STANDING_EXPIRED;
			return locked ? STANDING_WAITING : STANDING_FAILED;
		case KEY_IN_PROGRESS:
			if (locked)
				return STANDING_LEASED;
			if (!row->isnull[KEY_HOLD_IF_ABANDONED] &&
				DatumGetBool(row->values[KEY_HOLD_IF_ABANDONED]))
				return STANDING_HELD;
			return over ? STANDING_EXPIRED : STANDING_ABANDONED;
	}
	pg_unreachable();
}

/*
 * The lease is over, and nobody has taken the claim over yet: then it is held,
 * abandoned or expired.
 */
bool
idem_state_lapsed(const KeyRow *row, TimestampTz now)
{
	return row->status == KEY_IN_PROGRESS && KeyRowTime(row, KEY_LOCKED_UNTIL) <= now;
}

/*
 * The response was removed, or should be, while the key is kept.
 */
bool
idem_state_response_gone(const KeyRow *row, TimestampTz now)
{
	return !row->isnull[KEY_REDACTED_AT] ||
		(!row->isnull[KEY_RESPONSE_EXPIRES_AT] &&
		 KeyRowTime(row, KEY_RESPONSE_EXPIRES_AT) <= now);
}

/*
 * Hands out no response that was removed.
 *
 * Errors: IK006.
 */
void
idem_state_check_response(const KeyRow *row)
{
	if (idem_state_response_gone(row, GetCurrentTimestamp()))
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_REDACTED),
				 errmsg("the recorded response was removed"),
				 errdetail("The request was executed; it must not be executed again."),
				 errhint("Look the result up in the tables that the work has written.")));
}

/*
 * When the running attempt was claimed.
 */
TimestampTz
idem_state_claimed_at(const KeyRow *row)
{
	return KeyRowTime(row, row->isnull[KEY_CLAIMED_AT] ? KEY_CREATED_AT : KEY_CLAIMED_AT);
}

/*
 * Until when a completed key is replayed: its response may go before it does.
 */
TimestampTz
idem_state_replayed_until(const KeyRow *row)
{
	if (row->isnull[KEY_RESPONSE_EXPIRES_AT])
		return KeyRowTime(row, KEY_EXPIRES_AT);
	return KeyRowTime(row, KEY_RESPONSE_EXPIRES_AT);
}

PG_FUNCTION_INFO_V1(idempotency_key_standing);

/*
 * SQL key_standing(), for the views: what idem_state_of() says, from the four
 * columns that it looks at. NULL where one that has to be known is NULL, and for a
 * status that no key has: a row that a hand has written must not keep a monitor
 * from seeing the others.
 */
Datum
idempotency_key_standing(PG_FUNCTION_ARGS)
{
	static const KeyColumn columns[] = {
		KEY_EXPIRES_AT, KEY_LOCKED_UNTIL, KEY_HOLD_IF_ABANDONED};
	KeyRow row = {0};
	KeyStanding standing;

	if (idem_arg_is_null(fcinfo, 0) || idem_arg_is_null(fcinfo, 1) || idem_arg_is_null(fcinfo, 4) ||
		!state_find(text_to_cstring(PG_GETARG_TEXT_PP(0)), &row.status))
		PG_RETURN_NULL();
	memset(row.isnull, true, sizeof(row.isnull));
	for (int i = 0; i < (int) lengthof(columns); i++)
		if (!idem_arg_is_null(fcinfo, i + 1))
			KeyRowSet(&row, columns[i], PG_GETARG_DATUM(i + 1));
	standing = idem_state_of(&row, PG_GETARG_TIMESTAMPTZ(4));
	PG_RETURN_TEXT_P(cstring_to_text(state_standings[standing]));
}

/*----------
 * From one state to the next
 *----------
 */

/*
 * No lease, nobody's claim.
 */
static void
state_end_claim(KeyRow *row)
{
	KeyRowSetNull(row, KEY_LOCKED_UNTIL);
	KeyRowSetNull(row, KEY_LEASE_MS);
	KeyRowSetNull(row, KEY_CLAIM_ID);
	KeyRowSetNull(row, KEY_HOLD_IF_ABANDONED);
}

/*
 * An empty row for a key: everything NULL but the identity.
 */
void
idem_state_init(KeyRow *row, const KeyIdentity *id)
{
	MemSet(row, 0, sizeof(KeyRow));
	memset(row->isnull, true, sizeof(row->isnull));
	ItemPointerSetInvalid(&row->tid);
	row->status = KEY_IN_PROGRESS;
	KeyRowSet(row, KEY_SCOPE, PointerGetDatum(id->scope));
	KeyRowSet(row, KEY_OPERATION, PointerGetDatum(id->operation));
	KeyRowSet(row, KEY_KEY, PointerGetDatum(id->key));
}

/*
 * A new attempt. "old" is the row that the claim was decided on, or NULL. If that
 * has expired, a new life begins, which has nothing of the old one but its token;
 * otherwise what earlier attempts have left is kept. A claim with a lease needs a
 * token of its own; that is the caller's to set.
 *
 * Errors: 22023 out of range.
 */
void
idem_state_claim(KeyRow *row, const KeyIdentity *id, const KeyRow *old, TimestampTz now,
				 const KeyClaim *claim)
{
	if (old == NULL || idem_state_of(old, now) == STANDING_EXPIRED)
	{
		idem_state_init(row, id);
		KeyRowSet(row, KEY_CREATED_AT, TimestampTzGetDatum(now));
		KeyRowSet(row, KEY_ATTEMPT, Int32GetDatum(1));
		if (old != NULL && KeyRowToken(old) > 0)
			KeyRowSet(row, KEY_TOKEN, old->values[KEY_TOKEN]);
	}
	else
	{
		*row = *old;
		state_end_claim(row);
		KeyRowSet(row, KEY_CLAIMED_AT, TimestampTzGetDatum(now));
		KeyRowSet(row, KEY_ATTEMPT, Int32GetDatum(KeyRowAttempt(old) + 1));
		KeyRowSetNull(row, KEY_REDACTED_AT);
	}

	row->status = KEY_IN_PROGRESS;
	KeyRowSet(row, KEY_EXPIRES_AT, TimestampTzGetDatum(idem_time_after(now, claim->ttl, "ttl")));
	if (claim->fingerprint != NULL)
		KeyRowSet(row, KEY_FINGERPRINT, PointerGetDatum(claim->fingerprint));
	if (claim->claim_id != NULL)
		KeyRowSet(row, KEY_CLAIM_ID, UUIDPGetDatum(claim->claim_id));
	if (claim->note != NULL)
		KeyRowSet(row, KEY_NOTE, PointerGetDatum(claim->note));
	/* What an earlier attempt left is further on than a request. */
	if (claim->state != NULL && row->isnull[KEY_STATE])
		KeyRowSet(row, KEY_STATE, PointerGetDatum(claim->state));

	/* There is to be no attempt after the last that the policy allows. */
	if (claim->hold_if_abandoned ||
		(claim->lease > 0 && claim->max_attempts > 0 && KeyRowAttempt(row) >= claim->max_attempts))
		KeyRowSet(row, KEY_HOLD_IF_ABANDONED, BoolGetDatum(true));
	if (claim->lease > 0)
	{
		/* Rounded up: a renewal is never shorter than what was asked for. */
		KeyRowSet(row, KEY_LEASE_MS, Int64GetDatum((claim->lease + 999) / 1000));
		KeyRowSet(row, KEY_LOCKED_UNTIL,
				  TimestampTzGetDatum(idem_time_after(now, claim->lease, "lease")));
	}
}

/*
 * The lease of a claim ends so many microseconds later than now, but not earlier
 * than it does unless it may be shortened. Returns the new end.
 *
 * Errors: 22023 out of range.
 */
TimestampTz
idem_state_renew(KeyRow *row, TimestampTz now, int64 lease, bool may_shorten)
{
	TimestampTz end = idem_time_after(now, lease, "lease");

	if (!may_shorten)
		end = Max(end, KeyRowTime(row, KEY_LOCKED_UNTIL));
	KeyRowSet(row, KEY_LOCKED_UNTIL, TimestampTzGetDatum(end));
	return end;
}

/*
 * The work is done. Its response, which is the caller's to put in, may go before
 * the key; 0: it does not.
 */
void
idem_state_complete(KeyRow *row, TimestampTz now, TimestampTz expires_at, int64 response_ttl)
{
	row->status = KEY_COMPLETED;
	state_end_claim(row);
	KeyRowSet(row, KEY_COMPLETED_AT, TimestampTzGetDatum(now));
	KeyRowSet(row, KEY_EXPIRES_AT, TimestampTzGetDatum(expires_at));
	KeyRowSetNull(row, KEY_RESPONSE_EXPIRES_AT);
	if (response_ttl > 0 && response_ttl < expires_at - now)
		KeyRowSet(row, KEY_RESPONSE_EXPIRES_AT, TimestampTzGetDatum(now + response_ttl));
}

/*
 * The attempt came to nothing; the next may begin after retry_in.
 *
 * Errors: 22023 out of range.
 */
void
idem_state_fail(KeyRow *row, TimestampTz now, int64 retry_in, int64 failed_ttl)
{
	TimestampTz retry_at = idem_time_after(now, retry_in, "retry_in");

	row->status = KEY_FAILED;
	state_end_claim(row);
	if (retry_in > 0)
		KeyRowSet(row, KEY_LOCKED_UNTIL, TimestampTzGetDatum(retry_at));
	KeyRowSet(row, KEY_EXPIRES_AT,
			  TimestampTzGetDatum(idem_time_after(retry_at, failed_ttl, "retry_in")));
}

/*
 * The attempt counts as never made. It is not the first: of that nothing would
 * be left.
 *
 * Errors: 22023 out of range.
 */
void
idem_state_release(KeyRow *row, TimestampTz now, int64 failed_ttl)
{
	idem_state_fail(row, now, 0, failed_ttl);
	KeyRowSet(row, KEY_ATTEMPT, Int32GetDatum(KeyRowAttempt(row) - 1));
}

/*
 * The outcome is unknown: nobody gets the key until a person decides, and it does
 * not expire.
 */
void
idem_state_hold(KeyRow *row)
{
	row->status = KEY_HELD;
	state_end_claim(row);
	KeyRowSet(row, KEY_EXPIRES_AT, TimestampTzGetDatum(DT_NOEND));
}

/*
 * What the key remembers of its request is removed, and that it was executed is
 * kept. REDACTED in statements.c does the same for many rows.
 */
void
idem_state_redact(KeyRow *row, TimestampTz now)
{
	static const KeyColumn columns[] = {
		KEY_RESPONSE_HEADERS, KEY_RESPONSE_BODY, KEY_RESPONSE_BYTES, KEY_STATE,
		KEY_LAST_ERROR, KEY_RESPONSE_EXPIRES_AT};

	for (int i = 0; i < (int) lengthof(columns); i++)
		KeyRowSetNull(row, columns[i]);
	KeyRowSet(row, KEY_REDACTED_AT, TimestampTzGetDatum(now));
}
