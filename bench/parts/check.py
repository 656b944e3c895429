"""The two main ratios against floors; see bench/check.

Rates at default durability show what was lost as a user meets it, but vary;
instructions show a single superfluous look or statement.
"""

from pairs import measure_pairs, quotient
from parts import instructions, ratios
from server import APPLICATION, Server
from table import heading, show


def add_options(parser):
    parser.add_argument("--floor", type=float, default=0.7, help="check: smallest ratio that passes")


def measure(options):
    server = Server()
    try:
        server.prepare()
        pairs = [p for p in ratios.PAIRS if p.limit_user == APPLICATION
                 and p.script in ("ours/one_statement", "ours/claim_replays")]
        result = measure_pairs(server, pairs, options.rounds, options.seconds)
    finally:
        server.stop()
    heading("Rate against the limit, 4 connections")
    rows = [show(p.name, quotient(result[p.name]), options.floor) for p in pairs]
    rows += instructions.measure(options, [c for c in instructions.CALLS if c.floor is not None], floors=True)["rows"]
    return {"rows": rows}
