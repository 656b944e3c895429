"""The results: a line for each case, a JSON line for a run, and a table of many runs."""

import json


def line(result, name, why):
    print(f'{result:6} {name}' + (f' ({why})' if why else ''), flush=True)


def summary(name, via, results):
    """results: {case: [result, why]}"""
    return json.dumps({'name': name, 'via': via, 'cases': results})


def table(runs):
    """Markdown: a row for each case, a column for each service, whose cell is about all its runs, direct and pooled."""
    names = list(dict.fromkeys(run['name'] for run in runs))
    cases = list(dict.fromkeys(case for run in runs for case in run['cases']))
    lines = ['| case | ' + ' | '.join(names) + ' |', '|---' * (len(names) + 1) + '|']
    notes = []
    for case in cases:
        cells = []
        for name in names:
            results = [(run['via'], *run['cases'].get(case, ('-', 'was not run'))) for run in runs if run['name'] == name]
            cells.append(cell(results))
            notes += [f'- {name}, {via}, {case}: {result}, {why}' for via, result, why in results if result != 'ok']
        lines.append(f'| {case} | ' + ' | '.join(cells) + ' |')
    ways = ', '.join(dict.fromkeys(run['via'] for run in runs))
    lines += ['', f'A cell is about all ways to the database ({ways}), unless it names one.']
    return '\n'.join(lines + ([''] + notes if notes else []))


def cell(results):
    kinds = {result for _, result, _ in results}
    if len(kinds) == 1:
        return kinds.pop()
    return ', '.join(f'{result} ({via})' for via, result, _ in results)
