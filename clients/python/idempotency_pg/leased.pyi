from collections.abc import Awaitable, Callable
from threading import Event
from typing import Any, Literal, NamedTuple, overload, type_check_only
from uuid import UUID

from .answer import Answer
from .client import Abandoned, AsyncDb, Claim, Db, Interval, Replay, Result

class Attempt(NamedTuple):
    """What work gets. `lost` is set when the claim is somebody else's; asynchronous work is cancelled then."""
    claim: Claim | Abandoned
    effect_key: str  # for the outside party: the same in every attempt
    lost: Event

class NothingHappened(Exception): ...

@type_check_only
class Settled(Result):
    """How a claim ended without an answer."""
    outcome: Literal['failed', 'held']
    last_error: str

@type_check_only
class Recovered(Replay):
    """What is recorded, where the answer to COMMIT was lost."""
    outcome: Literal['replay']

@overload
def run_leased(pool: AsyncDb, id: tuple[str, str, str], work: Callable[[Attempt], Awaitable[Answer]], *, wait: Interval | None = ...,
               step: str | None = ..., lease: Interval, body: bytes | str | None = ..., request: Any = ...,
               params: dict[str, Any] | None = ..., compare: bool = ..., fingerprint: bytes | None = ..., ttl: Interval | None = ...,
               claim_id: UUID | str = ..., hold_if_abandoned: bool | None = ..., note: str | None = ..., state: Any = ...,
               ) -> Awaitable[Answer | Claim | Settled | Recovered]: ...
@overload
def run_leased(pool: Db, id: tuple[str, str, str], work: Callable[[Attempt], Answer], *, wait: Interval | None = ...,
               step: str | None = ..., lease: Interval, body: bytes | str | None = ..., request: Any = ...,
               params: dict[str, Any] | None = ..., compare: bool = ..., fingerprint: bytes | None = ..., ttl: Interval | None = ...,
               claim_id: UUID | str = ..., hold_if_abandoned: bool | None = ..., note: str | None = ..., state: Any = ...,
               ) -> Answer | Claim | Settled | Recovered: ...

@overload
def completer(pool: AsyncDb, operation: str, work: Callable[[Attempt], Awaitable[Answer]], *, stop: Event, lease: Interval | None = ...,
              step: str | None = ..., every: float = ..., on_error: Callable[[Exception], Any] = ...) -> Awaitable[None]: ...
@overload
def completer(pool: Db, operation: str, work: Callable[[Attempt], Answer], *, stop: Event, lease: Interval | None = ...,
              step: str | None = ..., every: float = ..., on_error: Callable[[Exception], Any] = ...) -> None: ...
