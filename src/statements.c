/*-------------------------------------------------------------------------
 *
 * statements.c
 *	  The SQL that reads and writes rows of idempotency_keys, as a table.
 *
 * There is one statement to insert a row, one to replace a version of it and
 * one to delete it. The latter two find the version by its ctid, without
 * touching an index page, and repeat what was decided on, so that they miss if
 * it has changed. The others deal with many rows at once, and say in SQL what
 * states.c says of one row.
 *
 * How they are written. Every name is qualified: the search path may be anybody's.
 * For the sake of who reads them, operators are written {=}, {<=} and so on, which
 * stands for OPERATOR(pg_catalog.=). Lists of columns, which only the C code knows,
 * are written {columns}, {values}, {assignments} and {excluded}. A statement's own
 * parameters come first, the values of its columns after them.
 *
 *-------------------------------------------------------------------------
 */
#include "statements.h"

#include "catalog/pg_type.h"
#include "lib/stringinfo.h"

/* SQL is laid out as SQL. */
/* clang-format off */

#define KEYS IDEM_QUALIFIED_TABLE

/*
 * How a row stands; compare idem_state_of(). "before" is the moment before which
 * its time has to be over, where that is not the present.
 */
#define LAPSED(k, now) \
	"(" k ".status {=} 'in_progress' AND (" k ".locked_until {>} " now ") IS NOT TRUE)"
#define FINISHED(k) \
	"(" k ".status {=} 'completed' OR " k ".status {=} 'failed')"
#define EXPIRED(k, before, now) \
	"(" k ".expires_at {<=} " before " AND (" FINISHED(k) " OR (" LAPSED(k, now) \
	" AND " k ".hold_if_abandoned IS NOT TRUE)))"
#define ABANDONED(k, now) \
	"(" LAPSED(k, now) " AND " k ".hold_if_abandoned IS NOT TRUE" \
	" AND " k ".expires_at {>} " now ")"
#define HELD(k, now) \
	"(" k ".status {=} 'held' OR (" LAPSED(k, now) " AND " k ".hold_if_abandoned))"

/* What the next claim gets without asking anybody: it has expired or failed. */
#define FREE(k, now) \
	"(" EXPIRED(k, now, now) " OR (" k ".status {=} 'failed'" \
	" AND (" k ".locked_until {>} " now ") IS NOT TRUE))"

/* What idem_state_redact() does. */
#define REDACTED \
	"response_headers = NULL, response_body = NULL, response_bytes = NULL," \
	" state = NULL, last_error = NULL, response_expires_at = NULL, redacted_at = "

/*
 * A version as it was read: position, and what decisions are based on. The
 * latter matters when a concurrent change makes the server look at the newest
 * version of the row instead. $1 to $4 are set by keys_version() in keys.c.
 */
#define THIS_VERSION \
	"k.ctid {=} $1 AND k.expires_at {=} $2 AND k.status {=} $3" \
	" AND COALESCE(k.token, 0) {=} $4"
#define VERSION_TYPES {TIDOID, TIMESTAMPTZOID, TEXTOID, INT8OID}

/*
 * What cleanup() deletes, for each combination of the two arguments that may be
 * NULL a statement, since a plan is made once for all values. One pass, whose
 * memory does not depend on how much there is.
 *
 * Of all ways the planner shall see only the one that is right for any size: with
 * a scope, the primary key's entries of it; without, the index on expires_at from
 * its beginning. And a row that was found is fetched by its ctid. A condition that
 * ends in IS TRUE is one that no index serves.
 *
 * $1 expired before, $2 now, $3 rows at most, $4 scope, $5 operation
 */
#define CLEANUP(condition) \
	"DELETE FROM ONLY " KEYS " AS k" \
	" USING (SELECT c.ctid AS place FROM ONLY " KEYS " AS c" \
	"   WHERE " condition \
	"   LIMIT $3 FOR UPDATE SKIP LOCKED) AS d" \
	" WHERE k.ctid {=} d.place AND " EXPIRED("k", "$1", "$2") " IS TRUE"
