"""Clients that ask for work, ask again until they are answered, and remember what they were told.

Four kinds of requests, each asked for by two clients:

book      claim, a row of work and complete() in one transaction
once      once() and a row of work in one transaction
honours   a claim with a lease; an outside party that honours effect_key; then the row of
          work and complete() in one transaction, often seconds later
plain     the same with a party that takes no key

An acknowledgement is the answer that a client was given: that of its own work once COMMIT
has returned, or a replayed one. It is never believed because something ought to be so, and
a request whose answer was lost is asked for again with the same key.
"""
import collections
import heapq
import http.server
import itertools
import json
import random
import threading
import time
import urllib.request
import uuid

import psycopg

KINDS = ('book', 'honours', 'once', 'plain')
SCOPE = 'failover'

SCHEMA = '''
CREATE EXTENSION idempotency;
CREATE TABLE work (key text NOT NULL, answer text NOT NULL);
'''


class Party:
    """The outside: a service that is asked over HTTP. At /honours a request with a key that it
    knows gets the first answer again; at /plain every request is carried out."""

    def __init__(self):
        self.carried_out = collections.Counter()
        self.answers = {}
        self.lock = threading.Lock()
        party = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
                text = party.carry_out(body['request'], self.headers['Idempotency-Key'] if self.path == '/honours' else None).encode()
                self.send_response(200)
                self.send_header('Content-Length', str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def carry_out(self, request, key):
        with self.lock:
            if key is None or key not in self.answers:
                self.carried_out[request] += 1
                self.answers[key] = f'{request} carried out for the {self.carried_out[request]}. time'
            return self.answers[key]

    def ask(self, kind, request, effect_key):
        message = urllib.request.Request(f'http://127.0.0.1:{self.server.server_address[1]}/{kind}', method='POST',
                                         data=json.dumps({'request': request}).encode(), headers={'Idempotency-Key': effect_key})
        with urllib.request.urlopen(message, timeout=60) as answer:
            return answer.read().decode()


class History:
    """What the clients know, whatever becomes of the servers."""

    def __init__(self):
        self.lock = threading.Lock()
        self.requests = {}      # key -> kind
        self.acknowledged = {}  # key -> [(when, answer)]
        self.tokens = {}        # key -> {token: claim_id}
        self.same_token = []    # what may not be
        self.refused = collections.Counter()
        self.times = []

    def ask(self, key, kind):
        with self.lock:
            self.requests[key] = kind

    def acknowledge(self, key, answer):
        now = time.monotonic()
        with self.lock:
            self.acknowledged.setdefault(key, []).append((now, answer))
            self.times.append(now)

    def give(self, key, token, claim_id):
        with self.lock:
            other = self.tokens.setdefault(key, {}).setdefault(token, claim_id)
            if other != claim_id:
                self.same_token.append((key, token))

    def outage(self, began, ended):
        """The longest time without an answer between the two."""
        times = [began] + sorted(at for at in self.times if began < at < ended)
        return max(after - before for before, after in zip(times, times[1:]))

    def first_after(self, moment):
        with self.lock:
            return min((at for at in self.times if at > moment), default=None)


class Ask:
    """One who asks for a request, until it is answered; with a lease, the attempt's uuid and
    the token of its claim, and with that the answer that is not recorded yet."""

    def __init__(self, kind, key, lease):
        self.kind, self.key = kind, key
        self.token = self.answer = None
        # With a short lease it happens that somebody takes over while the owner is late. Where
        # the party takes no key that alone would do the work twice, so there the lease is long.
        self.lease = '3 s' if kind == 'honours' and random.random() < 0.5 else lease
        self.new_attempt()

    def new_attempt(self):
        self.claim_id = uuid.uuid4()


class Client(threading.Thread):
    """One connection, one request at a time; completions fall due in between."""

    numbers = itertools.count()

    def __init__(self, load):
        super().__init__(daemon=True)
        self.load, self.history, self.party = load, load.history, load.party
        self.name = f'client {next(self.numbers)}'
        self.connection = None
        self.due = []
        self.order = itertools.count()
        self.error = None
        self.random = random.Random(self.name)

    def run(self):
        try:
            while not self.load.ended:
                if self.due and self.due[0][0] <= time.monotonic():
                    self._complete(heapq.heappop(self.due)[2])
                else:
                    ask = self.load.next_ask()
                    if ask:
                        self._attempt(ask)
                time.sleep(self.random.uniform(0.005, 0.03))
        except Exception as error:  # a mistake of the test, or an answer that nobody may get
            self.error = error
            self.load.errors.append(f'{self.name}: {type(error).__name__}: {error}')
        finally:
            if self.connection:
                self.connection.close()

    def _query(self, sql, *values):
        cursor = self.connection.execute(sql, values)
        return cursor.fetchone() if cursor.description else None

    def _attempt(self, ask):
        """Asks once; what got no answer goes back, to be asked for by whichever client."""
        answered = False
        try:
            if self.connection is None:
                self.connection = self.load.cluster.connect()
            answered = getattr(self, f'_{ask.kind}')(ask)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.SerializationFailure):
            pass
        except psycopg.OperationalError:
            self._lost()
        if answered:
            self.load.has_answered()
        else:
            self.load.again(0.3, ask)

    def _lost(self):
        if self.connection:
            self.connection.close()
        self.connection = None
        time.sleep(0.2)

    def _new_answer(self, key):
        return f'{key} of {self.name}, {next(self.order)}'

    def _book(self, ask):
        with self.connection.transaction():
            outcome, body = self._query('SELECT outcome, response_body FROM idempotency.claim(%s, %s, %s)', SCOPE, ask.kind, ask.key)
            if outcome == 'claimed':
                body = self._new_answer(ask.key)
                self._query('INSERT INTO work VALUES (%s, %s)', ask.key, body)
                self._query('SELECT idempotency.complete(%s, %s, %s, 201, %s)', SCOPE, ask.kind, ask.key, body)
        if outcome not in ('claimed', 'replay'):
            return False
        self.history.acknowledge(ask.key, body)
        return True

    def _once(self, ask):
        body = None  # "done before" names no answer
        with self.connection.transaction():
            first, = self._query('SELECT idempotency.once(%s, %s, %s)', SCOPE, ask.kind, ask.key)
            if first:
                body = self._new_answer(ask.key)
                self._query('INSERT INTO work VALUES (%s, %s)', ask.key, body)
        self.history.acknowledge(ask.key, body)
        return True

    def _honours(self, ask):
        outcome, token, body, effect_key = self._query(
            'SELECT outcome, token, response_body, idempotency.effect_key(%s, %s, %s)'
            ' FROM idempotency.claim(%s, %s, %s, lease => %s::interval, claim_id => %s)',
            SCOPE, ask.kind, ask.key, SCOPE, ask.kind, ask.key, ask.lease, ask.claim_id)
        if outcome == 'replay':
            self.history.acknowledge(ask.key, body)
            return True
        if outcome != 'claimed':
            return False
        self.history.give(ask.key, token, ask.claim_id)
        self.party.ask(ask.kind, ask.key, effect_key)
        ask.token, ask.answer = token, self._new_answer(ask.key)
        self._is_due(ask, self.random.uniform(0, 5) if self.random.random() < 0.4 else 0)
        self.load.more_due(1)
        return True

    _plain = _honours

    def _is_due(self, ask, delay):
        heapq.heappush(self.due, (time.monotonic() + delay, next(self.order), ask))

    def _complete(self, ask):
        try:
            if self.connection is None:
                self.connection = self.load.cluster.connect()
            with self.connection.transaction():
                self._query('INSERT INTO work VALUES (%s, %s)', ask.key, ask.answer)
                self._query('SELECT idempotency.complete(%s, %s, %s, 201, %s, token => %s, refuse_repeat => true)',
                            SCOPE, ask.kind, ask.key, ask.answer, ask.token)
        except psycopg.errors.ReadOnlySqlTransaction:
            self._is_due(ask, 0.3)
        except psycopg.OperationalError:
            self._lost()
            self._is_due(ask, 0.3)
        except psycopg.Error as error:
            if not (error.sqlstate or '').startswith('IK'):
                raise
            # Its own COMMIT whose answer was lost, or somebody else's work, or the claim was
            # lost: another attempt tells.
            with self.history.lock:
                self.history.refused[f'{error.sqlstate} {error.diag.constraint_name or ""}'.strip()] += 1
            ask.new_attempt()
            self.load.again(0, ask, was_due=True)
        else:
            self.history.acknowledge(ask.key, ask.answer)
            self.load.more_due(-1)


