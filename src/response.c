/*-------------------------------------------------------------------------
 *
 * response.c
 *	  What complete(), run() and import_completed() record: status, body and
 *	  headers, checked.
 *
 * Whatever is recorded here is handed out again for as long as the key lives,
 * by applications that take it for a response. So what cannot be one is refused
 * when it is recorded, where its author sees the error, and not when it is
 * replayed, where nobody can mend it any more.
 *
 *-------------------------------------------------------------------------
 */
#include "rows.h"

#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"

/* Where the parts of a response are stored. */
static const KeyColumn response_columns[IDEM_RESPONSE_PARTS] = {
	[IDEM_RESPONSE_STATUS] = KEY_RESPONSE_STATUS,
	[IDEM_RESPONSE_BODY] = KEY_RESPONSE_BODY,
	[IDEM_RESPONSE_HEADERS] = KEY_RESPONSE_HEADERS,
	[IDEM_RESPONSE_BYTES] = KEY_RESPONSE_BYTES,
};

/*
 * Sets one part of a response.
 */
void
idem_response_set(IdemResponse *response, IdemResponsePart part, Datum value)
{
	response->isnull[part] = false;
	response->values[part] = value;
	if (part != IDEM_RESPONSE_STATUS)
		response->values[part] = PointerGetDatum(PG_DETOAST_DATUM_PACKED(value));
}

static bool
response_is_header_name(const JsonbValue *value)
{
	if (value->type != jbvString || value->val.string.len == 0)
		return false;
	for (int i = 0; i < value->val.string.len; i++)
	{
		unsigned char c = value->val.string.val[i];

		if (c <= ' ' || c == ':' || c == 0x7f)
			return false;
	}
	return true;
}

/*
 * A line break in a value would begin another header, or the body.
 */
static bool
response_is_header_value(const JsonbValue *value)
{
	if (value->type == jbvNumeric)
		return true;
	return value->type == jbvString &&
		memchr(value->val.string.val, '\n', value->val.string.len) == NULL &&
		memchr(value->val.string.val, '\r', value->val.string.len) == NULL;
}

/*
 * Headers are an object of values or of arrays of values, or, where order and
 * repetition matter, an array of [name, value] pairs. A value is a string or a
 * number.
 */
static bool
response_are_headers(Jsonb *headers)
{
	JsonbIterator *walk;
	JsonbIteratorToken token;
	JsonbValue value;
	bool pairs = JB_ROOT_IS_ARRAY(headers);
	int depth = 0;
	int position = 0; /* in the inner array */

	if (JB_ROOT_IS_SCALAR(headers))
		return false;
	walk = JsonbIteratorInit(&headers->root);
	while ((token = JsonbIteratorNext(&walk, &value, false)) != WJB_DONE)
	{
		bool good = true;

		switch (token)
		{
			case WJB_BEGIN_OBJECT:
				good = ++depth == 1;
				break;
			case WJB_BEGIN_ARRAY:
				good = ++depth <= 2;
				position = 0;
				break;
			case WJB_KEY:
				good = response_is_header_name(&value);
				break;
			case WJB_VALUE:
				good = response_is_header_value(&value);
				break;
			case WJB_ELEM:
				if (pairs && position == 0)
					good = depth == 2 && response_is_header_name(&value);
				else
					good = depth == 2 && response_is_header_value(&value);
				position++;
				break;
			case WJB_END_ARRAY:
				good = depth == 1 || !pairs || position == 2;
				depth--;
				break;
			default:
				depth--;
				break;
		}
		if (!good)
			return false;
	}
	return true;
}

/*
 * Errors: 22023 two bodies, a negative status, headers that are none; 54000 too
 * large.
 */
void
idem_response_check(const IdemResponse *response)
{
	int64 size = 0;

	if (!response->isnull[IDEM_RESPONSE_BODY] && !response->isnull[IDEM_RESPONSE_BYTES])
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("response_body and response_bytes exclude each other"),
				 errhint("Use response_body for text and response_bytes for anything else.")));
	if (!response->isnull[IDEM_RESPONSE_STATUS] &&
		DatumGetInt32(response->values[IDEM_RESPONSE_STATUS]) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("response_status must not be negative"),
				 errhint("Give a status such as 201, or leave it out.")));

	for (int i = 0; i < IDEM_RESPONSE_PARTS; i++)
		if (i != IDEM_RESPONSE_STATUS && !response->isnull[i])
			size += VARSIZE_ANY_EXHDR(DatumGetPointer(response->values[i]));
	if (size > (int64) idem_max_response_size * 1024)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the response is too large"),
				 errdetail("It has %lld bytes, and at most %lld are allowed.",
						   (long long) size,
						   (long long) idem_max_response_size * 1024),
				 errhint("Nothing was recorded: complete without the body,"
						 " or raise \"idempotency.max_response_size\".")));

	if (!response->isnull[IDEM_RESPONSE_HEADERS] &&
		!response_are_headers(DatumGetJsonbP(response->values[IDEM_RESPONSE_HEADERS])))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("response_headers are not headers"),
				 errhint("Give an object such as {\"Location\": \"/orders/7\"}, whose values may"
						 " be arrays, or an array of [name, value] pairs;"
						 " values are strings without line breaks, or numbers.")));
}

/*
 * The four arguments of a call, from argno on, checked.
 *
 * Errors: as idem_response_check().
 */
void
idem_response_read(IdemResponse *response, FunctionCallInfo fcinfo, int argno)
{
	memset(response->isnull, true, sizeof(response->isnull));
	memset(response->values, 0, sizeof(response->values));
	for (int i = 0; i < IDEM_RESPONSE_PARTS; i++)
		if (!idem_arg_is_null(fcinfo, argno + i))
			idem_response_set(response, i, PG_GETARG_DATUM(argno + i));
	idem_response_check(response);
}

static bool
response_same_bytes(Datum a, Datum b)
{
	struct varlena *x = PG_DETOAST_DATUM_PACKED(a);
	struct varlena *y = PG_DETOAST_DATUM_PACKED(b);

	return VARSIZE_ANY_EXHDR(x) == VARSIZE_ANY_EXHDR(y) &&
		memcmp(VARDATA_ANY(x), VARDATA_ANY(y), VARSIZE_ANY_EXHDR(x)) == 0;
}

/*
 * Whether a row has this very response.
 */
bool
idem_response_same(const IdemResponse *response, const KeyRow *row)
{
	for (int i = 0; i < IDEM_RESPONSE_PARTS; i++)
	{
		Datum given = response->values[i];
		Datum stored = row->values[response_columns[i]];
		bool same;

		if (response->isnull[i] != row->isnull[response_columns[i]])
			return false;
		if (response->isnull[i])
			continue;
		if (i == IDEM_RESPONSE_STATUS)
			same = DatumGetInt32(given) == DatumGetInt32(stored);
		else if (i == IDEM_RESPONSE_HEADERS)
			same = DatumGetBool(DirectFunctionCall2(jsonb_eq, given, stored));
		else
			same = response_same_bytes(given, stored);
		if (!same)
			return false;
	}
	return true;
}

/*
 * Puts the response into a row, which shares its values.
 */
void
idem_response_put(const IdemResponse *response, KeyRow *row)
{
	for (int i = 0; i < IDEM_RESPONSE_PARTS; i++)
	{
		row->values[response_columns[i]] = response->values[i];
		row->isnull[response_columns[i]] = response->isnull[i];
	}
}
