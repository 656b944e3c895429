/*-------------------------------------------------------------------------
 *
 * batch.c
 *	  Many completed keys at once, for once_batch().
 *
 * No key locks are taken, since they would exhaust the server's lock table:
 * the unique index decides. Keys are put in in the order of the index, and who
 * meets one that another transaction is just putting in waits for it there,
 * before going on to the next. So of two batches that overlap one is ahead at
 * every common key, and they do not deadlock.
 *
 * INSERT ... ON CONFLICT DO NOTHING keeps to the same rules, but it looks for
 * each key before it puts it in, by a descent of the index of its own, which was
 * almost a third of its time (bench/README.md). Most batches hold nothing but new
 * keys. So a key is put in here as ON CONFLICT does it, only without the look: a
 * row is announced ("speculative insertion", execIndexing.c), its index entries
 * are made, and if the unique index turns out to have the key, the row is taken
 * back as if it had never been. That leaves a dead row behind, so from the first
 * key that is there already, the rest of the batch is looked for.
 *
 * All that is done past SQL, so only where an INSERT would do no more than that;
 * see idem_table_is_plain() and batch_is_unconstrained(). Otherwise there is the INSERT.
 * What can go wrong here says nothing of a row.
 *
 *-------------------------------------------------------------------------
 */
#include "statements.h"

#include "access/genam.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/*
 * Keys that are neither known nor get written: so often in a row nobody comes in
 * between, it is a trigger that keeps them out.
 */
#define MAX_ROUNDS 100

/*
 * A batch of distinct keys in the order of the index, and what became of each.
 *
 * Each key expires a microsecond after the one before it. Clean-up goes along the
 * moments of expiry and remembers the last one; a hundred thousand keys of the
 * same moment would give it nothing to remember.
 */
typedef struct Batch
{
	text *scope;
	text *operation;
	Datum *keys;
	int nkeys;
	TimestampTz now;
	TimestampTz expires_at; /* of the first */
	bool *first;            /* put in by us */
	bool *again;            /* not put in: to be looked at */
	int64 *tokens;          /* what a row had that is to be replaced; 0: none */
	bool *open;             /* undecided or held */
	bool undecided;
	bool held;
} Batch;

/*
 * The order of the primary key, whose columns have the collation "C".
 */
int
idem_batch_order(const text *a, const text *b)
{
	int length_a = VARSIZE_ANY_EXHDR(a);
	int length_b = VARSIZE_ANY_EXHDR(b);
	int order = memcmp(VARDATA_ANY(a), VARDATA_ANY(b), Min(length_a, length_b));

	return order != 0 ? order : length_a - length_b;
}

static int
batch_compare(const void *a, const void *b)
{
	return idem_batch_order((text *) DatumGetPointer(*(const Datum *) a),
							(text *) DatumGetPointer(*(const Datum *) b));
}

/*----------
 * New keys
 *----------
 */

/*
 * Searching the primary key's index for keys of the batch, with what is worth
 * keeping from one search to the next. A dirty snapshot, because it shows what
 * is undecided, and because a scan under it takes no predicate locks (see
 * idem_keys_find()).
 */
typedef struct Search
{
	Relation table;
	Relation index;
	SnapshotData dirty;
	TupleTableSlot *slot;
	ScanKeyData keys[3];
	IndexScanDesc scan;
} Search;

static void
batch_begin_search(Search *search, const Batch *batch)
{
	ScanKeyInit(&search->keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ,
				PointerGetDatum(batch->scope));
	ScanKeyInit(&search->keys[1], 2, BTEqualStrategyNumber, F_TEXTEQ,
				PointerGetDatum(batch->operation));
	InitDirtySnapshot(search->dirty);
	search->slot = table_slot_create(search->table, NULL);
	search->scan = index_beginscan_compat(search->table, search->index, &search->dirty, 3);
}

static void
batch_end_search(Search *search)
{
	index_endscan(search->scan);
	ExecDropSingleTupleTableSlot(search->slot);
}

