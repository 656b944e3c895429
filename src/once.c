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
 * so one waits for the other and neither deadlocks.
 *
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

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

	return idem_duration(fcinfo, argno, "ttl", 1, IDEM_MAX_TTL_US,
						 policy.has_ttl ? policy.ttl : Min(idem_once_ttl * USECS_PER_SEC, IDEM_MAX_TTL_US));
}

PG_FUNCTION_INFO_V1(idempotency_once);

/*
 * SQL once(): claim and completion in one write. A consumer of events wants
 * to know first or not, so it waits for a rival that is undecided, by default
 * as long as max_wait allows.
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
	idem_identity(&request.id, fcinfo);
	request.ttl = once_ttl(fcinfo, 3, request.id.operation);
	request.wait = idem_claim_wait_argument(fcinfo, 4, PG_INT64_MAX);
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

typedef struct BatchKey
{
	text *key;
	int position; /* in the caller's array */
} BatchKey;

static int
compare_keys(const void *a, const void *b)
{
	const BatchKey *x = a;
	const BatchKey *y = b;
	int order = idem_batch_order(x->key, y->key);

	return order != 0 ? order : x->position - y->position;
}

PG_FUNCTION_INFO_V1(idempotency_once_batch);

/*
 * SQL once_batch(): for each key, in the order given, whether it is there for
 * the first time. Of duplicates inside the array the first is.
 *
 * Errors: 22004, 22001, 22023 arguments; 25006 read-only; 40001 above READ
 * COMMITTED; 55006 a claim on one of the keys is undecided; IK005 one is held.
 */
Datum
idempotency_once_batch(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	text *scope;
	text *operation;
	int64 ttl;
	Datum *elements;
	bool *nulls;
	int nelements;
	BatchKey *keys;
	Datum *distinct;
	bool *first;
	bool *answers;
	int ndistinct = 0;
	TimestampTz now;

	idem_require_writable("once_batch");
	scope = idem_scope_argument(fcinfo);
	if (PG_ARGISNULL(1) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", PG_ARGISNULL(1) ? "operation" : "keys"),
				 errhint("Give the operation and an array of keys.")));
	operation = PG_GETARG_TEXT_PP(1);
	idem_check_identity_part(operation, "operation");
	ttl = once_ttl(fcinfo, 3, operation);
	InitMaterializedSRF(fcinfo, 0);

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(2), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &nelements);
	keys = palloc(sizeof(BatchKey) * Max(nelements, 1));
	for (int i = 0; i < nelements; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("key must not be null"),
					 errhint("Leave events without a key out of the array.")));
		keys[i].key = DatumGetTextPP(elements[i]);
		keys[i].position = i;
		idem_check_identity_part(keys[i].key, "key");
	}
	qsort(keys, nelements, sizeof(BatchKey), compare_keys);

	distinct = palloc(sizeof(Datum) * Max(nelements, 1));
	for (int i = 0; i < nelements; i++)
		if (i == 0 || !idem_texts_equal(keys[i].key, keys[i - 1].key))
			distinct[ndistinct++] = PointerGetDatum(keys[i].key);
	first = palloc0(sizeof(bool) * Max(ndistinct, 1));
	now = GetCurrentTimestamp();
	if (ndistinct > 0)
		idem_batch_insert(scope, operation, distinct, ndistinct, now,
						  idem_time_after(now, ttl, "ttl"), first);

	answers = palloc0(sizeof(bool) * Max(nelements, 1));
	for (int i = 0, d = -1; i < nelements; i++)
	{
		bool is_new = i == 0 || !idem_texts_equal(keys[i].key, keys[i - 1].key);

		if (is_new)
			d++;
		answers[keys[i].position] = is_new && first[d];
		idem_stats_count(answers[keys[i].position] ? IDEM_CLAIMS : IDEM_REPLAYS, 1);
		if (answers[keys[i].position])
			idem_stats_count(IDEM_COMPLETIONS, 1);
	}
	for (int i = 0; i < nelements; i++)
	{
		Datum values[2] = {elements[i], BoolGetDatum(answers[i])};
		bool isnull[2] = {false, false};

		tuplestore_putvalues(result->setResult, result->setDesc, values, isnull);
	}
	return (Datum) 0;
}
