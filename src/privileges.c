/*-------------------------------------------------------------------------
 *
 * privileges.c
 *	  Who may call what: grant_usage(), grant_operator(), grant_monitor().
 *
 * Nothing is granted to PUBLIC. These three hand out fixed bundles, so that
 * nobody needs to know which functions make up an application's calls. They
 * run with the caller's own rights: only who may GRANT can use them.
 *
 * No bundle contains more than SELECT on the table. The TRIGGER privilege in
 * particular is as good as superuser, since triggers run when the owner
 * writes.
 *
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

#include "catalog/objectaddress.h"
#include "catalog/pg_authid.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"

static const char *const usage[] = {
	"USAGE ON SCHEMA idempotency",
	"USAGE ON TYPE idempotency.claim_result, idempotency.replay_result, idempotency.lookup_result",
	"EXECUTE ON FUNCTION idempotency.claim, idempotency.complete, idempotency.fail,"
	" idempotency.release, idempotency.extend, idempotency.checkpoint, idempotency.hold,"
	" idempotency.replay, idempotency.lookup, idempotency.once, idempotency.once_batch,"
	" idempotency.run, idempotency.claim_abandoned, idempotency.fingerprint,"
	" idempotency.content_key, idempotency.effect_key, idempotency.default_policy",
	"SELECT ON TABLE idempotency.effective_policies",
	NULL};

static const char *const operator[] = {
	"USAGE ON SCHEMA idempotency",
	"USAGE ON TYPE idempotency.replay_result, idempotency.lookup_result",
	"EXECUTE ON FUNCTION idempotency.complete, idempotency.resolve, idempotency.replay,"
	" idempotency.lookup, idempotency.forget, idempotency.forget_scope, idempotency.redact,"
	" idempotency.redact_scope, idempotency.import_completed, idempotency.cleanup,"
	" idempotency.request_cleanup, idempotency.schedule_cleanup, idempotency.unschedule_cleanup,"
	" idempotency.set_policy, idempotency.drop_policy, idempotency.health, idempotency.stats_data,"
	" idempotency.default_policy",
	"EXECUTE ON PROCEDURE idempotency.maintain",
	"SELECT ON TABLE idempotency.idempotency_keys, idempotency.policies,"
	" idempotency.cleanup_runs, idempotency.stats, idempotency.keys_by_operation,"
	" idempotency.keys_by_scope,"
	" idempotency.abandoned, idempotency.effective_policies",
	NULL};

static const char *const monitor[] = {
	"USAGE ON SCHEMA idempotency",
	"EXECUTE ON FUNCTION idempotency.health, idempotency.stats_data,"
	" idempotency.default_policy",
	"SELECT ON TABLE idempotency.policies, idempotency.cleanup_runs, idempotency.stats,"
	" idempotency.keys_by_operation, idempotency.keys_by_scope, idempotency.effective_policies",
	NULL};

/*
 * Errors: 22004 no role; 42704 no such role; 42501 the caller may not grant.
 */
static Datum
grant(FunctionCallInfo fcinfo, const char *const *bundle)
{
	char *role;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("role must not be null"),
				 errhint("Name the role to grant to.")));
	role = GetUserNameFromId(PG_GETARG_OID(0), false);

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	for (; *bundle != NULL; bundle++)
	{
		StringInfoData sql;

		initStringInfo(&sql);
		appendStringInfo(&sql, "GRANT %s TO %s", *bundle, quote_identifier(role));
		if (SPI_execute(sql.data, false, 0) != SPI_OK_UTILITY)
			elog(ERROR, "could not execute GRANT");
	}
	SPI_finish();
	PG_RETURN_BOOL(true);
}

PG_FUNCTION_INFO_V1(idempotency_grant_usage);
Datum
idempotency_grant_usage(PG_FUNCTION_ARGS)
{
	return grant(fcinfo, usage);
}

PG_FUNCTION_INFO_V1(idempotency_grant_operator);
Datum
idempotency_grant_operator(PG_FUNCTION_ARGS)
{
	return grant(fcinfo, operator);
}

PG_FUNCTION_INFO_V1(idempotency_grant_monitor);
Datum
idempotency_grant_monitor(PG_FUNCTION_ARGS)
{
	return grant(fcinfo, monitor);
}
