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
 * An application has few commands and runs each of them often. So the plans of
 * the last few are kept for the connection, by text and role. What a plan depends
 * on, tables, functions, the search path, row security, is the server's to watch,
 * as it does for any prepared statement (plancache.c). One thing it does not see: a
 * new table, function, type or operator, in a schema that is searched earlier, may
 * take the place of one that a command has meant so far. A temporary table of the
 * same name is enough. So all plans are made anew after any such name has come,
 * gone or changed.
 *
 *-------------------------------------------------------------------------
 */
#include "claims.h"
#include "rules.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "parser/parser.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

/*
 * So many commands are kept, of at most so many bytes each: looking through them
 * costs next to nothing, and their plans stay well below what a connection needs
 * anyway. Whoever runs more than these in turn pays for planning, as before.
 */
#define RUN_PLANS 32
#define RUN_LONGEST_COMMAND 8192

typedef struct RunPlan
{
	uint32 hash; /* of the command */
	Oid role;    /* whose rights its functions were inlined with */
	char *command;
	SPIPlanPtr plan; /* NULL: the place is free */
	int running;     /* the command may run itself: do not free its plan */
	uint64 used;     /* when last, by run_clock */
	uint64 names;    /* run_names when it was made */
} RunPlan;

static RunPlan run_plans[RUN_PLANS];
static uint64 run_clock = 0;
static uint64 run_names = 0; /* changes with any name; 0: nobody tells us yet */

static void
run_name_changed(Datum arg pg_attribute_unused(), int cache pg_attribute_unused(),
				 uint32 hash pg_attribute_unused())
{
	run_names++;
}

static void
run_watch_names(void)
{
	static const int caches[] = {RELNAMENSP, PROCNAMEARGSNSP, TYPENAMENSP, OPERNAMENSP};

	if (run_names > 0)
		return;
	for (int i = 0; i < (int) lengthof(caches); i++)
		CacheRegisterSyscacheCallback(caches[i], run_name_changed, (Datum) 0);
	run_names = 1;
}

/*
 * A syntax error is one in the command, not in the statement that calls run(); SPI
 * says so in the same way.
 */
static void
run_syntax_error(void *command)
{
	int position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(command);
	}
}

/*
 * Whether a command is one statement of the kind that is planned. Several are
 * analysed one after the other, each knowing what the ones before have made, which
 * a plan made beforehand could not.
 *
 * Errors: 42601 and whatever else the parser raises.
 */
static bool
run_can_be_planned(const char *command)
{
	ErrorContextCallback callback = {
		.previous = error_context_stack,
		.callback = run_syntax_error,
		.arg = unconstify(char *, command),
	};
	List *statements;
	Node *statement;

	error_context_stack = &callback;
	statements = raw_parser(command, RAW_PARSE_DEFAULT);
	error_context_stack = callback.previous;
	if (list_length(statements) != 1)
		return false;
	statement = linitial_node(RawStmt, statements)->stmt;
	return (IsA(statement, SelectStmt) && castNode(SelectStmt, statement)->intoClause == NULL) ||
		IsA(statement, InsertStmt) || IsA(statement, UpdateStmt) ||
		IsA(statement, DeleteStmt) || IsA(statement, MergeStmt);
}

/*
 * When a plan was last used, 0 if it is of no use any more.
 */
static uint64
run_used(const RunPlan *kept)
{
	return kept->plan != NULL && kept->names == run_names ? kept->used : 0;
}

/*
 * The place for a new plan: one that is free, or else the one that was not used for
 * the longest time, or NULL if all of them are running.
 */
static RunPlan *
run_place(void)
{
	RunPlan *place = NULL;

	for (int i = 0; i < RUN_PLANS; i++)
		if (run_plans[i].running == 0 &&
			(place == NULL || run_used(&run_plans[i]) < run_used(place)))
			place = &run_plans[i];
	return place;
}

/*
 * The kept plan of a command, made at its first run; NULL if there is none to be
 * kept. Connected to SPI.
 *
 * Errors: any that parsing and analysing the command raises.
 */
