"""Runs shop.py against the database that the PG* variables name."""

import json
import threading

import psycopg2

from idempotency_pg import NothingHappened, Refused
from shop import Pool, Request, on_event, shop


class Network:
    """A card network that honours the key that it is given."""

    def __init__(self):
        self.charges = {}
        self.mood = 'well'

    def charge(self, key, amount):
        if self.mood == 'refused':
            raise NothingHappened('connection refused')
        if self.mood == 'declined':
            raise Refused(402, 'card declined')
        charge = self.charges.setdefault(key, f'ch_{len(self.charges) + 1}')
        if self.mood == 'silent':
            raise TimeoutError('no answer')
        return charge


def check(what, got, expected):
    if got != expected:
        raise SystemExit(f'FAILED {what}: got {got!r}, expected {expected!r}')
    print(f'ok  {what}')


def one(connection, statement, *values):
    with connection, connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchone()[0]


def post(path, key, request):
    """(status, whether it is a replay, body)."""
    answer = application(Request('python', path, [] if key is None else [key], json.dumps(request).encode()))
    return answer.status, answer.header('idempotent-replayed') == 'true', answer.body.decode()


def post_order(key, item):
    return post('/orders', key, {'item': item})


def post_charge(key, amount):
    return post('/charges', key, {'amount': amount})


pool = Pool()
network = Network()
application = shop(pool, network)
connection = psycopg2.connect('')
with connection, connection.cursor() as cursor:
    cursor.execute("""
        SET client_min_messages = warning;
        CREATE EXTENSION IF NOT EXISTS idempotency;
        DROP SCHEMA IF EXISTS example_python CASCADE;
        CREATE SCHEMA example_python;
        CREATE TABLE example_python.orders (id int GENERATED ALWAYS AS IDENTITY, account text, item int);
        CREATE TABLE example_python.payments (account text, charge text, amount int);
        CREATE TABLE example_python.ledger (event text, amount int);
        SELECT idempotency.forget_scope('python', force => true), idempotency.forget('provider', 'webhook', 'evt_python')""")

# 1. the HTTP handler
key = '"8e03978e-40d5-43dd-bc93-6894a57f9324"'
check('first request', post_order(key, 7), (201, False, '{"order": 1}'))
check('repeat, without quotes', post_order(key.strip('"'), 7), (201, True, '{"order": 1}'))
check('another request', post_order(key, 8)[0], 422)
check('no key', post_order(None, 8)[0], 400)

answers = []
threads = [threading.Thread(target=lambda: answers.append(post_order('at-once', 9))) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
check('four at the same time, one answer', {(status, body) for status, _, body in answers}, {(201, '{"order": 2}')})
check('one of them did the work', sum(not replayed for _, replayed, _ in answers), 1)
check('two orders in all', one(connection, 'SELECT count(*) FROM example_python.orders'), 2)

# 2. the charge
check('charge', post_charge('c-1', 5), (201, False, '{"charge": "ch_1"}'))
check('repeat', post_charge('c-1', 5)[:2], (201, True))
network.mood = 'refused'
check('nothing sent', post_charge('c-2', 6)[0], 503)
network.mood = 'well'
check('so it may be tried again', post_charge('c-2', 6)[0], 201)
network.mood = 'declined'
check('declined', post_charge('c-3', 7)[0], 402)
network.mood = 'well'
check('declined stays declined', post_charge('c-3', 7)[0], 402)
network.mood = 'silent'
check('no answer: held', post_charge('c-4', 8)[0], 409)
network.mood = 'well'
check('held stays held', post_charge('c-4', 8)[0], 409)
check('three charges in all', len(network.charges), 3)

# The connection is lost, where t/060_examples.pl stands in between: before the answer to the claim, in the middle of
# the booking, and before the answer to its commit.
for lost in 'lost-claim', 'lost-booking', 'lost-commit':
    check(lost, post_charge(lost, 1)[0], 201)
check('each charged once', len(network.charges), 6)
check('and booked once', one(connection, 'SELECT count(*) FROM example_python.payments WHERE amount = 1'), 3)

# A person asks the network with the same key, hears that it was charged, and records that.
effect_key = one(connection, "SELECT idempotency.effect_key('python', 'POST /charges', 'c-4', 'charge')")
token = one(connection, "SELECT token FROM idempotency.abandoned WHERE scope = 'python' AND key = 'c-4'")
one(connection, "SELECT idempotency.complete('python', 'POST /charges', 'c-4', 201, %s, token => %s)",
    network.charges[effect_key], token)
check('decided', post_charge('c-4', 8)[2], 'ch_3')

# 3. the webhook
check('event', on_event(pool, {'id': 'evt_python', 'amount': 3}), True)
check('again', on_event(pool, {'id': 'evt_python', 'amount': 3}), False)
check('booked once', one(connection, 'SELECT count(*) FROM example_python.ledger'), 1)

# 4. autocommit: the claim would end with its own statement
connection.autocommit = True
try:
    with connection.cursor() as cursor:
        cursor.execute("SELECT outcome FROM idempotency.claim('python', 'POST /orders', 'autocommit')")
    state = None
except psycopg2.Error as error:
    state = error.pgcode
check('a claim in autocommit fails', state, 'IK004')
print('all well')
