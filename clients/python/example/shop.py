"""Three handlers of a small shop, safe to repeat."""

import json
import math
import time
import uuid
from contextlib import closing

import psycopg2
from psycopg2 import errors

RETRY = (errors.SerializationFailure, errors.DeadlockDetected)


class NothingSent(Exception):
    """The request to the card network was never sent."""


class Declined(Exception):
    """The card network said no, for good."""


def key_of(header):
    """The key of an Idempotency-Key header: quoted or not, it is the same."""
    if header is None:
        return None
    key = header.strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    return key or None


def retried(work, connect, attempts=5):
    """Runs work in a transaction, again where the server asks for that."""
    for attempt in range(attempts):
        try:
            with closing(connect()) as connection:
                with connection, connection.cursor() as cursor:
                    return work(cursor)
        except RETRY:
            if attempt == attempts - 1:
                raise


def is_lost(error):
    """The connection is lost, and whether the server did what it was asked for is not known."""
    return error.pgcode is None or error.pgcode.startswith(('08', '57P'))


def despite_lost_connections(work, attempts=5):
    """Runs work, again if it lost its connection. It has to begin with a claim, which tells what became of the last time."""
    for attempt in range(1, attempts + 1):
        try:
            return work()
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            if not is_lost(error) or attempt == attempts:
                raise
            time.sleep(0.1 * attempt)


def answer_without_work(claim):
    """(status, headers, body) of an outcome other than "claimed"."""
    outcome, status, body, retry_after_ms = claim
    if outcome == 'replay':
        return status, {'Idempotent-Replayed': 'true'}, body
    if outcome == 'in_progress':
        return 409, {'Retry-After': str(math.ceil(retry_after_ms / 1000))}, 'in progress'
    if outcome == 'mismatch':
        return 422, {}, 'this key was used for another request'
    if outcome == 'held':
        return 409, {}, 'the outcome is being looked into'
    raise ValueError(outcome)  # never go on with what is not known


def post_order(connect, account, header, body):
    """POST /orders: nothing but SQL, so all of it is one transaction."""
    key = key_of(header)
    if key is None:
        return 400, {}, 'Idempotency-Key is missing'

    def work(cursor):
        cursor.execute(
            "SELECT outcome, response_status, response_body, retry_after_ms"
            "  FROM idempotency.claim(%s, 'POST /orders', %s, request => %s::jsonb, wait => '5 s')",
            (account, key, json.dumps(body)))
        claim = cursor.fetchone()
        if claim[0] != 'claimed':
            return answer_without_work(claim)

        cursor.execute('INSERT INTO example_python.orders (account, item) VALUES (%s, %s) RETURNING id',
                       (account, body['item']))
        answer = json.dumps({'order': cursor.fetchone()[0]})
        cursor.execute("SELECT idempotency.complete(%s, 'POST /orders', %s, 201, %s)", (account, key, answer))
        return 201, {}, answer

    return retried(work, connect)


def post_charge(connect, network, account, header, body):
    """POST /charges: somebody else is asked, so the claim is committed first.

    Whatever the connection was lost at, the same claim id tells: "claimed" again, with the same token, if the claim is
    still open; "replay" if the answer was recorded.
    """
    key = key_of(header)
    if key is None:
        return 400, {}, 'Idempotency-Key is missing'
    claim_id = str(uuid.uuid4())  # fresh for each request, the same for its repeats
    asked = Asked(network)
    return despite_lost_connections(lambda: charge_once(connect, asked, account, key, body, claim_id))


class Asked:
    """Asks the network once, whatever it leads to."""

    def __init__(self, network):
        self.network = network
        self.outcome = None

    def charge(self, key, amount):
        if self.outcome is None:
            try:
                self.outcome = self.network.charge(key, amount), None
            except Exception as error:
                self.outcome = None, error
        charge, error = self.outcome
        if error is not None:
            raise error
        return charge


def charge_once(connect, network, account, key, body, claim_id):
    # The lease is longer than the network's time-out with all retries.
    def begin(cursor):
        cursor.execute(
            "SELECT outcome, response_status, response_body, retry_after_ms, token,"
            "       idempotency.effect_key(%(account)s, 'POST /charges', %(key)s, 'charge')"
            "  FROM idempotency.claim(%(account)s, 'POST /charges', %(key)s, request => %(body)s::jsonb,"
            "                         lease => '2 min', claim_id => %(claim_id)s, hold_if_abandoned => true)",
            {'account': account, 'key': key, 'body': json.dumps(body), 'claim_id': claim_id})
        return cursor.fetchone()

    *claim, token, effect_key = retried(begin, connect)  # committed here
    if claim[0] != 'claimed':
        return answer_without_work(claim)

    def end(statement, *values):
        def work(cursor):
            cursor.execute(f"SELECT idempotency.{statement}", (account, key, *values, token))
        retried(work, connect)

    try:
        charge = network.charge(effect_key, body['amount'])
    except NothingSent as error:  # we know that nothing happened
        end("fail(%s, 'POST /charges', %s, error => %s, token => %s)", str(error))
        return 503, {'Retry-After': '1'}, 'try again'
    except Declined as error:  # an answer like any other
        end("complete(%s, 'POST /charges', %s, 402, %s, token => %s)", str(error))
        return 402, {}, str(error)
    except Exception as error:  # nobody knows what happened
        end("hold(%s, 'POST /charges', %s, reason => %s, token => %s)", repr(error))
        return 409, {}, 'the outcome is being looked into'

    answer = json.dumps({'charge': charge})

    def book(cursor):  # the row and the answer, together
        cursor.execute('INSERT INTO example_python.payments (account, charge, amount) VALUES (%s, %s, %s)',
                       (account, charge, body['amount']))
        cursor.execute("SELECT idempotency.complete(%s, 'POST /charges', %s, 201, %s, token => %s, refuse_repeat => true)",
                       (account, key, answer, token))

    retried(book, connect)
    return 201, {}, answer


def on_event(connect, event):
    """A webhook: once, in the transaction that books it."""

    def work(cursor):
        cursor.execute("SELECT idempotency.once('provider', 'webhook', %s)", (event['id'],))
        first = cursor.fetchone()[0]
        if first:
            cursor.execute('INSERT INTO example_python.ledger (event, amount) VALUES (%s, %s)',
                           (event['id'], event['amount']))
        return first

    return retried(work, connect)
