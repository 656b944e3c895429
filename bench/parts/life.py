"""The whole life of a key at full speed: claimed, completed, expired, deleted.

A lifetime of a minute, and enough of them that as many keys are deleted as are
claimed.  Beside it stand bare inserts of the same row into a partitioned table
whose old partitions are dropped, and into a plain one that batches of DELETE
clean up.  Each needs both processors, so they cannot run side by side: whole
segments of several lifetimes alternate.  A segment begins with empty tables, so
that nobody has to clean up the remains of another's.

With --held: the same of ours at a fixed rate, while another session holds a
snapshot, so that vacuum can remove nothing, against the same without one.
"""

import statistics
import threading
import time
from contextlib import contextmanager, nullcontext
from typing import NamedTuple, Optional

from pgbench import latencies, percentile, rate_of
from server import BARE, KEYS, OWNER, Server
from table import heading, say, show, spread

# What CREATE EXTENSION puts on its table, for all tables alike.
TABLE_OPTIONS = ("autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, "
                 "autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 1")


class Contender(NamedTuple):
    """Scripts that record keys and that delete them again, the latter over and over; None: the background worker does."""
    name: str
    script: str
    table: str
    cleaner: Optional[str]


PARTITIONED = Contender("insert, partitions dropped", "limit/life_partitioned", "bench.partitioned",
                        "limit/roll_partitions")
DELETED = Contender("insert, batches of DELETE", "limit/life_bare", BARE, "limit/delete_batch")


def add_options(parser):
    parser.add_argument("--lifetime", type=int, help="life: of a key, in seconds; 60, with --held 20")
    parser.add_argument("--life-warm-up", type=int, default=2, help="life: lifetimes that do not count")
    parser.add_argument("--life-measured", type=int, default=3, help="life: lifetimes that count")
    parser.add_argument("--life-rounds", type=int, default=3, help="life: segments of each contender")
    parser.add_argument("--life-rate", type=int, default=0, help="life: keys a second; 0, as many as can be: to compare sizes")
    parser.add_argument("--partitions", type=int, default=6, help="life: partitions in a lifetime")
    parser.add_argument("--cleaner", default="worker", choices=("worker", "maintain"), help="life: who deletes our keys")
    parser.add_argument("--cleanup-batch", type=int, default=100, help="life: idempotency.cleanup_batch_size")
    parser.add_argument("--naptime", default="1min", help="life: autovacuum_naptime")
    parser.add_argument("--life-sql", default="", help="life: executed before all; to try other settings of the tables")
    parser.add_argument("--held", action="store_true", help="life: ours alone, while a snapshot is held")
    parser.add_argument("--held-seconds", type=int, default=600, help="life --held: how long")
    parser.add_argument("--free-seconds", type=int, help="life --held: how long without it; as long, if not given")
    parser.add_argument("--held-rate", type=int, default=2000, help="life --held: claims a second")


def measure(options):
    server = Server(autovacuum_naptime="'%s'" % options.naptime,
                    **{"idempotency.cleanup_enabled": "off", "idempotency.cleanup_interval": "'1s'",
                       "idempotency.cleanup_batch_size": str(options.cleanup_batch)})
    ours = Contender("ours", "ours/life", KEYS, "ours/maintain" if options.cleaner == "maintain" else None)
    try:
        server.prepare()
        server.sql_file("life.sql")
        server.tables.append(PARTITIONED.table)
        for table in (KEYS, BARE):
            server.sql("ALTER TABLE %s SET (%s);" % (table, TABLE_OPTIONS))
        server.sql(options.life_sql)
        if options.held:
            return measure_held(server, ours, options)
        return measure_life(server, ours, options)
    finally:
        server.stop()


