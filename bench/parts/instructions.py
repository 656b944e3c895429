"""Instructions that the server executes for a call, in a session as clients have it.

The server runs under callgrind, and pgbench calls it as in the other parts:
prepared statements over the extended protocol, on one connection.  The same
seed gives every script the same keys, and every session starts with a copy of
the same cluster, so that the calls that are counted, those that a longer
session has more than a shorter one, are the same each time.  The count hardly
changes on a busy machine, so the floors are close.  It leaves out the kernel:
network, disk and waiting.
"""

import os
import re
import shutil
import subprocess
import time
from typing import NamedTuple, Optional

from environment import BINDIR, WORK, run
from pgbench import rate_of
from server import APPLICATION, BARE, KEYS, OWNER, Server
from table import heading, show, spread

# How many completed keys are there before.
RECORDED = 20_000


class Call(NamedTuple):
    """A script, its limit, the floor for bench/check, and how many calls are counted."""
    name: str
    script: str
    limit: str
    floor: Optional[float] = None
    number: int = 1000
    user: str = APPLICATION


CALLS = [
    Call("same transaction, one statement", "ours/one_statement", "limit/insert", 0.64),
    Call("the same as the owner, a superuser", "ours/one_statement", "limit/insert", user=OWNER),
    Call("run", "ours/run", "limit/insert"),
    Call("claim with a lease, then complete by token", "ours/committed", "limit/insert_then_update"),
    Call("once", "ours/once", "limit/insert"),
    Call("once_batch of 1,000, growing keys", "ours/once_batch", "limit/insert_batch", number=10),
    Call("claim that replays", "ours/claim_replays", "limit/select", 0.95),
    Call("replay()", "ours/replay", "limit/select_response"),
    Call("(c) PL/pgSQL, one statement", "peers/c_plpgsql_one_statement", "limit/insert"),
]


class Counter:
    """Counts for scripts, on copies of one cluster."""

    def __init__(self):
        # The log tells which process served a connection.
        self.server = Server(fsync="off", autovacuum="off", log_connections="on", log_line_prefix="'%p '")
        self.server.prepare()
        for table in (KEYS, BARE):
            self.server.fill(table, RECORDED)
        # A peer's plan that was made while its table was empty would read the
        # whole table.
        self.server.sql("INSERT INTO bench.peer_keys (scope, operation, key)"
                        " SELECT 'tenant-1', 'payment', i::text FROM generate_series(1, %d) AS i; VACUUM ANALYZE;" % RECORDED)
        run([BINDIR + "/pg_ctl", "-D", self.server.data, "-m", "fast", "-w", "stop"])
        self.cluster = self.server.data + ".prepared"
        os.rename(self.server.data, self.cluster)

    def session(self, script, user, calls):
        """What the process that serves a session of so many calls executes."""
        shutil.copytree(self.cluster, self.server.data)
        with open(self.server.log, "w") as log:
            postmaster = subprocess.Popen(
                ["valgrind", "--tool=callgrind", "--trace-children=yes", "--callgrind-out-file=%s/callgrind.%%p" % WORK,
                 BINDIR + "/postgres", "-D", self.server.data], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while subprocess.run([BINDIR + "/pg_isready", "-q"], env=self.server.environment).returncode != 0:
                if postmaster.poll() is not None:
                    raise SystemExit("the server did not start under valgrind:\n" + open(self.server.log).read()[-2000:])
                time.sleep(0.1)
            rate_of(self.server.start_pgbench(script, calls=calls, clients=1, user=user, seed=1, keys=RECORDED), script)
        finally:
            if postmaster.poll() is None:
                run([BINDIR + "/pg_ctl", "-D", self.server.data, "-m", "fast", "-w", "stop"])
            postmaster.wait()
            shutil.rmtree(self.server.data)
        # pgbench's first connection only asks whether there is a server.
        pid = re.findall(r"^(\d+) LOG: +connection authorized: user=%s " % user, open(self.server.log).read(), re.M)[-1]
        found = re.search(r"^(?:summary|totals): (\d+)", open("%s/callgrind.%s" % (WORK, pid)).read(), re.M)
        for name in os.listdir(WORK):
            if name.startswith("callgrind."):
                os.unlink(os.path.join(WORK, name))
        return int(found.group(1))

    def count(self, script, user, number):
        half = number // 2
        return (self.session(script, user, half + number) - self.session(script, user, half)) / number

    def close(self):
        shutil.rmtree(self.server.folder, ignore_errors=True)


def measure(options, calls=CALLS, floors=False):
    counter = Counter()
    counts = {}
    try:
        for call in calls:
            for script in (call.script, call.limit):
                if (script, call.user) not in counts:
                    counts[script, call.user] = counter.count(script, call.user, call.number)
    finally:
        counter.close()
    heading("Instructions for a call: the limit's against ours")
    rows = []
    for call in calls:
        ours, limit = counts[call.script, call.user], counts[call.limit, call.user]
        rows.append(show(call.name, spread([limit / ours]), call.floor if floors else None,
                         note="%.1f thousand of %.1f thousand" % (limit / 1000, ours / 1000)))
    return {"rows": rows, "counts": {"%s as %s" % key: value for key, value in counts.items()}}
