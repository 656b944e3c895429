/*-------------------------------------------------------------------------
 *
 * idempotency.c
 *	  Module magic and _PG_init(), a table of contents: each room sets up
 *	  what is its own.
 *
 * The library needs no preloading. The SQL functions load it on their first
 * call in a connection.
 *
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	idem_settings_init();
	idem_keys_init();
	idem_pending_init();
}
