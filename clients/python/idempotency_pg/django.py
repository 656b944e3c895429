"""Django: `once = idempotency(DjangoPool(threads), scope=lambda request: …, routes=…)`, named in MIDDLEWARE after authentication.

The connection is Django's own, so models and cursors take part in the claim's transaction. No wrapper of WSGI, because Django gives its
connections up where a request begins and ends.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Iterator

from django.db import connections, transaction
from django.http import HttpResponse

from .answer import Answer
from .client import kind, run_now
from .http import Core


class DjangoPool:
    """Each thread has one connection, so `max_size` is the number of threads."""
    def __init__(self, max_size: int, using: str = 'default'):
        self.max_size, self.using = max_size, using

    @contextmanager
    def connection(self) -> Iterator[Any]:
        connection = connections[self.using]
        outermost = not connection.in_atomic_block
        try:
            with transaction.atomic(using=self.using):
                yield connection
        finally:
            if outermost:
                connection.close_if_unusable_or_obsolete()


def idempotency(pool: DjangoPool, **options: Any) -> Callable[[Any], Any]:
    core = Core(pool, **options)

    def factory(get_response: Any) -> Any:
        def middleware(request: Any) -> HttpResponse:
            found = core.find(request.method, request.path)
            line = request.headers.get('Idempotency-Key')  # two lines are one with a comma here
            if not found or (line is None and not found[1].required):
                return get_response(request)
            answered: list[Any] = []

            def captured(db: Any) -> Answer:
                """Django makes a 500 of an error; a serialization failure has to be run again."""
                request.database_error = None
                answered[:] = [get_response(request)]
                if request.database_error:
                    raise request.database_error
                return Answer(answered[0].status_code, b''.join(answered[0]), list(answered[0].items()))
            answer = run_now(core.answer(request, found, [] if line is None else [line], request.body, captured))
            response = HttpResponse(answer.body, status=answer.status)
            del response['Content-Type']
            for name, value in answer.headers:  # Django has one line of each name
                response[name] = f'{response[name]}, {value}' if name in response else value
            if answered and 'Idempotent-Replayed' not in response:
                response.cookies = answered[0].cookies
            return response

        def process_exception(request: Any, error: Exception) -> None:
            request.database_error = error if kind(error) != 'other' else None
        middleware.process_exception = process_exception  # type: ignore[attr-defined]
        return middleware
    return factory
