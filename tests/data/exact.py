"""What pencil and paper say of control charts: every number is a fraction, and nothing is rounded before the end.

Prints the fixture exact.json: seeded characteristics, each with the body that registers it, its samples, what is to be
published of each sample, and of the limits at the end. Many points are put exactly on a line, or where a publisher's own
rounding leaves them beside one; some are huge, some tiny beside their mean; some samples are gaps.

    python3 tests/data/exact.py > tests/data/exact.json

A number that the server tells is the double nearest to the fraction, which is what float() returns here. A point within
a billionth of the narrower sigma of a line is on it. Roots, which no fraction is, are taken to 300 bits.
"""

import json
import math
import random
from fractions import Fraction

TOLERANCE = Fraction(1, 10**9)

# Montgomery, "Introduction to Statistical Quality Control", Appendix VI: d2, c4, (D3, D4), (B3, B4).
FACTORS = {
    2: ("1.128", "0.7979", ("0", "3.267"), ("0", "3.267")),
    3: ("1.693", "0.8862", ("0", "2.574"), ("0", "2.568")),
    4: ("2.059", "0.9213", ("0", "2.282"), ("0", "2.266")),
    5: ("2.326", "0.9400", ("0", "2.114"), ("0", "2.089")),
    6: ("2.534", "0.9515", ("0", "2.004"), ("0.030", "1.970")),
    9: ("2.970", "0.9693", ("0.184", "1.816"), ("0.239", "1.761")),
}


def paper(number):
    """The fraction that a number's JSON says."""
    return Fraction(repr(number))


def root(fraction):
    scale = 2 ** max(0, 600 + fraction.denominator.bit_length() - fraction.numerator.bit_length())
    return Fraction(math.isqrt(fraction.numerator * scale**2 * fraction.denominator), fraction.denominator * scale)


def mean(fractions):
    return sum(fractions) / len(fractions)


def spread_of(chart, values, previous):
    if chart == "mr":
        return None if previous is None else abs(values[0] - previous)
    if chart == "r":
        return max(values) - min(values)
    middle = mean(values)
    return root(sum((x - middle) ** 2 for x in values) / (len(values) - 1))


class Chart:
    """Lines, and how points lie to them."""

    def __init__(self, center, ucl, lcl):
        self.center = center
        self.up = None if ucl is None else (ucl - center) / 3
        self.down = None if lcl is None else (center - lcl) / 3
        self.tolerance = TOLERANCE * min((s for s in (self.up, self.down) if s), default=0)

    def side(self, x, other=None):
        distance = x - (self.center if other is None else other)
        return 0 if abs(distance) <= self.tolerance else (1 if distance > 0 else -1)

    def band(self, x):
        """How many sigma lines the point is beyond, signed: 0 is zone C, 3 beyond a limit."""
        for count in (3, 2, 1):
            if self.up is not None and self.side(x, self.center + count * self.up) > 0:
                return count
            if self.down is not None and self.side(x, self.center - count * self.down) < 0:
                return -count
        return 0

    def zone(self, x):
        band = self.band(x)
        if band == 0:
            return "zone_c_lower" if self.side(x) < 0 else "zone_c_upper"
        if abs(band) == 3:
            return "beyond_ucl" if band > 0 else "beyond_lcl"
        return f"zone_{'xba'[abs(band)]}_{'upper' if band > 0 else 'lower'}"


def of(points, most, least, beyond, chart):
    """At least so many of the last points are beyond a line on one side, the newest among them."""
    bands = [chart.band(x) for x in points[-most:]]
    for sign in (1, -1):
        hits = [sign * band >= beyond for band in bands]
        if hits[-1] and sum(hits) >= least:
            return True
    return False


