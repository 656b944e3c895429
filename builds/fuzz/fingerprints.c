/*-------------------------------------------------------------------------
 *
 * fingerprints.c
 *	  Targets for src/fingerprint.c: the walk over jsonb, requests as bytes, and
 *	  the keys that are made of an identity.
 *
 *-------------------------------------------------------------------------
 */
#include "harness.h"

#include "common/sha2.h"
#include "common/cryptohash.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

extern Datum idempotency_fingerprint(PG_FUNCTION_ARGS);
extern Datum idempotency_fingerprint_bytes(PG_FUNCTION_ARGS);
extern Datum idempotency_content_key(PG_FUNCTION_ARGS);
extern Datum idempotency_effect_key(PG_FUNCTION_ARGS);

typedef struct varlena Bytes;

#define GIVEN(datum) ((NullableDatum){.value = (datum)})
#define NOT_GIVEN ((NullableDatum){.isnull = true})

static Bytes *
as_bytes(Datum value)
{
	return (Bytes *) DatumGetPointer(value);
}

static Bytes *
fingerprint_of(Jsonb *json)
{
	void *copy = fuzz_at_edge(json, VARSIZE(json), sizeof(int32));

	return as_bytes(fuzz_call(idempotency_fingerprint, 1, &GIVEN(PointerGetDatum(copy))));
}

static Bytes *
content_key_of(Jsonb *json)
{
	NullableDatum args[2] = {GIVEN(JsonbPGetDatum(json)), NOT_GIVEN};

	return as_bytes(fuzz_call(idempotency_content_key, 2, args));
}

static bool
same_bytes(Bytes *a, Bytes *b)
{
	return VARSIZE_ANY_EXHDR(a) == VARSIZE_ANY_EXHDR(b) &&
		memcmp(VARDATA_ANY(a), VARDATA_ANY(b), VARSIZE_ANY_EXHDR(a)) == 0;
}

/*
 * Two digests are alike exactly where jsonb's = says that the documents are.
 */
void
fuzz_fingerprint(FuzzInput *input)
{
	StringInfoData one_text;
	StringInfoData other_text;
	Jsonb *one;
	Jsonb *other;
	bool same;
	bool equal;

	fuzz_documents(input, &one_text, &other_text, &same);
	one = fuzz_jsonb(one_text.data, one_text.len);
	other = fuzz_jsonb(other_text.data, other_text.len);
	if (one == NULL || other == NULL)
	{
		fprintf(stderr, "%s\n%s\n", one_text.data, other_text.data);
		fuzz_violation("the harness wrote what is no JSON");
	}
	equal = DatumGetBool(DirectFunctionCall2(jsonb_eq, JsonbPGetDatum(one), JsonbPGetDatum(other)));
	fuzz_count(equal ? 0 : 1);
	if ((same && !equal) ||
		same_bytes(fingerprint_of(one), fingerprint_of(other)) != equal ||
		same_bytes(content_key_of(one), content_key_of(other)) != equal)
	{
		fprintf(stderr, "%s\n%s\njsonb says %s\n", one_text.data, other_text.data,
				equal ? "equal" : "different");
		fuzz_violation(same && !equal ? "the harness changed what it was not to change"
									  : "a digest disagrees with jsonb's =");
	}
}

/*
 * The bytes themselves, or a document that was drawn from them: the digest of the
 * JSON where it is JSON, of the bytes otherwise, and never an error.
 */
void
fuzz_bytes(FuzzInput *input)
{
	StringInfoData drawn;
	StringInfoData ignored;
	const char *bytes;
	size_t size;
	bool same;
	Jsonb *json;
	Bytes *digest;

	if (fuzz_byte(input) % 2 == 0)
	{
		bytes = (const char *) input->next;
		size = fuzz_left(input);
	}
	else
	{
		fuzz_documents(input, &drawn, &ignored, &same);
		bytes = drawn.data;
		size = drawn.len;
	}
	json = fuzz_jsonb(bytes, size);
	fuzz_count(json != NULL ? 0 : 1);
	digest = as_bytes(fuzz_call(idempotency_fingerprint_bytes, 1,
								&GIVEN(PointerGetDatum(fuzz_varlena(bytes, size)))));
	if (json != NULL)
	{
		if (!same_bytes(digest, fingerprint_of(json)))
			fuzz_violation("the fingerprint of JSON as bytes is not that of the JSON");
	}
	else
	{
		static const uint8 purpose[] = "fingerprint_bytes"; /* with its zero */
		pg_cryptohash_ctx *context = pg_cryptohash_create(PG_SHA256);
		uint8 expected[PG_SHA256_DIGEST_LENGTH];

		if (pg_cryptohash_init(context) < 0 ||
			pg_cryptohash_update(context, purpose, sizeof(purpose)) < 0 ||
			pg_cryptohash_update(context, (const uint8 *) bytes, size) < 0 ||
			pg_cryptohash_final(context, expected, sizeof(expected)) < 0)
			fuzz_violation("SHA-256 failed");
		pg_cryptohash_free(context);
		if (VARSIZE_ANY_EXHDR(digest) != sizeof(expected) ||
			memcmp(VARDATA_ANY(digest), expected, sizeof(expected)) != 0)
			fuzz_violation("the fingerprint of what is no JSON is not that of its bytes");
	}
}

