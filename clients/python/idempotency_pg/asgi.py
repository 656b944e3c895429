"""ASGI (Starlette, FastAPI): app.add_middleware(Idempotency, pool=…, scope=…, routes=…); the connection is request.state.db.

With a blocking pool the calls are made in a thread, and the application still runs in the event loop.
"""

from __future__ import annotations

import asyncio
from typing import Any

from .answer import Answer
from .client import is_async, run_now
from .http import Core


class Idempotency:
    def __init__(self, app: Any, **options: Any):
        self.app, self.core = app, Core(**options)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        found = self.core.find(scope['method'], scope['path']) if scope['type'] == 'http' else None
        lines = [value.decode('latin-1') for name, value in scope['headers'] if name == b'idempotency-key'] if found else []
        if not found or not (lines or found[1].required):
            return await self.app(scope, receive, send)
        body, more = b'', True
        while more:
            message = await receive()
            if message['type'] == 'http.disconnect':
                return  # the body is not all here, so nothing was asked
            body, more = body + message.get('body', b''), message.get('more_body', False)
        loop, blocking = asyncio.get_running_loop(), not is_async(self.core.pool)

        def work(db: Any) -> Any:
            running = self.captured(scope, receive, body, db)
            return asyncio.run_coroutine_threadsafe(running, loop).result() if blocking else running
        answering = self.core.answer(scope, found, lines, body, work)
        answer: Answer = await asyncio.to_thread(lambda: run_now(answering)) if blocking else await answering
        headers = [(name.lower().encode('latin-1'), value.encode('latin-1')) for name, value in answer.headers]
        if not answer.header('content-length') and answer.status not in (204, 304):
            headers.append((b'content-length', b'%d' % len(answer.body)))
        await send({'type': 'http.response.start', 'status': answer.status, 'headers': headers})
        await send({'type': 'http.response.body', 'body': answer.body})

    async def captured(self, scope: Any, receive: Any, body: bytes, db: Any) -> Answer:
        """What the application answers, instead of sending it. It may be run again, so it gets a scope and a body of its own."""
        start: dict[str, Any] = {}
        chunks: list[bytes] = []
        bodies = iter([{'type': 'http.request', 'body': body, 'more_body': False}])

        async def send(message: Any) -> None:
            if message['type'] == 'http.response.start':
                start.update(message)
            else:
                chunks.append(message.get('body', b''))

        async def replay() -> Any:
            return next(bodies, None) or await receive()
        await self.app({**scope, 'state': {**scope.get('state', {}), 'db': db}}, replay, send)
        return Answer(start['status'], b''.join(chunks), [(n.decode('latin-1'), v.decode('latin-1')) for n, v in start['headers']])
