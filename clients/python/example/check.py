"""Runs shop.py against the database that the PG* variables name."""

import threading

import psycopg2

import shop


class Network:
    """A card network that honours the key that it is given."""

    def __init__(self):
        self.charges = {}
        self.mood = 'well'

    def charge(self, key, amount):
        if self.mood == 'refused':
            raise shop.NothingSent('connection refused')
        if self.mood == 'declined':
            raise shop.Declined('card declined')
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


def connect():
    return psycopg2.connect('')


connection = connect()
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
check('first request', shop.post_order(connect, 'python', key, {'item': 7}), (201, {}, '{"order": 1}'))
check('repeat, without quotes', shop.post_order(connect, 'python', key.strip('"'), {'item': 7}),
      (201, {'Idempotent-Replayed': 'true'}, '{"order": 1}'))
check('another request', shop.post_order(connect, 'python', key, {'item': 8})[0], 422)
check('no key', shop.post_order(connect, 'python', None, {'item': 8})[0], 400)

answers = []
threads = [threading.Thread(target=lambda: answers.append(
    shop.post_order(connect, 'python', 'at-once', {'item': 9}))) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
check('four at the same time, one answer', {(status, body) for status, _, body in answers}, {(201, '{"order": 2}')})
check('one of them did the work', sum('Idempotent-Replayed' not in headers for _, headers, _ in answers), 1)
check('two orders in all', one(connection, 'SELECT count(*) FROM example_python.orders'), 2)

# 2. the charge
network = Network()
check('charge', shop.post_charge(connect, network, 'python', 'c-1', {'amount': 5}), (201, {}, '{"charge": "ch_1"}'))
check('repeat', shop.post_charge(connect, network, 'python', 'c-1', {'amount': 5})[:2],
      (201, {'Idempotent-Replayed': 'true'}))
network.mood = 'refused'
check('nothing sent', shop.post_charge(connect, network, 'python', 'c-2', {'amount': 6})[0], 503)
network.mood = 'well'
check('so it may be tried again', shop.post_charge(connect, network, 'python', 'c-2', {'amount': 6})[0], 201)
network.mood = 'declined'
check('declined', shop.post_charge(connect, network, 'python', 'c-3', {'amount': 7})[0], 402)
network.mood = 'well'
check('declined stays declined', shop.post_charge(connect, network, 'python', 'c-3', {'amount': 7})[0], 402)
network.mood = 'silent'
check('no answer: held', shop.post_charge(connect, network, 'python', 'c-4', {'amount': 8})[0], 409)
network.mood = 'well'
check('held stays held', shop.post_charge(connect, network, 'python', 'c-4', {'amount': 8})[0], 409)
check('three charges in all', len(network.charges), 3)

# The connection is lost, where t/060_examples.pl stands in between: before the answer to the claim, in the middle of
# the booking, and before the answer to its commit.
for lost in 'lost-claim', 'lost-booking', 'lost-commit':
    check(lost, shop.post_charge(connect, network, 'python', lost, {'amount': 1})[0], 201)
check('each charged once', len(network.charges), 6)
check('and booked once', one(connection, 'SELECT count(*) FROM example_python.payments WHERE amount = 1'), 3)

# A person asks the network with the same key, hears that it was charged, and records that.
effect_key = one(connection, "SELECT idempotency.effect_key('python', 'POST /charges', 'c-4', 'charge')")
token = one(connection, "SELECT token FROM idempotency.abandoned WHERE scope = 'python' AND key = 'c-4'")
one(connection, "SELECT idempotency.complete('python', 'POST /charges', 'c-4', 201, %s, token => %s)",
    network.charges[effect_key], token)
check('decided', shop.post_charge(connect, network, 'python', 'c-4', {'amount': 8})[2], 'ch_3')

# 3. the webhook
check('event', shop.on_event(connect, {'id': 'evt_python', 'amount': 3}), True)
check('again', shop.on_event(connect, {'id': 'evt_python', 'amount': 3}), False)
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
