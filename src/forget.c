/*-------------------------------------------------------------------------
 *
 * forget.c
 *	  Letting go on purpose: forget() a key, forget_scope() a tenant's keys,
 *	  by trigger with the tenant; redact() what a key remembers.
 *
 * A forgotten request is executed again when it is repeated. So a key whose
 * work is under way, or of unknown outcome, goes only with force: "clearing
 * stuck keys" is a way to charge somebody twice.
 *
 *-------------------------------------------------------------------------
 */
#include "claims.h"
#include "rules.h"

#include "commands/trigger.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(idempotency_forget);

/*
 * SQL forget(): true if there was a live key. Waits for the key's lock and
 * keeps it, so that no claim can come between.
 *
 * Errors: 55006 in progress, IK005 held, both without force; 55P03, 40P01,
 * 54000 for the lock; 22xxx arguments.
 */
Datum
idempotency_forget(PG_FUNCTION_ARGS)
{
	bool force = !idem_arg_is_null(fcinfo, 3) && PG_GETARG_BOOL(3);
	KeyIdentity id;
	PendingClaim *pending;
	PendingState state = {0};
	KeyRow row;
	KeyStanding standing = STANDING_EXPIRED;
	bool found;
	bool live;

	idem_require_writable("forget");
	idem_lock_identity(&id, fcinfo);
	pending = idem_owner_lock(&id);
	state = *idem_pending_state(pending);
	found = idem_keys_find(&id, KEYS_NOW, false, &row, NULL);
	if (found)
		standing = idem_state_of(&row, GetCurrentTimestamp());

	if (!force && standing == STANDING_HELD)
		ereport(ERROR,
				(errcode(ERRCODE_IDEM_HELD),
				 errmsg("the key is held because the outcome of its work is unknown"),
				 errhint("Find out what happened first. With force the key goes all the same,"
						 " and a repeat does the work again.")));
	if (!force &&
		(state.status == PENDING_OPEN || standing == STANDING_LEASED ||
		 standing == STANDING_ABANDONED))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("the key is in progress"),
				 errhint("Wait for its end. With force the key goes all the same,"
						 " and a repeat does the work again.")));

	live = state.status == PENDING_OPEN || standing != STANDING_EXPIRED;
	if (found && !idem_keys_delete(&row))
		idem_report_lost_race();
	/* Who waits for the claim that the row was need wait no longer. */
	state.leased = found;
	state.status = PENDING_RELEASED;
	idem_pending_set(pending, &state);
	PG_RETURN_BOOL(live);
}

PG_FUNCTION_INFO_V1(idempotency_forget_scope);

/*
 * SQL forget_scope(): how many rows went. Takes no key locks: a scope may
 * have more keys than the lock table has places.
 *
 * Errors: 22004, 22023, 22001 scope; 55000 its home is another node.
 */
Datum
idempotency_forget_scope(PG_FUNCTION_ARGS)
{
	bool force = !idem_arg_is_null(fcinfo, 1) && PG_GETARG_BOOL(1);
	text *scope;

	idem_require_writable("forget_scope");
	scope = idem_scope_argument(fcinfo);
	idem_binding_check(scope);
	idem_home_check(scope);
	PG_RETURN_INT64(idem_keys_delete_scope(scope, force));
}

/*
 * Deletes the keys of the scope that a deleted row's column names.
 */
static void
forget_by_row(TupleTableSlot *slot, int column, FmgrInfo *output)
{
	bool isnull;
	Datum value = slot_getattr(slot, column, &isnull);

	if (!isnull)
	{
		char *scope = OutputFunctionCall(output, value);

		/* An empty scope has no keys. */
		if (scope[0] != '\0')
			idem_keys_delete_scope(cstring_to_text(scope), true);
		pfree(scope);
	}
	CHECK_FOR_INTERRUPTS();
}

PG_FUNCTION_INFO_V1(idempotency_forget_scope_on_delete);

