from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from .http import Route

class Idempotency:
    """`scope` gets the ASGI scope of the request."""
    def __init__(self, app: Any, *, pool: Any, scope: Callable[[MutableMapping[str, Any]], Any], routes: Mapping[str, Route],
                 lifetime_header: bool = ..., documentation: str = ...) -> None: ...
    async def __call__(self, scope: MutableMapping[str, Any], receive: Callable[[], Awaitable[Any]],
                       send: Callable[[Any], Awaitable[None]]) -> None: ...
