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
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

#include "nodes/makefuncs.h"
#include "nodes/supportnodes.h"

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
	int nargs;

	if (!IsA(request, SupportRequestSimplify))
		PG_RETURN_POINTER(NULL);

	given = ((SupportRequestSimplify *) request)->fcall;
	nargs = list_length(given->args);
	while (nargs > 0 && IsA(list_nth(given->args, nargs - 1), Const) &&
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
