"""Work outside of the database: the lease, the completer, and the person who decides."""

import itertools

from lib.case import case, expect, expect_created, expect_problem, wait_for, may_retry
from lib.client import NoAnswer

OPERATION = 'POST /charges'
amounts = itertools.count(1001)  # each its own, so that the network's calls can be told apart


class Charge:
    """One charge: its key, its amount, and what became of it."""

    def __init__(self, shop):
        self.shop, self.host = shop, shop.host
        self.key, self.body = shop.key(), {'amount': next(amounts)}
        self.host.network(mode='well', hang=None)

    def send(self):
        return self.shop.send('/charges', self.body, self.key)

    def post(self):
        return self.send().answer()

    def finally_(self):
        return self.shop.finally_('/charges', self.body, self.key)

    def calls(self):
        """How often the network was asked, which charges it made, and by which keys."""
        return self.host.calls(self.body['amount'])

    def wait_for_status(self, status):
        wait_for(f'the key to be {status}', lambda: (self.lookup() or {}).get('status') == status)

    def lookup(self):
        return self.host.lookup(self.shop.user, OPERATION, self.key)

    def expect_once(self):
        """Charged once, booked once, and the answer is about that."""
        calls = self.calls()
        expect(len(calls) == 1 and calls[0]['charge'], f'the network was asked for {calls}')
        payments = self.host.rows(self.shop.user)['payments']
        expect(payments == [calls[0]['charge']], f'booked: {payments}, charged: {calls[0]["charge"]}')
        answer = self.finally_()
        expect_created(answer, replayed=True)
        expect(answer.json() == {'charge': calls[0]['charge']}, f'{answer}')


@case('charge: once, and replayed', host=True)
def charge(shop):
    it = Charge(shop)
    expect_created(it.finally_())
    it.expect_once()
    expect(it.calls()[0]['calls'] == 1, 'the network was asked again')
    it.body = {'amount': next(amounts)}
    expect_problem(it.post(), 422, 'mismatch', 'Idempotency-Key is already used')
    expect(not it.calls(), 'the network was asked for another amount with the same key')


@case('charge: a rival during the call gets 409 with Retry-After', host=True)
def rival(shop):
    it = Charge(shop)
    it.host.network(hang='before')
    first = it.send()
    it.host.wait_until_hanging('before')
    rivals = [it.send() for _ in range(7)]  # more than the pool has: nobody keeps a connection during the call
    for exchange in rivals:
        expect_problem(exchange.answer(), 409, 'in-progress', 'A request is outstanding for this Idempotency-Key')
    it.host.network(hang=None)
    answer = first.answer()
    expect(answer.status == 201 or may_retry(answer), f'{answer}')
    expect_created(it.finally_())
    it.expect_once()


@case('charge: the lease is renewed while the network takes its time', host=True)
def heartbeat(shop):
    def is_renewed(it):
        it.host.network(hang='before')
        exchange = it.send()
        it.host.wait_until_hanging('before')
        first = it.lookup()
        wait_for('another lease', lambda: it.lookup()['locked_until'] != first['locked_until'])
        now = it.lookup()
        it.host.network(hang=None)
        exchange.answer()
        expect_created(it.finally_())
        it.expect_once()
        return now['token'] == first['token']
    # On a machine that stops for as long as the lease, the completer may take it over; but not every time.
    expect(any(is_renewed(Charge(shop.other_user())) for _ in range(5)), 'a lease lapsed while its work went on')


@case('charge: declined is recorded and replayed', host=True)
def declined(shop):
    it = Charge(shop)
    it.host.network(mode='declined')
    answer = it.finally_()
    expect(answer.status == 402, f'expected 402, not {answer}')
    it.host.network(mode='well')
    again = it.post()
    expect(again.status == 402 and again.replayed(), f'expected the 402 again, not {again}')
    expect(sum(c['calls'] for c in it.calls()) == 1, 'the network was asked again')


