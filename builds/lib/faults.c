/*-------------------------------------------------------------------------
 *
 * faults.c
 *	  Faults that a build that looks closer has to notice. Not part of the
 *	  extension: builds/lib/bite.sh puts this file and a call of idem_fault()
 *	  into a copy of the sources.
 *
 * The compiler would see some of them, or do away with them; so they go by
 * variables that it cannot know. Which fault there is says the setting fault.name.
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
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

extern void idem_fault(void);

/* What these are nobody knows beforehand. */
volatile int idem_fault_ten = 10;
volatile int idem_fault_sink;

static char *volatile idem_fault_memory;

static void
failed_assertion(void)
{
	Assert(idem_fault_ten == 11);
}

static void
write_past_end(void)
{
	idem_fault_memory = palloc0(10);
	idem_fault_memory[idem_fault_ten] = 1;
}

static void
read_past_end(void)
{
	idem_fault_memory = palloc0(10);
	idem_fault_sink = idem_fault_memory[idem_fault_ten];
}

/* The number that is left there is absurd. */
static void
use_after_pfree(void)
{
	int *numbers = palloc0(4 * sizeof(int));

	idem_fault_memory = (char *) numbers;
	pfree(numbers);
	idem_fault_memory = palloc(((int *) idem_fault_memory)[2]);
}

static void
use_after_delete(void)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "fault", ALLOCSET_DEFAULT_SIZES);

	idem_fault_memory = MemoryContextAllocZero(context, 10);
	MemoryContextDelete(context);
	idem_fault_sink = idem_fault_memory[0];
}

/* The description of a table that is no longer open. */
static void
closed_relation(void)
{
	Relation rel = table_open(AccessMethodRelationId, AccessShareLock);
	TupleDesc columns = RelationGetDescr(rel);

	table_close(rel, AccessShareLock);
	for (int i = 0; i < columns->natts; i++)
		idem_fault_sink = TupleDescAttr(columns, i)->attlen;
	if (columns->natts > MaxHeapAttributeNumber)
		elog(ERROR, "a table of %d columns", columns->natts);
}

/* A row of the cache that was given back. */
static void
released_catalog_row(void)
{
	HeapTuple tuple = SearchSysCache1(AMOID, ObjectIdGetDatum(BTREE_AM_OID));
	Form_pg_am row = (Form_pg_am) GETSTRUCT(tuple);

	ReleaseSysCache(tuple);
	if (row->oid != BTREE_AM_OID)
		elog(ERROR, "access method %u", row->oid);
}

/* What a relation has at one moment, and another relation later may have no more. */
static void
kept_over_invalidation(void)
{
	Oid oid = get_relname_relid("idempotency_keys", get_namespace_oid("idempotency", false));
	Relation rel = table_open(oid, AccessShareLock);
	StdRdOptions *options = (StdRdOptions *) rel->rd_options;

	table_close(table_open(AccessMethodRelationId, AccessShareLock), AccessShareLock);
	if (options->fillfactor < 0 || options->fillfactor > 100)
		elog(ERROR, "fillfactor %d", options->fillfactor);
	table_close(rel, AccessShareLock);
}

static void
forgotten_reference(void)
{
	(void) SearchSysCache1(AMOID, ObjectIdGetDatum(BTREE_AM_OID));
}

static void
signed_overflow(void)
{
	idem_fault_sink = PG_INT32_MAX - 9 + idem_fault_ten;
}

static void
shift_too_far(void)
{
	idem_fault_sink = 1 << (22 + idem_fault_ten);
}

static void
misaligned_read(void)
{
	idem_fault_memory = palloc0(64);
	idem_fault_sink = *(int *) (idem_fault_memory + idem_fault_ten - 1);
}

/* A byte that is neither true nor false, as one that was never set may be. */
static void
bad_bool(void)
{
	idem_fault_memory = palloc0(1);
	idem_fault_memory[0] = idem_fault_ten;
	idem_fault_sink = *(bool *) idem_fault_memory;
}

static void
stack_past_end(void)
{
	volatile char place[10];

	for (int i = 0; i < 10; i++)
		place[i] = 0;
	idem_fault_sink = place[idem_fault_ten];
}

static volatile char global_place[10];

static void
global_past_end(void)
{
	idem_fault_sink = global_place[idem_fault_ten];
}

pg_noinline static void
point_to_local(void)
{
	volatile char place[10];

	place[0] = 0;
	idem_fault_memory = (char *) place;
}

static void
use_after_return(void)
{
	point_to_local();
	idem_fault_sink = idem_fault_memory[0];
}

/* A page that is no longer ours to read. */
static void
unpinned_page(void)
{
	Relation rel = table_open(AccessMethodRelationId, AccessShareLock);
	Buffer buffer = ReadBuffer(rel, 0);

	idem_fault_memory = (char *) BufferGetPage(buffer);
	ReleaseBuffer(buffer);
	table_close(rel, AccessShareLock);
	idem_fault_sink = idem_fault_memory[idem_fault_ten];
}

static void
uninitialised_memory(void)
{
	idem_fault_memory = palloc(10);
	if (idem_fault_memory[5] == 1)
		idem_fault_sink = 1;
}

pg_noinline static void
set_sometimes(int *value)
{
	if (idem_fault_ten == 11)
		*value = 1;
}

static void
uninitialised_variable(void)
{
	int value;

	set_sometimes(&value);
	if (value == 1)
		idem_fault_sink = 1;
}

static const struct
{
	const char *name;
	void (*make) (void);
} faults[] = {
	{"failed_assertion", failed_assertion},
	{"write_past_end", write_past_end},
	{"read_past_end", read_past_end},
	{"use_after_pfree", use_after_pfree},
	{"use_after_delete", use_after_delete},
	{"closed_relation", closed_relation},
	{"released_catalog_row", released_catalog_row},
	{"kept_over_invalidation", kept_over_invalidation},
	{"forgotten_reference", forgotten_reference},
	{"signed_overflow", signed_overflow},
	{"shift_too_far", shift_too_far},
	{"misaligned_read", misaligned_read},
	{"bad_bool", bad_bool},
	{"stack_past_end", stack_past_end},
	{"global_past_end", global_past_end},
	{"use_after_return", use_after_return},
	{"unpinned_page", unpinned_page},
	{"uninitialised_memory", uninitialised_memory},
	{"uninitialised_variable", uninitialised_variable},
};

void
idem_fault(void)
{
	const char *name = GetConfigOption("fault.name", true, false);

	for (size_t i = 0; name != NULL && i < lengthof(faults); i++)
		if (strcmp(name, faults[i].name) == 0)
			faults[i].make();
}
