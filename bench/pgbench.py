"""Reads what pgbench leaves: rates in its output, latencies in its logs."""

import glob
import os
import re

from environment import WORK


def rate_of(process, script, progress=None):
    """
    Transactions per second, once it has ended.  If it was to report its
    progress, that is appended: moments and how many transactions ended
    until then.
    """
    out, err = process.communicate()
    found = re.search(r"^tps = ([0-9.]+)", out, re.M)
    if process.returncode != 0 or found is None or " aborted " in err:
        raise SystemExit("pgbench %s failed (%s):\n%s" % (script, process.returncode, (out + err)[-2000:]))
    if progress is not None:
        total = 0.0
        for moment, rate in re.findall(r"^progress: ([0-9.]+) s, ([0-9.]+) tps", err, re.M):
            moment = float(moment)
            total += float(rate) * (moment - progress[-1][0] if progress else 1)
            progress.append((moment, total))
    return float(found.group(1))


def latencies(prefix, first=0.0, last=float("inf")):
    """
    Latencies in ms of the transactions that ended between two moments; of one
    connection, in their order.
    """
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
    return values


def percentile(values, part):
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]