#define CLEANUP_TYPES {TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, TEXTOID, TEXTOID}

/*
 * The array comes in the order of the index and is inserted in that order: so
 * overlapping batches meet in the same order. Each key expires a microsecond
 * after the one before; see batch.c.
 *
 * $1 scope, $2 operation, $3 keys, $4 now, $5 the first expires, $6 tokens
 */
#define BATCH \
	"INSERT INTO " KEYS " AS k (created_at, expires_at, completed_at, attempt," \
	"   scope, operation, key, status, token)" \
	" SELECT $4, $5 {+} ((u.n {-} 1)::pg_catalog.float8" \
	"     {*} '1 microsecond'::pg_catalog.interval)," \
	"   $4, 1, $1, $2, u.key, 'completed', u.token" \
	" FROM ROWS FROM (pg_catalog.unnest($3), pg_catalog.unnest($6)) WITH ORDINALITY" \
	"   AS u(key, token, n)" \
	" ON CONFLICT (scope, operation, key)"
#define BATCH_TYPES {TEXTOID, TEXTOID, TEXTARRAYOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8ARRAYOID}

/* Counting stops where a check is critical anyway: $1 before, $2 now, $3 so many. */
#define COUNT(condition) \
	"SELECT pg_catalog.count(*) FROM" \
	" (SELECT FROM ONLY " KEYS " AS k WHERE " condition " LIMIT $3) AS c"
#define COUNT_TYPES {TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID}

#define ALL_COLUMNS (KEY_COLUMN(KEY_NCOLUMNS) - 1)

/* What a key has that is completed in the transaction of its claim, as most are. */
#define LEAN_COLUMNS \
	(KEY_COLUMN(KEY_CREATED_AT) | KEY_COLUMN(KEY_EXPIRES_AT) | KEY_COLUMN(KEY_COMPLETED_AT) | \
	 KEY_COLUMN(KEY_ATTEMPT) | KEY_COLUMN(KEY_RESPONSE_STATUS) | KEY_COLUMN(KEY_SCOPE) | \
	 KEY_COLUMN(KEY_OPERATION) | KEY_COLUMN(KEY_KEY) | KEY_COLUMN(KEY_STATUS) | \
	 KEY_COLUMN(KEY_FINGERPRINT) | KEY_COLUMN(KEY_RESPONSE_HEADERS) | \
	 KEY_COLUMN(KEY_RESPONSE_BODY))

/* What complete() and fail() change of a claim that is in the table. */
#define END_COLUMNS \
	(KEY_COLUMN(KEY_EXPIRES_AT) | KEY_COLUMN(KEY_COMPLETED_AT) | \
	 KEY_COLUMN(KEY_RESPONSE_STATUS) | KEY_COLUMN(KEY_LOCKED_UNTIL) | \
	 KEY_COLUMN(KEY_LEASE_MS) | KEY_COLUMN(KEY_RESPONSE_EXPIRES_AT) | \
	 KEY_COLUMN(KEY_CLAIM_ID) | KEY_COLUMN(KEY_HOLD_IF_ABANDONED) | KEY_COLUMN(KEY_STATUS) | \
	 KEY_COLUMN(KEY_RESPONSE_HEADERS) | KEY_COLUMN(KEY_RESPONSE_BODY) | \
	 KEY_COLUMN(KEY_RESPONSE_BYTES) | KEY_COLUMN(KEY_LAST_ERROR))

