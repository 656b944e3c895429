#!/usr/bin/env python3
"""Measures the extension against a bare INSERT and against its peers.

Started by bench/run, which builds the extension into a private copy of the
server and runs this as somebody who is not root.  Every figure is a ratio of
rates (or of times) that were taken in the same round, one after the other;
the median over the rounds counts, and the smallest and largest are shown.
"""

import argparse
import glob
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

import chart

HERE = os.path.dirname(os.path.abspath(__file__))
BINDIR = os.environ["BENCH_BINDIR"]
WORK = os.environ["BENCH_WORK"]  # short: sockets live below it
REVISION = os.environ.get("BENCH_REVISION", "unknown")
PARTS = ("ratios", "instructions", "redis", "growth", "contention", "size", "layout", "cleanup")

# Durability is the server's default. What differs from the defaults keeps
# checkpoints and the cache out of the comparison.
SETTINGS = {
    "listen_addresses": "''",
    "shared_buffers": "'1GB'",
    "max_wal_size": "'8GB'",
    "checkpoint_timeout": "'30min'",
    "max_connections": "120",
    "shared_preload_libraries": "'idempotency'",
}

REPLAY_KEYS = 100_000
BODY = '{"ok": true}'

TABLES = ("idempotency.idempotency_keys", "bench.bare", "bench.peer_keys", "bench.payments")

# Script, what it is compared with, the figure to reach.
RATIOS = [
    # name, script, limit, figure to reach, needs recorded keys
    ("same transaction, one statement", "ours/one_statement", "limit/insert", 0.85, False),
    ("same transaction, two calls", "ours/four_statements", "limit/select_insert", 0.90, False),
    ("same transaction, two calls, with work", "ours/with_work", "limit/insert_work", None, False),
    ("run", "ours/run", "limit/insert", None, False),
    ("once", "ours/once", "limit/insert", None, False),
    ("once_batch of 1,000, growing keys", "ours/once_batch", "limit/insert_batch", 0.70, False),
    ("once_batch of 1,000, random keys", "ours/once_batch_random", "limit/insert_batch_random", 0.70, False),
    ("claim with a lease, then complete", "ours/committed", "limit/insert_then_update", None, False),
    ("claim that may wait", "ours/wait", "limit/insert", None, False),
    ("claim that replays", "ours/claim_replays", "limit/select", 0.85, True),
    ("replay()", "ours/replay", "limit/select_response", 0.85, True),
    ("(a) select, insert, update", "peers/a_select_insert_update", "limit/insert", None, False),
    ("(b) on conflict, update", "peers/b_on_conflict", "limit/insert", None, False),
    ("(c) PL/pgSQL, one statement", "peers/c_plpgsql_one_statement", "limit/insert", None, False),
    ("(c) PL/pgSQL, two calls", "peers/c_plpgsql", "limit/insert", None, False),
    ("(d) skip locked", "peers/d_skip_locked", "limit/insert", None, False),
    ("(e) serializable, two transactions", "peers/e_serializable", "limit/insert_then_update", None, False),
]

# Peers that record the key in the transaction of the work, as claim and
# complete without a lease do.
SAME_GUARANTEE = ["peers/a_select_insert_update", "peers/b_on_conflict",
                  "peers/c_plpgsql_one_statement", "peers/c_plpgsql", "peers/d_skip_locked"]


def say(text=""):
    print(text, flush=True)


def run(command, **more):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
    if done.returncode != 0:
        raise SystemExit("%s failed:\n%s" % (os.path.basename(command[0]), done.stderr[-2000:]))
    return done.stdout


