/*-------------------------------------------------------------------------
 *
 * keys.c
 *	  The rows of idempotency_keys in the table: the look-up by key, writing one
 *	  row, walking over many, and the tokens that fence them.
 *
 * Reading goes through the primary key's index directly. A query would be
 * planned, and a generic plan made while the table was empty is a sequential
 * scan that stays one after a hundred thousand inserts. It would also take
 * predicate locks on index pages, which make SERIALIZABLE transactions on
 * unlike keys fail each other.
 *
 * Writing goes through SQL (statements.c), so that whatever hangs on the table
 * is heeded. Only batch.c, where that costs too much, makes an exception.
 *
 *-------------------------------------------------------------------------
 */
#include "statements.h"

#include "access/detoast.h"
#include "access/genam.h"
#include "access/htup_details.h"
#include "access/multixact.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "datatype/timestamp.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* A token: above these bits the second, and in them, from above, the timeline and the sequence. */
#define TOKEN_SECOND_SHIFT 20
#define TOKEN_SEQUENCE_BITS 18

/*----------
 * Reading
 *----------
 */

static bool
keys_is_response(int column)
{
	return column == KEY_RESPONSE_HEADERS || column == KEY_RESPONSE_BODY ||
		column == KEY_RESPONSE_BYTES;
}

/*
 * Copies a column's value out of the scan. What is stored out of line is
 * fetched while the version is still protected by our snapshot; an unwanted
 * response is left as a pointer, which is good for writing it back only.
 */
static Datum
keys_copy_value(Form_pg_attribute attribute, Datum value, bool fetch)
{
	if (attribute->attlen == -1 && fetch &&
		VARATT_IS_EXTERNAL(DatumGetPointer(value)))
		return PointerGetDatum(detoast_external_attr((struct varlena *)
														 DatumGetPointer(value)));
	return datumCopy(value, attribute->attbyval, attribute->attlen);
}

static void
keys_copy_scanned(KeyRow *row, Relation table, TupleTableSlot *slot, bool with_response)
{
	TupleDesc desc = RelationGetDescr(table);

	slot_getsomeattrs(slot, KEY_NCOLUMNS);
	row->tid = slot->tts_tid;
	for (int i = 0; i < KEY_NCOLUMNS; i++)
	{
		row->isnull[i] = slot->tts_isnull[i];
		row->values[i] = (Datum) 0;
		if (!row->isnull[i])
			row->values[i] = keys_copy_value(TupleDescAttr(desc, i), slot->tts_values[i],
											 with_response || !keys_is_response(i));
	}
	row->status = idem_state_named(TextDatumGetCString(row->values[KEY_STATUS]));
}

/*
 * What index_getnext_slot() does, backwards, with a slot that is made when there is
 * something to put into it: a new key has nothing.
 */
static bool
keys_scan_next(IndexScanDesc scan, Relation table, TupleTableSlot **slot)
{
	while (scan->xs_heap_continue || index_getnext_tid(scan, BackwardScanDirection) != NULL)
	{
		if (*slot == NULL)
			*slot = table_slot_create(table, NULL);
		if (index_fetch_heap(scan, *slot))
			return true;
	}
	return false;
}

/*
 * Finds the row of a key.
 *
 * KEYS_NOW reads the last committed version, whatever the transaction's
 * isolation level; take the key's lock first where the answer leads to a
 * write. Above READ COMMITTED the transaction has a snapshot of its own, and
 * *agrees says whether that sees the same version, or like us none: if not,
 * the caller may not base an answer on it that lets the transaction go on.
 * KEYS_SNAPSHOT reads what the running statement sees.
 *
 * Above READ COMMITTED all versions are fetched and judged one by one. That
 * way one look serves both snapshots (what this transaction wrote itself is in
 * both: SnapshotSetCommandId()), and no predicate lock is taken, which
 * a scan under an MVCC snapshot would do for the whole index page: unlike
 * keys on it would fail each other's transactions.
 *
 * Of many versions of one key, which a snapshot that somebody holds can keep in the
 * index, the newest is most often the last one there: they are in the order of their
 * places in the table. So the index is read backwards.
 *
 * Most looks of KEYS_NOW are followed by a write, so that its locks are taken at
 * once. Nobody has to ask for a stronger one later, behind somebody who keeps writers
 * out and waits for this transaction: REINDEX and amcheck's bt_index_parent_check()
 * lock first the table and then the index.
 *
 * The row is built in the current memory context. Errors: 55000 if the table
 * is not as expected.
 */
