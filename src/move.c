/*-------------------------------------------------------------------------
 *
 * move.c
 *	  Keys that move to another node with their scopes: export_scopes() there,
 *	  import_key() here, forget_exported() there once all is done.
 *
 * An export closes what it takes: until its transaction ends nobody decides about
 * those keys, and whoever was at it has been waited for. So it holds all that was
 * ever acknowledged. Where scopes have homes (home.c) that is their shards' lock,
 * which a move that is under way holds already; where they have none, it is a lock on
 * the table, since every call that decides takes one there.
 *
 * A key that is put in keeps its token, its lease and its attempt: its owner goes on
 * with it on the new node. The same export may be imported again, and so may a later
 * one over what an earlier attempt to move has left: of two versions of one life of a
 * key the one that is further on stays. Two lives of one key mean that both nodes have
 * worked on it, and nobody but a person can tell which counts.
 *
 *-------------------------------------------------------------------------
 */
#include "claims.h"
#include "rules.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/typcache.h"

/*----------
 * Which scopes
 *----------
 */

/* A list of scopes, or all whose hashes are within bounds. */
typedef struct Selection
{
	text **scopes; /* NULL: by hash */
	int nscopes;
	int32 minimum;
	int32 maximum;
} Selection;

static int
move_compare_scopes(const void *a, const void *b)
{
	return idem_batch_order(*(text *const *) a, *(text *const *) b);
}

static void
move_read_scopes(Selection *selection, ArrayType *array)
{
	Datum *elements;
	bool *nulls;
	int number;
	int distinct = 0;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &number);
	selection->scopes = palloc(sizeof(text *) * Max(number, 1));
	for (int i = 0; i < number; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("scope must not be null"),
					 errhint("Leave what has no scope out of the array.")));
		selection->scopes[i] = DatumGetTextPP(elements[i]);
		idem_check_identity_part(selection->scopes[i], "scope");
	}
	qsort(selection->scopes, number, sizeof(text *), move_compare_scopes);
	for (int i = 0; i < number; i++)
		if (i == 0 || !idem_texts_equal(selection->scopes[i], selection->scopes[i - 1]))
			selection->scopes[distinct++] = selection->scopes[i];
	selection->nscopes = distinct;
}

/*
 * The three arguments of a call. Errors: 22004, 22001, 22023.
 */
static void
move_read_selection(Selection *selection, FunctionCallInfo fcinfo)
{
	bool by_list = !idem_arg_is_null(fcinfo, 0);
	bool by_range = !idem_arg_is_null(fcinfo, 1) && !idem_arg_is_null(fcinfo, 2);

	memset(selection, 0, sizeof(Selection));
	if (by_list == by_range || idem_arg_is_null(fcinfo, 1) != idem_arg_is_null(fcinfo, 2))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("either scopes or both minimum and maximum must be given"),
				 errhint("Give an array of scopes, or the bounds of their hashes, such as"
						 " shardminvalue and shardmaxvalue of pg_dist_shard.")));
	if (by_list)
		move_read_scopes(selection, PG_GETARG_ARRAYTYPE_P(0));
	else
	{
		selection->minimum = PG_GETARG_INT32(1);
		selection->maximum = PG_GETARG_INT32(2);
		if (selection->minimum > selection->maximum)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("minimum must not be larger than maximum"),
					 errhint("Both bounds belong to the range.")));
	}
}

/*
 * Does something with each of the scopes, by hash with those that there are keys
 * of; the sum of what that returns.
 *
 * Errors: 42501 one that the role may not use: a part of a move would be lost.
 */
static uint64
move_each_scope(const Selection *selection, uint64 (*action)(text *scope, void *state), void *state)
{
	text *scope = cstring_to_text("");
	text *before;
	uint64 total = 0;
	int32 hash;

	for (int i = 0; i < selection->nscopes; i++)
	{
		idem_binding_check(selection->scopes[i]);
		total += action(selection->scopes[i], state);
		CHECK_FOR_INTERRUPTS();
	}
	if (selection->scopes != NULL)
		return total;

	while (before = scope, (scope = idem_keys_next_scope(before)) != NULL)
	{
		pfree(before);
		if (idem_home_hash(scope, &hash) &&
			hash >= selection->minimum && hash <= selection->maximum)
		{
			idem_binding_check(scope);
			total += action(scope, state);
		}
		CHECK_FOR_INTERRUPTS();
	}
	return total;
}

/*----------
 * Out of this node
 *----------
 */

/*
 * From here on nobody decides about their keys; see the head of this file.
 */
