"""The same work with peer (f), Redis, and with us.

Claim and completion in Redis, and the work in a transaction of its own,
against all three in one transaction of ours.  The three steps are measured
apart and their times added, as one connection meets them.  What Redis gives is
less: the work may commit and the completion be lost.
"""

import os
import shutil
import statistics
import subprocess
import time

from environment import WORK, run
from pairs import quotient
from server import BODY, Server
from table import heading, show


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


def measure(options):
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
