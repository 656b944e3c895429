/*-------------------------------------------------------------------------
 *
 * run.c
 *	  run(): claim, execute a command, record its result, in one call and one
 *	  transaction.
 *
 * The command is the caller's own: it runs with the caller's rights, search
 * path and security context. Nothing of ours is in force while it does, since
 * plans.c becomes the tables' owner only for the length of its own statements.
 *
 *-------------------------------------------------------------------------
 */
#include "claims.h"
#include "rules.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"

/*
 * Executes the command and returns what is to be recorded: the value as text
 * if it returned one column, the row as a JSON object if it returned several,
 * NULL if it returned no row, or has none to return. In the caller's context.
 *
 * Errors: 21000 several rows; any that the command raises.
 */
static text *
run_command(const char *command, Datum args, bool args_null)
{
	MemoryContext caller = CurrentMemoryContext;
	Oid types[1] = {JSONBOID};
	Datum values[1] = {args};
	char nulls[1] = {args_null ? 'n' : ' '};
	text *body = NULL;
	int result;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");

	/*
	 * All rows, though two would tell that it was not one: a limit ends every
	 * INSERT ... RETURNING of the command halfway, where it is not the last.
	 */
	result = SPI_execute_with_args(command, 1, types, values, nulls, false, 0);
	if (result < 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the command cannot be executed in a function"),
				 errdetail("Its result is %s.", SPI_result_code_string(result)),
				 errhint("Give one SQL statement that does not control transactions.")));

	if (SPI_tuptable != NULL && SPI_processed > 1)
		ereport(ERROR,
				(errcode(ERRCODE_CARDINALITY_VIOLATION),
				 errmsg("the command returned more than one row"),
				 errhint("Aggregate the rows into one value, for example by jsonb_agg().")));
	if (SPI_tuptable != NULL && SPI_processed == 1)
	{
		TupleDesc desc = SPI_tuptable->tupdesc;
		HeapTuple tuple = SPI_tuptable->vals[0];
		MemoryContext spi = MemoryContextSwitchTo(caller);

		if (desc->natts == 1)
		{
			char *value = SPI_getvalue(tuple, desc, 1);

			body = value == NULL ? NULL : cstring_to_text(value);
		}
		else
		{
			Datum row = heap_copy_tuple_as_datum(tuple, BlessTupleDesc(desc));

			body = DatumGetTextPP(DirectFunctionCall1(row_to_json, row));
		}
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	return body;
}

PG_FUNCTION_INFO_V1(idempotency_run);

/*
 * SQL run(): claim, execute the command, complete, in one call. The command
 * runs between the two with the rights, the search path and the security
 * context that the caller came with: nothing of ours is in force there.
 *
 * Errors: as claim() and complete(); whatever the command raises, which
 * leaves no trace; 21000 it returned several rows.
 */
Datum
idempotency_run(PG_FUNCTION_ARGS)
{
	ClaimRequest request = {0};
	ClaimAnswer answer;
	IdemPolicy policy;
	IdemResponse response = {.isnull = {true, true, true, true}};
	text *body;

	idem_require_writable("run");
	if (PG_ARGISNULL(3))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("command must not be null"),
				 errhint("Give one SQL statement, in which $1 is args.")));
	idem_lock_identity(&request.id, fcinfo);
	policy = idem_policy_for(request.id.operation);
	request.claim.fingerprint = idem_fingerprint_argument(fcinfo, 5, 10);
	request.claim.ttl = idem_duration(fcinfo, 6, "ttl", 1, IDEM_MAX_TTL_US, policy.ttl);
	request.wait = idem_claim_wait_argument(fcinfo, 7, 0);
	if (!PG_ARGISNULL(8))
		idem_response_set(&response, IDEM_RESPONSE_STATUS, PG_GETARG_DATUM(8));
	if (!PG_ARGISNULL(9))
		idem_response_set(&response, IDEM_RESPONSE_HEADERS, PG_GETARG_DATUM(9));
	idem_response_check(&response);

	idem_claim_answer(&request, &answer);
	if (answer.outcome == CLAIM_REPLAY)
		idem_state_check_response(&answer.row);
	if (answer.outcome != CLAIM_CLAIMED)
		PG_RETURN_DATUM(idem_claim_result(fcinfo, &answer, answer.outcome == CLAIM_REPLAY));

	body = run_command(text_to_cstring(PG_GETARG_TEXT_PP(3)),
					   PG_GETARG_DATUM(4), PG_ARGISNULL(4));
	if (body != NULL)
	{
		idem_response_set(&response, IDEM_RESPONSE_BODY, PointerGetDatum(body));
		idem_response_check(&response);
	}
	idem_complete_own(&request.id, &response, &answer.row);
	PG_RETURN_DATUM(idem_claim_result(fcinfo, &answer, true));
}
