"""The database fails, the process dies: no answer is a lie, and no work is done twice."""

from lib.case import case, expect, expect_created, expect_orders, expect_problem, wait_for
from lib.client import NoAnswer


@case('database down: 503 with Retry-After, work not done', host=True)
def down(shop):
    key = shop.key()
    expect_created(shop.order())  # the pool has connections, which are lost now
    shop.host.database('down')
    try:
        for _ in range(7):  # more than the pool has
            expect_problem(shop.order(key), 503, 'unavailable')
        expect(shop.client.ask('GET', '/health').status == 503, 'healthy without a database')
    finally:
        shop.host.database('up')
    wait_for('a healthy service', lambda: shop.client.ask('GET', '/health').status == 200)
    created = shop.finally_('/orders', {'item': 7}, key)
    expect_created(created, replayed=False)
    expect_orders(shop, 2)


@case('serialization failure is retried (40001)', host=True)
def conflict(shop):
    for item in (40001, 40001, 40002, 40002):  # in the statement, and at COMMIT
        key = shop.key()
        expect_created(shop.order(key, item=item), replayed=False)
        expect_created(shop.order(key, item=item), replayed=True)
    expect_orders(shop, 4)


@case('serialization failure without end: 503 with Retry-After', host=True)
def endless_conflict(shop):
    expect_problem(shop.order(item=40003), 503, 'unavailable')
    expect_orders(shop, 0)


@case('no answer before COMMIT has succeeded', host=True)
def held_back(shop):
    key = shop.key()
    shop.host.fault('hold', 'after', key, 'rel=a')
    exchange = shop.send('/orders', {'item': 7}, key)
    shop.host.wait_for_fault()
    expect(not exchange.has_begun(1), 'an answer was sent though COMMIT has not been answered')
    shop.host.clear()
    expect_created(exchange.answer(), replayed=False)
    expect_orders(shop, 1)


@case('COMMIT lost before the server: no answer of success', host=True)
def commit_lost(shop):
    key = shop.key()
    shop.host.fault('cut', 'before', key, 'rel=a')
    answer = shop.order(key)
    shop.host.wait_for_fault()
    # Run again by the middleware, or given back to the client: both are right, as long as it is not a lie.
    if answer.status == 201:
        expect_orders(shop, 1)
    else:
        expect_problem(answer, 503, 'unavailable')
        expect_orders(shop, 0)
    expect_created(shop.finally_('/orders', {'item': 7}, key))
    expect_orders(shop, 1)


@case('answer to COMMIT lost: 503, a retry finds out', host=True)
def commit_answer_lost(shop):
    key = shop.key()
    shop.host.fault('cut', 'after', key, 'rel=a')
    answer = shop.order(key)
    shop.host.wait_for_fault()
    if answer.status != 201:
        expect_problem(answer, 503, 'unavailable')
    expect_created(shop.finally_('/orders', {'item': 7}, key), replayed=True)
    expect_orders(shop, 1)


def killed(shop, point):
    key = shop.key()
    shop.host.fault('hold', point, key, 'rel=a')
    exchange = shop.send('/orders', {'item': 7}, key)
    shop.host.wait_for_fault()
    shop.host.kill()
    try:
        exchange.answer()
    except NoAnswer:
        pass
    else:
        raise AssertionError('an answer came before COMMIT')
    finally:
        shop.host.clear()
        shop.host.start()
    return shop.finally_('/orders', {'item': 7}, key)


@case('SIGKILL before COMMIT, then a retry: done once', host=True)
def killed_before(shop):
    expect_created(killed(shop, 'before'), replayed=False)
    expect_orders(shop, 1)


@case('SIGKILL after COMMIT, then a retry: replayed', host=True)
def killed_after(shop):
    expect_created(killed(shop, 'after'), replayed=True)
    expect_orders(shop, 1)
