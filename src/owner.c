/*-------------------------------------------------------------------------
 *
 * owner.c
 *	  Does the caller own this claim? What complete(), fail(), release(),
 *	  extend() and their kin ask before they do anything.
 *
 * Two ways to own a claim: the running transaction made it, or the caller has
 * the token of a committed one. A caller with a token takes the key's lock,
 * waiting for whoever has it, and then looks at the row: a claim that has been
 * taken over meanwhile has a larger token there, and the late owner gets an
 * error, so that its transaction cannot commit. The lock is kept to the end of
 * the transaction, so the answer stays true until then.
 *
 *-------------------------------------------------------------------------
 */
#include "claims.h"
#include "rules.h"

#include "access/xact.h"

/* Why a claim is no longer the caller's. */
typedef enum OwnerLoss
{
	LOSS_TAKEN_OVER,
	LOSS_COMPLETED,
	LOSS_FORGOTTEN
} OwnerLoss;

static const struct
{
	const char *reason; /* for programs */
	const char *detail; /* for people */
} owner_losses[] = {
	[LOSS_TAKEN_OVER] = {"taken_over", "Its lease was over, and another claim has the key."},
	[LOSS_COMPLETED] = {"completed", "The key is completed."},
	[LOSS_FORGOTTEN] = {"forgotten", "The key was forgotten, or deleted after its expiry."},
};

pg_noreturn static void
owner_report_not_claimed(bool has_token)
{
	const char *hint = has_token
		? "The token is not that of an open claim on this key; use the one that claim() returned."
		: "Claim the key in this transaction, or pass the token that claim() returned.";

	ereport(ERROR,
			(errcode(ERRCODE_IDEM_NOT_CLAIMED),
			 errmsg("the caller has no open claim on this key"),
			 errhint("%s", hint)));
}

/*
 * Programs find the reason in the field for the name of a constraint, which every
 * driver passes on: that of the rule that was broken, as it were.
 */
pg_noreturn static void
owner_report_loss(OwnerLoss loss)
{
	ereport(ERROR,
			(errcode(ERRCODE_IDEM_STALE_CLAIM),
			 errmsg("the claim no longer belongs to the caller"),
			 errdetail_internal("%s", owner_losses[loss].detail),
			 errhint("Roll back what was done under it,"
					 " and claim() again to learn how the key stands."),
			 err_generic_string(PG_DIAG_CONSTRAINT_NAME, owner_losses[loss].reason)));
}

/*
 * The claim has been completed, by an earlier call of the caller's perhaps.
 *
 * Errors: IK001, always.
 */
void
idem_owner_report_completed(void)
{
	owner_report_loss(LOSS_COMPLETED);
}

/*
 * The token decides whose claim the row is.
 */
static void
owner_check_token(const KeyRow *row, int64 token)
{
	int64 current = KeyRowToken(row);

	if (token == current)
		return;
	if (token > current && current > 0)
		owner_report_not_claimed(true);
	owner_report_loss(row->status == KEY_COMPLETED ? LOSS_COMPLETED : LOSS_TAKEN_OVER);
}

/*
 * Takes a key's lock, waiting for whoever has it, and keeps it to the end of
 * the transaction, for a caller who decides about the key.
 *
 * Errors: 54000 too many keys; 55P03, 40P01, 57014 while waiting.
 */
PendingClaim *
idem_owner_lock(const KeyIdentity *id)
{
	PendingClaim *pending = idem_pending_find(id);

	if (pending == NULL)
	{
		idem_pending_check_limit();
		idem_lock_wait(id);
		pending = idem_pending_keep(id);
	}
	return pending;
}

/*
 * Does what idem_owner_claim() says, for own->id and what this transaction knows of
 * it, own->pending.
 */
static void
owner_find_claim(OwnedClaim *own, bool has_token, int64 token, OwnerVerb verb)
{
	PendingState state = {0};

	own->completed = false;
	own->is_stored = false;
	if (own->pending != NULL)
		state = *idem_pending_state(own->pending);
	own->leased = has_token || state.leased;

	if (has_token && token <= 0)
		owner_report_not_claimed(true);
	if (!has_token && state.status != PENDING_OPEN && state.status != PENDING_COMPLETED &&
		state.status != PENDING_HELD)
		owner_report_not_claimed(false);

	/* A claim of this transaction that so far is only in memory. */
	if (state.status == PENDING_OPEN && !state.leased)
	{
		if (has_token)
			owner_report_not_claimed(true);

		/* Copies: a trigger on the table may claim or checkpoint the same key. */
		own->row = *idem_keys_copy_row(state.draft);

		/*
		 * The version that the claim was made over, not what is there now: a
		 * caller that takes no locks may have completed the key since.
		 */
		if (state.over != NULL)
		{
			own->stored = *idem_keys_copy_row(state.over);
			own->is_stored = true;
		}
		return;
	}

	own->pending = idem_owner_lock(&own->id);
	own->is_stored = idem_keys_find(&own->id, KEYS_NOW, verb == OWNER_COMPLETE,
									&own->stored, NULL);
	if (!own->is_stored)
		owner_report_loss(LOSS_FORGOTTEN);
	if (own->leased)
		owner_check_token(&own->stored, has_token ? token : state.token);

	switch (own->stored.status)
	{
		case KEY_COMPLETED:
			if (verb != OWNER_COMPLETE)
				owner_report_loss(LOSS_COMPLETED);
			own->completed = true;
			break;
		case KEY_FAILED:
			owner_report_not_claimed(has_token);
			break;
		case KEY_IN_PROGRESS:
		case KEY_HELD:
			if (verb != OWNER_COMPLETE &&
				idem_state_of(&own->stored, GetCurrentTimestamp()) == STANDING_HELD)
				idem_report_held();
			break;
	}
	own->row = own->stored;
}

