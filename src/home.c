/*-------------------------------------------------------------------------
 *
 * home.c
 *	  On which node of a Citus cluster the keys of a scope are kept.
 *
 * Each node has a table of keys of its own, and rows that belong together are in
 * shards, which Citus moves from node to node. A key protects its rows only where
 * they are. So the superuser names a table of the tenants, whose distribution
 * column holds the scope ("idempotency.home_table"); a scope is at home where its
 * shard of that table is, and refused everywhere else. A table of one shard is the
 * home of all scopes. What cannot be told is refused as well.
 *
 * The shards are read from Citus's catalog as a whole, at first need, and kept until
 * the server says that something about the table has changed: Citus invalidates it
 * in the relation cache with every change of its shards and their places. So a scope
 * costs a hash and a search in memory.
 *
 * That alone would leave a gap: the shard could move between the look and the commit.
 * Citus lets whoever writes into a shard take a lock on its metadata, in share mode,
 * which the last step of a move takes exclusively on every node. Whoever decides
 * about a key does the same here. So a move waits for open claims, as it does for
 * open writes, and whoever has waited for a move looks again.
 *
 *-------------------------------------------------------------------------
 */
#include "rules.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"
#include "utils/varlena.h"

/*
 * How Citus makes a lock of a shard, since its version 9.2: see
 * SetLocktagForShardDistributionMetadata() in its resource_lock.c. Shards that belong
 * together have one, by their place among those of their table. Tests that do without
 * Citus build the library with a class that SQL can reach.
 */
#ifndef HOME_LOCK_CLASS
#define HOME_LOCK_CLASS 8
#endif
#define HOME_LOCK_CLASS_ALONE 4

typedef struct HomeShard
{
	int32 minimum; /* of the hashes of its values */
	int32 maximum;
	LOCKTAG lock;
	bool here;
} HomeShard;

/* What was read of the table that "name" names. */
static struct
{
	char *name;
	Oid type; /* of the distribution column; InvalidOid: there is none */
	int32 typmod;
	Oid collation;
	FmgrInfo input;
	Oid input_param;
	FmgrInfo hash;
	HomeShard *shards; /* in the order of hashes */
	int nshards;
	MemoryContext context;
} home;

/* That it still holds, as far as the table and the node's own number go. */
static IdemMemory home_table_known;
static IdemMemory home_node_known;

/* The lock that the last idem_home_enter() took, if it took one. */
static LOCKTAG home_lock_entered;
static bool home_entered = false;

/*----------
 * What Citus's catalog says
 *----------
 */

/* SQL is laid out as SQL. */
/* clang-format off */
static const char *const home_query =
	"SELECT CASE WHEN p.partkey IS NOT NULL"
	"     THEN pg_catalog.column_to_column_name(p.logicalrelid, p.partkey) END,"
	"   COALESCE(s.shardminvalue::pg_catalog.int4, (-2147483648)::pg_catalog.int4),"
	"   COALESCE(s.shardmaxvalue::pg_catalog.int4, 2147483647),"
	"   s.shardid, p.colocationid,"
	"   EXISTS (SELECT FROM pg_catalog.pg_dist_placement AS l"
	"     CROSS JOIN pg_catalog.pg_dist_local_group AS g"
	"     WHERE l.shardid OPERATOR(pg_catalog.=) s.shardid"
	"       AND l.groupid OPERATOR(pg_catalog.=) g.groupid"
	"       AND l.shardstate OPERATOR(pg_catalog.=) 1)"
	" FROM pg_catalog.pg_dist_partition AS p"
	" JOIN pg_catalog.pg_dist_shard AS s"
	"   ON s.logicalrelid::pg_catalog.oid OPERATOR(pg_catalog.=) p.logicalrelid::pg_catalog.oid"
	" WHERE p.logicalrelid::pg_catalog.oid OPERATOR(pg_catalog.=) $1"
	/* By hash, or one shard for all; a reference table is on every node. */
	"   AND (p.partmethod OPERATOR(pg_catalog.=) 'h' OR (p.partmethod OPERATOR(pg_catalog.=) 'n'"
	"     AND p.repmodel OPERATOR(pg_catalog.<>) 't'))"
	" ORDER BY 2";
/* clang-format on */

static Oid
home_find_table(void)
{
	List *names;
	Oid schema;

	/* The setting's hook has looked at its form. */
	if (!SplitIdentifierString(pstrdup(idem_home_table), '.', &names))
		return InvalidOid;
	schema = get_namespace_oid(linitial(names), true);
	return OidIsValid(schema) ? get_relname_relid(lsecond(names), schema) : InvalidOid;
}

