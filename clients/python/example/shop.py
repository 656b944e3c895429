"""Three handlers of a small shop, safe to repeat, without a framework, on psycopg2."""

import json
from collections import namedtuple
from contextlib import closing, contextmanager

import psycopg2

from idempotency_pg import Answer, Core, Route, once, transaction

Request = namedtuple('Request', 'account path keys body')  # keys: the lines of the header Idempotency-Key


class Pool:
    """A connection of its own for each transaction, as a pool would give: one that was lost is of no use any more."""
    max_size = 8

    @contextmanager
    def connection(self):
        with closing(psycopg2.connect('')) as connection, connection:  # which commits or rolls back, and does not close
            yield connection


def execute(connection, statement, *values):
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchone()[0] if cursor.description else None


def shop(pool, network):
    """post(request), which gives the Answer."""

    def post_order(connection, request):
        """POST /orders: nothing but SQL, so all of it is the one transaction in which the key is claimed and the answer recorded."""
        order = execute(connection, 'INSERT INTO example_python.orders (account, item) VALUES (%s, %s) RETURNING id',
                        request.account, json.loads(request.body)['item'])
        return Answer(201, {'order': order})

    def post_charge(attempt):
        """POST /charges: somebody else is asked, so the claim is committed first. The network raises NothingHappened, or Refused for
        a card that was declined; after any other error nobody knows, and the key is held."""
        state = attempt.claim.state
        charge = network.charge(attempt.effect_key, state['amount'])
        return Answer(201, {'charge': charge}, book=lambda connection: execute(
            connection, 'INSERT INTO example_python.payments (account, charge, amount) VALUES (%s, %s, %s)',
            state['account'], charge, state['amount']))

    def state(request, body):
        return {'account': request.account, 'amount': json.loads(body)['amount']}

    core = Core(pool, scope=lambda request: request.account, routes={
        'POST /orders': Route(wait='5 s'),
        # The lease is longer than the network's time-out with all retries.
        'POST /charges': Route(work=post_charge, state=state, lease='2 min', step='charge', hold_if_abandoned=True)})

    def post(request):
        answering = core.find('POST', request.path, request.keys)
        return answering(request, request.body, lambda connection: post_order(connection, request))
    return post


def on_event(pool, event):
    """A webhook: once, in the transaction that books it."""
    def work(connection):
        first = once(connection, ('provider', 'webhook', event['id']))
        if first:
            execute(connection, 'INSERT INTO example_python.ledger (event, amount) VALUES (%s, %s)', event['id'], event['amount'])
        return first
    return transaction(pool, work)
