from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from .client import Recorded

class Answer:
    status: int
    body: bytes
    headers: list[tuple[str, str]]
    book: Callable[[Any], Any]
    expires_at: datetime | None
    def __init__(self, status: int = ..., body: Any = ..., headers: Iterable[tuple[str, Any]] = ...,
                 book: Callable[[Any], Any] = ..., expires_at: datetime | None = ...) -> None: ...
    def header(self, wanted: str) -> str: ...
    def recorded(self) -> dict[str, Any]: ...

class Refused(Exception):
    def __init__(self, status: int = ..., body: Any = ..., headers: Iterable[tuple[str, Any]] = ..., /) -> None: ...
    @property
    def answer(self) -> Answer: ...

def replayed(row: Recorded) -> Answer: ...
