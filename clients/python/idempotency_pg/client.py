"""The calls of the extension as functions, and errors told apart by SQLSTATE. Their types and options are in client.pyi.

`db` is a connection or a pool: psycopg 3 (blocking or asyncio), psycopg 2, SQLAlchemy or Django's; none is imported. All is written once,
as coroutines. With a blocking connection they never wait for an event loop, so each is run to its end at once, and the result returned."""
import asyncio
import inspect
import json
import random
import threading
from collections import namedtuple
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from functools import partial, wraps
from types import SimpleNamespace as Result
from weakref import WeakKeyDictionary

Id = namedtuple('Id', 'scope operation key')
WAITERS = WeakKeyDictionary()  # of each pool
# JSON goes and comes as text: Django and others switch the driver's own conversion off. Python has no date for a held key's "infinity".
ANSWER = ('response_status, response_headers::text, response_body, response_bytes, created_at, completed_at, '
          "nullif(expires_at, 'infinity') AS expires_at")
OWNER = ('token, attempt, recovery_point, state::text, last_error, locked_until, '
         'extract(epoch FROM locked_until - clock_timestamp())::float8 AS lease_seconds')
CLAIM = f'outcome, taken_over, fingerprint_checked, retry_after_ms, rival, {OWNER}, {ANSWER}'
COLUMNS = {'claim': CLAIM, 'run': CLAIM, 'replay': ANSWER, 'lookup': f'status, note, {OWNER}, {ANSWER}',
           'claim_abandoned': f"scope, operation, key, 'claimed' AS outcome, true AS taken_over, note, created_at, {OWNER}"}
DECODE = {'state': json.loads, 'response_headers': json.loads, 'response_bytes': bytes}
# Every parameter is cast, so that prepared, unprepared and pooled statements agree on its type.
TYPES = {option: sql_type for sql_type, options in {
    'text': 'scope operation key command error reason note wait_for recovery_point step response_body', 'uuid': 'claim_id',
    'text::jsonb': 'state args response_headers', 'bytea': 'response_bytes fingerprint', 'interval': 'ttl lease wait retry_in',
    'int': 'response_status max_rows', 'bigint': 'token', 'boolean': 'hold_if_abandoned refuse_repeat',
}.items() for option in options.split()}

def is_async(db):
    return inspect.iscoroutinefunction(getattr(db, 'close', None))

async def settled(value):
    return await value if inspect.isawaitable(value) else value

def both(function):
    """Gives the result with a blocking connection or pool, and an awaitable of it with one of asyncio."""
    @wraps(function)
    def call(db, *args, **options):
        coroutine = function(db, *args, **options)
        if is_async(db):
            return coroutine
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
        coroutine.close()
        raise TypeError('something asynchronous was used with a blocking connection')
    return call

def driver(db):
    """The driver's own connection below a Session or Connection of SQLAlchemy, or Django's; psycopg's has itself as `connection`."""
    inner = getattr(db, 'driver_connection', None) or getattr(db, 'connection', None)
    inner = inner() if callable(inner) else inner
    return db if inner in (None, db) else driver(inner)

@asynccontextmanager
async def session(db):
    """The connection; of a pool or an Engine, one with a transaction that is committed at the end."""
    pool = callable(getattr(db, 'connection', None)) and not hasattr(db, 'execute')
    manager = db.begin() if hasattr(db, 'raw_connection') else db.connection() if pool else nullcontext(db)
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(manager) if is_async(db) else stack.enter_context(manager)

async def rows(name, db, id, options, request=None, *values):
    """What is not given is not named, so that the server's defaults and the policies hold."""
    args, values, identity = [request] if request else [], [*values], dict(zip(Id._fields, id))
    for option, value in {**identity, **options}.items():
        if option not in TYPES:
            raise TypeError(f'{name}: unknown option {option}')
        if value is not None or option in identity:
            args.append(f'{option} => %s::{TYPES[option]}')
            values.append(json.dumps(value) if 'jsonb' in TYPES[option] else str(value) if option == 'claim_id' else value)
    statement = f'SELECT {COLUMNS.get(name, "result")} FROM idempotency.{name}({", ".join(args)}) AS result'
    async with session(db) as connection:
        cursor = driver(connection).cursor()
        await settled(cursor.execute(statement, values))
        names = [column[0] for column in cursor.description]
        found = [row if isinstance(row, dict) else dict(zip(names, row)) for row in await settled(cursor.fetchall())]
    return [Result(**identity, **{n: DECODE[n](v) if n in DECODE and v is not None else v for n, v in row.items()}) for row in found]