bool
idem_keys_find(const KeyIdentity *id, KeyRead how, bool with_response,
			   KeyRow *row, bool *agrees)
{
	LOCKMODE lock = how == KEYS_NOW ? RowExclusiveLock : AccessShareLock;
	Relation table = idem_table_open(lock);
	Relation index = index_open(RelationGetPrimaryKeyIndex_compat(table), lock);
	TupleTableSlot *slot = NULL;
	bool two_snapshots = how == KEYS_NOW && IsolationUsesXactSnapshot();
	Snapshot snapshot = RegisterSnapshot(how == KEYS_NOW ? GetLatestSnapshot()
														 : GetActiveSnapshot());
	bool found = false;
	bool same = true;
	ScanKeyData keys[3];
	IndexScanDesc scan;

	/* ScanKeyInit compares texts in the "C" collation, as the columns do. */
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ,
				PointerGetDatum(id->scope));
	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_TEXTEQ,
				PointerGetDatum(id->operation));
	ScanKeyInit(&keys[2], 3, BTEqualStrategyNumber, F_TEXTEQ,
				PointerGetDatum(id->key));

	scan = index_beginscan_compat(table, index,
								  two_snapshots ? SnapshotAny : snapshot, 3);
	index_rescan(scan, keys, 3, NULL, 0);
	while (keys_scan_next(scan, table, &slot))
	{
		bool current = true;

		if (two_snapshots)
		{
			bool seen;

			current = table_tuple_satisfies_snapshot(table, slot, snapshot);
			seen = table_tuple_satisfies_snapshot(table, slot,
												  GetTransactionSnapshot());
			same = same && seen == current;
		}
		if (current && !found)
		{
			keys_copy_scanned(row, table, slot, with_response);
			found = true;
			if (!two_snapshots)
				break;
		}
		CHECK_FOR_INTERRUPTS();
	}
	index_endscan(scan);
	UnregisterSnapshot(snapshot);
	if (slot != NULL)
		ExecDropSingleTupleTableSlot(slot);
	index_close(index, NoLock);
	table_close(table, NoLock);
	if (agrees != NULL)
		*agrees = same;
	return found;
}

/*
 * Whether another running transaction holds a lock on the row in the slot that
 * an update of ours would have to wait for. KEY SHARE, by which a foreign key
 * holds on to a row that it refers to, is not one: no claim changes the columns
 * of the key. Several lockers are a multixact, whose members count one by one;
 * this transaction may be among them.
 */
static bool
keys_locked_by_other(TupleTableSlot *slot)
{
	BufferHeapTupleTableSlot *stored = (BufferHeapTupleTableSlot *) slot;
	TransactionId xmax;
	uint16 mask;
	MultiXactMember *members;
	int nmembers;
	bool result = false;

	if (!TTS_IS_BUFFERTUPLE(slot))
		return false;
	LockBuffer(stored->buffer, BUFFER_LOCK_SHARE);
	xmax = HeapTupleHeaderGetRawXmax(stored->base.tuple->t_data);
	mask = stored->base.tuple->t_data->t_infomask;
	LockBuffer(stored->buffer, BUFFER_LOCK_UNLOCK);

	if (mask & HEAP_XMAX_INVALID)
		return false;
	if (!(mask & HEAP_XMAX_IS_MULTI))
		return !(HEAP_XMAX_IS_LOCKED_ONLY(mask) && HEAP_XMAX_IS_KEYSHR_LOCKED(mask)) &&
			!TransactionIdIsCurrentTransactionId(xmax) &&
			TransactionIdIsInProgress(xmax);

	nmembers = GetMultiXactIdMembers(xmax, &members, false, HEAP_XMAX_IS_LOCKED_ONLY(mask));
	for (int i = 0; i < nmembers && !result; i++)
		result = members[i].status != MultiXactStatusForKeyShare &&
			!TransactionIdIsCurrentTransactionId(members[i].xid) &&
			TransactionIdIsInProgress(members[i].xid);
	if (nmembers > 0)
		pfree(members);
	return result;
}

