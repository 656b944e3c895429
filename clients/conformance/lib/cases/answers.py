"""Which answers are recorded, and what of them."""

from lib.case import case, expect, expect_created, expect_orders


@case('handler throws: nothing remains, a retry works')
def throws(shop):
    key = shop.key()
    answer = shop.order(key, headers=[('X-Fail', 'throw')])
    expect(answer.status >= 500, f'expected a 500, not {answer}')
    expect_orders(shop, 0)
    expect_created(shop.order(key), replayed=False)
    expect_orders(shop, 1)


@case('business refusal is recorded and replayed')
def refusal(shop):
    key = shop.key()
    first = shop.order(key, headers=[('X-Fail', 'refuse')])
    expect(first.status == 402 and not first.replayed(), f'expected 402, not {first}')
    again = shop.order(key)
    expect(again.status == 402 and again.replayed(), f'expected the 402 again, not {again}')
    expect(again.body == first.body, 'another body')
    expect_orders(shop, 0)


@case('5xx of the handler is not recorded')
def server_error(shop):
    key = shop.key()
    answer = shop.order(key, headers=[('X-Fail', '503')])
    expect(answer.status == 503, f'expected 503, not {answer}')
    expect_orders(shop, 0)
    expect_created(shop.order(key), replayed=False)
    expect_orders(shop, 1)


def links(answer):
    return [link.strip() for value in answer.all('Link') for link in value.split(',')]


@case('headers are replayed, repeated ones in order')
def headers(shop):
    key = shop.key()
    first, again = shop.order(key), shop.order(key)
    expect_created(first, replayed=False)
    expect_created(again, replayed=True)
    expect(first.get('Location') and first.get('X-Request'), f'headers of the first answer: {first.headers}')
    for name in ('Location', 'Content-Type', 'X-Request'):
        expect(again.all(name) == first.all(name), f'{name}: {again.all(name)} instead of {first.all(name)}')
    for answer in (first, again):
        expect(links(answer) == ['</a>; rel=a', '</b>; rel=b'], f'Link: {answer.all("Link")}')
    for name in ('Content-Length', 'Date', 'Server', 'Idempotent-Replayed', 'Content-Type'):
        expect(len(again.all(name)) <= 1, f'{name} is there more than once')


@case('Set-Cookie and Date are never replayed')
def never_replayed(shop):
    key = shop.key()
    first, again = shop.order(key), shop.order(key)
    expect(first.get('Set-Cookie'), 'the first answer has no cookie')
    expect(again.get('Set-Cookie') is None, 'a cookie was replayed')
    if shop.host:
        recorded = [name.lower() for name in shop.host.lookup(shop.user, 'POST /orders', key)['headers']]
        for name in ('set-cookie', 'date', 'server', 'content-length', 'connection', 'transfer-encoding', 'keep-alive'):
            expect(name not in recorded, f'{name} was recorded')
