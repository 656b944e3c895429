/*-------------------------------------------------------------------------
 *
 * health.c
 *	  health(): is everything as it should be in this database? One row per
 *	  check, each with its value and the threshold that it was held against.
 *
 * Fast on any number of keys: counts walk an index and stop once they have
 * seen enough to be critical, sizes and numbers of rows come from the
 * catalogs and the statistics. The thresholds are the settings
 * idempotency.warn_*; at ten times as much a check is critical.
 *
 *-------------------------------------------------------------------------
 */
#include "rows.h"
#include "rules.h"
#include "server.h"

#include "access/table.h"
#include "commands/extension.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#define CRITICAL_FACTOR 10

typedef struct Health
{
	Tuplestorestate *store;
	TupleDesc desc;
} Health;

static void
health_report(Health *health, const char *check, const char *status, bool has_value,
			  int64 value, int64 threshold, const char *detail)
{
	Datum values[5];
	bool isnull[5] = {false, false, !has_value, threshold <= 0, detail == NULL};

	values[0] = CStringGetTextDatum(check);
	values[1] = CStringGetTextDatum(status);
	values[2] = Int64GetDatum(value);
	values[3] = Int64GetDatum(threshold);
	values[4] = detail != NULL ? CStringGetTextDatum(detail) : (Datum) 0;
	tuplestore_putvalues(health->store, health->desc, values, isnull);
}

/*
 * A number that should stay below a threshold.
 */
static void
health_report_number(Health *health, const char *check, int64 value, int64 threshold,
					 const char *what_to_do)
{
	const char *status = "ok";

	if (threshold > 0 && value >= threshold)
		status = value / CRITICAL_FACTOR >= threshold ? "critical" : "warn";
	health_report(health, check, status, true, value, threshold,
				  strcmp(status, "ok") != 0 ? what_to_do : NULL);
}

/*
 * The number that a query returns, asked as the owner of one of our tables.
 */
static int64
health_number_on(const char *table, const char *sql)
{
	int64 result;

	idem_execute_on(table, sql, 0, NULL, NULL, NULL, &result);
	return result;
}

/*
 * How many keys stand so; counting stops where the check is critical anyway.
 */
static int64
health_count_keys(KeyCount what, int threshold)
{
	return idem_keys_count(what, GetCurrentTimestamp(),
						   (int64) Max(threshold, 1) * CRITICAL_FACTOR + 1);
}

/* Numbers that the catalogs and the statistics have, against their settings. */
static const int health_no_grant = 1;
static const struct
{
	const char *check;
	const char *sql;
	const int *threshold;
	const char *what_to_do;
} health_numbers[] = {
	{"number_of_keys",
	 "SELECT GREATEST(c.reltuples, 0)::pg_catalog.int8 FROM pg_catalog.pg_class AS c"
	 " WHERE c.oid OPERATOR(pg_catalog.=) 'idempotency.idempotency_keys'::pg_catalog.regclass",
	 &idem_warn_keys,
	 "Estimated number of keys: shorten lifetimes, or plan for the size."},
	{"table_size",
	 "SELECT pg_catalog.pg_total_relation_size('idempotency.idempotency_keys'::pg_catalog.regclass)"
	 " OPERATOR(pg_catalog./) 1048576::pg_catalog.int8",
	 &idem_warn_table_size,
	 "Megabytes of table and indexes: shorten lifetimes or response_ttl, or plan for the size."},
	{"dead_rows",
	 "SELECT CASE WHEN s.n_live_tup OPERATOR(pg_catalog.+) s.n_dead_tup OPERATOR(pg_catalog.<)"
	 " 10000"
	 " THEN 0 ELSE 100 OPERATOR(pg_catalog.*) s.n_dead_tup"
	 " OPERATOR(pg_catalog./) (s.n_live_tup OPERATOR(pg_catalog.+) s.n_dead_tup)"
	 " END::pg_catalog.int8"
	 " FROM pg_catalog.pg_stat_all_tables AS s"
	 " WHERE s.relid OPERATOR(pg_catalog.=) 'idempotency.idempotency_keys'::pg_catalog.regclass",
	 &idem_warn_dead_percent,
	 "Percentage of dead rows: autovacuum does not keep up, or an old transaction holds it back."},
	{"trigger_privileges",
	 "SELECT pg_catalog.count(*) FROM pg_catalog.pg_class AS c,"
	 " LATERAL pg_catalog.aclexplode(c.relacl) AS a"
	 " WHERE c.relnamespace OPERATOR(pg_catalog.=)"
	 " 'idempotency'::pg_catalog.regnamespace::pg_catalog.oid"
	 " AND a.privilege_type OPERATOR(pg_catalog.=) 'TRIGGER'::pg_catalog.text"
	 " AND a.grantee OPERATOR(pg_catalog.<>) c.relowner",
	 &health_no_grant,
	 "Somebody was granted TRIGGER on a table of the extension,"
	 " which is as good as being its owner: revoke it."},
};

