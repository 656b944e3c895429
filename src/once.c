/*-------------------------------------------------------------------------
 *
 * once.c
 *	  For consumers of events: once() for one, once_batch() for many. Both in
 *	  the consumer's own transaction, all or nothing with its effects.
 *
 * once() is a claim that is completed in the same breath, so it is decided
 * like any claim, with a lock and one write. once_batch() takes no key locks,
 * because a transaction of a hundred thousand keys would exhaust the server's
 * lock table. It inserts in the order of the keys and lets the unique index
 * decide; two overlapping batches meet their common keys in the same order,
 * so one waits for the other and neither deadlocks. An array can be large enough
 * to keep the processor busy for long before the first key is written, so all
 * loops over it can be interrupted.
 *
 *-------------------------------------------------------------------------
 */
#include "claims.h"
#include "rules.h"
#include "server.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

static int64
once_ttl(FunctionCallInfo fcinfo, int argno, const text *operation)
{
	IdemPolicy policy = idem_policy_for(operation);
	int64 otherwise = policy.has_ttl ? policy.ttl : idem_once_ttl * USECS_PER_SEC;

	return idem_duration(fcinfo, argno, "ttl", 1, IDEM_MAX_TTL_US, Min(otherwise, IDEM_MAX_TTL_US));
}

PG_FUNCTION_INFO_V1(idempotency_once);

/*
 * SQL once(): claim and completion in one write. A consumer of events wants
 * to know first or not, so it waits for a rival that is undecided.
 *
 * Errors: as claim(); 55P03 the rival is still undecided; IK005 the key is
 * held.
 */
Datum
idempotency_once(PG_FUNCTION_ARGS)
{
	ClaimRequest request = {0};
	ClaimAnswer answer;

	idem_require_writable("once");
	idem_lock_identity(&request.id, fcinfo);
	request.claim.ttl = once_ttl(fcinfo, 3, request.id.operation);
	request.wait = idem_claim_wait_argument(fcinfo, 4, idem_once_wait * INT64CONST(1000));
	request.at_once = true;

	idem_claim_answer(&request, &answer);
	if (answer.outcome == CLAIM_IN_PROGRESS)
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("another transaction has not decided about the key yet"),
				 errhint("Roll back and try the event again later, or wait longer.")));
	if (answer.outcome == CLAIM_HELD)
		idem_report_held();
	PG_RETURN_BOOL(answer.outcome == CLAIM_CLAIMED);
}

/*
 * Most keys of one call. What a call keeps for each of them stays well below the
 * largest allocation, and a transaction that writes more is better divided.
 */
#define MAX_BATCH_KEYS 10000000

typedef struct BatchKey
{
	text *key;
	int position; /* in the caller's array */
} BatchKey;

static int
once_compare_keys(const void *a, const void *b, void *arg pg_attribute_unused())
{
	const BatchKey *x = a;
	const BatchKey *y = b;
	int order = idem_batch_order(x->key, y->key);

	return order != 0 ? order : x->position - y->position;
}

PG_FUNCTION_INFO_V1(idempotency_once_batch);

/*
 * SQL once_batch(): for each key, in the order given, whether it is there for
 * the first time. Of duplicates inside the array the first is. NULL, and only
 * where skip_undecided asks for that: it cannot be said yet.
 *
 * Errors: 22004, 22001, 22023 arguments; 54000 too many keys; 25006 read-only;
 * 40001 above READ COMMITTED; 55000 the scope's home is another node; 55006 a claim
 * on one of the keys is undecided; IK005 one is held.
 */
Datum
idempotency_once_batch(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	text *scope;
	text *operation;
	int64 ttl;
	ArrayType *array;
	Datum *elements;
	bool *nulls;
	int nelements;
	BatchKey *keys;
	Datum *distinct;
	bool *first;
	bool *open = NULL;
	bool *answers;
	bool *undecided;
	int ndistinct = 0;
	TimestampTz now;

	idem_require_writable("once_batch");
	scope = idem_scope_argument(fcinfo);
	idem_binding_check(scope);
	idem_home_check(scope);
	if (idem_arg_is_null(fcinfo, 1) || idem_arg_is_null(fcinfo, 2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", idem_arg_is_null(fcinfo, 1) ? "operation" : "keys"),
				 errhint("Give the operation and an array of keys.")));
	operation = PG_GETARG_TEXT_PP(1);
	idem_check_identity_part(operation, "operation");
	ttl = once_ttl(fcinfo, 3, operation);
	InitMaterializedSRF(fcinfo, 0);

	array = PG_GETARG_ARRAYTYPE_P(2);
	if (ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array)) > MAX_BATCH_KEYS)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("too many keys in one batch"),
				 errdetail("At most %d are allowed.", MAX_BATCH_KEYS),
				 errhint("Divide the batch among several calls,"
						 " better in transactions of their own.")));
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &nelements);
	keys = palloc(sizeof(BatchKey) * Max(nelements, 1));
	for (int i = 0; i < nelements; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("key must not be null"),
					 errhint("Leave events without a key out of the array.")));
		keys[i].key = DatumGetTextPP(elements[i]);
		keys[i].position = i;
		idem_check_identity_part(keys[i].key, "key");
	}
	qsort_interruptible(keys, nelements, sizeof(BatchKey), once_compare_keys, NULL);

	distinct = palloc(sizeof(Datum) * Max(nelements, 1));
	for (int i = 0; i < nelements; i++)
	{
		CHECK_FOR_INTERRUPTS();
		if (i == 0 || !idem_texts_equal(keys[i].key, keys[i - 1].key))
			distinct[ndistinct++] = PointerGetDatum(keys[i].key);
	}
	first = palloc0(sizeof(bool) * Max(ndistinct, 1));
	if (!idem_arg_is_null(fcinfo, 4) && PG_GETARG_BOOL(4))
		open = palloc0(sizeof(bool) * Max(ndistinct, 1));
	now = GetCurrentTimestamp();
	if (ndistinct > 0)
		idem_batch_insert(scope, operation, distinct, ndistinct, now,
						  idem_time_after(now, ttl, "ttl"), first, open);

	answers = palloc0(sizeof(bool) * Max(nelements, 1));
	undecided = palloc0(sizeof(bool) * Max(nelements, 1));
	for (int i = 0, d = -1; i < nelements; i++)
	{
		bool is_new = i == 0 || !idem_texts_equal(keys[i].key, keys[i - 1].key);

		CHECK_FOR_INTERRUPTS();
		if (is_new)
			d++;
		answers[keys[i].position] = is_new && first[d];
		undecided[keys[i].position] = open != NULL && open[d];
		if (answers[keys[i].position])
		{
			idem_stats_count(IDEM_CLAIMS, 1);
			idem_stats_count(IDEM_COMPLETIONS, 1);
		}
		else
			idem_stats_count(undecided[keys[i].position] ? IDEM_CONFLICTS : IDEM_REPLAYS, 1);
	}
	for (int i = 0; i < nelements; i++)
	{
		Datum values[2] = {elements[i], BoolGetDatum(answers[i])};
		bool isnull[2] = {false, undecided[i]};

		CHECK_FOR_INTERRUPTS();
		tuplestore_putvalues(result->setResult, result->setDesc, values, isnull);
	}
	return (Datum) 0;
}
