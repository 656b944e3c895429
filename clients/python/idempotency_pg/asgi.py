"""Starlette, FastAPI: app.add_middleware(Idempotency, pool=…, scope=…, routes=…); the connection is request.state.db.

With a blocking pool the calls are made in a thread, and the application still runs in the event loop."""
import asyncio

from starlette.requests import Request
from starlette.responses import Response

from .answer import Answer
from .client import is_async
from .http import Core

class Idempotency:
    def __init__(self, app, **options):
        self.app, self.core = app, Core(**options)

    async def __call__(self, scope, receive, send):
        lines = [value.decode('latin-1') for name, value in scope.get('headers', []) if name == b'idempotency-key']
        answering = self.core.find(scope['method'], scope['path'], lines) if scope['type'] == 'http' else None
        if not answering:
            return await self.app(scope, receive, send)
        body, loop = await Request(scope, receive).body(), asyncio.get_running_loop()

        async def run(db):  # what the application answers; it may be run again, so it gets a scope and a body of its own
            sent, bodies = [], [{'type': 'http.request', 'body': body}]

            async def collect(message):
                sent.append(message)

            async def replay():
                return bodies.pop() if bodies else await receive()
            await self.app({**scope, 'state': {**scope.get('state', {}), 'db': db}}, replay, collect)
            start = next(message for message in sent if message['type'] == 'http.response.start')
            headers = [(name.decode('latin-1'), value.decode('latin-1')) for name, value in start['headers'] if name != b'content-length']
            return Answer(start['status'], b''.join(message.get('body', b'') for message in sent), headers)
        answer = await (answering(scope, body, run) if is_async(self.core.pool) else asyncio.to_thread(
            answering, scope, body, lambda db: asyncio.run_coroutine_threadsafe(run(db), loop).result()))
        response = Response(answer.body, answer.status)  # which also says how long it is
        response.raw_headers += [(name.lower().encode('latin-1'), value.encode('latin-1')) for name, value in answer.headers]
        await response(scope, receive, send)
