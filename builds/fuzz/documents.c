/*-------------------------------------------------------------------------
 *
 * documents.c
 *	  Pairs of JSON texts from the fuzzer's bytes.
 *
 * Two documents that were drawn independently are never equal, and text that was
 * mutated byte by byte is seldom JSON. So the bytes decide about a document, which is
 * written twice. The second time everything is spelled differently that must not
 * matter: numbers with other exponents and more zeros, members in another order and
 * after a duplicate, blanks, escapes. And where the first byte says so one part is
 * changed, by the changes that a serialization could confuse with no change: another
 * type of the same spelling, a border between two strings moved, one level of nesting
 * more.
 *
 *-------------------------------------------------------------------------
 */
#include "harness.h"

#define MAX_DEPTH 10
#define MAX_PARTS 64

typedef struct Documents
{
	FuzzInput *input;
	int parts;   /* written so far */
	int changed; /* the part that is to be changed; 0: none */
	int change;  /* how */
	bool done;   /* it was */
} Documents;

/* Letters that begin the parts of a serialization, what headers may not have, and digits. */
static const char letters[] = "skdnbt[]{}.:'\n\r\t f0123456789-+e%_~";

static void document_part(Documents *pair, StringInfo one, StringInfo other, int depth);

static char
document_letter(Documents *pair)
{
	return letters[fuzz_byte(pair->input) % (sizeof(letters) - 1)];
}

/*
 * A letter within a string, as it is or by its number.
 */
static void
document_write_letter(StringInfo to, char letter, bool by_number)
{
	if (by_number || (unsigned char) letter < ' ' || letter == 0x7f)
		appendStringInfo(to, "\\u%04x", (unsigned char) letter);
	else
		appendStringInfoChar(to, letter);
}

static void
document_string(Documents *pair, StringInfo one, StringInfo other)
{
	int length = fuzz_byte(pair->input) % 8;

	appendStringInfoChar(one, '"');
	appendStringInfoChar(other, '"');
	while (length-- > 0)
	{
		char letter = document_letter(pair);

		document_write_letter(one, letter, false);
		document_write_letter(other, letter, letter % 2 == 0);
	}
	appendStringInfoChar(one, '"');
	appendStringInfoChar(other, '"');
}

/*
 * Digits with a point somewhere: "12.5", and the same as "12500e-3".
 */
static void
document_number(Documents *pair, StringInfo one, StringInfo other)
{
	uint8 form = fuzz_byte(pair->input);
	unsigned int digits = fuzz_byte(pair->input) * 256 + fuzz_byte(pair->input);
	int exponent = form % 8 == 7 ? (int8) fuzz_byte(pair->input) : form % 4;
	const char *sign = form & 0x80 ? "-" : "";
	int zeros = digits == 0 ? 0 : form / 8 % 4; /* "00" is no JSON */

	appendStringInfo(one, "%s%ue%d", sign, digits, exponent);
	appendStringInfo(other, "%s%u", sign, digits);
	for (int i = 0; i < zeros; i++)
		appendStringInfoChar(other, '0');
	if (form & 0x40)
		appendStringInfoString(other, ".00");
	appendStringInfo(other, "E%+d", exponent - zeros);
}

static void
document_array(Documents *pair, StringInfo one, StringInfo other, int depth)
{
	int length = fuzz_byte(pair->input) % 5;

	appendStringInfoString(one, "[");
	appendStringInfoString(other, " [ ");
	for (int i = 0; i < length; i++)
	{
		if (i > 0)
		{
			appendStringInfoString(one, ",");
			appendStringInfoString(other, "\n,\t");
		}
		document_part(pair, one, other, depth + 1);
	}
	appendStringInfoString(one, "]");
	appendStringInfoString(other, " ]");
}

/*
 * The second time from the last member to the first, after a duplicate, which the
 * later one replaces. Two members that were drawn with one name would make that a
 * difference, so names are numbered.
 */
