/*-------------------------------------------------------------------------
 *
 * harness.c
 *	  libFuzzer inside a real backend.
 *
 * The sources of the extension, compiled with coverage instrumentation, this file
 * and libFuzzer's driver are one library. SQL fuzz() hands the backend over to the
 * driver, which calls a target some million times: so memory contexts, errors, the
 * encoding and jsonb are the server's own, and nothing is mocked. The server runs in
 * single-user mode, where nobody else is there and the driver's messages are seen.
 *
 * What a target says is wrong is a "violation" and ends like a crash: libFuzzer keeps
 * the bytes that led there. An error that no target expects is a violation as well.
 *
 * Overruns would go unnoticed within palloc()'s blocks. So what is parsed ends where
 * a page ends that cannot be read: see fuzz_at_edge().
 *
 *-------------------------------------------------------------------------
 */
#include "harness.h"

#include <sys/mman.h>
#include <unistd.h>

#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"

/* libFuzzer's; there is no header in C. */
extern int LLVMFuzzerRunDriver(int *argc, char ***argv,
							   int (*callback)(const uint8_t *data, size_t size));

typedef struct FuzzTarget
{
	const char *name;
	void (*execute)(FuzzInput *input);
	const char *counts[3]; /* what fuzz_count() counts */
} FuzzTarget;

static const FuzzTarget targets[] = {
	{"fingerprint", fuzz_fingerprint, {"pairs that jsonb calls equal", "pairs that it does not"}},
	{"bytes", fuzz_bytes, {"requests that are JSON", "requests that are not"}},
	{"headers", fuzz_headers, {"headers accepted", "headers refused"}},
	{"identity", fuzz_identity, {"effect keys alike", "effect keys unlike", "identities refused"}},
	{"siphash", fuzz_siphash, {"digests compared"}},
	{"pattern", fuzz_pattern, {"patterns accepted", "patterns refused"}},
	{"duration", fuzz_duration, {"durations in range", "durations out of range"}},
};

static const FuzzTarget *target;
static MemoryContext execution; /* reset for each */
static uint64 counted[3];

/* What is handed out by fuzz_at_edge() lies in these, each before a page of its own. */
#define FUZZ_EDGES 16
#define FUZZ_EDGE_SIZE (256 * 1024)
static char *edges[FUZZ_EDGES];
static int edges_used;

/*
 * Ends the process: the driver says so and keeps the input.
 */
void
fuzz_violation(const char *what)
{
	fprintf(stderr, "VIOLATION %s: %s\n", target->name, what);
	abort();
}

/*
 * One more of what the target's counts name.
 */
void
fuzz_count(int which)
{
	counted[which]++;
}

static void
fuzz_print_counts(void)
{
	for (int i = 0; i < (int) lengthof(counted) && target->counts[i] != NULL; i++)
		fprintf(stderr, "COUNT %s %llu %s\n", target->name, (unsigned long long) counted[i],
				target->counts[i]);
}

/*
 * Does something, and returns the error that it raises, or NULL. Without a
 * subtransaction: only for what touches nothing but memory.
 */
ErrorData *
fuzz_catch(void (*action)(void *state), void *state)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorData *volatile error = NULL;

	PG_TRY();
	{
		action(state);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	return error;
}

/*
 * The next byte; 0 when there is none any more.
 */
uint8
fuzz_byte(FuzzInput *input)
{
	return input->next < input->end ? *input->next++ : 0;
}

size_t
fuzz_left(const FuzzInput *input)
{
	return input->end - input->next;
}

/*
 * A copy that ends at the edge of what can be read, as far as its alignment allows.
 */
