"""The database by the direct way: its schema, what the test wants to know of it, and the person who decides.

By psql, since the standard library has no driver. Values are psql's variables, so none is part of a statement's text.
"""

import json
import os
import subprocess


class Database:
    def run(self, statements, **values):
        variables = [f'--set={name}={value}' for name, value in values.items() if value is not None]
        command = [os.environ.get('PSQL', 'psql'), '-X', '-q', '-A', '-t', '--set=ON_ERROR_STOP=1', *variables]
        done = subprocess.run(command, input=statements, text=True, capture_output=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return done.stdout

    def ask(self, query, **values):
        """Of a query for JSON: that, or None if there is no row."""
        output = self.run(query, **values)
        return json.loads(output) if output else None

    def make(self, file):
        with open(file, encoding='utf-8') as schema:
            self.run(schema.read())

    def rows(self, account):
        return self.ask('''
            SELECT jsonb_build_object(
                'orders', (SELECT count(*) FROM shop.orders WHERE account = :'account'),
                'payments', (SELECT coalesce(jsonb_agg(charge), '[]') FROM shop.payments WHERE account = :'account'))
            ''', account=account)

    def lookup(self, scope, operation, key):
        """headers: the names of those recorded."""
        return self.ask('''
            SELECT jsonb_build_object('status', status, 'token', token, 'locked_until', locked_until, 'headers',
                CASE jsonb_typeof(response_headers)
                    WHEN 'array' THEN (SELECT jsonb_agg(h->0) FROM jsonb_array_elements(response_headers) AS h)
                    WHEN 'object' THEN (SELECT jsonb_agg(h) FROM jsonb_object_keys(response_headers) AS h)
                    ELSE '[]' END)
              FROM idempotency.lookup(:'scope', :'operation', :'key')
            ''', scope=scope, operation=operation, key=key)

    def resolve(self, scope, operation, key, decision, body=None):
        """What became of it is known (complete, with the answer's body), or the next attempt finds out (retry)."""
        if decision == 'complete':
            self.run('''
                SELECT idempotency.complete(:'scope', :'operation', :'key', 201, :'body',
                        '{"Content-Type": "application/json"}',
                        token => (SELECT token FROM idempotency.lookup(:'scope', :'operation', :'key'))) IS NOT NULL
                ''', scope=scope, operation=operation, key=key, body=body)
        else:
            self.run('''
                SELECT idempotency.resolve(:'scope', :'operation', :'key', :'decision', note => 'decided by the test')
                ''', scope=scope, operation=operation, key=key, decision=decision)
