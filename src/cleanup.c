/*-------------------------------------------------------------------------
 *
 * cleanup.c
 *	  Deleting expired keys of this database.
 *
 * Expiry does not depend on it: an expired key counts as absent whether or
 * not it has been deleted. Clean-up only gives the space back.
 *
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

#include "miscadmin.h"

/* Rows per statement: few enough to be interrupted between two of them. */
#define BATCH 10000

PG_FUNCTION_INFO_V1(idempotency_cleanup);

/*
 * SQL cleanup(): deletes here and now, in the caller's transaction, and says
 * how many. Skips what others are writing.
 *
 * Errors: 22023 negative arguments; 25006 read-only.
 */
Datum
idempotency_cleanup(PG_FUNCTION_ARGS)
{
	int64 older_than;
	int64 left = PG_ARGISNULL(1) ? PG_INT64_MAX : PG_GETARG_INT64(1);
	int64 deleted = 0;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz before;

	idem_require_writable("cleanup");
	older_than = idem_duration(fcinfo, 0, "older_than", 0, PG_INT64_MAX, 0);
	if (left < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_rows must not be negative"),
				 errhint("Leave it out to delete everything that has expired.")));
	before = idem_time_after(now, -older_than, "older_than");

	while (left > 0)
	{
		int64 batch = Min(left, BATCH);
		int64 gone = idem_keys_delete_expired(before, now, batch);

		deleted += gone;
		left -= gone;
		if (gone < batch)
			break;
		CHECK_FOR_INTERRUPTS();
	}
	PG_RETURN_INT64(deleted);
}
