"""The pitfalls that cost others an afternoon, each against a real database (PG*). scripts/test-clients makes one."""

import asyncio
import io
import os
import subprocess
import sys
import tempfile
import threading
import unittest
import uuid
from pathlib import Path

import psycopg
import psycopg2
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

PACKAGE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PACKAGE))

import idempotency_pg as pg  # noqa: E402
from idempotency_pg.asgi import Idempotency as Asgi  # noqa: E402
from idempotency_pg.wsgi import Idempotency as Wsgi  # noqa: E402

LEASE = '1 min'


def setUpModule():
    with psycopg.connect('', autocommit=True) as db:
        db.execute('CREATE EXTENSION IF NOT EXISTS idempotency')
        db.execute('DROP TABLE IF EXISTS done')
        db.execute('CREATE TABLE done (key text)')


def identity():
    return pg.Id('test', 'POST /things', str(uuid.uuid4()))


class Database(unittest.TestCase):
    def setUp(self):
        self.pool = ConnectionPool('', min_size=0, max_size=4, timeout=10)
        self.addCleanup(self.pool.close)

    def count(self, key):
        with self.pool.connection() as db:
            return db.execute('SELECT count(*) FROM done WHERE key = %s', (key,)).fetchone()[0]


class Thin(Database):
    def test_every_kind_of_connection_gives_the_same(self):
        engine = create_engine('postgresql+psycopg2://')
        self.addCleanup(engine.dispose)

        def of(db, id):
            first = pg.claim(db, id, request={'a': 1})
            pg.complete(db, id, response_status=201, response_bytes=b'\0\xff', response_headers=[['A', '1'], ['A', '2']])
            again = pg.claim(db, id, body=b'{ "a": 1.0 }')
            other = pg.claim(db, id, body='{"a": 2}')
            return (first.outcome, again.outcome, again.response_status, again.response_bytes, again.response_headers, other.outcome,
                    pg.lookup(db, id).status)
        wanted = ('claimed', 'replay', 201, b'\0\xff', [['A', '1'], ['A', '2']], 'mismatch', 'completed')
        with psycopg.connect('') as db:
            self.assertEqual(of(db, identity()), wanted)
        with psycopg.connect('', row_factory=dict_row, prepare_threshold=0) as db:
            self.assertEqual(of(db, identity()), wanted)
        with psycopg2.connect('') as db:
            self.assertEqual(of(db, identity()), wanted)
        with engine.begin() as db:
            self.assertEqual(of(db, identity()), wanted)
        with Session(engine) as db:
            self.assertEqual(of(db, identity()), wanted)

        async def with_asyncio():
            async with await psycopg.AsyncConnection.connect('') as db:
                id = identity()
                first = await pg.claim(db, id, request={'a': 1})
                await pg.complete(db, id, response_status=201)
                return first.outcome, (await pg.claim(db, id, body='{"a": 1}')).outcome
        self.assertEqual(asyncio.run(with_asyncio()), ('claimed', 'replay'))

    def test_a_request_that_is_missing_is_an_error(self):
        with self.assertRaises(TypeError):
            pg.claim(self.pool, identity(), lease=LEASE)
        with self.assertRaises(TypeError):
            pg.claim(self.pool, identity(), request=None, lease=LEASE)
        with self.assertRaises(TypeError):
            pg.claim(self.pool, identity(), request={}, lese=LEASE)
        self.assertEqual(pg.claim(self.pool, identity(), compare=False, lease=LEASE).outcome, 'claimed')

    def test_an_outcome_that_is_not_known_is_never_gone_on_with(self):
        name = f'newer_{uuid.uuid4().hex}'

        def outside(statement):
            with psycopg.connect('', autocommit=True) as db:
                db.execute(statement)
        outside(f'CREATE DATABASE {name}')
        self.addCleanup(outside, f'DROP DATABASE {name}')
        with psycopg.connect('', dbname=name) as db:  # a later version, as it were
            db.execute('''CREATE SCHEMA idempotency CREATE TABLE answers (
                outcome text, token bigint, attempt int, taken_over boolean, recovery_point text, state jsonb, last_error text,
                fingerprint_checked boolean, retry_after_ms int, rival text, created_at timestamptz, completed_at timestamptz,
                expires_at timestamptz, response_status int, response_headers jsonb, response_body text, response_bytes bytea,
                locked_until timestamptz)''')
            db.execute('''CREATE FUNCTION idempotency.claim(scope text, operation text, key text) RETURNS SETOF idempotency.answers
                LANGUAGE sql AS $$ INSERT INTO idempotency.answers (outcome) VALUES ('postponed') RETURNING * $$''')
            with self.assertRaisesRegex(RuntimeError, 'postponed'):
                pg.claim(db, identity(), compare=False)

    def test_json_that_jsonb_refuses_is_compared_as_bytes(self):
        for body in (b'{"a": "\\u0000"}', b'{"a": "\\ud800"}', b'{"a": 1e200000}', b'\0\xff', b''):
            id = identity()
            outcomes = [pg.claim(self.pool, id, body=one, params={'id': '7'}, lease=LEASE).outcome for one in (body, body, body + b'x')]
            self.assertEqual(outcomes, ['claimed', 'in_progress', 'mismatch'])
        self.assertEqual(pg.claim(self.pool, id, body=b'', params={'id': '8'}).outcome, 'mismatch')

    def test_54000_is_for_good_though_the_driver_calls_it_operational(self):
        engine = create_engine('postgresql+psycopg2://')
        self.addCleanup(engine.dispose)
        for pool in (self.pool, engine):
            id = identity()

            def too_large(db):
                pg.claim(db, id, compare=False)
                pg.complete(db, id, response_bytes=bytes(5 << 20))
            with self.assertRaises((psycopg.OperationalError, psycopg2.OperationalError)) as caught:
                pg.transaction(pool, too_large)
            self.assertEqual((pg.kind(caught.exception), pg.sqlstate(caught.exception)), ('too_large', '54000'))
            self.assertIsNone(pg.lookup(self.pool, id))

    def test_kinds_through_sqlalchemy(self):
        engine = create_engine('postgresql+psycopg2://')
        self.addCleanup(engine.dispose)
        for state, kind in (('40001', 'retry'), ('57P01', 'unavailable'), ('08006', 'unavailable'), ('22P02', 'bad_request'),
                            ('IK005', 'held'), ('23505', 'other')):
            with engine.connect() as db, self.assertRaises(Exception) as caught:
                db.execute(text(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$"))
            self.assertEqual((pg.sqlstate(caught.exception), pg.kind(caught.exception)), (state, kind))
        with self.assertRaises(psycopg.Error) as caught:
            psycopg.connect('host=/nowhere')
        self.assertEqual(pg.kind(caught.exception), 'unavailable')

    def test_a_stale_owner_is_told_why(self):
        id = identity()
        token = pg.claim(self.pool, id, compare=False, lease=LEASE).token
        pg.complete(self.pool, id, response_body='x', token=token)
        with self.assertRaises(psycopg.Error) as caught:
            pg.complete(self.pool, id, response_body='x', token=token, refuse_repeat=True)
        self.assertEqual((pg.kind(caught.exception), pg.reason(caught.exception)), ('stale_claim', 'completed'))

    def test_a_held_key_can_be_looked_at_though_it_never_expires(self):
        id = identity()
        token = pg.claim(self.pool, id, compare=False, lease=LEASE).token
        self.assertEqual(pg.hold(self.pool, id, reason='who knows', token=token), token)
        self.assertEqual(pg.claim(self.pool, id, compare=False).outcome, 'held')
        self.assertEqual(pg.lookup(self.pool, id).status, 'held')

    def test_transaction_is_repeated_after_40001_and_not_after_a_swallowed_error(self):
        calls = []

        def conflicting(db):
            calls.append(1)
            if len(calls) < 3:
                db.execute("DO $$ BEGIN RAISE serialization_failure; END $$")
            return 'done'
        self.assertEqual((pg.transaction(self.pool, conflicting), len(calls)), ('done', 3))

        def swallowing(db):
            try:
                db.execute('SELECT 1 / 0')
            except psycopg.Error:
                pass
        with self.assertRaises(RuntimeError):
            pg.transaction(self.pool, swallowing)


class Leased(Database):
    def finish(self, work, **options):
        id = identity()
        return id, pg.run_leased(self.pool, id, work, compare=False, lease=LEASE, **options)

    def test_four_ends(self):
        def end(error):
            def work(attempt):
                raise error
            return work

        def book(db):
            db.execute('INSERT INTO done VALUES (%s)', ('book',))
        id, answer = self.finish(lambda attempt: pg.Answer(201, {'n': 1}, book=book))
        self.assertEqual((answer.status, self.count('book'), pg.replay(self.pool, id).response_body), (201, 1, '{"n": 1}'))
        id, result = self.finish(end(pg.NothingHappened('refused')))
        self.assertEqual((result.outcome, pg.lookup(self.pool, id).status), ('failed', 'failed'))
        id, result = self.finish(None, step='\0')  # there is no such effect key, so nothing was begun
        self.assertEqual((result.outcome, pg.lookup(self.pool, id).status), ('failed', 'failed'))
        id, answer = self.finish(end(pg.Refused(402, 'declined')))
        self.assertEqual((answer.status, pg.replay(self.pool, id).response_status), (402, 402))
        id, result = self.finish(end(TimeoutError('who knows' * 1000000)))
        self.assertEqual((result.outcome, pg.lookup(self.pool, id).status), ('held', 'held'))

    def test_a_lost_claim_answer_is_repeated_with_its_claim_id(self):
        lost = []

        class Losing(ConnectionPool):
            def connection(pool, timeout=None):
                manager = super().connection(timeout)
                if lost:
                    return manager
                lost.append(1)

                class Cut:
                    def __enter__(self):
                        self.db = manager.__enter__()
                        return self.db

                    def __exit__(self, *error):
                        manager.__exit__(*error)  # committed, and the answer does not arrive
                        raise psycopg.OperationalError('server closed the connection unexpectedly')
                return Cut()
        pool = Losing('', min_size=0, max_size=2)
        self.addCleanup(pool.close)
        attempts = []
        answer = pg.run_leased(pool, identity(), lambda attempt: attempts.append(attempt) or pg.Answer(200), compare=False, lease=LEASE)
        self.assertEqual((answer.status, len(attempts), attempts[0].claim.attempt, lost), (200, 1, 1, [1]))

    def test_a_heartbeat_that_is_refused_stops_the_work(self):
        id = identity()

        def work(attempt):
            with self.pool.connection() as db:  # an operator gives the key to somebody else
                db.execute('SELECT idempotency.forget(%s, %s, %s, force => true)', id)
            self.assertTrue(attempt.lost.wait(60))
            raise RuntimeError('stopped')
        with self.assertRaises(psycopg.Error) as caught:
            pg.run_leased(self.pool, id, work, compare=False, lease='300 ms')
        self.assertEqual(pg.kind(caught.exception), 'stale_claim')
        self.assertIsNone(pg.lookup(self.pool, id))

        async def with_asyncio():
            async with AsyncConnectionPool('', min_size=0, max_size=2) as pool:
                async def sleeping(attempt):
                    async with pool.connection() as db:
                        await db.execute('SELECT idempotency.forget(%s, %s, %s, force => true)', id)
                    await asyncio.sleep(600)
                await pg.run_leased(pool, id, sleeping, compare=False, lease='300 ms')
        with self.assertRaises(psycopg.Error) as caught:
            asyncio.run(with_asyncio())
        self.assertEqual(pg.kind(caught.exception), 'stale_claim')

    def test_completer_drives_on_what_was_left(self):
        id, stop = pg.Id('test', f'POST /{uuid.uuid4()}', 'k'), threading.Event()
        pg.claim(self.pool, id, compare=False, lease='1 ms', state={'n': 7})

        def work(attempt):
            stop.set()
            return pg.Answer(201, attempt.claim.state)
        pg.completer(self.pool, id.operation, work, stop=stop, lease=LEASE, every=0.05)
        self.assertEqual(pg.replay(self.pool, id).response_body, '{"n": 7}')


class Http(Database):
    """The middlewares, without a server around them."""

    def post(self, app, key='"k"', body=b'{}'):
        environ = {'REQUEST_METHOD': 'POST', 'PATH_INFO': '/things', 'CONTENT_LENGTH': str(len(body))}
        environ.update({'HTTP_IDEMPOTENCY_KEY': key} if key else {})
        environ['wsgi.input'] = io.BytesIO(body)
        started = []
        text = b''.join(app(environ, lambda status, headers: started.extend([status, dict(headers)])))
        return int(started[0][:3]), started[1], text

    def test_waiters_do_not_fill_the_pool(self):
        inside, go = threading.Event(), threading.Event()

        def app(environ, start_response):
            inside.set()
            go.wait(60)
            start_response('201 Created', [('Content-Type', 'text/plain')])
            return [b'made']
        key = str(uuid.uuid4())
        once = Wsgi(app, pool=self.pool, scope=lambda environ: 'test', routes={'POST /things': pg.Route(wait='50 s')})
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(self.post(once, key))) for _ in range(12)]
        threads[0].start()
        inside.wait(60)
        for thread in threads[1:]:
            thread.start()
        with self.pool.connection(timeout=40) as db:  # 1 works and 2 of 4 wait, so one is left
            db.execute('SELECT 1')
        while len(answers) < 9:  # those that may not wait are told so, while the first has not finished
            threading.Event().wait(0.01)
        self.assertEqual([status for status, _, _ in answers], [409] * 9)
        self.assertTrue(all(int(headers['Retry-After']) >= 1 for _, headers, _ in answers))
        go.set()
        for thread in threads:
            thread.join(60)
        self.assertEqual([(status, text) for status, _, text in answers[9:]], [(201, b'made')] * 3)

    def test_the_answer_is_held_back_until_commit(self):
        key = str(uuid.uuid4())

        def app(environ, start_response):
            start_response('201 Created', [])
            environ['idempotency.db'].execute('INSERT INTO done VALUES (%s)', (key,))
            with psycopg.connect('', autocommit=True) as other:  # lost between the work and its COMMIT
                other.execute('SELECT pg_terminate_backend(%s)', (environ['idempotency.db'].info.backend_pid,))
            return [b'made']
        once = Wsgi(app, pool=self.pool, scope=lambda environ: 'test', routes={'POST /things': pg.Route()})
        status, headers, text = self.post(once, key)
        self.assertEqual((status, headers['Retry-After'], self.count(key)), (503, '1', 0))

    def test_asgi_with_a_blocking_pool(self):
        key = str(uuid.uuid4())

        async def app(scope, receive, send):
            body = (await receive())['body']
            scope['state']['db'].execute('INSERT INTO done VALUES (%s)', (key,))
            await send({'type': 'http.response.start', 'status': 201, 'headers': [(b'content-type', b'text/plain')]})
            await send({'type': 'http.response.body', 'body': body})
        once = Asgi(app, pool=self.pool, scope=lambda scope: 'test', lifetime_header=True, routes={'POST /things': pg.Route()})

        async def post():
            sent = []

            async def receive():
                return {'type': 'http.request', 'body': b'hello', 'more_body': False}

            async def send(message):
                sent.append(message)
            scope = {'type': 'http', 'method': 'POST', 'path': '/things', 'headers': [(b'idempotency-key', key.encode())]}
            await once(scope, receive, send)
            return sent[0]['status'], dict(sent[0]['headers']), sent[1]['body']
        first, again = asyncio.run(post()), asyncio.run(post())
        self.assertEqual((first[0], first[2], again[0], again[2], self.count(key)), (201, b'hello', 201, b'hello', 1))
        self.assertEqual(again[1][b'idempotent-replayed'], b'true')
        self.assertTrue(first[1][b'idempotency-key-expires'].endswith(b' GMT'))

    def test_without_a_key_where_none_is_required(self):
        def app(environ, start_response):
            start_response('200 OK', [])
            return [str('idempotency.db' in environ).encode()]
        once = Wsgi(app, pool=self.pool, scope=lambda environ: 'test', routes={'POST /things': pg.Route(required=False)})
        self.assertEqual([self.post(once, key)[2] for key in (None, str(uuid.uuid4()))], [b'False', b'True'])

    def test_who_is_unknown_is_never_served(self):
        once = Wsgi(None, pool=self.pool, scope=lambda environ: None, routes={'POST /things': pg.Route()})
        with self.assertRaises(TypeError):
            self.post(once)

    def test_keys(self):
        for line, key in (('"k"', 'k'), ('k', 'k'), (' "k"\t', 'k'), ('"a\\"b"', 'a"b'), ('"a\\\\b"', 'a\\b'), ('"k";p=1;q="x;y"', 'k'),
                          ('"k,l"', 'k,l'), ('x' * 255, 'x' * 255)):
            self.assertEqual(pg.parse_key([line]), key)
        for lines in ([], ['""'], [''], ['"k'], ['"k"x'], ['"a\\n"'], ['k, l'], ['"k", "l"'], ['k', 'k'], ['"\xfc"'], ['x' * 256],
                      ['"k" ;=1']):
            self.assertIsNone(pg.parse_key(lines), lines)


class Types(unittest.TestCase):
    def test_a_typed_program_passes_and_its_mistakes_do_not(self):
        with tempfile.TemporaryDirectory() as cache:
            mypy = subprocess.run([sys.executable, '-m', 'mypy', '--strict', '--cache-dir', cache, PACKAGE / 'tests' / 'typed.py'],
                                  env={**os.environ, 'MYPYPATH': str(PACKAGE)}, capture_output=True, text=True)
        self.assertEqual(mypy.returncode, 0, mypy.stdout + mypy.stderr)


if __name__ == '__main__':
    os.environ.setdefault('PGDATABASE', 'postgres')
    unittest.main()
