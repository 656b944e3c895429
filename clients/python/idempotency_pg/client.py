"""The calls of the extension as functions, with typed outcomes, and errors told apart by SQLSTATE.

`db` is a connection or a pool: psycopg 3 (blocking or asyncio), psycopg 2, SQLAlchemy (Session, Connection, Engine) or Django's. `id` is
(scope, operation, key). Nothing is imported but the standard library: the driver is the one that the caller has.

All is written once, as coroutines. With a blocking connection a coroutine never waits for an event loop, so it is run to its end at once,
and the caller gets the result.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import threading
import time
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import Any, AsyncIterator, Awaitable, Callable, Coroutine, NamedTuple, Protocol, TypeVar, overload
from weakref import WeakKeyDictionary

T = TypeVar('T')
T_co = TypeVar('T_co', covariant=True)


class Id(NamedTuple):
    scope: str
    operation: str
    key: str


@dataclass
class Result:
    """A row of claim, run, claim_abandoned, lookup or replay; what the call does not have is None."""
    scope: str | None = None
    operation: str | None = None
    key: str | None = None
    outcome: str | None = None  # claimed, replay, in_progress, mismatch or held; "failed" of run_leased
    status: str | None = None
    token: int | None = None
    attempt: int | None = None
    taken_over: bool | None = None
    recovery_point: str | None = None
    state: Any = None
    note: str | None = None
    last_error: str | None = None
    fingerprint_checked: bool | None = None
    retry_after_ms: int | None = None
    rival: str | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None
    expires_at: datetime | None = None
    locked_until: datetime | None = None
    lease_seconds: float | None = None
    response_status: int | None = None
    response_headers: Any = None
    response_body: str | None = None
    response_bytes: bytes | None = None


class AsyncDb(Protocol):
    async def close(self) -> None: ...


class Both(Protocol[T_co]):
    """Gives the result with a blocking connection or pool, and an awaitable of it with one of asyncio."""
    @overload  # type: ignore[misc]  # whoever has close() as a coroutine is of asyncio
    def __call__(self, db: AsyncDb, /, *args: Any, **options: Any) -> Awaitable[T_co]: ...
    @overload
    def __call__(self, db: Any, /, *args: Any, **options: Any) -> T_co: ...


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise TypeError('something asynchronous was used with a blocking connection')


def is_async(db: Any) -> bool:
    return inspect.iscoroutinefunction(getattr(db, 'close', None))


def both(function: Callable[..., Coroutine[Any, Any, T]]) -> Both[T]:
    @wraps(function)
    def call(db: Any, *args: Any, **options: Any) -> Any:
        coroutine: Coroutine[Any, Any, Any] = function(db, *args, **options)
        return coroutine if is_async(db) else run_now(coroutine)
    return call  # type: ignore[return-value]


async def settled(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def driver(db: Any) -> Any:
    """The driver's own connection below a Session or Connection of SQLAlchemy, or Django's."""
    inner = getattr(db, 'driver_connection', None) or getattr(db, 'connection', None)
    inner = inner() if callable(inner) else inner
    return db if inner in (None, db) else driver(inner)  # psycopg's has itself as `connection`


@asynccontextmanager
async def session(db: Any) -> AsyncIterator[Any]:
    """The connection; of a pool, one with a transaction that is committed at the end."""
    engine = hasattr(db, 'raw_connection')
    pool = callable(getattr(db, 'connection', None)) and not hasattr(db, 'execute')
    manager = db.begin() if engine else db.connection() if pool else nullcontext(db)
    if is_async(db):
        async with manager as connection:
            yield connection
    else:
        with manager as connection:
            yield connection


RESPONSE = 'response_status, response_headers::text, response_body, response_bytes'
EXPIRES = "nullif(expires_at, 'infinity') AS expires_at"  # of a held key; Python has no such date
LEASE = 'locked_until, extract(epoch FROM locked_until - clock_timestamp())::float8 AS lease_seconds'
CLAIM = ('outcome, token, attempt, taken_over, recovery_point, state::text, last_error, fingerprint_checked, retry_after_ms, rival, '
         f'created_at, completed_at, {EXPIRES}, {RESPONSE}, {LEASE}')
ABANDONED = ("scope, operation, key, 'claimed' AS outcome, token, attempt, true AS taken_over, recovery_point, state::text, note, "
             f'last_error, created_at, {LEASE}')
LOOKUP = ('status, token, attempt, recovery_point, state::text, last_error, note, created_at, completed_at, locked_until, '
          f'{EXPIRES}, {RESPONSE}')

# Every parameter is cast, so that prepared, unprepared and pooled statements agree on its type. JSON goes and comes as text: Django and
# others switch the driver's own conversion off.
JSONB = 'text::jsonb'
TYPES = {
    'state': JSONB, 'args': JSONB, 'response_headers': JSONB, 'response_status': 'int', 'response_body': 'text', 'response_bytes': 'bytea',
    'fingerprint': 'bytea', 'ttl': 'interval', 'lease': 'interval', 'wait': 'interval', 'wait_for': 'text', 'retry_in': 'interval',
    'claim_id': 'uuid', 'token': 'bigint', 'hold_if_abandoned': 'boolean', 'refuse_repeat': 'boolean', 'note': 'text', 'error': 'text',
    'reason': 'text', 'command': 'text', 'recovery_point': 'text', 'step': 'text', 'operation': 'text', 'max_rows': 'int',
}
DECODE: dict[str, Callable[[Any], Any]] = {'state': json.loads, 'response_headers': json.loads, 'response_bytes': bytes}


async def call(db: Any, columns: str, name: str, id: tuple[str, ...], options: dict[str, Any], request: str = '',
               *values: Any) -> list[dict[str, Any]]:
    """The rows of a call. What is not given is not named, so that the server's defaults and the policies hold."""
    given = [*values, *id]
    args = [request] * bool(request) + [f'{part} => %s::text' for part in Id._fields[:len(id)]]
    for option, value in options.items():
        if option not in TYPES:
            raise TypeError(f'{name}: unknown option {option}')
        if value is not None:
            args.append(f'{option} => %s::{TYPES[option]}')
            given.append(json.dumps(value) if TYPES[option] == JSONB else str(value) if option == 'claim_id' else value)
    async with session(db) as connection:
        cursor = driver(connection).cursor()
        await settled(cursor.execute(f'SELECT {columns} FROM idempotency.{name}({", ".join(args)}) AS result', given))
        names = [column[0] for column in cursor.description]
        rows = [row if isinstance(row, dict) else dict(zip(names, row)) for row in await settled(cursor.fetchall())]
    return [{n: DECODE[n](v) if n in DECODE and v is not None else v for n, v in row.items()} for row in rows]


