/*-------------------------------------------------------------------------
 *
 * fingerprint.c
 *	  Digests: of a request, to notice a key reused for another one; of a
 *	  request as a key, for clients that send none; of an identity as a key
 *	  for somebody else.
 *
 * What is digested is a serialization of the jsonb value, made so that two
 * values give the same bytes exactly where jsonb's = operator says equal.
 * Members come in jsonb's own order, duplicates are gone before, numbers are
 * written without trailing zeros (1.0 is 1), every part carries its type and
 * length.
 *
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

#include "access/xact.h"
#include "common/cryptohash.h"
#include "common/sha2.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"
#include "utils/uuid.h"

StaticAssertDecl(IDEM_FINGERPRINT_LEN == PG_SHA256_DIGEST_LENGTH,
				 "a fingerprint is a SHA-256 digest");

static void
digest_add(pg_cryptohash_ctx *digest, const void *data, size_t len)
{
	if (pg_cryptohash_update(digest, (const uint8 *) data, len) < 0)
		elog(ERROR, "could not compute SHA-256 digest");
}

static pg_cryptohash_ctx *
digest_begin(const char *purpose)
{
	pg_cryptohash_ctx *digest = pg_cryptohash_create(PG_SHA256);

	if (digest == NULL || pg_cryptohash_init(digest) < 0)
		elog(ERROR, "could not compute SHA-256 digest");

	/* Digests for different purposes never meet. */
	digest_add(digest, purpose, strlen(purpose) + 1);
	return digest;
}

static void
digest_end(pg_cryptohash_ctx *digest, uint8 *result)
{
	if (pg_cryptohash_final(digest, result, PG_SHA256_DIGEST_LENGTH) < 0)
		elog(ERROR, "could not compute SHA-256 digest");
	pg_cryptohash_free(digest);
}

static void
digest_number(pg_cryptohash_ctx *digest, uint64 number)
{
	number = pg_hton64(number);
	digest_add(digest, &number, sizeof(number));
}

static void
digest_part(pg_cryptohash_ctx *digest, char type, const char *data, int len)
{
	digest_add(digest, &type, 1);
	digest_number(digest, len);
	digest_add(digest, data, len);
}

static void
digest_scalar(pg_cryptohash_ctx *digest, const JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			digest_part(digest, 'n', "", 0);
			break;
		case jbvBool:
			digest_part(digest, 'b', value->val.boolean ? "t" : "f", 1);
			break;
		case jbvString:
			digest_part(digest, 's', value->val.string.val,
						value->val.string.len);
			break;
		case jbvNumeric:
		{
			char *digits = numeric_normalize(value->val.numeric);

			digest_part(digest, 'd', digits, strlen(digits));
			pfree(digits);
			break;
		}
		default:
			elog(ERROR, "unexpected jsonb value type %d", (int) value->type);
	}
}

/*
 * Walks the value without recursion, so depth is no matter.
 */
static void
digest_jsonb(pg_cryptohash_ctx *digest, Jsonb *json)
{
	JsonbIterator *walk = JsonbIteratorInit(&json->root);
	JsonbIteratorToken token;
	JsonbValue value;

	while ((token = JsonbIteratorNext(&walk, &value, false)) != WJB_DONE)
	{
		CHECK_FOR_INTERRUPTS();
		switch (token)
		{
			case WJB_BEGIN_ARRAY:
				digest_part(digest, value.val.array.rawScalar ? '.' : '[', "", 0);
				break;
			case WJB_END_ARRAY:
				digest_part(digest, ']', "", 0);
				break;
			case WJB_BEGIN_OBJECT:
				digest_part(digest, '{', "", 0);
				break;
			case WJB_END_OBJECT:
				digest_part(digest, '}', "", 0);
				break;
			case WJB_KEY:
				digest_part(digest, 'k', value.val.string.val,
							value.val.string.len);
				break;
			case WJB_VALUE:
			case WJB_ELEM:
				digest_scalar(digest, &value);
				break;
			default:
				elog(ERROR, "unexpected jsonb iterator token %d", (int) token);
		}
	}
}

