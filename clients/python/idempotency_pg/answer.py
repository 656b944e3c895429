"""An answer: status, body and headers; what of it is recorded, and how it comes back byte for byte."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Callable

from .client import Result

# About the connection, the moment or the session: never replayed.
PASSING = {'set-cookie', 'date', 'content-length', 'connection', 'transfer-encoding', 'keep-alive', 'server', 'idempotent-replayed'}


@dataclass
class Answer:
    """The body is bytes, text, or a value that is made JSON. book(connection) writes beside the record of leased work."""
    status: int = 200
    body: Any = b''
    headers: list[tuple[str, str]] = field(default_factory=list)
    book: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        self.headers = [(name, str(value)) for name, value in self.headers]
        if not isinstance(self.body, (bytes, str)):
            self.body = json.dumps(self.body)
            if not self.header('content-type'):
                self.headers.append(('Content-Type', 'application/json'))
        if isinstance(self.body, str):
            self.body = self.body.encode()

    def header(self, wanted: str) -> str:
        return next((value for name, value in self.headers if name.lower() == wanted), '')


class Refused(Exception):
    """An answer for good, such as a card that was declined."""
    def __init__(self, status: int, body: Any = b'', headers: list[tuple[str, str]] = []):
        super().__init__(f'refused with {status}')
        self.answer = Answer(status, body, headers)


def recorded(answer: Answer) -> dict[str, Any]:
    """As options of complete(): text where it is text, so that a person can read the row; bytes otherwise."""
    headers = [[name, value] for name, value in answer.headers if name.lower() not in PASSING]
    kept = {'response_status': answer.status, 'response_headers': headers}
    if re.match(r'text/|.*[/+](json|xml)\b', answer.header('content-type')) and not answer.header('content-encoding'):
        try:
            if b'\0' not in answer.body:
                return {**kept, 'response_body': answer.body.decode()}
        except ValueError:
            pass
    return {**kept, 'response_bytes': answer.body}


def replayed(result: Result) -> Answer:
    headers = result.response_headers or []
    pairs = headers if isinstance(headers, list) else [  # an object, as other programs record it, whose values may be lists
        (name, one) for name, value in headers.items() for one in (value if isinstance(value, list) else [value])]
    body = result.response_body if result.response_bytes is None else result.response_bytes
    return Answer(result.response_status or 200, body or b'', [*pairs, ('Idempotent-Replayed', 'true')])