def broken(points, chart):
    """The Nelson rules that the newest point breaks."""

    def last(count):
        return points[-count:] if len(points) >= count else []

    def moves(count):
        seen = last(count)
        return [chart.side(later, earlier) for earlier, later in zip(seen, seen[1:])]

    rules = set()
    if abs(chart.band(points[-1])) == 3:
        rules.add(1)
    if last(9) and len({chart.side(x) for x in last(9)} | {0}) == 2 and all(chart.side(x) for x in last(9)):
        rules.add(2)
    if moves(6) and (all(m == 1 for m in moves(6)) or all(m == -1 for m in moves(6))):
        rules.add(3)
    if moves(14) and all(one * two == -1 for one, two in zip(moves(14), moves(14)[1:])):
        rules.add(4)
    if of(points, 3, 2, 2, chart):
        rules.add(5)
    if of(points, 5, 4, 1, chart):
        rules.add(6)
    if last(15) and chart.up is not None and chart.down is not None and all(chart.band(x) == 0 for x in last(15)):
        rules.add(7)
    if last(8) and all(chart.band(x) for x in last(8)) and len({chart.band(x) > 0 for x in last(8)}) == 2:
        rules.add(8)
    return rules


def learnt(method, collected, size):
    """Lines of both charts from a baseline, in which None is a gap; nothing if there is no width."""
    d2, c4, ranges, deviations = FACTORS[max(size, 2)]
    kind, factor, own = {
        "moving_range": ("mr", d2, ranges),
        "xbar_r": ("r", d2, ranges),
        "xbar_s": ("s", c4, deviations),
    }[method]
    if kind == "mr":
        pairs = zip(collected, collected[1:])
        spreads = [abs(a[0] - b[0]) for a, b in pairs if a is not None and b is not None]
    else:
        spreads = [spread_of(kind, values, None) for values in collected if values is not None]
    if not spreads or not any(spreads):
        return None
    # A baseline keeps sums and spreads as numbers, which is exact up to 15 digits.
    middle = mean([paper(float(sum(values))) / size for values in collected if values is not None])
    spread = mean([paper(float(spread)) if size > 1 else spread for spread in spreads])
    # Over the root of a square, which is a fraction itself.
    sigma = spread / Fraction(factor) / (root(Fraction(size)) if size > 1 else 1)
    # What a publisher's rounding makes of nothing is no width.
    if 6 * sigma <= Fraction(1, 10**14) * max(abs(middle + 3 * sigma), abs(middle - 3 * sigma)):
        return None
    location = {"center_line": float(middle), "ucl": float(middle + 3 * sigma), "lcl": float(middle - 3 * sigma)}
    lower, upper = (float(spread * Fraction(part)) for part in own)
    return location | {"dispersion": {"chart": kind, "center_line": float(spread), "ucl": upper, "lcl": lower}}


def chart_of(lines):
    number = {name: None if lines[name] is None else paper(lines[name]) for name in ("center_line", "ucl", "lcl")}
    return Chart(number["center_line"], number["ucl"], number["lcl"])


def run(register, samples):
    """What is to be published for each sample: mean, range, zone, rules, and value and zone on the dispersion chart."""
    size, asked = register["subgroup_size"], register["limits"]
    limits = None if "samples" in asked else asked
    learning, points, previous, expected = [], [], None, []
    for sample in samples:
        if sample is None:
            points, previous = [], None
            expected.append(None)
            learning += [None] if learning and learning[-1] is not None else []
            continue
        values = [paper(value) for value in sample]
        middle = mean(values)
        said = [float(middle), float(max(values) - min(values)) if size > 1 else None, None, [], None]
        if limits is not None:
            chart, spread = chart_of(limits), None
            points = (points + [middle])[-15:]
            rules = broken(points, chart)
            if limits.get("dispersion"):
                spread = spread_of(limits["dispersion"]["chart"], values, previous)
            if spread is not None:
                zone = chart_of(limits["dispersion"]).zone(spread)
                said[4] = [float(spread), zone]
                rules |= {101} if zone.startswith("beyond") else set()
            said[2:4] = [chart.zone(middle), sorted(rules)]
        previous = middle
        expected.append(said)
        if limits is None:
            learning.append(values)
            if sum(own is not None for own in learning) == asked["samples"]:
                limits = learnt(asked["method"], learning, size)
                if limits is None:
                    learning = learning[2:] if learning[1] is None else learning[1:]
    return expected, limits