/*
 * Whether another transaction is about to delete or replace this version
 * right now. That can only be clean-up, forget_scope() or another caller that
 * takes no key locks; writing would wait for it. Clean-up locks all rows of a
 * batch before it deletes the first, and a dirty snapshot does not tell of
 * row locks.
 */
bool
idem_keys_being_written(const KeyRow *row)
{
	Relation table = idem_table_open(AccessShareLock);
	TupleTableSlot *slot = table_slot_create(table, NULL);
	ItemPointerData tid = row->tid;
	SnapshotData dirty;
	bool result;

	InitDirtySnapshot(dirty);
	result = table_tuple_fetch_row_version(table, &tid, &dirty, slot) &&
		(TransactionIdIsValid(dirty.xmax) || keys_locked_by_other(slot));
	ExecDropSingleTupleTableSlot(slot);
	table_close(table, NoLock);
	return result;
}

/*----------
 * Writing
 *----------
 */

/*
 * The parameters by which a statement finds a version; see THIS_VERSION in
 * statements.c.
 */
#define VERSION_PARAMETERS 4

static void
keys_version(const KeyRow *row, Datum *values)
{
	values[0] = PointerGetDatum(&row->tid);
	values[1] = row->values[KEY_EXPIRES_AT];
	values[2] = row->values[KEY_STATUS];
	values[3] = Int64GetDatum(KeyRowToken(row));
}

static uint64
keys_execute(KeyStatement statement, Datum *values, const char *nulls)
{
	return idem_plan_execute(statement, values, nulls, NULL, NULL);
}

/*
 * Writes a row, over the version "old" if the statement replaces one; returns how
 * many rows were written.
 */
static uint64
keys_write(KeyStatement statement, const KeyRow *old, KeyRow *row)
{
	Datum version[VERSION_PARAMETERS];

	if (old != NULL)
		keys_version(old, version);
	KeyRowSet(row, KEY_STATUS,
			  CStringGetTextDatum(idem_state_name(row->status)));
	return idem_plan_write(statement, version, old, row);
}

/*
 * Puts a new row in. May wait for a transaction that is inserting or deleting
 * it without the lock.
 *
 * The unique index is the judge. A bare INSERT asks it while it inserts; ON
 * CONFLICT would look for the key first, by a second descent of the index, and
 * announce and confirm the row in shared memory and in the WAL, which together
 * were a ninth of the instructions for a key (bench/README.md). To lose is rare,
 * and an error either way.
 *
 * Errors: 40001 somebody who took no lock has put the key in; 55000 something on
 * the table keeps the row out.
 */
static void
keys_insert(KeyRow *row)
{
	if (keys_write(STATEMENT_INSERT, NULL, row) != 1)
		idem_report_not_written();
}

/*
 * Puts a new row in, or says that the key is there already.
 *
 * Errors: 40001 above READ COMMITTED.
 */
bool
idem_keys_insert_if_absent(KeyRow *row)
{
	return keys_write(STATEMENT_INSERT_IF_ABSENT, NULL, row) == 1;
}

/*
 * Replaces the version "old" by "row", or says that it is no longer there as
 * it was read.
 *
 * Errors: 40001 above READ COMMITTED.
 */
bool
idem_keys_update(KeyRow *row, const KeyRow *old)
{
	return keys_write(STATEMENT_UPDATE, old, row) == 1;
}

