/*
 * clock.c - a wall clock that the torture can set, for servers (LD_PRELOAD)
 *
 * It is the real one and so many microseconds, which a file says that all of them have
 * mapped: so it jumps in all processes of a server at once, and in those that are
 * forked later. libfaketime does not do that: what PostgreSQL 15 forks while it
 * sleeps in select(), as it does for background processes, has the real time there
 * for good, and the clean-up worker is such a process. The monotonic clock is not
 * touched, as no operator can.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long long
ahead(void)
{
	static volatile long long *offset = NULL;

	if (offset == NULL)
	{
		const char *name = getenv("TORTURE_CLOCK");
		int file = name ? open(name, O_RDONLY) : -1;
		void *page = file < 0 ? MAP_FAILED : mmap(NULL, sizeof(*offset), PROT_READ, MAP_SHARED, file, 0);

		if (file >= 0)
			close(file);
		if (page == MAP_FAILED)
			return 0;
		offset = page;
	}
	return *offset;
}

static void
now(struct timespec *t)
{
	long long us;

	syscall(SYS_clock_gettime, CLOCK_REALTIME, t);
	us = t->tv_sec * 1000000LL + t->tv_nsec / 1000 + ahead();
	t->tv_sec = us / 1000000;
	t->tv_nsec = us % 1000000 * 1000;
}

int
gettimeofday(struct timeval *restrict tv, void *restrict tz)
{
	struct timespec t;

	(void) tz;
	now(&t);
	tv->tv_sec = t.tv_sec;
	tv->tv_usec = t.tv_nsec / 1000;
	return 0;
}

int
clock_gettime(clockid_t id, struct timespec *t)
{
	if (id != CLOCK_REALTIME)
		return (int) syscall(SYS_clock_gettime, id, t);
	now(t);
	return 0;
}

time_t
time(time_t *to)
{
	struct timespec t;

	now(&t);
	if (to)
		*to = t.tv_sec;
	return t.tv_sec;
}
