/*-------------------------------------------------------------------------
 *
 * execute.c
 *	  How this extension executes SQL: as the owner of the table that it is
 *	  about, with nothing of the caller's in the way, and nothing left behind.
 *
 * The caller has no privilege on the tables, only on the functions. So for
 * the length of a statement the user is the owner of that one table (as
 * ri_triggers.c does it). What the owner has hung on the table runs then too:
 * triggers, rules, constraints, defaults. The caller may be a superuser, or a
 * role that the owner is not to act for, so all of it is a security-restricted
 * operation. In that SET ROLE is refused, and so is whatever would run later
 * with the caller's rights: a deferred trigger above all.
 *
 * The search path is neither the caller's, who could lead the owner's trigger
 * astray by it, nor does it keep a trigger function from its own; what a
 * trigger SETs is undone with it. Where nothing of a user's can run
 * (idem_table_is_plain()) none of that can happen, and a cheaper way to a fixed
 * path will do.
 *
 * What is executed may be logged, with its plan and its parameters: auto_explain
 * does that for nested statements. Ours carry keys and responses that the client
 * gave as parameters, and what it gave shows in none of our statements. So our
 * parameters are fetched one by one when they are needed: such a list the server
 * never prints (BuildParamLogString()), and the planner is not told the values, so
 * that no plan contains them.
 *
 * An error needs no clean-up here: abort of the (sub)transaction puts the user
 * and the settings back (xact.c), and pops the search path.
 *
 *-------------------------------------------------------------------------
 */
#include "rows.h"

#include "access/relation.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/params.h"
#include "utils/guc.h"
#include "utils/rel.h"

/*
 * Becomes the owner of a table, connected to SPI, under a fixed search path; see
 * the head of this file for "plain". To be paired with idem_unbecome(), before
 * which results have to be copied out.
 */
void
idem_become(IdemCaller *caller, Oid owner, bool plain)
{
	GetUserIdAndSecContext(&caller->user, &caller->context);
	SetUserIdAndSecContext(owner,
						   caller->context | SECURITY_LOCAL_USERID_CHANGE |
							   SECURITY_RESTRICTED_OPERATION | SECURITY_NOFORCE_RLS);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	caller->plain = plain;
	if (plain)
		push_fixed_search_path();
	else
	{
		caller->settings = NewGUCNestLevel();
		(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	}
}

void
idem_unbecome(const IdemCaller *caller)
{
	if (caller->plain)
		pop_fixed_search_path();
	else
		AtEOXact_GUC(false, caller->settings);
	SPI_finish();
	SetUserIdAndSecContext(caller->user, caller->context);
}

/*
 * Hands out a parameter to who executes, but not to who plans ("speculative"): there
 * a parameter without a type is one that is not known yet (params.h).
 */
static ParamExternData *
execute_fetch_parameter(ParamListInfo parameters, int number, bool speculative,
						ParamExternData *unknown)
{
	if (!speculative)
		return &parameters->params[number - 1];
	*unknown = (ParamExternData){.isnull = true, .ptype = InvalidOid};
	return unknown;
}

/*
 * The parameters of a statement, which are kept from logs; see the head of this
 * file. In the current context; "nulls" is as SPI has it.
 */
ParamListInfo
idem_hidden_parameters(int number, const Oid *types, const Datum *values, const char *nulls)
{
	ParamListInfo parameters = makeParamList(number);

	for (int i = 0; i < number; i++)
		parameters->params[i] = (ParamExternData){
			.value = values[i],
			.isnull = nulls != NULL && nulls[i] == 'n',
			.pflags = PARAM_FLAG_CONST,
			.ptype = types[i],
		};
	parameters->paramFetch = execute_fetch_parameter;
	return parameters;
}

/*
 * Executes a statement on one of our tables, as its owner, that is too rare to
 * keep a plan for. Returns the number of rows that it touched; where "number" is
 * not NULL the statement is a query, and that becomes its one result, 0 if NULL.
 *
 * Errors: 55000 the table is missing; whatever the statement raises.
 */
uint64
idem_execute_on(const char *name, const char *sql, int nargs, Oid *types, Datum *values,
				const char *nulls, int64 *number)
{
	Relation table = idem_member_open(name);
	SPIExecuteOptions options = {.read_only = number != NULL};
	IdemCaller caller;
	uint64 processed;
	int result;

	idem_become(&caller, table->rd_rel->relowner, false);
	options.params = idem_hidden_parameters(nargs, types, values, nulls);
	result = SPI_execute_extended(sql, &options);
	if (result < 0)
		elog(ERROR, "SPI_execute_extended failed: %s", SPI_result_code_string(result));
	processed = SPI_processed;
	if (number != NULL)
	{
		bool isnull;

		if (processed != 1)
			elog(ERROR, "unexpected result of a query on %s", name);
		*number = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
											  &isnull));
		if (isnull)
			*number = 0;
	}
	idem_unbecome(&caller);
	relation_close(table, NoLock);
	return processed;
}
