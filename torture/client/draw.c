/*
 * draw.c - random numbers that are a function of the seed, the round, the client and
 * the operation
 *
 * Not of what was drawn before: a client that was killed in the middle of an
 * operation goes on with the next one, and draws there what it would have drawn.
 */
#include "client.h"

static uint64_t state;

uint64_t
digest(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

void
draw_begin(int64_t k)
{
	state = digest(digest(digest(digest((uint64_t) shared->seed) ^ (uint64_t) round_number) ^
						  (uint64_t) client) ^
				   (uint64_t) k);
}

uint64_t
draw(uint64_t below)
{
	state = digest(state);
	return state % below;
}

bool
chance(int percent)
{
	return (int) draw(100) < percent;
}
