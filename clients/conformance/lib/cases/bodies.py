"""Bodies come back byte for byte, whatever they are."""

import gzip
import json
import random

from lib.case import case, expect, expect_created, expect_mismatch, expect_orders, expect_problem


def blob(shop, body, content_type='application/octet-stream', encoding=None):
    key = shop.key()
    headers = [('Content-Type', content_type)] + ([('Content-Encoding', encoding)] if encoding else [])
    for replayed in (False, True):
        answer = shop.post('/blobs', body, key, headers)
        expect_created(answer, replayed)
        expect(answer.body == body, f'{len(answer.body)} bytes came back, and not the same {len(body)}')
        expect((answer.get('Content-Type') or '').split(';')[0] == content_type, f'headers: {answer.headers}')
        expect(answer.get('Content-Encoding') == encoding, f'headers: {answer.headers}')
    expect_mismatch(shop.post('/blobs', body + b'x', key, headers))
    expect_orders(shop, 1)


@case('binary body')
def binary(shop):
    blob(shop, bytes(range(256)) * 3)


@case('text body that is no text')
def broken_text(shop):
    blob(shop, b'caf\xe9', 'text/plain')


@case('text body with NUL')
def text_with_nul(shop):
    blob(shop, b'a\x00b', 'text/plain')


@case('text body beyond ASCII')
def text(shop):
    blob(shop, 'na\u00efve \U0001f600\r\n'.encode(), 'text/plain')


@case('empty body')
def empty(shop):
    blob(shop, b'')


@case('body of 1 MB')
def megabyte(shop):
    blob(shop, random.Random(13).randbytes(1 << 20))


@case('gzip body')
def compressed(shop):
    blob(shop, gzip.compress(b'{"text": "' + b'a' * 1000 + b'"}', mtime=0), 'application/json', 'gzip')


@case('answer too large to record: an error for good, work undone')
def too_large(shop):
    key = shop.key()
    headers = [('Content-Type', 'application/octet-stream')]
    answer = shop.post('/blobs', random.Random(13).randbytes(5 << 20), key, headers)
    expect(answer.status in (500, 507), f'expected 500 or 507, not {answer}')
    expect_problem(answer, answer.status, 'too-large')
    expect_orders(shop, 0)


@case('JSON that jsonb refuses is no 500')
def refused_json(shop):
    for number, note in enumerate(('"\\u0000"', '"\\ud800"', '1e200000')):
        for path, name in (('/orders', 'item'), ('/charges', 'amount')):
            if path == '/charges' and not shop.host:
                continue
            key = shop.key()
            body = ('{"%s": %d, "note": %s}' % (name, 600 + number, note)).encode()
            headers = [('Content-Type', 'application/json')]
            first = shop.post(path, body, key, headers)
            why = f'POST {path} {json.dumps(note)[:30]}'
            expect(first.status in (201, 400, 422), f'{why}: {first}')
            if first.status == 201:
                again = shop.post(path, body, key, headers)
                expect_created(again, replayed=True)
                expect(again.body == first.body, f'{why}: another answer')
                expect_mismatch(shop.post(path, body + b' ', key, headers))
