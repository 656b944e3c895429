"""The faults, and what has to be true after each. See run."""
import argparse
import collections
import os
import signal
import sys
import threading
import time
import traceback
import uuid

import psycopg

from cluster import Cluster, wait_for
from load import SCHEMA, SCOPE, Load, Party

FAULTS = {
    'switchover': 'switchover',
    'postmaster': 'server killed, Patroni alive',
    'node': 'server and Patroni killed',
    'freeze': 'node frozen',
    'cut': 'cut off from etcd and the other nodes',
    'patroni': 'Patroni alone frozen, no watchdog',
}
# From here on nothing of the old primary reaches the standbys. A switchover waits for
# them, and so would never come to its end.
BEHIND = [fault for fault in FAULTS if fault != 'switchover']

failed = 0
passed = 0


def check(what, true, detail=''):
    global failed, passed
    if true:
        passed += 1
    else:
        failed += 1
    print(f'{"ok     " if true else "FAILED "} {what}' + (f': {detail}' if detail != '' and (not true or isinstance(detail, str)) else ''),
          flush=True)
    return true


def sqlstate_of(connection, sql, *values):
    """'' or the SQLSTATE, and the reason of an IK001."""
    try:
        connection.execute(sql, values)
    except psycopg.Error as error:
        return f'{error.sqlstate} {error.diag.constraint_name or ""}'.strip()
    return ''


COMPLETE = 'SELECT idempotency.complete(%s, %s, %s, 200, %s, token => %s)'


class Ghost(threading.Thread):
    """A client that knows only the old primary, past haproxy, and goes on asking it."""

    def __init__(self, node, name):
        super().__init__(daemon=True)
        self.node, self.name, self.ended = node, name, False
        self.acknowledged = []  # (when, key)
        self.tokens = []  # (key, token)
        self.asked = 0

    def run(self):
        connection = None
        while not self.ended:
            self.asked += 1
            key = f'{self.name} {self.asked}'
            try:
                connection = connection or self.node.connect()
                token, = connection.execute("SELECT token FROM idempotency.claim(%s, 'ghost', %s, lease => '1 hour')",
                                            (SCOPE, key)).fetchone()
                self.acknowledged.append((time.monotonic(), key))
                self.tokens.append((key, token))
            except psycopg.Error:
                if connection:
                    connection.close()
                connection = None
            time.sleep(0.1)


