"""HTTP on raw sockets.

A test of header lines, duplicates, odd bytes and unfinished answers cannot use a library that tidies them up. One
connection for each request; a request can be sent now and its answer read later, so that fifty of them are under way
without a thread.
"""

import json
import select
import socket
import time
from urllib.parse import urlsplit

PATIENCE = [90]  # seconds until what does not come is a failure; not a speed that is asked for


class NoAnswer(Exception):
    """The connection ended, or patience did, before there was an answer."""


class Answer:
    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers  # [(name, value)], in order
        self.body = body

    def all(self, name):
        return [value for n, value in self.headers if n.lower() == name.lower()]

    def get(self, name):
        return ', '.join(self.all(name)) or None

    def json(self):
        try:
            return json.loads(self.body)
        except ValueError:
            raise AssertionError(f'no JSON in {self}') from None

    def replayed(self):
        return self.get('Idempotent-Replayed') == 'true'

    def __str__(self):
        return f'{self.status} {self.body[:200]!r}'


class Exchange:
    """A request that was sent."""

    def __init__(self, address, data):
        try:
            self.socket = socket.create_connection(address, timeout=PATIENCE[0])
        except OSError as error:
            raise NoAnswer(f'cannot connect to {address}: {error}') from None
        self.buffer = b''
        try:
            self.socket.sendall(data)
        except OSError:
            pass  # an answer may have come before all of the body was taken

    def has_begun(self, seconds):
        """Is there anything of the answer, or its end, after so long?"""
        return bool(select.select([self.socket], [], [], seconds)[0])

    def answer(self):
        deadline = time.monotonic() + PATIENCE[0]
        try:
            while True:
                head = self._until(b'\r\n\r\n', deadline)
                lines = head.decode('latin-1').split('\r\n')
                status = int(lines[0].split()[1])
                headers = [(n, v.strip()) for n, _, v in (line.partition(':') for line in lines[1:])]
                if status >= 200:
                    break
            answer = Answer(status, headers, b'')
            if 'chunked' in (answer.get('Transfer-Encoding') or '').lower():
                answer.body = self._chunks(deadline)
            elif answer.get('Content-Length') is not None:
                answer.body = self._exactly(int(answer.get('Content-Length')), deadline)
            elif status not in (204, 304):
                answer.body = self._rest(deadline)
            return answer
        finally:
            self.socket.close()

    def _more(self, deadline):
        self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = self.socket.recv(65536)
        except socket.timeout:
            raise NoAnswer('no answer in time') from None
        except OSError as error:
            raise NoAnswer(f'the connection broke: {error}') from None
        self.buffer += data
        return bool(data)

    def _until(self, end, deadline):
        while end not in self.buffer:
            if not self._more(deadline):
                raise NoAnswer('the connection ended before the answer')
        found, _, self.buffer = self.buffer.partition(end)
        return found

    def _exactly(self, length, deadline):
        while len(self.buffer) < length:
            if not self._more(deadline):
                raise NoAnswer('the connection ended within the answer')
        found, self.buffer = self.buffer[:length], self.buffer[length:]
        return found

    def _rest(self, deadline):
        while self._more(deadline):
            pass
        return self.buffer

    def _chunks(self, deadline):
        body = b''
        while True:
            length = int(self._until(b'\r\n', deadline).split(b';')[0], 16)
            if length == 0:
                while self._until(b'\r\n', deadline):
                    pass
                return body
            body += self._exactly(length, deadline)
            self._exactly(2, deadline)


class Client:
    """One service, by its URL."""

    def __init__(self, url):
        parts = urlsplit(url)
        self.address = parts.hostname, parts.port or 80
        self.prefix = parts.path.rstrip('/')

    def send(self, method, path, body=None, headers=()):
        """Headers are pairs of str or bytes, one line each, in order."""
        if isinstance(body, (dict, list)):
            body = json.dumps(body).encode()
            if not any(name == 'Content-Type' for name, _ in headers):
                headers = [('Content-Type', 'application/json'), *headers]
        host, port = self.address
        data = f'{method} {self.prefix}{path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n'.encode()
        for name, value in headers:
            data += name.encode() + b': ' + (value if isinstance(value, bytes) else value.encode()) + b'\r\n'
        if body is not None or method != 'GET':
            data += b'Content-Length: %d\r\n' % len(body or b'')
        return Exchange(self.address, data + b'\r\n' + (body or b''))

    def ask(self, *args, **options):
        return self.send(*args, **options).answer()
