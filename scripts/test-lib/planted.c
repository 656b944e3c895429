/*
 * planted.c
 *	  Defects for the analyzers of scripts/test checks: each has to find those that are
 *	  marked with its name; see checks.sh. Never built.
 */
#include "postgres.h"

extern int planted(int *value, int number);
extern int also_planted(const int *value, int number);
extern int not_planted(const int *value);

int
planted(int *value, int number)
{
	int *copy = malloc(sizeof(int));

	if (copy == NULL)
		return 0;
	*copy = number;
	if (number < 3 && number > 5) /* cppcheck: incorrectLogicOperator */
		return 1;
	free(copy);
	*value = number;
	free(copy); /* gcc: -Werror=analyzer-double-free */
	return *value;
}

int
also_planted(const int *value, int number)
{
	for (short i = 0; i < number; i++) /* clang-tidy: bugprone-too-small-loop-variable */
		number--;
	if (value == NULL)
		number += *value; /* clang-tidy: clang-analyzer-core.NullDereference */
	return number;
}

/* No defect: ereport(ERROR) does not return, which all of them have to know. */
int
not_planted(const int *value)
{
	int number;

	if (value != NULL)
		number = *value;
	else
		ereport(ERROR, (errmsg("value must not be null")));
	if (value == NULL)
		elog(ERROR, "value must not be null");
	return number + *value;
}
