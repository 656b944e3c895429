"""The shop on FastAPI and psycopg's asyncio pool."""

import asyncio
import json
import threading

import psycopg
import uvicorn
from fastapi import FastAPI, Request, Response
from psycopg_pool import AsyncConnectionPool

import shop
from idempotency_pg import Answer, Refused, completer
from idempotency_pg.asgi import Idempotency

pool = AsyncConnectionPool('', min_size=0, max_size=shop.POOL_SIZE, timeout=5, open=False, kwargs={'prepare_threshold': None})
app = FastAPI()


def authorization(scope):
    return dict(scope['headers']).get(b'authorization', b'').decode()


async def charge(attempt):
    state = attempt.claim.state
    number = await asyncio.to_thread(shop.charge, attempt.effect_key, state)

    async def book(db):
        await db.execute(shop.PAY, (state['account'], number, state['amount']))
    return Answer(201, {'charge': number}, book=book)


app.add_middleware(Idempotency, pool=pool, scope=lambda scope: 'shop:' + shop.account_of(authorization(scope)),
                   routes=shop.routes(charge, authorization))


@app.exception_handler(Refused)
async def refused(request, error):
    return response(error.answer)


def response(answer):
    result = Response(answer.body, answer.status)
    for name, value in answer.headers:
        result.headers.append(name, value)
    return result


def account(request):
    return shop.account_of(request.headers.get('authorization'))


async def one(db, statement, *values):
    return (await (await db.execute(statement, values)).fetchone())[0]


@app.post('/orders')
@app.post('/waiting-orders')
async def order(request: Request):
    fail, data = request.headers.get('x-fail'), shop.members(await request.body(), 'item')
    if fail == 'refuse':
        return response(Answer(402, {'refused': True}))
    number = await one(request.state.db, shop.INSERT, account(request), data['item'])
    if fail == 'throw':
        raise RuntimeError('the handler was asked to throw')
    if fail == '503':
        return response(Answer(503, {'busy': True}))
    await asyncio.sleep(data.get('pause_ms', 0) / 1000)
    return response(shop.created(number))


@app.post('/orders/{id}/refunds')
async def refund(request: Request, id: int):
    return response(Answer(201, {'refund': await one(request.state.db, shop.INSERT, account(request), id)}))


@app.post('/blobs')
async def blob(request: Request):
    await one(request.state.db, shop.INSERT, account(request), 0)
    return response(shop.echo(await request.body(), request.headers.get('content-type'), request.headers.get('content-encoding')))


@app.get('/orders')
async def orders(request: Request):
    async with pool.connection() as db:
        return {'orders': await one(db, shop.ORDERS, account(request))}


@app.get('/visits')
async def visits(request: Request):
    async with pool.connection() as db:
        await db.execute(shop.VISIT, (account(request),))
        return {'visits': await one(db, shop.VISITS, account(request))}


@app.get('/health')
async def health():
    try:
        async with pool.connection() as db:
            healthy = await one(db, shop.HEALTHY)
    except psycopg.Error:
        healthy = False
    return Response(json.dumps({'healthy': healthy}), 200 if healthy else 503, media_type='application/json')


@app.on_event('startup')
async def start():
    await pool.open()
    app.state.completer = asyncio.create_task(
        completer(pool, 'POST /charges', charge, stop=threading.Event(), lease=shop.LEASE, step='charge',
                  on_error=lambda error: print(f'completer: {error!r}', flush=True)))


class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print('listening', flush=True)


Server(uvicorn.Config(app, host='127.0.0.1', port=shop.PORT, log_level='warning')).run()
