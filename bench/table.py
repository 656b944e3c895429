"""The lines that are printed, and what of them goes into the chart and the JSON file."""

import statistics


def say(text=""):
    print(text, flush=True)


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def heading(text):
    say()
    say(text)
    say("%-46s %6s  %-11s  %8s" % ("", "median", "min-max", "figure"))


def show(name, ratio, figure=None, at_most=False, note=""):
    """One line of the table, and its record for the chart."""
    if figure is None:
        verdict = ""
    elif (ratio["median"] <= figure) if at_most else (ratio["median"] >= figure):
        verdict = "reached"
    else:
        verdict = "NOT REACHED"
    say("%-46s %6.2f  %5.2f-%-5.2f  %8s  %-11s %s" % (
        name, ratio["median"], ratio["min"], ratio["max"],
        "" if figure is None else ("<= " if at_most else ">= ") + "%.2f" % figure, verdict, note))
    return dict(ratio, name=name, figure=figure, at_most=at_most, verdict=verdict, note=note)
