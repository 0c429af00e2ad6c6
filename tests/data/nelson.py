"""An independent opinion on the Nelson rules: `pip install shewhart==0.1.1` (PyPI, MIT, needs
Python 3.10 or newer), module shewhart._rules.

Prints the fixture nelson.json: seeded series of points, each with its chart's lines and, for each point, the
list of the rules that are broken when that point is the newest one. The package marks all points of a pattern,
so it is asked prefix by prefix, and a rule counts as broken if the prefix's last point is among those marked.

    python3 -m venv venv && venv/bin/pip install shewhart==0.1.1
    venv/bin/python tests/data/nelson.py > tests/data/nelson.json

shewhart 0.1.1 counts points as Nelson does (six points are five rises, where Minitab and the PyPI
package NelsonCheck want six rises). It differs from Nelson, or decides what he leaves open, twice;
both is made up for here:
- Rule 8: Nelson (1984) says "eight points in a row on both sides of centerline with none in
  Zone C"; the package also marks eight on one side. So a side is looked for here.
- Rule 7: a point exactly on one sigma. Nelson does not say; the package lets it end the run, we
  count it to the inner zone as in rules 1, 5, 6 and 8. So such points are moved inside.
Rules 5 and 6 need a full window of three and five points there, also at the start of a series, where two points
beyond 2 sigma are two of three already, and four beyond 1 sigma four of five. So a point on the center line, which
counts for neither, goes before the series.
"""

import json
import random

import numpy as np
from shewhart._rules import apply_rules


def z_scores(points, center, ucl, lcl):
    """Distances from the center line, each in the sigma of its side; 0/0 on a chart without width
    is NaN, which is in no zone."""
    width = np.where(points > center, ucl - center, center - lcl)
    width = np.where(points == center, ucl - lcl, width)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 3 * (points - center) / width


def marks_last(values, rule):
    last = len(values) - 1
    return any(last in marked for _, _, marked in apply_rules(values, [f"nelson_{rule}"]))


def broken_at_last(points, z):
    inside = np.where(np.abs(z) == 1, 0, z)
    led = np.concatenate([[0.0], z])
    # Trend and alternation are matters of the points alone, whatever the limits are.
    seen_by = {3: points, 4: points, 5: led, 6: led, 7: inside}
    broken = [rule for rule in range(1, 9) if marks_last(seen_by.get(rule, z), rule)]
    if 8 in broken and abs(np.sign(z[-8:]).sum()) == 8:
        broken.remove(8)
    return broken


def series(random):
    """Points of a chart that wander, shift, alternate or stay: half of them exactly on zone boundaries."""
    center, below, above = random.choice([(0.0, 3.0, 3.0), (10.0, 1.5, 3.0), (-4.0, 6.0, 0.75)])
    steps = random.choice([4, None])
    points = []
    for _ in range(random.randint(1, 5)):
        shift, spread = random.uniform(-2.5, 2.5), random.choice([0.3, 0.8, 1.5])
        drift, swing = random.choice([0, 0, 0.4, -0.4]), random.choice([0, 0, 1.8])
        length = random.randint(3, 16)
        if random.random() < 0.2:
            shift, spread, drift, swing, length = 0, 0.3, 0, 0, 20
        for index in range(length):
            z = shift + drift * index + (swing if index % 2 else -swing) + random.gauss(0, spread)
            z = round(z * steps) / steps if steps else z
            points.append(round(center + z * (above if z > 0 else below) / 3, 6))
    return {"points": points, "center_line": center, "ucl": center + above, "lcl": center - below}


def main():
    source = random.Random(1984)
    charts = []
    for _ in range(300):
        chart = series(source)
        points = np.array(chart["points"])
        z = z_scores(points, chart["center_line"], chart["ucl"], chart["lcl"])
        ends = range(1, len(points) + 1)
        charts.append(chart | {"broken": [broken_at_last(points[:end], z[:end]) for end in ends]})
    print("[" + ",\n".join(json.dumps(chart) for chart in charts) + "]")


if __name__ == "__main__":
    main()
