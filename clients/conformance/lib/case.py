"""What a case is: a function that raises when it is not so.

Cases register themselves in the order of the files. Each uses accounts and keys of its own, so that none depends on what
an earlier one left behind, and counts what was done through the service's own GET, or through the host.
"""

import time
import uuid

from lib.client import PATIENCE, NoAnswer

CASES = []  # (name, function, needs a host)


def case(name, host=False):
    def register(function):
        CASES.append((name, function, host))
        return function
    return register


def expect(condition, why):
    if not condition:
        raise AssertionError(str(why))


def wait_for(what, look):
    """Looks until there is something to see."""
    deadline = time.monotonic() + PATIENCE[0]
    while True:
        seen = look()
        if seen:
            return seen
        expect(time.monotonic() < deadline, f'waited in vain for: {what}')
        time.sleep(0.05)


class Shop:
    """The service as one user sees it."""

    def __init__(self, client, host, user=None):
        self.client = client
        self.host = host
        self.user = user or 'u' + uuid.uuid4().hex[:12]

    def other_user(self):
        return Shop(self.client, self.host)

    def key(self):
        return str(uuid.uuid4())

    def send(self, path, body, key=None, headers=(), method='POST'):
        """key: text, sent in quotes; or bytes, sent as they are."""
        lines = [('Authorization', 'Bearer ' + self.user), *headers]
        if key is not None:
            lines.append(('Idempotency-Key', key if isinstance(key, bytes) else f'"{key}"'))
        return self.client.send(method, path, body, lines)

    def post(self, path, body, key=None, headers=()):
        return self.send(path, body, key, headers).answer()

    def order(self, key=None, item=7, headers=(), path='/orders'):
        return self.post(path, {'item': item}, key or self.key(), headers)

    def get(self, path, key=None):
        return self.send(path, None, key, method='GET').answer()

    def orders(self):
        if self.host:
            return self.host.rows(self.user)['orders']
        return self.get('/orders').json()['orders']

    def finally_(self, path, body, key, headers=()):
        """The answer after all retries that a client is asked to make."""
        def attempt():
            try:
                answer = self.post(path, body, key, headers)
            except NoAnswer:
                return None
            return None if may_retry(answer) else answer
        return wait_for(f'a final answer of POST {path}', attempt)


def may_retry(answer):
    return answer.status in (409, 503) and answer.get('Retry-After') is not None


def expect_created(answer, replayed=None):
    expect(answer.status == 201, f'expected 201, not {answer}')
    if replayed is not None:
        expect(answer.replayed() == replayed, f'Idempotent-Replayed is {answer.get("Idempotent-Replayed")}')


def expect_problem(answer, status, kind, title=None):
    """problem+json with the type #kind; and Retry-After where it is promised, and only there."""
    expect(answer.status == status, f'expected {status} #{kind}, not {answer}')
    content_type = answer.get('Content-Type') or ''
    expect(content_type.startswith('application/problem+json'), f'Content-Type: {content_type}')
    problem = answer.json()
    expect(str(problem.get('type', '')).endswith('#' + kind), f'type {problem.get("type")}, expected #{kind}')
    expect(problem.get('title') == title if title else problem.get('title'), f'title: {problem.get("title")!r}')
    expect(problem.get('status') == status and problem.get('detail'), f'status or detail is missing in {problem}')
    if kind in ('in-progress', 'unavailable'):
        expect_retry_after(answer)
    else:
        expect(answer.get('Retry-After') is None, f'Retry-After with #{kind}')
    if status == 400:
        link = answer.get('Link') or ''
        expect(link.startswith('<') and 'rel="describedby"' in link and 'type="text/html"' in link, f'Link: {link}')


def expect_retry_after(answer):
    value = answer.get('Retry-After') or ''
    expect(value.isdigit() and int(value) >= 1, f'Retry-After is {value!r} with {answer}')


def expect_in_progress(answer):
    expect_problem(answer, 409, 'in-progress', 'A request is outstanding for this Idempotency-Key')


def expect_mismatch(answer):
    expect_problem(answer, 422, 'mismatch', 'Idempotency-Key is already used')


def expect_orders(shop, number):
    found = shop.orders()
    expect(found == number, f'{found} orders instead of {number}')