/*
 * Whether the table has a key. Waits while a running transaction is putting it
 * in, replacing or deleting it, as check_exclusion_or_unique_constraint() in
 * execIndexing.c does.
 */
static bool
batch_is_known(Search *search, Datum key)
{
	for (;;)
	{
		TransactionId rival;

		ScanKeyInit(&search->keys[2], 3, BTEqualStrategyNumber, F_TEXTEQ, key);
		index_rescan(search->scan, search->keys, 3, NULL, 0);
		if (!index_getnext_slot(search->scan, ForwardScanDirection, search->slot))
			return false;
		rival = TransactionIdIsValid(search->dirty.xmin) ? search->dirty.xmin : search->dirty.xmax;
		if (!TransactionIdIsValid(rival))
			return true;

		/* Let go of the index's page before falling asleep. */
		index_rescan(search->scan, search->keys, 3, NULL, 0);
		if (search->dirty.speculativeToken != 0)
			SpeculativeInsertionWait(rival, search->dirty.speculativeToken);
		else
			XactLockTableWait(rival, search->table, &search->slot->tts_tid, XLTW_InsertIndex);
	}
}

/*
 * Whether an INSERT of such a row into the table, which is plain, could be refused
 * by nothing but another row in the primary key. The indexes are those that are
 * open, not what the catalog says by now: one may be made or rebuilt concurrently.
 */
static bool
batch_is_unconstrained(Relation table, const ResultRelInfo *result, const KeyRow *row)
{
	TupleDesc desc = RelationGetDescr(table);
	Oid primary_key = RelationGetPrimaryKeyIndex_compat(table);

	for (int i = 0; i < desc->natts; i++)
		if (TupleDescAttr(desc, i)->attnotnull && (i >= KEY_NCOLUMNS || row->isnull[i]))
			return false;
	for (int i = 0; i < result->ri_NumIndices; i++)
		if (result->ri_IndexRelationInfo[i]->ii_ExclusionOps != NULL ||
			(result->ri_IndexRelationInfo[i]->ii_Unique &&
			 RelationGetRelid(result->ri_IndexRelationDescs[i]) != primary_key))
			return false;
	return true;
}

/*
 * Puts in the row in the slot. False, and nothing is left of it: the unique
 * index has another entry of its key, of a transaction that may be running.
 */
static bool
batch_insert_row(Relation table, ResultRelInfo *result, TupleTableSlot *slot, EState *estate)
{
	TransactionId xid = GetCurrentTransactionId();
	bool conflict = false;
	uint32 token;

	token = SpeculativeInsertionLockAcquire(xid);
	table_tuple_insert_speculative(table, slot, estate->es_output_cid, 0, NULL, token);
	list_free(ExecInsertIndexTuples_compat(result, slot, estate, true, &conflict));
	table_tuple_complete_speculative(table, slot, token, !conflict);
	SpeculativeInsertionLockRelease(xid);
	ResetPerTupleExprContext(estate);
	return !conflict;
}

/*
 * Puts in what is not there, in the order of the keys, and notes it in
 * batch->first. The first key is looked for in any case: a batch that is
 * delivered again leaves no dead row at all. False, and nothing is done, if more
 * could refuse a key than the primary key. The table has to be plain.
 */
