"""The conformance service (spec.md) on the standard library and psycopg2: what the conformance test is tested with.

--break GUARD leaves one guard out.
"""

import json
import os
import re
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg2

from middleware import Idempotency, NothingHappened, Pool, Refused
from shop_http import Answer, Problem, key_of

BROKEN = sys.argv[sys.argv.index('--break') + 1]
NETWORK = os.environ['NETWORK_URL']
PREPARED = set()

pool = Pool(int(os.environ['POOL_SIZE']), BROKEN)
idempotency = Idempotency(pool, os.environ['LEASE'], os.environ['WAIT'], BROKEN)


# ---- handlers, in the claim's transaction ----

def insert_order(cursor, account, item):
    if BROKEN == 'atomic':
        return one('INSERT INTO shop.orders (account, item) VALUES (%s, %s) RETURNING id', account, item)
    if BROKEN == 'prepared':
        if cursor.connection not in PREPARED:
            cursor.execute(
                'PREPARE insert_order AS INSERT INTO shop.orders (account, item) VALUES ($1, $2) RETURNING id')
            PREPARED.add(cursor.connection)
        cursor.execute('EXECUTE insert_order (%s, %s)', (account, item))
        return cursor.fetchone()[0]
    cursor.execute('INSERT INTO shop.orders (account, item) VALUES (%s, %s) RETURNING id', (account, item))
    return cursor.fetchone()[0]


def order(cursor, request):
    fail = request.headers.get('X-Fail')
    body = json.loads(request.body)
    if fail == 'refuse':
        return Answer(402, {'refused': True})
    number = insert_order(cursor, request.account, body['item'])
    if fail == 'throw':
        if BROKEN == 'throw':
            return Answer(201, {'order': number})
        raise RuntimeError('the handler was asked to throw')
    if fail == '503':
        return Answer(503, {'busy': True})
    time.sleep(body.get('pause_ms', 0) / 1000)
    return Answer(201, {'order': number}, [
        ('Location', f'/orders/{number}'), ('Link', '</a>; rel=a'), ('Link', '</b>; rel=b'),
        ('Set-Cookie', f'session={uuid.uuid4().hex}'), ('X-Request', uuid.uuid4().hex)])


def refund(cursor, request):
    return Answer(201, {'refund': insert_order(cursor, request.account, int(request.params['id']))})


def blob(cursor, request):
    insert_order(cursor, request.account, 0)
    names = ('Content-Type', 'Content-Encoding')
    return Answer(201, request.body, [(n, request.headers[n]) for n in names if request.headers.get(n)])


# ---- charges, outside of it ----

def charge(effect_key, state):
    try:
        urllib.request.urlopen(f'{NETWORK}/before?key={effect_key}').close()
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
            raise NothingHappened from None
        raise
    asked = {'key': effect_key, 'amount': state['amount']}
    request = urllib.request.Request(f'{NETWORK}/charges', json.dumps(asked).encode())
    try:
        with urllib.request.urlopen(request, timeout=float(os.environ['NETWORK_TIMEOUT'])) as answer:
            number = json.load(answer)['charge']
    except urllib.error.HTTPError as error:
        if error.code == 402:
            raise Refused(Answer(402, {'declined': True})) from None
        raise RuntimeError(f'the network answered {error.code}: {error.read().decode(errors="replace")}') from None
    urllib.request.urlopen(f'{NETWORK}/after?key={effect_key}').close()
    return number


def book(cursor, state, number):
    cursor.execute('INSERT INTO shop.payments (account, charge, amount) VALUES (%s, %s, %s)',
                   (state['account'], number, state['amount']))
    if BROKEN == 'booking':
        cursor.connection.commit()


# ---- GET ----

def one(statement, *values):
    with pool.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchone()[0]


def visits(cursor, request):
    cursor.execute('INSERT INTO shop.visits (account) VALUES (%s)', (request.account,))
    cursor.execute('SELECT count(*) FROM shop.visits WHERE account = %s', (request.account,))
    return Answer(200, {'visits': cursor.fetchone()[0]})


def health():
    try:
        healthy = one("SELECT NOT EXISTS (SELECT FROM idempotency.health() WHERE status = 'critical')")
    except psycopg2.Error:
        healthy = False
    return Answer(200 if healthy else 503, {'healthy': healthy})


HANDLERS = {'/orders': order, '/waiting-orders': order, '/orders/{id}/refunds': refund, '/blobs': blob, '/charges': None}
ROUTES = [(re.compile(re.sub(r'{(\w+)}', r'(?P<\1>[^/]+)', template) + '$'), 'POST ' + template, handler)
          for template, handler in HANDLERS.items()]


class Handler(BaseHTTPRequestHandler):
    def send(self, answer):
        if self.answered:
            return
        self.answered = True
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)
        if BROKEN == 'hold-back-answer':
            self.wfile.flush()

    def guarded(self, work):
        self.answered = False
        try:
            length = int(self.headers.get('Content-Length') or 0)
            self.body = self.rfile.read(length)
            if BROKEN == 'limit':
                self.body = self.body[:100000]
            if self.path == '/health':
                return self.send(health())
            bearer = (self.headers.get('Authorization') or '').partition('Bearer ')
            self.account = bearer[2] or ('anybody' if BROKEN == 'user' else '')
            if not self.account:
                return self.send(Answer(401, {'error': 'no user'}))
            work()
        except Problem as problem:
            self.send(problem.answer(BROKEN))
        except Exception as error:
            print(f'{self.path}: {error!r}', flush=True)
            self.send(Answer(500, {'error': 'internal'}))

    def do_GET(self):
        self.guarded(self.get)

    def get(self):
        if self.path == '/orders':
            self.send(Answer(200, {'orders': one('SELECT count(*) FROM shop.orders WHERE account = %s', self.account)}))
        elif self.path == '/visits' and BROKEN == 'get' and self.headers.get('Idempotency-Key'):
            self.claimed('GET /visits', visits)
        elif self.path == '/visits':
            with pool.cursor() as cursor:
                answer = visits(cursor, self)
            self.send(answer)
        else:
            self.send(Answer(404, {}))

    def do_POST(self):
        self.guarded(self.post)

    def post(self):
        for pattern, operation, handler in ROUTES:
            found = pattern.match(self.path)
            if found:
                self.params = found.groupdict()
                return self.claimed(operation, handler)
        return self.send(Answer(404, {}))

    def claimed(self, operation, handler):
        key = key_of(self.headers.get_all('Idempotency-Key'), BROKEN)
        scope = 'shop:all' if BROKEN == 'scope' else 'shop:' + self.account
        id = scope, 'POST' if BROKEN == 'operation' else operation, key
        if handler:
            idempotency.same_transaction(id, self.body, getattr(self, 'params', None),
                                         operation == 'POST /waiting-orders' and BROKEN != 'wait',
                                         lambda cursor: handler(cursor, self), self.send)
        else:
            state = {'account': self.account, 'amount': json.loads(self.body)['amount']}
            self.send(idempotency.leased(id, self.body, state, charge, book))

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 200


server = Server(('127.0.0.1', int(os.environ['PORT'])), Handler)
threading.Thread(target=idempotency.completer, args=('POST /charges', charge, book), daemon=True).start()
print('listening', flush=True)
server.serve_forever()