/*
 * What keeps calls from using the small tables beside, or NULL.
 */
static const char *
health_problem_beside(void)
{
	static const char *const names[] = {"lock_secret", "policies", "role_bindings", "cleanup_runs"};

	for (int i = 0; i < (int) lengthof(names); i++)
	{
		Relation table = idem_member_try_open(names[i]);

		if (table == NULL)
			return psprintf("table %s.%s does not exist. It was renamed or dropped; restore it.",
							IDEM_SCHEMA_NAME, names[i]);
		table_close(table, NoLock);
	}
	if (health_number_on("lock_secret",
						 "SELECT pg_catalog.count(*) FROM idempotency.lock_secret") == 0)
		return psprintf("table %s.lock_secret is empty. Put a secret back:"
						" INSERT INTO %s.lock_secret DEFAULT VALUES.",
						IDEM_SCHEMA_NAME, IDEM_SCHEMA_NAME);
	return NULL;
}

/*
 * Whether the table is one that keys can be kept in, and what calls need beside is
 * there. While it is not, they fail, and so would the checks that count rows.
 */
static bool
health_check_table(Health *health)
{
	IdemTableProblem problem;
	const char *detail;

	if (idem_table_problem(&problem))
		detail = psprintf("%s. %s", problem.message, problem.hint);
	else
		detail = health_problem_beside();
	health_report(health, "table", detail != NULL ? "critical" : "ok", false, 0, 0, detail);
	return detail == NULL;
}

static void
health_check_worker(Health *health)
{
	pid_t pid;
	bool lacking;

	if (idem_shared == NULL)
	{
		health_report(health, "worker", "warn", false, 0, 0,
					  "The library is not preloaded: no background worker, no statistics. "
					  "Add \"idempotency\" to \"shared_preload_libraries\","
					  " or clean up by schedule_cleanup().");
		return;
	}
	LWLockAcquire(idem_shared->lock, LW_SHARED);
	pid = idem_shared->launcher_pid;
	lacking = idem_shared->workers_lacking;
	LWLockRelease(idem_shared->lock);
	if (RecoveryInProgress())
		health_report(health, "worker", "ok", false, 0, 0,
					  "This server is a standby: clean-up runs on the primary.");
	else if (!idem_cleanup_enabled)
		health_report(health, "worker", "warn", false, 0, 0,
					  "Switched off by \"idempotency.cleanup_enabled\".");
	else if (pid == 0)
		health_report(health, "worker", "critical", false, 0, 0,
					  "The launcher is not running. Is \"max_worker_processes\" large enough?"
					  " The server log says more.");
	else if (lacking)
		health_report(health, "worker", "critical", true, pid, 0,
					  "No free slot for a background process: raise \"max_worker_processes\".");
	else
		health_report(health, "worker", "ok", true, pid, 0, NULL);
}

/*
 * When clean-up last ran here, by whomever: seconds ago, against three
 * intervals. Where it has never run, what matters is whether anything has been
 * waiting for it that long: a fresh database has not had the time.
 */