/*
 * Notes the type of the distribution column, and what it takes to get from a
 * scope to the hash of its value, as Citus does (metadata_cache.c).
 */
static void
home_set_column(Oid table, const char *column)
{
	Oid input;

	get_atttypetypmodcoll(table, get_attnum(table, column), &home.type, &home.typmod,
						  &home.collation);
	getTypeInputInfo(home.type, &input, &home.input_param);
	fmgr_info_cxt(input, &home.input, home.context);
	fmgr_info_cxt(lookup_type_cache(home.type, TYPECACHE_HASH_PROC)->hash_proc, &home.hash,
				  home.context);
}

/*
 * Copies what the query has returned. Connected to SPI.
 */
static void
home_copy_shards(Oid table)
{
	TupleDesc desc = SPI_tuptable->tupdesc;
	int number = SPI_processed;
	HomeShard *shards = MemoryContextAlloc(home.context, sizeof(HomeShard) * Max(number, 1));
	bool isnull;

	if (number > 0 && SPI_getvalue(SPI_tuptable->vals[0], desc, 1) != NULL)
		home_set_column(table, SPI_getvalue(SPI_tuptable->vals[0], desc, 1));
	for (int i = 0; i < number; i++)
	{
		HeapTuple row = SPI_tuptable->vals[i];
		int64 id = DatumGetInt64(SPI_getbinval(row, desc, 4, &isnull));
		uint32 colocation = DatumGetInt32(SPI_getbinval(row, desc, 5, &isnull));

		shards[i].minimum = DatumGetInt32(SPI_getbinval(row, desc, 2, &isnull));
		shards[i].maximum = DatumGetInt32(SPI_getbinval(row, desc, 3, &isnull));
		if (colocation != 0)
			SET_LOCKTAG_ADVISORY(shards[i].lock, MyDatabaseId, i, colocation, HOME_LOCK_CLASS);
		else
			SET_LOCKTAG_ADVISORY(shards[i].lock, MyDatabaseId, (uint32) (id >> 32), (uint32) id,
								 HOME_LOCK_CLASS_ALONE);
		shards[i].here = DatumGetBool(SPI_getbinval(row, desc, 6, &isnull));
	}
	home.shards = shards;
	home.nshards = number;
}

/*
 * Reads the shards of the table, as they are now, whatever the transaction's own
 * snapshot is.
 */
static void
home_read_shards(Oid table)
{
	Relation keys = idem_table_open(AccessShareLock);
	Oid types[1] = {OIDOID};
	Datum values[1] = {ObjectIdGetDatum(table)};
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	IdemCaller caller;
	SPIPlanPtr plan;

	idem_become(&caller, keys->rd_rel->relowner, false);
	plan = SPI_prepare(home_query, 1, types);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	if (SPI_execute_snapshot(plan, values, NULL, snapshot, InvalidSnapshot, true, false, 0) !=
		SPI_OK_SELECT)
		elog(ERROR, "SPI_execute_snapshot failed: %s", SPI_result_code_string(SPI_result));
	home_copy_shards(table);
	idem_unbecome(&caller);
	UnregisterSnapshot(snapshot);
	table_close(keys, NoLock);
}

/*
 * Whether what was read still holds, as of the last time that invalidations were
 * processed.
 */
static bool
home_is_known(void)
{
	return OidIsValid(home_table_known.valid_for) && OidIsValid(home_node_known.valid_for) &&
		strcmp(home.name, idem_home_table) == 0;
}

/*
 * Reads it anew if need be. There are no shards then if the table is none that says
 * where scopes are at home, which is not kept.
 */
static void
home_refresh(void)
{
	Oid table;
	uint64 table_changes;
	uint64 node_changes;

	if (home_is_known())
		return;
	if (home.context == NULL)
	{
		home.context = AllocSetContextCreate(TopMemoryContext, "idempotency homes",
											 ALLOCSET_SMALL_SIZES);
		idem_memory_watch(&home_table_known);
		idem_memory_watch(&home_node_known);
	}
	home_table_known.valid_for = InvalidOid;
	MemoryContextReset(home.context);
	home.name = MemoryContextStrdup(home.context, idem_home_table);
	home.type = InvalidOid;
	home.nshards = 0;

	table_changes = home_table_known.changes;
	node_changes = home_node_known.changes;
	table = home_find_table();
	if (!OidIsValid(table) || !OidIsValid(get_extension_oid("citus", true)))
		return;
	home_read_shards(table);
	if (home.nshards == 0)
		return;
	idem_memory_keep(&home_table_known, table, table_changes);
	idem_memory_keep(&home_node_known,
					 get_relname_relid("pg_dist_local_group", PG_CATALOG_NAMESPACE), node_changes);
}