const StatementText idem_statements[NSTATEMENTS] = {
	[STATEMENT_INSERT] = {
		.sql =
			"INSERT INTO " KEYS " ({columns}) VALUES ({values})",
		.columns = ALL_COLUMNS,
	},
	[STATEMENT_INSERT_LEAN] = {
		.sql =
			"INSERT INTO " KEYS " ({columns}) VALUES ({values})",
		.columns = LEAN_COLUMNS,
	},
	[STATEMENT_INSERT_IF_ABSENT] = {
		.sql =
			"INSERT INTO " KEYS " ({columns}) VALUES ({values})"
			" ON CONFLICT (scope, operation, key) DO NOTHING",
		.columns = ALL_COLUMNS,
	},
	[STATEMENT_UPDATE] = {
		.sql =
			"UPDATE ONLY " KEYS " AS k SET {assignments} WHERE " THIS_VERSION,
		.types = VERSION_TYPES,
		.columns = ALL_COLUMNS,
	},
	[STATEMENT_UPDATE_END] = {
		.sql =
			"UPDATE ONLY " KEYS " AS k SET {assignments} WHERE " THIS_VERSION,
		.types = VERSION_TYPES,
		.columns = END_COLUMNS,
	},
	[STATEMENT_DELETE] = {
		.sql =
			"DELETE FROM ONLY " KEYS " AS k WHERE " THIS_VERSION,
		.types = VERSION_TYPES,
	},
	/* $1 scope, $2 whether unfinished ones go, too */
	[STATEMENT_DELETE_SCOPE] = {
		.sql =
			"DELETE FROM ONLY " KEYS " AS k"
			" WHERE k.scope {=} $1 AND ($2 OR " FINISHED("k") ")",
		.types = {TEXTOID, BOOLOID},
	},

	/*
	 * The condition is repeated outside: a row that was taken over between the
	 * two looks is judged by its last version. $4 is where the batch before this
	 * one ended: the index still has an entry for what that deleted, and while
	 * any snapshot is older, each of them would have to be looked at again.
	 *
	 * $1 expired before, $2 now, $3 rows at most, $4 where to begin
	 */
	[STATEMENT_DELETE_EXPIRED] = {
		.sql =
			"DELETE FROM ONLY " KEYS " AS k"
			" WHERE k.ctid {=} ANY (ARRAY("
			"     SELECT c.ctid FROM ONLY " KEYS " AS c"
			"     WHERE " EXPIRED("c", "$1", "$2") " AND c.expires_at {>=} $4"
			"     ORDER BY c.expires_at LIMIT $3 FOR UPDATE SKIP LOCKED))"
			"   AND " EXPIRED("k", "$1", "$2")
			" RETURNING k.expires_at",
		.types = {TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID},
		.may_be_lost = true,
	},
	[STATEMENT_CLEANUP] = {
		.sql =
			CLEANUP(EXPIRED("c", "$1", "$2") " ORDER BY c.expires_at"),
		.types = CLEANUP_TYPES,
		.may_be_lost = true,
	},
	[STATEMENT_CLEANUP_OPERATION] = {
		.sql =
			CLEANUP(EXPIRED("c", "$1", "$2")
				" AND (c.operation {=} $5) IS TRUE ORDER BY c.expires_at"),
		.types = CLEANUP_TYPES,
		.may_be_lost = true,
	},
	[STATEMENT_CLEANUP_SCOPE] = {
		.sql =
			CLEANUP("c.scope {=} $4 AND " EXPIRED("c", "$1", "$2") " IS TRUE"),
		.types = CLEANUP_TYPES,
		.may_be_lost = true,
	},
	[STATEMENT_CLEANUP_SCOPE_OPERATION] = {
		.sql =
			CLEANUP("c.scope {=} $4 AND c.operation {=} $5"
				" AND " EXPIRED("c", "$1", "$2") " IS TRUE"),
		.types = CLEANUP_TYPES,
		.may_be_lost = true,
	},
	/* $1 now, $2 rows at most, $3 where the batch before this one ended, as above */
	[STATEMENT_REDACT_DUE] = {
		.sql =
			"UPDATE ONLY " KEYS " AS k SET " REDACTED "$1"
			" FROM (SELECT c.ctid AS place, c.response_expires_at AS due FROM ONLY " KEYS " AS c"
			"   WHERE c.response_expires_at {<=} $1 AND c.response_expires_at {>=} $3"
			"   ORDER BY c.response_expires_at LIMIT $2 FOR UPDATE SKIP LOCKED) AS d"
			" WHERE k.ctid {=} d.place AND (k.response_expires_at {<=} $1) IS TRUE"
			" RETURNING d.due",
		.types = {TIMESTAMPTZOID, INT8OID, TIMESTAMPTZOID},
		.may_be_lost = true,
	},
	/* $1 scope, $2 now */
	[STATEMENT_REDACT_SCOPE] = {
		.sql =
			"UPDATE ONLY " KEYS " AS k SET " REDACTED "$2"
			" WHERE k.scope {=} $1 AND k.redacted_at IS NULL AND " FINISHED("k"),
		.types = {TEXTOID, TIMESTAMPTZOID},
	},
	/* $1 operation or NULL, $2 now, $3 rows at most, $4 so many were seen before */
	[STATEMENT_ABANDONED] = {
		.sql =
			"SELECT k.scope, k.operation, k.key FROM ONLY " KEYS " AS k"
			" WHERE " ABANDONED("k", "$2") " AND ($1 IS NULL OR k.operation {=} $1)"
			" ORDER BY k.locked_until LIMIT $3 OFFSET $4",
		.types = {TEXTOID, TIMESTAMPTZOID, INT8OID, INT8OID},
		.reads = true,
	},
	/* $1 the scope before */
	[STATEMENT_NEXT_SCOPE] = {
		.sql =
			"SELECT k.scope FROM ONLY " KEYS " AS k"
			" WHERE k.scope {>} $1 ORDER BY k.scope LIMIT 1",
		.types = {TEXTOID},
		.reads = true,
	},
	/* $1 scope, $2 operation and $3 key before, $4 now, $5 rows at most */
	[STATEMENT_SCOPE_PAGE] = {
		.sql =
			"SELECT k.* FROM ONLY " KEYS " AS k"
			" WHERE k.scope {=} $1 AND (k.operation, k.key) {>} ($2, $3)"
			"   AND " EXPIRED("k", "$4", "$4") " IS NOT TRUE"
			" ORDER BY k.operation, k.key LIMIT $5",
		.types = {TEXTOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, INT8OID},
		.reads = true,
	},
	[STATEMENT_COUNT_EXPIRED] = {
		.sql =
			COUNT(EXPIRED("k", "$1", "$2")),
		.types = COUNT_TYPES,
		.reads = true,
	},
	[STATEMENT_COUNT_ABANDONED] = {
		.sql =
			COUNT(ABANDONED("k", "$2")),
		.types = COUNT_TYPES,
		.reads = true,
	},
	[STATEMENT_COUNT_HELD] = {
		.sql =
			COUNT(HELD("k", "$2")),
		.types = COUNT_TYPES,
		.reads = true,
	},
	[STATEMENT_BATCH_INSERT] = {
		.sql =
			BATCH " DO NOTHING RETURNING k.key",
		.types = BATCH_TYPES,
	},

	/*
	 * One probe of the index for each key. With "= ANY ($3)" a plan made while
	 * the table was small compares every row of the operation with every key.
	 * OFFSET 0 keeps the planner from making another join of it.
	 *
	 * $1 scope, $2 operation, $3 keys, $4 now
	 */
	[STATEMENT_BATCH_LOOK] = {
		.sql =
			"SELECT k.key, CASE WHEN " HELD("k", "$4") " THEN 'held' ELSE k.status END,"
			"   " FREE("k", "$4") ", COALESCE(k.token, 0)"
			" FROM pg_catalog.unnest($3) AS u(key) CROSS JOIN LATERAL"
			"   (SELECT * FROM ONLY " KEYS " AS o"
			"   WHERE o.scope {=} $1 AND o.operation {=} $2 AND o.key {=} u.key OFFSET 0) AS k",
		.types = {TEXTOID, TEXTOID, TEXTARRAYOID, TIMESTAMPTZOID},
		.reads = true,
	},
	/* A claim that came after the look has a token of its own. */
	[STATEMENT_BATCH_REPLACE] = {
		.sql =
			BATCH " DO UPDATE SET {excluded}"
			" WHERE " FREE("k", "$4") " AND (k.token IS NULL OR k.token {<} excluded.token)"
			" RETURNING k.key",
		.types = BATCH_TYPES,
	},
};

