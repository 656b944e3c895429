/*-------------------------------------------------------------------------
 *
 * cron.c
 *	  Clean-up by pg_cron, where that is installed: schedule_cleanup() and
 *	  unschedule_cleanup().
 *
 * There is no dependency on pg_cron. Its functions are found when they are
 * called, and only if they belong to the extension pg_cron, since anybody may
 * make a function of such a name. Everything runs with the caller's rights;
 * the job then runs as the caller. The schedule is a parameter, never part of
 * a statement; pg_cron checks it.
 *
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "nodes/makefuncs.h"
#include "nodes/value.h"
#include "parser/parse_func.h"
#include "utils/builtins.h"

#define JOB_NAME "idempotency-cleanup"
#define JOB_COMMAND "CALL idempotency.maintain()"

/*
 * Errors: 55000 pg_cron is not in this database.
 */
static void
cron_require(void)
{
	Oid extension = get_extension_oid("pg_cron", true);
	Oid types[3] = {TEXTOID, TEXTOID, TEXTOID};
	Oid function = InvalidOid;

	if (OidIsValid(extension))
		function = LookupFuncName(list_make2(makeString("cron"), makeString("schedule")),
								  3, types, true);
	if (!OidIsValid(function) ||
		getExtensionOfObject(ProcedureRelationId, function) != extension)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension \"pg_cron\" is not installed in this database"),
				 errhint("Install it in the database that \"cron.database_name\" names,"
						 " and schedule '%s' for this one there; or preload \"%s\","
						 " whose background worker needs no pg_cron.",
						 JOB_COMMAND, IDEM_EXTENSION_NAME)));
}

static Datum
cron_execute(const char *sql, int nargs, Datum *values)
{
	Oid types[2] = {TEXTOID, TEXTOID};
	Datum result;
	bool isnull;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args(sql, nargs, types, values, NULL, false, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "unexpected result of pg_cron");
	result = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	SPI_finish();
	return isnull ? (Datum) 0 : result;
}

PG_FUNCTION_INFO_V1(idempotency_schedule_cleanup);

/*
 * SQL schedule_cleanup(): the number of the job. Again with another schedule
 * changes it.
 *
 * Errors: 55000 no pg_cron; 22023 a schedule that pg_cron does not
 * understand; 42501 no privilege on pg_cron.
 */
Datum
idempotency_schedule_cleanup(PG_FUNCTION_ARGS)
{
	Datum values[1] = {idem_arg_is_null(fcinfo, 0) ? CStringGetTextDatum("0 * * * *")
												   : PG_GETARG_DATUM(0)};

	idem_require_writable("schedule_cleanup");
	cron_require();
	PG_RETURN_DATUM(cron_execute("SELECT cron.schedule('" JOB_NAME "'::pg_catalog.text, $1,"
								 " '" JOB_COMMAND "'::pg_catalog.text)",
								 1, values));
}

PG_FUNCTION_INFO_V1(idempotency_unschedule_cleanup);

/*
 * SQL unschedule_cleanup(): true if the caller had such a job.
 *
 * Errors: 55000 no pg_cron; 42501 no privilege on pg_cron.
 */
Datum
idempotency_unschedule_cleanup(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	idem_require_writable("unschedule_cleanup");
	cron_require();
	PG_RETURN_DATUM(cron_execute("SELECT COALESCE(pg_catalog.bool_or(cron.unschedule(j.jobid)),"
								 " false) FROM cron.job AS j"
								 " WHERE j.jobname::pg_catalog.text"
								 " OPERATOR(pg_catalog.=) '" JOB_NAME "'::pg_catalog.text"
								 " AND j.username"
								 " OPERATOR(pg_catalog.=) CURRENT_USER::pg_catalog.text",
								 0, NULL));
}