/*
 * Writes a row in the place of "old" (NULL if the key had none). Where that
 * version is gone, because clean-up or forget_scope() came in between, the row
 * is put in anew.
 *
 * Errors: 40001 somebody who took no lock has put another one in, or, above
 * READ COMMITTED, changed the old one.
 */
void
idem_keys_write(KeyRow *row, const KeyRow *old)
{
	if (old == NULL || !idem_keys_update(row, old))
		keys_insert(row);
}

/*
 * Deletes the version "old", or says that it is no longer there.
 *
 * Errors: 40001 above READ COMMITTED.
 */
bool
idem_keys_delete(const KeyRow *old)
{
	Datum values[VERSION_PARAMETERS];

	keys_version(old, values);
	return keys_execute(STATEMENT_DELETE, values, NULL) == 1;
}

/*
 * Deletes a scope's keys, those unfinished or held only if forced.
 */
uint64
idem_keys_delete_scope(text *scope, bool force)
{
	Datum values[2] = {PointerGetDatum(scope), BoolGetDatum(force)};

	return keys_execute(STATEMENT_DELETE_SCOPE, values, NULL);
}

/*
 * A step of a walk takes no more rows than this because many are of one moment.
 */
#define MOST_ROWS_OF_ONE_MOMENT INT64CONST(100000)

static void
keys_note_progress(void *state, uint64 nrows)
{
	IdemWalk *walk = state;

	for (uint64 i = 0; i < nrows; i++)
	{
		CHECK_FOR_INTERRUPTS();
		walk->from = Max(walk->from, DatumGetTimestampTz(idem_plan_value(i, 1)));
	}
}

/*
 * One step of a walk, which takes "rows" rows unless it comes to its end.
 *
 * The index shows what the steps before have taken for as long as any snapshot is
 * older, and all of the moment at which the last step ended is looked at again.
 * So a step that does not get beyond that moment is followed by one that takes
 * twice as many rows: then many rows of one moment are looked at a few times
 * each, and not once for every step.
 */
static uint64
keys_walk_on(KeyStatement statement, Datum *values, IdemWalk *walk, int64 rows)
{
	TimestampTz before = walk->from;
	uint64 processed = idem_plan_execute(statement, values, NULL, keys_note_progress, walk);

	walk->more = processed == (uint64) rows;
	walk->rows = walk->more && walk->from == before ? Min(rows * 2, MOST_ROWS_OF_ONE_MOMENT) : 0;
	return processed;
}

/*
 * Deletes the next batch of keys that have expired, the oldest first. Skips what
 * somebody else is writing, and never touches a key that is held or live in its
 * last version.
 */
uint64
idem_keys_delete_expired(IdemWalk *walk, TimestampTz now, int64 batch)
{
	int64 rows = Max(batch, walk->rows);
	Datum values[4] = {TimestampTzGetDatum(now), TimestampTzGetDatum(now),
					   Int64GetDatum(rows), TimestampTzGetDatum(walk->from)};

	return keys_walk_on(STATEMENT_DELETE_EXPIRED, values, walk, rows);
}

/*
 * Removes the next batch of responses that are due to go before their keys, the
 * oldest first.
 */
uint64
idem_keys_redact_due(IdemWalk *walk, TimestampTz now, int64 batch)
{
	int64 rows = Max(batch, walk->rows);
	Datum values[3] = {TimestampTzGetDatum(now), Int64GetDatum(rows),
					   TimestampTzGetDatum(walk->from)};

	return keys_walk_on(STATEMENT_REDACT_DUE, values, walk, rows);
}

/*
 * Deletes, in one statement, at most max_rows keys that had expired at the moment
 * "before": of a scope, of an operation, of both, or where they are NULL all.
 * Without a scope the oldest go first. Skips and spares what
 * idem_keys_delete_expired() does.
 */
