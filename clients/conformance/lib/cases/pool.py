"""Those that wait must not take what the others need."""

from lib.case import case, expect, expect_created, expect_in_progress, expect_orders


@case('pool of 5, 40 different requests at once: all are done')
def different(shop):
    exchanges = [shop.send('/orders', {'item': item, 'pause_ms': 20}, shop.key()) for item in range(1, 41)]
    for exchange in exchanges:
        expect_created(exchange.answer(), replayed=False)
    expect_orders(shop, 40)


@case('pool of 5, 50 duplicates that wait: nobody starves', host=True)
def starving(shop):
    key, bystander = shop.key(), shop.other_user()
    shop.host.fault('hold', 'before', key, 'rel=a')
    first = shop.send('/waiting-orders', {'item': 7}, key)
    shop.host.wait_for_fault()
    duplicates = [shop.send('/waiting-orders', {'item': 7}, key) for _ in range(50)]
    # Shorter than WAIT: who gets a connection only when the waiters give up has starved.
    for path in ('/health', '/visits', '/health', '/visits'):
        exchange = bystander.send(path, None, method='GET')
        expect(exchange.has_begun(shop.host.wait_seconds() * 0.8), f'GET {path} found no connection while others wait')
        answer = exchange.answer()
        expect(answer.status == 200, f'GET {path}: {answer}')
    shop.host.clear()
    answer = first.answer()
    expect_created(answer, replayed=False)
    for exchange in duplicates:
        again = exchange.answer()
        if again.status == 201:
            expect(again.replayed() and again.body == answer.body, f'{again} instead of {answer}')
        else:
            expect_in_progress(again)
    expect_orders(shop, 1)