static bool
batch_insert_new(Batch *batch, Relation table)
{
	Search search = {.table = table};
	EState *estate = CreateExecutorState();
	ResultRelInfo *result = makeNode(ResultRelInfo);
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(table), &TTSOpsVirtual);
	KeyIdentity id = {batch->scope, batch->operation, NULL, 0};
	KeyRow row;
	bool met = false; /* a key that is there */
	bool unconstrained;

	idem_state_init(&row, &id);
	KeyRowSet(&row, KEY_CREATED_AT, TimestampTzGetDatum(batch->now));
	KeyRowSet(&row, KEY_COMPLETED_AT, TimestampTzGetDatum(batch->now));
	KeyRowSet(&row, KEY_EXPIRES_AT, TimestampTzGetDatum(batch->expires_at));
	KeyRowSet(&row, KEY_ATTEMPT, Int32GetDatum(1));
	KeyRowSet(&row, KEY_KEY, batch->keys[0]);
	KeyRowSet(&row, KEY_STATUS, CStringGetTextDatum(idem_state_name(KEY_COMPLETED)));

	estate->es_output_cid = GetCurrentCommandId(true);
	InitResultRelInfo(result, table, 0, NULL, 0);
	ExecOpenIndices(result, true);
	unconstrained = batch_is_unconstrained(table, result, &row);
	search.index = index_open(RelationGetPrimaryKeyIndex_compat(table), RowExclusiveLock);
	batch_begin_search(&search, batch);
	for (int i = 0; unconstrained && i < batch->nkeys; i++)
	{
		KeyRowSet(&row, KEY_KEY, batch->keys[i]);
		KeyRowSet(&row, KEY_EXPIRES_AT, TimestampTzGetDatum(batch->expires_at + i));
		for (;;)
		{
			CHECK_FOR_INTERRUPTS();
			if ((met || i == 0) && batch_is_known(&search, batch->keys[i]))
			{
				met = true;
				break;
			}
			ExecStoreAllNullTuple(slot);
			memcpy(slot->tts_values, row.values, sizeof(row.values));
			memcpy(slot->tts_isnull, row.isnull, sizeof(row.isnull));
			if (batch_insert_row(table, result, slot, estate))
			{
				batch->first[i] = true;
				break;
			}
			met = true;
		}
	}
	batch_end_search(&search);
	index_close(search.index, NoLock);
	ExecCloseIndices(result);
	ExecDropSingleTupleTableSlot(slot);
	FreeExecutorState(estate);
	CommandCounterIncrement();
	return unconstrained;
}

/*----------
 * Known keys
 *----------
 */

/*
 * Where in the batch the key is that a statement returned first in a row.
 */
static int
batch_position_of(const Batch *batch, uint64 row)
{
	Datum key = PointerGetDatum(DatumGetTextPP(idem_plan_value(row, 1)));
	Datum *found = bsearch(&key, batch->keys, batch->nkeys, sizeof(Datum), batch_compare);

	if (found == NULL)
		elog(ERROR, "unexpected key in batch");
	return found - batch->keys;
}

static void
batch_mark_first(void *state, uint64 nrows)
{
	Batch *batch = state;

	for (uint64 i = 0; i < nrows; i++)
	{
		CHECK_FOR_INTERRUPTS();
		batch->first[batch_position_of(batch, i)] = true;
	}
}

static void
batch_judge_existing(void *state, uint64 nrows)
{
	Batch *batch = state;

	for (uint64 i = 0; i < nrows; i++)
	{
		int position = batch_position_of(batch, i);
		char *status = TextDatumGetCString(idem_plan_value(i, 2));

		CHECK_FOR_INTERRUPTS();
		batch->tokens[position] = DatumGetInt64(idem_plan_value(i, 4));
		if (DatumGetBool(idem_plan_value(i, 3)))
			continue;
		batch->again[position] = false;
		batch->open[position] = strcmp(status, idem_state_name(KEY_COMPLETED)) != 0;
		if (strcmp(status, idem_state_name(KEY_HELD)) == 0)
			batch->held = true;
		else if (batch->open[position])
			batch->undecided = true;
	}
}

/*
 * Executes one of the statements for a batch on the keys that are marked, and
 * says how many of these it did not touch.
 */
static int
batch_execute(KeyStatement statement, Batch *batch, const bool *marked,
			  void (*consume)(void *state, uint64 nrows))
{
	Datum *keys = palloc(sizeof(Datum) * batch->nkeys);
	Datum *tokens = palloc(sizeof(Datum) * batch->nkeys);
	bool *no_token = palloc(sizeof(bool) * batch->nkeys);
	Datum values[6] = {PointerGetDatum(batch->scope), PointerGetDatum(batch->operation),
					   (Datum) 0, TimestampTzGetDatum(batch->now),
					   TimestampTzGetDatum(batch->expires_at), (Datum) 0};
	int number = 0;
	int lower_bound = 1;

	for (int i = 0; i < batch->nkeys; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (!marked[i])
			continue;
		keys[number] = batch->keys[i];
		no_token[number] = batch->tokens[i] == 0;
		tokens[number] = (Datum) 0;
		if (!no_token[number])
			tokens[number] = Int64GetDatum(idem_keys_next_token(batch->tokens[i]));
		number++;
	}
	if (number == 0)
		return 0;
	values[2] = PointerGetDatum(construct_array(keys, number, TEXTOID, -1, false, TYPALIGN_INT));
	values[5] = PointerGetDatum(construct_md_array(tokens, no_token, 1, &number, &lower_bound,
												   INT8OID, sizeof(int64), FLOAT8PASSBYVAL,
												   TYPALIGN_DOUBLE));
	return number - (int) idem_plan_execute(statement, values, NULL, consume, batch);
}

