"""WSGI (Flask and others; Django has a file of its own): app.wsgi_app = Idempotency(app.wsgi_app, …).

The connection is environ['idempotency.db'].

Frameworks make a 500 of what a handler throws. `errors` is the signal that they send then, flask.got_request_exception: it tells a
serialization failure, which is run again, from a fault.
"""

from __future__ import annotations

import sys
import threading
from http import HTTPStatus
from io import BytesIO
from typing import Any, Iterable

from .answer import Answer
from .client import kind, run_now
from .http import Core


class Idempotency:
    def __init__(self, app: Any, *, errors: Any = None, **options: Any):
        self.app, self.core, self.seen = app, Core(**options), threading.local()
        if errors:
            errors.connect(self.see, weak=False)

    def see(self, sender: Any = None, **_: Any) -> None:
        self.seen.error = sys.exc_info()[1]

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        found = self.core.find(environ['REQUEST_METHOD'], environ.get('PATH_INFO', '').encode('latin-1').decode(errors='replace'))
        lines = [environ['HTTP_IDEMPOTENCY_KEY']] if 'HTTP_IDEMPOTENCY_KEY' in environ else []  # two lines are one with a comma here
        if not found or not (lines or found[1].required):
            return self.app(environ, start_response)
        size = -1 if environ.get('wsgi.input_terminated') else int(environ.get('CONTENT_LENGTH') or 0)
        body = environ['wsgi.input'].read(size)
        answer = run_now(self.core.answer(environ, found, lines, body, lambda db: self.captured(environ, body, db)))
        phrase = next((status.phrase for status in HTTPStatus if status == answer.status), '')
        start_response(f'{answer.status} {phrase}', [*answer.headers])
        return [answer.body]

    def captured(self, environ: Any, body: bytes, db: Any) -> Answer:
        """What the application answers, instead of sending it. It may be run again, so it gets an environ and a body of its own."""
        started: list[Any] = []
        chunks: list[bytes] = []

        def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
            started[:] = [int(status.split()[0]), headers]
            return chunks.append
        self.seen.error = None
        parts = self.app({**environ, 'wsgi.input': BytesIO(body), 'CONTENT_LENGTH': str(len(body)), 'idempotency.db': db}, start_response)
        try:
            chunks.extend(parts)
        finally:
            getattr(parts, 'close', lambda: None)()
        error, self.seen.error = self.seen.error, None
        if error and kind(error) != 'other':
            raise error
        return Answer(started[0], b''.join(chunks), started[1])
