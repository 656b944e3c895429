/*-------------------------------------------------------------------------
 *
 * support.c
 *	  Planner support for the calls of every request, claim(), complete(), run() and
 *	  once(): without the options that nobody gave.
 *
 * They have many options, and few calls give any. The planner writes all of them
 * out as NULLs, and the executor prepares each for each execution; a scan of a
 * function as a table makes an expression of its own of every argument
 * (ExecInitTableFunctionResult(), execSRF.c). For claim() that was a tenth of what
 * a new key costs over a bare INSERT. So the NULLs at the end are taken off the
 * call again, and the C functions take an argument that is not there for NULL; see
 * idem_arg_is_null(). Nothing else changes: it is the same function, with the same
 * privileges.
 *
 * The executor passes as many arguments as the call in the plan has (ExecInitFunc(),
 * execExpr.c), whatever pg_proc says. An older script of the extension, whose
 * functions have fewer arguments than the library knows of, relies on the same.
 *
 * Only what has a default is taken off. The planner simplifies some expressions more
 * than once, and what it finds short it fills up with defaults again
 * (add_function_defaults(), clauses.c): without one it stops with an internal error,
 * where the function may not even be reached.
 *
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

#include "access/htup_details.h"
#include "catalog/pg_proc.h"
#include "nodes/makefuncs.h"
#include "nodes/supportnodes.h"
#include "utils/syscache.h"

/*
 * How many arguments of a function have no default: the first so many.
 */
static int
support_required_arguments(Oid function)
{
	HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc form;
	int result;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	form = (Form_pg_proc) GETSTRUCT(tuple);
	result = form->pronargs - form->pronargdefaults;
	ReleaseSysCache(tuple);
	return result;
}

PG_FUNCTION_INFO_V1(idempotency_call_support);

/*
 * SQL call_support(), called by the planner alone; NULL where it has nothing to
 * say (supportnodes.h). The given node must be left as it is.
 */
Datum
idempotency_call_support(PG_FUNCTION_ARGS)
{
	Node *request = (Node *) PG_GETARG_POINTER(0);
	FuncExpr *given;
	FuncExpr *call;
	int required;
	int nargs;

	if (!IsA(request, SupportRequestSimplify))
		PG_RETURN_POINTER(NULL);

	given = ((SupportRequestSimplify *) request)->fcall;
	required = support_required_arguments(given->funcid);
	nargs = list_length(given->args);
	while (nargs > required && IsA(list_nth(given->args, nargs - 1), Const) &&
		   castNode(Const, list_nth(given->args, nargs - 1))->constisnull)
		nargs--;
	if (nargs == list_length(given->args))
		PG_RETURN_POINTER(NULL);

	call = makeFuncExpr(given->funcid, given->funcresulttype,
						list_truncate(list_copy(given->args), nargs),
						given->funccollid, given->inputcollid, given->funcformat);
	call->location = given->location;
	PG_RETURN_POINTER(call);
}