/*
 * Puts in completed rows for keys that are distinct and sorted as
 * idem_batch_order() says, and notes in "first" (all false) which are there for
 * the first time. They expire from expires_at on, one after the other.
 *
 * New keys first; then a look at those that were there already; then what of
 * these has expired or failed is replaced. Batches that overlap meet in the same
 * order in the first and in the last. A key can change from one to the other if
 * clean-up or forget() removes it in between; that, and more than one batch in a
 * transaction, can end in a deadlock, which the server resolves. What could not
 * be replaced, because somebody else got hold of it after our look, is looked at
 * again: it may be done now, or under a claim that is undecided.
 *
 * A key may be neither: a claim on it is in progress or waits for its retry_in,
 * or it is held. It is noted in "open" (all false), or, if that is NULL, an error.
 *
 * Errors: 40001 above READ COMMITTED; 55006 a claim is undecided; IK005; 40P01
 * a deadlock with others; 55000 the table is not as expected, or keeps rows out.
 */
void
idem_batch_insert(text *scope, text *operation, Datum *keys, int nkeys,
				  TimestampTz now, TimestampTz expires_at, bool *first, bool *open)
{
	Batch batch = {
		.scope = scope,
		.operation = operation,
		.keys = keys,
		.nkeys = nkeys,
		.now = now,
		.expires_at = expires_at,
		.first = first,
		.open = open,
	};
	bool skip_open = open != NULL;
	Relation table = idem_table_open(RowExclusiveLock);
	bool done = false;
	int left = 0;

	batch.again = palloc0(sizeof(bool) * nkeys);
	batch.tokens = palloc0(sizeof(int64) * nkeys);
	if (!skip_open)
		batch.open = palloc0(sizeof(bool) * nkeys);
	if (idem_table_is_plain(table))
	{
		IdemCaller caller;

		idem_become(&caller, table->rd_rel->relowner, true);
		done = batch_insert_new(&batch, table);
		idem_unbecome(&caller);
	}
	table_close(table, NoLock);
	if (!done)
	{
		memset(batch.again, true, nkeys);
		(void) batch_execute(STATEMENT_BATCH_INSERT, &batch, batch.again, batch_mark_first);
	}
	for (int i = 0; i < nkeys; i++)
	{
		CHECK_FOR_INTERRUPTS();
		batch.again[i] = !first[i];
		left += batch.again[i];
	}
	if (left < nkeys)
		ForceSyncCommit();

	for (int round = 0; left > 0; round++)
	{
		if (round == MAX_ROUNDS)
			idem_report_not_written();
		(void) batch_execute(STATEMENT_BATCH_LOOK, &batch, batch.again, batch_judge_existing);
		if (batch.held && !skip_open)
			idem_report_held();
		if (batch.undecided && !skip_open)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_IN_USE),
					 errmsg("a claim on one of the keys is undecided, or its retry_in is not over"),
					 errhint("Roll back and try the batch again later, or let skip_undecided"
							 " leave such keys out; use once() and claim() on different"
							 " operations.")));

		left = batch_execute(STATEMENT_BATCH_REPLACE, &batch, batch.again, batch_mark_first);
		for (int i = 0; i < nkeys; i++)
			batch.again[i] = batch.again[i] && !first[i];
		CHECK_FOR_INTERRUPTS();
	}
}
