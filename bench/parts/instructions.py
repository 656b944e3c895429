"""Instructions that the server executes for a call.

They are counted by callgrind in a server for a single user.  The count is the
same on a busy machine, so the floors are close.  It leaves out the kernel:
network, disk and waiting.
"""

import re
import shutil
import subprocess
from typing import NamedTuple, Optional

from environment import BINDIR, HERE, WORK, run
from server import BARE, KEYS, Server
from table import heading, show, spread


class Call(NamedTuple):
    """A script, its limit, the floor for bench/check, and how many calls are counted."""
    name: str
    script: str
    limit: str
    floor: Optional[float] = None
    number: int = 1000


CALLS = [
    Call("same transaction, one statement", "ours/one_statement", "limit/insert", 0.60),
    Call("once", "ours/once", "limit/insert"),
    Call("once_batch of 1,000, growing keys", "ours/once_batch", "limit/insert_batch", number=10),
    Call("claim that replays", "ours/claim_replays", "limit/select", 0.85),
    Call("replay()", "ours/replay", "limit/select_response"),
    Call("(c) PL/pgSQL, one statement", "peers/c_plpgsql_one_statement", "limit/insert"),
]


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

        def count(script, number):
            nonlocal first
            sql = "".join(line for line in open("%s/%s.sql" % (HERE, script)) if not line.startswith("\\"))
            lines = ["PREPARE call (text) AS " + sql.replace("\n", " ").replace(":k", "$1")]
            for i in range(number):
                key = i + 1 if "keys" in open("%s/%s.sql" % (HERE, script)).read() else first + i * 7919
                lines.append("EXECUTE call ('%d');" % key)
            first += number * 7919
            done = subprocess.run(["valgrind", "--tool=callgrind", "--callgrind-out-file=%s/callgrind" % WORK,
                                   BINDIR + "/postgres", "--single", "-D", server.data, "postgres"],
                                  input="\n".join(lines) + "\n", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            found = re.search(r"Collected : (\d+)", done.stderr)
            if done.returncode != 0 or found is None or "ERROR:" in done.stderr:
                raise SystemExit("valgrind failed:\n" + done.stderr[-2000:])
            return int(found.group(1))

        for call in calls:
            for script in (call.script, call.limit):
                if script not in counts:
                    half = count(script, call.number // 2)
                    counts[script] = (count(script, call.number + call.number // 2) - half) / call.number
    finally:
        shutil.rmtree(server.folder, ignore_errors=True)
    heading("Instructions for a call: the limit's against ours")
    rows = []
    for call in calls:
        ours, limit = counts[call.script], counts[call.limit]
        rows.append(show(call.name, spread([limit / ours]), call.floor if floors else None,
                         note="%.1f thousand of %.1f thousand" % (limit / 1000, ours / 1000)))
    return {"rows": rows, "counts": counts}
