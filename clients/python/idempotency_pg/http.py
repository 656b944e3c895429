"""The header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07) on the calls of the client, for any framework.

A middleware says what was asked and how its application is run on a connection, and sends the answer that it gets. That is not before
COMMIT has succeeded, so no client is told what was undone.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Callable, Mapping

from .answer import Answer, Refused, recorded, replayed
from .client import Id, Result, capped, claim, complete, kind, settled, transaction
from .leased import Attempt, run_leased

# The draft has the first three titles. Who gets a Retry-After may send the same request again; nobody else is invited to.
PROBLEMS = {
    'missing': (400, 'Idempotency-Key is missing', 'This operation needs the header Idempotency-Key: one key for each intent.'),
    'mismatch': (422, 'Idempotency-Key is already used', 'The key was used for another request, which may have taken effect.'),
    'in-progress': (409, 'A request is outstanding for this Idempotency-Key', 'A request with this key is being processed.'),
    'malformed': (400, 'Idempotency-Key is malformed', 'The header is one string of 1 to 255 printable ASCII characters: "k" or k.'),
    'held': (409, 'The outcome for this Idempotency-Key is unknown', 'Whether the first request took effect is being looked into.'),
    'redacted': (410, 'The answer for this Idempotency-Key is gone', 'The request was done, and its answer was removed.'),
    'too-large': (500, 'The answer for this Idempotency-Key is too large', 'It cannot be recorded, and a repeat would fail again.'),
    'unavailable': (503, 'Idempotency-Key cannot be checked now', 'Send the same request with the same key again later.'),
}
OF_KIND: dict[str, tuple[Any, ...]] = {
    'retry': ('unavailable', 1), 'unavailable': ('unavailable', 1), 'wait_timeout': ('in-progress', 1), 'stale_claim': ('in-progress', 1),
    'held': ('held',), 'redacted': ('redacted',), 'too_large': ('too-large',),
}

# RFC 8941: a string with its escapes, or a token, as many clients send it. Parameters are read over.
STRING, TOKEN = r'"((?:[ !#-\[\]-~]|\\["\\])*)"', r'[!#-+\--:<-~]+'
ITEM = re.compile(rf'(?:{STRING}|({TOKEN}))(?:; *[a-z*][a-z0-9_.*-]*(?:=(?:{STRING}|{TOKEN}))?)*')


def parse_key(lines: list[str]) -> str | None:
    """The key of the header's lines, "k" and k alike; None where they are no key."""
    match = ITEM.fullmatch(lines[0].strip(' \t')) if len(lines) == 1 else None
    key = match and (match[2] or re.sub(r'\\(.)', r'\1', match[1]))
    return key if key and len(key) <= 255 else None


@dataclass
class Route:
    """What is different from the defaults for "POST /orders/{id}/refunds". With `work` it is leased, and the application is not asked."""
    required: bool = True
    wait: Any = None
    ttl: Any = None
    work: Callable[[Attempt], Any] | None = None
    state: Callable[[Any, bytes], Any] | None = None  # (request, body) -> JSON that the work needs; may raise Refused
    lease: Any = None
    step: str | None = None
    hold_if_abandoned: bool | None = None


class Undone(Exception):
    """Rolls back, and is answered."""


class Core:
    def __init__(self, pool: Any, scope: Callable[[Any], Any], routes: Mapping[str, Route], *, lifetime_header: bool = False,
                 documentation: str = 'https://developer.example.com/idempotency'):
        self.pool, self.scope, self.lifetime_header, self.documentation = pool, scope, lifetime_header, documentation
        self.routes = [(re.compile(re.sub(r'\\{(\w+)\\}', r'(?P<\1>[^/]+)', re.escape(operation))), operation, route)
                       for operation, route in routes.items()]

    def find(self, method: str, path: str) -> tuple[str, Route, dict[str, str]] | None:
        matches = ((pattern.fullmatch(f'{method} {path}'), operation, route) for pattern, operation, route in self.routes)
        return next(((operation, route, match.groupdict()) for match, operation, route in matches if match), None)

    def problem(self, name: str, retry_after: float | None = None) -> Answer:
        status, title, detail = PROBLEMS[name]
        headers = [('Content-Type', 'application/problem+json'), ('Content-Language', 'en')]
        if status == 400:
            headers.append(('Link', f'<{self.documentation}>; rel="describedby"; type="text/html"'))
        if retry_after is not None:
            headers.append(('Retry-After', str(max(1, math.ceil(retry_after)))))
        return Answer(status, {'type': f'{self.documentation}#{name}', 'title': title, 'status': status, 'detail': detail}, headers)

    def expiring(self, answer: Answer, at: Any) -> Answer:
        if self.lifetime_header and at:
            answer.headers.append(('Idempotency-Key-Expires', formatdate(at.timestamp(), usegmt=True)))
        return answer

    def without_work(self, result: Result) -> Answer:
        if result.outcome == 'replay':
            return self.expiring(replayed(result), result.expires_at)
        if result.outcome == 'in_progress':
            return self.problem('in-progress', (result.retry_after_ms or 0) / 1000)
        return self.problem('unavailable', 1) if result.outcome == 'failed' else self.problem(str(result.outcome))

    async def answer(self, request: Any, found: tuple[str, Route, dict[str, str]], lines: list[str], body: bytes,
                     work: Callable[[Any], Any]) -> Answer:
        operation, route, params = found
        try:
            if not (scope := await settled(self.scope(request))):
                raise TypeError('scope() gave nothing: authenticate before, or raise Refused(401)')
            if (key := parse_key(lines)) is None:
                return self.problem('malformed' if lines else 'missing')
            id, asked = Id(scope, operation, key), {'body': body, 'params': params, 'ttl': route.ttl}
            if route.work:
                state = await settled(route.state(request, body)) if route.state else None
                result = await settled(run_leased(self.pool, id, route.work, wait=route.wait, step=route.step, lease=route.lease or '1 min',
                                                  hold_if_abandoned=route.hold_if_abandoned, state=state, **asked))
                return result if isinstance(result, Answer) else self.without_work(result)

            async def attempt(db: Any) -> Answer:
                claimed = await capped(self.pool, route.wait, lambda most: claim(db, id, wait=most, **asked))
                if claimed.outcome != 'claimed':
                    return self.without_work(claimed)
                answer = await settled(work(db))
                if answer.status >= 500:
                    raise Undone(answer)
                return self.expiring(answer, await settled(complete(db, id, **recorded(answer))))
            return await settled(transaction(self.pool, attempt))
        except Refused as refused:
            return refused.answer
        except Undone as undone:
            return undone.args[0]
        except Exception as error:
            if kind(error) not in OF_KIND:
                raise  # the framework's, as if this were not here
            return self.problem(*OF_KIND[kind(error)])
