"""Rates against the limit, with pgbench, and against the best peer."""

from pairs import Pair, measure_pairs, quotient, show_pairs
from server import OWNER, Server
from table import heading, say

PAIRS = [
    Pair("same transaction, one statement", "ours/one_statement", "limit/insert", 0.85),
    Pair("same transaction, two calls", "ours/four_statements", "limit/select_insert", 0.90),
    Pair("same transaction, two calls, with work", "ours/with_work", "limit/insert_work"),
    Pair("run", "ours/run", "limit/insert"),
    Pair("once", "ours/once", "limit/insert"),
    Pair("once_batch of 1,000, growing keys", "ours/once_batch", "limit/insert_batch", 0.70),
    Pair("once_batch of 1,000, random keys", "ours/once_batch_random", "limit/insert_batch_random", 0.70),
    Pair("claim with a lease, then complete", "ours/committed", "limit/insert_then_update"),
    Pair("claim that may wait", "ours/wait", "limit/insert"),
    Pair("claim that replays", "ours/claim_replays", "limit/select", 0.85, replays=True),
    Pair("replay()", "ours/replay", "limit/select_response", 0.85, replays=True),
    Pair("(a) select, insert, update", "peers/a_select_insert_update", "limit/insert"),
    Pair("(b) on conflict, update", "peers/b_on_conflict", "limit/insert"),
    Pair("(c) PL/pgSQL, one statement", "peers/c_plpgsql_one_statement", "limit/insert"),
    Pair("(c) PL/pgSQL, two calls", "peers/c_plpgsql", "limit/insert"),
    Pair("(d) skip locked", "peers/d_skip_locked", "limit/insert"),
    Pair("(e) serializable, two transactions", "peers/e_serializable", "limit/insert_then_update"),
] + [
    # What the owner, a superuser, is spared.
    Pair("application against owner, " + name, script, script, 0.97, replays, limit_user=OWNER)
    for name, script, replays in (("one statement", "ours/one_statement", False),
                                  ("run", "ours/run", False),
                                  ("claim that replays", "ours/claim_replays", True),
                                  ("replay()", "ours/replay", True))
]

# Peers that record the key in the transaction of the work, as claim and
# complete without a lease do.
SAME_GUARANTEE = ["peers/a_select_insert_update", "peers/b_on_conflict",
                  "peers/c_plpgsql_one_statement", "peers/c_plpgsql", "peers/d_skip_locked"]


def add_options(parser):
    parser.add_argument("--only", default="", help="ratios, life: only scripts whose names contain one of these, by comma")


def measure(options):
    server = Server(fsync=options.fsync)
    try:
        server.prepare()
        pairs = [p for p in PAIRS if not options.only or any(o in p.script for o in options.only.split(","))]
        result = measure_pairs(server, pairs, options.rounds, options.seconds)
        measured = [p for p in pairs if p.script in SAME_GUARANTEE]
        best = None
        if measured and any(p.script == "ours/one_statement" for p in pairs):
            best = max(measured, key=lambda p: quotient(result[p.name])["median"]).script
            against = [Pair("one statement against the best peer", "ours/one_statement", best, 1.5)]
            versus = measure_pairs(server, against, options.rounds, options.seconds)
    finally:
        server.stop()

    heading("Rate against the limit, 4 connections, fsync %s" % options.fsync)
    rows = show_pairs(pairs, result)
    if best:
        rows += show_pairs(against, versus)
        rows[-1]["note"] += ", best peer: " + best
        say("best peer: " + best)
    return {"rows": rows, "raw": result}
