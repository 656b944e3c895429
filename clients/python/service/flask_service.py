"""The shop on Flask, waitress and psycopg's pool."""

import threading
import time

import psycopg
import waitress
from flask import Flask, Response, got_request_exception, request
from psycopg_pool import ConnectionPool

import shop
from idempotency_pg import Answer, Refused, completer
from idempotency_pg.wsgi import Idempotency

pool = ConnectionPool('', min_size=0, max_size=shop.POOL_SIZE, timeout=5, kwargs={'prepare_threshold': None})
app = Flask(__name__)


def authorization(environ):
    return environ.get('HTTP_AUTHORIZATION')


def charge(attempt):
    state = attempt.claim.state
    number = shop.charge(attempt.effect_key, state)
    return Answer(201, {'charge': number}, book=lambda db: db.execute(shop.PAY, (state['account'], number, state['amount'])))


app.wsgi_app = Idempotency(app.wsgi_app, pool=pool, scope=lambda environ: 'shop:' + shop.account_of(authorization(environ)),
                           routes=shop.routes(charge, authorization), errors=got_request_exception)


@app.errorhandler(Refused)
def refused(error):
    return response(error.answer)


def response(answer):
    result = Response(answer.body, answer.status)
    del result.headers['Content-Type']
    for name, value in answer.headers:
        result.headers.add(name, value)
    return result


def account():
    return shop.account_of(request.headers.get('Authorization'))


def one(db, statement, *values):
    return db.execute(statement, values).fetchone()[0]


@app.post('/orders')
@app.post('/waiting-orders')
def order():
    fail, data = request.headers.get('X-Fail'), shop.members(request.get_data(), 'item')
    if fail == 'refuse':
        return response(Answer(402, {'refused': True}))
    number = one(request.environ['idempotency.db'], shop.INSERT, account(), data['item'])
    if fail == 'throw':
        raise RuntimeError('the handler was asked to throw')
    if fail == '503':
        return response(Answer(503, {'busy': True}))
    time.sleep(data.get('pause_ms', 0) / 1000)
    return response(shop.created(number))


@app.post('/orders/<int:id>/refunds')
def refund(id):
    return response(Answer(201, {'refund': one(request.environ['idempotency.db'], shop.INSERT, account(), id)}))


@app.post('/blobs')
def blob():
    one(request.environ['idempotency.db'], shop.INSERT, account(), 0)
    return response(shop.echo(request.get_data(), request.headers.get('Content-Type'), request.headers.get('Content-Encoding')))


@app.get('/orders')
def orders():
    with pool.connection() as db:
        return {'orders': one(db, shop.ORDERS, account())}


@app.get('/visits')
def visits():
    with pool.connection() as db:
        db.execute(shop.VISIT, (account(),))
        return {'visits': one(db, shop.VISITS, account())}


@app.get('/health')
def health():
    try:
        with pool.connection() as db:
            healthy = one(db, shop.HEALTHY)
    except psycopg.Error:
        healthy = False
    return {'healthy': healthy}, 200 if healthy else 503


threading.Thread(daemon=True, target=lambda: completer(
    pool, 'POST /charges', charge, stop=threading.Event(), lease=shop.LEASE, step='charge',
    on_error=lambda error: print(f'completer: {error!r}', flush=True))).start()
server = waitress.create_server(app, host='127.0.0.1', port=shop.PORT, threads=64)
print('listening', flush=True)
server.run()
