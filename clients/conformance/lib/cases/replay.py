"""One request is done once: repeats, rivals, and what is another request."""

from lib.case import (case, expect, expect_created, expect_in_progress, expect_mismatch, expect_orders, may_retry)


@case('sequential repeat is replayed')
def repeat(shop):
    key = shop.key()
    first = shop.order(key)
    expect_created(first, replayed=False)
    for _ in range(2):
        again = shop.order(key)
        expect_created(again, replayed=True)
        expect(again.body == first.body, f'{again} instead of {first}')
    expect_orders(shop, 1)


@case('20 concurrent repeats: one is executed')
def concurrent(shop):
    key = shop.key()
    exchanges = [shop.send('/orders', {'item': 7, 'pause_ms': 300}, key) for _ in range(20)]
    created = []
    for exchange in exchanges:
        answer = exchange.answer()
        if answer.status == 201:
            created.append(answer)
        else:
            expect_in_progress(answer)
    expect(len({answer.body for answer in created}) == 1, 'there must be one answer, and only one')
    expect(sum(not answer.replayed() for answer in created) == 1, 'exactly one is not a replay')
    expect_orders(shop, 1)


@case('rivals of an open transaction: 409 with Retry-After', host=True)
def rivals(shop):
    key = shop.key()
    shop.host.fault('hold', 'before', key, 'rel=a')
    first = shop.send('/orders', {'item': 7}, key)
    shop.host.wait_for_fault()
    for exchange in [shop.send('/orders', {'item': 7}, key) for _ in range(20)]:
        expect_in_progress(exchange.answer())
    shop.host.clear()
    expect_created(first.answer(), replayed=False)
    expect_created(shop.order(key), replayed=True)
    expect_orders(shop, 1)


@case('other payload: 422')
def other_payload(shop):
    key = shop.key()
    expect_created(shop.order(key, item=7))
    expect_mismatch(shop.order(key, item=8))
    expect_created(shop.order(key, item=7), replayed=True)
    expect_orders(shop, 1)


@case('same JSON in another spelling is replayed')
def other_spelling(shop):
    key = shop.key()
    json = [('Content-Type', 'application/json')]
    expect_created(shop.post('/orders', b'{"item": 7, "note": "x"}', key, json), replayed=False)
    expect_created(shop.post('/orders', b'{ "note":"\\u0078","item":7.0 }', key, json), replayed=True)
    expect_orders(shop, 1)


@case('other user, same key: another request')
def other_user(shop):
    key, other = shop.key(), shop.other_user()
    first = shop.order(key)
    second = other.order(key, item=8)
    expect_created(first, replayed=False)
    expect_created(second, replayed=False)
    expect_orders(shop, 1)
    expect_orders(other, 1)


@case('no user: 401, and nothing is recorded')
def no_user(shop):
    key = shop.key()
    line = [('Idempotency-Key', f'"{key}"')]
    answer = shop.client.ask('POST', '/orders', {'item': 7}, line)
    expect(answer.status == 401, f'expected 401, not {answer}')
    expect_created(shop.order(key), replayed=False)


@case('other route, same key: another request')
def other_route(shop):
    key = shop.key()
    expect_created(shop.order(key), replayed=False)
    expect_created(shop.order(key, path='/waiting-orders'), replayed=False)
    expect_created(shop.order(key, path='/waiting-orders'), replayed=True)
    expect_orders(shop, 2)


@case('same route, other path parameter: 422')
def path_parameter(shop):
    key = shop.key()
    expect_created(shop.post('/orders/11/refunds', {}, key), replayed=False)
    expect_created(shop.post('/orders/11/refunds', {}, key), replayed=True)
    expect_mismatch(shop.post('/orders/12/refunds', {}, key))
    expect_orders(shop, 1)


@case('GET is not touched, whatever its headers')
def get_untouched(shop):
    key = shop.key()
    for visits in (1, 2, 3):
        answer = shop.get('/visits', key)
        expect(answer.status == 200 and not answer.replayed(), f'{answer}')
        expect(answer.json() == {'visits': visits}, f'{answer}, expected {visits}')
    expect(shop.get('/visits', b'"malformed').status == 200, 'a GET was refused for its key')
    if shop.host:
        expect(not shop.host.lookup(shop.user, 'GET /visits', key), 'a GET was recorded')


@case('duplicates that wait get the answer', host=True)
def waiting(shop):
    key = shop.key()
    shop.host.fault('hold', 'before', key, 'rel=a')
    first = shop.send('/waiting-orders', {'item': 7}, key)
    shop.host.wait_for_fault()
    second = shop.send('/waiting-orders', {'item': 7}, key)
    expect(not second.has_begun(1), 'a duplicate did not wait')
    shop.host.clear()
    answer = first.answer()
    expect_created(answer, replayed=False)
    again = second.answer()
    expect(not may_retry(again), f'a duplicate did not wait: {again}')
    expect_created(again, replayed=True)
    expect(again.body == answer.body, 'a duplicate got another answer')
    expect_orders(shop, 1)
