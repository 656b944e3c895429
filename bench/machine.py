"""What the figures depend on, without saying whose machine it is."""

import os
import platform
import re
import time

from environment import BINDIR, REVISION, WORK, run
from server import SETTINGS


def describe(options):
    """The lines at the head of the output, by name."""
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
