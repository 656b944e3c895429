"""The HTTP core of the reference service: keys, problems, and what is recorded of an answer."""

import json
import math
import re

DOCUMENTATION = 'https://developer.example.com/idempotency'

STRING = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"'
                    r'(?: *; *[a-z*][a-z0-9_.*-]*(?:=(?:"(?:[^"\\]|\\.)*"|[^",;\s]+))?)*$')
TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+./:^_`|~=@-]+$")

TITLES = {
    'missing': 'Idempotency-Key is missing',
    'malformed': 'Idempotency-Key is malformed',
    'in-progress': 'A request is outstanding for this Idempotency-Key',
    'mismatch': 'Idempotency-Key is already used',
    'held': 'The outcome for this Idempotency-Key is being looked into',
    'too-large': 'The answer is too large to be recorded',
    'unavailable': 'The service is not available',
}

NEVER_RECORDED = {'set-cookie', 'date', 'content-length', 'connection', 'transfer-encoding', 'keep-alive', 'server',
                  'idempotent-replayed'}


class Answer:
    def __init__(self, status, body=b'', headers=()):
        self.status, self.headers = status, list(headers)
        self.body = body
        if not isinstance(body, bytes):
            self.body = json.dumps(body).encode()
            self.headers.insert(0, ('Content-Type', 'application/json'))


class Problem(Exception):
    """An answer that is nobody's work."""

    def __init__(self, status, kind, detail, retry_after=None):
        self.status, self.kind, self.detail, self.retry_after = status, kind, detail, retry_after

    def answer(self, broken):
        if broken == 'problem':
            return Answer(self.status, self.detail.encode(), [('Content-Type', 'text/plain')])
        body = {'type': f'{DOCUMENTATION}#{self.kind}', 'title': TITLES[self.kind],
                'status': self.status, 'detail': self.detail}
        headers = [('Content-Type', 'application/problem+json')]
        if self.status == 400:
            headers.append(('Link', f'<{DOCUMENTATION}>; rel="describedby"; type="text/html"'))
        if self.retry_after is not None and broken != 'retry-after':
            headers.append(('Retry-After', str(max(1, math.ceil(self.retry_after)))))
        return Answer(self.status, json.dumps(body).encode(), headers)


def key_of(lines, broken):
    """The key of all lines of the header."""
    if not lines:
        if broken == 'missing':
            return 'none'
        raise Problem(400, 'missing', 'This operation needs an Idempotency-Key.')
    text = lines[0].strip()
    if broken == 'quotes':
        return text.split(';')[0].strip() or 'none'
    found = STRING.match(text)
    key = re.sub(r'\\(.)', r'\1', found[1]) if found else text if TOKEN.match(text) else ''
    if broken == 'escapes' and found:
        key = found[1]
    if broken == 'malformed':
        return text.strip('"') or 'none'
    if (not key or len(key) > 255 and broken != 'length') or (len(lines) > 1 and broken != 'lines'):
        raise Problem(400, 'malformed', 'An Idempotency-Key is one string of 1 to 255 characters in double quotes.')
    return key


def to_record(answer, broken):
    """(headers, text, bytes) as complete() takes them."""
    headers = [[n, v] for n, v in answer.headers if n.lower() not in NEVER_RECORDED or broken == 'cookies']
    if broken == 'order':
        headers = sorted(headers, reverse=True)
    names = {n.lower(): v for n, v in answer.headers}
    if 'content-encoding' not in names and re.match(r'text/|application/(.*\+)?(json|xml)', names.get('content-type', '')):
        try:
            text = answer.body.decode('latin-1' if broken == 'text' else 'utf-8')
            if '\0' not in text:
                return json.dumps(headers), text, None
        except ValueError:
            pass
    if broken == 'empty' and not answer.body:
        return json.dumps(headers), 'null', None
    if broken == 'bytes':
        return json.dumps(headers), answer.body.decode(errors='replace').replace('\0', ''), None
    return json.dumps(headers), None, answer.body
