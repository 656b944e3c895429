/*-------------------------------------------------------------------------
 *
 * server.h
 *	  What goes beyond one session: shared memory, counters, clean-up and the
 *	  processes that do it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_SERVER_H
#define IDEMPOTENCY_SERVER_H

#include "rows.h"

#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lwlock.h"

/* shared.c: NULL unless the library is preloaded */
typedef enum IdemCounter
{
	IDEM_CLAIMS,
	IDEM_REPLAYS,
	IDEM_CONFLICTS,
	IDEM_MISMATCHES,
	IDEM_TAKEOVERS,
	IDEM_COMPLETIONS,
	IDEM_FAILURES,
	IDEM_DELETED,
	IDEM_NCOUNTERS
} IdemCounter;

/* What one clean-up of one database did. */
typedef struct IdemCleanup
{
	TimestampTz started_at;
	TimestampTz finished_at; /* 0: never */
	int64 deleted;           /* keys */
	int64 redacted;          /* responses that went before their keys */
	int batches;
	bool failed;
	int sqlerrcode;
	char message[256]; /* of the failure */
} IdemCleanup;

/* How far a clean-up has come. */
typedef struct IdemProgress
{
	IdemWalk expired; /* deleting keys */
	IdemWalk due;     /* removing responses */
} IdemProgress;

#define IDEM_NO_PROGRESS        \
	{                           \
		{DT_NOBEGIN, 0, true},  \
		{                       \
			DT_NOBEGIN, 0, true \
		}                       \
	}

/* Where the worker's last clean-up ended; see idem_cleanup_resume(). */
typedef struct IdemResume
{
	TimestampTz until;    /* what had expired by then was looked at; 0: nothing yet */
	TimestampTz whole_at; /* when one began at the beginning */
	int64 whole_took;     /* its first batch, in microseconds */
} IdemResume;

typedef struct IdemDatabase
{
	Oid database;
	pg_atomic_uint64 counters[IDEM_NCOUNTERS];
	IdemCleanup cleanup;
	IdemResume resume;
} IdemDatabase;

/* A backend that waits for a key. */
typedef struct IdemWaiter
{
	bool waiting;
	Oid database;
	uint64 hash;
} IdemWaiter;

/*
 * What the launcher believes of the wall clock, as what that says less what the
 * monotonic clock says; see worker.c.
 */
typedef struct IdemClock
{
	bool known;
	int64 offset; /* believed */
	bool jumped;
	int64 ahead;       /* what it is now, not yet believed */
	int64 ahead_since; /* by the monotonic clock */
} IdemClock;

#define IDEM_MAX_DATABASES 1024
#define IDEM_NWAKEUPS 128

typedef struct IdemShared
{
	LWLock *lock; /* guards all but counters and wakeups */
	IdemDatabase databases[IDEM_MAX_DATABASES];
	pid_t launcher_pid; /* 0: not running */
	Latch *launcher_latch;
	int worker_result; /* of the process that ran last; see worker.c */
	IdemClock clock;
	bool round_requested;
	bool round_is_whole; /* the one that runs: it was asked for */
	TimestampTz round_started_at;
	TimestampTz round_finished_at;
	bool workers_lacking; /* could not start a process in the last round */
	ConditionVariable wakeups[IDEM_NWAKEUPS];
	IdemWaiter waiters[FLEXIBLE_ARRAY_MEMBER]; /* by MY_PROC_NUMBER */
} IdemShared;

extern IdemShared *idem_shared;
extern void idem_require_shared(void);
extern void idem_shared_init(void);

/* stats.c */
extern IdemDatabase *idem_stats_database(Oid database);
extern void idem_stats_forget_dropped(bool (*exists)(Oid database));
extern void idem_stats_count(IdemCounter counter, uint64 number);
extern void idem_stats_cleanup(const IdemCleanup *cleanup);
extern bool idem_stats_last_cleanup(IdemCleanup *cleanup);

/* cleanup.c */
extern bool idem_cleanup_installed(void);
extern bool idem_cleanup_in_the_way(void);
extern bool idem_cleanup_batch(IdemCleanup *cleanup, IdemProgress *progress,
							   TimestampTz now);
extern bool idem_cleanup_resume(IdemProgress *progress);
extern void idem_cleanup_reached(TimestampTz until, TimestampTz whole_at, int64 whole_took);
extern void idem_cleanup_ends(IdemCleanup *cleanup);
extern void idem_cleanup_record(const IdemCleanup *cleanup, const char *by);

/* worker.c */
extern void idem_worker_init(void);

#endif /* IDEMPOTENCY_SERVER_H */
