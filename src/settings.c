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
#include "utils/varlena.h"

#define DAY_S (24 * 60 * 60)
#define MINUTE_MS (60 * 1000)

int idem_default_ttl = DAY_S;
int idem_failed_ttl = DAY_S;
int idem_once_ttl = 30 * DAY_S;
int idem_default_lease = MINUTE_MS;
int idem_max_ttl = 366 * DAY_S;
int idem_max_wait = MINUTE_MS;
int idem_once_wait = 5000;
int idem_max_waiters = 32;
int idem_max_waiters_per_key = 4;
int idem_max_retry_after = 5000;
int idem_max_key_length = 255;
int idem_max_claims_per_transaction = 1000;
int idem_max_response_size = 4 * 1024;
bool idem_require_binding = false;
char *idem_home_table = NULL;
bool idem_track = true;
bool idem_cleanup_enabled = true;
int idem_cleanup_interval = 60 * 60;
int idem_cleanup_batch_size = 100;
int idem_cleanup_pause = 5;
char *idem_cleanup_skip_databases = NULL;
int idem_warn_expired = 100000;
int idem_warn_abandoned = 1;
int idem_warn_held = 1;
int idem_warn_keys = 10000000;
int idem_warn_table_size = 10 * 1024;
int idem_warn_dead_percent = 20;

/* What health() warns of, from which number on; 0 switches a check off. */
static const struct
{
	const char *name;
	const char *meaning;
	int *variable;
	int boot_value;
	int flags;
} thresholds[] = {
	{"idempotency.warn_expired",
	 "Number of expired keys, not yet deleted, from which health() warns.",
	 &idem_warn_expired, 100000, 0},
	{"idempotency.warn_abandoned",
	 "Number of abandoned claims from which health() warns.",
	 &idem_warn_abandoned, 1, 0},
	{"idempotency.warn_held",
	 "Number of held keys from which health() warns.",
	 &idem_warn_held, 1, 0},
	{"idempotency.warn_keys",
	 "Estimated number of keys from which health() warns.",
	 &idem_warn_keys, 10000000, 0},
	{"idempotency.warn_table_size",
	 "Size of table and indexes from which health() warns.",
	 &idem_warn_table_size, 10 * 1024, GUC_UNIT_MB},
	{"idempotency.warn_dead_percent",
	 "Percentage of dead rows from which health() warns.",
	 &idem_warn_dead_percent, 20, 0},
};

/*
 * A list of names has to be one.
 */
static bool
setting_check_name_list(char **value, void **extra pg_attribute_unused(),
						GucSource source pg_attribute_unused())
{
	List *names;

	if (!SplitGUCList(pstrdup(*value), ',', &names))
	{
		GUC_check_errdetail("List syntax is invalid.");
		return false;
	}
	list_free(names);
	return true;
}

/*
 * Two settings forbid what their defaults allow.
 *
 * Not preloaded, such a setting is anybody's until the library is loaded: a
 * value given at the start of a connection (PGOPTIONS) hides what the
 * superuser set for the database or in postgresql.conf, and is then refused,
 * which leaves the default. What that allows would so be for everybody to
 * choose. Who tries that, gets what forbids most for the rest of the connection.
 *
 * This says whether the setting that is being defined was decided, one way or the
 * other, by somebody who may. Hooks are only asked about values that passed the
 * check of privileges.
 */
static bool setting_decided;

static bool
setting_check_require_binding(bool *value pg_attribute_unused(), void **extra pg_attribute_unused(),
							  GucSource source)
{
	if (source != PGC_S_DEFAULT)
		setting_decided = true;
	return true;
}

static void
setting_define_require_binding(void)
{
	static const char *const name = "idempotency.require_binding";
	bool given = setting_is_given_compat(name);

	setting_decided = false;
	DefineCustomBoolVariable(name,
							 "Let roles without a binding use no scope.",
							 "Superusers need none. See bind_role().",
							 &idem_require_binding,
							 false,
							 PGC_SUSET, 0,
							 setting_check_require_binding, NULL, NULL);
	if (given && !setting_decided)
		SetConfigOption(name, "on", PGC_SUSET, PGC_S_OVERRIDE);
}

/*
 * The name of a table has to have its schema: the search path may be anybody's.
 */
static bool
setting_check_home_table(char **value, void **extra pg_attribute_unused(), GucSource source)
{
	List *names;

	if (source != PGC_S_DEFAULT)
		setting_decided = true;
	if (**value == '\0')
		return true;
	if (!SplitIdentifierString(pstrdup(*value), '.', &names) || list_length(names) != 2)
	{
		GUC_check_errdetail("It has to be a table's name with its schema.");
		return false;
	}
	list_free(names);
	return true;
}

