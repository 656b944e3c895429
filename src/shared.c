/*-------------------------------------------------------------------------
 *
 * shared.c
 *	  What lives in shared memory: the counters of each database, how the
 *	  launcher is doing, where waiting claims sleep, and who does.
 *
 * All of it exists only if the library is in shared_preload_libraries. The
 * SQL functions work without; then idem_shared is NULL, and what needs it
 * says so.
 *
 *-------------------------------------------------------------------------
 */
#include "server.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"

IdemShared *idem_shared = NULL;

static shmem_request_hook_type shared_previous_request_hook = NULL;
static shmem_startup_hook_type shared_previous_startup_hook = NULL;

static Size
shared_size(void)
{
	return add_size(offsetof(IdemShared, waiters), mul_size(MaxBackends, sizeof(IdemWaiter)));
}

static void
shared_request(void)
{
	if (shared_previous_request_hook)
		shared_previous_request_hook();
	RequestAddinShmemSpace(MAXALIGN(shared_size()));
	RequestNamedLWLockTranche(IDEM_EXTENSION_NAME, 1);
}

static void
shared_startup(void)
{
	bool found;

	if (shared_previous_startup_hook)
		shared_previous_startup_hook();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	idem_shared = ShmemInitStruct(IDEM_EXTENSION_NAME, shared_size(), &found);
	if (!found)
	{
		memset(idem_shared, 0, shared_size());
		idem_shared->lock = &GetNamedLWLockTranche(IDEM_EXTENSION_NAME)->lock;
		for (int i = 0; i < IDEM_MAX_DATABASES; i++)
			for (int j = 0; j < IDEM_NCOUNTERS; j++)
				pg_atomic_init_u64(&idem_shared->databases[i].counters[j], 0);
		for (int i = 0; i < IDEM_NWAKEUPS; i++)
			ConditionVariableInit(&idem_shared->wakeups[i]);
	}
	LWLockRelease(AddinShmemInitLock);
}

/*
 * Refuses to go on without shared memory.
 *
 * Errors: 55000.
 */
void
idem_require_shared(void)
{
	if (idem_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("\"%s\" must be loaded via \"shared_preload_libraries\"",
						IDEM_EXTENSION_NAME),
				 errhint("Add \"%s\" to \"shared_preload_libraries\" and restart the server.",
						 IDEM_EXTENSION_NAME)));
}

void
idem_shared_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		return;
	shared_previous_request_hook = shmem_request_hook;
	shmem_request_hook = shared_request;
	shared_previous_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shared_startup;
}
