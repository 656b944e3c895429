"""Time per claim among ever more recorded keys.

Databases of different size side by side, so that every round meets all.  The
recorded keys are spread evenly over the range of the new ones.

A hundred million keys are possible (--keys 1e4,1e8) where the disk holds them:
some 36 GB, and as much again for the bare insert's table, unless --growth-bare
leaves that out.
"""

import shutil
import statistics
import time

from environment import WORK
from server import BARE, BODY, KEYS, Server
from table import heading, say, show, spread

# What a key and its share of the indexes take on disk, about; the WAL that is
# kept; how many keys a statement puts in.
KEY_BYTES = 360
WAL_BYTES = 10e9
CHUNK = 1_000_000


def add_options(parser):
    parser.add_argument("--keys", default="1e4,1e6,1e7", help="growth: numbers of recorded keys")
    parser.add_argument("--growth-bare", default="yes", choices=("yes", "no"), help="growth: no: without the bare insert")
    parser.add_argument("--warm-up", type=int, default=20, help="growth: rounds that do not count")


def measure(options):
    sizes = [int(float(n)) for n in options.keys.split(",")]
    scripts = {"limit/insert": BARE, "ours/one_statement": KEYS}
    if options.growth_bare == "no":
        del scripts["limit/insert"]
    needed = sum(sizes) * KEY_BYTES * len(scripts) + WAL_BYTES
    if shutil.disk_usage(WORK).free < needed:
        raise SystemExit("growth needs %.0f GB of disk for these numbers of keys" % (needed / 1e9))
    rates = {}
    server = Server()
    try:
        for size in sizes:
            server.environment["PGDATABASE"] = "postgres"
            server.sql("CREATE DATABASE keys_%d;" % size)
            server.environment["PGDATABASE"] = "keys_%d" % size
            server.prepare()
            for table in scripts.values():
                start = time.time()
                # In pieces: generate_series() keeps all that it returns.
                for first in range(1, size + 1, CHUNK):
                    server.sql("""
                        INSERT INTO {table} (created_at, expires_at, completed_at, attempt, response_status,
                                             scope, operation, key, status, response_body)
                        SELECT now(), now() + interval '24 hours', now(), 1, 201, 'tenant-1', 'payment',
                               (1000000000000000000 + i * (8000000000000000000 / {size}))::text, 'completed', '{body}'
                        FROM generate_series({first}::bigint, {last}) AS i;""".format(
                        table=table, size=size, body=BODY, first=first, last=min(first + CHUNK - 1, size)))
                server.sql("VACUUM ANALYZE %s;" % table)
                say("%s: %d keys in %.0f s" % (table, size, time.time() - start))
        server.sql("CHECKPOINT;")
        # A page that is changed for the first time after a checkpoint goes to
        # the WAL as a whole; the first rounds carry that and do not count.
        for number in range(-options.warm_up, options.rounds):
            for size in sizes:
                server.environment["PGDATABASE"] = "keys_%d" % size
                for script in scripts:
                    rate = server.pgbench(script, options.seconds)
                    if number >= 0:
                        rates.setdefault((script, size), []).append(rate)
    finally:
        server.stop()
    heading("Time per claim among so many recorded keys, against %d" % sizes[0])
    rows = []
    for script in reversed(scripts):
        for size in sizes:
            ratio = spread([a / b for a, b in zip(rates[script, sizes[0]], rates[script, size])])
            figure = None
            if script.startswith("ours") and size == sizes[-1] and size != sizes[0]:
                figure = 1.5 if size > 1e7 else 1.3
            rows.append(show("%s, %d keys" % (script, size), ratio, figure, True,
                             note="%.0f/s" % statistics.median(rates[script, size])))
    return {"rows": rows}