/*
 * Why no scope is at home anywhere, or NULL.
 */
const char *
idem_home_problem(void)
{
	home_refresh();
	if (home.nshards > 0)
		return NULL;
	if (!OidIsValid(get_extension_oid("citus", true)))
		return "Citus is not installed in this database.";
	if (!OidIsValid(home_find_table()))
		return "There is no table of that name.";
	return "Citus does not list shards of it here. It has to be distributed by hash, or to have"
		   " one shard on one node; and this node needs the metadata.";
}

/*
 * Errors: 55000 no scope is at home anywhere.
 */
static void
home_require_table(void)
{
	const char *problem = idem_home_problem();

	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("\"idempotency.home_table\" names no table that says where a scope is"
						" at home"),
				 errdetail("%s", problem),
				 errhint("Set it to the table of tenants, with its schema, or to '' where this"
						 " node keeps the keys of all scopes.")));
}

/*----------
 * From a scope to its shard
 *----------
 */

typedef struct HomeValue
{
	text *scope;
	Datum value;
} HomeValue;

static void
home_read_value(void *state)
{
	HomeValue *value = state;

	char *scope = text_to_cstring(value->scope);

	value->value = InputFunctionCall(&home.input, scope, home.input_param, home.typmod);
	pfree(scope);
}

/*
 * The hash of a scope, as Citus hashes values of the distribution column; where
 * there is no such column, and no home at all, as it hashes text. False if the scope
 * is no value of that column. The error that its type raises would show the scope.
 */
bool
idem_home_hash(text *scope, int32 *hash)
{
	HomeValue value = {scope, PointerGetDatum(scope)};
	ErrorData *error;

	if (idem_have_homes())
		home_require_table();
	if (!idem_have_homes() || !OidIsValid(home.type))
	{
		*hash = DatumGetInt32(OidFunctionCall1Coll(F_HASHTEXT, DEFAULT_COLLATION_OID,
												   PointerGetDatum(scope)));
		return true;
	}
	if (home.type != TEXTOID && (error = idem_catch(home_read_value, &value)) != NULL)
	{
		int category = ERRCODE_TO_CATEGORY(error->sqlerrcode);

		if (category != ERRCODE_DATA_EXCEPTION &&
			category != ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION)
			ReThrowError(error);
		FreeErrorData(error);
		return false;
	}
	*hash = DatumGetInt32(FunctionCall1Coll(&home.hash, home.collation, value.value));
	return true;
}

/*
 * The shard that has a hash, or NULL. Good until invalidations are processed.
 */
static const HomeShard *
home_shard_at(int32 hash)
{
	int low = 0;
	int high = home.nshards;

	while (low < high)
	{
		int middle = (low + high) / 2;
		const HomeShard *shard = &home.shards[middle];

		if (hash < shard->minimum)
			high = middle;
		else if (hash > shard->maximum)
			low = middle + 1;
		else
			return shard;
	}
	return NULL;
}

/*
 * The same of a scope. Errors: 55000 there are no shards at all.
 */
static const HomeShard *
home_shard_of(text *scope)
{
	int32 hash;

	return idem_home_hash(scope, &hash) ? home_shard_at(hash) : NULL;
}

/*
 * Whether this node is the home of a scope, at the moment; where there are homes.
 *
 * Errors: 55000 no scope is at home anywhere.
 */
bool
idem_home_is_here(text *scope)
{
	const HomeShard *shard = home_shard_of(scope);

	return shard != NULL && shard->here;
}

/*----------
 * Staying there
 *----------
 */

/*
 * Under the resource owner of the transaction or savepoint, as the locks of keys;
 * see locks.c. Waits as for any lock.
 */
static void
home_lock(const LOCKTAG *lock, LOCKMODE mode)
{
	ResourceOwner caller = CurrentResourceOwner;

	CurrentResourceOwner = CurTransactionResourceOwner;
	(void) LockAcquire(lock, mode, false, false);
	CurrentResourceOwner = caller;
}

static void
home_unlock(const LOCKTAG *lock)
{
	ResourceOwner caller = CurrentResourceOwner;

	CurrentResourceOwner = CurTransactionResourceOwner;
	(void) LockRelease(lock, ShareLock, false);
	CurrentResourceOwner = caller;
}

static bool
home_same_lock(const LOCKTAG *a, const LOCKTAG *b)
{
	return memcmp(a, b, sizeof(LOCKTAG)) == 0;
}

