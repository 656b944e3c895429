/*-------------------------------------------------------------------------
 *
 * rules.h
 *	  What administrators have laid down: policies, bindings of roles and the
 *	  secret of the locks, in tables of the extension; and the homes of scopes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef IDEMPOTENCY_RULES_H
#define IDEMPOTENCY_RULES_H

#include "rows.h"

/* config.c */
typedef struct IdemConfig
{
	const char *table;
	void *(*read_row)(struct TupleTableSlot *slot); /* palloc'd copy */
	List *rows;
	IdemMemory memory; /* of the rows */
	MemoryContext context;
} IdemConfig;

extern void idem_config_refresh(IdemConfig *config);
extern uint64 idem_config_write(const IdemConfig *config, const char *sql, int nargs,
								Oid *types, Datum *values, const char *nulls);

/* policy.c */
typedef struct IdemPolicy
{
	int64 ttl;    /* microseconds, as the others */
	bool has_ttl; /* it is the policy's, not the setting's */
	int64 failed_ttl;
	int64 response_ttl; /* 0: as long as the key */
	int64 lease;
	bool hold_if_abandoned;
	int max_attempts; /* 0: no limit */
} IdemPolicy;

extern IdemPolicy idem_policy_for(const text *operation);

/* bindings.c */
extern bool idem_binding_allows(text *scope);
extern void idem_binding_check(text *scope);

/* home.c: but for idem_home_check() and the hash, where there are homes */
extern void idem_home_check(text *scope);
extern bool idem_home_enter(text *scope);
extern bool idem_home_stay_away(text *scope);
extern void idem_home_leave(void);
extern bool idem_home_is_here(text *scope);
extern const char *idem_home_problem(void);
extern bool idem_home_hash(text *scope, int32 *hash);
extern void idem_home_close(text *scope);
extern void idem_home_close_range(int32 minimum, int32 maximum);

static inline bool
idem_have_homes(void)
{
	return *idem_home_table != '\0';
}

#endif /* IDEMPOTENCY_RULES_H */
