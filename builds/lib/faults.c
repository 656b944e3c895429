/*-------------------------------------------------------------------------
 *
 * faults.c
 *	  Faults that a build that looks closer has to notice. Not part of the
 *	  extension: builds/lib/runs.sh puts this file and a call of idem_fault()
 *	  into a copy of the sources, with one of the faults.
 *
 * The compiler would see some of them, or do away with them; so they go by
 * variables that it cannot know.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_proc.h"
#include "storage/bufmgr.h"
#include "utils/lsyscache.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/syscache.h"

extern void idem_fault(void);

/* What these are nobody knows beforehand. */
volatile int idem_fault_ten = 10;
volatile int idem_fault_sink;

pg_attribute_unused() static char *volatile idem_fault_memory;

#if defined(FAULT_failed_assertion)

void
idem_fault(void)
{
	Assert(idem_fault_ten == 11);
}

#elif defined(FAULT_write_past_end)

void
idem_fault(void)
{
	idem_fault_memory = palloc0(10);
	idem_fault_memory[idem_fault_ten] = 1;
}

#elif defined(FAULT_read_past_end)

void
idem_fault(void)
{
	idem_fault_memory = palloc0(10);
	idem_fault_sink = idem_fault_memory[idem_fault_ten];
}

#elif defined(FAULT_use_after_pfree)

/* The length that is left there is absurd. */
void
idem_fault(void)
{
	idem_fault_memory = (char *) cstring_to_text("a text");
	pfree(idem_fault_memory);
	idem_fault_memory = text_to_cstring((text *) idem_fault_memory);
}

#elif defined(FAULT_use_after_reset)

void
idem_fault(void)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "fault", ALLOCSET_DEFAULT_SIZES);

	idem_fault_memory = MemoryContextAllocZero(context, 10);
	MemoryContextDelete(context);
	idem_fault_sink = idem_fault_memory[0];
}

#elif defined(FAULT_closed_relation)

/* The description of a table that is no longer open. */
void
idem_fault(void)
{
	Relation rel = table_open(AccessMethodRelationId, AccessShareLock);
	TupleDesc columns = RelationGetDescr(rel);

	table_close(rel, AccessShareLock);
	for (int i = 0; i < columns->natts; i++)
		idem_fault_sink = TupleDescAttr(columns, i)->attlen;
	if (columns->natts > MaxHeapAttributeNumber)
		elog(ERROR, "a table of %d columns", columns->natts);
}

#elif defined(FAULT_released_catalog_row)

/* A row of the cache that was given back. */
void
idem_fault(void)
{
	HeapTuple tuple = SearchSysCache1(AMOID, ObjectIdGetDatum(BTREE_AM_OID));
	Form_pg_am row = (Form_pg_am) GETSTRUCT(tuple);

	ReleaseSysCache(tuple);
	if (row->oid != BTREE_AM_OID)
		elog(ERROR, "access method %u", row->oid);
}

#elif defined(FAULT_kept_over_invalidation)

/* What a relation has at one moment, and another relation later may have no more. */
void
idem_fault(void)
{
	Oid oid = get_relname_relid("idempotency_keys", get_namespace_oid("idempotency", false));
	Relation rel = table_open(oid, AccessShareLock);
	StdRdOptions *options = (StdRdOptions *) rel->rd_options;

	table_close(table_open(AccessMethodRelationId, AccessShareLock), AccessShareLock);
	if (options->fillfactor < 0 || options->fillfactor > 100)
		elog(ERROR, "fillfactor %d", options->fillfactor);
	table_close(rel, AccessShareLock);
}

#elif defined(FAULT_forgotten_reference)

void
idem_fault(void)
{
	(void) SearchSysCache1(AMOID, ObjectIdGetDatum(BTREE_AM_OID));
}

#elif defined(FAULT_signed_overflow)

void
idem_fault(void)
{
	idem_fault_sink = PG_INT32_MAX - 9 + idem_fault_ten;
}

#elif defined(FAULT_shift_too_far)

void
idem_fault(void)
{
	idem_fault_sink = 1 << (22 + idem_fault_ten);
}

#elif defined(FAULT_misaligned_read)

void
idem_fault(void)
{
	idem_fault_memory = palloc0(64);
	idem_fault_sink = *(int *) (idem_fault_memory + idem_fault_ten - 1);
}

#elif defined(FAULT_bad_bool)

/* A byte that is neither true nor false, as one that was never set may be. */
void
idem_fault(void)
{
	idem_fault_memory = palloc0(1);
	idem_fault_memory[0] = idem_fault_ten;
	idem_fault_sink = *(bool *) idem_fault_memory;
}

#elif defined(FAULT_stack_past_end)

void
idem_fault(void)
{
	volatile char place[10];

	for (int i = 0; i < 10; i++)
		place[i] = 0;
	idem_fault_sink = place[idem_fault_ten];
}

#elif defined(FAULT_global_past_end)

static volatile char place[10];

void
idem_fault(void)
{
	idem_fault_sink = place[idem_fault_ten];
}

#elif defined(FAULT_use_after_return)

pg_noinline static void
point_to_local(void)
{
	volatile char place[10];

	place[0] = 0;
	idem_fault_memory = (char *) place;
}

void
idem_fault(void)
{
	point_to_local();
	idem_fault_sink = idem_fault_memory[0];
}

#elif defined(FAULT_unpinned_page)

/* A page that is no longer ours to read. */
void
idem_fault(void)
{
	Relation rel = table_open(AccessMethodRelationId, AccessShareLock);
	Buffer buffer = ReadBuffer(rel, 0);

	idem_fault_memory = (char *) BufferGetPage(buffer);
	ReleaseBuffer(buffer);
	table_close(rel, AccessShareLock);
	idem_fault_sink = idem_fault_memory[idem_fault_ten];
}

#elif defined(FAULT_uninitialised_memory)

void
idem_fault(void)
{
	idem_fault_memory = palloc(10);
	if (idem_fault_memory[5] == 1)
		idem_fault_sink = 1;
}

#elif defined(FAULT_uninitialised_variable)

pg_noinline static void
set_sometimes(int *value)
{
	if (idem_fault_ten == 11)
		*value = 1;
}

void
idem_fault(void)
{
	int value;

	set_sometimes(&value);
	if (value == 1)
		idem_fault_sink = 1;
}

#endif
