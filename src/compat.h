/*-------------------------------------------------------------------------
 *
 * compat.h
 *	  Every difference between PostgreSQL 15 and 19 that this extension
 *	  meets, one wrapper each, so that the code reads as if there were one
 *	  server version.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_COMPAT_H
#define IDEMPOTENCY_COMPAT_H

#include "access/genam.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "fmgr.h"
#include "utils/numeric.h"
#include "utils/wait_event.h"

/* 15.1 has InitMaterializedSRF(), 15.4 database_is_invalid_form(). */
#if PG_VERSION_NUM < 150004 || PG_VERSION_NUM >= 200000
#error "idempotency supports PostgreSQL 15.4 to 19"
#endif

/* PostgreSQL 18 shows what is loaded, with its version: pg_get_loaded_modules(). */
#if PG_VERSION_NUM >= 180000
#define PG_MODULE_MAGIC_compat(module, module_version) \
	PG_MODULE_MAGIC_EXT(.name = module, .version = module_version)
#else
#define PG_MODULE_MAGIC_compat(module, module_version) PG_MODULE_MAGIC
#endif

/* PostgreSQL 16 moved the access to variable-length values out of postgres.h. */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* PostgreSQL 19 moved get_database_name(). */
#if PG_VERSION_NUM >= 190000
#include "utils/lsyscache.h"
#else
#include "commands/dbcommands.h"
#endif

/* PostgreSQL 18 puts the mark of a function that does not return in front. */
#if PG_VERSION_NUM < 180000
#define pg_noreturn __attribute__((noreturn))
#endif

/*
 * PostgreSQL 18 counts index searches per scan, for EXPLAIN; 19 takes options of
 * the table's scan.
 */
#if PG_VERSION_NUM >= 190000
#define index_beginscan_compat(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, NULL, nkeys, 0, SO_NONE)
#elif PG_VERSION_NUM >= 180000
#define index_beginscan_compat(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, NULL, nkeys, 0)
#else
#define index_beginscan_compat(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, nkeys, 0)
#endif

#if PG_VERSION_NUM >= 190000
#define table_beginscan_compat(table, snapshot) table_beginscan(table, snapshot, 0, NULL, SO_NONE)
#else
#define table_beginscan_compat(table, snapshot) table_beginscan(table, snapshot, 0, NULL)
#endif

/* PostgreSQL 16 can leave out indexes that do not summarize; 19 has flags. */
#if PG_VERSION_NUM >= 190000
#define ExecInsertIndexTuples_compat(result, slot, estate, no_duplicate_error, conflict)       \
	ExecInsertIndexTuples(result, estate, (no_duplicate_error) ? EIIT_NO_DUPE_ERROR : 0, slot, \
						  NIL, conflict)
#elif PG_VERSION_NUM >= 160000
#define ExecInsertIndexTuples_compat(result, slot, estate, no_duplicate_error, conflict) \
	ExecInsertIndexTuples(result, slot, estate, false, no_duplicate_error, conflict, NIL, false)
#else
#define ExecInsertIndexTuples_compat(result, slot, estate, no_duplicate_error, conflict) \
	ExecInsertIndexTuples(result, slot, estate, false, no_duplicate_error, conflict, NIL)
#endif

/* PostgreSQL 19 has GRANTED BY: NULL is nobody in particular. */
#if PG_VERSION_NUM >= 190000
#define select_best_grantor_compat(role, privileges, acl, owner, grantor, options) \
	select_best_grantor(NULL, privileges, acl, owner, grantor, options)
#else
#define select_best_grantor_compat(role, privileges, acl, owner, grantor, options) \
	select_best_grantor(role, privileges, acl, owner, grantor, options)
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
 * Whether somebody has given a setting that nobody has defined yet a value, be it
 * empty. One that was given and taken back is still there: PostgreSQL 15 says NULL
 * for it, later versions an empty text, but show where a value comes from.
 */
#if PG_VERSION_NUM >= 160000
#include "utils/guc_tables.h"

static inline bool
setting_is_given_compat(const char *name)
{
	struct config_generic *setting = find_option(name, false, true, 0);

	return setting != NULL && setting->source != PGC_S_DEFAULT;
}
#else
#define setting_is_given_compat(name) (GetConfigOption(name, true, false) != NULL)
#endif

/*
 * PostgreSQL 17 lets an extension name what it waits for, as it is shown in
 * pg_stat_activity. Looking the name up is cheap against a sleep.
 */
#if PG_VERSION_NUM >= 170000
#define wait_event_compat(name) WaitEventExtensionNew(name)
#else
#define wait_event_compat(name) PG_WAIT_EXTENSION
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
