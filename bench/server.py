"""The private clusters that are measured: their settings, their tables, and pgbench on them."""

import os
import shutil
import subprocess
import time
from contextlib import contextmanager

from environment import BINDIR, HERE, WORK, run
from pgbench import rate_of

# Durability is the server's default. What differs from the defaults keeps
# checkpoints and the cache out of the comparison.
SETTINGS = {
    "listen_addresses": "''",
    "shared_buffers": "'1GB'",
    "max_wal_size": "'8GB'",
    "checkpoint_timeout": "'30min'",
    "max_connections": "120",
    "shared_preload_libraries": "'idempotency'",
}

# The extension's table, the limit's with the same columns and indexes, and the
# others of setup.sql.
KEYS = "idempotency.idempotency_keys"
BARE = "bench.bare"
TABLES = (KEYS, BARE, "bench.peer_keys", "bench.payments")

# Who makes the cluster, and owns all that is in it; and who runs the scripts: a
# role without privileges but those that an application needs. A superuser is
# spared checks that every application pays for.
OWNER = "bench"
APPLICATION = "application"

# The response that is recorded.
BODY = '{"ok": true}'


class Server:
    """A private cluster that only its own socket reaches."""

    def __init__(self, **more):
        self.folder = os.path.join(WORK, "server")
        self.data = os.path.join(self.folder, "data")
        self.log = os.path.join(self.folder, "log")
        self.tables = list(TABLES)  # to be emptied; a part adds its own
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        run([BINDIR + "/initdb", "-D", self.data, "-U", OWNER, "-A", "trust",
             "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"])
        with open(self.data + "/postgresql.conf", "a") as conf:
            settings = dict(SETTINGS, unix_socket_directories="'%s'" % self.folder, **more)
            for name, value in settings.items():
                conf.write("%s = %s\n" % (name, value))
        self.environment = dict(os.environ, PGHOST=self.folder, PGUSER=OWNER, PGDATABASE="postgres",
                                PGOPTIONS="-c client_min_messages=warning")
        run([BINDIR + "/pg_ctl", "-D", self.data, "-l", self.log, "-w", "start"])
        self.sql("CREATE ROLE %s LOGIN;" % APPLICATION)

    def stop(self):
        run([BINDIR + "/pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop"])
        shutil.rmtree(self.folder, ignore_errors=True)

    def sql(self, text):
        return run([BINDIR + "/psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-"],
                   input=text, env=self.environment).strip()

    def sql_file(self, name):
        self.sql(open("%s/%s" % (HERE, name)).read())

    def set(self, name, value):
        """Changes a setting of the running server."""
        self.sql("ALTER SYSTEM SET %s = '%s';\nSELECT pg_reload_conf();" % (name, value))

    @contextmanager
    def snapshot_held(self):
        """Another session holds a snapshot meanwhile, so that vacuum can remove nothing that dies."""
        process = subprocess.Popen([BINDIR + "/psql", "-X", "-q", "-A", "-t", "-f", "-"], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, text=True, env=self.environment)
        process.stdin.write("BEGIN ISOLATION LEVEL REPEATABLE READ;\nSELECT 1;\n")
        process.stdin.flush()
        process.stdout.readline()
        yield
        if process.poll() is not None:
            raise SystemExit("the session that held a snapshot ended")
        process.communicate()

    def number(self, text):
        return float(self.sql(text))

    def prepare(self):
        self.sql("CREATE EXTENSION idempotency;")
        self.sql_file("setup.sql")

    def processor_time(self):
        """Seconds that the server's finished processes, its former sessions, have used."""
        with open(self.data + "/postmaster.pid") as pid_file:
            pid = int(pid_file.readline())
        # A session counts once its process is gone, zombies (no command) too.
        while any(not c or "[local]" in c for c in children(pid)):
            time.sleep(0.005)
        with open("/proc/%d/stat" % pid) as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    def start_pgbench(self, script, seconds=None, calls=None, clients=4, log=None, rate=0, progress=False, user=APPLICATION,
                      seed=None, **variables):
        command = [BINDIR + "/pgbench", "-n", "-M", "prepared", "-c", str(clients),
                   "-j", str(min(clients, 2)), "-f", "%s/%s.sql" % (HERE, script)]
        command += ["-T", str(seconds)] if calls is None else ["-t", str(calls)]
        for name, value in variables.items():
            command += ["-D", "%s=%s" % (name, value)]
        if seed is not None:
            command += ["--random-seed", str(seed)]
        if rate:
            command += ["-R", str(rate)]
        if progress:
            command += ["-P", "1", "--progress-timestamp"]
        if log:
            command += ["-l", "--log-prefix", log]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env=dict(self.environment, PGUSER=user), cwd=WORK)

    def pgbench(self, script, seconds, **more):
        """Transactions per second of a script."""
        return rate_of(self.start_pgbench(script, seconds, **more), script)

    def empty(self):
        self.sql("TRUNCATE %s CASCADE; CHECKPOINT;" % ", ".join(self.tables))

    def fill(self, table, number, first=1, expires="now() + interval '24 hours'"):
        """Puts completed keys into a table."""
        self.sql("""
            INSERT INTO {table} (created_at, expires_at, completed_at, attempt, response_status,
                                 scope, operation, key, status, response_body)
            SELECT now(), {expires}, now(), 1, 201, 'tenant-1', 'payment', i::text, 'completed', '{body}'
            FROM generate_series({first}, {last}) AS i;""".format(
                table=table, expires=expires, body=BODY, first=first, last=first + number - 1))


def children(pid):
    """Command lines of a process's children."""
    for child in open("/proc/%d/task/%d/children" % (pid, pid)).read().split():
        try:
            yield open("/proc/%s/cmdline" % child).read()
        except OSError:
            pass
