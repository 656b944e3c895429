"""An answer: status, body and headers; what of it is recorded, and how it comes back byte for byte."""
import json
import re

# About the connection, the moment or the session: never replayed.
PASSING = {'set-cookie', 'date', 'content-length', 'connection', 'transfer-encoding', 'keep-alive', 'server', 'idempotent-replayed'}

class Answer:
    """The body is bytes, text, or a value that is made JSON. book(connection) writes beside the record of leased work."""
    def __init__(self, status=200, body=b'', headers=(), book=lambda connection: None, expires_at=None):
        self.status, self.headers, self.book, self.expires_at = status, [(name, str(value)) for name, value in headers], book, expires_at
        if not isinstance(body, (bytes, str)):
            body = json.dumps(body)
            self.headers += [] if self.header('content-type') else [('Content-Type', 'application/json')]
        self.body = body.encode() if isinstance(body, str) else body

    def header(self, wanted):
        return next((value for name, value in self.headers if name.lower() == wanted), '')

    def recorded(self):
        """As options of complete(): text where it is text, so that a person can read the row; bytes otherwise."""
        utf8 = b'\0' not in self.body and self.body.decode(errors='ignore').encode() == self.body
        text = utf8 and re.match(r'text/|.*[/+](json|xml)\b', self.header('content-type')) and not self.header('content-encoding')
        return {'response_status': self.status, 'response_headers': [pair for pair in self.headers if pair[0].lower() not in PASSING],
                **({'response_body': self.body.decode()} if text else {'response_bytes': self.body})}

class Refused(Exception):
    """Refused(status, body, headers): an answer for good, such as a card that was declined."""
    answer = property(lambda self: Answer(*self.args))

def replayed(row):
    headers = row.response_headers or []
    pairs = headers if isinstance(headers, list) else [  # an object, as other programs record it, whose values may be lists
        (name, one) for name, value in headers.items() for one in (value if isinstance(value, list) else [value])]
    body = row.response_body if row.response_bytes is None else row.response_bytes
    return Answer(row.response_status or 200, body or b'', [*pairs, ('Idempotent-Replayed', 'true')], expires_at=row.expires_at)
