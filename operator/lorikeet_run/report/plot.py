"""Where everything of a plot lies: scales, ticks, and lines thinned out so that a long run's page stays small."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from lorikeet_run.report import text
from lorikeet_run.report.model import Chart, LengthBin, Series

SIDE: Final = 1000
"""Width and height of the drawing's own coordinates, which are stretched over the place that the page has."""
MOST_POINTS: Final = 600
"""Points of one line."""
_MOST_DOTTED: Final = 40
"""Points of a line that has each of them marked."""
_TICKS: Final = 5

Point = tuple[int, float | None]


@dataclass(frozen=True)
class Tick:
    """A mark of an axis."""

    at: float
    """Percent of the axis, from its left or its top."""
    text: str


@dataclass(frozen=True)
class Line:
    """One series."""

    name: str
    newest: str
    """Its last value."""
    paths: list[str]
    """`points` of polylines of two points or more: gaps divide them."""
    dots: list[tuple[float, float]]
    """Points that are marked: all of few, and each that stands alone between gaps."""


@dataclass(frozen=True)
class Box:
    """A rectangle with words that show where the pointer is on it."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class Plot:
    """A chart, ready to be drawn in coordinates of SIDE x SIDE."""

    title: str
    about: str
    x_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line] = field(default_factory=list)
    bars: list[Box] = field(default_factory=list)
    hovers: list[Box] = field(default_factory=list)
    marks: list[Tick] = field(default_factory=list)
    """Vertical lines with words."""


@dataclass(frozen=True)
class Scale:
    """A range of numbers along an axis of length SIDE."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float], *, from_zero: bool = False) -> "Scale":
        """Return the scale of values, with room around them; `from_zero` where they are amounts."""
        low, high = min(values), max(values)
        if from_zero and low >= 0:
            return cls(0.0, 1.08 * high or 1.0)
        room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(low - room, high + room)

    def along(self, value: float) -> float:
        """Return how far along the axis a value lies."""
        return SIDE * (value - self.low) / (self.high - self.low)

    def ticks(self, *, whole: bool = False) -> tuple[list[float], float]:
        """Return about five round numbers in the range, and the step between them: 1, 2 or 5 times a power of 10."""
        rough = (self.high - self.low) / _TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * times for times in (1, 2, 5, 10) if power * times >= 0.999 * rough)
        if whole:
            step = max(1.0, step)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)], step


def plot(chart: Chart, resumed_from: int | None = None) -> Plot | None:
    """Return a chart over the steps, or None if no series has a value; `resumed_from` is a step to mark."""
    thinned = [Series(name=one.name, points=thin(one.points)) for one in chart.series]
    series = [one for one in thinned if any(value is not None for _, value in one.points)]
    if not series:
        return None
    values = [value for one in series for _, value in one.points if value is not None]
    steps = sorted({step for one in series for step, value in one.points if value is not None})
    unit, per = text.byte_unit(max(values)) if chart.unit == "bytes" else ("", 1)
    y = Scale.over([value / per for value in values], from_zero=chart.from_zero)
    x = Scale(steps[0], steps[-1]) if len(steps) > 1 else Scale(steps[0] - 1, steps[0] + 1)
    say: Callable[[float], str] = text.size if chart.unit == "bytes" else text.number

    def place(step: int, value: float) -> tuple[float, float]:
        return round(x.along(step), 1), round(SIDE - y.along(value / per), 1)

    return Plot(
        title=chart.title,
        about=chart.about,
        x_label="step",
        x_ticks=_ticks(x, whole=True),
        y_ticks=[Tick(100 - tick.at, f"{tick.text} {unit}".rstrip()) for tick in _ticks(y)],
        lines=[_line(one, place, say) for one in series],
        hovers=_hovers(steps, x, series, say),
        marks=[Tick(x.along(resumed_from) * 100 / SIDE, f"resumed from step {resumed_from}")]
        if resumed_from is not None and x.low < resumed_from < x.high
        else [],
    )


def histogram(bins: Sequence[LengthBin]) -> Plot | None:
    """Return the bars of the examples' lengths, or None without any."""
    if not bins:
        return None
    x = Scale(bins[0].first, bins[-1].last + 1)
    y = Scale.over([one.examples for one in bins], from_zero=True)
    bars = []
    for one in bins:
        left, right, height = x.along(one.first), x.along(one.last + 1), y.along(one.examples)
        lengths = str(one.first) if one.first == one.last else f"{one.first} to {one.last}"
        words = f"{lengths} tokens\n{one.examples:,} examples"
        bars.append(Box(round(left, 1), round(SIDE - height, 1), round(right - left, 1), round(height, 1), words))
    return Plot(
        title="Length of the training examples",
        about="Examples by their number of tokens, prompt and answer together.",
        x_label="tokens",
        x_ticks=_ticks(x, whole=True),
        y_ticks=[Tick(100 - tick.at, tick.text) for tick in _ticks(y, whole=True)],
        bars=bars,
    )


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most `most` of the points: the first, the last, and of each stretch lowest, highest and a gap."""
    if len(points) <= most:
        return list(points)
    inner = points[1:-1]
    stretches = (most - 2) // 3
    kept = {0, len(points) - 1}
    for number in range(stretches):
        begin, end = number * len(inner) // stretches, (number + 1) * len(inner) // stretches
        places = range(begin + 1, end + 1)
        solid = [(value, place) for place in places if (value := points[place][1]) is not None]
        kept |= {min(solid)[1], max(solid)[1]} if solid else set()
        kept |= set([place for place in places if points[place][1] is None][:1])
    return [points[place] for place in sorted(kept)]


def _ticks(scale: Scale, *, whole: bool = False) -> list[Tick]:
    values, step = scale.ticks(whole=whole)
    return [Tick(round(scale.along(value) * 100 / SIDE, 2), text.tick(value, step)) for value in values]


def _line(series: Series, place: Callable[[int, float], tuple[float, float]], say: Callable[[float], str]) -> Line:
    stretches = list(_stretches(series.points, place))
    values = [value for _, value in series.points if value is not None]
    few = len(values) <= _MOST_DOTTED
    return Line(
        name=series.name,
        newest=say(values[-1]),
        paths=[" ".join(f"{x:g},{y:g}" for x, y in one) for one in stretches if len(one) > 1],
        dots=[point for one in stretches for point in one if few or len(one) == 1],
    )


def _stretches(
    points: Sequence[Point], place: Callable[[int, float], tuple[float, float]]
) -> Iterator[list[tuple[float, float]]]:
    """Yield the points between gaps."""
    stretch: list[tuple[float, float]] = []
    for step, value in points:
        if value is not None:
            stretch.append(place(step, value))
        elif stretch:
            yield stretch
            stretch = []
    if stretch:
        yield stretch


def _hovers(steps: Sequence[int], x: Scale, series: Sequence[Series], say: Callable[[float], str]) -> list[Box]:
    """Return a column around each step that tells its values."""
    shown: dict[int, list[str]] = {step: [f"step {step:,}"] for step in steps}
    for one in series:
        for step, value in one.points:
            if value is not None:
                shown[step].append(f"{one.name}: {say(value)}")
    places = [x.along(step) for step in steps]
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(places)), float(SIDE)]
    return [
        Box(round(left, 1), 0, round(right - left, 1), SIDE, "\n".join(shown[step]))
        for step, (left, right) in zip(steps, pairwise(edges), strict=True)
    ]