class Load:
    """So many clients, and the requests that wait for one of them."""

    def __init__(self, cluster, party, name, lease, clients=8):
        self.cluster, self.party, self.name, self.lease = cluster, party, name, lease
        self.history = History()
        self.errors = []
        self.lock = threading.Lock()
        self.waiting = []
        self.number = itertools.count(1)
        self.order = itertools.count()
        self.busy = 0
        self.due = 0
        self.fresh = True
        self.ended = False
        self.clients = [Client(self) for _ in range(clients)]
        for client in self.clients:
            client.start()

    def next_ask(self):
        with self.lock:
            if self.waiting and self.waiting[0][0] <= time.monotonic():
                self.busy += 1
                return heapq.heappop(self.waiting)[2]
            if not self.fresh:
                return None
            number = next(self.number)
            kind = KINDS[number % len(KINDS)]
            key = f'{self.name} {number}'
            self.busy += 1
            # Asked for once more, by whichever client, at once or a while later.
            self._push(random.choice((0, 0, random.uniform(0, 3))), Ask(kind, key, self.lease))
        self.history.ask(key, kind)
        return Ask(kind, key, self.lease)

    def _push(self, delay, ask):
        heapq.heappush(self.waiting, (time.monotonic() + delay, next(self.order), ask))

    def has_answered(self):
        with self.lock:
            self.busy -= 1

    def again(self, delay, ask, was_due=False):
        with self.lock:
            self._push(delay, ask)
            if was_due:
                self.due -= 1
            else:
                self.busy -= 1

    def more_due(self, number):
        with self.lock:
            self.due += number

    def no_more_new(self):
        """From now on only what was asked for before is asked for again: all of it."""
        with self.lock:
            self.fresh = False
        with self.history.lock:
            requests = list(self.history.requests.items())
        with self.lock:
            for key, kind in requests:
                self._push(0, Ask(kind, key, self.lease))

    def describe(self):
        """What is left to do, where it does not come to its end."""
        with self.lock:
            return f'{len(self.waiting)} waiting, such as {[ask.key for _, _, ask in self.waiting[:5]]}, {self.due} due, {self.busy} busy'

    def is_answered(self):
        with self.lock:
            return self.errors or not (self.waiting or self.due or self.busy)

    def end(self):
        self.ended = True
        for client in self.clients:
            client.join(60)
