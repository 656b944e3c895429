"""One client of this repository, unchanged, on a front: what works there and what is refused.

Prints a line for each check, "ok" or "FAILED" and what it is about.
"""
import sys

import psycopg
from psycopg_pool import ConnectionPool

import idempotency_pg as pg

info = sys.argv[1]
done = []


def check(kept, words):
    print('ok     ' if kept else 'FAILED ', words)


def work(attempt):
    done.append(attempt)
    return pg.Answer(201, b'{"charged": 1}')


with ConnectionPool(info, min_size=1, max_size=4, kwargs={'autocommit': True}) as pool, psycopg.connect(info, autocommit=True) as db:
    answers = [pg.run_leased(pool, ('client', 'charge', 'k'), work, request={'a': 1}, lease='1 minute') for _ in range(2)]
    check(len(done) == 1 and answers[0].status == 201 and answers[1].outcome == 'replay' and answers[1].response_bytes == answers[0].body,
          'clients/python through the front: run_leased()')
    outcomes = [pg.run(db, ('client', 'run', 'k'), 'SELECT 42', wait='2 s', compare=False) for _ in range(2)]
    check([(o.outcome, o.response_body) for o in outcomes] == [('claimed', '42'), ('replay', '42')], 'clients/python through the front: run()')
    check([pg.once(db, ('client', 'once', 'k')) for _ in range(2)] == [True, False], 'clients/python through the front: once()')
    try:
        pg.claim(db, ('client', 'claim', 'k'), compare=False)
        check(False, 'clients/python through the front: a claim in its own transaction is refused')
    except psycopg.errors.FeatureNotSupported as error:
        check('procedure' in error.diag.message_hint, 'clients/python through the front: a claim in its own transaction is refused')
    token = pg.claim(db, ('client', 'late', 'k'), lease='1 microsecond', compare=False).token
    pg.claim(db, ('client', 'late', 'k'), lease='1 minute', compare=False)
    try:
        pg.complete(db, ('client', 'late', 'k'), response_status=200, token=token)
        check(False, 'clients/python through the front: a late owner learns why')
    except psycopg.Error as error:
        check(pg.kind(error) == 'stale_claim' and pg.reason(error) == 'taken_over', 'clients/python through the front: a late owner learns why')
