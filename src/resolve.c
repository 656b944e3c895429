/*-------------------------------------------------------------------------
 *
 * resolve.c
 *	  What a person does: resolve() decides about a held or abandoned key,
 *	  import_completed() brings keys over from a home-grown table.
 *
 *-------------------------------------------------------------------------
 */
#include "claims.h"
#include "rules.h"

#include "utils/builtins.h"

pg_noreturn static void
resolve_report_decision(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("decision must be 'retry' or 'forget'"),
			 errhint("If the result is known, complete() the key with its token instead;"
					 " lookup() shows it.")));
}

PG_FUNCTION_INFO_V1(idempotency_resolve);

/*
 * SQL resolve(): "retry" lets the next claim do the work, "forget" removes
 * the key. Waits for the key's lock and keeps it.
 *
 * Errors: 22023 decision; 55000 there is nothing to decide; 55P03, 40P01,
 * 54000 for the lock; 22xxx arguments.
 */
Datum
idempotency_resolve(PG_FUNCTION_ARGS)
{
	char *decision;
	bool retry;
	text *note;
	KeyIdentity id;
	PendingClaim *pending;
	PendingState state;
	KeyRow old;
	TimestampTz now;

	idem_require_writable("resolve");
	if (idem_arg_is_null(fcinfo, 3))
		resolve_report_decision();
	decision = text_to_cstring(PG_GETARG_TEXT_PP(3));
	retry = strcmp(decision, "retry") == 0;
	if (!retry && strcmp(decision, "forget") != 0)
		resolve_report_decision();
	note = idem_text_argument(fcinfo, 4, "note");
	idem_lock_identity(&id, fcinfo);

	pending = idem_owner_lock(&id);
	now = GetCurrentTimestamp();
	if (!idem_keys_find(&id, KEYS_NOW, false, &old, NULL) ||
		!(idem_state_of(&old, now) == STANDING_HELD || idem_state_lapsed(&old, now)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the key is neither held nor abandoned"),
				 errhint("lookup() shows how it stands; there is nothing to decide.")));

	if (retry)
	{
		KeyRow row = old;

		idem_state_fail(&row, now, 0, idem_policy_for(id.operation).failed_ttl);
		if (note != NULL)
			KeyRowSet(&row, KEY_NOTE, PointerGetDatum(note));
		if (!idem_keys_update(&row, &old))
			idem_report_lost_race();
	}
	else if (!idem_keys_delete(&old))
		idem_report_lost_race();

	state = *idem_pending_state(pending);
	state.status = PENDING_RELEASED;
	state.leased = true;
	idem_pending_set(pending, &state);
	PG_RETURN_BOOL(true);
}

PG_FUNCTION_INFO_V1(idempotency_import_completed);

/*
 * SQL import_completed(): puts in a key that was completed elsewhere. False,
 * and nothing changed, if it has expired already or the key is known here.
 * Takes no key lock, so a whole table can be brought over in one transaction.
 *
 * Errors: 22004, 22001, 22023 arguments; 54000 too large; 25006 read-only.
 */
Datum
idempotency_import_completed(PG_FUNCTION_ARGS)
{
	static const KeyColumn times[] = {KEY_CREATED_AT, KEY_COMPLETED_AT, KEY_EXPIRES_AT};
	TimestampTz now = GetCurrentTimestamp();
	IdemResponse response;
	bytea *fingerprint;
	KeyIdentity id;
	KeyRow row;
	KeyRow old;
	PendingClaim *pending;

	idem_require_writable("import_completed");
	idem_lock_identity(&id, fcinfo);
	idem_response_read(&response, fcinfo, 3);
	fingerprint = idem_fingerprint_argument(fcinfo, 10, 11);
	idem_state_init(&row, &id);
	row.status = KEY_COMPLETED;
	KeyRowSet(&row, KEY_ATTEMPT, Int32GetDatum(1));
	idem_response_put(&response, &row);
	if (fingerprint != NULL)
		KeyRowSet(&row, KEY_FINGERPRINT, PointerGetDatum(fingerprint));
	for (int i = 0; i < (int) lengthof(times); i++)
		if (!idem_arg_is_null(fcinfo, 7 + i))
			KeyRowSet(&row, times[i], PG_GETARG_DATUM(7 + i));
	if (row.isnull[KEY_COMPLETED_AT])
	{
		if (row.isnull[KEY_CREATED_AT])
			KeyRowSet(&row, KEY_COMPLETED_AT, TimestampTzGetDatum(now));
		else
			KeyRowSet(&row, KEY_COMPLETED_AT, row.values[KEY_CREATED_AT]);
	}
	if (row.isnull[KEY_CREATED_AT])
		KeyRowSet(&row, KEY_CREATED_AT, row.values[KEY_COMPLETED_AT]);
	if (row.isnull[KEY_EXPIRES_AT])
	{
		TimestampTz expires_at = idem_time_after(KeyRowTime(&row, KEY_CREATED_AT),
												 idem_policy_for(id.operation).ttl, "expires_at");

		KeyRowSet(&row, KEY_EXPIRES_AT, TimestampTzGetDatum(expires_at));
	}

	if (!IS_VALID_TIMESTAMP(KeyRowTime(&row, KEY_CREATED_AT)) ||
		!IS_VALID_TIMESTAMP(KeyRowTime(&row, KEY_COMPLETED_AT)) ||
		!IS_VALID_TIMESTAMP(KeyRowTime(&row, KEY_EXPIRES_AT)) ||
		TIMESTAMP_NOT_FINITE(KeyRowTime(&row, KEY_CREATED_AT)) ||
		TIMESTAMP_NOT_FINITE(KeyRowTime(&row, KEY_COMPLETED_AT)) ||
		KeyRowTime(&row, KEY_COMPLETED_AT) < KeyRowTime(&row, KEY_CREATED_AT) ||
		KeyRowTime(&row, KEY_COMPLETED_AT) > now ||
		KeyRowTime(&row, KEY_EXPIRES_AT) > idem_time_after(now, IDEM_MAX_TTL_US, "expires_at"))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("created_at, completed_at and expires_at do not fit together"),
				 errhint("The key was created, then completed, not later than now,"
						 " and expires within \"idempotency.max_ttl\".")));
	if (KeyRowTime(&row, KEY_EXPIRES_AT) <= now)
		PG_RETURN_BOOL(false);

	/* A claim that so far is only in memory makes the key known, too. */
	pending = idem_pending_find(&id);
	if (pending != NULL && idem_pending_state(pending)->status == PENDING_OPEN)
		PG_RETURN_BOOL(false);
	if (!idem_keys_find(&id, KEYS_NOW, false, &old, NULL) ||
		idem_state_of(&old, now) != STANDING_EXPIRED)
		PG_RETURN_BOOL(idem_keys_insert_if_absent(&row));

	/* What has expired is not known; its token must be outdated all the same. */
	if (!old.isnull[KEY_TOKEN])
		KeyRowSet(&row, KEY_TOKEN, Int64GetDatum(idem_keys_next_token(KeyRowToken(&old))));
	PG_RETURN_BOOL(idem_keys_update(&row, &old) || idem_keys_insert_if_absent(&row));
}
