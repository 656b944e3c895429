"""Work that leaves the database: the claim is committed first, with a lease, and what became of the work is recorded afterwards.

work(attempt) says by its end what is known: an Answer is recorded in one transaction with what its book(connection) writes; NothingHappened
lets the next attempt do it; Refused is an answer for good; anything else means that nobody knows, and the key is held for a person.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import uuid
from dataclasses import dataclass, field
from typing import Any, Callable

from .answer import Answer, Refused, recorded
from .client import (Id, Result, again, both, capped, claim, claim_abandoned, complete, effect_key, extend, fail, hold, is_async, kind,
                     pause, reason, replay, run_now, settled, transaction)


class NothingHappened(Exception):
    pass


@dataclass
class Attempt:
    """What work gets. `lost` is set when the claim is somebody else's; asynchronous work is cancelled then."""
    claim: Result
    effect_key: str
    lost: threading.Event = field(default_factory=threading.Event)


async def despite_loss(pool: Any, function: Callable[[], Any]) -> Any:
    return await again(pool, ('unavailable',), function, 6)


@both
async def run_leased(pool: Any, id: tuple[str, str, str], work: Callable[[Attempt], Any], *, wait: Any = None, step: str | None = None,
                     **options: Any) -> Answer | Result:
    """The Answer of the work, or why there is none: the outcome of claim(), or "failed" after NothingHappened."""
    options.setdefault('claim_id', uuid.uuid4())  # if the answer to the claim is lost, the same id gets the same token
    claimed = await capped(pool, wait, lambda most: despite_loss(pool, lambda: claim(pool, id, wait=most, **options)))
    return await finish(pool, claimed, work, step) if claimed.outcome == 'claimed' else claimed


@both
async def completer(pool: Any, operation: str, work: Callable[[Attempt], Any], *, stop: threading.Event, lease: Any = None,
                    step: str | None = None, every: float = 1, on_error: Callable[[Exception], None] = lambda error: None) -> None:
    """Drives on, until it is told to stop, what others have left behind."""
    while not stop.is_set():
        try:
            for claimed in await settled(claim_abandoned(pool, operation=operation, lease=lease, max_rows=1)):
                await finish(pool, claimed, work, step)
        except Exception as error:
            on_error(error)  # such as a database that is down: later, then
        await pause(pool, every, stop)


async def finish(pool: Any, claimed: Result, work: Callable[[Attempt], Any], step: str | None) -> Answer | Result:
    id, token = Id(*map(str, (claimed.scope, claimed.operation, claimed.key))), claimed.token

    async def settle(outcome: str, verb: Any, name: str, error: Exception) -> Result:
        why = repr(error)[:1000]  # a page of HTML would be too large to be recorded
        try:
            await despite_loss(pool, lambda: verb(pool, id, token=token, **{name: why}))
        except Exception as e:  # a repeat finds settled what the call did whose answer was lost
            if kind(e) not in ('stale_claim', 'not_claimed', 'held'):
                raise
        return Result(*id, outcome=outcome, last_error=why)

    async def record(db: Any) -> None:
        if answer.book:
            await settled(answer.book(db))
        await settled(complete(db, id, token=token, refuse_repeat=True, **recorded(answer)))

    try:
        attempt = Attempt(claimed, await despite_loss(pool, lambda: effect_key(pool, id, step)))
    except Exception as error:
        return await settle('failed', fail, 'error', error)
    try:
        answer = await beating(pool, id, attempt, work)
    except NothingHappened as error:
        return await settle('failed', fail, 'error', error)
    except Refused as refused:
        answer = refused.answer
    except Exception as error:
        if attempt.lost.is_set():
            raise  # not the owner any more: there is nothing to record
        return await settle('held', hold, 'reason', error)
    try:
        await despite_loss(pool, lambda: transaction(pool, record))
        return answer
    except Exception as error:
        if reason(error) == 'completed':  # the answer to COMMIT was lost, or a person was faster: what is recorded is what counts
            return dataclasses.replace(await settled(replay(pool, id)), outcome='replay')
        if kind(error) not in ('unavailable', 'stale_claim'):  # done, and not to be recorded: nobody may do it again
            await settle('held', hold, 'reason', error)
        raise


async def beating(pool: Any, id: Id, attempt: Attempt, work: Callable[[Attempt], Any]) -> Answer:
    """The work, with three beats to a lease. Who cannot reach the database goes on and tries at the next beat."""
    done, refused, third = threading.Event(), [], (attempt.claim.lease_seconds or 60) / 3

    async def beat() -> None:
        await pause(pool, third, done)
        while not done.is_set():
            try:
                await settled(extend(pool, id, token=attempt.claim.token))
            except Exception as error:
                if kind(error) not in ('unavailable', 'retry') and not done.is_set():
                    refused.append(error)
                    attempt.lost.set()
                    if running:
                        running.cancel()
                    return
            await pause(pool, third, done)

    running = asyncio.ensure_future(work(attempt)) if is_async(pool) else None
    heart = asyncio.ensure_future(beat()) if running else None
    if not heart:
        threading.Thread(target=lambda: run_now(beat()), daemon=True).start()
    try:
        return await running if running else work(attempt)
    except (Exception, asyncio.CancelledError):
        if refused:
            raise refused[0] from None
        raise
    finally:
        done.set()
        if heart:
            heart.cancel()
