"""A user's program, for mypy --strict; test_client.py has it checked, and never runs it."""

from datetime import datetime
from threading import Event
from typing import Literal

import psycopg
from fastapi import FastAPI
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from typing_extensions import assert_type

from idempotency_pg import (Answer, Attempt, Id, NothingHappened, Refused, Route, checkpoint, claim, claim_abandoned, complete, completer,
                            effect_key, hold, kind, lookup, once, run_leased, transaction)
from idempotency_pg.asgi import Idempotency

ID = Id('acme', 'import', 'file-1')


def blocking(pool: ConnectionPool) -> str | None:
    with pool.connection() as db:
        claimed = claim(db, ID, request={'rows': 7}, lease='1 min')
        if claimed.outcome == 'replay':
            return claimed.response_body
        assert_type(claimed.token, int)
        assert_type(complete(db, ID, response_body='done', token=claimed.token), datetime)
        assert_type(once(db, ('provider', 'webhook', 'evt-1')), bool)
    assert_type(hold(pool, ID, reason='who knows'), int)
    assert_type(transaction(pool, lambda db: 7), int)
    found = lookup(pool, ID)
    return found.status if found else None


async def charge(attempt: Attempt) -> Answer:
    if not attempt.lost.is_set() and attempt.claim.attempt > 3:
        raise Refused(402, {'declined': True})
    raise NothingHappened(attempt.effect_key)


async def asynchronous(pool: AsyncConnectionPool) -> None:
    async with pool.connection() as db:
        claimed = await claim(db, ID, body=b'{}')
        assert_type(claimed.outcome, Literal['claimed', 'replay', 'in_progress', 'mismatch', 'held'])
        await checkpoint(db, ID, 'sent', token=claimed.token)
    assert_type(await effect_key(pool, ID, 'charge'), str)
    for abandoned in await claim_abandoned(pool, max_rows=1):
        print(abandoned.key, abandoned.lease_seconds)

    async def seven(db: psycopg.AsyncConnection[tuple[int]]) -> int:
        return 7
    assert_type(await transaction(pool, seven), int)
    result = await run_leased(pool, ID, charge, lease='1 min', compare=False)
    print(result.status if isinstance(result, Answer) else result.outcome)
    await completer(pool, 'POST /charges', charge, stop=Event(), on_error=lambda error: print(kind(error)))


def application(pool: AsyncConnectionPool) -> FastAPI:
    app = FastAPI()
    app.add_middleware(Idempotency, pool=pool, scope=lambda scope: 'acme', routes={
        'POST /orders': Route(wait='5 s'), 'POST /charges': Route(work=charge, lease='1 min', state=lambda request, body: {})})
    return app


def mistakes(pool: ConnectionPool) -> None:  # each has to be refused, or mypy warns that it is not
    claim(pool, ID, request={}, lese='1 min')  # type: ignore[call-overload]
    claim(pool, ID, request={}).outcom  # type: ignore[attr-defined]
    complete(pool, ID, token='7')  # type: ignore[call-overload]
    Route(waits='5 s')  # type: ignore[call-arg]
