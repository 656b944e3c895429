/*
 * client.h - what the files of the torture's client share
 *
 * One process is one client with one connection. What it does as its operation
 * number k of a round is a function of (seed, round, client, k) alone: draw.c. How
 * the server answers it, and what of it is written down, is in wire.c; what clients
 * do, in scripts.c; main.c begins and ends.
 */
#ifndef TORTURE_CLIENT_H
#define TORTURE_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include <libpq-fe.h>

#define MAX_CLIENTS 64
#define KEYS_PER_ROUND 65536
#define MAX_KEYS (1 << 24)
/* So many operations of a client are about the same so many keys. */
#define BLOCK_OPERATIONS 96
#define BLOCK_KEYS 48

/*
 * What all processes of a run see: a file that is mapped by the clients, and read
 * and written by Shared.pm, which knows these places. A client that is killed may
 * be anywhere, so nothing here needs a lock.
 */
typedef struct Slot
{
	volatile int64_t pid;
	volatile int64_t round;
	volatile int64_t k;     /* the operation that is under way */
	volatile int64_t calls; /* answered so far, in all rounds */
	volatile int64_t beat;  /* when the last answer came */
	int64_t unused[3];
} Slot;

typedef struct Ledger
{
	volatile int64_t done;    /* execution whose completion was acknowledged; lasting keys */
	volatile int64_t outside; /* largest token that the outside party has seen */
	volatile int64_t effect;  /* digest of the key that was handed to it */
	volatile int64_t charged; /* execution that it did */
} Ledger;

typedef struct Shared
{
	volatile int64_t stop;
	volatile int64_t round;
	volatile int64_t block; /* the block of keys that the fastest client has reached */
	volatile int64_t seed;
	int64_t unused[508];
	Slot slots[MAX_CLIENTS];
	Ledger ledger[MAX_KEYS];
} Shared;

extern Shared *shared;
extern Slot *me;
extern int client;
extern int64_t round_number;
extern const char *marker;

/* ---- draw.c ---- */
extern void draw_begin(int64_t k);
extern uint64_t draw(uint64_t below);
extern bool chance(int percent);
extern uint64_t digest(uint64_t x);

/* ---- wire.c ---- */

/* Of the last answer. */
extern PGresult *result;
extern char code[8]; /* SQLSTATE, "lost", or "" */
extern char outcome[24];

typedef struct Extra
{
	int64_t token;
	int64_t server; /* the server's clock, after the call, in microseconds */
	int64_t until;  /* the end of the lease */
	int64_t execution;
	const char *flags;
} Extra;

extern int64_t now_us(void);
extern void violation(int64_t key, const char *words);
extern void connect_again(void);
extern void vanish(void);
extern bool ask(const char *sql, int nvalues, const char *const *values);
extern bool call(const char *kind, int64_t key, const char *sql, int nvalues,
				 const char *const *values);
extern void note_call(const char *kind, int64_t key, const Extra *extra);
extern void note_intention(const char *kind, int64_t key, int64_t token);
extern void start_and_vanish(const char *sql, int nvalues, const char *const *values);
extern bool begin_transaction(const char *level);
extern bool in_transaction(void);
extern bool sees_the_present(void);
extern bool commit(void);
extern void roll_back(void);
extern bool prepare_transaction(bool *unknown);
extern bool transaction_is_sure(void);
extern const char *value(int column);
extern int64_t number(int column);

/* ---- scripts.c ---- */
extern void run_operation(int64_t k);
extern void clean_up(int64_t k);
extern void drive_to_end(int64_t from, int64_t to);

#endif
