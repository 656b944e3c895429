/*-------------------------------------------------------------------------
 *
 * errors.c
 *	  Errors that several calls raise, worded once.
 *
 * What a single file raises stands there. No message shows a key, a request
 * or a response: messages reach logs.
 *
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

/*
 * Errors: IK005, always.
 */
void
idem_report_held(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_IDEM_HELD),
			 errmsg("the key is held because the outcome of its work is unknown"),
			 errhint("Find out what happened, then complete() it with its token or let an operator decide.")));
}

/*
 * The unique index had the key though we hold its lock: a caller that takes
 * no key locks was faster.
 */
void
idem_report_lost_race(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
			 errmsg("the key was written by a concurrent transaction"),
			 errhint("Retry the transaction.")));
}

/*
 * A trigger or a rule on the table has swallowed a row. The work must not be
 * committed without it.
 */
void
idem_report_not_written(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the key was not written to table %s.%s",
					IDEM_SCHEMA_NAME, IDEM_KEYS_TABLE),
			 errhint("Remove the trigger or rule on it that keeps rows out.")));
}
