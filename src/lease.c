/*-------------------------------------------------------------------------
 *
 * lease.c
 *	  Keeping a committed claim alive: extend(), the heartbeat.
 *
 * A lease that has lapsed may be renewed as long as nobody has taken the
 * claim over; the token tells.
 *
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

PG_FUNCTION_INFO_V1(idempotency_extend);

/*
 * SQL extend(): the lease ends so much later than now.
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
	lease = idem_duration(fcinfo, 3, "lease", 1, IDEM_MAX_TTL_US,
						  idem_setting_duration(idem_default_lease *
												INT64CONST(1000)));
	idem_owner_claim(&own, fcinfo, 4, OWNER_OTHER);
	if (!own.leased)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the claim has no lease"),
				 errhint("It lasts as long as its transaction. For work outside the database, claim with a lease.")));

	end = idem_time_after(GetCurrentTimestamp(), lease, "lease");
	KeyRowSet(&own.row, KEY_LOCKED_UNTIL, TimestampTzGetDatum(end));
	idem_owner_write(&own, PENDING_OPEN);
	PG_RETURN_TIMESTAMPTZ(end);
}
