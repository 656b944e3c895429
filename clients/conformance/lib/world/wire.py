"""What the proxy has to know of PostgreSQL's protocol: messages, and which of them ends a transaction."""

import re
import struct

CANCEL, SSL, GSS = 80877102, 80877103, 80877104  # codes in place of a protocol version

COMMIT = re.compile(rb'\s*(commit|end)\b', re.IGNORECASE)


class Stream:
    """One direction of a connection, read message by message."""

    def __init__(self, sock):
        self.file = sock.makefile('rb')

    def _read(self, length):
        data = self.file.read(length)
        if len(data) < length:
            raise EOFError
        return data

    def startup(self):
        """(code, bytes) of a message without a type, such as a client sends first."""
        length = self._read(4)
        rest = self._read(struct.unpack('!I', length)[0] - 4)
        return struct.unpack('!I', rest[:4])[0], length + rest

    def message(self):
        """(type, payload, bytes)"""
        head = self._read(5)
        payload = self._read(struct.unpack('!I', head[1:])[0] - 4)
        return head[:1], payload, head + payload


class Statements:
    """The statements of a client, so that what is prepared first and executed later is known, too."""

    def __init__(self):
        self.by_name = {}

    def is_commit(self, kind, payload):
        """Does this message make the server commit?"""
        if kind == b'Q':
            return bool(COMMIT.match(payload))
        if kind == b'P':
            name, query = payload.split(b'\0')[:2]
            self.by_name[name] = query
        elif kind == b'B':
            name = payload.split(b'\0')[1]
            return bool(COMMIT.match(self.by_name.get(name, b'')))
        return False
