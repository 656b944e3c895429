"""Rates of 1 to 256 connections, on distinct keys, a Zipf mix and one hot key."""

import statistics

from server import Server
from table import heading, say, show, spread

MIXES = [("distinct keys", "ours/one_statement", "limit/insert", "peers/c_plpgsql_one_statement"),
         ("Zipf mix", "ours/zipf", "limit/zipf", "peers/zipf"),
         ("one hot key, new every 50 ms", "ours/hot", "limit/hot", "peers/hot"),
         ("the same, claims wait", "ours/hot_wait", "limit/hot", "peers/hot")]


def add_options(parser):
    parser.add_argument("--connections", default="1,4,16,64,256", help="contention: how many")
    parser.add_argument("--mixes", default="", help="contention: only mixes whose names contain one of these, by comma")


def measure(options):
    rates = {}
    clients = [int(n) for n in options.connections.split(",")]
    mixes = [m for m in MIXES if not options.mixes or any(o in m[0] for o in options.mixes.split(","))]
    server = Server(max_connections=str(max(clients) + 20))
    try:
        server.prepare()
        for number in range(options.rounds):
            for mix in mixes:
                server.empty()
                for count in clients:
                    # The first call of a connection loads what the others
                    # use, and takes its share of the processors for that.
                    seconds = options.seconds * max(1, count // 16)
                    for script in mix[1:]:
                        rates.setdefault((mix[0], script, count), []).append(
                            server.pgbench(script, seconds, clients=count))
            say("round %d of %d" % (number + 1, options.rounds))
    finally:
        server.stop()
    heading("Rate against the same mix of bare INSERT ... ON CONFLICT DO NOTHING")
    rows = []
    for name, ours, limit, peer in mixes:
        for count in clients:
            mine, bare, other = (rates[name, script, count] for script in (ours, limit, peer))
            rows.append(show("%s, %d connections" % (name, count), spread([a / b for a, b in zip(mine, bare)]),
                             note="%.0f/s of %.0f/s; (c) PL/pgSQL %.0f/s" % tuple(
                                 statistics.median(r) for r in (mine, bare, other))))
    return {"rows": rows}