static void
move_close(const Selection *selection)
{
	if (!idem_have_homes())
		table_close(idem_table_open(ShareLock), NoLock);
	else if (selection->scopes == NULL)
		idem_home_close_range(selection->minimum, selection->maximum);
	else
		for (int i = 0; i < selection->nscopes; i++)
			idem_home_close(selection->scopes[i]);
}

static uint64
move_export_scope(text *scope, void *store)
{
	return idem_keys_of_scope(scope, store);
}

PG_FUNCTION_INFO_V1(idempotency_export_scopes);

/*
 * SQL export_scopes(): the keys of scopes that have not expired. Waits for whoever
 * is deciding about one of them, and keeps everybody else from it until the
 * transaction ends.
 *
 * Errors: 22004, 22001, 22023 arguments; 25006 read-only; 42501 a scope that the
 * role may not use; 55000 above READ COMMITTED, or no scope is at home anywhere;
 * 55006 this transaction has a claim open; 55P03, 40P01 while waiting.
 */
Datum
idempotency_export_scopes(PG_FUNCTION_ARGS)
{
	Selection selection;

	idem_require_writable("export_scopes");
	move_read_selection(&selection, fcinfo);
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("export_scopes() does not see the latest keys in this transaction"),
				 errdetail("Its snapshot is older than the end of the claims that were waited"
						   " for."),
				 errhint("Use the isolation level READ COMMITTED.")));
	if (idem_pending_left_open())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("this transaction has a claim without a lease open"),
				 errhint("Complete it first: a key that is not written yet cannot be exported.")));
	InitMaterializedSRF(fcinfo, 0);
	move_close(&selection);
	(void) move_each_scope(&selection, move_export_scope,
						   ((ReturnSetInfo *) fcinfo->resultinfo)->setResult);
	return (Datum) 0;
}

static uint64
move_forget_scope(text *scope, void *state pg_attribute_unused())
{
	if (!idem_home_stay_away(scope))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("keys of a scope that is at home on this node cannot be forgotten as"
						" exported"),
				 errhint("Move its shard first. forget_scope() forgets the keys of a scope"
						 " where it is at home.")));
	return idem_keys_delete_scope(scope, true);
}

PG_FUNCTION_INFO_V1(idempotency_forget_exported);

/*
 * SQL forget_exported(): deletes the keys of scopes whose home is another node,
 * unfinished ones included, and says how many rows went.
 *
 * Errors: 22004, 22001, 22023 arguments; 25006 read-only; 42501 a scope that the
 * role may not use; 55000 a scope is at home here, or nobody says where it is.
 */
Datum
idempotency_forget_exported(PG_FUNCTION_ARGS)
{
	Selection selection;

	idem_require_writable("forget_exported");
	move_read_selection(&selection, fcinfo);
	if (!idem_have_homes())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("\"idempotency.home_table\" is not set"),
				 errhint("It says which keys belong to another node."
						 " Without it, use forget_scope() with force.")));
	AcceptInvalidationMessages();
	PG_RETURN_INT64(move_each_scope(&selection, move_forget_scope, NULL));
}

/*----------
 * Into this node
 *----------
 */

pg_noreturn static void
move_report_no_key(const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("the row is no key"),
			 errdetail("%s", detail),
			 errhint("Pass the rows of export_scopes() on as they are.")));
}

pg_noreturn static void
move_report_conflict(bool completed)
{
	if (completed)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_OTHER_COMPLETION),
				 errmsg("the key was completed on this node as well"),
				 errdetail("The work was done twice, or the key was forgotten in between."),
				 errhint("Find out which completion counts, and forget() the key on the other"
						 " node.")));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("the key is in use on this node by another claim"),
			 errdetail("It was claimed here without knowing of the one that is imported."),
			 errhint("Find out which claim counts, and forget() the key on the other node.")));
}

static void
move_check_time(const KeyRow *row, KeyColumn column, bool needed, bool may_be_endless)
{
	TimestampTz time = KeyRowTime(row, column);

	if (row->isnull[column])
	{
		if (needed)
			move_report_no_key("A time is missing.");
	}
	else if (!IS_VALID_TIMESTAMP(time) && !(may_be_endless && time == DT_NOEND))
		move_report_no_key("A time is out of range.");
}

/*
 * What this library would not have written is not put in: calls rely on it.
 *
 * Errors: 22001, 22023, 54000.
 */