class Server:
    """A private cluster that only its own socket reaches."""

    def __init__(self, **more):
        self.folder = os.path.join(WORK, "server")
        self.data = os.path.join(self.folder, "data")
        self.log = os.path.join(self.folder, "log")
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        run([BINDIR + "/initdb", "-D", self.data, "-U", "bench", "-A", "trust",
             "--no-sync", "-E", "UTF8", "--locale=C.UTF-8"])
        with open(self.data + "/postgresql.conf", "a") as conf:
            settings = dict(SETTINGS, unix_socket_directories="'%s'" % self.folder, **more)
            for name, value in settings.items():
                conf.write("%s = %s\n" % (name, value))
        self.environment = dict(os.environ, PGHOST=self.folder, PGUSER="bench", PGDATABASE="postgres",
                                PGOPTIONS="-c client_min_messages=warning")
        run([BINDIR + "/pg_ctl", "-D", self.data, "-l", self.log, "-w", "start"])

    def stop(self):
        run([BINDIR + "/pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop"])
        shutil.rmtree(self.folder, ignore_errors=True)

    def sql(self, text):
        return run([BINDIR + "/psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-"],
                   input=text, env=self.environment).strip()

    def number(self, text):
        return float(self.sql(text))

    def prepare(self):
        self.sql("CREATE EXTENSION idempotency;")
        self.sql(open(HERE + "/setup.sql").read())

    def processor_time(self):
        """Seconds that the server's finished processes, its former sessions, have used."""
        with open(self.data + "/postmaster.pid") as pid_file:
            pid = int(pid_file.readline())
        # A session counts once its process is gone, zombies (no command) too.
        while any(not c or "[local]" in c for c in children(pid)):
            time.sleep(0.005)
        with open("/proc/%d/stat" % pid) as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    def start_pgbench(self, script, seconds, clients=4, log=None, rate=0, **variables):
        command = [BINDIR + "/pgbench", "-n", "-M", "prepared", "-c", str(clients),
                   "-j", str(min(clients, 2)), "-T", str(seconds), "-f", "%s/%s.sql" % (HERE, script)]
        for name, value in variables.items():
            command += ["-D", "%s=%s" % (name, value)]
        if rate:
            command += ["-R", str(rate)]
        if log:
            command += ["-l", "--log-prefix", log]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env=self.environment, cwd=WORK)

    def pgbench(self, script, seconds, **more):
        """Transactions per second of a script."""
        return rate_of(self.start_pgbench(script, seconds, **more), script)

    def empty(self):
        self.sql("TRUNCATE %s; CHECKPOINT;" % ", ".join(TABLES))

    def fill(self, table, number, first=1, expires="now() + interval '24 hours'"):
        """Puts completed keys into a table, the indexes built afterwards if it is empty."""
        self.sql("""
            INSERT INTO {table} (created_at, expires_at, completed_at, attempt, response_status,
                                 scope, operation, key, status, response_body)
            SELECT now(), {expires}, now(), 1, 201, 'tenant-1', 'payment', i::text, 'completed', '{body}'
            FROM generate_series({first}, {last}) AS i;""".format(
                table=table, expires=expires, body=BODY, first=first, last=first + number - 1))


def children(pid):
    """Command lines of a process's children."""
    for child in open("/proc/%d/task/%d/children" % (pid, pid)).read().split():
        try:
            yield open("/proc/%s/cmdline" % child).read()
        except OSError:
            pass


def rate_of(process, script):
    out, err = process.communicate()
    found = re.search(r"^tps = ([0-9.]+)", out, re.M)
    if process.returncode != 0 or found is None or " aborted " in err:
        raise SystemExit("pgbench %s failed:\n%s" % (script, err[-2000:]))
    return float(found.group(1))


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(name, ratio, figure=None, at_most=False, note=""):
    """One line of the table, and its record for the chart."""
    if figure is None:
        verdict = ""
    elif (ratio["median"] <= figure) if at_most else (ratio["median"] >= figure):
        verdict = "reached"
    else:
        verdict = "NOT REACHED"
    say("%-46s %6.2f  %5.2f-%-5.2f  %8s  %-11s %s" % (
        name, ratio["median"], ratio["min"], ratio["max"],
        "" if figure is None else ("<= " if at_most else ">= ") + "%.2f" % figure, verdict, note))
    return dict(ratio, name=name, figure=figure, at_most=at_most, verdict=verdict, note=note)