static void
setting_define_home_table(void)
{
	static const char *const name = "idempotency.home_table";
	bool given = setting_is_given_compat(name);

	setting_decided = false;
	DefineCustomStringVariable(name,
							   "Table of Citus that says on which node the keys of a scope are"
							   " kept.",
							   "Its distribution column holds the scope. Elsewhere the scope is"
							   " refused. Empty: on this one.",
							   &idem_home_table,
							   "",
							   PGC_SUSET, 0,
							   setting_check_home_table, NULL, NULL);

	/* No table, so every scope is refused. */
	if (given && !setting_decided)
		SetConfigOption(name, "pg_catalog.unknown", PGC_SUSET, PGC_S_OVERRIDE);
}

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

	DefineCustomIntVariable("idempotency.once_ttl",
							"How long once() and once_batch() remember a key when the call does"
							" not say.",
							NULL,
							&idem_once_ttl,
							30 * DAY_S, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_S,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.default_lease",
							"Length of a lease that extend() and checkpoint() renew without"
							" being told a length.",
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

	DefineCustomIntVariable("idempotency.once_wait",
							"How long once() waits for an undecided rival"
							" when the call does not say.",
							NULL,
							&idem_once_wait,
							5000, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.max_waiters",
							"Most connections of the server that wait for a rival at one time.",
							"One more gets its answer at once. Zero means no limit."
							" Needs the library to be preloaded.",
							&idem_max_waiters,
							32, 0, INT_MAX,
							PGC_SUSET, 0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.max_waiters_per_key",
							"Most connections that wait for one key at one time.",
							"One more gets its answer at once. Zero means no limit."
							" Needs the library to be preloaded.",
							&idem_max_waiters_per_key,
							4, 0, INT_MAX,
							PGC_SUSET, 0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.max_retry_after",
							"Largest retry_after_ms that a claim names while another's lease"
							" lasts.",
							"Work is most often done long before its lease ends;"
							" locked_until says when that is.",
							&idem_max_retry_after,
							5000, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.max_key_length",
							"Longest scope, operation or key, each.",
							NULL,
							&idem_max_key_length,
							255, 1, IDEM_KEY_LENGTH_BOUND,
							PGC_SUSET, GUC_UNIT_BYTE,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.max_claims_per_transaction",
							"Most keys that one transaction may claim or decide about.",
							"Each takes a place in the server's lock table until the transaction"
							" ends.",
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

	setting_define_require_binding();
	setting_define_home_table();

	DefineCustomBoolVariable("idempotency.track",
							 "Count claims, replays and the rest for the view \"stats\".",
							 "Needs the library to be preloaded.",
							 &idem_track,
							 true,
							 PGC_SUSET, 0,
							 NULL, NULL, NULL);

	DefineCustomBoolVariable("idempotency.cleanup_enabled",
							 "Let the background worker delete expired keys.",
							 "Needs the library to be preloaded.",
							 &idem_cleanup_enabled,
							 true,
							 PGC_SIGHUP, 0,
							 NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.cleanup_interval",
							"Time from one clean-up of all databases to the next.",
							NULL,
							&idem_cleanup_interval,
							60 * 60, 1, INT_MAX / 1000,
							PGC_SIGHUP, GUC_UNIT_S,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.cleanup_batch_size",
							"Most rows that clean-up deletes in one transaction.",
							"A claim that commits meanwhile waits until they are flushed.",
							&idem_cleanup_batch_size,
							100, 1, 1000000,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);

	DefineCustomIntVariable("idempotency.cleanup_pause",
							"Pause of clean-up between two batches.",
							NULL,
							&idem_cleanup_pause,
							5, 0, 2000,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomStringVariable("idempotency.cleanup_skip_databases",
							   "Databases that the background worker leaves alone.",
							   "A list of names, separated by commas.",
							   &idem_cleanup_skip_databases,
							   "",
							   PGC_SIGHUP, GUC_LIST_INPUT,
							   setting_check_name_list, NULL, NULL);

	for (int i = 0; i < (int) lengthof(thresholds); i++)
		DefineCustomIntVariable(thresholds[i].name,
								thresholds[i].meaning,
								"Zero switches the check off.",
								thresholds[i].variable,
								thresholds[i].boot_value, 0, INT_MAX,
								PGC_USERSET, thresholds[i].flags,
								NULL, NULL, NULL);

	MarkGUCPrefixReserved("idempotency");
}
