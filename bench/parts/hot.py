"""One key claimed and completed again and again: how long it takes after ever more versions of its row.

Each time it has expired at once, or is forgotten, so every claim finds what the
ones before it left behind.  While another session holds a snapshot, none of
that can be removed.  A bare row that is written the same way stands beside it:
what it suffers, too, is the table's and not the extension's.
"""

import statistics
from contextlib import nullcontext

from pgbench import latencies, rate_of
from server import APPLICATION, Server
from table import heading, say, show, spread

SCRIPTS = [("expires, claimed again", "ours/hot_expires"),
           ("bare INSERT ... ON CONFLICT DO UPDATE", "limit/hot_expires"),
           ("forgotten, claimed again", "ours/hot_forget"),
           ("bare INSERT and DELETE", "limit/hot_forget")]


def add_options(parser):
    parser.add_argument("--versions", default="1000,5000,20000", help="hot: after how many versions")
    parser.add_argument("--hot-rounds", type=int, default=3)
    parser.add_argument("--hot-window", type=int, default=100, help="hot: calls that a latency is the median of")


def claims(server):
    return server.number("SELECT coalesce(sum(claims), 0) FROM idempotency.stats;")


def measure(options):
    versions = [int(float(n)) for n in options.versions.split(",")]
    window = options.hot_window
    found = {}
    server = Server(fsync=options.fsync)
    try:
        server.prepare()
        server.sql("SELECT idempotency.grant_operator('%s');" % APPLICATION)
        for number in range(min(options.rounds, options.hot_rounds)):
            for held in (False, True):
                for name, script in SCRIPTS[::-1 if number % 2 else 1]:
                    server.empty()
                    before = claims(server)
                    # The first window of a connection makes plans and fills
                    # caches, and is not the one to compare with.
                    calls = window + versions[-1] + window
                    with server.snapshot_held() if held else nullcontext():
                        rate_of(server.start_pgbench(script, calls=calls, clients=1, log="hot"), script)
                    claimed = claims(server) - before
                    if script.startswith("ours") and claimed != calls:
                        raise SystemExit("%s: %d of %d calls claimed the key" % (script, claimed, calls))
                    values = latencies("hot")
                    found.setdefault((held, name), []).append(
                        [statistics.median(values[v:v + window]) for v in [window] + versions])
            say("round %d of %d" % (number + 1, min(options.rounds, options.hot_rounds)))
    finally:
        server.stop()
    rows = []
    for held in (False, True):
        heading("Latency of one key's calls after so many versions, against the first %d; snapshot %s" % (
            window, "held" if held else "free"))
        for name, _ in SCRIPTS:
            rounds = found[held, name]
            for column, count in enumerate(versions, 1):
                rows.append(show("%s, %d" % (name, count), spread([r[column] / r[0] for r in rounds]), at_most=True,
                                 note="%.2f of %.2f ms" % tuple(statistics.median(r[c] for r in rounds)
                                                                for c in (column, 0))))
                rows[-1]["held"] = held
    return {"rows": rows}
