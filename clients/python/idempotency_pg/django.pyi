from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from .http import Route

class DjangoPool:
    max_size: int
    using: str
    def __init__(self, max_size: int, using: str = ...) -> None: ...
    def connection(self) -> AbstractContextManager[Any]: ...

class Middleware:
    def __call__(self, request: Any) -> Any: ...
    def process_exception(self, request: Any, error: Exception) -> None: ...

def idempotency(pool: DjangoPool, *, scope: Callable[[Any], Any], routes: Mapping[str, Route], lifetime_header: bool = ...,
                documentation: str = ...) -> Callable[[Any], Middleware]: ...