/*
 * The fingerprint of a request, in the current memory context.
 */
static bytea *
fingerprint_of(Jsonb *request)
{
	bytea *result = palloc(VARHDRSZ + IDEM_FINGERPRINT_LEN);
	pg_cryptohash_ctx *digest = digest_begin("fingerprint");

	digest_jsonb(digest, request);
	SET_VARSIZE(result, VARHDRSZ + IDEM_FINGERPRINT_LEN);
	digest_end(digest, (uint8 *) VARDATA(result));
	return result;
}

/*
 * The fingerprint that a call brings, from either argument, or NULL.
 *
 * Errors: 22023 both, or one that is not 32 bytes long.
 */
bytea *
idem_fingerprint_argument(FunctionCallInfo fcinfo, int request_argno,
						  int fingerprint_argno)
{
	bytea *given;

	if (!idem_arg_is_null(fcinfo, request_argno) && !idem_arg_is_null(fcinfo, fingerprint_argno))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("request and fingerprint exclude each other"),
				 errhint("Pass the request, or its fingerprint if that is computed outside.")));
	if (!idem_arg_is_null(fcinfo, request_argno))
		return fingerprint_of(PG_GETARG_JSONB_P(request_argno));
	if (idem_arg_is_null(fcinfo, fingerprint_argno))
		return NULL;
	given = PG_GETARG_BYTEA_PP(fingerprint_argno);
	if (VARSIZE_ANY_EXHDR(given) != IDEM_FINGERPRINT_LEN)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("fingerprint must be %d bytes long", IDEM_FINGERPRINT_LEN),
				 errdetail("It has %d bytes.", (int) VARSIZE_ANY_EXHDR(given)),
				 errhint("Use a SHA-256 digest, such as idempotency.fingerprint() makes.")));
	return given;
}

PG_FUNCTION_INFO_V1(idempotency_fingerprint);

/*
 * SQL fingerprint().
 */
Datum
idempotency_fingerprint(PG_FUNCTION_ARGS)
{
	PG_RETURN_BYTEA_P(fingerprint_of(PG_GETARG_JSONB_P(0)));
}

typedef struct RawRequest
{
	bytea *bytes;
	Jsonb *json;
} RawRequest;

static void
fingerprint_read_json(void *state)
{
	RawRequest *request = state;
	int len = VARSIZE_ANY_EXHDR(request->bytes);
	char *json = pg_any_to_server(pnstrdup(VARDATA_ANY(request->bytes), len), len, PG_UTF8);

	request->json = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(json)));
}

/*
 * A request as it came over the wire as jsonb, or NULL if it is not JSON or
 * none that jsonb takes: "\\u0000", half a surrogate pair, a number beyond
 * numeric, nesting beyond the stack, a string beyond a quarter of a gigabyte, a
 * character that the database's encoding has not.
 *
 * Its parser raises those as errors, so they are caught; only what is wrong with
 * the value is (classes 22 and 54, and 0A000 where the encoding is SQL_ASCII).
 */
static Jsonb *
fingerprint_parse_request(bytea *bytes)
{
	RawRequest request = {.bytes = bytes};
	ErrorData *error;
	int category;

	/* What follows would not be seen. */
	if (memchr(VARDATA_ANY(bytes), '\0', VARSIZE_ANY_EXHDR(bytes)) != NULL)
		return NULL;

	error = idem_catch(fingerprint_read_json, &request);
	if (error == NULL)
		return request.json;
	category = ERRCODE_TO_CATEGORY(error->sqlerrcode);
	if (category != ERRCODE_DATA_EXCEPTION && category != ERRCODE_PROGRAM_LIMIT_EXCEEDED &&
		error->sqlerrcode != ERRCODE_FEATURE_NOT_SUPPORTED)
		ReThrowError(error);
	FreeErrorData(error);
	return NULL;
}

