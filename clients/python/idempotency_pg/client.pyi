from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime, timedelta
from threading import Event
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, Protocol, TypeVar, overload, type_check_only
from uuid import UUID

P = ParamSpec('P')
T = TypeVar('T')
T_co = TypeVar('T_co', covariant=True)
Interval = str | timedelta
Kind = Literal['stale_claim', 'not_claimed', 'other_completion', 'left_open', 'held', 'redacted', 'retry', 'wait_timeout', 'too_large',
               'bad_request', 'unavailable', 'other']

class Id(NamedTuple):
    scope: str
    operation: str
    key: str

@type_check_only
class AsyncDb(Protocol):
    """Whoever has close() as a coroutine is of asyncio."""
    async def close(self) -> None: ...

@type_check_only
class Closed(Protocol):
    def close(self) -> None: ...

@type_check_only
class Engine(Protocol):
    def raw_connection(self) -> Any: ...

@type_check_only
class Pool(Protocol):
    def connection(self) -> AbstractContextManager[Any]: ...

Db = Closed | Engine | Pool

@type_check_only
class Both(Protocol[P, T_co]):
    """A call that gives its result with a blocking connection or pool, and an awaitable of it with one of asyncio."""
    @overload
    def __call__(self, db: AsyncDb, /, *args: P.args, **options: P.kwargs) -> Awaitable[T_co]: ...
    @overload
    def __call__(self, db: Db, /, *args: P.args, **options: P.kwargs) -> T_co: ...

def both(function: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Both[P, T]: ...

class Result:
    """A row, its columns as attributes."""
    scope: str
    operation: str
    key: str

# What the calls give.

@type_check_only
class Owner:
    token: int
    attempt: int
    recovery_point: str | None
    state: Any
    last_error: str | None
    locked_until: datetime
    lease_seconds: float

@type_check_only
class Recorded:
    response_status: int | None
    response_headers: Any
    response_body: str | None
    response_bytes: bytes | None
    created_at: datetime
    completed_at: datetime
    expires_at: datetime | None  # None of a held key, which never expires

@type_check_only
class Claim(Result, Owner, Recorded):
    """The columns of idempotency.claim(). What an outcome does not have is None, such as the token of a replay."""
    outcome: Literal['claimed', 'replay', 'in_progress', 'mismatch', 'held']
    taken_over: bool | None
    fingerprint_checked: bool | None
    retry_after_ms: int | None
    rival: Literal['transaction', 'lease', 'retry'] | None

@type_check_only
class Abandoned(Result, Owner):
    outcome: Literal['claimed']
    taken_over: Literal[True]
    note: str | None
    created_at: datetime

@type_check_only
class Replay(Result, Recorded): ...

@type_check_only
class Lookup(Result, Owner, Recorded):
    status: Literal['completed', 'in_progress', 'failed', 'held']
    note: str | None

# The request is given to notice a key that is used for another one: `body` is text or bytes as they came, `request` a value that is made
# JSON once. Path parameters belong to it. To give none has to be said: compare=False.
@both
async def claim(db: Any, id: tuple[str, str, str], *, body: bytes | str | None = ..., request: Any = ...,
                params: dict[str, Any] | None = ..., compare: bool = ..., fingerprint: bytes | None = ..., ttl: Interval | None = ...,
                lease: Interval | None = ..., wait: Interval | None = ..., wait_for: Literal['any', 'transaction'] | None = ...,
                claim_id: UUID | str | None = ..., hold_if_abandoned: bool | None = ..., note: str | None = ...,
                state: Any = ...) -> Claim: ...
@both
async def run(db: Any, id: tuple[str, str, str], command: str, *, body: bytes | str | None = ..., request: Any = ...,
              params: dict[str, Any] | None = ..., compare: bool = ..., fingerprint: bytes | None = ..., args: Any = ...,
              ttl: Interval | None = ..., wait: Interval | None = ..., response_status: int | None = ...,
              response_headers: Any = ...) -> Claim: ...
@both
async def complete(db: Any, id: tuple[str, str, str], *, token: int | None = ..., response_status: int | None = ...,
                   response_headers: Any = ..., response_body: str | None = ..., response_bytes: bytes | None = ...,
                   ttl: Interval | None = ..., refuse_repeat: bool | None = ...) -> datetime: ...
@both
async def fail(db: Any, id: tuple[str, str, str], *, token: int | None = ..., error: str | None = ...,
               retry_in: Interval | None = ...) -> bool: ...
@both
async def record_failure(db: Any, id: tuple[str, str, str], *, error: str | None = ..., retry_in: Interval | None = ...) -> bool: ...
@both
async def hold(db: Any, id: tuple[str, str, str], *, token: int | None = ..., reason: str | None = ...) -> int: ...
@both
async def release(db: Any, id: tuple[str, str, str], *, token: int | None = ...) -> bool: ...
@both
async def extend(db: Any, id: tuple[str, str, str], *, token: int | None = ..., lease: Interval | None = ...) -> datetime: ...
@both
async def checkpoint(db: Any, id: tuple[str, str, str], recovery_point: str, *, token: int | None = ..., state: Any = ...,
                     lease: Interval | None = ...) -> datetime | None: ...
@both
async def once(db: Any, id: tuple[str, str, str], *, ttl: Interval | None = ..., wait: Interval | None = ...) -> bool: ...
@both
async def effect_key(db: Any, id: tuple[str, str, str], step: str | None = ...) -> str: ...
@both
async def replay(db: Any, id: tuple[str, str, str]) -> Replay | None: ...
@both
async def lookup(db: Any, id: tuple[str, str, str]) -> Lookup | None: ...
@both
async def claim_abandoned(db: Any, *, operation: str | None = ..., lease: Interval | None = ...,
                          max_rows: int | None = ...) -> list[Abandoned]: ...

# work(connection), COMMIT; all of it again where the server asks for that.
@overload
def transaction(pool: AsyncDb, work: Callable[[Any], Awaitable[T]]) -> Awaitable[T]: ...
@overload
def transaction(pool: Db, work: Callable[[Any], T]) -> T: ...

def kind(error: BaseException) -> Kind: ...
def sqlstate(error: BaseException) -> str | None: ...
def reason(error: BaseException) -> Literal['taken_over', 'completed', 'forgotten'] | None: ...

# For the other files of the package.
def is_async(db: Any) -> bool: ...
async def settled(value: Any) -> Any: ...
def driver(db: Any) -> Any: ...
def session(db: Any) -> AbstractAsyncContextManager[Any]: ...
async def pause(db: Any, seconds: float, done: Event) -> bool: ...
async def again(db: Any, attempt: Callable[[], Any], kinds: tuple[Kind, ...] = ..., attempts: int = ...) -> Any: ...
def capped(pool: Any, wait: Interval | None) -> AbstractContextManager[Interval | None]: ...