class Probes:
    """Keys in each state that matters, made before the fault and looked at after it."""

    def __init__(self, cluster, party, name):
        self.cluster, self.party, self.name = cluster, party, name
        self.tokens = {}
        self.in_the_gap = {}  # what -> what the client was told while the standbys were behind
        self.threads = []

    def key(self, what):
        return f'{self.name} {what}'

    def claim(self, connection, what, lease, claim_id=None):
        return connection.execute(
            'SELECT outcome, token FROM idempotency.claim(%s, %s, %s, lease => %s::interval, claim_id => %s)',
            (SCOPE, 'probe', self.key(what), lease, claim_id)).fetchone()

    def status(self, connection, what):
        row = connection.execute('SELECT status FROM idempotency.lookup(%s, %s, %s)', (SCOPE, 'probe', self.key(what))).fetchone()
        return row and row[0]

    def make(self):
        with self.cluster.connect() as connection:
            for what, lease in (('late', '1 s'), ('long', '1 hour'), ('held', '1 hour'), ('stolen', '1 ms')):
                self.tokens[what] = self.claim(connection, what, lease)[1]
            connection.execute('SELECT idempotency.hold(%s, %s, %s, token => %s)', (SCOPE, 'probe', self.key('held'), self.tokens['held']))
            connection.execute("SELECT idempotency.claim(%s, 'probe', %s, lease => '1 ms', hold_if_abandoned => true)",
                               (SCOPE, self.key('abandoned')))
            connection.execute("SELECT idempotency.once(%s, 'probe', %s, ttl => '12 s')", (SCOPE, self.key('expiring')))
            self._book(connection, 'done', 'the first answer')

    def _book(self, connection, what, answer):
        with connection.transaction():
            outcome, body = connection.execute('SELECT outcome, response_body FROM idempotency.claim(%s, %s, %s)',
                                               (SCOPE, 'probe', self.key(what))).fetchone()
            if outcome == 'claimed':
                connection.execute('INSERT INTO work VALUES (%s, %s)', (self.key(what), answer))
                connection.execute('SELECT idempotency.complete(%s, %s, %s, 200, %s)', (SCOPE, 'probe', self.key(what), answer))
                body = answer
        return body

    def lose_answers(self):
        """A COMMIT whose answer nobody reads: once asked again with the same key, once, by a
        careless client, with a new one."""
        for what in ('lost answer', 'careless'):
            key = self.key(what)
            connection = self.cluster.connect()
            connection.pgconn.send_query(f'''
                BEGIN;
                SELECT outcome FROM idempotency.claim('{SCOPE}', 'probe', '{key}');
                INSERT INTO work VALUES ('{key}', 'first');
                SELECT idempotency.complete('{SCOPE}', 'probe', '{key}', 200, 'first');
                COMMIT'''.encode())
            connection.pgconn.flush()
            with self.cluster.connect() as other:
                wait_for('it is committed', lambda: self.status(other, what) == 'completed')
            connection.pgconn.finish()

    def start_gap(self, leader):
        """Claims and a completion that no standby gets, each by a client of its own, which waits
        for its answer."""
        def client(what, ask):
            try:
                with self.cluster.connect() as connection:
                    self.in_the_gap[what] = ask(connection)
            except psycopg.Error:
                pass

        self.lost_id = {what: uuid.uuid4() for what in ('honours', 'plain')}
        asks = {what: lambda connection, what=what: self.claim(connection, what, '1 hour', self.lost_id[what])[1]
                for what in ('honours', 'plain')}
        asks['stolen'] = lambda connection: self.claim(connection, 'stolen', '1 hour')[1]
        asks['book'] = lambda connection: self._book(connection, 'book', 'answered in the gap')
        self.threads = [threading.Thread(target=client, args=ask, daemon=True) for ask in asks.items()]
        for thread in self.threads:
            thread.start()

    def ask_party(self, what):
        """What an owner of the claim does outside."""
        with self.cluster.connect() as connection:
            effect_key, = connection.execute('SELECT idempotency.effect_key(%s, %s, %s)', (SCOPE, 'probe', self.key(what))).fetchone()
        self.party.ask(what, self.key(what), effect_key)


