/*-------------------------------------------------------------------------
 *
 * responses.c
 *	  Target for src/response.c: which jsonb is taken for headers.
 *
 * src/response.c walks along the tokens and keeps a depth. Here the same question is
 * answered by descending, from the words of the documentation: an object of values or
 * of arrays of values, or an array of [name, value] pairs.
 *
 *-------------------------------------------------------------------------
 */
#include "harness.h"
#include "rows.h"

static bool
header_string(const JsonbValue *value, const char *forbidden, bool blanks)
{
	if (value->type != jbvString)
		return false;
	for (int i = 0; i < value->val.string.len; i++)
	{
		char letter = value->val.string.val[i];

		if (letter != '\0' && strchr(forbidden, letter) != NULL)
			return false;
		if (!blanks && letter >= '\0' && letter <= ' ')
			return false;
	}
	return true;
}

static bool
header_name(const JsonbValue *value)
{
	return header_string(value, ":\177", false) && value->val.string.len > 0;
}

static bool
header_value(const JsonbValue *value)
{
	return value->type == jbvNumeric || header_string(value, "\r\n", true);
}

static bool
header_values(JsonbContainer *array)
{
	if (!JsonContainerIsArray(array))
		return false;
	for (uint32 i = 0; i < JsonContainerSize(array); i++)
		if (!header_value(getIthJsonbValueFromContainer(array, i)))
			return false;
	return true;
}

static bool
header_pair(const JsonbValue *value)
{
	JsonbContainer *pair;

	if (value->type != jbvBinary || !JsonContainerIsArray(value->val.binary.data))
		return false;
	pair = value->val.binary.data;
	return JsonContainerSize(pair) == 2 &&
		header_name(getIthJsonbValueFromContainer(pair, 0)) &&
		header_value(getIthJsonbValueFromContainer(pair, 1));
}

static bool
are_headers(Jsonb *json)
{
	JsonbIterator *members;
	JsonbIteratorToken token;
	JsonbValue member;

	if (JB_ROOT_IS_SCALAR(json))
		return false;
	if (JB_ROOT_IS_ARRAY(json))
	{
		for (uint32 i = 0; i < JB_ROOT_COUNT(json); i++)
			if (!header_pair(getIthJsonbValueFromContainer(&json->root, i)))
				return false;
		return true;
	}
	members = JsonbIteratorInit(&json->root);
	while ((token = JsonbIteratorNext(&members, &member, true)) != WJB_DONE)
	{
		if (token == WJB_KEY && !header_name(&member))
			return false;
		if (token != WJB_VALUE)
			continue;
		if (member.type == jbvBinary
				? !header_values(member.val.binary.data)
				: !header_value(&member))
			return false;
	}
	return true;
}

/*
 * Half of all inputs: what looks like headers, though each part may be wrong.
 */
static void
draw_headers(FuzzInput *input, StringInfo text)
{
	bool pairs = fuzz_byte(input) % 2 == 0;
	int length = fuzz_byte(input) % 4;

	appendStringInfoChar(text, pairs ? '[' : '{');
	for (int i = 0; i < length; i++)
	{
		StringInfoData parts[3];
		int nparts = fuzz_byte(input) % 8 == 0 ? fuzz_byte(input) % 4 : 2;

		for (int part = 0; part < 3; part++)
		{
			uint8 kind = fuzz_byte(input);

			initStringInfo(&parts[part]);
			if (kind % 16 == 0 && (pairs || part > 0))
			{
				StringInfoData ignored;
				bool same;

				fuzz_documents(input, &parts[part], &ignored, &same);
			}
			else if (kind % 16 == 1)
				appendStringInfoString(&parts[part], "\"\"");
			else if (kind % 16 == 2)
				appendStringInfo(&parts[part], "\"a\\u%04x\"", 1 + fuzz_byte(input));
			else if (kind % 16 == 3 && (pairs || part > 0))
				appendStringInfo(&parts[part], "%d", kind);
			else if (kind % 16 == 4 && (pairs || part > 0))
				appendStringInfoString(&parts[part], "[\"b\", 1]");
			else
				appendStringInfo(&parts[part], "\"%c\"", 'a' + kind % 26);
		}
		if (i > 0)
			appendStringInfoChar(text, ',');
		if (pairs)
		{
			appendStringInfoChar(text, '[');
			for (int part = 0; part < nparts; part++)
				appendStringInfo(text, "%s%s", part > 0 ? "," : "", parts[part % 3].data);
			appendStringInfoChar(text, ']');
		}
		else
			appendStringInfo(text, "%s:%s", parts[0].data, parts[1].data);
	}
	appendStringInfoChar(text, pairs ? ']' : '}');
}

static void
check_response(void *state)
{
	idem_response_check(state);
}

void
fuzz_headers(FuzzInput *input)
{
	StringInfoData text;
	StringInfoData ignored;
	IdemResponse response = {.isnull = {true, true, true, true}};
	Jsonb *json;
	ErrorData *error;
	bool same;

	initStringInfo(&text);
	if (fuzz_byte(input) % 2 == 0)
		draw_headers(input, &text);
	else
		fuzz_documents(input, &text, &ignored, &same);
	json = fuzz_jsonb(text.data, text.len);
	if (json == NULL)
	{
		fprintf(stderr, "%s\n", text.data);
		fuzz_violation("the harness wrote what is no JSON");
	}
	idem_response_set(&response, IDEM_RESPONSE_HEADERS,
					  PointerGetDatum(fuzz_at_edge(json, VARSIZE(json), sizeof(int32))));
	error = fuzz_catch(check_response, &response);
	if (error != NULL && error->sqlerrcode != ERRCODE_INVALID_PARAMETER_VALUE)
		ReThrowError(error);
	fuzz_count(error == NULL ? 0 : 1);
	if ((error == NULL) != are_headers(json))
	{
		fprintf(stderr, "%s is %s\n", text.data, error == NULL ? "accepted" : "refused");
		fuzz_violation("headers are taken otherwise than documented");
	}
}
