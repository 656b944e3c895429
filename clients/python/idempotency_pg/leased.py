"""Work that leaves the database: the claim is committed first, with a lease, and what became of the work is recorded afterwards.

work(attempt) says by its end what is known: an Answer is recorded in one transaction with what its book(connection) writes; NothingHappened
lets the next attempt do it; Refused is an answer for good; anything else means that nobody knows, and the key is held for a person."""
import asyncio
import threading
import uuid
from collections import namedtuple

from .answer import Refused
from .client import (Id, Result, again, both, capped, claim, claim_abandoned, complete, effect_key, extend, fail, hold, is_async,
                     kind, pause, reason, replay, settled, transaction)

Attempt = namedtuple('Attempt', 'claim effect_key lost')

class NothingHappened(Exception):
    """Raised by work that knows that nothing happened outside."""

@both
async def run_leased(pool, id, work, *, wait=None, step=None, **options):
    """The Answer of the work, or why there is none: the outcome of claim(), "failed" after NothingHappened, or "held"."""
    options.setdefault('claim_id', uuid.uuid4())  # if the answer to the claim is lost, the same id gets the same token
    with capped(pool, wait) as most:
        claimed = await again(pool, lambda: claim(pool, id, wait=most, **options))
    return await finish(pool, claimed, work, step) if claimed.outcome == 'claimed' else claimed

@both
async def completer(pool, operation, work, *, stop, lease=None, step=None, every=1, on_error=lambda error: None):
    """Drives on, until it is told to stop, what others have left behind."""
    while not await pause(pool, every, stop):
        try:
            for claimed in await settled(claim_abandoned(pool, operation=operation, lease=lease, max_rows=1)):
                await finish(pool, claimed, work, step)
        except Exception as error:
            on_error(error)  # such as a database that is down: later, then

async def finish(pool, claimed, work, step):
    id, token, done, lost = Id(claimed.scope, claimed.operation, claimed.key), claimed.token, threading.Event(), threading.Event()

    @both
    async def beat(pool):  # who cannot reach the database tries at the next beat; who has lost the claim is stopped
        while not await pause(pool, claimed.lease_seconds / 3, done):
            try:
                await settled(extend(pool, id, token=token))
            except Exception as error:
                if kind(error) not in ('unavailable', 'retry'):
                    lost.error = error
                    lost.set()
                    return running.cancel() if running else None

    async def settle(outcome, verb, name, error):
        why = repr(error)[:1000]  # a page of HTML would be too large to be recorded
        try:
            await again(pool, lambda: verb(pool, id, token=token, **{name: why}))
        except Exception as late:  # a repeat finds settled what the call did whose answer was lost
            if kind(late) not in ('stale_claim', 'not_claimed', 'held'):
                raise
        return Result(outcome=outcome, last_error=why, **id._asdict())

    async def record(db):
        # In this order: a repeat of what was committed learns that from complete(), and not from a unique key of book's.
        answer.expires_at = await settled(complete(db, id, token=token, refuse_repeat=True, **answer.recorded()))
        await settled(answer.book(db))

    try:
        attempt = Attempt(claimed, await again(pool, lambda: effect_key(pool, id, step)), lost)
    except Exception as error:
        return await settle('failed', fail, 'error', error)
    running = asyncio.ensure_future(work(attempt)) if is_async(pool) else None
    heart = asyncio.ensure_future(beat(pool)) if running else threading.Thread(target=beat, args=[pool], daemon=True).start()
    try:
        answer = await running if running else work(attempt)
    except NothingHappened as error:
        return await settle('failed', fail, 'error', error)
    except Refused as refused:
        answer = refused.answer
    except (Exception, asyncio.CancelledError) as error:
        if lost.is_set() or isinstance(error, asyncio.CancelledError):
            raise getattr(lost, 'error', error)  # not the owner any more, or told to stop: there is nothing to record
        return await settle('held', hold, 'reason', error)
    finally:
        done.set()
        if heart:
            heart.cancel()
    try:
        await again(pool, lambda: transaction(pool, record))
        return answer
    except Exception as error:
        if reason(error) == 'completed':  # the answer to COMMIT was lost, or a person was faster: what is recorded is what counts
            return Result(outcome='replay', **vars(await settled(replay(pool, id))))
        if kind(error) not in ('unavailable', 'stale_claim'):  # done, and not to be recorded: nobody may do it again
            await settle('held', hold, 'reason', error)
        raise
