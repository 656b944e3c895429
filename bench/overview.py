#!/usr/bin/env python3
"""The chart of the README: ours, the limit and the peers in one picture.

    bench/overview.py >docs/speed.svg

Reads what bench/run ratios and bench/run published have left in bench/results,
and says in the picture itself what was measured and on what, so that it can be
read without a text beside it.
"""

import json
import os
from xml.sax.saxutils import escape

RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results")

LEFT, WIDTH, RIGHT, LINE, TOP = 330, 380, 130, 30, 96
LIMIT, OURS, HAND, PRODUCTS = "#8a8f98", "#2e7d4f", "#c98a2b", "#8d5a97"
LEGEND = ((LIMIT, "the limit"), (OURS, "this extension"), (HAND, "written by hand"), (PRODUCTS, "other products"))

# Scripts that record one key in one transaction, against limit/insert.
BARS = (
    ("ours/once", OURS, "once(): has this event been seen?"),
    ("ours/run", OURS, "run(): claim, work and answer in one call"),
    ("ours/one_statement", OURS, "claim() and complete() in one statement"),
    ("peers/c_plpgsql_one_statement", HAND, "PL/pgSQL with an advisory lock"),
    ("peers/b_on_conflict", HAND, "ON CONFLICT DO UPDATE, then UPDATE"),
    ("peers/a_select_insert_update", HAND, "SELECT, INSERT, UPDATE"),
    ("peers/d_skip_locked", HAND, "INSERT, SELECT … SKIP LOCKED, UPDATE"),
    ("published/dbos", PRODUCTS, "DBOS: enqueue_workflow() with a key"),
    ("published/absurd", PRODUCTS, "Absurd: spawn_task() with a key"),
)


def load(part):
    try:
        with open(os.path.join(RESULTS, part + ".json")) as file:
            return json.load(file)
    except FileNotFoundError:
        raise SystemExit("bench/results/%s.json is missing: bench/run %s" % (part, part))


def main():
    ratios, published = load("ratios"), load("published")
    rows = {row["script"]: row for part in (published, ratios) for row in part["rows"]
            if row.get("limit") == "limit/insert"}
    bars = [(LIMIT, "INSERT of the same row, and nothing else", {"median": 1.0, "min": 1.0, "max": 1.0})]
    bars += [(colour, name, rows[script]) for script, colour, name in BARS if script in rows]
    about = ratios["machine"]
    longest = max(row["max"] for _, _, row in bars)
    bottom = TOP + LINE * len(bars)

    def x(value):
        return LEFT + WIDTH * value / longest

    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">' % (
               LEFT + WIDTH + RIGHT, bottom + 62),
           '<rect width="100%" height="100%" fill="white"/>',
           '<text x="14" y="28" font-size="17">Requests made safe to repeat, per second: as a share of a bare INSERT</text>',
           '<text x="14" y="50" fill="#555">One key recorded with its answer, in one transaction. 1.00 would cost nothing'
           ' beyond the row. Longer is faster.</text>']
    place = 14
    for colour, name in LEGEND:
        out += ['<rect x="%d" y="64" width="12" height="12" fill="%s"/>' % (place, colour),
                '<text x="%d" y="75" fill="#333">%s</text>' % (place + 18, name)]
        place += 140
    for number, (colour, name, row) in enumerate(bars):
        y = TOP + LINE * number
        out += ['<text x="%d" y="%d" text-anchor="end">%s</text>' % (LEFT - 10, y + 16, escape(name)),
                '<rect x="%d" y="%d" width="%.1f" height="22" fill="%s"/>' % (LEFT, y, x(row["median"]) - LEFT, colour)]
        if row["min"] < row["max"]:
            out.append('<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#222"/>' % (
                x(row["min"]), y + 11, x(row["max"]), y + 11))
        out.append('<text x="%d" y="%d">%.2f</text>' % (LEFT + WIDTH + 12, y + 16, row["median"]))
    out.append('<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#555" stroke-dasharray="4 3"/>' % (
        x(1), TOP - 4, x(1), bottom - 4))
    for line, text in enumerate((
            "Bars: median of %s rounds side by side, each divided by the INSERT beside it. Thin lines: smallest and largest." % (
                about["rounds"]),
            "PostgreSQL %s, %s, 4 connections, every commit on disk; revision %s." % (
                about["PostgreSQL"].split(")")[1].split()[0], about["processors"], about["revision"]))):
        out.append('<text x="14" y="%d" fill="#555">%s</text>' % (bottom + 22 + 20 * line, escape(text)))
    out.append("</svg>")
    print("\n".join(out))


if __name__ == "__main__":
    main()
