/*-------------------------------------------------------------------------
 *
 * idempotency.h
 *	  The words of the extension, and what every call begins with: its
 *	  arguments, its errors, its settings.
 *
 * Words
 * -----
 * identity		(scope, operation, key): which request
 * claim		the right to do the work for an identity
 * pending		a claim of the running transaction, kept in backend memory
 * leased		a claim whose row is written at once and fenced by a token
 * row			a line of idempotency.idempotency_keys, as a KeyRow
 * home			of a scope: the node of a Citus cluster that keeps its keys
 *
 * Layers
 * ------
 * The sources are built in layers, each with a header that says what its files
 * offer, grouped under the file that owns it. A file includes the headers of its
 * own layer and of those below, never one from above; scripts/test checks that.
 *
 * (top)		one file for each family of calls; nobody calls these
 * claims.h		who may do the work: locks, waiting, pending claims, owners
 * server.h		shared memory, counters, clean-up and the processes that do it
 * rules.h		what administrators have laid down: policies, bindings, homes
 * rows.h		the table and its rows: states, reading, writing
 * idempotency.h	this one
 *
 * CONTRIBUTING.md follows a claim and its completion through them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_H
#define IDEMPOTENCY_H

#include "postgres.h"

#include "fmgr.h"
#include "utils/timestamp.h"

#include "compat.h"

/* SQLSTATEs of our own; documented in README.md, part of the contract. */
#define ERRCODE_IDEM_STALE_CLAIM MAKE_SQLSTATE('I', 'K', '0', '0', '1')
#define ERRCODE_IDEM_NOT_CLAIMED MAKE_SQLSTATE('I', 'K', '0', '0', '2')
#define ERRCODE_IDEM_OTHER_COMPLETION MAKE_SQLSTATE('I', 'K', '0', '0', '3')
#define ERRCODE_IDEM_CLAIM_LEFT_OPEN MAKE_SQLSTATE('I', 'K', '0', '0', '4')
#define ERRCODE_IDEM_HELD MAKE_SQLSTATE('I', 'K', '0', '0', '5')
#define ERRCODE_IDEM_REDACTED MAKE_SQLSTATE('I', 'K', '0', '0', '6')

#define IDEM_EXTENSION_NAME "idempotency"
#define IDEM_SCHEMA_NAME "idempotency"

/*
 * Three texts of this many bytes, with their headers, fit into a btree entry
 * of an 8 kB page (2704 bytes, nbtree.h BTMaxItemSize).
 */
#define IDEM_KEY_LENGTH_BOUND 880

/* Who asks for what. The texts may have short headers: use VARDATA_ANY. */
typedef struct KeyIdentity
{
	text *scope;
	text *operation;
	text *key;
	uint64 hash; /* of all three, see locks.c; equal hashes prove nothing */
} KeyIdentity;

/*
 * Whether an argument is NULL, or not there: only options that nobody gave are left
 * out, see support.c.
 */
static inline bool
idem_arg_is_null(FunctionCallInfo fcinfo, int argno)
{
	return argno >= PG_NARGS() || PG_ARGISNULL(argno);
}

/* The argument, or nothing where it is NULL or not there. */
static inline Datum
idem_arg(FunctionCallInfo fcinfo, int argno)
{
	return idem_arg_is_null(fcinfo, argno) ? (Datum) 0 : PG_GETARG_DATUM(argno);
}

/* arguments.c */
extern void idem_identity_argument(KeyIdentity *id, FunctionCallInfo fcinfo);
extern text *idem_scope_argument(FunctionCallInfo fcinfo);
extern void idem_check_identity_part(text *part, const char *name);
extern bool idem_identity_equal(const KeyIdentity *a, const KeyIdentity *b);
extern bool idem_texts_equal(const text *a, const text *b);
extern text *idem_text_argument(FunctionCallInfo fcinfo, int argno,
								const char *name);
extern int64 idem_interval_us(const Interval *span);
extern int64 idem_duration(FunctionCallInfo fcinfo, int argno,
						   const char *name, int64 minimum, int64 maximum,
						   int64 otherwise);
extern TimestampTz idem_time_after(TimestampTz start, int64 microseconds,
								   const char *name);
extern Oid idem_role_argument(FunctionCallInfo fcinfo);
extern char *idem_role_name(Oid role);
extern void idem_require_writable(const char *function);

/* fingerprint.c */
#define IDEM_FINGERPRINT_LEN 32
extern bytea *idem_fingerprint_argument(FunctionCallInfo fcinfo,
										int request_argno,
										int fingerprint_argno);

/* errors.c */
pg_noreturn extern void idem_report_held(void);
pg_noreturn extern void idem_report_lost_race(void);
pg_noreturn extern void idem_report_not_written(void);
extern void idem_check_result_columns(int declared, int known);
extern ErrorData *idem_catch(void (*action)(void *state), void *state);

/* settings.c: durations in the unit of the setting, see there */
extern int idem_default_ttl;   /* s */
extern int idem_once_ttl;      /* s */
extern int idem_failed_ttl;    /* s */
extern int idem_default_lease; /* ms */
extern int idem_max_ttl;       /* s */
extern int idem_max_wait;      /* ms */
extern int idem_once_wait;     /* ms */
extern int idem_max_waiters;
extern int idem_max_waiters_per_key;
extern int idem_max_retry_after; /* ms */
extern int idem_max_key_length;  /* bytes */
extern int idem_max_claims_per_transaction;
extern int idem_max_response_size; /* kB */
extern bool idem_require_binding;
extern char *idem_home_table; /* empty: none */

#define IDEM_MAX_TTL_US ((int64) idem_max_ttl * USECS_PER_SEC)

extern bool idem_track;
extern bool idem_cleanup_enabled;
extern int idem_cleanup_interval;   /* s */
extern int idem_cleanup_batch_size; /* rows */
extern int idem_cleanup_pause;      /* ms */
extern char *idem_cleanup_skip_databases;
extern int idem_warn_expired;
extern int idem_warn_abandoned;
extern int idem_warn_held;
extern int idem_warn_keys;         /* millions would overflow: rows */
extern int idem_warn_table_size;   /* MB */
extern int idem_warn_dead_percent; /* % */

extern void idem_settings_init(void);

#endif /* IDEMPOTENCY_H */