static void
move_check_row(const KeyRow *row, const KeyIdentity *id)
{
	static const KeyColumn times[] = {
		KEY_COMPLETED_AT, KEY_CLAIMED_AT, KEY_CHECKPOINTED_AT, KEY_LOCKED_UNTIL,
		KEY_RESPONSE_EXPIRES_AT, KEY_REDACTED_AT};
	static const KeyColumn parts[IDEM_RESPONSE_PARTS] = {
		[IDEM_RESPONSE_STATUS] = KEY_RESPONSE_STATUS,
		[IDEM_RESPONSE_BODY] = KEY_RESPONSE_BODY,
		[IDEM_RESPONSE_HEADERS] = KEY_RESPONSE_HEADERS,
		[IDEM_RESPONSE_BYTES] = KEY_RESPONSE_BYTES,
	};
	IdemResponse response = {.isnull = {true, true, true, true}};

	idem_check_identity_part(id->scope, "scope");
	idem_check_identity_part(id->operation, "operation");
	idem_check_identity_part(id->key, "key");
	move_check_time(row, KEY_CREATED_AT, true, false);
	move_check_time(row, KEY_EXPIRES_AT, true, row->status == KEY_HELD);
	for (int i = 0; i < (int) lengthof(times); i++)
		move_check_time(row, times[i],
						times[i] == KEY_COMPLETED_AT
							? row->status == KEY_COMPLETED
							: times[i] == KEY_LOCKED_UNTIL && row->status == KEY_IN_PROGRESS,
						false);
	if (row->isnull[KEY_ATTEMPT] || KeyRowAttempt(row) < 1)
		move_report_no_key("The number of the attempt is missing.");
	if (row->isnull[KEY_TOKEN]
			? row->status == KEY_IN_PROGRESS || row->status == KEY_HELD
			: KeyRowToken(row) < 1)
		move_report_no_key("There is no token.");
	if (!row->isnull[KEY_FINGERPRINT] &&
		VARSIZE_ANY_EXHDR(DatumGetByteaPP(row->values[KEY_FINGERPRINT])) != IDEM_FINGERPRINT_LEN)
		move_report_no_key("The fingerprint has another length.");
	for (int i = 0; i < IDEM_RESPONSE_PARTS; i++)
		if (!row->isnull[parts[i]])
			idem_response_set(&response, i, row->values[parts[i]]);
	idem_response_check(&response);
}

/*
 * Takes the argument apart. Errors: 22004; 22023 its status is none; 55000 its type
 * is not that of the table.
 */
static void
move_read_row(KeyRow *row, KeyIdentity *id, FunctionCallInfo fcinfo)
{
	Relation table = idem_table_open(RowExclusiveLock);
	HeapTupleHeader header;
	HeapTupleData tuple;
	TupleDesc desc;
	Datum *values;
	bool *isnull;
	char *status;
	int named = 0;

	if (idem_arg_is_null(fcinfo, 0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("exported must not be null"),
				 errhint("Pass a row of export_scopes().")));
	header = PG_GETARG_HEAPTUPLEHEADER(0);
	if (HeapTupleHeaderGetTypeId(header) != table->rd_rel->reltype)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the row is not of the type of table %s", IDEM_QUALIFIED_TABLE),
				 errhint("The table was replaced: drop the extension and create it again.")));
	desc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(header),
								  HeapTupleHeaderGetTypMod(header));
	values = palloc(sizeof(Datum) * desc->natts);
	isnull = palloc(sizeof(bool) * desc->natts);
	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = header;
	heap_deform_tuple(&tuple, desc, values, isnull);
	ReleaseTupleDesc(desc);
	table_close(table, NoLock);

	for (int i = KEY_SCOPE; i <= KEY_STATUS; i++)
		if (isnull[i])
			move_report_no_key("A part of its identity, or its status, is missing.");
	id->scope = DatumGetTextPP(values[KEY_SCOPE]);
	id->operation = DatumGetTextPP(values[KEY_OPERATION]);
	id->key = DatumGetTextPP(values[KEY_KEY]);
	id->hash = 0;
	idem_state_init(row, id);
	for (int i = 0; i < KEY_NCOLUMNS; i++)
		if (!isnull[i] && (i < KEY_SCOPE || i > KEY_STATUS))
			KeyRowSet(row, i, values[i]);
	status = TextDatumGetCString(values[KEY_STATUS]);
	while (named <= KEY_HELD && strcmp(status, idem_state_name(named)) != 0)
		named++;
	if (named > KEY_HELD)
		move_report_no_key("Its status is none.");
	row->status = named;
}

/*
 * How far a version of a key is, by each of these in turn.
 */
static int64
move_progress(const KeyRow *row, int step)
{
	switch (step)
	{
		case 0:
			return KeyRowToken(row);
		case 1:
			return KeyRowAttempt(row);
		case 2:
			/* Held keys are resolved to failed ones, and both may be completed. */
			return row->status == KEY_COMPLETED ? 3
				: row->status == KEY_FAILED     ? 2
				: row->status == KEY_HELD       ? 1
												: 0;
		case 3:
			return !row->isnull[KEY_REDACTED_AT];
		case 4:
			return KeyRowTime(row, KEY_CHECKPOINTED_AT);
		default:
			return KeyRowTime(row, KEY_LOCKED_UNTIL);
	}
}