uint64
idem_keys_cleanup(text *scope, text *operation, TimestampTz before, TimestampTz now,
				  int64 max_rows)
{
	Datum values[5] = {TimestampTzGetDatum(before), TimestampTzGetDatum(now),
					   Int64GetDatum(max_rows), PointerGetDatum(scope), PointerGetDatum(operation)};
	char nulls[5] = {' ', ' ', ' ', scope == NULL ? 'n' : ' ', operation == NULL ? 'n' : ' '};
	KeyStatement statement;

	if (scope == NULL)
		statement = operation == NULL ? STATEMENT_CLEANUP : STATEMENT_CLEANUP_OPERATION;
	else
		statement = operation == NULL ? STATEMENT_CLEANUP_SCOPE : STATEMENT_CLEANUP_SCOPE_OPERATION;
	return keys_execute(statement, values, nulls);
}

/*
 * Removes the responses of a scope's finished keys.
 */
uint64
idem_keys_redact_scope(text *scope)
{
	Datum values[2] = {PointerGetDatum(scope), TimestampTzGetDatum(GetCurrentTimestamp())};

	return keys_execute(STATEMENT_REDACT_SCOPE, values, NULL);
}

typedef struct Identities
{
	MemoryContext context;
	List *list;
} Identities;

static void
keys_copy_identities(void *state, uint64 nrows)
{
	Identities *result = state;
	MemoryContext spi = MemoryContextSwitchTo(result->context);

	for (uint64 i = 0; i < nrows; i++)
	{
		KeyIdentity *id = palloc(sizeof(KeyIdentity));

		id->scope = DatumGetTextPCopy(idem_plan_value(i, 1));
		id->operation = DatumGetTextPCopy(idem_plan_value(i, 2));
		id->key = DatumGetTextPCopy(idem_plan_value(i, 3));
		id->hash = 0;
		result->list = lappend(result->list, id);
	}
	MemoryContextSwitchTo(spi);
}

/*
 * Keys whose claim was abandoned and may be taken over, the oldest first; of
 * one operation, or of all if that is NULL; without the first few, which the
 * caller has seen. A list of KeyIdentity, without hashes, in the current context.
 * They have to be locked and looked at again.
 */
List *
idem_keys_abandoned(text *operation, int64 max_rows, int64 seen)
{
	Identities result = {CurrentMemoryContext, NIL};
	Datum values[4] = {PointerGetDatum(operation),
					   TimestampTzGetDatum(GetCurrentTimestamp()), Int64GetDatum(max_rows),
					   Int64GetDatum(seen)};
	char nulls[4] = {operation == NULL ? 'n' : ' ', ' ', ' ', ' '};

	idem_plan_execute(STATEMENT_ABANDONED, values, nulls, keys_copy_identities, &result);
	return result.list;
}

static void
keys_copy_scope(void *state, uint64 nrows)
{
	Identities *result = state;
	MemoryContext spi = MemoryContextSwitchTo(result->context);

	if (nrows > 0)
		result->list = list_make1(DatumGetTextPCopy(idem_plan_value(0, 1)));
	MemoryContextSwitchTo(spi);
}

/*
 * The first scope that there is a key of behind another, or NULL; in the current
 * context. Costs one probe of the index, however many keys a scope has.
 */
text *
idem_keys_next_scope(text *before)
{
	Identities result = {CurrentMemoryContext, NIL};
	Datum values[1] = {PointerGetDatum(before)};

	idem_plan_execute(STATEMENT_NEXT_SCOPE, values, NULL, keys_copy_scope, &result);
	return result.list != NIL ? linitial(result.list) : NULL;
}

/* Rows that are in memory at one time. */
#define PAGE_ROWS INT64CONST(1000)

typedef struct ScopePages
{
	MemoryContext context;
	Tuplestorestate *store;
	text *operation; /* and key: of the last row so far */
	text *key;
} ScopePages;

static void
keys_store_page(void *state, uint64 nrows)
{
	ScopePages *pages = state;
	MemoryContext spi = MemoryContextSwitchTo(pages->context);

	for (uint64 i = 0; i < nrows; i++)
		tuplestore_puttuple(pages->store, SPI_tuptable->vals[i]);
	if (nrows > 0)
	{
		pages->operation = DatumGetTextPCopy(idem_plan_value(nrows - 1, KEY_OPERATION + 1));
		pages->key = DatumGetTextPCopy(idem_plan_value(nrows - 1, KEY_KEY + 1));
	}
	MemoryContextSwitchTo(spi);
}

