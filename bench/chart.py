"""A bar chart of ratios as SVG, with the figures to reach and the spread."""

from xml.sax.saxutils import escape

LEFT, WIDTH, RIGHT, LINE, TOP = 300, 420, 190, 26, 64
COLOURS = {"reached": "#2e7d4f", "NOT REACHED": "#b3443a", "": "#4a6fa5"}


def write(path, title, rows, about):
    """rows: dictionaries with name, median, min, max, figure, at_most, verdict."""
    # One stray round must not squeeze all bars; what is longer is cut off.
    longest = max([1.0] + [r["median"] for r in rows] + [r["figure"] or 0 for r in rows]) * 1.15
    height = TOP + LINE * len(rows) + 74

    def x(value):
        return LEFT + WIDTH * min(value, longest) / longest

    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" '
           'font-family="sans-serif" font-size="12">' % (LEFT + WIDTH + RIGHT, height),
           '<rect width="100%" height="100%" fill="white"/>',
           '<text x="12" y="24" font-size="16">%s</text>' % escape(title),
           '<text x="12" y="44" fill="#555">Bars: median ratio. Lines: smallest and largest round. '
           'Marks: figure to reach.</text>',
           '<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#999" stroke-dasharray="3 3"/>' % (
               x(1), TOP - 6, x(1), TOP + LINE * len(rows))]
    for number, row in enumerate(rows):
        y = TOP + LINE * number
        middle = y + 9
        out += ['<text x="%d" y="%d" text-anchor="end">%s</text>' % (LEFT - 10, y + 13, escape(row["name"])),
                '<rect x="%d" y="%d" width="%.1f" height="18" fill="%s"/>' % (
                    LEFT, y, max(x(row["median"]) - LEFT, 0.5), COLOURS[row["verdict"]]),
                '<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#222"/>' % (
                    x(row["min"]), middle, x(row["max"]), middle)]
        label = "%.2f" % row["median"]
        if row["figure"] is not None:
            out.append('<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#000" stroke-width="3"/>' % (
                x(row["figure"]), y - 2, x(row["figure"]), y + 20))
            label += " (figure: at %s %g)" % ("most" if row["at_most"] else "least", row["figure"])
        out.append('<text x="%d" y="%d">%s</text>' % (LEFT + WIDTH + 10, y + 13, escape(label)))
    y = TOP + LINE * len(rows) + 22
    for line in ("%s; %s, memory %s, fdatasync %s" % (
                     about["PostgreSQL"], about["processors"], about["memory"], about["fdatasync of 8 kB"]),
                 "%s rounds of %s s; revision %s, %s" % (
                     about["rounds"], about["seconds per measurement"], about["revision"], about["date"])):
        out.append('<text x="12" y="%d" fill="#555">%s</text>' % (y, escape(line)))
        y += 18
    out.append("</svg>")
    with open(path, "w") as file:
        file.write("\n".join(out) + "\n")