@contextmanager
def cleaning(server, contender, **variables):
    """Has a contender's expired keys deleted meanwhile.  All tables are empty in the end, so that nothing goes on."""
    if contender.cleaner is None:
        server.set("idempotency.cleanup_enabled", "on")
        yield
        server.set("idempotency.cleanup_enabled", "off")
    else:
        process = server.start_pgbench(contender.cleaner, 1_000_000, clients=1, user=OWNER, **variables)
        yield
        if process.poll() is not None:
            raise SystemExit("%s ended:\n%s" % (contender.cleaner, process.communicate()[1][-2000:]))
        process.terminate()
        process.communicate()
    server.empty()
    while server.number("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'idempotency cleanup';") > 0:
        time.sleep(0.1)


class Sizes(threading.Thread):
    """Bytes of a contender's table and of its indexes, once a second."""

    def __init__(self, server, table):
        super().__init__(daemon=True)
        self.server = server
        self.table = table
        self.samples = []
        self.stopping = threading.Event()
        self.start()

    def run(self):
        while not self.stopping.wait(1):
            self.samples.append([float(x) for x in self.server.sql(
                "SELECT extract(epoch FROM clock_timestamp()), sum(pg_table_size(t)), sum(pg_indexes_size(t))"
                " FROM (SELECT '{0}'::regclass UNION ALL"
                " SELECT inhrelid FROM pg_inherits WHERE inhparent = '{0}'::regclass) AS s (t);".format(
                    self.table)).split("|")])

    def for_each(self, live):
        """Medians of bytes of the table and of the indexes for each live key."""
        self.stopping.set()
        self.join()
        found = [(table / keys, indexes / keys) for keys, table, indexes in (
            (live(moment), table, indexes) for moment, table, indexes in self.samples) if keys]
        if not found:
            raise SystemExit("life: measure for more than one lifetime")
        return [statistics.median(s) for s in zip(*found)]


def live_keys(progress, lifetime):
    """
    A function that says how many keys were alive at a moment: those that were
    recorded in the lifetime before it, by what pgbench reported.  So nobody
    counts rows while rates are taken.
    """
    def until(moment):
        for (a, before), (b, after) in zip(progress, progress[1:]):
            if a <= moment <= b:
                return before + (after - before) * (moment - a) / (b - a)
        return None

    def live(moment):
        first, last = until(moment - lifetime), until(moment)
        return None if first is None or last is None else last - first

    return live


