"""Claims while a million expired keys are deleted, and WAL per key.

Claims come at a fixed pace, so that the machine has room for clean-up, and as
fast as four connections can, so that it has none.
"""

import statistics
import time

from pgbench import latencies, percentile, rate_of
from server import KEYS, Server
from table import heading, say, show, spread


def add_options(parser):
    parser.add_argument("--cleanup-keys", type=int, default=1_000_000)
    parser.add_argument("--cleanup-rounds", type=int, default=3)


def measure(options):
    number = options.cleanup_keys
    rows = []
    server = Server()
    heading("Claims while %d expired keys are deleted, against claims alone" % number)
    try:
        server.prepare()
        for name, rate in (("2,000 claims a second", 2000), ("4 connections at full speed", 0)):
            ratios = {0.5: [], 0.99: []}
            notes = []
            speeds = []
            for _ in range(min(options.rounds, options.cleanup_rounds)):
                server.empty()
                server.fill(KEYS, number, expires="now() - interval '1 hour'")
                server.fill(KEYS, number // 10, first=number + 1)
                server.sql("VACUUM ANALYZE idempotency.idempotency_keys; CHECKPOINT;")
                rate_of(server.start_pgbench("ours/one_statement", 15, log="before", rate=rate), "claims")
                before = latencies("before")
                process = server.start_pgbench("ours/one_statement", 3600, log="during", rate=rate)
                time.sleep(1)
                first = time.time()
                server.sql("CALL idempotency.maintain();")
                last = time.time()
                if process.poll() is not None:
                    raise SystemExit("the claims ended before clean-up did")
                process.terminate()
                process.communicate()
                during = latencies("during", first, last)
                left = server.number("SELECT count(*) FROM idempotency.idempotency_keys WHERE expires_at <= now();")
                if left > 0:
                    raise SystemExit("clean-up left %d expired keys" % left)
                speeds.append(number / (last - first))
                for part in ratios:
                    ratios[part].append(percentile(during, part) / percentile(before, part))
                notes.append("p50 %.2f to %.2f ms, p99 %.2f to %.2f ms" % (
                    percentile(before, 0.5), percentile(during, 0.5),
                    percentile(before, 0.99), percentile(during, 0.99)))
            rows.append(show("p50, " + name, spread(ratios[0.5]), at_most=True))
            rows.append(show("p99, " + name, spread(ratios[0.99]), 1.5, True, notes[len(notes) // 2]))
            say("    clean-up: %.0f rows a second (median); rounds: %s" % (statistics.median(speeds), "; ".join(notes)))

        wal = {}
        for script in ("ours/one_statement", "limit/insert", "ours/committed", "peers/c_plpgsql_one_statement"):
            server.empty()
            server.pgbench(script, 2)
            start = server.sql("SELECT pg_current_wal_lsn();")
            rate = server.pgbench(script, 5)
            wal[script] = server.number("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '%s');" % start) / (rate * 5)
            say("WAL per key, %-32s %6.0f bytes" % (script, wal[script]))
    finally:
        server.stop()
    return {"rows": rows, "wal": wal}