PG_FUNCTION_INFO_V1(idempotency_fingerprint_bytes);

/*
 * SQL fingerprint_bytes(): of a request as it came over the wire. That of the
 * JSON where it is JSON, so that it makes no difference who parses; of the bytes
 * themselves otherwise.
 */
Datum
idempotency_fingerprint_bytes(PG_FUNCTION_ARGS)
{
	bytea *bytes = PG_GETARG_BYTEA_PP(0);
	Jsonb *json = fingerprint_parse_request(bytes);
	bytea *result;
	pg_cryptohash_ctx *digest;

	if (json != NULL)
		PG_RETURN_BYTEA_P(fingerprint_of(json));
	result = palloc(VARHDRSZ + IDEM_FINGERPRINT_LEN);
	SET_VARSIZE(result, VARHDRSZ + IDEM_FINGERPRINT_LEN);
	digest = digest_begin("fingerprint_bytes");
	digest_add(digest, VARDATA_ANY(bytes), VARSIZE_ANY_EXHDR(bytes));
	digest_end(digest, (uint8 *) VARDATA(result));
	PG_RETURN_BYTEA_P(result);
}

PG_FUNCTION_INFO_V1(idempotency_content_key);

/*
 * SQL content_key(): 64 hexadecimal digits. A period is counted from the
 * Unix epoch by the start of the statement, so that one statement does not
 * give two keys for one content.
 *
 * Errors: 22004 no request; 22023 period.
 */
Datum
idempotency_content_key(PG_FUNCTION_ARGS)
{
	pg_cryptohash_ctx *digest;
	uint8 result[PG_SHA256_DIGEST_LENGTH];
	text *key = palloc(VARHDRSZ + 2 * sizeof(result));
	int64 period;

	if (idem_arg_is_null(fcinfo, 0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("request must not be null"),
				 errhint("The key is derived from the request;"
						 " there is nothing to derive it from.")));
	period = idem_duration(fcinfo, 1, "period", 1, PG_INT64_MAX, 0);

	digest = digest_begin("content_key");
	if (period > 0)
	{
		int64 now = GetCurrentStatementStartTimestamp() +
			((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE)) * USECS_PER_DAY;

		digest_number(digest, period);
		digest_number(digest, now / period);
	}
	digest_jsonb(digest, PG_GETARG_JSONB_P(0));
	digest_end(digest, result);

	SET_VARSIZE(key, VARHDRSZ + hex_encode((char *) result, sizeof(result), VARDATA(key)));
	PG_RETURN_TEXT_P(key);
}

PG_FUNCTION_INFO_V1(idempotency_effect_key);

/*
 * SQL effect_key(): a UUID of version 8 (RFC 9562, "vendor specific") made
 * from the identity and the step, and from nothing else: attempts come and
 * go, tokens change, the other side must see one key.
 *
 * Errors: 22004, 22023, 22001 identity.
 */
Datum
idempotency_effect_key(PG_FUNCTION_ARGS)
{
	KeyIdentity id;
	pg_cryptohash_ctx *digest = NULL;
	uint8 result[PG_SHA256_DIGEST_LENGTH];
	pg_uuid_t *uuid = (pg_uuid_t *) result;

	idem_identity_argument(&id, fcinfo);
	digest = digest_begin("effect_key");
#define ADD(t) digest_part(digest, 't', VARDATA_ANY(t), VARSIZE_ANY_EXHDR(t))
	ADD(id.scope);
	ADD(id.operation);
	ADD(id.key);
	if (!idem_arg_is_null(fcinfo, 3))
		ADD(PG_GETARG_TEXT_PP(3));
#undef ADD
	digest_end(digest, result);

	result[6] = (result[6] & 0x0f) | 0x80;
	result[8] = (result[8] & 0x3f) | 0x80;
	PG_RETURN_DATUM(DirectFunctionCall1(textin,
										DirectFunctionCall1(uuid_out, UUIDPGetDatum(uuid))));
}