class Round:
    def __init__(self, cluster, party, fault, synchronous, number):
        self.cluster, self.party, self.fault, self.synchronous = cluster, party, fault, synchronous
        self.name = f'{number}'
        self.title = f'{FAULTS[fault]}, {"on" if synchronous else "off"}'
        self.row = {}

    def check(self, what, true, detail=''):
        return check(f'{self.title}: {what}', true, detail)

    def run(self):
        cluster = self.cluster
        is_synchronous = self.synchronous and os.environ.get('MUTATE') != 'async'
        cluster.configure(synchronous_mode=is_synchronous)
        self.old = cluster.wait_until_whole(is_synchronous)
        self.probes = Probes(cluster, self.party, self.name)
        self.probes.make()
        self.probes.lose_answers()
        # A completion that is lost, of a claim that is not, leaves the key in progress: its owner
        # was told that it is done, and will not come back. Others wait for the end of the lease.
        load = self.load = Load(cluster, self.party, self.name, '10 min' if is_synchronous else '30 s')
        time.sleep(3)
        cluster.wait_until_replayed(self.old)

        if self.fault in BEHIND:
            self.old.to_me.cut()
            self.probes.start_gap(self.old)
            time.sleep(1.5)
        ghost = Ghost(self.old, f'{self.name} ghost')
        ghost.start()
        # Half a second of its claims before the fault; in a gap, they are lost.
        time.sleep(0.5)
        self.asked_in_gap = dict(self.probes.in_the_gap)
        for what in ('honours', 'plain'):
            if what in self.asked_in_gap:
                self.probes.ask_party(what)

        began = time.monotonic()
        self.do_fault()
        self.new = wait_for('there is a new primary', lambda: self.cluster.leader(self.old))
        wait_for('it takes writes', lambda: self.new.value('SELECT NOT pg_is_in_recovery()'))
        promoted = time.monotonic()
        cluster.processes.note()
        wait_for('a client is answered', lambda: load.history.first_after(promoted))
        time.sleep(2)
        if self.fault == 'patroni':
            self.in_two_minds(promoted)
        self.undo_fault()
        time.sleep(3)
        self.row['outage'] = load.history.outage(began, time.monotonic())
        load.no_more_new()
        try:
            wait_for('everything is answered', load.is_answered)
        except TimeoutError:
            with cluster.connect() as connection:
                print(load.describe(), connection.execute(
                    "SELECT operation, key, status, locked_until, now() FROM idempotency.idempotency_keys"
                    " WHERE scope = %s AND status <> 'completed' AND operation <> 'probe'", (SCOPE,)).fetchmany(10))
            raise
        load.end()
        ghost.ended = True
        self.check('the clients met no other error', not load.errors, load.errors[:3])

        wait_for('the gap\'s clients are done', lambda: not any(thread.is_alive() for thread in self.probes.threads))
        with cluster.connect() as connection:
            self.look_at_history(connection, promoted)
            self.look_at_probes(connection)
            self.look_at_gap(connection)
            self.look_at_ghost(connection, ghost, promoted)
            self.look_at_server(connection)
        self.look_at_old_primary(is_synchronous)
        return self.row

    # ---- the fault -------------------------------------------------------------------

    def do_fault(self):
        old = self.old
        if self.fault == 'switchover':
            status, text = self.cluster.switchover(old)
            self.check('Patroni did it', status == 200, text)
        elif self.fault == 'postmaster':
            old.stop_postmaster()
        elif self.fault == 'node':
            old.stop_now()
        elif self.fault == 'freeze':
            old.freeze()
        elif self.fault == 'cut':
            # From the other nodes, too, or they would learn from it that it has more than they have,
            # and with synchronous_mode off none of them would step in.
            old.to_etcd.cut()
            old.to_rest.cut()
        elif self.fault == 'patroni':
            old.freeze_patroni()

    def undo_fault(self):
        old = self.old
        old.to_me.mend()
        old.to_etcd.mend()
        old.to_rest.mend()
        if self.fault == 'node':
            old.start()
        elif self.fault in ('freeze', 'patroni'):
            old.thaw()
        self.cluster.processes.note()

    def in_two_minds(self, promoted):
        """The old primary goes on, and nobody has told it. One key, claimed there and here."""
        key = self.probes.key('two minds')
        told = []

        def there():
            try:
                with self.old.connect() as connection:
                    told.append(connection.execute("SELECT token FROM idempotency.claim(%s, 'probe', %s, lease => '1 hour')",
                                                   (SCOPE, key)).fetchone()[0])
            except psycopg.Error:
                pass

        thread = threading.Thread(target=there, daemon=True)
        thread.start()
        with self.cluster.connect() as connection:
            token, = connection.execute("SELECT token FROM idempotency.claim(%s, 'probe', %s, lease => '1 hour')", (SCOPE, key)).fetchone()
            time.sleep(1)
            if self.synchronous:
                self.check('the old primary acknowledges no claim', not told)
            else:
                wait_for('the old primary has answered', lambda: told)
                self.check('the old primary\'s claim of the same key has another token', told[0] != token)
                got = sqlstate_of(connection, COMPLETE, SCOPE, 'probe', key, 'of the old primary', told[0])
                self.check('and is refused here', got in ('IK001 taken_over', 'IK002'), got)

    # ---- after it --------------------------------------------------------------------

    def look_at_history(self, connection, promoted):
        history = self.load.history
        rows = collections.defaultdict(list)
        for key, answer in connection.execute('SELECT key, answer FROM work'):
            rows[key].append(answer)
        answers = {f'{key}': body for key, body in connection.execute(
            'SELECT key, response_body FROM idempotency.idempotency_keys WHERE scope = %s AND status = %s', (SCOPE, 'completed'))}
        before = [key for key, told in history.acknowledged.items() if any(at < promoted for at, _ in told)]
        lost = []
        for key, told in history.acknowledged.items():
            kind = history.requests[key]
            for at, answer in told:
                if answer is not None and answer not in rows[key] or kind != 'once' and answer != answers.get(key):
                    lost.append((key, at < promoted))
                    break
        twice = [key for key in history.requests if len(rows[key]) > 1]
        party = {kind: [key for key in history.requests if history.requests[key] == kind and self.party.carried_out[key] > 1]
                 for kind in ('honours', 'plain')}
        unanswered = [key for key in history.requests if key not in history.acknowledged]
        self.row.update(requests=len(history.requests), before=len(before), acknowledged=len(history.acknowledged), lost=len(lost),
                        twice=len(twice), refused=dict(history.refused), plain=len(party['plain']), honours=len(party['honours']))

        self.check('every request was answered in the end', not unanswered, unanswered[:3])
        self.check('the load went on before and after', 0 < len(before) < len(history.requests),
                   f'{len(before)} of {len(history.requests)} before')
        self.check('nothing was recorded twice', not twice, twice[:3])
        self.check('no token twice for a key', not history.same_token, history.same_token[:3])
        self.check('a party that honours effect_key did nothing twice', not party['honours'], party['honours'][:3])
        if self.synchronous or self.fault == 'switchover':
            self.check('no acknowledged answer was lost', not lost,
                       f'{len(lost)} lost, such as {lost[:3]}' if lost else f'{len(before)} were there')
            self.check('a party that takes no key did nothing twice', not party['plain'], party['plain'][:3])
        else:
            self.check('the test notices what is lost without a synchronous standby', lost, f'{len(lost)} acknowledged and lost')
            late = [key for key, early in lost if not early]
            if self.fault in ('freeze', 'patroni'):
                print(f'        {self.title}: {len(late)} of these were acknowledged by the old primary after there was a new one',
                      flush=True)
            else:
                self.check('all of it before there was a new primary', not late, late[:3])
        missing = [key for key in history.requests if not rows[key]]
        self.check('every request has its row of work', not missing, missing[:3])

    def look_at_probes(self, connection):
        probes, tokens = self.probes, self.probes.tokens

        def complete(what, token, answer='late'):
            return sqlstate_of(connection, COMPLETE, SCOPE, 'probe', probes.key(what), answer, token)

        outcome, token = probes.claim(connection, 'late', '1 hour')
        self.check('a lapsed lease is taken over', outcome == 'claimed' and token > tokens['late'], (outcome, token))
        got = complete('late', tokens['late'])
        self.check('its late owner is refused on the new primary', got == 'IK001 taken_over', got)
        self.check('the new owner completes', complete('late', token, 'new') == '')
        outcome, _ = probes.claim(connection, 'long', '1 hour')
        self.check('a lease that lasts is respected', outcome == 'in_progress', outcome)
        got = complete('long', tokens['long'], 'mine')
        self.check('and its owner completes on the new primary', got == '', got)
        outcome, _ = probes.claim(connection, 'held', '1 hour')
        self.check('a held key is held', outcome == 'held', outcome)
        got = complete('held', tokens['held'], 'known')
        self.check('and is completed by its token', got == '', got)
        outcome, _ = probes.claim(connection, 'abandoned', '1 hour')
        self.check('a claim that is held when abandoned is held', outcome == 'held', outcome)
        body = probes._book(connection, 'done', 'a second answer')
        self.check('what was done is replayed', body == 'the first answer', body)

        probes._book(connection, 'lost answer', 'second')
        with self.cluster.connect() as careless:
            # "I got no answer, so it is a new request."
            with careless.transaction():
                careless.execute('SELECT idempotency.claim(%s, %s, %s)', (SCOPE, 'probe', probes.key('careless') + ' anew'))
                careless.execute('INSERT INTO work VALUES (%s, %s)', (probes.key('careless'), 'second'))
                careless.execute("SELECT idempotency.complete(%s, %s, %s, 200, 'second')",
                                 (SCOPE, 'probe', probes.key('careless') + ' anew'))
        number = {what: connection.execute('SELECT count(*) FROM work WHERE key = %s', (probes.key(what),)).fetchone()[0]
                  for what in ('lost answer', 'careless')}
        self.check('an answer that was lost, asked for with the same key: done once', number['lost answer'] == 1, number)
        self.check('asked for with a new key: done twice, and the test notices', number['careless'] == 2, number)

    def look_at_gap(self, connection):
        """What was claimed while the standbys were behind: in the asynchronous cluster it was
        acknowledged, and is lost."""
        if self.fault not in BEHIND:
            return
        probes, told = self.probes, self.asked_in_gap
        self.row['claims'] = sum(what in told for what in ('honours', 'plain', 'stolen'))
        if self.synchronous:
            self.check('nothing is acknowledged that no standby has', not told, told)
            for what in ('honours', 'plain'):
                outcome, token = probes.claim(connection, what, '1 hour', probes.lost_id[what])
                self.check(f'a claim without an answer, asked for again with its claim_id ({what})', outcome == 'claimed', outcome)
                probes.ask_party(what)
                self.party_did(what, 1)
                connection.execute(COMPLETE, (SCOPE, 'probe', probes.key(what), 'again', token))
            return

        self.check('claims and answers were acknowledged that no standby has', len(told) == 4, sorted(told))
        for what in ('honours', 'plain'):
            lost = told[what]
            got = sqlstate_of(connection, COMPLETE, SCOPE, 'probe', probes.key(what), 'of the lost claim', lost)
            self.check(f'the owner of a lost claim is refused ({what})', got == 'IK001 forgotten', got)
            outcome, token = probes.claim(connection, what, '1 hour')
            self.check(f'the key is claimed anew, by another token ({what})', outcome == 'claimed' and token > lost, (outcome, token, lost))
            got = sqlstate_of(connection, COMPLETE, SCOPE, 'probe', probes.key(what), 'of the lost claim', lost)
            self.check(f'the lost claim cannot complete its successor\'s ({what})', got == 'IK001 taken_over', got)
            probes.ask_party(what)
            connection.execute(COMPLETE, (SCOPE, 'probe', probes.key(what), 'of its successor', token))
            got = sqlstate_of(connection, COMPLETE, SCOPE, 'probe', probes.key(what), 'of the lost claim', lost)
            self.check(f'nor replace its answer ({what})', got == 'IK001 completed', got)
        # effect_key closes the gap for a party that honours it.
        self.party_did('honours', 1)
        self.party_did('plain', 2)

        lost = told['stolen']
        got = sqlstate_of(connection, COMPLETE, SCOPE, 'probe', probes.key('stolen'), 'of the lost takeover', lost)
        self.check('the owner of a lost takeover is refused', got == 'IK002', got)
        outcome, token = probes.claim(connection, 'stolen', '1 hour')
        self.check('the key is taken over anew, by another token', outcome == 'claimed' and token > lost, (outcome, token, lost))
        got = sqlstate_of(connection, COMPLETE, SCOPE, 'probe', probes.key('stolen'), 'of the lost takeover', lost)
        self.check('and the lost takeover cannot complete it', got == 'IK001 taken_over', got)
        body = probes._book(connection, 'book', 'answered anew')
        self.check('an answer that was lost is given anew, with the work done once', body == 'answered anew' and
                   connection.execute('SELECT count(*) FROM work WHERE key = %s', (probes.key('book'),)).fetchone()[0] == 1, body)

    def party_did(self, what, times):
        number = self.party.carried_out[self.probes.key(what)]
        self.check(f'the party did it {times} time{"s" * (times > 1)} ({what})', number == times, number)

    def look_at_ghost(self, connection, ghost, promoted):
        """What the old primary acknowledged after there was a new one."""
        after = [key for at, key in ghost.acknowledged if at > promoted]
        there = {key for key, in connection.execute(
            "SELECT key FROM idempotency.idempotency_keys WHERE scope = %s AND operation = 'ghost'", (SCOPE,))}
        lost = [key for key in after if key not in there]
        self.row['ghost'] = len(lost)
        if self.synchronous or self.fault in ('switchover', 'node', 'postmaster', 'cut'):
            self.check('the old primary acknowledged nothing more', not lost, lost[:3])
        else:
            print(f'        {self.title}: the old primary went on, and acknowledged {len(lost)} claims that are lost', flush=True)
        if self.fault in BEHIND:
            refused = [sqlstate_of(connection, COMPLETE, SCOPE, 'ghost', key, 'late', token)
                       for key, token in ghost.tokens if key not in there]
            self.check('every claim that was lost with the old primary is refused here',
                       set(refused) <= {'IK001 forgotten'}, f'{len(refused)} refused')

    def look_at_server(self, connection):
        key = self.probes.key('expiring')
        wait_for('the expired key is deleted', lambda: connection.execute(
            'SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = %s AND key = %s', (SCOPE, key)).fetchone()[0] == 0)
        # A round by the launcher of this server, which began with its promotion.
        rounds = wait_for('a round of clean-up is finished here', lambda: connection.execute(
            "SELECT count(*) FROM idempotency.health() WHERE check_name = 'worker' AND status = 'ok'").fetchone()[0])
        self.check('an expired key is deleted on the new primary without a call', rounds == 1)
        sick = connection.execute("SELECT check_name, status, value, detail FROM idempotency.health()"
                                  " WHERE status <> 'ok' AND check_name NOT IN ('held_keys', 'abandoned_claims')").fetchall()
        self.check('health() has nothing to say but of the keys that are held', not sick, sick)

    def look_at_old_primary(self, is_synchronous):
        cluster = self.cluster
        leader = cluster.wait_until_whole(is_synchronous)
        self.check('the old primary has joined as a standby', leader is not self.old)
        if self.fault in BEHIND:
            with open(f'{cluster.folder}/{self.old.name}.log') as file:
                log = file.read()
            rewound = log.count('running pg_rewind')
            self.row['rewound'] = rewound
            self.check('by pg_rewind', rewound > self.old.rewound)
            self.old.rewound = rewound
        state = '''SELECT md5(string_agg(k::text, E'\\n' ORDER BY scope, operation, key)), count(*)
            FROM idempotency.idempotency_keys k WHERE expires_at > now() + interval '1 hour' '''
        works = 'SELECT md5(string_agg(w::text, E\'\\n\' ORDER BY key, answer)) FROM work w'
        cluster.wait_until_replayed(leader)
        expected = [leader.value(state), leader.value(works)]
        for node in cluster.standbys(leader):
            self.check(f'{"the old primary" if node is self.old else "the other standby"} has the same keys and rows as the new one',
                       [node.value(state), node.value(works)] == expected)