void *
fuzz_at_edge(const void *data, size_t size, size_t alignment)
{
	size_t page = sysconf(_SC_PAGESIZE);
	char *copy;

	if (size > FUZZ_EDGE_SIZE || edges_used == FUZZ_EDGES)
		fuzz_violation("the harness has no room at an edge");
	if (edges[edges_used] == NULL)
	{
		char *area = mmap(NULL, FUZZ_EDGE_SIZE + page, PROT_READ | PROT_WRITE,
						  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (area == MAP_FAILED || mprotect(area + FUZZ_EDGE_SIZE, page, PROT_NONE) != 0)
			fuzz_violation("the harness could not make an edge");
		edges[edges_used] = area + FUZZ_EDGE_SIZE;
	}
	copy = edges[edges_used++] - TYPEALIGN(alignment, size);
	if (size > 0)
		memcpy(copy, data, size);
	return copy;
}

/*
 * The bytes as a text or bytea at the edge. A short one has a header of one byte,
 * as in a tuple, and ends exactly there.
 */
struct varlena *
fuzz_varlena(const void *data, size_t size)
{
	char *value = palloc(VARHDRSZ + size);
	struct varlena *result;

	if (size + VARHDRSZ_SHORT <= VARATT_SHORT_MAX)
	{
		SET_VARSIZE_SHORT(value, size + VARHDRSZ_SHORT);
		memcpy(value + VARHDRSZ_SHORT, data, size);
		result = fuzz_at_edge(value, size + VARHDRSZ_SHORT, 1);
	}
	else
	{
		SET_VARSIZE(value, size + VARHDRSZ);
		memcpy(value + VARHDRSZ, data, size);
		result = fuzz_at_edge(value, size + VARHDRSZ, sizeof(int32));
	}
	pfree(value);
	return result;
}

typedef struct JsonText
{
	char *text;
	Jsonb *result;
} JsonText;

static void
fuzz_parse_jsonb(void *state)
{
	JsonText *json = state;

	json->result = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(json->text)));
}

/*
 * The text as jsonb, or NULL if it is none.
 */
Jsonb *
fuzz_jsonb(const char *text, size_t size)
{
	JsonText json = {.text = pnstrdup(text, size)};

	if (memchr(text, '\0', size) != NULL || !pg_verifymbstr(text, size, true) ||
		fuzz_catch(fuzz_parse_jsonb, &json) != NULL)
		return NULL;
	return json.result;
}

/*
 * Calls one of the SQL functions of the extension, as the executor would.
 */
Datum
fuzz_call(PGFunction function, int nargs, const NullableDatum *args)
{
	LOCAL_FCINFO(fcinfo, 8);

	InitFunctionCallInfoData(*fcinfo, NULL, nargs, C_COLLATION_OID, NULL, NULL);
	for (int i = 0; i < nargs; i++)
		fcinfo->args[i] = args[i];
	return function(fcinfo);
}

static void
fuzz_execute_caught(void *state)
{
	target->execute(state);
}

static int
fuzz_execute(const uint8_t *data, size_t size)
{
	FuzzInput input = {data, data + size};
	MemoryContext caller = MemoryContextSwitchTo(execution);
	ErrorData *error;

	edges_used = 0;
	error = fuzz_catch(fuzz_execute_caught, &input);
	if (error != NULL)
	{
		fprintf(stderr, "error %s: %s\n", unpack_sql_state(error->sqlerrcode), error->message);
		fuzz_violation("an error that is not expected");
	}
	MemoryContextSwitchTo(caller);
	MemoryContextReset(execution);
	return 0;
}

PG_FUNCTION_INFO_V1(fuzz);

/*
 * SQL fuzz(target, arguments of libFuzzer): does not return, since the driver ends
 * the process.
 */
Datum
fuzz(PG_FUNCTION_ARGS)
{
	char *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Datum *texts;
	int ntexts;
	int argc = 1;
	char **argv;

	for (int i = 0; i < (int) lengthof(targets); i++)
		if (strcmp(targets[i].name, name) == 0)
			target = &targets[i];
	if (target == NULL)
		elog(ERROR, "there is no target %s", name);

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT, &texts, NULL,
					  &ntexts);
	argv = palloc0(sizeof(char *) * (ntexts + 2));
	argv[0] = "postgres";
	for (int i = 0; i < ntexts; i++)
		argv[argc++] = TextDatumGetCString(texts[i]);

	execution = AllocSetContextCreate(TopMemoryContext, "fuzz", ALLOCSET_DEFAULT_SIZES);
	atexit(fuzz_print_counts);
	LLVMFuzzerRunDriver(&argc, &argv, fuzz_execute);
	PG_RETURN_VOID();
}