typedef struct EffectKey
{
	NullableDatum parts[4];
	text *result;
} EffectKey;

static void
effect_key(void *state)
{
	EffectKey *key = state;

	key->result = DatumGetTextPP(fuzz_call(idempotency_effect_key, 4, key->parts));
}

/*
 * What an identity is refused with, or 0.
 */
static int
identity_expected(const EffectKey *key)
{
	for (int i = 0; i < 3; i++)
	{
		size_t length = VARSIZE_ANY_EXHDR(DatumGetPointer(key->parts[i].value));

		if (length == 0)
			return ERRCODE_INVALID_PARAMETER_VALUE;
		if (length > (size_t) idem_max_key_length)
			return ERRCODE_STRING_DATA_RIGHT_TRUNCATION;
	}
	return 0;
}

static KeyIdentity
identity_of(const EffectKey *key)
{
	return (KeyIdentity){
		.scope = DatumGetTextPP(key->parts[0].value),
		.operation = DatumGetTextPP(key->parts[1].value),
		.key = DatumGetTextPP(key->parts[2].value),
	};
}

/*
 * Two identities, each with a step or none, that are cut from the same bytes at
 * different places: their keys are alike exactly where all parts are, and are UUIDs
 * of version 8.
 */
void
fuzz_identity(FuzzInput *input)
{
	EffectKey keys[2];
	KeyIdentity identities[2];
	uint8 cuts[8];
	uint8 steps = fuzz_byte(input);
	bool same = true;
	bool parts_same = true;

	for (int i = 0; i < 8; i++)
		cuts[i] = fuzz_byte(input);
	for (int k = 0; k < 2; k++)
	{
		const uint8 *from = input->next;
		int expected;
		ErrorData *error;

		for (int i = 0; i < 4; i++)
		{
			size_t length = Min(cuts[4 * k + i], input->end - from);

			keys[k].parts[i] = i == 3 && !(steps & (1 << k))
				? NOT_GIVEN
				: GIVEN(PointerGetDatum(fuzz_varlena(from, length)));
			from += length;
		}
		expected = identity_expected(&keys[k]);
		error = fuzz_catch(effect_key, &keys[k]);
		if ((error == NULL ? 0 : error->sqlerrcode) != expected)
			fuzz_violation("an identity was refused otherwise than expected");
		if (error != NULL)
		{
			fuzz_count(2);
			return;
		}
	}
	for (int i = 0; i < 4; i++)
	{
		NullableDatum *a = &keys[0].parts[i];
		NullableDatum *b = &keys[1].parts[i];

		if (a->isnull || b->isnull)
			same = same && a->isnull == b->isnull;
		else if (!same_bytes(as_bytes(a->value), as_bytes(b->value)))
			same = false;
		if (i == 2)
			parts_same = same;
	}
	identities[0] = identity_of(&keys[0]);
	identities[1] = identity_of(&keys[1]);
	if (idem_identity_equal(&identities[0], &identities[1]) != parts_same)
		fuzz_violation("two identities compare otherwise than their bytes");
	fuzz_count(same ? 0 : 1);
	if (idem_texts_equal(keys[0].result, keys[1].result) != same)
		fuzz_violation("effect keys are alike where identities are not, or the other way round");
	for (int k = 0; k < 2; k++)
	{
		const char *uuid = VARDATA_ANY(keys[k].result);

		if (VARSIZE_ANY_EXHDR(keys[k].result) != 36 || uuid[14] != '8' ||
			strchr("89ab", uuid[19]) == NULL)
			fuzz_violation("an effect key is no UUID of version 8");
	}
}
