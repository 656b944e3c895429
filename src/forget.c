/*-------------------------------------------------------------------------
 *
 * forget.c
 *	  Deleting keys on purpose: forget() one, forget_scope() a tenant's.
 *
 * A forgotten request is executed again when it is repeated. So a key whose
 * work is under way, or of unknown outcome, goes only with force: "clearing
 * stuck keys" is a way to charge somebody twice.
 *
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

PG_FUNCTION_INFO_V1(idempotency_forget);

/*
 * SQL forget(): true if there was a live key. Waits for the key's lock and
 * keeps it, so that no claim can come between.
 *
 * Errors: 55006 in progress, IK005 held, both without force; 55P03, 40P01,
 * 54000 for the lock; 22xxx arguments.
 */
Datum
idempotency_forget(PG_FUNCTION_ARGS)
{
	bool force = !PG_ARGISNULL(3) && PG_GETARG_BOOL(3);
	KeyIdentity id;
	PendingClaim *pending;
	PendingState state = {0};
	KeyRow row;
	bool found;
	bool live;
	TimestampTz now;

	idem_require_writable("forget");
	idem_identity(&id, fcinfo);
	pending = idem_pending_find(&id);
	if (pending == NULL)
	{
		idem_pending_check_limit();
		idem_lock_wait(&id);
		pending = idem_pending_keep(&id);
	}
	state = *idem_pending_state(pending);
	found = idem_keys_find(&id, KEYS_NOW, false, &row, NULL);
	now = GetCurrentTimestamp();

	if (!force && found && idem_keys_held(&row, now))
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_HELD),
				 errmsg("the key is held because the outcome of its work is unknown"),
				 errhint("Find out what happened first. With force the key goes all the same, and a repeat does the work again.")));
	if (!force &&
		(state.status == PENDING_OPEN ||
		 (found && row.status == KEY_IN_PROGRESS && !idem_keys_expired(&row, now))))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("the key is in progress"),
				 errhint("Wait for its end. With force the key goes all the same, and a repeat does the work again.")));

	live = state.status == PENDING_OPEN ||
		(found && !idem_keys_expired(&row, now));
	if (found && !idem_keys_delete(&row))
		idem_report_lost_race();
	state.status = PENDING_RELEASED;
	idem_pending_set(pending, &state);
	PG_RETURN_BOOL(live);
}

PG_FUNCTION_INFO_V1(idempotency_forget_scope);

/*
 * SQL forget_scope(): how many rows went. Takes no key locks: a scope may
 * have more keys than the lock table has places.
 *
 * Errors: 22004, 22023, 22001 scope.
 */
Datum
idempotency_forget_scope(PG_FUNCTION_ARGS)
{
	bool force = !PG_ARGISNULL(1) && PG_GETARG_BOOL(1);

	idem_require_writable("forget_scope");
	PG_RETURN_INT64(idem_keys_delete_scope(idem_scope_argument(fcinfo), force));
}