static void
document_object(Documents *pair, StringInfo one, StringInfo other, int depth)
{
	int length = fuzz_byte(pair->input) % 5;
	bool duplicate = fuzz_byte(pair->input) % 4 == 0;
	StringInfoData backwards;

	initStringInfo(&backwards);
	appendStringInfoString(one, "{");
	for (int i = 0; i < length; i++)
	{
		StringInfoData name;
		StringInfoData name_again;
		StringInfoData member;

		initStringInfo(&name);
		initStringInfo(&name_again);
		initStringInfo(&member);
		document_string(pair, &name, &name_again);
		name.data[--name.len] = '\0';
		name_again.data[--name_again.len] = '\0';
		if (i > 0)
			appendStringInfoString(one, ",");
		appendStringInfo(one, "%s%d\":", name.data, i);
		appendStringInfo(&member, "%s%d\" : ", name_again.data, i);
		document_part(pair, one, &member, depth + 1);
		if (i > 0)
			appendStringInfoString(&member, " , ");
		appendStringInfoString(&member, backwards.data);
		if (i == 0 && duplicate)
		{
			StringInfoData whole;

			initStringInfo(&whole);
			appendStringInfo(&whole, "%s%d\" : null , %s", name_again.data, i, member.data);
			member = whole;
		}
		backwards = member;
	}
	appendStringInfoString(one, "}");
	appendStringInfo(other, "{ %s}", backwards.data);
}

/*
 * One part, changed in the second document.
 */
static void
document_changed(Documents *pair, StringInfo one, StringInfo other, int depth)
{
	StringInfoData first;
	StringInfoData second;
	StringInfoData ignored;

	pair->done = true;
	initStringInfo(&first);
	initStringInfo(&second);
	initStringInfo(&ignored);
	switch (pair->change % 8)
	{
		case 0: /* within an array or not */
			document_part(pair, one, &first, depth);
			appendStringInfo(other, "[%s]", first.data);
			break;
		case 1: /* a number, or a string of the same spelling */
		{
			int number = fuzz_byte(pair->input);

			appendStringInfo(one, "%d", number);
			appendStringInfo(other, "\"%d\"", number);
			break;
		}
		case 2: /* nothing, false, "" */
			appendStringInfoString(one, "null");
			appendStringInfoString(other, fuzz_byte(pair->input) % 2 ? "false" : "\"\"");
			break;
		case 3: /* two strings, or one with a letter between */
			document_string(pair, &first, &ignored);
			document_string(pair, &second, &ignored);
			appendStringInfo(one, "[%s,%s]", first.data, second.data);
			first.data[--first.len] = '\0';
			appendStringInfo(other, "[%s", first.data);
			document_write_letter(other, document_letter(pair), false);
			appendStringInfo(other, "%s]", second.data + 1);
			break;
		case 4: /* empty of either kind */
			appendStringInfoString(one, "[]");
			appendStringInfoString(other, "{}");
			break;
		case 5: /* true or "t" */
			appendStringInfoString(one, "true");
			appendStringInfoString(other, "\"t\"");
			break;
		case 6: /* a member, or an array of its name and value */
			document_string(pair, &first, &ignored);
			document_part(pair, &second, &ignored, depth);
			appendStringInfo(one, "{%s:%s}", first.data, second.data);
			appendStringInfo(other, "[%s,%s]", first.data, second.data);
			break;
		default: /* another number, by its last digit or its sign */
		{
			int number = fuzz_byte(pair->input);

			appendStringInfo(one, "%d.%d", number, fuzz_byte(pair->input));
			appendStringInfo(other, "-%d.%d", number, fuzz_byte(pair->input));
			break;
		}
	}
}

static void
document_part(Documents *pair, StringInfo one, StringInfo other, int depth)
{
	uint8 kind;

	pair->parts++;
	if (pair->parts == pair->changed && !pair->done)
	{
		document_changed(pair, one, other, depth);
		return;
	}
	kind = fuzz_byte(pair->input);
	if (depth >= MAX_DEPTH || pair->parts >= MAX_PARTS)
		kind = 0;
	switch (kind % 8)
	{
		case 1:
			appendStringInfoString(one, "true");
			appendStringInfoString(other, "true");
			break;
		case 2:
			appendStringInfoString(one, "false");
			appendStringInfoString(other, " false");
			break;
		case 3:
			document_number(pair, one, other);
			break;
		case 4:
		case 5:
			document_string(pair, one, other);
			break;
		case 6:
			document_array(pair, one, other, depth);
			break;
		case 7:
			document_object(pair, one, other, depth);
			break;
		default:
			appendStringInfoString(one, "null");
			appendStringInfoString(other, "null ");
			break;
	}
}

/*
 * Two documents; says whether nothing was changed in the second.
 */
void
fuzz_documents(FuzzInput *input, StringInfo one, StringInfo other, bool *same)
{
	Documents pair = {.input = input};

	pair.changed = fuzz_byte(input) % 16;
	pair.change = fuzz_byte(input);
	initStringInfo(one);
	initStringInfo(other);
	document_part(&pair, one, other, 0);
	*same = !pair.done;
}
