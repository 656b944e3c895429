/*
 * main.c - one client of the torture
 *
 *	client SHARED NUMBER ROUND MARKER work|clean-up|drive [FROM TO] >> HISTORY
 *
 * Works until it is told to stop, by the shared file. One that is started anew after
 * it was killed goes on with the operation after that in which it was. Who has fallen
 * behind the fastest by more than a block of keys leaves out what is between: keys
 * are contended for by all.
 */
#include "client.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>

Shared *shared;
Slot *me;
int client;
int64_t round_number;
const char *marker;

int
main(int argc, char **argv)
{
	int file;

	if (argc < 6)
		return 2;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	file = open(argv[1], O_RDWR);
	shared = mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (file < 0 || shared == MAP_FAILED)
	{
		perror(argv[1]);
		return 1;
	}
	client = atoi(argv[2]);
	round_number = atoll(argv[3]);
	marker = argv[4];
	me = &shared->slots[client];
	if (me->round != round_number)
	{
		me->round = round_number;
		me->k = -1;
	}
	me->pid = getpid();
	connect_again();
	if (strcmp(argv[5], "drive") == 0)
	{
		drive_to_end(atoll(argv[6]), atoll(argv[7]));
		return 0;
	}
	while (!shared->stop)
	{
		int64_t k = me->k + 1;
		int64_t block = k / BLOCK_OPERATIONS;

		if (strcmp(argv[5], "clean-up") == 0)
		{
			me->k = k;
			clean_up(k);
			continue;
		}
		if (block > shared->block)
			shared->block = block;
		else if (block + 1 < shared->block)
			k = shared->block * BLOCK_OPERATIONS;
		if ((k / BLOCK_OPERATIONS + 1) * BLOCK_KEYS >= KEYS_PER_ROUND)
			break;
		me->k = k;
		run_operation(k);
	}
	return 0;
}
