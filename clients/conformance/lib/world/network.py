"""The outside party: a card network that honours idempotency keys, and has its moods.

    well        charges, once for each key
    declined    answers 402
    silent      charges, and does not answer
    garbled     charges, and answers 500 with a large page that is no text
    refused     its port is closed

Beside it, requests to /before and /after are answered at once, or hang: that is where the test kills their sender.
"""

import json
import socket
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


# A NUL, bytes that are no UTF-8, half of a character at any place where somebody might cut, and more than can be recorded.
GARBLED = b'<html>\0\xff' + '\U0001F4B3'.encode() * 1_200_000


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100


class Network:
    def __init__(self, port):
        self.port = port
        self.changed = threading.Condition()
        self.mode, self.hang, self.next_charge = 'well', None, None
        self.hanging = None  # where a request hangs just now
        self.charges = {}  # (key, amount): what was asked for, and what became of it
        self.server = None
        self.open()

    def open(self):
        if self.server is None:
            self.server = Server(('127.0.0.1', self.port), self._handler())
            threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        if self.server is not None:
            self.server.shutdown()
            self.server.socket.shutdown(socket.SHUT_RDWR)
            self.server.server_close()
            self.server = None

    def change(self, mode=None, charge=None, **others):
        with self.changed:
            self.mode = mode or self.mode
            self.next_charge = charge or self.next_charge
            self.hang = others.get('hang', self.hang)
            self.changed.notify_all()
        (self.close if self.mode == 'refused' else self.open)()

    def pass_point(self, point):
        with self.changed:
            while self.hang == point:
                self.hanging = point
                self.changed.wait()
            self.hanging = None

    def charge(self, key, amount):
        """(status, answer), or None for no answer at all."""
        with self.changed:
            known = self.charges.setdefault((key, amount), {'key': key, 'amount': amount, 'charge': None, 'calls': 0})
            known['calls'] += 1
            if self.mode == 'declined':
                return 402, {'declined': True}
            if known['charge'] is None:
                known['charge'], self.next_charge = self.next_charge or 'ch_' + uuid.uuid4().hex, None
            if self.mode == 'silent':
                self.changed.wait_for(lambda: self.mode != 'silent')
                return None
            if self.mode == 'garbled':
                return 500, GARBLED
            return 200, {'charge': known['charge']}

    def _handler(network):  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                network.pass_point(self.path.partition('?')[0].strip('/'))
                self.answer(200, {})

            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
                answer = network.charge(asked['key'], asked['amount'])
                if answer:
                    self.answer(*answer)

            def answer(self, status, body):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                try:
                    self.send_response(status)
                    self.send_header('Content-Type', 'application/json')
                    self.send_header('Content-Length', str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # who asked was killed

            def log_message(self, *args):
                pass
        return Handler
