/*-------------------------------------------------------------------------
 *
 * commit.c
 *	  The end of a transaction: nobody's forgotten claim commits, and nothing
 *	  is committed on another server before that is known.
 *
 * A claim without a lease that is still open when the transaction is about to
 * commit or to be prepared means that some branch forgot to complete it: the
 * business rows would commit, the key would not, and the next repeat would do
 * the work again. So that is an error, IK004, raised where errors still
 * abort. Nothing is written there: writing in a pre-commit callback would
 * skip deferred constraint triggers and could block when statement_timeout is
 * no longer armed.
 *
 * Others have callbacks at that point, too, and some cannot be undone:
 * postgres_fdw and Citus commit on their servers. The server calls first who
 * registered last, and postgres_fdw registers when a session first uses a
 * foreign server. So we register again, ahead of whoever came meanwhile, as
 * long as a claim is open: after each statement, because whatever the last
 * statement was, the commit comes after it (COMMIT itself only asks for the
 * commit), and where a claim is opened outside of any statement. All of our
 * registrations do the same, so it does no harm to be asked twice.
 *
 * The registrations that are too many must go again, and a list that is being
 * walked must keep the item where the walker stands (15) or the one after it
 * (from 16 on). The first registration, made at load, stays for ever and is
 * called last of ours, so at the end of a transaction it can remove all of
 * the others, which have been passed. Before the end, a client's statement
 * that has just run is proof that nobody walks the list. Where there is no
 * such proof (a procedure or DO, which may be in the middle of a COMMIT whose
 * callbacks run SQL; triggers and cursors during the commit; a portal with a
 * name), registrations add up to a limit, and beyond it the next proof is
 * waited for.
 *
 *-------------------------------------------------------------------------
 */
#include "claims.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "tcop/pquery.h"
#include "tcop/utility.h"
#include "utils/portal.h"

/* Without proof that they can be removed: 48 bytes each, for one transaction. */
#define MAX_AHEAD 1000

static ExecutorRun_hook_type commit_next_executor_run = NULL;
static ProcessUtility_hook_type commit_next_process_utility = NULL;

/* A statement is running. Within it nothing can commit. */
static bool commit_executing = false;

/* Registrations ahead of the first one; their numbers are their arguments. */
static int commit_nahead = 0;

static void commit_transaction_ends(XactEvent event, void *number);

static void *
commit_registration(int number)
{
	return (void *) (intptr_t) number;
}

static void
commit_remove_all_ahead(void)
{
	for (; commit_nahead > 0; commit_nahead--)
		UnregisterXactCallback(commit_transaction_ends, commit_registration(commit_nahead));
}

static void
commit_be_first(bool nobody_walks)
{
	if (nobody_walks)
		commit_remove_all_ahead();
	else if (commit_nahead >= MAX_AHEAD)
		return;
	RegisterXactCallback(commit_transaction_ends, commit_registration(commit_nahead + 1));
	commit_nahead++;
}

static void
commit_transaction_ends(XactEvent event, void *number)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			if (idem_pending_left_open())
				ereport(ERROR,
						(errcode(ERRCODE_IDEM_CLAIM_LEFT_OPEN),
						 errmsg("a claim without a lease was left open at the end of its"
								" transaction"),
						 errhint("Call complete() or fail() in the transaction that claims,"
								 " or claim with a lease if the work goes on after it.")));
			return;
		case XACT_EVENT_COMMIT:
			idem_pending_end(true);
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			idem_pending_end(false);
			break;
		default:
			return;
	}
	if (number == commit_registration(0))
		commit_remove_all_ahead();
}

/*
 * A claim without a lease is about to be opened. Within a statement, that
 * statement's end is early enough; but PL/pgSQL evaluates simple expressions
 * without one, and a function can be called without one by the protocol.
 */
static void
commit_claim_opens(void)
{
	if (!commit_executing)
		commit_be_first(false);
}

/*
 * Whether the innermost portal is running a client's statement that cannot
 * commit. Nobody but a client has a portal without a name, and until it is
 * done no commit can begin.
 */
static bool
commit_client_runs_query(void)
{
	PlannedStmt *statement;

	if (ActivePortal == NULL || ActivePortal->name[0] != '\0' || ActivePortal->stmts == NIL)
		return false;
	statement = linitial_node(PlannedStmt, ActivePortal->stmts);
	return statement->commandType != CMD_UTILITY;
}

static void
commit_run_query(QueryDesc *query, ScanDirection direction, uint64 count EXECUTE_ONCE_PARAMETER)
{
	if (commit_next_executor_run != NULL)
		commit_next_executor_run(query, direction, count EXECUTE_ONCE);
	else
		standard_ExecutorRun(query, direction, count EXECUTE_ONCE);
}

static void
commit_executor_run(QueryDesc *query, ScanDirection direction, uint64 count EXECUTE_ONCE_PARAMETER)
{
	if (commit_executing)
	{
		commit_run_query(query, direction, count EXECUTE_ONCE);
		return;
	}

	commit_executing = true;
	PG_TRY();
	{
		commit_run_query(query, direction, count EXECUTE_ONCE);
	}
	PG_FINALLY();
	{
		commit_executing = false;
	}
	PG_END_TRY();

	if (idem_pending_left_open())
		commit_be_first(commit_client_runs_query());
}

/*
 * Does not count as a running statement: CALL and DO may commit. The statement
 * may be gone when it has been processed.
 */
static void
commit_process_utility(PlannedStmt *statement, const char *text, bool read_only_tree,
					   ProcessUtilityContext context, ParamListInfo params,
					   QueryEnvironment *environment, DestReceiver *dest,
					   QueryCompletion *completion)
{
	if (commit_next_process_utility != NULL)
		commit_next_process_utility(statement, text, read_only_tree, context, params,
									environment, dest, completion);
	else
		standard_ProcessUtility(statement, text, read_only_tree, context, params,
								environment, dest, completion);

	if (!commit_executing && idem_pending_left_open())
		commit_be_first(context == PROCESS_UTILITY_TOPLEVEL);
}

void
idem_commit_init(void)
{
	idem_pending_init(commit_claim_opens);
	RegisterXactCallback(commit_transaction_ends, commit_registration(0));
	commit_next_executor_run = ExecutorRun_hook;
	ExecutorRun_hook = commit_executor_run;
	commit_next_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = commit_process_utility;
}
