"""Flask: app.wsgi_app = Idempotency(app.wsgi_app, errors=got_request_exception, …); the connection is environ['idempotency.db'].

Flask makes a 500 of what a handler throws. `errors` is the signal of that: it tells a serialization failure, which is run again, from a fault."""
import sys
import threading
from io import BytesIO

from werkzeug.wrappers import Request, Response

from .answer import Answer
from .client import kind
from .http import Core, respond

class Plain(Response):
    default_mimetype = None  # what was recorded had none, either

class Idempotency:
    def __init__(self, app, *, errors=None, **options):
        self.app, self.core, self.seen = app, Core(**options), threading.local()
        if errors:
            errors.connect(lambda sender, **_: setattr(self.seen, 'error', sys.exc_info()[1]), weak=False)

    def __call__(self, environ, start_response):
        request = Request(environ)
        lines = request.headers.getlist('Idempotency-Key')  # two lines are one with a comma here
        found = self.core.find(request.method, environ.get('PATH_INFO', '').encode('latin-1').decode(errors='replace'), lines)
        if not found:
            return self.app(environ, start_response)
        body = request.get_data(cache=False)

        def run(db):  # what the application answers; it may be run again, so it gets an environ and a body of its own
            self.seen.error = None
            own = {**environ, 'wsgi.input': BytesIO(body), 'CONTENT_LENGTH': str(len(body)), 'idempotency.db': db}
            response = Plain.from_app(self.app, own, buffered=True)
            if self.seen.error and kind(self.seen.error) != 'other':
                raise self.seen.error
            return Answer(response.status_code, response.get_data(), response.headers)
        answer = respond(self.core.pool, self.core, environ, found, lines, body, run)
        return Plain(answer.body, answer.status, answer.headers)(environ, start_response)
