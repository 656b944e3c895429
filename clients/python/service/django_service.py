"""The shop on Django, waitress and Django's own connections."""

import os
import threading
import time

import django
import waitress
from django.conf import settings

import shop
from idempotency_pg import Answer, Refused, completer
from idempotency_pg.django import DjangoPool, idempotency

settings.configure(
    ALLOWED_HOSTS=['127.0.0.1'], ROOT_URLCONF=__name__, SECRET_KEY='signs nothing', USE_TZ=True, DATA_UPLOAD_MAX_MEMORY_SIZE=8 << 20,
    MIDDLEWARE=[f'{__name__}.answering_refusals', f'{__name__}.once'],
    DATABASES={'default': {
        'ENGINE': 'django.db.backends.postgresql', 'NAME': os.environ['PGDATABASE'], 'DISABLE_SERVER_SIDE_CURSORS': True}})
django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import Error, connection  # noqa: E402
from django.http import HttpResponse, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402

threads = shop.POOL_SIZE - 1  # each has a connection, and so has the completer
pool = DjangoPool(threads)


def answering_refusals(get_response):
    def middleware(request):
        return get_response(request)
    middleware.process_exception = lambda request, error: response(error.answer) if isinstance(error, Refused) else None
    return middleware


def response(answer):
    result = HttpResponse(answer.body, status=answer.status)
    del result['Content-Type']
    for name, value in answer.headers:  # Django has one line of each name
        result[name] = f'{result[name]}, {value}' if name in result else value
    return result


def one(statement, *values):
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchone()[0] if cursor.description else None


def authorization(request):
    return request.headers.get('Authorization')


def account(request):
    return shop.account_of(authorization(request))


def charge(attempt):
    state = attempt.claim.state
    number = shop.charge(attempt.effect_key, state)
    return Answer(201, {'charge': number}, book=lambda db: one(shop.PAY, state['account'], number, state['amount']))


def orders(request):
    if request.method == 'GET':
        return JsonResponse({'orders': one(shop.ORDERS, account(request))})
    fail, data = request.headers.get('X-Fail'), shop.members(request.body, 'item')
    if fail == 'refuse':
        return response(Answer(402, {'refused': True}))
    number = one(shop.INSERT, account(request), data['item'])
    if fail == 'throw':
        raise RuntimeError('the handler was asked to throw')
    if fail == '503':
        return response(Answer(503, {'busy': True}))
    time.sleep(data.get('pause_ms', 0) / 1000)
    return response(shop.created(number))


def refund(request, id):
    return response(Answer(201, {'refund': one(shop.INSERT, account(request), id)}))


def blob(request):
    one(shop.INSERT, account(request), 0)
    return response(shop.echo(request.body, request.headers.get('Content-Type'), request.headers.get('Content-Encoding')))


def visits(request):
    one(shop.VISIT, account(request))
    return JsonResponse({'visits': one(shop.VISITS, account(request))})


def health(request):
    try:
        healthy = one(shop.HEALTHY)
    except Error:
        healthy = False
    return JsonResponse({'healthy': healthy}, status=200 if healthy else 503)


urlpatterns = [
    path('orders', orders), path('waiting-orders', orders), path('orders/<int:id>/refunds', refund), path('blobs', blob),
    path('visits', visits), path('health', health)]

once = idempotency(pool, scope=lambda request: 'shop:' + account(request), routes=shop.routes(charge, authorization))
threading.Thread(daemon=True, target=lambda: completer(
    pool, 'POST /charges', charge, stop=threading.Event(), lease=shop.LEASE, step='charge',
    on_error=lambda error: print(f'completer: {error!r}', flush=True))).start()
server = waitress.create_server(get_wsgi_application(), host='127.0.0.1', port=shop.PORT, threads=threads)
print('listening', flush=True)
server.run()