/*
 * Puts all rows of a scope that have not expired, as they are now, into a store;
 * says how many.
 */
uint64
idem_keys_of_scope(text *scope, Tuplestorestate *store)
{
	text *none = cstring_to_text("");
	ScopePages pages = {CurrentMemoryContext, store, none, none};
	TimestampTz now = GetCurrentTimestamp();
	uint64 total = 0;
	uint64 rows;

	do
	{
		Datum values[5] = {PointerGetDatum(scope), PointerGetDatum(pages.operation),
						   PointerGetDatum(pages.key), TimestampTzGetDatum(now),
						   Int64GetDatum(PAGE_ROWS)};

		rows = idem_plan_execute(STATEMENT_SCOPE_PAGE, values, NULL, keys_store_page, &pages);
		total += rows;
		CHECK_FOR_INTERRUPTS();
	} while (rows == (uint64) PAGE_ROWS);
	return total;
}

static void
keys_copy_count(void *state, uint64 nrows pg_attribute_unused())
{
	*(int64 *) state = DatumGetInt64(idem_plan_value(0, 1));
}

/*
 * How many keys have expired before a moment, are abandoned or held; no more are
 * counted than are enough. Walks an index.
 */
int64
idem_keys_count(KeyCount what, TimestampTz before, int64 enough)
{
	static const KeyStatement statements[] = {
		[KEYS_EXPIRED] = STATEMENT_COUNT_EXPIRED,
		[KEYS_ABANDONED] = STATEMENT_COUNT_ABANDONED,
		[KEYS_HELD] = STATEMENT_COUNT_HELD,
	};
	Datum values[3] = {TimestampTzGetDatum(before), TimestampTzGetDatum(GetCurrentTimestamp()),
					   Int64GetDatum(enough)};
	int64 result = 0;

	idem_plan_execute(statements[what], values, NULL, keys_copy_count, &result);
	return result;
}

/*
 * The second since 1970.
 */
static int64
keys_second(void)
{
	return GetCurrentTimestamp() / USECS_PER_SEC +
		(int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY;
}

/*
 * A fencing token for a new claim, larger than "floor", the last one that the
 * key is known to have had (0: none).
 *
 * The second since 1970, below it 2 bits of the timeline, and 18 of a sequence. So
 * a token is larger than all that were given in earlier seconds, whatever became
 * of those: nothing has to be put right after a restore, a promotion or the loss
 * of the last transactions, where a bare sequence begins anew behind the rows.
 * Within a second the sequence keeps tokens apart, for a quarter of a million
 * claims. The whole fits the 53 bits of a JavaScript number until the year 2242.
 *
 * A promotion is a matter of tenths of a second, and two machines' clocks can be
 * seconds apart. So a new primary can be in a second in which the old one has
 * given, or still gives, tokens that never got here; the sequence does not know of
 * those, and gives their numbers again. But the new primary writes on another
 * timeline. With its lowest two bits no token of the last three timelines is given
 * again in any second, and within one second it is also the larger one, except
 * where those two bits begin anew.
 *
 * A clock that steps back makes the token of a new key smaller than those
 * given before. That does no harm: what is compared is always the token of
 * one key, and for that key the row's own is the floor. It is raised to the
 * second after the row's, not by one, so that it keeps its bits of the sequence
 * and meets no other token of that second.
 *
 * Errors: 2200H a floor that leaves no room, which only a hand-written row has.
 */
int64
idem_keys_next_token(int64 floor)
{
	int64 number = nextval_internal(idem_member_oid(IDEM_TOKEN_SEQUENCE), false);
	int64 low = ((int64) GetWALInsertionTimeLine() << TOKEN_SEQUENCE_BITS |
				 (number & ((INT64CONST(1) << TOKEN_SEQUENCE_BITS) - 1))) &
		((INT64CONST(1) << TOKEN_SECOND_SHIFT) - 1);
	int64 second = keys_second();
	int64 token = (second << TOKEN_SECOND_SHIFT) | low;

	if (token > floor)
		return token;
	second = (floor >> TOKEN_SECOND_SHIFT) + 1;
	if (second > PG_INT64_MAX >> TOKEN_SECOND_SHIFT)
		ereport(ERROR,
				(errcode(ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED),
				 errmsg("the key's token is too large to be followed by another"),
				 errhint("Tokens are written by the functions of schema %s only; forget() the key.",
						 IDEM_SCHEMA_NAME)));
	return (second << TOKEN_SECOND_SHIFT) | low;
}

/* How much the clock may be behind one on another node, in seconds. */
#define MOST_CLOCK_LAG 10

/*
 * Returns once every token that is given here is larger than one that was given
 * elsewhere: in the second after it. That is most often at once.
 *
 * Errors: 55000 the clock is too far behind for that.
 */
void
idem_keys_outlive_token(int64 token)
{
	int64 second = token >> TOKEN_SECOND_SHIFT;

	while (keys_second() <= second)
	{
		if (second - keys_second() > MOST_CLOCK_LAG)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the clock of this server is behind that of the one that gave the"
							" key's token"),
					 errdetail("Tokens given here would be smaller."),
					 errhint("Keep the clocks together (NTP).")));
		CHECK_FOR_INTERRUPTS();
		pg_usleep(10000L);
	}
}

