/*-------------------------------------------------------------------------
 *
 * harness.h
 *	  What the targets of the fuzzer share; see harness.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef FUZZ_HARNESS_H
#define FUZZ_HARNESS_H

#include "idempotency.h"

#include "lib/stringinfo.h"
#include "utils/jsonb.h"

/* The bytes of one execution, as far as they have not been used. */
typedef struct FuzzInput
{
	const uint8 *next;
	const uint8 *end;
} FuzzInput;

/* harness.c */
pg_noreturn extern void fuzz_violation(const char *what) pg_attribute_cold;
extern void fuzz_count(int which);
extern ErrorData *fuzz_catch(void (*action)(void *state), void *state);
extern uint8 fuzz_byte(FuzzInput *input);
extern size_t fuzz_left(const FuzzInput *input);
extern void *fuzz_at_edge(const void *data, size_t size, size_t alignment);
extern struct varlena *fuzz_varlena(const void *data, size_t size);
extern Jsonb *fuzz_jsonb(const char *text, size_t size);
extern Datum fuzz_call(PGFunction function, int nargs, const NullableDatum *args);

/* documents.c */
extern void fuzz_documents(FuzzInput *input, StringInfo one, StringInfo other, bool *same);

/* the targets: one execution each; what they count is in harness.c */
extern void fuzz_fingerprint(FuzzInput *input);
extern void fuzz_bytes(FuzzInput *input);
extern void fuzz_headers(FuzzInput *input);
extern void fuzz_identity(FuzzInput *input);
extern void fuzz_siphash(FuzzInput *input);
extern void fuzz_pattern(FuzzInput *input);
extern void fuzz_duration(FuzzInput *input);

#endif /* FUZZ_HARNESS_H */
