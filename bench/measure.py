#!/usr/bin/env python3
"""Measures the extension against a bare INSERT and against its peers.

Started by bench/run, which builds the extension into a private copy of the
server and runs this as somebody who is not root.  Here are the options and the
order of things; what is measured is in parts/.
"""

import argparse
import json
import os
import signal
import sys

import chart
import machine
import parts
from environment import WORK
from table import say


def main():
    modules = parts.load()
    parser = argparse.ArgumentParser(prog="bench/run", description="Measure the extension; see bench/README.md.")
    parser.add_argument("part", nargs="?", default="all", choices=parts.NAMES + ("all",))
    parser.add_argument("--seconds", type=int, default=1, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--fsync", default="on", choices=("on", "off"), help="ratios: off shows the processor's part")
    for module in modules.values():
        if hasattr(module, "add_options"):
            module.add_options(parser)
    options = parser.parse_args()

    # Stops the server on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    about = machine.describe(options)
    for name, value in about.items():
        say("%-24s %s" % (name, value))
    results = os.path.join(WORK, "results")
    os.makedirs(results, exist_ok=True)
    passed = True
    for part in parts.ALL if options.part == "all" else (options.part,):
        outcome = modules[part].measure(options)
        name = part if options.fsync == "on" else part + "_fsync_off"
        with open("%s/%s.json" % (results, name), "w") as file:
            json.dump(dict(outcome, machine=about), file, indent=1)
        chart.write("%s/%s.svg" % (results, name), "idempotency: " + part, outcome["rows"], about)
        passed = passed and not any(r["verdict"] == "NOT REACHED" for r in outcome["rows"])
    if options.part == "check":
        sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
