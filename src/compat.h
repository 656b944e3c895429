/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  Every difference between PostgreSQL 15 and 18 that this extension
 *	  meets, one wrapper each, so that the code reads as if there were one
 *	  server version.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_COMPAT_H
#define IDEMPOTENCY_COMPAT_H

#include "access/genam.h"
#include "catalog/namespace.h"
#include "utils/numeric.h"

#if PG_VERSION_NUM < 150000 || PG_VERSION_NUM >= 190000
#error "idempotency supports PostgreSQL 15 to 18"
#endif

/* PostgreSQL 16 moved the access to variable-length values out of postgres.h. */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* PostgreSQL 18 puts the mark of a function that does not return in front. */
#if PG_VERSION_NUM < 180000
#define pg_noreturn __attribute__((noreturn))
#endif

/* PostgreSQL 18 counts index searches per scan, for EXPLAIN. */
#if PG_VERSION_NUM >= 180000
#define index_beginscan_compat(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, NULL, nkeys, 0)
#else
#define index_beginscan_compat(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, nkeys, 0)
#endif

/* PostgreSQL 16 can leave out indexes that do not summarize. */
#if PG_VERSION_NUM >= 160000
#define ExecInsertIndexTuples_compat(result, slot, estate, no_duplicate_error, conflict) \
	ExecInsertIndexTuples(result, slot, estate, false, no_duplicate_error, conflict, NIL, false)
#else
#define ExecInsertIndexTuples_compat(result, slot, estate, no_duplicate_error, conflict) \
	ExecInsertIndexTuples(result, slot, estate, false, no_duplicate_error, conflict, NIL)
#endif

/* PostgreSQL 18 may ask for the primary key though it is deferrable. */
#if PG_VERSION_NUM >= 180000
#define RelationGetPrimaryKeyIndex_compat(rel) \
	RelationGetPrimaryKeyIndex(rel, false)
#else
#define RelationGetPrimaryKeyIndex_compat(rel) RelationGetPrimaryKeyIndex(rel)
#endif

/* PostgreSQL 17 gave a backend's place among all of them a variable. */
#if PG_VERSION_NUM >= 170000
#define MY_PROC_NUMBER MyProcNumber
#else
#define MY_PROC_NUMBER (MyProc->pgprocno)
#endif

/* PostgreSQL 18 dropped the last argument of ExecutorRun(). */
#if PG_VERSION_NUM >= 180000
#define EXECUTE_ONCE_PARAMETER
#define EXECUTE_ONCE
#else
#define EXECUTE_ONCE_PARAMETER , bool execute_once
#define EXECUTE_ONCE , execute_once
#endif

/*
 * Cached plans are made anew whenever the search path in force differs from
 * the one they were made under, although ours name everything in full. Up to
 * PostgreSQL 16 a path can be put in force cheaply while we run them; abort
 * pops it. Later versions dropped that, and a plan is made anew if, and only
 * if, a connection alternates between search paths (namespace.c,
 * OverrideSearchPathMatchesCurrent / SearchPathMatchesCurrentEnvironment).
 */
#if PG_VERSION_NUM < 170000
static inline void
push_fixed_search_path(void)
{
	OverrideSearchPath path = {
		.schemas = NIL,
		.addCatalog = true,
		.addTemp = false,
	};

	PushOverrideSearchPath(&path);
}
#define pop_fixed_search_path() PopOverrideSearchPath()
#else
#define push_fixed_search_path() ((void) 0)
#define pop_fixed_search_path() ((void) 0)
#endif

#endif /* IDEMPOTENCY_COMPAT_H */
