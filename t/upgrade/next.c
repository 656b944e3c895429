/*
 * next.c
 *	  A call of the next release, which exists only for t/070_upgrade.pl.
 */
#include "idempotency.h"

PG_FUNCTION_INFO_V1(idempotency_next);

Datum
idempotency_next(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	PG_RETURN_INT32(11);
}
