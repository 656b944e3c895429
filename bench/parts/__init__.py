"""The parts of bench/run, one module each.

A part has measure(options), which starts a server, measures, prints, and
returns what becomes its JSON file; of that, "rows" (lines of table.show) become
its chart.  If it has options of its own, add_options(parser) adds them.
"""

import importlib

# In this order where bench/run is told no part.
ALL = (
    "ratios",
    "instructions",
    "redis",
    "growth",
    "contention",
    "size",
    "layout",
    "cleanup",
    "life",
)
# Only when asked for: what takes long without saying more about the others, and
# bench/check.
NAMES = ALL + ("hot", "published", "check")


def load():
    """The modules, by name."""
    return {name: importlib.import_module("parts." + name) for name in NAMES}
