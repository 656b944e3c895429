/*-------------------------------------------------------------------------
 *
 * arguments.c
 *	  What the user sent, checked: identities, durations, texts.
 *
 * Every check comes before anything is locked or written. The values
 * themselves stay out of messages: they may be secrets, and messages reach
 * logs. Only names of arguments and limits are shown.
 *
 *-------------------------------------------------------------------------
 */
#include "idempotency.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "common/int.h"
#include "datatype/timestamp.h"
#include "miscadmin.h"

/*
 * One part of an identity: given, not empty, and short enough for the index.
 */
static text *
argument_identity_part(FunctionCallInfo fcinfo, int argno, const char *name)
{
	if (idem_arg_is_null(fcinfo, argno))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name),
				 errhint("A key is identified by scope, operation and key;"
						 " where there is only one scope, pass a constant such as 'app'.")));
	return PG_GETARG_TEXT_PP(argno);
}

/*
 * Errors: 22023 empty; 22001 longer than max_key_length bytes.
 */
void
idem_check_identity_part(text *part, const char *name)
{
	int len = VARSIZE_ANY_EXHDR(part);

	if (len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", name),
				 errhint("A key is identified by scope, operation and key;"
						 " where there is only one scope, pass a constant such as 'app'.")));
	if (len > idem_max_key_length)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("%s is too long", name),
				 errdetail("It has %d bytes, and at most %d are allowed.",
						   len, idem_max_key_length),
				 errhint("Send a shorter value, such as a digest of it,"
						 " or raise \"idempotency.max_key_length\".")));
}

/*
 * The identity, which is always the first three arguments. Its form alone: whether
 * the role may use the scope, and the hash, are asked for elsewhere; see
 * idem_lock_identity().
 *
 * Errors: 22004 null, 22023 empty, 22001 longer than max_key_length bytes.
 */
void
idem_identity_argument(KeyIdentity *id, FunctionCallInfo fcinfo)
{
	id->scope = argument_identity_part(fcinfo, 0, "scope");
	id->operation = argument_identity_part(fcinfo, 1, "operation");
	id->key = argument_identity_part(fcinfo, 2, "key");
	id->hash = 0;
	idem_check_identity_part(id->scope, "scope");
	idem_check_identity_part(id->operation, "operation");
	idem_check_identity_part(id->key, "key");
}

/*
 * A scope alone, as the first argument. Errors: 22004, 22023, 22001.
 */
text *
idem_scope_argument(FunctionCallInfo fcinfo)
{
	text *scope = argument_identity_part(fcinfo, 0, "scope");

	idem_check_identity_part(scope, "scope");
	return scope;
}

/*
 * Bytewise, as the "C" collation of the columns compares.
 */
bool
idem_texts_equal(const text *a, const text *b)
{
	return VARSIZE_ANY_EXHDR(a) == VARSIZE_ANY_EXHDR(b) &&
		memcmp(VARDATA_ANY(a), VARDATA_ANY(b), VARSIZE_ANY_EXHDR(a)) == 0;
}

/*
 * Whether two identities are the same; their hashes are not looked at.
 */
bool
idem_identity_equal(const KeyIdentity *a, const KeyIdentity *b)
{
	return idem_texts_equal(a->key, b->key) &&
		idem_texts_equal(a->scope, b->scope) &&
		idem_texts_equal(a->operation, b->operation);
}

/*
 * An optional text with no limit but that of responses; NULL if not given.
 *
 * Errors: 54000 longer than max_response_size.
 */
text *
idem_text_argument(FunctionCallInfo fcinfo, int argno, const char *name)
{
	text *value;

	if (idem_arg_is_null(fcinfo, argno))
		return NULL;
	value = PG_GETARG_TEXT_PP(argno);
	if ((int64) VARSIZE_ANY_EXHDR(value) > (int64) idem_max_response_size * 1024)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("%s is too large", name),
				 errdetail("It has %d bytes, and at most %lld are allowed.",
						   (int) VARSIZE_ANY_EXHDR(value),
						   (long long) idem_max_response_size * 1024),
				 errhint("Send less, or raise \"idempotency.max_response_size\".")));
	return value;
}

/*
 * An interval as a fixed number of microseconds: a day has 24 hours and a
 * month 30 days. PG_INT64_MAX if that is out of range.
 */
int64
idem_interval_us(const Interval *span)
{
	int64 result;

	if (pg_mul_s64_overflow((int64) span->month * DAYS_PER_MONTH + span->day,
							USECS_PER_DAY, &result) ||
		pg_add_s64_overflow(result, span->time, &result))
		return PG_INT64_MAX;
	return result;
}

/*
 * A duration in microseconds, or "otherwise" if it is not given.
 *
 * An interval is not a number: its months and days vary, and intervals that
 * compare as positive can point backwards ('1 month -30 days'). Here a day
 * has 24 hours and a month 30 days, once and for all, and the result is
 * checked, not the interval.
 *
 * Errors: 22023 below minimum, above maximum or out of range.
 */
int64
idem_duration(FunctionCallInfo fcinfo, int argno, const char *name,
			  int64 minimum, int64 maximum, int64 otherwise)
{
	int64 result;

	if (idem_arg_is_null(fcinfo, argno))
		return otherwise;
	result = idem_interval_us(PG_GETARG_INTERVAL_P(argno));
	if (result == PG_INT64_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s is out of range", name),
				 errhint("Give a duration such as '24 hours'.")));
	if (result < minimum)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 minimum > 0
					 ? errmsg("%s must be greater than zero", name)
					 : errmsg("%s must not be negative", name),
				 errhint("Give a duration such as '24 hours'; a day counts as 24 hours,"
						 " a month as 30 days.")));
	if (result > maximum)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s is too long", name),
				 errhint("At most %lld seconds are allowed;"
						 " the limit is set by \"idempotency.max_ttl\".",
						 (long long) (maximum / USECS_PER_SEC))));
	return result;
}

/*
 * A point in time that is a given number of microseconds later.
 *
 * Errors: 22023 if that is no valid timestamp.
 */
TimestampTz
idem_time_after(TimestampTz start, int64 microseconds, const char *name)
{
	TimestampTz result;

	if (pg_add_s64_overflow(start, microseconds, &result) ||
		!IS_VALID_TIMESTAMP(result))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s is out of range", name),
				 errhint("Give a duration such as '24 hours'.")));
	return result;
}

/*
 * A role, as the first argument. PUBLIC is none, and is no regrole.
 *
 * Errors: 22004.
 */
Oid
idem_role_argument(FunctionCallInfo fcinfo)
{
	if (idem_arg_is_null(fcinfo, 0) || !OidIsValid(PG_GETARG_OID(0)))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("role must not be null"),
				 errhint("Name the role.")));
	return PG_GETARG_OID(0);
}

/*
 * Its name, unquoted. Errors: 42704 it was dropped, or never was.
 */
char *
idem_role_name(Oid role)
{
	char *name = GetUserNameFromId(role, true);

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role with OID %u does not exist", role),
				 errhint("Name a role that is listed in pg_roles.")));
	return name;
}

/*
 * Refuses to go on where nothing can be written.
 *
 * Errors: 25006 in a read-only transaction and on a standby.
 */
void
idem_require_writable(const char *function)
{
	const char *hint = RecoveryInProgress()
		? "This server is a standby: send the call to the primary. replay() and lookup() work here."
		: "Use a read-write transaction. replay() and lookup() work here.";

	if (XactReadOnly)
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot execute %s() in a read-only transaction", function),
				 errhint("%s", hint)));
}
