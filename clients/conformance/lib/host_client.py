"""The host, as the test asks it: by control URLs, all JSON."""

import json

from lib.case import expect, wait_for
from lib.client import Client


class Host:
    def __init__(self, url):
        self.client = Client(url)
        self.was_down = False

    def ask(self, method, path, **body):
        answer = self.client.ask(method, path, body if method == 'POST' else None)
        expect(answer.status == 200, f'the host on {path}: {answer}')
        return json.loads(answer.body)

    # The service

    def kill(self):
        self.ask('POST', '/service', do='kill')

    def start(self):
        self.ask('POST', '/service', do='start')

    def restore(self):
        """After a case, whatever became of it: no fault, all well, the service running."""
        self.clear()
        self.database('up')
        self.network(mode='well', hang=None)
        if self.was_down:
            # Its pool may have lost connections that nobody has used since: right to be answered by 503, but not in another case.
            self.was_down = False
            self.kill()
        self.start()

    def wait_seconds(self):
        return self.ask('GET', '/service')['wait_seconds']

    # The way to the database

    def database(self, do):
        self.was_down = self.was_down or do == 'down'
        self.ask('POST', '/database', do=do)

    def fault(self, do, point, *needles):
        """Cut or hold, once, before or after the COMMIT of the transaction in which all needles were sent."""
        self.ask('POST', '/fault', do=do, point=point, needles=needles)

    def wait_for_fault(self):
        wait_for('the transaction that the fault is about', lambda: self.ask('GET', '/fault')['state'] == 'struck')

    def clear(self):
        self.ask('POST', '/fault', do='clear')

    # The card network

    def network(self, **mode):
        self.ask('POST', '/network', **mode)

    def calls(self, amount):
        """The charges that were asked for: [{key, amount, charge, calls}]. Every case has amounts of its own."""
        return [c for c in self.ask('GET', '/network')['charges'] if c['amount'] == amount]

    def wait_until_hanging(self, point):
        wait_for(f'a handler at /{point}', lambda: self.ask('GET', '/network')['hanging'] == point)

    # The database, as somebody who may look and decide

    def rows(self, account):
        return self.ask('POST', '/rows', account=account)

    def lookup(self, user, operation, key):
        return self.ask('POST', '/lookup', scope='shop:' + user, operation=operation, key=key)

    def resolve(self, user, operation, key, decision, body=None):
        self.ask('POST', '/resolve', scope='shop:' + user, operation=operation, key=key, decision=decision, body=body)
