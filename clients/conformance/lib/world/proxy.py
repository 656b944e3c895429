"""The way to the database, which can be closed, and can fail at the one point that matters: the end of a transaction.

A fault is about the first transaction in which all of its needles were sent, whatever they were part of: a key, a charge,
a word of the recorded headers. (Text, in the text or in the parameters of statements; numbers may travel in binary.) It
strikes once,

    before    its COMMIT, which does not reach the server
    after     its end, of whose answer the client gets nothing: that is the answer to the COMMIT, or to a statement that is
              a transaction by itself

and then the connection is cut, or held until the fault is cleared. Client and server see a connection that ended, and
neither knows what the other one has seen.
"""

import socket
import threading

from lib.world.wire import CANCEL, GSS, SSL, Statements, Stream


class Fault:
    def __init__(self, do, point, needles):
        self.do, self.point = do, point
        self.needles = [needle.encode() for needle in needles]
        self.state = 'armed'
        self.cleared = threading.Event()
        self.lock = threading.Lock()

    def strikes(self):
        with self.lock:
            armed, self.state = self.state == 'armed', 'struck'
            return armed


class Link:
    """One connection of a client, and its own to the server."""

    def __init__(self, proxy, client):
        self.proxy, self.client = proxy, client
        self.server = proxy.connect_server()
        self.statements = Statements()
        self.seen = set()  # needles, in the transaction that is open
        self.open = True

    def start(self):
        threading.Thread(target=self._run, args=(self._from_client,), daemon=True).start()
        threading.Thread(target=self._run, args=(self._from_server,), daemon=True).start()

    def close(self):
        self.open = False
        self.proxy.links.discard(self)
        for sock in (self.client, self.server):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it is closed

    def _run(self, pump):
        try:
            pump()
        except (OSError, EOFError, ValueError):
            pass  # either end went away
        self.close()

    def _from_client(self):
        stream = Stream(self.client)
        code, data = stream.startup()
        while code in (SSL, GSS):
            self.client.sendall(b'N')
            code, data = stream.startup()
        self.server.sendall(data)
        if code == CANCEL:
            self.server.recv(1)  # the server closes when it has done so
            return
        while True:
            kind, payload, data = stream.message()
            fault = self.proxy.fault
            if fault:
                self.seen.update(needle for needle in fault.needles if needle in payload)
            is_commit = self.statements.is_commit(kind, payload)
            if is_commit and self._is_struck('before'):
                self._suffer(fault)
            self.server.sendall(data)

    def _from_server(self):
        stream = Stream(self.server)
        answer = b''  # kept until it is known whether it ends the transaction
        while True:
            kind, payload, data = stream.message()
            answer += data
            ready = kind == b'Z'
            if ready and payload == b'I':
                fault = self.proxy.fault
                if self._is_struck('after'):
                    self._suffer(fault)
                self.seen.clear()
            if ready or not self._is_concerned('after'):
                self.client.sendall(answer)
                answer = b''

    def _is_concerned(self, point):
        fault = self.proxy.fault
        return bool(fault) and fault.state == 'armed' and fault.point == point and self.seen.issuperset(fault.needles)

    def _is_struck(self, point):
        return self._is_concerned(point) and self.proxy.fault.strikes()

    def _suffer(self, fault):
        if fault.do == 'cut':
            self.close()
        while self.open:
            cleared = fault.cleared.wait(0.05)
            if self._client_is_gone():
                self.close()
            elif cleared:
                return
        raise EOFError

    def _client_is_gone(self):
        try:
            return self.client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b''
        except BlockingIOError:
            return False


class Proxy:
    def __init__(self, host, port, listen_port):
        self.target = f'{host}/.s.PGSQL.{port}' if host.startswith('/') else (host, int(port))
        self.port = listen_port
        self.listener = None
        self.links = set()
        self.fault = None
        self.lock = threading.Lock()

    def connect_server(self):
        server = socket.socket(socket.AF_UNIX if isinstance(self.target, str) else socket.AF_INET)
        server.connect(self.target)
        return server

    def up(self):
        with self.lock:
            if self.listener is None:
                self.listener = socket.create_server(('127.0.0.1', self.port), backlog=200)
                threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def down(self):
        """Nobody can connect, and who was connected is not any more."""
        with self.lock:
            if self.listener is not None:
                self.listener.shutdown(socket.SHUT_RDWR)  # close() alone would not wake accept()
                self.listener.close()
                self.listener = None
            for link in list(self.links):
                link.close()

    def _accept(self, listener):
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                link = Link(self, client)
            except OSError:  # the server is not there
                client.close()
                continue
            self.links.add(link)
            if self.listener is not listener:
                link.close()
            link.start()

    def set_fault(self, do, point, needles):
        self.clear_fault()
        self.fault = Fault(do, point, needles)

    def clear_fault(self):
        fault, self.fault = self.fault, None
        if fault:
            fault.cleared.set()