/*
 * Whether a scope is at home here, or elsewhere, as is asked, and that stays so
 * until the transaction ends. May wait for the end of a move.
 */
static bool
home_settle(text *scope, bool here)
{
	LOCKTAG locked;
	bool is_locked = false;

	home_entered = false;
	for (;;)
	{
		const HomeShard *shard = home_shard_of(scope);

		/* What is in no shard is at home nowhere, and cannot move. */
		if (shard == NULL)
			return !here;
		if (shard->here != here)
			break;
		if (!is_locked || !home_same_lock(&locked, &shard->lock))
		{
			if (is_locked)
				home_unlock(&locked);
			locked = shard->lock;
			home_lock(&locked, ShareLock);
			is_locked = true;

			/* What has changed before we got the lock is known now. */
			AcceptInvalidationMessages();
			if (!home_is_known())
				continue;
		}
		home_lock_entered = locked;
		home_entered = true;
		return true;
	}
	if (is_locked)
		home_unlock(&locked);
	return false;
}

/*
 * Whether this node is the home of a scope, and stays it until the transaction
 * ends; where there are homes.
 *
 * Errors: 55000 no scope is at home anywhere; 55P03, 40P01, 57014 while waiting.
 */
bool
idem_home_enter(text *scope)
{
	return home_settle(scope, true);
}

/*
 * Whether it is not, and does not become it.
 *
 * Errors: the same.
 */
bool
idem_home_stay_away(text *scope)
{
	return home_settle(scope, false);
}

/*
 * Gives back the lock that the last successful idem_home_enter() took, before
 * the caller falls asleep: nothing was decided under it. A move that waited for it
 * would keep away whom the caller waits for.
 */
void
idem_home_leave(void)
{
	if (home_entered)
	{
		home_entered = false;
		home_unlock(&home_lock_entered);
	}
}

/*
 * Refuses a scope that is not at home here, and keeps it here until the transaction
 * ends. Where there are no homes that is no more than a look at the setting.
 *
 * Errors: 55000 the home of the scope is another node; and those of
 * idem_home_enter().
 */
void
idem_home_check(text *scope)
{
	int32 hash;

	if (!idem_have_homes() || idem_home_enter(scope))
		return;
	if (!idem_home_hash(scope, &hash))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the scope is no value of the column that \"idempotency.home_table\" is"
						" distributed by"),
				 errdetail("The column is of type %s.", format_type_be(home.type)),
				 errhint("Pass the value of that column as the scope.")));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the keys of this scope are not kept on this node"),
			 errdetail("Its shard of table %s is on another node.", idem_home_table),
			 errhint("Have Citus send the call there: call a procedure that is distributed by the"
					 " scope, alone in its statement, with the scope as a parameter.")));
}

/*
 * Keeps everybody from deciding about keys of a shard until the transaction ends.
 * Where another transaction does so already, which is about to move the shard, that
 * is enough, and its end must not be waited for.
 */
static void
home_close_shard(const LOCKTAG *lock)
{
	int others;

	/* This mode conflicts with exclusive locks, and with no share lock. */
	(void) GetLockConflicts(lock, RowShareLock, &others);
	if (others == 0)
		home_lock(lock, ExclusiveLock);
}

/*
 * The same of the shard that has a hash; returns the last hash of it. Nothing is to
 * be done where the shard is elsewhere: nobody decides about its keys here.
 */
static int32
home_close_hash(int32 hash)
{
	LOCKTAG closed;
	bool is_closed = false;

	for (;;)
	{
		const HomeShard *shard;

		home_require_table();
		shard = home_shard_at(hash);
		if (shard == NULL)
			return PG_INT32_MAX; /* there are no gaps, unless there is none at all */
		if (!shard->here || (is_closed && home_same_lock(&closed, &shard->lock)))
			return shard->maximum;
		closed = shard->lock;
		is_closed = true;
		home_close_shard(&closed);
		AcceptInvalidationMessages();
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Keeps everybody from deciding about keys of a scope until the transaction ends;
 * where there are homes. Waits for those who are at it.
 *
 * Errors: 55000 no scope is at home anywhere; 55P03, 40P01, 57014 while waiting.
 */
void
idem_home_close(text *scope)
{
	int32 hash;

	if (idem_home_hash(scope, &hash))
		(void) home_close_hash(hash);
}

/*
 * The same of all scopes whose hashes are within the bounds.
 */
void
idem_home_close_range(int32 minimum, int32 maximum)
{
	for (int64 hash = minimum; hash <= maximum; hash++)
		hash = home_close_hash((int32) hash);
}
