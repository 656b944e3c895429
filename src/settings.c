/*-------------------------------------------------------------------------
 *
 * settings.c
 *	  Every idempotency.* setting: its default, bounds, unit and meaning.
 *
 * Lifetimes are for anybody to set: they are only what a call would have
 * given. Limits protect the server and other tenants, so they are for the
 * superuser (or a role granted SET on them).
 *
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

#include <limits.h>

#include "utils/guc.h"

#define DAY_S (24 * 60 * 60)
#define MINUTE_MS (60 * 1000)

/*
 * Three texts of this many bytes, with their headers, fit into a btree entry
 * of an 8 kB page (2704 bytes, nbtree.h BTMaxItemSize).
 */
#define KEY_LENGTH_BOUND 880

int idem_default_ttl = DAY_S;
int idem_failed_ttl = DAY_S;
int idem_default_lease = MINUTE_MS;
int idem_max_ttl = 366 * DAY_S;
int idem_max_wait = MINUTE_MS;
int idem_max_key_length = 255;
int idem_max_claims_per_transaction = 1000;
int idem_max_response_size = 4 * 1024;

void
idem_settings_init(void)
{
	DefineCustomIntVariable("idempotency.default_ttl",
							"How long a key is remembered when the call does not say.",
							"Counted from the claim.",
							&idem_default_ttl,
							DAY_S, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_S,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.failed_ttl",
							"How long a failed key is remembered.",
							"Counted from the failure, or from the end of its retry_in.",
							&idem_failed_ttl,
							DAY_S, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_S,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.default_lease",
							"Length of a lease that extend() renews without being told a length.",
							NULL,
							&idem_default_lease,
							MINUTE_MS, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.max_ttl",
							"Longest lifetime or lease that a call may ask for.",
							NULL,
							&idem_max_ttl,
							366 * DAY_S, 1, INT_MAX,
							PGC_SUSET, GUC_UNIT_S,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.max_wait",
							"Longest time that a claim waits for a rival, whatever it asks for.",
							"Zero forbids waiting.",
							&idem_max_wait,
							MINUTE_MS, 0, INT_MAX,
							PGC_SUSET, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.max_key_length",
							"Longest scope, operation or key, each.",
							NULL,
							&idem_max_key_length,
							255, 1, KEY_LENGTH_BOUND,
							PGC_SUSET, GUC_UNIT_BYTE,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.max_claims_per_transaction",
							"Most keys that one transaction may claim or decide about.",
							"Each takes a place in the server's lock table until the transaction ends.",
							&idem_max_claims_per_transaction,
							1000, 1, INT_MAX,
							PGC_SUSET, 0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.max_response_size",
							"Largest response: body and headers together.",
							NULL,
							&idem_max_response_size,
							4 * 1024, 0, 1000 * 1024,
							PGC_SUSET, GUC_UNIT_KB,
							NULL, NULL, NULL);

	MarkGUCPrefixReserved("idempotency");
}