async def claiming(db: Any, name: str, id: tuple[str, str, str], *, body: bytes | str | None = None, request: Any = None,
                   params: dict[str, Any] | None = None, compare: bool = True, **options: Any) -> Result:
    # The request is given to notice a key that is used for another one: `body` as it came, or `request`, a value that is made JSON here,
    # once. Either goes through fingerprint_bytes(), which also takes what jsonb refuses. Path parameters are part of the request.
    # None would switch the comparison off without a word; that has to be said: compare=False.
    given: tuple[Any, ...] = ()
    if compare and options.get('fingerprint') is None:
        if body is None and request is None:
            raise TypeError(f'{name}: no request; give request, body or compare=False')
        data = json.dumps(request) if body is None else body
        digest, data = 'idempotency.fingerprint_bytes(%s::bytea)', data.encode() if isinstance(data, str) else data
        given = (f'fingerprint => {digest}', data) if not params else (
            f"request => jsonb_build_object('params', %s::text::jsonb, 'body', encode({digest}, 'hex'))", json.dumps(params), data)
    row = (await call(db, CLAIM, name, id, options, *given))[0]
    if row['outcome'] not in ('claimed', 'replay', 'in_progress', 'mismatch', 'held'):
        raise RuntimeError(f'unknown outcome {row["outcome"]}')  # never go on with it
    return Result(*id, **row)


@both
async def claim(db: Any, id: tuple[str, str, str], **options: Any) -> Result:
    return await claiming(db, 'claim', id, **options)


@both
async def run(db: Any, id: tuple[str, str, str], command: str, **options: Any) -> Result:
    return await claiming(db, 'run', id, command=command, **options)


@both
async def claim_abandoned(db: Any, **options: Any) -> list[Result]:
    return [Result(**row) for row in await call(db, ABANDONED, 'claim_abandoned', (), options)]


def verb(name: str, *positional: str) -> Both[Any]:
    @both
    async def verb(db: Any, id: tuple[str, str, str], *args: str, **options: Any) -> Any:
        return (await call(db, 'result', name, id, {**dict(zip(positional, args)), **options}))[0]['result']
    return verb


