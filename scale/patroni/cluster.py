"""Three Patroni nodes, one etcd and one haproxy on this machine, and what can befall them.

Each node reaches etcd, and is reached by the other nodes, through a link of its own: a
haproxy that only passes bytes on. A link that is cut is a haproxy that is stopped: it
loses nothing at once, answers nothing, and what it holds is dropped when it is mended.
So a node can be cut off from etcd, or its standbys from it, without touching it. Clients
reach every node without a link.

All processes are descendants of this one, also those whose parents were killed, so that
each can be found and ended by its number.
"""
import ctypes
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request

import psycopg

PR_SET_CHILD_SUBREAPER = 36
PATIENCE = 180  # seconds; for what has to happen, whatever else the machine does


def wait_for(what, condition, patience=PATIENCE):
    """Waits until the condition is true, and returns what it returned."""
    deadline = time.monotonic() + patience
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(f'waited {patience} s in vain until {what}')
        time.sleep(0.1)


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(('127.0.0.1', 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def the_right_etcd():
    """How Patroni speaks to etcd. By etcd's version 3, a Patroni before 3.0.3 takes the lock back
    without looking who has it by now: a primary that was frozen deposes its successor, and what
    that has acknowledged is lost (patroni pull request 2689). By version 2 it looks."""
    version = subprocess.run(['patroni', '--version'], capture_output=True, text=True, check=True).stdout.split()[-1]
    return 'etcd' if [int(part) for part in version.split('.')[:3]] < [3, 0, 3] else 'etcd3'


def http(url, method='GET', data=None, timeout=3):
    """Status and JSON of an answer; status 0 where there is none."""
    request = urllib.request.Request(url, method=method, data=None if data is None else json.dumps(data).encode(),
                                     headers={'Content-Type': 'application/json'})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    except OSError:
        return 0, None
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text.decode(errors='replace')


# ---- processes -----------------------------------------------------------------------

def stat_of(pid):
    """Parent and start time of a process; None where it is gone or a zombie."""
    try:
        with open(f'/proc/{pid}/stat') as file:
            fields = file.read().rpartition(')')[2].split()
    except OSError:
        return None
    return None if fields[0] == 'Z' else (int(fields[1]), fields[19])


def descendants(*roots):
    children = {}
    for name in os.listdir('/proc'):
        if name.isdigit():
            stat = stat_of(name)
            if stat:
                children.setdefault(stat[0], []).append(int(name))
    found, left = [], list(roots)
    while left:
        pid = left.pop()
        found.append(pid)
        left.extend(children.get(pid, []))
    return found


def send(signal_number, *pids):
    for pid in pids:
        try:
            os.kill(pid, signal_number)
        except ProcessLookupError:
            pass


class Processes:
    """What runs. Orphans become children of this process, and are reaped."""

    def __init__(self, folder):
        self.folder = folder
        self.known = set()
        self.lock = threading.Lock()
        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), 'prctl')
        threading.Thread(target=self._reap, daemon=True).start()
        self.note()

    @staticmethod
    def _reap():
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                time.sleep(0.1)

    def start(self, name, command, **options):
        with open(f'{self.folder}/{name}.log', 'ab') as log:
            pid = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                                   start_new_session=True, **options).pid
        self.note()
        return pid

    def note(self):
        """Keeps the list by which the caller ends everything if this process cannot."""
        with self.lock, open(f'{self.folder}/pids', 'a') as file:
            for pid in descendants(os.getpid()):
                stat = stat_of(pid)
                if stat and (pid, stat[1]) not in self.known:
                    self.known.add((pid, stat[1]))
                    file.write(f'{pid} {stat[1]}\n')

    @staticmethod
    def end_all():
        deadline = time.monotonic() + 30
        while len(descendants(os.getpid())) > 1 and time.monotonic() < deadline:
            send(signal.SIGKILL, *descendants(os.getpid())[1:])
            time.sleep(0.1)


# ---- links and nodes -------------------------------------------------------------------

class Link:
    """Passes bytes on to a port of this machine, until it is cut."""

    def __init__(self, processes, name, port, target):
        self.processes, self.name, self.port = processes, name, port
        self.config = f'{processes.folder}/{name}.cfg'
        with open(self.config, 'w') as file:
            file.write(f'''global
    maxconn 300
defaults
    mode tcp
    timeout connect 3s
    timeout client 1h
    timeout server 1h
listen link
    bind 127.0.0.1:{port}
    server target 127.0.0.1:{target}
''')
        self.pid = None
        self.is_cut = False
        self.mend()

    def cut(self):
        self.is_cut = True
        send(signal.SIGSTOP, *descendants(self.pid))

    def mend(self):
        if self.pid is not None:
            if not self.is_cut:
                return
            old = descendants(self.pid)
            send(signal.SIGKILL, *old)
            wait_for('a link is gone', lambda: not any(stat_of(pid) for pid in old))
        self.is_cut = False
        self.pid = self.processes.start(self.name, ['haproxy', '-db', '-f', self.config])