/*----------
 * Copies
 *----------
 */

/* Columns whose values are not in the row itself. */
static const KeyColumn keys_by_reference[] = {
	KEY_CLAIM_ID, KEY_SCOPE, KEY_OPERATION, KEY_KEY, KEY_STATUS, KEY_FINGERPRINT,
	KEY_RECOVERY_POINT, KEY_STATE, KEY_RESPONSE_HEADERS, KEY_RESPONSE_BODY, KEY_RESPONSE_BYTES,
	KEY_LAST_ERROR, KEY_NOTE};

/*
 * A copy of a row with all its values: one chunk in the current memory context,
 * which pfree() frees as a whole.
 */
KeyRow *
idem_keys_copy_row(const KeyRow *row)
{
	KeyColumn columns[lengthof(keys_by_reference)];
	Size sizes[lengthof(keys_by_reference)];
	int ncolumns = 0;
	Size total = MAXALIGN(sizeof(KeyRow));
	KeyRow *copy;
	char *to;

	for (int i = 0; i < (int) lengthof(keys_by_reference); i++)
	{
		KeyColumn column = keys_by_reference[i];

		if (row->isnull[column])
			continue;
		columns[ncolumns] = column;
		sizes[ncolumns] = column == KEY_CLAIM_ID
			? UUID_LEN
			: VARSIZE_ANY(DatumGetPointer(row->values[column]));
		total += MAXALIGN(sizes[ncolumns++]);
	}

	copy = palloc_extended(total, MCXT_ALLOC_HUGE);
	*copy = *row;
	to = (char *) copy + MAXALIGN(sizeof(KeyRow));
	for (int i = 0; i < ncolumns; i++)
	{
		memcpy(to, DatumGetPointer(row->values[columns[i]]), sizes[i]);
		copy->values[columns[i]] = PointerGetDatum(to);
		to += MAXALIGN(sizes[i]);
	}
	return copy;
}

/*
 * The same of no more than what a version is found again by, to be replaced or
 * deleted; see keys_version().
 */
KeyRow *
idem_keys_copy_version(const KeyRow *row)
{
	KeyRow version = *row;

	for (int i = 0; i < KEY_NCOLUMNS; i++)
		if (i != KEY_EXPIRES_AT && i != KEY_STATUS && i != KEY_TOKEN)
			KeyRowSetNull(&version, i);
	return idem_keys_copy_row(&version);
}
