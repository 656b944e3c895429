/*-------------------------------------------------------------------------
 *
 * statements.h
 *	  The SQL statements on idempotency_keys: what there is (statements.c) and how
 *	  it is executed (plans.c).
 *
 * For keys.c and batch.c alone, which offer what others need by functions of
 * their own: a statement does what it says, whoever may do it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_STATEMENTS_H
#define IDEMPOTENCY_STATEMENTS_H

#include "rows.h"

typedef enum KeyStatement
{
	STATEMENT_INSERT,
	STATEMENT_INSERT_LEAN,
	STATEMENT_INSERT_IF_ABSENT,
	STATEMENT_UPDATE,
	STATEMENT_UPDATE_END,
	STATEMENT_DELETE,
	STATEMENT_DELETE_SCOPE,
	STATEMENT_DELETE_EXPIRED,
	STATEMENT_CLEANUP,
	STATEMENT_CLEANUP_OPERATION,
	STATEMENT_CLEANUP_SCOPE,
	STATEMENT_CLEANUP_SCOPE_OPERATION,
	STATEMENT_REDACT_DUE,
	STATEMENT_REDACT_SCOPE,
	STATEMENT_ABANDONED,
	STATEMENT_NEXT_SCOPE,
	STATEMENT_SCOPE_PAGE,
	STATEMENT_COUNT_EXPIRED,
	STATEMENT_COUNT_ABANDONED,
	STATEMENT_COUNT_HELD,
	STATEMENT_BATCH_INSERT,
	STATEMENT_BATCH_LOOK,
	STATEMENT_BATCH_REPLACE,
	NSTATEMENTS
} KeyStatement;

/*
 * A set of columns: those whose values come after a statement's other parameters, in
 * the order of KeyColumn.
 */
typedef uint32 KeyColumns;

#define KEY_COLUMN(column) ((KeyColumns) 1 << (column))
StaticAssertDecl(KEY_NCOLUMNS < 32, "a set of columns has a bit for each");

#define STATEMENT_OWN_PARAMETERS 6
#define STATEMENT_MAX_PARAMETERS (STATEMENT_OWN_PARAMETERS + KEY_NCOLUMNS)

typedef struct StatementText
{
	const char *sql;                     /* as idem_statement_sql() reads it */
	Oid types[STATEMENT_OWN_PARAMETERS]; /* of $1 and so on, as far as there are any */
	KeyColumns columns;
	bool reads;       /* and nothing else */
	bool may_be_lost; /* in a crash, after its commit */
} StatementText;

/* statements.c */
extern const StatementText idem_statements[NSTATEMENTS];
extern int idem_statement_own_parameters(KeyStatement statement);
extern int idem_statement_types(KeyStatement statement, Oid *types);
extern char *idem_statement_sql(KeyStatement statement);

/* plans.c */
extern uint64 idem_plan_execute(KeyStatement statement, Datum *values, const char *nulls,
								void (*consume)(void *state, uint64 nrows), void *state);
extern uint64 idem_plan_write(KeyStatement statement, const Datum *own, const KeyRow *old,
							  const KeyRow *row);
extern Datum idem_plan_value(uint64 row, int column);

#endif /* IDEMPOTENCY_STATEMENTS_H */