class Node:
    def __init__(self, cluster, name, ports):
        self.cluster, self.name = cluster, name
        self.port, self.rest, etcd_port, link_port, rest_port = ports
        self.data = f'{cluster.folder}/{name}/data'
        os.mkdir(f'{cluster.folder}/{name}', 0o700)
        self.to_etcd = Link(cluster.processes, f'{name}-to-etcd', etcd_port, cluster.etcd_port)
        self.to_me = Link(cluster.processes, f'{name}-to-me', link_port, self.port)
        self.to_rest = Link(cluster.processes, f'{name}-to-rest', rest_port, self.rest)
        self.patroni = None
        with open(f'{cluster.folder}/{name}.yml', 'w') as file:
            json.dump(self.config(), file, indent=4)  # JSON is YAML

    def config(self):
        """What is special to the test: the links, trust, and short times."""
        everybody = {name: {'username': name} for name in ('superuser', 'replication', 'rewind')}
        everybody['superuser'] = {'username': 'postgres'}
        return {
            'scope': 'idempotency', 'name': self.name,
            'restapi': {'listen': f'127.0.0.1:{self.rest}', 'connect_address': f'127.0.0.1:{self.to_rest.port}'},
            # use_proxies: the members of etcd are not asked for their addresses, past the link
            self.cluster.dcs: {'hosts': [f'127.0.0.1:{self.to_etcd.port}'], 'use_proxies': True},
            'bootstrap': {
                'dcs': {
                    'ttl': 20, 'loop_wait': 2, 'retry_timeout': 6,
                    'synchronous_mode': True,
                    'maximum_lag_on_failover': 1 << 26,
                    'primary_start_timeout': 0,
                    'postgresql': {
                        'use_pg_rewind': True, 'use_slots': True,
                        'parameters': {
                            'shared_preload_libraries': 'idempotency', 'idempotency.cleanup_interval': '2s',
                            'max_connections': 60, 'wal_sender_timeout': '5s', 'wal_log_hints': 'on',
                        }}},
                'initdb': [{'encoding': 'UTF8'}, {'locale': 'C'}, 'no-sync'],
            },
            'postgresql': {
                'listen': f'127.0.0.1:{self.port}', 'connect_address': f'127.0.0.1:{self.to_me.port}',
                'data_dir': self.data, 'bin_dir': self.cluster.bindir, 'pgpass': f'{self.cluster.folder}/{self.name}/pgpass',
                'authentication': everybody,
                'pg_hba': ['local all all trust', 'host all all 127.0.0.1/32 trust', 'host replication all 127.0.0.1/32 trust'],
                'parameters': {'unix_socket_directories': f'{self.cluster.folder}/{self.name}', 'log_line_prefix': '%m [%p] '},
                'basebackup': [{'checkpoint': 'fast'}, 'no-sync'],
                'create_replica_methods': ['basebackup'],
            },
            'tags': {},
        }

    def start(self):
        self.patroni = self.cluster.processes.start(self.name, ['patroni', f'{self.cluster.folder}/{self.name}.yml'])

    def postmaster(self):
        try:
            with open(f'{self.data}/postmaster.pid') as file:
                pid = int(file.readline())
        except (OSError, ValueError):
            return None
        return pid if stat_of(pid) else None

    def pids(self):
        roots = [pid for pid in (self.patroni, self.postmaster()) if pid and stat_of(pid)]
        return list(dict.fromkeys(descendants(*roots)))

    def stop_now(self):
        """SIGKILL to Patroni and to the server, all of them, as if the machine had lost its power."""
        pids = self.pids()
        while pids:
            send(signal.SIGKILL, *pids)
            time.sleep(0.05)
            pids = self.pids()

    def stop_postmaster(self):
        send(signal.SIGKILL, *descendants(self.postmaster()))

    def freeze(self):
        # Twice: what was begun meanwhile.
        for _ in range(2):
            send(signal.SIGSTOP, *self.pids())

    def freeze_patroni(self):
        send(signal.SIGSTOP, *[pid for pid in descendants(self.patroni) if pid not in descendants(self.postmaster())])

    def thaw(self):
        send(signal.SIGCONT, *self.pids())

    def connect(self, **options):
        return psycopg.connect(host='127.0.0.1', port=self.port, user='postgres', dbname='postgres', autocommit=True,
                               connect_timeout=10, **options)

    def value(self, sql, *values):
        """One value, or None while the node cannot be asked."""
        try:
            with self.connect() as connection:
                return connection.execute(sql, values).fetchone()[0]
        except psycopg.Error:
            return None