#define PROGRESS_STEPS 6

/*
 * Whether a row is a later version of "old", of the same life of the key.
 */
static bool
move_is_further(const KeyRow *row, const KeyRow *old)
{
	for (int step = 0; step < PROGRESS_STEPS; step++)
		if (move_progress(row, step) != move_progress(old, step))
			return move_progress(row, step) > move_progress(old, step);
	return false;
}

static bool
move_same_value(const KeyRow *a, const KeyRow *b, KeyColumn column)
{
	if (a->isnull[column] || b->isnull[column])
		return a->isnull[column] == b->isnull[column];
	if (column == KEY_RESPONSE_STATUS)
		return DatumGetInt32(a->values[column]) == DatumGetInt32(b->values[column]);
	return idem_texts_equal((text *) PG_DETOAST_DATUM_PACKED(a->values[column]),
							(text *) PG_DETOAST_DATUM_PACKED(b->values[column]));
}

/*
 * Whether two completed rows tell of one completion. What was removed of a response
 * tells nothing.
 */
static bool
move_same_completion(const KeyRow *a, const KeyRow *b)
{
	static const KeyColumn response[] = {
		KEY_RESPONSE_HEADERS, KEY_RESPONSE_BODY, KEY_RESPONSE_BYTES};

	if (KeyRowTime(a, KEY_COMPLETED_AT) != KeyRowTime(b, KEY_COMPLETED_AT) ||
		!move_same_value(a, b, KEY_RESPONSE_STATUS))
		return false;
	if (!a->isnull[KEY_REDACTED_AT] || !b->isnull[KEY_REDACTED_AT])
		return true;
	for (int i = 0; i < (int) lengthof(response); i++)
		if (!move_same_value(a, b, response[i]))
			return false;
	return true;
}

/*
 * Whether a row is to take the place of "old", which counts.
 *
 * Errors: IK003, 55006 that is of another life or another completion.
 */
static bool
move_replaces(const KeyRow *row, const KeyRow *old)
{
	bool both = row->status == KEY_COMPLETED && old->status == KEY_COMPLETED;

	if (KeyRowTime(row, KEY_CREATED_AT) != KeyRowTime(old, KEY_CREATED_AT) ||
		(both && !move_same_completion(row, old)))
		move_report_conflict(both);
	return move_is_further(row, old);
}

PG_FUNCTION_INFO_V1(idempotency_import_key);

/*
 * SQL import_key(): puts in a key that export_scopes() has returned on another
 * node, as it was there. False, and nothing changed, if it has expired by now, or
 * is here already and as far or further. Takes no key lock. The scope need not be
 * at home here: that is about to change.
 *
 * Afterwards every token that is given here is larger than its token, whatever
 * becomes of the row: until that is so, it waits.
 *
 * Errors: 22004, 22001, 22023, 54000 no such row; 25006 read-only; 42501 a scope that
 * the role may not use; IK003 completed otherwise; 55006 in use here; 55000 the clock
 * is behind; 40001 lost to somebody else.
 */
Datum
idempotency_import_key(PG_FUNCTION_ARGS)
{
	TimestampTz now;
	KeyIdentity id;
	KeyRow row;
	KeyRow old;
	PendingClaim *pending;
	bool found;

	idem_require_writable("import_key");
	move_read_row(&row, &id, fcinfo);
	move_check_row(&row, &id);
	idem_binding_check(id.scope);
	id.hash = idem_lock_hash(&id);
	idem_keys_outlive_token(KeyRowToken(&row));
	now = GetCurrentTimestamp();
	if (idem_state_of(&row, now) == STANDING_EXPIRED)
		PG_RETURN_BOOL(false);

	pending = idem_pending_find(&id);
	if (pending != NULL && idem_pending_state(pending)->status == PENDING_OPEN)
		move_report_conflict(false);
	found = idem_keys_find(&id, KEYS_NOW, true, &old, NULL);
	if (found && idem_state_of(&old, now) != STANDING_EXPIRED && !move_replaces(&row, &old))
		PG_RETURN_BOOL(false);

	/* Tokens never go back. Where one has been handed out, it cannot be raised. */
	if (found && KeyRowToken(&old) > KeyRowToken(&row))
	{
		if (row.status == KEY_IN_PROGRESS || row.status == KEY_HELD)
			move_report_conflict(false);
		KeyRowSet(&row, KEY_TOKEN, old.values[KEY_TOKEN]);
	}
	if (!(found ? idem_keys_update(&row, &old) : idem_keys_insert_if_absent(&row)))
		idem_report_lost_race();
	PG_RETURN_BOOL(true);
}
