"""The control URLs: JSON in, JSON out, so that the test knows nothing but URLs."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Control(ThreadingHTTPServer):
    """routes: {(method, path): function of the members of the request}"""

    daemon_threads = True

    def __init__(self, routes):
        self.routes = routes
        super().__init__(('127.0.0.1', 0), Handler)

    def handle_error(self, *args):
        pass  # who asked went away


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer('GET', {})

    def do_POST(self):
        self.answer('POST', json.loads(self.rfile.read(int(self.headers['Content-Length']))))

    def answer(self, method, members):
        try:
            function = self.server.routes[method, self.path]
            status, answer = 200, function(**members)
        except Exception as error:
            status, answer = 500, f'{type(error).__name__}: {error}'
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass
