from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .answer import Answer
from .client import Interval
from .leased import Attempt

class Route(NamedTuple):
    """What is different from the defaults for "POST /orders/{id}/refunds". With `work` it is leased, and the application is not asked."""
    required: bool = ...  # False: a request without the header is served as if this were not here
    wait: Interval | None = ...  # duplicates wait so long instead of being told 409; at most half of the pool
    ttl: Interval | None = ...
    work: Callable[[Attempt], Any] | None = ...
    state: Callable[[Any, bytes], Any] | None = ...  # (request, body) -> JSON that the work needs; may raise Refused
    lease: Interval = ...
    step: str | None = ...
    hold_if_abandoned: bool | None = ...

class Core:
    """`scope(request)` says who was authenticated, or raises Refused(401). `documentation` is the page that problems point to."""
    pool: Any
    scope: Callable[[Any], Any]
    routes: Mapping[str, Route]
    lifetime_header: bool
    documentation: str
    def __init__(self, pool: Any, scope: Callable[[Any], Any], routes: Mapping[str, Route], *, lifetime_header: bool = ...,
                 documentation: str = ...) -> None: ...
    def find(self, method: str, path: str, lines: list[str]) -> Callable[[Any, bytes, Callable[[Any], Any]], Any] | None: ...
    def problem(self, outcome: str, retry_after_ms: int | None = ...) -> Answer: ...

def parse_key(lines: list[str]) -> str | None: ...
