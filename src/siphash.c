/*-------------------------------------------------------------------------
 *
 * siphash.c
 *	  SipHash-2-4: a short keyed digest of bytes.
 *
 * Lock tags are public (locks.c). The server's own hash functions take a seed,
 * but they are made to spread values, not to hide them: from the tag of a known
 * key the seed can be computed. SipHash is made so that it cannot, and needs a
 * few hundred instructions where an HMAC needs ten thousand.
 *
 * J.-P. Aumasson, D. J. Bernstein, "SipHash: a fast short-input PRF", 2012.
 * t/015_lock_secret.pl holds this against the test vectors of the paper.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "port/pg_bswap.h"
#include "siphash.h"

static inline uint64
siphash_rotate(uint64 value, int bits)
{
	return (value << bits) | (value >> (64 - bits));
}

static inline uint64
siphash_little_endian(const unsigned char *bytes)
{
	uint64 value;

	memcpy(&value, bytes, sizeof(value));
#ifdef WORDS_BIGENDIAN
	value = pg_bswap64(value);
#endif
	return value;
}

static inline void
siphash_mix(uint64 *v, int rounds)
{
	while (rounds-- > 0)
	{
		v[0] += v[1];
		v[2] += v[3];
		v[1] = siphash_rotate(v[1], 13) ^ v[0];
		v[3] = siphash_rotate(v[3], 16) ^ v[2];
		v[0] = siphash_rotate(v[0], 32);
		v[2] += v[1];
		v[0] += v[3];
		v[1] = siphash_rotate(v[1], 17) ^ v[2];
		v[3] = siphash_rotate(v[3], 21) ^ v[0];
		v[2] = siphash_rotate(v[2], 32);
	}
}

uint64
siphash(const unsigned char *key, const unsigned char *data, Size len)
{
	uint64 k0 = siphash_little_endian(key);
	uint64 k1 = siphash_little_endian(key + 8);
	uint64 v[4] = {
		k0 ^ UINT64CONST(0x736f6d6570736575),
		k1 ^ UINT64CONST(0x646f72616e646f6d),
		k0 ^ UINT64CONST(0x6c7967656e657261),
		k1 ^ UINT64CONST(0x7465646279746573),
	};
	unsigned char last[8] = {0};
	uint64 word;

	for (Size left = len; left >= 8; left -= 8, data += 8)
	{
		word = siphash_little_endian(data);
		v[3] ^= word;
		siphash_mix(v, 2);
		v[0] ^= word;
	}
	memcpy(last, data, len % 8);
	last[7] = (unsigned char) len;
	word = siphash_little_endian(last);
	v[3] ^= word;
	siphash_mix(v, 2);
	v[0] ^= word;

	v[2] ^= 0xff;
	siphash_mix(v, 4);
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}