@case('charge: network refuses connections: 503, then a retry works', host=True)
def refused(shop):
    it = Charge(shop)
    it.host.network(mode='refused')
    expect_problem(it.post(), 503, 'unavailable')
    expect(it.lookup()['status'] == 'failed', f'nothing happened, but the key is {it.lookup()}')
    it.host.network(mode='well')
    expect_created(it.finally_())
    it.expect_once()


def silent(shop):
    it = Charge(shop)
    it.host.network(mode='silent')
    expect_problem(it.finally_(), 409, 'held')
    it.host.network(mode='well')
    return it


@case('charge: network silent: held, 409 without Retry-After', host=True)
def held(shop):
    it = silent(shop)
    expect_problem(it.post(), 409, 'held')
    expect(it.lookup()['status'] == 'held', f'{it.lookup()}')
    expect(sum(c['calls'] for c in it.calls()) == 1, 'the network was asked again')


@case('charge: network answers a large page that is no text: held', host=True)
def garbled(shop):
    it = Charge(shop)
    it.host.network(mode='garbled')
    expect_problem(it.finally_(), 409, 'held')
    it.host.network(mode='well')
    expect(it.lookup()['status'] == 'held', f'{it.lookup()}')
    expect(sum(c['calls'] for c in it.calls()) == 1, 'the network was asked again')


@case('charge: a person resolves it to be retried', host=True)
def resolved(shop):
    it = silent(shop)
    it.host.resolve(shop.user, OPERATION, it.key, 'retry')
    expect_created(it.finally_())
    it.expect_once()  # the network knows the effect key


@case('charge: a person completes it', host=True)
def completed(shop):
    it = silent(shop)
    it.host.resolve(shop.user, OPERATION, it.key, 'complete', '{"charge": "by hand"}')
    answer = it.post()
    expect_created(answer, replayed=True)
    expect(answer.json() == {'charge': 'by hand'}, f'{answer}')


def killed(shop, point):
    it = Charge(shop)
    it.host.network(hang=point)
    exchange = it.send()
    it.host.wait_until_hanging(point)
    it.host.kill()
    try:
        exchange.answer()
    except NoAnswer:
        pass
    else:
        raise AssertionError('an answer came before the charge was known')
    finally:
        it.host.network(hang=None)
        it.host.start()
    return it


@case('charge: SIGKILL before the call, then a retry: charged once', host=True)
def killed_before(shop):
    it = killed(shop, 'before')
    expect_created(it.finally_())
    it.expect_once()


@case('charge: SIGKILL after the call, then a retry: charged once', host=True)
def killed_after(shop):
    it = killed(shop, 'after')
    expect_created(it.finally_())
    it.expect_once()


@case('charge: SIGKILL, and the completer ends it', host=True)
def completer(shop):
    it = killed(shop, 'after')
    it.host.database('down')  # which it has to survive
    wait_for('an unhealthy service', lambda: shop.client.ask('GET', '/health').status == 503)
    it.host.database('up')
    it.wait_for_status('completed')
    it.expect_once()


@case('charge: answer to the claim lost, claim_id finds it', host=True)
def claim_answer_lost(shop):
    it = Charge(shop)
    it.host.fault('cut', 'after', it.key)
    answer = it.post()
    it.host.wait_for_fault()
    # Not in progress for its own attempt: the claim is repeated at once, with its id.
    expect(answer.status == 201, f'expected 201, not {answer}')
    it.expect_once()


def booking_cut(shop, where):
    it = Charge(shop)
    name = 'ch_' + shop.key()
    it.host.network(mode='well', charge=name)
    it.host.fault('cut', where, it.key, name)
    answer = it.post()
    it.host.wait_for_fault()
    expect(answer.status == 201 or may_retry(answer), f'{answer}')
    expect_created(it.finally_())
    it.expect_once()


@case('charge: answer to the booking lost: booked once', host=True)
def booking_answer_lost(shop):
    booking_cut(shop, 'after')


@case('charge: booking lost before COMMIT: booked once', host=True)
def booking_lost(shop):
    booking_cut(shop, 'before')