# The request is given to notice a key that is used for another one: `body` as it came, or `request`, a value that is made JSON here,
# once. Either goes through fingerprint_bytes(), which also takes what jsonb refuses. Path parameters are part of the request.
# None would switch the comparison off without a word; that has to be said: compare=False.
async def claiming(name, db, id, command=None, *, body=None, request=None, params=None, compare=True, **options):
    given, digest = [], 'idempotency.fingerprint_bytes(%s::bytea)'
    if compare and options.get('fingerprint') is None:
        if body is None and request is None:
            raise TypeError(f'{name}: no request; give request, body or compare=False')
        data = body if isinstance(body, bytes) else (json.dumps(request) if body is None else body).encode()
        given = [f'fingerprint => {digest}', data] if not params else [
            f"request => jsonb_build_object('params', %s::text::jsonb, 'body', encode({digest}, 'hex'))", json.dumps(params), data]
    result, = await rows(name, db, id, {'command': command, **options}, *given)
    if result.outcome not in ('claimed', 'replay', 'in_progress', 'mismatch', 'held'):
        raise RuntimeError(f'unknown outcome {result.outcome}')  # never go on with it
    return result

async def other(name, db, id=(), argument=None, **options):
    options.setdefault('step' if name == 'effect_key' else 'recovery_point', argument)
    found = await rows(name, db, id, options)
    return found if name == 'claim_abandoned' else found[0].result if name not in COLUMNS else found[0] if found else None

claim, run = (both(partial(claiming, name)) for name in ('claim', 'run'))
complete, fail, record_failure, hold, release, extend, checkpoint, once, effect_key, replay, lookup, claim_abandoned = (
    both(partial(other, name)) for name in ('complete', 'fail', 'record_failure', 'hold', 'release', 'extend', 'checkpoint', 'once',
                                            'effect_key', 'replay', 'lookup', 'claim_abandoned'))

def causes(error):
    """The error, and what SQLAlchemy or Django have wrapped."""
    return [error, *causes(error.__cause__)] if error else []

def diagnosis(name, error):
    return next((getattr(e.diag, name) for e in causes(error) if getattr(e, 'diag', None)), None)

sqlstate, reason = partial(diagnosis, 'sqlstate'), partial(diagnosis, 'constraint_name')
KINDS = {
    'IK001': 'stale_claim', 'IK002': 'not_claimed', 'IK003': 'other_completion', 'IK004': 'left_open', 'IK005': 'held', 'IK006': 'redacted',
    '40001': 'retry', '40P01': 'retry', '55P03': 'wait_timeout', '54000': 'too_large', '25006': 'unavailable', '53300': 'unavailable',
    '57P01': 'unavailable', '57P02': 'unavailable', '57P03': 'unavailable', '08': 'unavailable', '22': 'bad_request'}

def kind(error):
    """What to do about an error; "other" is a fault of the program. 54000 is permanent, though an OperationalError as a lost one is."""
    if state := sqlstate(error):
        return KINDS.get(state) or KINDS.get(state[:2]) or 'other'
    names = {base.__name__ for e in causes(error) for base in type(e).__mro__}
    full = any(getattr(e, 'code', None) == '3o7r' for e in causes(error))  # SQLAlchemy: no connection in time
    return 'unavailable' if full or names & {'OperationalError', 'InterfaceError'} else 'other'

async def pause(db, seconds, done):
    await settled(asyncio.sleep(seconds) if is_async(db) else done.wait(seconds))
    return done.is_set()

async def again(db, attempt, kinds=('unavailable',), attempts=6):
    """attempt(), once more after an error of one of these kinds, with growing pauses that rivals do not share."""
    for number in range(1, attempts + 1):
        try:
            return await settled(attempt())
        except Exception as error:
            if kind(error) not in kinds or number == attempts:
                raise
        await pause(db, 0.02 * 2 ** number * random.uniform(0.5, 1.5), threading.Event())

@both
async def transaction(pool, work):
    """work(connection), COMMIT; all of it again where the server asks for that."""
    async def attempt():
        async with session(pool) as db:
            result = await settled(work(db))
            if driver(db).info.transaction_status == 3:  # failed, and the error swallowed: COMMIT would succeed and roll back
                raise RuntimeError('the transaction has failed')
            return result
    return await again(pool, attempt, ('retry',), 5)

@contextmanager
def capped(pool, wait):
    """`wait` for half of the pool's connections at most, None for the others: those that wait must not fill the pool."""
    gate = wait and WAITERS.setdefault(pool, threading.Semaphore((getattr(pool, 'max_size', None) or pool.pool.size()) // 2))
    waiting = wait and gate.acquire(blocking=False)
    try:
        yield wait if waiting else None
    finally:
        if waiting:
            gate.release()