def heading(text):
    say()
    say(text)
    say("%-46s %6s  %-11s  %8s" % ("", "median", "min-max", "figure"))


# ---- ratios ------------------------------------------------------------------


def measure_pairs(server, pairs, rounds, seconds):
    """
    For every pair and round the limit and the script, one directly after the
    other and in alternating order: what else the machine and its disk do then
    meets both.  Returns, by script, the rates of both and the processor time
    that the server's processes took per transaction.
    """
    result = {}
    for number in range(rounds):
        for recorded in (False, True):
            chosen = [p for p in pairs if p[4] == recorded]
            if not chosen:
                continue
            server.empty()
            if recorded:
                for table in TABLES[:2]:
                    server.fill(table, REPLAY_KEYS)
                server.sql("VACUUM ANALYZE; CHECKPOINT;")
            for _, script, limit, _, _ in chosen:
                entry = result.setdefault(script, {"rate": [], "limit": [], "cpu": [], "limit_cpu": []})
                order = [(script, "rate", "cpu"), (limit, "limit", "limit_cpu")]
                for what, rate_name, cpu_name in order if number % 2 else reversed(order):
                    before = server.processor_time()
                    rate = server.pgbench(what, seconds, keys=REPLAY_KEYS)
                    entry[rate_name].append(rate)
                    entry[cpu_name].append((server.processor_time() - before) / (rate * seconds) * 1e6)
        say("round %d of %d" % (number + 1, rounds))
    return result


def quotient(entry, over="limit"):
    return spread([x / y for x, y in zip(entry["rate"], entry[over])])


def show_pairs(pairs, result):
    rows = []
    for name, script, limit, figure, _ in pairs:
        entry = {k: statistics.median(v) for k, v in result[script].items()}
        rows.append(show(name, quotient(result[script]), figure,
                         note="%.0f/s of %.0f/s, CPU %.0f us of %.0f us" % (
                             entry["rate"], entry["limit"], entry["cpu"], entry["limit_cpu"])))
        rows[-1].update(script=script, limit=limit)
    return rows


def part_ratios(options):
    server = Server(fsync=options.fsync)
    try:
        server.prepare()
        pairs = [p for p in RATIOS if not options.only or any(o in p[1] for o in options.only.split(","))]
        result = measure_pairs(server, pairs, options.rounds, options.seconds)
        measured = [p for p in SAME_GUARANTEE if p in result]
        best = None
        if measured and "ours/one_statement" in result:
            best = max(measured, key=lambda p: quotient(result[p])["median"])
            against = [("one statement against the best peer", "ours/one_statement", best, 1.5, False)]
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


# ---- instructions ------------------------------------------------------------

# Script, limit, floor for bench/check, calls to count.
CALLS = [
    ("same transaction, one statement", "ours/one_statement", "limit/insert", 0.60, 1000),
    ("once", "ours/once", "limit/insert", None, 1000),
    ("once_batch of 1,000, growing keys", "ours/once_batch", "limit/insert_batch", None, 10),
    ("claim that replays", "ours/claim_replays", "limit/select", 0.85, 1000),
    ("replay()", "ours/replay", "limit/select_response", None, 1000),
    ("(c) PL/pgSQL, one statement", "peers/c_plpgsql_one_statement", "limit/insert", None, 1000),
]