static RunPlan *
run_plan_of(const char *command)
{
	Oid types[1] = {JSONBOID};
	int length = strlen(command);
	uint32 hash = hash_bytes((const unsigned char *) command, length);
	RunPlan *place;
	SPIPlanPtr plan;
	char *copy;
	uint64 names;

	run_watch_names();
	for (int i = 0; i < RUN_PLANS; i++)
		if (run_used(&run_plans[i]) > 0 && run_plans[i].hash == hash &&
			run_plans[i].role == GetUserId() && strcmp(run_plans[i].command, command) == 0)
			return &run_plans[i];
	if (length > RUN_LONGEST_COMMAND || !run_can_be_planned(command))
		return NULL;

	/* Analysing may run functions, which may run commands: find the place last. */
	names = run_names;
	plan = SPI_prepare(command, 1, types);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	place = run_place();
	if (place == NULL)
		return NULL;
	copy = MemoryContextStrdup(TopMemoryContext, command);
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "SPI_keepplan failed");

	/* Nothing below can fail. */
	if (place->plan != NULL)
	{
		SPI_freeplan(place->plan);
		pfree(place->command);
	}
	*place = (RunPlan){
		.hash = hash, .role = GetUserId(), .command = copy, .plan = plan, .names = names};
	return place;
}

/*
 * Executes a command with one parameter, by its kept plan where it has one.
 * Returns what SPI returns. Connected to SPI.
 */
static int
run_execute(const char *command, Datum args, bool args_null)
{
	Oid types[1] = {JSONBOID};
	char nulls[1] = {args_null ? 'n' : ' '};
	RunPlan *volatile kept = run_plan_of(command);
	int result = 0;

	/*
	 * All rows, though two would tell that it was not one: a limit ends every
	 * INSERT ... RETURNING of the command halfway, where it is not the last.
	 */
	if (kept == NULL)
		return SPI_execute_with_args(command, 1, types, &args, nulls, false, 0);
	kept->used = ++run_clock;
	kept->running++;
	PG_TRY();
	{
		result = SPI_execute_plan(kept->plan, &args, nulls, false, 0);
	}
	PG_FINALLY();
	{
		kept->running--;
	}
	PG_END_TRY();
	return result;
}

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
	text *body = NULL;
	int result;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");

	result = run_execute(command, args, args_null);
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
	if (idem_arg_is_null(fcinfo, 3))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("command must not be null"),
				 errhint("Give one SQL statement, in which $1 is args.")));
	idem_lock_identity(&request.id, fcinfo);
	policy = idem_policy_for(request.id.operation);
	request.claim.fingerprint = idem_fingerprint_argument(fcinfo, 5, 10);
	request.claim.ttl = idem_duration(fcinfo, 6, "ttl", 1, IDEM_MAX_TTL_US, policy.ttl);
	request.wait = idem_claim_wait_argument(fcinfo, 7, 0);
	if (!idem_arg_is_null(fcinfo, 8))
		idem_response_set(&response, IDEM_RESPONSE_STATUS, PG_GETARG_DATUM(8));
	if (!idem_arg_is_null(fcinfo, 9))
		idem_response_set(&response, IDEM_RESPONSE_HEADERS, PG_GETARG_DATUM(9));
	idem_response_check(&response);

	idem_claim_answer(&request, &answer);
	if (answer.outcome == CLAIM_REPLAY)
		idem_state_check_response(&answer.row);
	if (answer.outcome != CLAIM_CLAIMED)
		PG_RETURN_DATUM(idem_claim_result(fcinfo, &answer, answer.outcome == CLAIM_REPLAY));

	body = run_command(text_to_cstring(PG_GETARG_TEXT_PP(3)),
					   idem_arg(fcinfo, 4), idem_arg_is_null(fcinfo, 4));
	if (body != NULL)
	{
		idem_response_set(&response, IDEM_RESPONSE_BODY, PointerGetDatum(body));
		idem_response_check(&response);
	}
	idem_complete_own(&request.id, &response, &answer.row);
	PG_RETURN_DATUM(idem_claim_result(fcinfo, &answer, true));
}
