"""Django: `once = idempotency(DjangoPool(threads), scope=lambda request: …, routes=…)`, named in MIDDLEWARE after authentication.

The connection is Django's own, so models and cursors take part in the claim's transaction. No wrapper of WSGI, because Django gives its
connections up where a request begins and ends."""
from contextlib import contextmanager
from functools import partial

from django.db import connections, transaction
from django.http import HttpResponse

from .answer import Answer
from .client import kind
from .http import Core

class DjangoPool:
    """Each thread has one connection, so `max_size` is the number of threads."""
    def __init__(self, max_size, using='default'):
        self.max_size, self.using = max_size, using

    @contextmanager
    def connection(self):
        connection = connections[self.using]
        if connection.errors_occurred and not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
        with transaction.atomic(using=self.using):
            yield connection

class Middleware:
    def __init__(self, core, get_response):
        self.core, self.get_response = core, get_response

    def __call__(self, request):
        lines = [request.headers['Idempotency-Key']] if 'Idempotency-Key' in request.headers else []  # two lines are one with a comma here
        answering = self.core.find(request.method, request.path, lines)
        if not answering:
            return self.get_response(request)

        def run(db):
            request.database_error = None
            response = self.get_response(request)
            if request.database_error:
                raise request.database_error
            answer = Answer(response.status_code, b''.join(response), response.items())
            answer.cookies = response.cookies
            return answer
        answer = answering(request, request.body, run)
        response = HttpResponse(answer.body, status=answer.status)
        del response['Content-Type']
        for name, value in answer.headers:  # Django has one line of each name
            response[name] = f'{response[name]}, {value}' if name in response else value
        response.cookies = getattr(answer, 'cookies', response.cookies)
        return response

    def process_exception(self, request, error):  # Django makes a 500 of it; a serialization failure has to be run again
        request.database_error = error if kind(error) != 'other' else None

def idempotency(pool, **options):
    return partial(Middleware, Core(pool, **options))
