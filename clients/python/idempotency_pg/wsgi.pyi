from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .http import Route

class Idempotency:
    """`scope` gets the environ of the request. `errors` is flask.got_request_exception."""
    def __init__(self, app: Any, *, pool: Any, scope: Callable[[dict[str, Any]], Any], routes: Mapping[str, Route], errors: Any = ...,
                 lifetime_header: bool = ..., documentation: str = ...) -> None: ...
    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]: ...
