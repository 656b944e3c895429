"""The Idempotency-Key header: what is a key, and what is refused."""

from lib.case import case, expect, expect_created, expect_orders, expect_problem


def refused(shop, *lines):
    answer = shop.post('/orders', {'item': 7}, None, [('Idempotency-Key', line) for line in lines])
    try:
        kind = 'missing' if lines == ('',) and b'#missing' in answer.body else 'malformed'  # an empty line may count as none
        expect_problem(answer, 400, kind)
    except AssertionError as error:
        raise AssertionError(f'Idempotency-Key: {lines}: {error}') from None


@case('key missing: 400')
def missing(shop):
    answer = shop.post('/orders', {'item': 7})
    expect_problem(answer, 400, 'missing', 'Idempotency-Key is missing')
    expect_orders(shop, 0)


@case('key malformed: 400')
def malformed(shop):
    for line in ('', '""', '"abc', '"abc"x', '"a"b"', '"a\\x"', '"abc" def', '"abc";=1'):
        refused(shop, line)
    expect_orders(shop, 0)


@case('key with and without quotes, with parameters: one key')
def forms(shop):
    key = shop.key()
    first = shop.order(key.encode())
    expect_created(first, replayed=False)
    for line in (f'"{key}"', f'"{key}";p=1', f'"{key}"; p="x;y"; q', f'  "{key}"  '):
        again = shop.order(line.encode())
        expect_created(again, replayed=True)
        expect(again.body == first.body, f'{line}: another answer')
    expect_orders(shop, 1)


@case('key with escapes: "a\\"b" is a"b')
def escapes(shop):
    tail = shop.key()
    line = f'"a\\"b\\\\{tail}"'.encode()
    expect_created(shop.order(line), replayed=False)
    expect_created(shop.order(line), replayed=True)
    expect_created(shop.order(f'"ab{tail}"'.encode()), replayed=False)
    if shop.host:
        found = shop.host.lookup(shop.user, 'POST /orders', f'a"b\\{tail}')
        expect(found, 'the key in the database is not the string of the header')


@case('key in two header lines: 400')
def two_lines(shop):
    refused(shop, '"k1"', '"k2"')
    refused(shop, '"k1"', '"k1"')
    expect_orders(shop, 0)


@case('key list with a comma: 400')
def comma(shop):
    refused(shop, '"k1", "k2"')
    refused(shop, 'k1,k2')
    expect_orders(shop, 0)
    expect_created(shop.order(b'"k1,k2"'))  # a comma within the string is part of it


@case('key not ASCII: 400')
def non_ascii(shop):
    refused(shop, '"schl\u00fcssel"'.encode())
    refused(shop, '\u9375'.encode())
    expect_orders(shop, 0)


@case('key of 255 characters, and of 256: 400')
def long(shop):
    expect_created(shop.order(b'"%s"' % (b'x' * 255)))
    refused(shop, '"' + 'x' * 256 + '"')
    refused(shop, 'x' * 256)
    expect_orders(shop, 1)