static void
health_check_last_cleanup(Health *health)
{
	int64 threshold = (int64) idem_cleanup_interval * 3;
	int64 age = health_number_on("cleanup_runs",
								 "SELECT COALESCE((SELECT pg_catalog.date_part('epoch',"
								 " pg_catalog.clock_timestamp()"
								 " OPERATOR(pg_catalog.-) r.finished_at)"
								 " FROM idempotency.cleanup_runs AS r WHERE r.sqlstate IS NULL"
								 " ORDER BY r.id DESC LIMIT 1)::pg_catalog.int8,"
								 " (-1)::pg_catalog.int8)");
	IdemCleanup last = {0};

	if (idem_stats_last_cleanup(&last) && last.failed)
		health_report(health, "last_cleanup", "critical", age >= 0, age, threshold, last.message);
	else if (age > threshold)
		health_report(health, "last_cleanup", "warn", true, age, threshold,
					  "Seconds since the last clean-up; it should run more often.");
	else if (age >= 0)
		health_report(health, "last_cleanup", "ok", true, age, threshold, NULL);
	else if (idem_keys_count(KEYS_EXPIRED,
							 GetCurrentTimestamp() - threshold * USECS_PER_SEC, 1) > 0)
		health_report(health, "last_cleanup", "warn", false, 0, threshold,
					  "No clean-up has run here yet,"
					  " though keys have been expired for longer than the threshold.");
	else
		health_report(health, "last_cleanup", "ok", false, 0, threshold,
					  "No clean-up has run here yet, and nothing has been waiting for it.");
}

/* More scopes are not looked at: each costs a probe of the index. */
#define MOST_SCOPES 10000

/*
 * Where Citus is: whether calls are kept to the node of their rows, and how many
 * scopes have left keys behind on this one. Only there, or where somebody counts on
 * it.
 */
static void
health_check_home(Health *health)
{
	bool citus = OidIsValid(get_extension_oid("citus", true));
	text *scope = cstring_to_text("");
	int64 strays = 0;
	const char *problem;

	if (!idem_have_homes())
	{
		if (citus && health_number_on(IDEM_KEYS_TABLE, "SELECT pg_catalog.count(*)"
													   " FROM pg_catalog.pg_dist_shard") > 0)
			health_report(health, "home", "warn", false, 0, 0,
						  "\"idempotency.home_table\" is not set: a call that Citus did not send"
						  " to the node of its rows is not refused.");
		else if (citus)
			health_report(health, "home", "ok", false, 0, 0, "Citus has no shards here.");
		return;
	}
	problem = idem_home_problem();
	if (problem != NULL)
	{
		health_report(health, "home", "critical", false, 0, 0,
					  psprintf("\"idempotency.home_table\" names no table that says where a scope"
							   " is at home, so every claim is refused. %s",
							   problem));
		return;
	}
	for (int i = 0; i < MOST_SCOPES && (scope = idem_keys_next_scope(scope)) != NULL; i++)
	{
		strays += !idem_home_is_here(scope);
		CHECK_FOR_INTERRUPTS();
	}
	health_report_number(health, "home", strays, 1,
						 "Scopes whose shard is on another node have keys here: their shards were"
						 " moved without them, or they wait for forget_exported()."
						 " Not more than 10000 scopes are looked at.");
}

PG_FUNCTION_INFO_V1(idempotency_health);

/*
 * SQL health(). Where the table is not as expected, that and the worker are all
 * that is reported.
 */
Datum
idempotency_health(PG_FUNCTION_ARGS)
{
	Health health;
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	bool usable;

	InitMaterializedSRF(fcinfo, 0);
	health.store = result->setResult;
	health.desc = result->setDesc;

	usable = health_check_table(&health);
	health_check_worker(&health);
	if (!usable)
		return (Datum) 0;
	health_check_last_cleanup(&health);
	health_report_number(&health, "expired_backlog",
						 health_count_keys(KEYS_EXPIRED, idem_warn_expired),
						 idem_warn_expired,
						 "Expired keys wait to be deleted: is clean-up running, and often enough?");
	health_report_number(&health, "abandoned_claims",
						 health_count_keys(KEYS_ABANDONED, idem_warn_abandoned),
						 idem_warn_abandoned,
						 "Claims whose owner is gone: see the view \"abandoned\";"
						 " claim_abandoned() drives their work to its end.");
	health_report_number(&health, "held_keys", health_count_keys(KEYS_HELD, idem_warn_held),
						 idem_warn_held,
						 "Keys of unknown outcome wait for a person: find out what happened,"
						 " then complete() or resolve().");
	for (int i = 0; i < (int) lengthof(health_numbers); i++)
		health_report_number(&health, health_numbers[i].check,
							 health_number_on(IDEM_KEYS_TABLE, health_numbers[i].sql),
							 *health_numbers[i].threshold, health_numbers[i].what_to_do);
	health_check_home(&health);
	return (Datum) 0;
}
