"""What bench/run handed over: where things are; and how programs are run."""

import os
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
BINDIR = os.environ["BENCH_BINDIR"]
WORK = os.environ["BENCH_WORK"]  # short: sockets live below it
REVISION = os.environ.get("BENCH_REVISION", "unknown")


def run(command, **more):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
    if done.returncode != 0:
        raise SystemExit("%s failed:\n%s" % (os.path.basename(command[0]), done.stderr[-2000:]))
    return done.stdout
