"""Pairs of a script and its limit: their rates side by side, and the ratio.

Every figure is a ratio of rates that were taken in the same round, one after
the other; the median over the rounds counts, and the smallest and largest are
shown.
"""

import statistics
from typing import NamedTuple, Optional

from server import APPLICATION, BARE, KEYS
from table import say, show, spread

REPLAY_KEYS = 100_000


class Pair(NamedTuple):
    """A script, what it is compared with, and the ratio to reach."""
    name: str
    script: str
    limit: str
    figure: Optional[float] = None
    replays: bool = False  # needs recorded keys
    limit_user: str = APPLICATION


def measure_pairs(server, pairs, rounds, seconds):
    """
    For every pair and round the limit and the script, one directly after the
    other and in alternating order: what else the machine and its disk do then
    meets both.  Returns, by name, the rates of both and the processor time
    that the server's processes took per transaction.
    """
    result = {}
    for number in range(rounds):
        for replays in (False, True):
            chosen = [p for p in pairs if p.replays == replays]
            if not chosen:
                continue
            server.empty()
            if replays:
                for table in (KEYS, BARE):
                    server.fill(table, REPLAY_KEYS)
                server.sql("VACUUM ANALYZE; CHECKPOINT;")
            for pair in chosen:
                entry = result.setdefault(pair.name, {"rate": [], "limit": [], "cpu": [], "limit_cpu": []})
                order = [(pair.script, APPLICATION, "rate", "cpu"),
                         (pair.limit, pair.limit_user, "limit", "limit_cpu")]
                for script, user, rate_name, cpu_name in order if number % 2 else reversed(order):
                    before = server.processor_time()
                    rate = server.pgbench(script, seconds, user=user, keys=REPLAY_KEYS)
                    entry[rate_name].append(rate)
                    entry[cpu_name].append((server.processor_time() - before) / (rate * seconds) * 1e6)
        say("round %d of %d" % (number + 1, rounds))
    return result


def quotient(entry):
    return spread([x / y for x, y in zip(entry["rate"], entry["limit"])])


def show_pairs(pairs, result, remarks=None):
    rows = []
    for pair in pairs:
        entry = {k: statistics.median(v) for k, v in result[pair.name].items()}
        rows.append(show(pair.name, quotient(result[pair.name]), pair.figure,
                         note="%.0f/s of %.0f/s, CPU %.0f us of %.0f us" % (
                             entry["rate"], entry["limit"], entry["cpu"], entry["limit_cpu"])
                         + ("; " + remarks[pair.script] if remarks and pair.script in remarks else "")))
        rows[-1].update(script=pair.script, limit=pair.limit)
    return rows