/*
 * SQL forget_scope_on_delete('column'): AFTER DELETE trigger for the table of
 * tenants, for each row or, with OLD TABLE, for each statement. The column may
 * be of any type; its text form is the scope. With force: the tenant is gone,
 * and nobody is left to decide.
 *
 * Errors: 39P01 not such a trigger; 22023 no such column.
 */
Datum
idempotency_forget_scope_on_delete(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	TupleDesc desc;
	TupleTableSlot *slot;
	FmgrInfo output;
	Oid output_function;
	bool is_varlena;
	int column;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_AFTER(data->tg_event) ||
		!TRIGGER_FIRED_BY_DELETE(data->tg_event) ||
		(TRIGGER_FIRED_FOR_STATEMENT(data->tg_event) && data->tg_oldtable == NULL))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("forget_scope_on_delete() must be an AFTER DELETE trigger"),
				 errhint("Use FOR EACH ROW, or REFERENCING OLD TABLE AS gone FOR EACH"
						 " STATEMENT.")));
	if (data->tg_trigger->tgnargs != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("forget_scope_on_delete() takes one argument"),
				 errhint("Name the column that the scope of the keys comes from.")));

	desc = RelationGetDescr(data->tg_relation);
	column = SPI_fnumber(desc, data->tg_trigger->tgargs[0]);
	if (column <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("table \"%s\" has no column \"%s\"",
						RelationGetRelationName(data->tg_relation),
						data->tg_trigger->tgargs[0]),
				 errhint("Name the column that the scope of the keys comes from.")));
	getTypeOutputInfo(TupleDescAttr(desc, column - 1)->atttypid, &output_function, &is_varlena);
	fmgr_info(output_function, &output);

	if (TRIGGER_FIRED_FOR_ROW(data->tg_event))
		forget_by_row(data->tg_trigslot, column, &output);
	else
	{
		slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
		tuplestore_rescan(data->tg_oldtable);
		while (tuplestore_gettupleslot(data->tg_oldtable, true, false, slot))
			forget_by_row(slot, column, &output);
		ExecDropSingleTupleTableSlot(slot);
	}
	PG_RETURN_POINTER(NULL);
}

PG_FUNCTION_INFO_V1(idempotency_redact);

/*
 * SQL redact(): removes response, state and error of a finished key and keeps
 * the rest, so that a repeat is still recognised. True if there was a key.
 * Waits for the key's lock and keeps it.
 *
 * Errors: 55006 in progress; IK005 held, both because the work still needs
 * them; 55P03, 40P01, 54000 for the lock; 22xxx arguments.
 */
Datum
idempotency_redact(PG_FUNCTION_ARGS)
{
	KeyIdentity id;
	KeyRow row;
	KeyRow old;
	KeyStanding standing;
	TimestampTz now;

	idem_require_writable("redact");
	idem_lock_identity(&id, fcinfo);
	(void) idem_owner_lock(&id);
	now = GetCurrentTimestamp();
	if (!idem_keys_find(&id, KEYS_NOW, false, &row, NULL))
		PG_RETURN_BOOL(false);
	standing = idem_state_of(&row, now);
	if (standing == STANDING_EXPIRED)
		PG_RETURN_BOOL(false);
	if (standing == STANDING_HELD)
		idem_report_held();
	if (standing == STANDING_LEASED || standing == STANDING_ABANDONED)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("the key is in progress"),
				 errhint("Wait for its end.")));

	old = row;
	idem_state_redact(&row, now);
	if (!idem_keys_update(&row, &old))
		idem_report_lost_race();
	PG_RETURN_BOOL(true);
}

PG_FUNCTION_INFO_V1(idempotency_redact_scope);

/*
 * SQL redact_scope(): the same for all finished keys of a scope; how many.
 * Takes no key locks.
 *
 * Errors: 22004, 22023, 22001 scope; 55000 its home is another node; 25006
 * read-only.
 */
Datum
idempotency_redact_scope(PG_FUNCTION_ARGS)
{
	text *scope;

	idem_require_writable("redact_scope");
	scope = idem_scope_argument(fcinfo);
	idem_binding_check(scope);
	idem_home_check(scope);
	PG_RETURN_INT64(idem_keys_redact_scope(scope));
}