/* clang-format on */

/*
 * How many parameters come before the values of columns.
 */
int
idem_statement_own_parameters(KeyStatement statement)
{
	const StatementText *text = &idem_statements[statement];
	int number = 0;

	while (number < STATEMENT_OWN_PARAMETERS && OidIsValid(text->types[number]))
		number++;
	return number;
}

/*
 * The types of all parameters of a statement, its own and those of its columns;
 * returns how many there are.
 */
int
idem_statement_types(KeyStatement statement, Oid *types)
{
	const StatementText *text = &idem_statements[statement];
	int ntypes = idem_statement_own_parameters(statement);

	memcpy(types, text->types, sizeof(Oid) * ntypes);
	for (int i = 0; i < KEY_NCOLUMNS; i++)
		if (text->columns & KEY_COLUMN(i))
			types[ntypes++] = idem_table_columns[i].type;
	return ntypes;
}

/* Lists of columns that a statement's text can ask for. */
typedef enum StatementList
{
	LIST_COLUMNS,     /* key, ... */
	LIST_VALUES,      /* $1, ... */
	LIST_ASSIGNMENTS, /* key = $1, ... */
	LIST_EXCLUDED,    /* key = excluded.key, ... */
	NLISTS
} StatementList;

static const char *const statement_markers[NLISTS] = {
	[LIST_COLUMNS] = "{columns}",
	[LIST_VALUES] = "{values}",
	[LIST_ASSIGNMENTS] = "{assignments}",
	[LIST_EXCLUDED] = "{excluded}",
};

