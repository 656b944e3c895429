/*-------------------------------------------------------------------------
 *
 * execute.c
 *	  How this extension executes SQL: as the owner of its tables, with
 *	  nothing of the caller's in the way.
 *
 * The caller has no privilege on the tables, only on the functions. So for
 * the length of a statement the user is the tables' owner (as ri_triggers.c
 * does it), under a security context in which SET ROLE is refused. An error
 * needs no clean-up here: abort of the (sub)transaction puts the user back
 * (xact.c), and pops the search path.
 *
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

#include "miscadmin.h"


/*
 * Becomes the owner of the tables, connected to SPI and with a search path of
 * pg_catalog alone. To be paired with idem_owner_leave(), before which results
 * have to be copied out.
 */
void
idem_become(IdemIdentity *before, Oid owner)
{
	GetUserIdAndSecContext(&before->user, &before->context);
	SetUserIdAndSecContext(owner, before->context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_NOFORCE_RLS);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	push_fixed_search_path();
}

void
idem_unbecome(const IdemIdentity *before)
{
	pop_fixed_search_path();
	SPI_finish();
	SetUserIdAndSecContext(before->user, before->context);
}

/*
 * Executes a statement that is too rare to keep a plan for, and returns the
 * number of rows that it touched.
 */
uint64
idem_execute_as(Oid owner, const char *sql, int nargs, Oid *types, Datum *values,
				const char *nulls)
{
	IdemIdentity before;
	uint64 processed;
	int result;

	idem_become(&before, owner);
	result = SPI_execute_with_args(sql, nargs, types, values, nulls, false, 0);
	if (result < 0)
		elog(ERROR, "SPI_execute_with_args failed: %s", SPI_result_code_string(result));
	processed = SPI_processed;
	idem_unbecome(&before);
	return processed;
}
