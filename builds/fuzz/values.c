/*-------------------------------------------------------------------------
 *
 * values.c
 *	  Targets for what looks at single values: SipHash, patterns of scopes,
 *	  durations. Each is held against another way to the same answer.
 *
 *-------------------------------------------------------------------------
 */
#include "harness.h"

/* For binding_check_pattern(), which nobody else may call. This is the only object with it. */
#include "bindings.c"
#include "siphash.h"

/*
 * SipHash-2-4 as its paper describes it: the message is padded as a whole, its words
 * are put together from single bytes, and the four variables have names.
 */
#define ROTATE(x, b) (((x) << (b)) | ((x) >> (64 - (b))))

typedef struct SipState
{
	uint64 v0, v1, v2, v3;
} SipState;

static void
sip_round(SipState *s)
{
	s->v0 += s->v1;
	s->v1 = ROTATE(s->v1, 13);
	s->v1 ^= s->v0;
	s->v0 = ROTATE(s->v0, 32);
	s->v2 += s->v3;
	s->v3 = ROTATE(s->v3, 16);
	s->v3 ^= s->v2;
	s->v0 += s->v3;
	s->v3 = ROTATE(s->v3, 21);
	s->v3 ^= s->v0;
	s->v2 += s->v1;
	s->v1 = ROTATE(s->v1, 17);
	s->v1 ^= s->v2;
	s->v2 = ROTATE(s->v2, 32);
}

static uint64
sip_word(const uint8 *bytes)
{
	uint64 word = 0;

	for (int i = 7; i >= 0; i--)
		word = word << 8 | bytes[i];
	return word;
}

static uint64
sip_reference(const uint8 *key, const uint8 *data, size_t size)
{
	size_t padded = (size / 8 + 1) * 8;
	uint8 *message = palloc0(padded);
	uint64 k0 = sip_word(key);
	uint64 k1 = sip_word(key + 8);
	SipState s = {k0 ^ UINT64CONST(0x736f6d6570736575), k1 ^ UINT64CONST(0x646f72616e646f6d),
				  k0 ^ UINT64CONST(0x6c7967656e657261), k1 ^ UINT64CONST(0x7465646279746573)};

	memcpy(message, data, size);
	message[padded - 1] = size % 256;
	for (size_t at = 0; at < padded; at += 8)
	{
		s.v3 ^= sip_word(message + at);
		sip_round(&s);
		sip_round(&s);
		s.v0 ^= sip_word(message + at);
	}
	s.v2 ^= 0xff;
	for (int i = 0; i < 4; i++)
		sip_round(&s);
	return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
}

void
fuzz_siphash(FuzzInput *input)
{
	uint8 key[SIPHASH_KEY_LEN];
	size_t size;

	for (int i = 0; i < SIPHASH_KEY_LEN; i++)
		key[i] = fuzz_byte(input);
	size = fuzz_left(input);
	fuzz_count(0);
	if (siphash(fuzz_at_edge(key, sizeof(key), 1), fuzz_at_edge(input->next, size, 1), size) !=
		sip_reference(key, input->next, size))
		fuzz_violation("SipHash gives another digest than its paper");
}

typedef struct PatternMatch
{
	text *pattern;
	text *scope;
} PatternMatch;

static void
check_pattern(void *state)
{
	PatternMatch *match = state;

	binding_check_pattern(match->pattern);
}

static void
match_pattern(void *state)
{
	PatternMatch *match = state;

	(void) DirectFunctionCall2Coll(textlike, C_COLLATION_OID, PointerGetDatum(match->scope),
								   PointerGetDatum(match->pattern));
}

/*
 * A pattern is refused exactly where it ends within an escape; and no scope makes LIKE
 * fail on one that was accepted. The scope that comes furthest is the pattern itself,
 * without its escapes, or what else the bytes say.
 */
void
fuzz_pattern(FuzzInput *input)
{
	static const char letters[] = "\\\\\\%_ab";
	int length = fuzz_byte(input) % 24;
	char *pattern = palloc(length + 1);
	char *scope = palloc(length + 1);
	int scope_length = 0;
	bool ends_within = false;
	bool own = fuzz_byte(input) % 4 == 0;
	PatternMatch match;
	ErrorData *error;

	for (int i = 0; i < length; i++)
		pattern[i] = letters[fuzz_byte(input) % (sizeof(letters) - 1)];
	for (int i = 0; i < length; i++)
	{
		if (pattern[i] == '\\' && ++i == length)
			ends_within = true;
		else if (own)
			scope[scope_length++] = letters[fuzz_byte(input) % (sizeof(letters) - 1)];
		else
			scope[scope_length++] = pattern[i];
	}
	match.pattern = (text *) fuzz_varlena(pattern, length);
	match.scope = (text *) fuzz_varlena(scope, scope_length);
	error = fuzz_catch(check_pattern, &match);
	fuzz_count(error == NULL ? 0 : 1);
	if ((error != NULL) != ends_within ||
		(error != NULL && error->sqlerrcode != ERRCODE_INVALID_ESCAPE_SEQUENCE))
		fuzz_violation("a pattern was refused otherwise than expected");
	if (error == NULL && fuzz_catch(match_pattern, &match) != NULL)
		fuzz_violation("a pattern that was accepted makes a later comparison fail");
}

/*
 * An interval in microseconds, and a time after another one: in 128 bits nothing
 * overflows.
 */
typedef struct LaterTime
{
	TimestampTz start;
	int64 microseconds;
	TimestampTz result;
} LaterTime;

static void
later_time(void *state)
{
	LaterTime *later = state;

	later->result = idem_time_after(later->start, later->microseconds, "ttl");
}

void
fuzz_duration(FuzzInput *input)
{
	uint8 bytes[sizeof(int32) * 2 + sizeof(int64) * 2];
	Interval span;
	LaterTime later;
	int128 exact;
	int64 result;
	ErrorData *error;

	for (int i = 0; i < (int) sizeof(bytes); i++)
		bytes[i] = fuzz_byte(input);
	memcpy(&span.month, bytes, 4);
	memcpy(&span.day, bytes + 4, 4);
	memcpy(&span.time, bytes + 8, 8);
	memcpy(&later.start, bytes + 16, 8);

	/* Months and days that are beyond 64 bits by themselves stay so, whatever comes after. */
	exact = ((int128) span.month * DAYS_PER_MONTH + span.day) * USECS_PER_DAY;
	if (exact >= PG_INT64_MIN && exact <= PG_INT64_MAX)
		exact += span.time;
	result = idem_interval_us(&span);
	if (result != (exact < PG_INT64_MIN || exact > PG_INT64_MAX ? PG_INT64_MAX : exact))
		fuzz_violation("an interval has another length");
	fuzz_count(result == PG_INT64_MAX ? 1 : 0);

	later.microseconds = result;
	exact = (int128) later.start + result;
	error = fuzz_catch(later_time, &later);
	if (error != NULL && error->sqlerrcode != ERRCODE_INVALID_PARAMETER_VALUE)
		ReThrowError(error);
	if ((error == NULL) != (exact >= MIN_TIMESTAMP && exact < END_TIMESTAMP))
		fuzz_violation("a time is out of range where it is not, or the other way round");
	if (error == NULL && later.result != exact)
		fuzz_violation("a later time is another");
}
