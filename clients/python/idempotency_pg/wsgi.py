"""Flask: app.wsgi_app = Idempotency(app.wsgi_app, errors=got_request_exception, …); the connection is environ['idempotency.db'].

Flask makes a 500 of what a handler throws. `errors` is the signal of that: it tells what is to be run again (40001) from a fault."""
import sys
import threading
from io import BytesIO

from werkzeug.http import HTTP_STATUS_CODES
from werkzeug.test import run_wsgi_app
from werkzeug.wrappers import Request

from .answer import Answer
from .client import kind
from .http import Core

class Idempotency:
    def __init__(self, app, *, errors=None, **options):
        self.app, self.core, self.seen = app, Core(**options), threading.local()
        if errors:
            errors.connect(lambda sender, **_: setattr(self.seen, 'error', sys.exc_info()[1]), weak=False)

    def __call__(self, environ, start_response):
        request = Request(environ)
        lines = request.headers.getlist('Idempotency-Key')  # two lines are one with a comma here
        answering = self.core.find(request.method, environ.get('PATH_INFO', '').encode('latin-1').decode(errors='replace'), lines)
        if not answering:
            return self.app(environ, start_response)
        body = request.get_data(cache=False)

        def run(db):  # what the application answers; it may be run again, so it gets an environ and a body of its own
            self.seen.error = None
            own = {**environ, 'wsgi.input': BytesIO(body), 'CONTENT_LENGTH': str(len(body)), 'idempotency.db': db}
            parts, status, headers = run_wsgi_app(self.app, own, buffered=True)
            if self.seen.error and kind(self.seen.error) != 'other':
                raise self.seen.error
            return Answer(int(status.split()[0]), b''.join(parts), headers)
        answer = answering(environ, body, run)
        start_response(f'{answer.status} {HTTP_STATUS_CODES.get(answer.status, "")}', answer.headers)
        return [answer.body]