/*
 * Finds the caller's claim on the key of the first three arguments and locks
 * it; fills in *own. On return either own->row is an open claim to be changed
 * and written, or, for OWNER_COMPLETE only, own->completed says that the same
 * claim has been completed before and own->stored shows how.
 *
 * Waits for the key's lock and keeps it. Values of the rows are in the
 * current memory context.
 *
 * Errors: IK001 taken over, completed or forgotten; IK002 never claimed or
 * closed; IK005 held; 55000 the scope's home is another node; 55P03, 40P01, 54000
 * for the lock; 22xxx arguments.
 */
void
idem_owner_claim(OwnedClaim *own, FunctionCallInfo fcinfo, int token_argno,
				 OwnerVerb verb)
{
	bool has_token;

	idem_identity_argument(&own->id, fcinfo);
	idem_binding_check(own->id.scope);
	own->pending = idem_pending_find_last(&own->id);
	if (own->pending == NULL)
	{
		own->id.hash = idem_lock_hash(&own->id);
		own->pending = idem_pending_find(&own->id);
	}
	/* Where this transaction has entered the scope's home, it stays there. */
	if (own->pending == NULL)
		idem_home_check(own->id.scope);
	has_token = !idem_arg_is_null(fcinfo, token_argno);
	owner_find_claim(own, has_token, has_token ? PG_GETARG_INT64(token_argno) : 0, verb);
}

/*
 * The same for a claim that this transaction has made.
 */
void
idem_owner_claim_pending(OwnedClaim *own, const KeyIdentity *id, OwnerVerb verb)
{
	own->id = *id;
	own->pending = idem_pending_find(id);
	owner_find_claim(own, false, 0, verb);
}

/*
 * Notes how the claim stands now. A leased claim that stays open may have
 * been made by another transaction: from here on this one knows it, too.
 */
static void
owner_set_status(OwnedClaim *own, PendingStatus status)
{
	PendingState state = *idem_pending_state(own->pending);

	state.status = status;
	if (own->leased)
	{
		state.leased = true;
		state.token = DatumGetInt64(own->row.values[KEY_TOKEN]);
	}
	if (status == PENDING_OPEN)
	{
		MemoryContext caller = MemoryContextSwitchTo(idem_pending_context());

		state.draft = idem_keys_copy_row(&own->row);
		MemoryContextSwitchTo(caller);
	}
	idem_pending_set(own->pending, &state);
}

/*
 * Notes own->row as what a claim without a lease will write in the end.
 */
void
idem_owner_remember(OwnedClaim *own)
{
	owner_set_status(own, PENDING_OPEN);
}

/*
 * Writes own->row and notes how the claim stands now.
 *
 * A claim without a lease has written nothing yet. If clean-up took the expired
 * row that it was made over, its row is put in anew. The row of a claim with a
 * lease is all that shows who the owner is. If it is gone, somebody else may have
 * had the key since the look, without a lock, and have been forgotten, too
 * (model/README.md), so the claim is lost.
 *
 * Errors: IK001 the row is gone; 40001 lost to a caller that takes no locks.
 */
void
idem_owner_write(OwnedClaim *own, PendingStatus status)
{
	KeyRow *old = own->is_stored ? &own->stored : NULL;

	/*
	 * Tokens never go back, even where the new claim had none: it outdates
	 * that of the row that it was made over, which clean-up may have taken
	 * away since. And what is held is completed by its token.
	 */
	if (!own->leased &&
		idem_pending_state(own->pending)->status == PENDING_OPEN &&
		(!own->row.isnull[KEY_TOKEN] || own->row.status == KEY_HELD))
		KeyRowSet(&own->row, KEY_TOKEN,
				  Int64GetDatum(idem_keys_next_token(KeyRowToken(&own->row))));

	if (!own->leased)
		idem_keys_write(&own->row, old);
	else if (!idem_keys_update(&own->row, old))
	{
		if (IsolationUsesXactSnapshot())
			idem_report_lost_race();
		owner_report_loss(LOSS_FORGOTTEN);
	}
	owner_set_status(own, status);
}

/*
 * Removes the stored row, if the claim has written one, and notes how the
 * claim stands now.
 */
void
idem_owner_delete(OwnedClaim *own, PendingStatus status)
{
	if (own->leased && !idem_keys_delete(&own->stored))
		idem_report_lost_race();
	owner_set_status(own, status);
}
