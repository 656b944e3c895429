"""Idempotency of the reference service: one transaction, or a lease, around a handler.

broken names the one guard that is left out, so that a test can show that the conformance test sees it.
"""

import json
import queue
import random
import threading
import time
import uuid
from contextlib import contextmanager

import psycopg2
from psycopg2 import errors

from shop_http import Answer, Problem, to_record

CONFLICTS = (errors.SerializationFailure, errors.DeadlockDetected)
LOST = (psycopg2.OperationalError, psycopg2.InterfaceError)

OUTCOME = 'outcome, response_status, response_body, response_bytes, response_headers, retry_after_ms'


class NothingHappened(Exception):
    pass


class Refused(Exception):
    def __init__(self, answer):
        self.answer = answer


class Undone(Exception):
    """Rolls back, and is answered."""

    def __init__(self, answer):
        self.answer = answer


def is_lost(error):
    code = error.pgcode or '08'
    return isinstance(error, LOST) and (code[:2] in ('08', '57') or code in ('53300', '25006'))


class Pool:
    def __init__(self, size, broken):
        self.broken = broken
        self.free = queue.LifoQueue()
        for _ in range(size):
            self.free.put(None)
        self.waiters = threading.Semaphore(size // 2)

    @contextmanager
    def cursor(self):
        """In a transaction."""
        connection = self.free.get(timeout=0.001 if self.broken == 'pool' else 300)
        try:
            if connection is None:
                connection = psycopg2.connect('')
            with connection, connection.cursor() as cursor:
                yield cursor
        except BaseException:
            if connection is not None and connection.closed:
                connection = None
            raise
        finally:
            self.free.put(connection)

    def transaction(self, work, attempts=5):
        for attempt in range(1, attempts + 1):
            try:
                with self.cursor() as cursor:
                    return work(cursor)
            except CONFLICTS:
                if attempt == attempts or self.broken == 'conflicts':
                    raise
                time.sleep(random.uniform(0, 0.05) * attempt)


class Idempotency:
    def __init__(self, pool, lease, wait, broken):
        self.pool, self.lease, self.wait, self.broken = pool, lease, wait, broken

    def fingerprint(self, body, params):
        """SQL, and its parameters."""
        if self.broken == 'fingerprint':
            return 'fingerprint => NULL', ()
        if self.broken == 'jsonb':
            return 'request => %s::jsonb', (body.decode(errors='replace') or None,)
        if self.broken == 'spelling':
            return 'fingerprint => sha256(%s::bytea)', (body,)
        if params and self.broken != 'params':
            return ('''request => jsonb_build_object('params', %s::jsonb,
                            'body', encode(idempotency.fingerprint_bytes(%s::bytea), 'hex'))''', (json.dumps(params), body))
        return 'fingerprint => idempotency.fingerprint_bytes(%s::bytea)', (body,)

    def answers(self):
        """Turns what a database does to a request into an answer."""
        return Answers(self.broken)

    def same_transaction(self, id, body, params, wait, handler, send):
        """send(answer) after COMMIT."""
        def work(cursor):
            if self.broken == 'replay':
                return handler(cursor)
            comparison, values = self.fingerprint(body, params)
            waits = wait and (self.broken == 'cap' or self.pool.waiters.acquire(blocking=False))
            try:
                cursor.execute(
                    f'SELECT {OUTCOME} FROM idempotency.claim(%s, %s, %s, {comparison}, wait => %s::interval)',
                    (*id, *values, self.wait if waits else None))
            finally:
                if waits and self.broken != 'cap':
                    self.pool.waiters.release()
            claim = cursor.fetchone()
            if claim[0] != 'claimed':
                return self.without_work(claim)
            answer = handler(cursor)
            if answer.status >= 500 and self.broken != 'record-5xx':
                raise Undone(answer)
            if answer.status < 400 or self.broken != 'refusals':
                self.complete(cursor, id, answer)
            else:
                raise Undone(answer)
            if self.broken == 'hold-back-answer':
                send(answer)
            return answer

        with self.answers() as answers:
            answers.answer = self.pool.transaction(work)
        send(answers.answer)

    def complete(self, cursor, id, answer, token=None):
        headers, text, binary = to_record(answer, self.broken)
        cursor.execute('SELECT idempotency.complete(%s, %s, %s, %s, %s, %s::jsonb, %s::bytea,'
                       ' token => %s, refuse_repeat => %s, ttl => %s::interval)',
                       (*id, answer.status, text, headers, binary, token, self.broken != 'refuse-repeat',
                        '1 ms' if self.broken == 'forgetful' else None))

    def without_work(self, claim):
        outcome, status, text, binary, headers, retry_after_ms = claim[:6]
        if outcome == 'replay':
            body = bytes(binary) if binary is not None else (text or '').encode()
            pairs = headers.items() if isinstance(headers, dict) else headers or []
            return Answer(status, body, [*map(tuple, pairs), ('Idempotent-Replayed', 'true')])
        if outcome == 'in_progress':
            raise Problem(409, 'in-progress', 'The first request is not finished.', retry_after_ms / 1000)
        if outcome == 'mismatch':
            raise Problem(422, 'mismatch', 'The key was used for another request.')
        if outcome == 'held':
            raise Problem(409, 'held', 'What became of the first request is not known yet.')
        raise ValueError(outcome)

    # ---- with a lease ----

    def leased(self, id, body, state, work, book):
        claim_id = str(uuid.uuid4())
        comparison, values = self.fingerprint(body, None)

        def claim(cursor):
            cursor.execute(
                f'''SELECT {OUTCOME}, token, idempotency.effect_key(%s, %s, %s, 'charge')
                      FROM idempotency.claim(%s, %s, %s, {comparison}, lease => %s::interval, claim_id => %s::uuid,
                                             hold_if_abandoned => %s, state => %s::jsonb)''',
                (*id, *id, *values, self.lease, str(uuid.uuid4()) if self.broken == 'claim-id' else claim_id,
                 self.broken == 'take-over', json.dumps(state)))
            return cursor.fetchone()

        with self.answers() as answers:
            claimed = despite_loss(lambda: self.pool.transaction(claim))
            if claimed[0] != 'claimed':
                return self.without_work(claimed)
            answers.answer = self.finish(id, *claimed[6:], state, work, book)
        return answers.answer

    def finish(self, id, token, effect_key, state, work, book):
        def end(statement, *values):
            return despite_loss(lambda: self.pool.transaction(
                lambda cursor: cursor.execute(f'SELECT idempotency.{statement}', (*id, *values, token))))

        stop = threading.Event()
        threading.Thread(target=self.heartbeat, args=(id, token, stop), daemon=True).start()
        try:
            value = work(str(uuid.uuid4()) if self.broken == 'effect-key' else effect_key, state)
        except NothingHappened:
            if self.broken != 'fail':
                end('fail(%s, %s, %s, token => %s)')
            raise Problem(503, 'unavailable', 'Nothing happened; try again.', 1) from None
        except Refused as refused:
            answer = refused.answer
            if self.broken == 'refusals':
                end('fail(%s, %s, %s, token => %s)')
            else:
                self.pool.transaction(lambda cursor: self.complete(cursor, id, answer, token))
            return answer
        except Exception as error:
            if self.broken == 'hold':
                end('fail(%s, %s, %s, token => %s)')
                raise Problem(503, 'unavailable', 'Try again.', 1) from None
            end('hold(%s, %s, %s, reason => %s, token => %s)', reason(error) if self.broken != 'reason' else str(error))
            raise Problem(409, 'held', 'What became of it is not known yet.') from None
        finally:
            stop.set()

        answer = Answer(201, {'charge': value})

        def booking(cursor):
            if self.broken == 'booking':
                book(cursor, state, value)
            self.complete(cursor, id, answer, token)
            if self.broken != 'booking':  # after what refuses the repeat, lest a unique key does
                book(cursor, state, value)
        if self.broken == 'refuse-repeat':
            despite_loss(lambda: self.pool.transaction(booking))
        else:
            self.pool.transaction(booking)
        return answer

    def heartbeat(self, id, token, stop):
        while not stop.wait(1) and self.broken != 'heartbeat':
            try:
                self.pool.transaction(
                    lambda cursor: cursor.execute('SELECT idempotency.extend(%s, %s, %s, token => %s)', (*id, token)))
            except psycopg2.Error:
                pass  # the completion will be told

    def completer(self, operation, work, book):
        """Drives on what a killed process left behind."""
        def take(cursor):
            cursor.execute(
                '''SELECT scope, operation, key, token, idempotency.effect_key(scope, operation, key, 'charge'), state
                     FROM idempotency.claim_abandoned(%s, lease => %s::interval, max_rows => 1)''', (operation, self.lease))
            return cursor.fetchall()
        while self.broken != 'completer':
            try:
                for scope, operation, key, token, effect_key, state in self.pool.transaction(take):
                    self.finish((scope, operation, key), token, effect_key, state, work, book)
            except Exception as error:
                print(f'completer: {error!r}', flush=True)
                if self.broken == 'completer-dies':
                    return
            time.sleep(0.5)


def reason(error):
    """An error may quote what it has not understood: not everything is a text for PostgreSQL, nor can all of it be recorded."""
    return str(error)[:1000].replace('\0', '?')


def despite_loss(work, attempts=5):
    for attempt in range(1, attempts + 1):
        try:
            return work()
        except LOST as error:
            if not is_lost(error) or attempt == attempts:
                raise
            time.sleep(0.05 * attempt)


class Answers:
    """with: what the database throws becomes a Problem, or the answer of the handler that was undone."""

    def __init__(self, broken):
        self.broken, self.answer = broken, None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, Undone):
            self.answer = error.answer
            return True
        if isinstance(error, CONFLICTS) and self.broken != 'conflicts':
            raise Problem(503, 'unavailable', 'Too many at once.', 1) from None
        if isinstance(error, psycopg2.Error) and error.pgcode == '54000' and self.broken != 'too-large':
            raise Problem(500, 'too-large', 'Nothing was done; a retry does not help.') from None
        if isinstance(error, LOST) and (is_lost(error) or self.broken == 'too-large') and self.broken != 'unavailable':
            raise Problem(503, 'unavailable', 'The database cannot be reached, or was lost.', 1) from None
        return False