def part_instructions(options, calls=CALLS):
    """
    Instructions that the server executes for a call, counted by callgrind in a
    server for a single user.  The count is the same on a busy machine, so the
    floors are close.  It leaves out the kernel: network, disk and waiting.
    """
    server = Server(fsync="off", autovacuum="off")
    counts = {}
    try:
        server.prepare()
        for table in TABLES[:2]:
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

        for _, script, limit, _, number in calls:
            for each in (script, limit):
                if each not in counts:
                    half = count(each, number // 2)
                    counts[each] = (count(each, number + number // 2) - half) / number
    finally:
        shutil.rmtree(server.folder, ignore_errors=True)
    heading("Instructions for a call: the limit's against ours")
    rows = []
    for name, script, limit, floor, _ in calls:
        rows.append(show(name, spread([counts[limit] / counts[script]]), floor if options.part == "check" else None,
                         note="%.1f thousand of %.1f thousand" % (counts[limit] / 1000, counts[script] / 1000)))
    return {"rows": rows, "counts": counts}


# ---- Redis -------------------------------------------------------------------


class Redis:
    """A private Redis; "always" flushes every write, as PostgreSQL does."""

    def __init__(self, appendfsync):
        self.folder = os.path.join(WORK, "redis")
        shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder)
        self.socket = self.folder + "/s"
        self.process = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", self.socket, "--dir", self.folder, "--save", "",
             "--appendonly", "no" if appendfsync == "no" else "yes",
             "--appendfsync", "everysec" if appendfsync == "no" else appendfsync],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(100):
            if subprocess.run(["redis-cli", "-s", self.socket, "PING"], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL).returncode == 0:
                return
            time.sleep(0.05)
        raise SystemExit("redis-server does not start")

    def rate(self, seconds, *command):
        """Commands per second of four connections, each waiting for its answer."""
        number = 20_000
        while True:
            out = run(["redis-benchmark", "-s", self.socket, "-c", "4", "-n", str(number),
                       "-r", "1000000000000", "--csv"] + list(command))
            rate = float(out.strip().splitlines()[-1].split('","')[1])
            if number >= rate * seconds / 2:
                return rate
            number = int(rate * seconds)

    def stop(self):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def part_redis(options):
    """
    Claim and completion in Redis, and the work in a transaction of its own,
    against all three in one transaction of ours.  The three steps are measured
    apart and their times added, as one connection meets them.  What Redis gives
    is less: the work may commit and the completion be lost.
    """
    server = Server()
    result = {}
    try:
        server.prepare()
        for number in range(options.rounds):
            server.empty()
            for mode in ("no", "always"):
                redis = Redis(mode)
                try:
                    claim = redis.rate(options.seconds, "SET", "tenant-1:payment:__rand_int__", "in_progress",
                                       "NX", "PX", "86400000")
                    complete = redis.rate(options.seconds, "SET", "tenant-1:payment:__rand_int__", BODY,
                                          "PX", "86400000")
                finally:
                    redis.stop()
                work = server.pgbench("limit/work", options.seconds)
                ours = server.pgbench("ours/with_work", options.seconds)
                entry = result.setdefault(mode, {"rate": [], "limit": [], "redis": [], "work": []})
                entry["redis"].append(1 / (1 / claim + 1 / complete))
                entry["work"].append(work)
                entry["limit"].append(1 / (1 / claim + 1 / work + 1 / complete))
                entry["rate"].append(ours)
    finally:
        server.stop()
    heading("With one business row: ours in one transaction, against (f) Redis and a transaction")
    rows = []
    for mode, entry in result.items():
        middle = {k: statistics.median(v) for k, v in entry.items()}
        rows.append(show("against (f) Redis, " + ("no append-only file" if mode == "no" else "appendfsync always"),
                         quotient(entry), note="%.0f/s of %.0f/s (work alone %.0f/s, Redis' two %.0f/s)" % (
                             middle["rate"], middle["limit"], middle["work"], middle["redis"])))
    return {"rows": rows, "raw": result}


# ---- growth ------------------------------------------------------------------


def part_growth(options):
    """
    Databases of different size side by side, so that every round meets all.
    The recorded keys are spread evenly over the range of the new ones.
    """
    server = Server()
    sizes = [int(float(n)) for n in options.keys.split(",")]
    rates = {}
    try:
        for size in sizes:
            server.environment["PGDATABASE"] = "postgres"
            server.sql("CREATE DATABASE keys_%d;" % size)
            server.environment["PGDATABASE"] = "keys_%d" % size
            server.prepare()
            for table in TABLES[:2]:
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


# ---- contention --------------------------------------------------------------

MIXES = [("distinct keys", "ours/one_statement", "limit/insert", "peers/c_plpgsql_one_statement"),
         ("Zipf mix", "ours/zipf", "limit/zipf", "peers/zipf"),
         ("one hot key, new every 50 ms", "ours/hot", "limit/hot", "peers/hot"),
         ("the same, claims wait", "ours/hot_wait", "limit/hot", "peers/hot")]


def part_contention(options):
    server = Server()
    rates = {}
    clients = (1, 4, 16, 64)
    try:
        server.prepare()
        for number in range(options.rounds):
            for mix in MIXES:
                server.empty()
                for count in clients:
                    for script in mix[1:]:
                        rates.setdefault((mix[0], script, count), []).append(
                            server.pgbench(script, options.seconds, clients=count))
            say("round %d of %d" % (number + 1, options.rounds))
    finally:
        server.stop()
    heading("Rate against the same mix of bare INSERT ... ON CONFLICT DO NOTHING")
    rows = []
    for name, ours, limit, peer in MIXES:
        for count in clients:
            mine, bare, other = (rates[name, script, count] for script in (ours, limit, peer))
            rows.append(show("%s, %d connections" % (name, count), spread([a / b for a, b in zip(mine, bare)]),
                             note="%.0f/s of %.0f/s; (c) PL/pgSQL %.0f/s" % tuple(
                                 statistics.median(r) for r in (mine, bare, other))))
    return {"rows": rows}


# ---- size --------------------------------------------------------------------

# System A's record with a payload that brings its table to its own estimate.
PAYLOAD = ('{"payment_id": "pay_8f14e45fceea167a", "amount": 12500, "currency": "EUR", '
           '"state": "captured", "receipt": "R-2024"}')


def part_size(options):
    server = Server(autovacuum="off")
    number = options.size_keys
    try:
        server.prepare()
        server.sql("""
            CREATE TABLE bench.system_a
            (
                request_id uuid PRIMARY KEY, operation varchar(100), result_payload text NOT NULL,
                status_code integer, created_at timestamptz DEFAULT now(),
                expires_at timestamptz, CHECK (expires_at > created_at)
            );
            CREATE INDEX ON bench.system_a (expires_at);
            CREATE INDEX ON bench.system_a (operation);
            INSERT INTO bench.system_a (request_id, operation, result_payload, status_code, expires_at)
                SELECT gen_random_uuid(), 'payment', '{payload}', 201, now() + interval '24 hours'
                FROM generate_series(1, {number});
            DO $$
            BEGIN
                FOR i IN 1 .. {number} / 1000 LOOP
                    PERFORM CASE WHEN c.outcome = 'claimed' THEN
                            idempotency.complete('-', 'payment', u.key, 201, '{payload}') END
                        FROM (SELECT gen_random_uuid()::text AS key FROM generate_series(1, 1000) OFFSET 0) AS u,
                            idempotency.claim('-', 'payment', u.key) AS c;
                    COMMIT;
                END LOOP;
            END $$;""".format(payload=PAYLOAD, number=number))
        sizes = {}
        for table in ("bench.system_a", "idempotency.idempotency_keys"):
            heap, indexes, rows = (float(x) for x in server.sql(
                "SELECT pg_table_size('%s'), pg_indexes_size('%s'), count(*) FROM %s;" % ((table,) * 3)).split("|"))
            sizes[table] = {"table": heap / rows, "indexes": indexes / rows}
            for line in server.sql("SELECT indexrelid::regclass, pg_relation_size(indexrelid) FROM pg_index"
                                   " WHERE indrelid = '%s'::regclass;" % table).splitlines():
                name, size = line.split("|")
                sizes[table][name] = float(size) / rows
        server.sql("SELECT pg_stat_force_next_flush();")
        dead = server.sql("SELECT n_tup_upd, n_tup_del, n_dead_tup, n_live_tup FROM pg_stat_user_tables"
                          " WHERE relid = 'idempotency.idempotency_keys'::regclass;").split("|")
        server.sql("REINDEX TABLE idempotency.idempotency_keys;")
        packed = server.number("SELECT pg_indexes_size('idempotency.idempotency_keys');") / number
    finally:
        server.stop()
    say()
    say("Bytes per key after %d same-transaction keys, payload of %d bytes" % (number, len(PAYLOAD)))
    for table, parts in sizes.items():
        say("%-46s %6.1f table + %5.1f indexes = %6.1f" % (
            table, parts["table"], parts["indexes"], parts["table"] + parts["indexes"]))
        for name, size in parts.items():
            if name not in ("table", "indexes"):
                say("    %-60s %5.1f" % (name, size))
    say("    indexes as REINDEX packs them: %.1f" % packed)
    say("rows updated, deleted, dead, live: " + ", ".join(dead))
    total = sum(sizes["idempotency.idempotency_keys"][k] for k in ("table", "indexes"))
    heading("Size")
    rows = [show("bytes per key, all in", spread([total]), 345, True, "system A itself: %.0f" % sum(
                sizes["bench.system_a"][k] for k in ("table", "indexes"))),
            show("dead and updated rows", spread([float(dead[0]) + float(dead[2])]), 0, True)]
    return {"rows": rows, "sizes": sizes, "packed": packed}


# ---- alternatives for the row ------------------------------------------------

TEXT_FIRST = ("scope text COLLATE \"C\" NOT NULL, operation text COLLATE \"C\" NOT NULL, key text COLLATE \"C\" NOT NULL, "
              "status text COLLATE \"C\" NOT NULL, token int8, attempt int4 NOT NULL, claim_id uuid, fingerprint bytea, "
              "created_at timestamptz NOT NULL, claimed_at timestamptz, locked_until timestamptz, "
              "completed_at timestamptz, expires_at timestamptz NOT NULL, response_status int4, "
              "response_body text, note text")
LIKE = "LIKE idempotency.idempotency_keys INCLUDING DEFAULTS"
PKEY = "PRIMARY KEY (scope, operation, key)"
INDEXES = {
    "expiry": "CREATE INDEX ON {t} (expires_at);",
    "unfinished": "CREATE INDEX ON {t} (operation) WHERE status = ANY (ARRAY['in_progress', 'held']);",
    "response": "CREATE INDEX ON {t} (response_expires_at) WHERE response_expires_at IS NOT NULL;",
}
ALL = "".join(INDEXES.values())
LAYOUTS = [
    # name, columns, indexes
    ("as it is", "%s, %s" % (LIKE, PKEY), ALL),
    ("text columns first", "%s, response_expires_at timestamptz, %s" % (TEXT_FIRST, PKEY), ALL),
    ("status \"char\"", "%s, %s" % (LIKE, PKEY),
     "ALTER TABLE {t} ALTER status TYPE \"char\";" + ALL.replace("status = ANY (ARRAY['in_progress', 'held'])", "status <> 'c'")),
    ("status an enum", "%s, %s" % (LIKE, PKEY),
     "ALTER TABLE {t} ALTER status TYPE bench.key_status USING status::bench.key_status;"
     + ALL.replace("ARRAY['in_progress', 'held']", "ARRAY['in_progress', 'held']::bench.key_status[]")),
    ("key a uuid", "%s, %s" % (LIKE, PKEY), "ALTER TABLE {t} ALTER key TYPE uuid USING key::uuid;" + ALL),
    ("primary key a 16-byte digest", "%s, digest uuid PRIMARY KEY" % LIKE, ALL),
    ("expiry index BRIN", "%s, %s" % (LIKE, PKEY),
     "CREATE INDEX ON {t} USING brin (expires_at);" + INDEXES["unfinished"] + INDEXES["response"]),
    ("expiry index with status", "%s, %s" % (LIKE, PKEY),
     "CREATE INDEX ON {t} (expires_at, status);" + INDEXES["unfinished"] + INDEXES["response"]),
    ("no expiry index", "%s, %s" % (LIKE, PKEY), INDEXES["unfinished"] + INDEXES["response"]),
    ("no partial indexes", "%s, %s" % (LIKE, PKEY), INDEXES["expiry"]),
    ("expiry on whole seconds", "%s, %s" % (LIKE, PKEY), ALL),
    ("CHECK on status", "%s, %s, CHECK (status = ANY (ARRAY['completed', 'in_progress', 'failed', 'held']))" % (LIKE, PKEY),
     ALL),
]


def part_layout(options):
    """Plain tables of the same data: what the row could also have been."""
    server = Server(autovacuum="off")
    number = 200_000
    times = {}
    sizes = {}
    try:
        server.prepare()
        server.sql("""
            CREATE TYPE bench.key_status AS ENUM ('completed', 'in_progress', 'failed', 'held');
            CREATE TABLE bench.source AS SELECT gen_random_uuid() AS key FROM generate_series(1, %d);""" % number)
        # In alternating order, and the first round, which also makes the
        # server's WAL files, does not count.
        for number_of_round in range(options.rounds + 1):
            for name, columns, indexes in LAYOUTS[::-1 if number_of_round % 2 else 1]:
                server.sql("DROP TABLE IF EXISTS bench.layout;"
                           "CREATE TABLE bench.layout (%s); %s CHECKPOINT;" % (columns, indexes.format(t="bench.layout")))
                status = {"status \"char\"": "'c'"}.get(name, "'completed'")
                key = "key" if name == "key a uuid" else "key::text"
                digest = ", digest" if "digest" in columns else ""
                expiry = "date_trunc('second', clock_timestamp())" if "seconds" in name else "clock_timestamp()"
                start = time.time()
                server.sql("""
                    INSERT INTO bench.layout (created_at, expires_at, completed_at, attempt, response_status,
                                              scope, operation, key, status, response_body{digest})
                    SELECT clock_timestamp(), {expiry} + interval '24 hours', clock_timestamp(), 1, 201,
                           '-', 'payment', {key}, {status}, '{payload}'{value} FROM bench.source;""".format(
                    status=status, key=key, expiry=expiry, payload=PAYLOAD, digest=digest, value=digest and ", key"))
                if number_of_round > 0:
                    times.setdefault(name, []).append(time.time() - start)
                sizes[name] = [float(x) / number for x in server.sql(
                    "SELECT pg_table_size('bench.layout'), pg_indexes_size('bench.layout');").split("|")]
    finally:
        server.stop()
    heading("Rate of a bulk insert against the layout as it is (%d rows)" % number)
    rows = []
    for name, _, _ in LAYOUTS:
        rows.append(show(name, spread([a / b for a, b in zip(times[LAYOUTS[0][0]], times[name])]),
                         note="%.1f table + %.1f indexes = %.1f bytes per key" % (*sizes[name], sum(sizes[name]))))
    return {"rows": rows, "sizes": sizes}


# ---- clean-up ----------------------------------------------------------------


def latencies(prefix, first=0.0, last=float("inf")):
    """Latencies in ms of the transactions that ended between two moments."""
    values = []
    for name in glob.glob(WORK + "/" + prefix + ".*"):
        for line in open(name):
            fields = line.split()
            # The last line of a pgbench that was stopped may be half a line.
            if len(fields) < 6 or not line.endswith("\n"):
                continue
            if first <= int(fields[4]) + int(fields[5]) / 1e6 <= last:
                values.append(int(fields[2]) / 1000)
        os.unlink(name)
    values.sort()
    return values


def percentile(values, part):
    return values[min(len(values) - 1, int(len(values) * part))]


def part_cleanup(options):
    """
    A million expired keys are deleted while claims run.  Claims come at a fixed
    pace, so that the machine has room for clean-up, and as fast as four
    connections can, so that it has none.
    """
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
                server.fill(TABLES[0], number, expires="now() - interval '1 hour'")
                server.fill(TABLES[0], number // 10, first=number + 1)
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


# ---- all ---------------------------------------------------------------------


def machine(options):
    """What the figures depend on, without saying whose machine it is."""
    def first(path, pattern, otherwise="unknown"):
        try:
            found = re.search(pattern, open(path).read(), re.M)
        except OSError:
            found = None
        return found.group(1) if found else otherwise

    fsync = "unknown"
    try:
        out = run([BINDIR + "/pg_test_fsync", "-s", "1", "-f", WORK + "/fsync"])
        fsync = re.search(r"one 8kB.*?fdatasync +[0-9.]+ ops/sec +(\d+)", out, re.S).group(1) + " us"
    except (SystemExit, OSError, AttributeError):
        pass
    return {
        "date": time.strftime("%Y-%m-%d"),
        "revision": REVISION,
        "processors": "%d x %s" % (os.cpu_count(), first("/proc/cpuinfo", r"^model name\s*: (.*)$", platform.machine())),
        "virtual": "yes" if "hypervisor" in first("/proc/cpuinfo", r"^flags\s*: (.*)$") else "no",
        "memory": "%.0f GB" % (int(first("/proc/meminfo", r"^MemTotal:\s+(\d+)", "0")) / 1e6),
        "kernel": platform.release(),
        "fdatasync of 8 kB": fsync,
        "load before the start": "%.2f" % os.getloadavg()[0],
        "PostgreSQL": run([BINDIR + "/postgres", "--version"]).strip(),
        "settings": ", ".join("%s = %s" % s for s in SETTINGS.items()),
        "rounds": options.rounds,
        "seconds per measurement": options.seconds,
    }


def part_check(options):
    """
    The two main ratios against floors; see bench/check.  Rates at default
    durability show what was lost as a user meets it, but vary; instructions
    show a single superfluous look or statement.
    """
    server = Server()
    try:
        server.prepare()
        pairs = [p for p in RATIOS if p[1] in ("ours/one_statement", "ours/claim_replays")]
        result = measure_pairs(server, pairs, options.rounds, options.seconds)
    finally:
        server.stop()
    heading("Rate against the limit, 4 connections")
    rows = [show(name, quotient(result[script]), options.floor) for name, script, _, _, _ in pairs]
    rows += part_instructions(options, [c for c in CALLS if c[3] is not None])["rows"]
    return {"rows": rows}


RUN = {"ratios": part_ratios, "instructions": part_instructions, "redis": part_redis, "growth": part_growth, "contention": part_contention,
       "size": part_size, "layout": part_layout, "cleanup": part_cleanup, "check": part_check}


def main():
    parser = argparse.ArgumentParser(prog="bench/run", description="Measure the extension; see bench/README.md.")
    parser.add_argument("part", nargs="?", default="all", choices=PARTS + ("check", "all"))
    parser.add_argument("--seconds", type=int, default=1, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="ratios: only scripts whose names contain one of these, by comma")
    parser.add_argument("--fsync", default="on", choices=("on", "off"), help="ratios: off shows the processor's part")
    parser.add_argument("--keys", default="1e4,1e6,1e7", help="growth: numbers of recorded keys")
    parser.add_argument("--warm-up", type=int, default=20, help="growth: rounds that do not count")
    parser.add_argument("--size-keys", type=int, default=1_000_000)
    parser.add_argument("--cleanup-keys", type=int, default=1_000_000)
    parser.add_argument("--cleanup-rounds", type=int, default=3)
    parser.add_argument("--floor", type=float, default=0.7, help="check: smallest ratio that passes")
    options = parser.parse_args()

    # Stops the server on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    about = machine(options)
    for name, value in about.items():
        say("%-24s %s" % (name, value))
    results = os.path.join(WORK, "results")
    os.makedirs(results, exist_ok=True)
    passed = True
    for part in PARTS if options.part == "all" else (options.part,):
        outcome = RUN[part](options)
        name = part if options.fsync == "on" else part + "_fsync_off"
        with open("%s/%s.json" % (results, name), "w") as file:
            json.dump(dict(outcome, machine=about), file, indent=1)
        chart.write("%s/%s.svg" % (results, name), "idempotency: " + part, outcome["rows"], about)
        passed = passed and not any(r["verdict"] == "NOT REACHED" for r in outcome["rows"])
    if options.part == "check":
        sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
