/*-------------------------------------------------------------------------
 *
 * siphash.h
 *	  A short keyed digest of bytes; see siphash.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_SIPHASH_H
#define IDEMPOTENCY_SIPHASH_H

#define SIPHASH_KEY_LEN 16

extern uint64 siphash(const unsigned char *key, const unsigned char *data, Size len);

#endif /* IDEMPOTENCY_SIPHASH_H */
