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

#include "access/xact.h"
#include "utils/resowner.h"

/*
 * Errors: IK005, always.
 */
void
idem_report_held(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_IDEM_HELD),
			 errmsg("the key is held because the outcome of its work is unknown"),
			 errhint("Find out what happened,"
					 " then complete() it with its token or let an operator decide.")));
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
			 errmsg("the key was not written to table %s.idempotency_keys", IDEM_SCHEMA_NAME),
			 errhint("Remove the trigger or rule on it that keeps rows out.")));
}

/*
 * The result type that the SQL script declares may be an older one, which has the
 * first so many columns; a newer one has columns that this library does not know.
 *
 * Errors: 55000.
 */
void
idem_check_result_columns(int declared, int known)
{
	if (declared > known)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the library of extension \"%s\" is older than its SQL objects",
						IDEM_EXTENSION_NAME),
				 errhint("Install the current library and reconnect.")));
}

/*
 * Does something that may raise an error, and returns that, in the current memory
 * context, or NULL if there was none.
 *
 * The action runs in a subtransaction, which is rolled back before the caller may
 * raise anything: left open it would make the user's next ROLLBACK fail. What the
 * action has done to other memory than the database's, it has to undo itself.
 */
ErrorData *
idem_catch(void (*action)(void *state), void *state)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		MemoryContextSwitchTo(context);
		action(state);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error;
}