static void
statement_append_list(StringInfo sql, KeyStatement statement, StatementList list)
{
	/* A row that is excluded has all columns, and takes no parameters. */
	KeyColumns columns = list == LIST_EXCLUDED ? ALL_COLUMNS : idem_statements[statement].columns;
	int first = idem_statement_own_parameters(statement) + 1;
	int parameter = first;

	for (int i = 0; i < KEY_NCOLUMNS; i++)
	{
		const char *name = idem_table_columns[i].name;

		if ((columns & KEY_COLUMN(i)) == 0)
			continue;
		if (parameter > first)
			appendStringInfoString(sql, ", ");
		switch (list)
		{
			case LIST_COLUMNS:
				appendStringInfoString(sql, name);
				break;
			case LIST_VALUES:
				appendStringInfo(sql, "$%d", parameter);
				break;
			case LIST_ASSIGNMENTS:
				appendStringInfo(sql, "%s = $%d", name, parameter);
				break;
			case LIST_EXCLUDED:
				appendStringInfo(sql, "%s = excluded.%s", name, name);
				break;
			case NLISTS:
				pg_unreachable();
		}
		parameter++;
	}
}

/*
 * The text of a statement as the server understands it, in the current memory
 * context.
 */
char *
idem_statement_sql(KeyStatement statement)
{
	const StatementText *text = &idem_statements[statement];
	const char *from = text->sql;
	const char *marker;
	StringInfoData sql;

	initStringInfo(&sql);
	while ((marker = strchr(from, '{')) != NULL)
	{
		int length = strcspn(marker, "}") + 1;
		int list = 0;

		appendBinaryStringInfo(&sql, from, marker - from);
		while (list < NLISTS && strncmp(marker, statement_markers[list], length) != 0)
			list++;
		if (list < NLISTS)
			statement_append_list(&sql, statement, (StatementList) list);
		else
			appendStringInfo(&sql, "OPERATOR(pg_catalog.%.*s)", length - 2, marker + 1);
		from = marker + length;
	}
	appendStringInfoString(&sql, from);
	return sql.data;
}