def series(source, size, given):
    """Samples of a process of sigma 1 around 0, in thousandths: they wander, stay, rise, or are on a line."""
    count = source.choice([12, 25, 40])
    level, samples = 0, []
    while len(samples) < count:
        way = source.choice(["noise", "noise", "shift", "rise", "swing", "line", "level", "quiet", "gap"])
        for index in range({"rise": 8, "swing": 16}.get(way) or source.randint(1, 9)):
            if way == "gap":
                samples.append(None)
                if source.random() < 0.7:
                    break
                continue
            center = {"shift": 1200, "rise": 300 * index - 600, "swing": 1500 * (-1) ** index, "level": level}.get(way, 0)
            if way in ("line", "level") and given:
                # The mean is on a line: the last value makes up for the others.
                center = given(source) if way == "line" else level
                level = center
                values = [round(source.gauss(center, 900)) for _ in range(size - 1)]
                values.append(size * center - sum(values))
            else:
                spread = 150 if way in ("quiet", "rise", "swing") else 900
                values = [round(source.gauss(center, spread)) for _ in range(size)]
            samples.append(values)
    return samples[:count]


def scaled(thousandths, offset, exponent):
    """offset + thousandths / 1000 · 10^exponent, as a double that has this decimal notation."""
    number = Fraction(offset) + Fraction(thousandths) * Fraction(10) ** (exponent - 3)
    assert paper(float(number)) == number, number
    return float(number)


def case(source):
    size = source.choice([1, 1, 2, 3, 4, 5, 6, 9])
    # Offset and exponent of sigma: ordinary, tiny beside the mean, huge, barely above nothing.
    offset, exponent = source.choice([("0.3", 0), ("74", -2), ("-12.5", 1), ("1000000", -6), ("0", 299), ("0", -290)])
    at = lambda thousandths: scaled(thousandths, offset, exponent)
    # A width of 3,000 thousandths has decimal lines; one of 2,000 has thirds, which the means of three and six can hit.
    width = source.choice([3000, 3000, 2000]) if size % 3 == 0 else 3000
    lower = source.choice([width, width, 6000, None])
    sides = [width * k // 3 if width % 3 == 0 else Fraction(width * k, 3) for k in range(4)]
    sides += [-Fraction(lower * k, 3) for k in range(1, 4)] if lower else []
    line = lambda source: source.choice(sides)
    kind = "mr" if size == 1 else source.choice(["r", "s"])
    if source.random() < 0.4:
        method = {"mr": "moving_range", "r": "xbar_r", "s": "xbar_s"}[kind]
        limits = {"method": method, "samples": source.choice([2, 5, 8])}
    else:
        limits = {"center_line": at(0), "ucl": at(width), "lcl": None if lower is None else at(-lower)}
        if source.random() < 0.7:
            own = lambda thousandths: scaled(thousandths, "0", exponent)
            limits["dispersion"] = {"chart": kind, "center_line": own(1200), "ucl": own(3000), "lcl": own(0)}
    samples = []
    for values in series(source, size, line):
        if values is None:
            samples.append(None)
            continue
        values = [at(Fraction(value)) for value in values]
        if source.random() < 0.4 and (offset != "1000000" or size == 1):
            # As a publisher's own arithmetic leaves it. (Beside a million a double is coarser than the tolerance.)
            values[0] = math.nextafter(values[0], source.choice([math.inf, -math.inf]))
        samples.append(values)
    if kind != "mr" and size == 3 and "dispersion" in limits:
        # Range 3 and deviation 1.5; deviation 3 and range 6.
        samples += [[at(-1500), at(0), at(1500)], [at(-3000), at(0), at(3000)]]
    register = {"subgroup_size": size, "rules": [*range(1, 9), 101], "limits": limits}
    expected, final = run(register, samples)
    return {"register": register, "samples": samples, "expected": expected, "limits": final}


def main():
    source = random.Random(1924)
    print("[" + ",\n".join(json.dumps(case(source), separators=(",", ":")) for _ in range(160)) + "]")


if __name__ == "__main__":
    main()