def table(rows):
    columns = ('fault', 'synchronous_mode', 'requests', 'acknowledged by the old primary', 'of these lost', 'claims lost', 'recorded twice',
               'done twice: party with effect_key', 'without', 'by the old primary afterwards', 'outage, s')
    print('\n| ' + ' | '.join(columns) + ' |\n|' + '---|' * len(columns))
    for fault, synchronous, row in rows:
        print('| ' + ' | '.join(str(value) for value in (
            FAULTS[fault], 'on' if synchronous else 'off', row['requests'], row['before'], row['lost'], row.get('claims', 0), row['twice'],
            row['honours'], row['plain'], row['ghost'], f'{row["outage"]:.1f}')) + ' |')


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('bindir')
    parser.add_argument('folder')
    parser.add_argument('--short', action='store_true')
    options = parser.parse_args()
    if options.short:
        rounds = [('node', True)]
    elif os.environ.get('ROUNDS'):
        rounds = [(name, mode == 'on') for name, mode in (one.split(':') for one in os.environ['ROUNDS'].split(','))]
    else:
        rounds = [(fault, synchronous) for synchronous in (True, False) for fault in FAULTS]

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rows = []
    began = time.monotonic()
    cluster = None
    try:
        cluster = Cluster(options.bindir, options.folder)
        for node in cluster.nodes:
            node.rewound = 0
        cluster.wait_until_whole(True)
        party = Party()
        with cluster.connect() as connection:
            connection.execute(SCHEMA)
        check('three nodes, one of them the primary', True, f'after {time.monotonic() - began:.0f} s')
        for number, (fault, synchronous) in enumerate(rounds, 1):
            at = time.monotonic()
            rows.append((fault, synchronous, Round(cluster, party, fault, synchronous, number).run()))
            print(f'        {time.monotonic() - at:.0f} s', flush=True)
    except (TimeoutError, psycopg.Error) as error:
        check('the test came to its end', False, f'{type(error).__name__}: {error}')
        traceback.print_exc()
    finally:
        if cluster:
            cluster.processes.end_all()
    if rows:
        table(rows)
    print(f'\n{passed} passed, {failed} failed')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
