"""Instructions that the server executes for a call.

They are counted by callgrind in a server for a single user.  The count is the
same on a busy machine, so the floors are close.  It leaves out the kernel:
network, disk and waiting.
"""

import os
import re
import shutil
import subprocess
from typing import NamedTuple, Optional

from environment import BINDIR, HERE, WORK, run
from server import APPLICATION, BARE, KEYS, OWNER, Server
from table import heading, show, spread


class Call(NamedTuple):
    """A script, its limit, the floor for bench/check, and how many calls are counted."""
    name: str
    script: str
    limit: str
    floor: Optional[float] = None
    number: int = 1000
    user: str = APPLICATION


CALLS = [
    Call("same transaction, one statement", "ours/one_statement", "limit/insert", 0.60),
    Call("the same as the owner, a superuser", "ours/one_statement", "limit/insert", user=OWNER),
    Call("run", "ours/run", "limit/insert"),
    Call("claim with a lease, then complete by token", "ours/committed", "limit/insert_then_update"),
    Call("once", "ours/once", "limit/insert"),
    Call("once_batch of 1,000, growing keys", "ours/once_batch", "limit/insert_batch", number=10),
    Call("claim that replays", "ours/claim_replays", "limit/select", 0.85),
    Call("replay()", "ours/replay", "limit/select_response"),
    Call("(c) PL/pgSQL, one statement", "peers/c_plpgsql_one_statement", "limit/insert"),
]


class Session:
    """A server for a single user under callgrind, which executes a script of pgbench's as whoever is wanted."""

    def __init__(self, data, script, user):
        self.errors = open(WORK + "/callgrind.log", "w+")
        self.process = subprocess.Popen(
            ["valgrind", "--tool=callgrind", "--callgrind-out-file=%s/callgrind" % WORK,
             BINDIR + "/postgres", "--single", "-D", data, "postgres"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, bufsize=0)
        self.answer()
        self.execute("SET SESSION AUTHORIZATION " + user)
        # Every statement has a line of its own; pgbench's commands are left
        # out.  Whatever a statement returns is a variable for the next, as if
        # by gset.
        self.statements = []
        for line in script.splitlines():
            if not line.startswith("\\"):
                names = list(dict.fromkeys(re.findall(r"(?<!:):([a-z_]+)", line)))
                for number, variable in enumerate(names, 1):
                    line = re.sub(r"(?<!:):%s\b" % variable, "$%d" % number, line)
                name = "call_%d" % len(self.statements)
                self.execute("PREPARE %s %s AS %s" % (name, "(text)" if names == ["k"] else "", line))
                self.statements.append((name, names))

    def answer(self):
        text = b""
        while not text.endswith(b"backend> "):
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                break
            text += more
        return text.decode()

    def execute(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        return self.answer()

    def call(self, key):
        values = {"k": str(key)}
        for name, names in self.statements:
            arguments = "(%s)" % ", ".join("'%s'" % values[n] for n in names) if names else ""
            values.update(re.findall(r'(\w+) = "(.*?)"', self.execute("EXECUTE %s %s;" % (name, arguments))))

    def instructions(self):
        """What it has executed until its end, which is now."""
        self.process.stdin.close()
        self.process.wait()
        self.errors.seek(0)
        text = self.errors.read()
        found = re.search(r"Collected : (\d+)", text)
        if self.process.returncode != 0 or found is None or "ERROR:" in text:
            raise SystemExit("valgrind failed:\n" + text[-2000:])
        return int(found.group(1))


def measure(options, calls=CALLS, floors=False):
    server = Server(fsync="off", autovacuum="off")
    counts = {}
    try:
        server.prepare()
        for table in (KEYS, BARE):
            server.fill(table, 20_000)
        # A peer's plan that was made while its table was empty would read the
        # whole table.
        server.sql("INSERT INTO bench.peer_keys (scope, operation, key)"
                   " SELECT 'tenant-1', 'payment', i::text FROM generate_series(1, 20000) AS i; VACUUM ANALYZE;")
        run([BINDIR + "/pg_ctl", "-D", server.data, "-m", "fast", "-w", "stop"])
        first = 1_000_000

        def count(script, number, user):
            nonlocal first
            text = open("%s/%s.sql" % (HERE, script)).read()
            session = Session(server.data, text, user)
            for i in range(number):
                session.call(i + 1 if ":keys" in text else first + i * 7919)
            first += number * 7919
            return session.instructions()

        for call in calls:
            for script in (call.script, call.limit):
                if (script, call.user) not in counts:
                    half = count(script, call.number // 2, call.user)
                    counts[script, call.user] = (
                        count(script, call.number + call.number // 2, call.user) - half) / call.number
    finally:
        shutil.rmtree(server.folder, ignore_errors=True)
    heading("Instructions for a call: the limit's against ours")
    rows = []
    for call in calls:
        ours, limit = counts[call.script, call.user], counts[call.limit, call.user]
        rows.append(show(call.name, spread([limit / ours]), call.floor if floors else None,
                         note="%.1f thousand of %.1f thousand" % (limit / 1000, ours / 1000)))
    return {"rows": rows, "counts": {"%s as %s" % key: value for key, value in counts.items()}}
