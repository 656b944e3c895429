/*-------------------------------------------------------------------------
 *
 * idempotency.c
 *	  Module magic and _PG_init(), a table of contents: each room sets up
 *	  what is its own.
 *
 * The library needs no preloading: SQL functions load it on their first call
 * in a connection. Preloaded, it also has shared memory (counters, wake-ups)
 * and the background worker.
 *
 *-------------------------------------------------------------------------
 */
#include "claims.h"
#include "rows.h"
#include "server.h"

PG_MODULE_MAGIC_compat("idempotency", IDEMPOTENCY_VERSION);

PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	idem_settings_init();
	idem_member_init();
	idem_table_init();
	idem_commit_init();
	idem_wake_init();
	idem_shared_init();
	idem_worker_init();
}