def segment(server, contender, lifetime, options):
    server.empty()
    before = server.processor_time()
    cleaner = {}
    if contender is PARTITIONED:
        cleaner = {"lifetime": lifetime, "width": max(lifetime // options.partitions, 1), "options": TABLE_OPTIONS}
        server.sql("CALL bench.roll_partitions(%d, %d, '%s');" % tuple(cleaner.values()))
    with cleaning(server, contender, **cleaner):
        warm_up = options.life_warm_up * lifetime
        keys = warm_up * server.pgbench(contender.script, warm_up, rate=options.life_rate, lifetime=lifetime)
        wal = server.sql("SELECT pg_current_wal_lsn();")
        sizes = Sizes(server, contender.table)
        seconds = options.life_measured * lifetime
        progress = []
        rate = rate_of(server.start_pgbench(contender.script, seconds, progress=True, rate=options.life_rate,
                                           lifetime=lifetime), contender.script, progress)
        table, indexes = sizes.for_each(live_keys(progress, lifetime))
        wal = server.number("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '%s');" % wal)
        live, expired = (float(x) for x in server.sql(
            "SELECT count(*) FILTER (WHERE expires_at > now()), count(*) FILTER (WHERE expires_at <= now()) FROM %s;"
            % contender.table).split("|"))
        each = server.sql("SELECT indexrelid::regclass, pg_relation_size(indexrelid) FROM pg_index"
                          " WHERE indrelid = '%s'::regclass;" % contender.table)
    keys += rate * seconds
    return {"rate": rate, "cpu": (server.processor_time() - before) / keys * 1e6, "wal": wal / (rate * seconds),
            "table": table, "indexes": indexes, "bytes": table + indexes, "expired": expired / live,
            "each": {name: float(size) / live for name, size in (line.split("|") for line in each.splitlines())}}


def measure_life(server, ours, options):
    lifetime = options.lifetime or 60
    contenders = [c for c in (ours, PARTITIONED, DELETED)
                  if not options.only or any(o in c.script for o in options.only.split(","))]
    result = {c.name: [] for c in contenders}
    for number in range(options.life_rounds):
        for contender in contenders[::-1 if number % 2 else 1]:
            one = segment(server, contender, lifetime, options)
            result[contender.name].append(one)
            say("%-28s %6.0f keys/s, CPU %3.0f us, WAL %4.0f bytes a key; table %5.1f + indexes %5.1f = %5.1f bytes a live"
                " key; %.1f %% expired but there" % (contender.name, one["rate"], one["cpu"], one["wal"], one["table"],
                                                   one["indexes"], one["bytes"], one["expired"] * 100))
            for name, size in one["each"].items():
                say("    %-60s %5.1f" % (name, size))
        say("round %d of %d" % (number + 1, options.life_rounds))

    def of(contender, what):
        return [one[what] for one in result[contender.name]]

    heading("The life of a key, %d s long, at %s" % (
        lifetime, "%d keys a second" % options.life_rate if options.life_rate else "full speed"))
    rows = []
    for other, figure in ((PARTITIONED, 0.95), (DELETED, None)):
        if ours not in contenders or other not in contenders:
            continue
        rows.append(show("rate against " + other.name,
                         spread([a / b for a, b in zip(of(ours, "rate"), of(other, "rate"))]), figure,
                         note="%.0f/s of %.0f/s, CPU %.0f us of %.0f us" % tuple(
                             statistics.median(of(c, what)) for what in ("rate", "cpu") for c in (ours, other))))
    for contender in contenders:
        rows.append(show("bytes a live key, " + contender.name, spread(of(contender, "bytes")),
                         420 if contender is ours else None, True, note="WAL %.0f bytes a key, expired but there %.1f %%" % (
                             statistics.median(of(contender, "wal")), 100 * statistics.median(of(contender, "expired")))))
    return {"rows": rows, "raw": result}


def measure_held(server, ours, options):
    """Claims at a fixed rate, with and without a snapshot that is held all the time, warm-up included."""
    lifetime = options.lifetime or 20
    rows = []
    result = {}
    for held in (False, True):
        server.empty()
        with cleaning(server, ours), server.snapshot_held() if held else nullcontext():
            server.pgbench(ours.script, options.life_warm_up * lifetime, rate=options.held_rate, lifetime=lifetime)
            seconds = options.held_seconds if held else options.free_seconds or options.held_seconds
            rate = rate_of(server.start_pgbench(ours.script, seconds, log="held", rate=options.held_rate,
                                                lifetime=lifetime), ours.script)
            expired = server.number("SELECT count(*) FROM %s WHERE expires_at <= now();" % KEYS)
            size = server.number("SELECT pg_total_relation_size('%s');" % KEYS)
        values = latencies("held")
        result[held] = {"rate": rate, "p50": percentile(values, 0.5), "p99": percentile(values, 0.99)}
        say("snapshot %s: %.0f/s, p50 %.2f ms, p99 %.2f ms; %.0f expired keys are there, the table has %.0f MB" % (
            "held" if held else "free", *result[held].values(), expired, size / 1e6))
    heading("%d claims a second of keys that live %d s, a snapshot held for %d s, against none" % (
        options.held_rate, lifetime, options.life_warm_up * lifetime + options.held_seconds))
    for what, figure in (("rate", 0.9), ("p50", 1.1), ("p99", 1.1)):
        rows.append(show(what, spread([result[True][what] / result[False][what]]), figure, what != "rate",
                         note="%.2f of %.2f" % (result[True][what], result[False][what])))
    return {"rows": rows, "raw": {"held" if held else "free": values for held, values in result.items()}}
