"""Time per claim among ever more recorded keys.

Databases of different size side by side, so that every round meets all.  The
recorded keys are spread evenly over the range of the new ones.
"""

import statistics
import time

from server import BARE, BODY, KEYS, Server
from table import heading, say, show, spread


def add_options(parser):
    parser.add_argument("--keys", default="1e4,1e6,1e7", help="growth: numbers of recorded keys")
    parser.add_argument("--warm-up", type=int, default=20, help="growth: rounds that do not count")


def measure(options):
    server = Server()
    sizes = [int(float(n)) for n in options.keys.split(",")]
    rates = {}
    try:
        for size in sizes:
            server.environment["PGDATABASE"] = "postgres"
            server.sql("CREATE DATABASE keys_%d;" % size)
            server.environment["PGDATABASE"] = "keys_%d" % size
            server.prepare()
            for table in (KEYS, BARE):
                start = time.time()
                server.sql("""
                    INSERT INTO {table} (created_at, expires_at, completed_at, attempt, response_status,
                                         scope, operation, key, status, response_body)
                    SELECT now(), now() + interval '24 hours', now(), 1, 201, 'tenant-1', 'payment',
                           (1000000000000000000 + i * (8000000000000000000 / {size}))::text, 'completed', '{body}'
                    FROM generate_series(1::bigint, {size}) AS i;
                    VACUUM ANALYZE {table};""".format(table=table, size=size, body=BODY))
                say("%s: %d keys in %.0f s" % (table, size, time.time() - start))
        server.sql("CHECKPOINT;")
        # A page that is changed for the first time after a checkpoint goes to
        # the WAL as a whole; the first rounds carry that and do not count.
        for number in range(-options.warm_up, options.rounds):
            for size in sizes:
                server.environment["PGDATABASE"] = "keys_%d" % size
                for script in ("limit/insert", "ours/one_statement"):
                    rate = server.pgbench(script, options.seconds)
                    if number >= 0:
                        rates.setdefault((script, size), []).append(rate)
    finally:
        server.stop()
    heading("Time per claim among so many recorded keys, against %d" % sizes[0])
    rows = []
    for script in ("ours/one_statement", "limit/insert"):
        for size in sizes:
            ratio = spread([a / b for a, b in zip(rates[script, sizes[0]], rates[script, size])])
            figure = 1.3 if script.startswith("ours") and size == sizes[-1] and size != sizes[0] else None
            rows.append(show("%s, %d keys" % (script, size), ratio, figure, True,
                             note="%.0f/s" % statistics.median(rates[script, size])))
    return {"rows": rows}
