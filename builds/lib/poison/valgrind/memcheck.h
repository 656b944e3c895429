/*-------------------------------------------------------------------------
 *
 * memcheck.h
 *	  valgrind's header of this name, for building PostgreSQL: what the server
 *	  tells valgrind about its memory, it also tells AddressSanitizer.
 *
 * PostgreSQL hands out memory in pieces of what malloc gave, and pages of a
 * buffer that is there all the time; AddressSanitizer by itself would see neither
 * a write past the end of a piece, nor a read of one that was freed, nor of a page
 * that is no longer pinned. The server says all that to valgrind if it is built
 * with USE_VALGRIND. Here the same words reach AddressSanitizer, if that is loaded
 * into the process; otherwise its functions are not there, and nothing happens.
 *
 * What is not initialised only valgrind knows.
 *
 *-------------------------------------------------------------------------
 */
#ifndef POISON_MEMCHECK_H
#define POISON_MEMCHECK_H

#include_next <valgrind/memcheck.h>
#include <stddef.h>

extern void __asan_poison_memory_region(const volatile void *memory, size_t size) __attribute__((weak));
extern void __asan_unpoison_memory_region(const volatile void *memory, size_t size) __attribute__((weak));

static inline void
poison_forbid(const volatile void *memory, size_t size)
{
	if (__asan_poison_memory_region != NULL)
		__asan_poison_memory_region(memory, size);
}

static inline void
poison_allow(const volatile void *memory, size_t size)
{
	if (__asan_unpoison_memory_region != NULL)
		__asan_unpoison_memory_region(memory, size);
}

#define POISON_REQUEST(request, a, b, c, d) VALGRIND_DO_CLIENT_REQUEST_STMT(request, a, b, c, d, 0)

#undef VALGRIND_MAKE_MEM_NOACCESS
#define VALGRIND_MAKE_MEM_NOACCESS(memory, size)                                \
	do                                                                          \
	{                                                                           \
		POISON_REQUEST(VG_USERREQ__MAKE_MEM_NOACCESS, (memory), (size), 0, 0);  \
		poison_forbid((const volatile void *) (memory), (size));                \
	} while (0)

#undef VALGRIND_MAKE_MEM_UNDEFINED
#define VALGRIND_MAKE_MEM_UNDEFINED(memory, size)                               \
	do                                                                          \
	{                                                                           \
		POISON_REQUEST(VG_USERREQ__MAKE_MEM_UNDEFINED, (memory), (size), 0, 0); \
		poison_allow((const volatile void *) (memory), (size));                 \
	} while (0)

#undef VALGRIND_MAKE_MEM_DEFINED
#define VALGRIND_MAKE_MEM_DEFINED(memory, size)                                 \
	do                                                                          \
	{                                                                           \
		POISON_REQUEST(VG_USERREQ__MAKE_MEM_DEFINED, (memory), (size), 0, 0);   \
		poison_allow((const volatile void *) (memory), (size));                 \
	} while (0)

#undef VALGRIND_MEMPOOL_ALLOC
#define VALGRIND_MEMPOOL_ALLOC(pool, memory, size)                                 \
	do                                                                             \
	{                                                                              \
		POISON_REQUEST(VG_USERREQ__MEMPOOL_ALLOC, (pool), (memory), (size), 0);    \
		poison_allow((const volatile void *) (memory), (size));                    \
	} while (0)

/* How long the piece was is not said; where it is freed, the server forbids it, too. */
#undef VALGRIND_MEMPOOL_CHANGE
#define VALGRIND_MEMPOOL_CHANGE(pool, before, memory, size)                            \
	do                                                                                 \
	{                                                                                  \
		POISON_REQUEST(VG_USERREQ__MEMPOOL_CHANGE, (pool), (before), (memory), (size)); \
		poison_allow((const volatile void *) (memory), (size));                        \
	} while (0)

#endif /* POISON_MEMCHECK_H */
