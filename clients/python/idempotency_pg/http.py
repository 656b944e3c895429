"""The header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07) on the calls of the client, for any framework.

A middleware says what was asked and how its application is run on a connection, and sends the answer that it gets. That is not before
COMMIT has succeeded, so no client is told what was undone."""
import math
import re
from collections import namedtuple
from email.utils import formatdate
from functools import partial

from .answer import Answer, Refused, replayed
from .client import Id, both, capped, claim, complete, kind, settled, transaction
from .leased import run_leased

# The draft has the first three titles. Who gets a Retry-After may send the same request again; nobody else is invited to.
PROBLEMS = {
    'missing': (400, 'Idempotency-Key is missing', 'This operation needs the header Idempotency-Key: one key for each intent.'),
    'mismatch': (422, 'Idempotency-Key is already used', 'The key was used for another request, which may have taken effect.'),
    'in_progress': (409, 'A request is outstanding for this Idempotency-Key', 'A request with this key is being processed.'),
    'malformed': (400, 'Idempotency-Key is malformed', 'The header is one string of 1 to 255 printable ASCII characters: "k" or k.'),
    'held': (409, 'The outcome for this Idempotency-Key is unknown', 'Whether the first request took effect is being looked into.'),
    'redacted': (410, 'The answer for this Idempotency-Key is gone', 'The request was done, and its answer was removed.'),
    'too_large': (500, 'The answer for this Idempotency-Key is too large', 'It cannot be recorded, and a repeat would fail again.'),
    'unavailable': (503, 'Idempotency-Key cannot be checked now', 'Send the same request with the same key again later.')}
ALSO = {'failed': 'unavailable', 'retry': 'unavailable', 'wait_timeout': 'in_progress', 'stale_claim': 'in_progress'}
# RFC 8941: a string with its escapes, or a token, as many clients send it. Parameters are read over.
STRING, TOKEN = r'"((?:[ !#-\[\]-~]|\\["\\])*)"', r'[!#-+\--:<-~]+'
ITEM = re.compile(rf'(?:{STRING}|({TOKEN}))(?:; *[a-z*][a-z0-9_.*-]*(?:=(?:{STRING}|{TOKEN}))?)*')
# What is different from the defaults for "POST /orders/{id}/refunds". With `work` it is leased, and the application is not asked.
Route = namedtuple('Route', 'required wait ttl work state lease step hold_if_abandoned', defaults=(True, *[None] * 4, '1 min', None, None))

def parse_key(lines):
    """The key of the header's lines, "k" and k alike; None where they are no key."""
    match = ITEM.fullmatch(lines[0].strip(' \t')) if len(lines) == 1 else None
    key = match and (match[2] or re.sub(r'\\(.)', r'\1', match[1]))
    return key if key and len(key) <= 255 else None

class Core:
    def __init__(self, pool, scope, routes, *, lifetime_header=False, documentation='https://developer.example.com/idempotency'):
        self.pool, self.scope, self.routes, self.lifetime_header, self.documentation = pool, scope, routes, lifetime_header, documentation

    def find(self, method, path, lines):
        """answer(request, body, run), or None where the request is not to be touched."""
        for operation, route in self.routes.items():
            pattern = re.sub(r'\\{(\w+)\\}', r'(?P<\1>[^/]+)', re.escape(operation))
            if match := re.fullmatch(pattern, f'{method} {path}'):
                return partial(respond, self.pool, self, operation, route, match.groupdict(), lines) if lines or route.required else None

    def problem(self, outcome, retry_after_ms=None):
        name = ALSO.get(outcome, outcome)
        status, title, detail = PROBLEMS[name]
        headers = [('Content-Type', 'application/problem+json'), ('Content-Language', 'en')]
        if status == 400:
            headers.append(('Link', f'<{self.documentation}>; rel="describedby"; type="text/html"'))
        if name in ('in_progress', 'unavailable'):
            headers.append(('Retry-After', max(1, math.ceil((retry_after_ms or 0) / 1000))))
        url = f'{self.documentation}#{name.replace("_", "-")}'
        return Answer(status, {'type': url, 'title': title, 'status': status, 'detail': detail}, headers)

@both
async def respond(pool, core, operation, route, params, lines, request, body, run):
    """What is to be sent. run(connection) is what the application answers."""
    async def attempt(db):
        with capped(pool, route.wait) as most:
            claimed = await settled(claim(db, id, wait=most, **asked))
        if claimed.outcome != 'claimed':
            return claimed
        answer = await settled(run(db))
        if answer.status >= 500:
            raise Refused(answer.status, answer.body, answer.headers)  # rolls back what a repeat should not be told
        answer.expires_at = await settled(complete(db, id, **answer.recorded()))
        return answer

    try:
        if not (scope := await settled(core.scope(request))):
            raise TypeError('scope() gave nothing: authenticate before, or raise Refused(401)')
        if (key := parse_key(lines)) is None:
            return core.problem('malformed' if lines else 'missing')
        id, asked = Id(scope, operation, key), {'body': body, 'params': params, 'ttl': route.ttl}
        if route.work:
            asked['state'] = await settled(route.state(request, body)) if route.state else None
            answer = await settled(run_leased(pool, id, route.work, wait=route.wait, step=route.step, lease=route.lease,
                                              hold_if_abandoned=route.hold_if_abandoned, **asked))
        else:
            answer = await settled(transaction(pool, attempt))
        if not isinstance(answer, Answer):  # there was no work
            answer = replayed(answer) if answer.outcome == 'replay' else core.problem(answer.outcome, vars(answer).get('retry_after_ms'))
    except Refused as refused:
        return refused.answer
    except Exception as error:
        if ALSO.get(kind(error), kind(error)) not in PROBLEMS:
            raise  # the framework's, as if this were not here
        return core.problem(kind(error))
    if core.lifetime_header and answer.expires_at:
        answer.headers.append(('Idempotency-Key-Expires', formatdate(answer.expires_at.timestamp(), usegmt=True)))
    return answer