def reader(name: str, columns: str) -> Both[Result | None]:
    @both
    async def read(db: Any, id: tuple[str, str, str]) -> Result | None:
        return next((Result(*id, **row) for row in await call(db, columns, name, id, {})), None)
    return read


complete: Both[datetime] = verb('complete')
fail: Both[bool] = verb('fail')
record_failure: Both[bool] = verb('record_failure')
release: Both[bool] = verb('release')
extend: Both[datetime] = verb('extend')
checkpoint: Both[datetime | None] = verb('checkpoint', 'recovery_point')
hold: Both[int] = verb('hold')
once: Both[bool] = verb('once')
effect_key: Both[str] = verb('effect_key', 'step')
lookup = reader('lookup', LOOKUP)
replay = reader('replay', f'{RESPONSE}, completed_at, {EXPIRES}')


def causes(error: BaseException | None) -> list[Any]:
    """The error and what SQLAlchemy (orig) and Django (__cause__) have wrapped."""
    return [error, *causes(getattr(error, 'orig', None) or error.__cause__)] if error else []


def sqlstate(error: BaseException) -> str | None:
    return next((state for e in causes(error) if (state := getattr(e, 'sqlstate', None) or getattr(e, 'pgcode', None))), None)


def reason(error: BaseException) -> str | None:
    """Of stale_claim: taken_over, completed or forgotten."""
    return next((e.diag.constraint_name for e in causes(error) if getattr(e, 'diag', None)), None)


KINDS = {
    'IK001': 'stale_claim', 'IK002': 'not_claimed', 'IK003': 'other_completion', 'IK004': 'left_open', 'IK005': 'held', 'IK006': 'redacted',
    '40001': 'retry', '40P01': 'retry', '55P03': 'wait_timeout', '54000': 'too_large', '25006': 'unavailable', '53300': 'unavailable',
    '57P01': 'unavailable', '57P02': 'unavailable', '57P03': 'unavailable', '08': 'unavailable', '22': 'bad_request',
}


def kind(error: BaseException) -> str:
    """What to do about an error; "other" is a fault of the program. The drivers make 54000 an OperationalError, as they do with a
    lost connection, so the SQLSTATE decides: too_large is permanent, never "try again"."""
    if state := sqlstate(error):
        return KINDS.get(state) or KINDS.get(state[:2]) or 'other'
    names = {base.__name__ for e in causes(error) for base in type(e).__mro__}
    full = any(getattr(e, 'code', None) == '3o7r' for e in causes(error))  # SQLAlchemy: no connection in time
    return 'unavailable' if full or names & {'OperationalError', 'InterfaceError'} else 'other'


async def pause(db: Any, seconds: float, done: threading.Event | None = None) -> None:
    if is_async(db):
        await asyncio.sleep(seconds)
    elif done:
        done.wait(seconds)
    else:
        time.sleep(seconds)


async def again(db: Any, kinds: tuple[str, ...], attempt: Callable[[], Any], attempts: int = 5) -> Any:
    """Once more after an error of one of these kinds, with growing pauses that rivals do not share."""
    for number in range(1, attempts + 1):
        try:
            return await settled(attempt())
        except Exception as error:
            if kind(error) not in kinds or number == attempts:
                raise
        await pause(db, 0.02 * 2 ** number * random.uniform(0.5, 1.5))


@both
async def transaction(pool: Any, work: Callable[[Any], Any]) -> Any:
    """work(connection), COMMIT; all of it again where the server asks for that."""
    async def attempt() -> Any:
        async with session(pool) as db:
            result = await settled(work(db))
            if driver(db).info.transaction_status == 3:  # failed, and the error swallowed: COMMIT would succeed and roll back
                raise RuntimeError('the transaction has failed')
            return result
    return await again(pool, ('retry',), attempt)


waiters: WeakKeyDictionary[Any, threading.Semaphore] = WeakKeyDictionary()


async def capped(pool: Any, wait: Any, ask: Callable[[Any], Any]) -> Any:
    """ask(wait) for half of the pool's connections at most, ask(None) for the others: those that wait must not fill the pool."""
    if wait is None:
        return await settled(ask(None))
    size = getattr(pool, 'max_size', None) or pool.pool.size()
    gate = waiters.setdefault(pool, threading.Semaphore(size // 2))
    if not gate.acquire(blocking=False):
        return await settled(ask(None))
    try:
        return await settled(ask(wait))
    finally:
        gate.release()