class Cluster:
    def __init__(self, bindir, folder):
        self.bindir, self.folder = bindir, folder
        self.dcs = os.environ.get('DCS') or the_right_etcd()
        self.processes = Processes(folder)
        self.etcd_port, peer, self.port, *ports = free_ports(3 + 3 * 5)
        etcd = f'http://127.0.0.1:{self.etcd_port}'
        self.processes.start('etcd', [
            'etcd', '--enable-v2', '--name', 'etcd', '--data-dir', f'{folder}/etcd',
            '--listen-client-urls', etcd, '--advertise-client-urls', etcd,
            '--listen-peer-urls', f'http://127.0.0.1:{peer}', '--initial-advertise-peer-urls', f'http://127.0.0.1:{peer}',
            '--initial-cluster', f'etcd=http://127.0.0.1:{peer}'])
        wait_for('etcd answers', lambda: http(f'{etcd}/health')[0] == 200)
        self.nodes = [Node(self, f'n{i + 1}', ports[5 * i:5 * i + 5]) for i in range(3)]
        self._start_haproxy()
        self.nodes[0].start()
        wait_for('the first node is the primary', self.leader)
        for node in self.nodes[1:]:
            node.start()

    def _start_haproxy(self):
        servers = '\n'.join(f'    server {node.name} 127.0.0.1:{node.port} check port {node.rest}' for node in self.nodes)
        with open(f'{self.folder}/haproxy.cfg', 'w') as file:
            file.write(f'''global
    maxconn 300
defaults
    mode tcp
    retries 1
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    timeout check 2s
listen primary
    bind 127.0.0.1:{self.port}
    option httpchk GET /primary
    http-check expect status 200
    default-server inter 500ms fall 2 rise 1 on-marked-down shutdown-sessions
{servers}
''')
        self.processes.start('haproxy', ['haproxy', '-db', '-f', f'{self.folder}/haproxy.cfg'])

    def connect(self, **options):
        """As an application does: through haproxy, to the primary."""
        return psycopg.connect(host='127.0.0.1', port=self.port, user='postgres', dbname='postgres', autocommit=True,
                               connect_timeout=5, **options)

    def leader(self, *others_than):
        """The node that says it is the primary and holds the lock."""
        for node in self.nodes:
            if node not in others_than and http(f'http://127.0.0.1:{node.rest}/primary')[0] == 200:
                return node
        return None

    def configure(self, **settings):
        def done():
            return any(http(f'http://127.0.0.1:{node.rest}/config', 'PATCH', settings)[0] == 200 for node in self.nodes)
        wait_for('Patroni has taken its settings', done)

    def is_whole(self, synchronous):
        """The primary if two standbys follow it, one of them synchronous or none."""
        leader = self.leader()
        if not leader:
            return None
        states = leader.value("SELECT array_agg(sync_state ORDER BY sync_state) FROM pg_stat_replication WHERE state = 'streaming'")
        names = leader.value('SHOW synchronous_standby_names')
        if sorted(states or []) != (['async', 'sync'] if synchronous else ['async', 'async']) or bool(names) != synchronous:
            return None
        status, answer = http(f'http://127.0.0.1:{leader.rest}/cluster')
        if status != 200:
            return None
        roles = sorted(member['role'] for member in answer['members'])
        return leader if roles == (['leader', 'replica', 'sync_standby'] if synchronous else ['leader', 'replica', 'replica']) else None

    def wait_until_whole(self, synchronous):
        return wait_for('two standbys follow the primary', lambda: self.is_whole(synchronous))

    def standbys(self, leader):
        return [node for node in self.nodes if node is not leader]

    def wait_until_replayed(self, leader):
        lsn = leader.value('SELECT pg_current_wal_flush_lsn()')
        for node in self.standbys(leader):
            wait_for('the standbys have replayed it', lambda: node.value('SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn', lsn))

    def switchover(self, leader):
        return http(f'http://127.0.0.1:{leader.rest}/switchover', 'POST', {'leader': leader.name}, timeout=PATIENCE)
