"""Scales, ticks and lines of a plot."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorikeet_run.report import LengthBin, text
from lorikeet_run.report.plot import MOST_POINTS, SIDE, Plot, Point, Scale, histogram, plot, thin
from tests.unit.run.report import example

measured = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True, width=32))


def drawn(points: list[Point], **more: object) -> Plot:
    made = plot(example.chart("Loss", points, **more))
    assert made is not None
    return made


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in path.split())]


@given(st.lists(measured, max_size=30), st.booleans())
def test_whatever_was_measured_is_drawn_inside_the_frame(values: list[float | None], from_zero: bool) -> None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    made = plot(example.chart("Norm", list(enumerate(values)), from_zero=from_zero))
    assert (made is None) == (not finite)
    if made is None:
        return
    (line,) = made.lines
    points = [point for path in line.paths for point in places(path)] + line.dots
    assert len(set(line.dots)) <= len(finite)
    assert all(0 <= x <= SIDE and 0 <= y <= SIDE for x, y in points)
    assert all(len(places(path)) >= 2 for path in line.paths)
    assert all(0 <= tick.at <= 100 for tick in [*made.x_ticks, *made.y_ticks])
    assert made.x_ticks


def test_a_gap_divides_the_line() -> None:
    made = drawn([(1, 1.0), (2, 2.0), (3, math.nan), (4, 2.0), (5, 1.0), (6, None), (7, 3.0)])
    assert [[x for x, _ in places(path)] for path in made.lines[0].paths] == [[0, 166.7], [500, 666.7]]
    assert made.lines[0].dots[-1][0] == SIDE, "what stands alone is marked"
    assert [hover.text for hover in made.hovers][2] == "step 4\nLoss: 2"


def test_one_point_is_a_dot_in_the_middle() -> None:
    made = drawn([(7, 0.5)])
    assert (made.lines[0].paths, made.lines[0].dots) == ([], [(SIDE / 2, SIDE / 2)])
    assert [(tick.text, tick.at) for tick in made.x_ticks] == [("6", 0), ("7", 50), ("8", 100)]


def test_higher_is_higher_and_later_is_further_right() -> None:
    (first, second) = places(drawn([(0, 1.0), (10, 3.0)]).lines[0].paths[0])
    assert first[0] < second[0]
    assert first[1] > second[1]


def test_the_step_of_a_resumption_is_marked() -> None:
    made = plot(example.chart("Loss", [(0, 1.0), (100, 2.0)]), resumed_from=40)
    assert made is not None
    assert [(mark.at, mark.text) for mark in made.marks] == [(40, "resumed from step 40")]
    assert drawn([(0, 1.0), (100, 2.0)]).marks == []


@given(
    st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=120).map(
        lambda values: list(enumerate(values))
    ),
    st.integers(5, 40),
)
def test_thinning_keeps_ends_and_extremes(points: list[Point], most: int) -> None:
    kept = thin(points, most)
    assert len(kept) <= most
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert kept == sorted(kept, key=lambda point: point[0])
    assert set(kept) <= set(points)
    values = {value for _, value in points if value is not None}
    if values:
        assert {min(values), max(values)} <= {value for _, value in kept}


def test_a_single_gap_survives_thinning() -> None:
    points: list[Point] = [(step, None if step == 4321 else 1.0) for step in range(10_000)]
    kept = thin(points)
    assert (4321, None) in kept
    assert MOST_POINTS / 3 <= len(kept) <= MOST_POINTS


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0, 2e-4, ["0", "5e-5", "1.0e-4", "1.5e-4", "2.0e-4"]),
        (-3, 3, ["\N{MINUS SIGN}2", "0", "2"]),
        (0, 13_000, ["0", "5k", "10k"]),
        (99.7, 100.3, ["99.8", "100.0", "100.2"]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[str]) -> None:
    values, step = Scale(low, high).ticks()
    assert [text.tick(value, step) for value in values] == expected


def test_steps_have_no_fractions() -> None:
    assert [tick.text for tick in drawn([(1, 1.0), (2, 2.0)]).x_ticks] == ["1", "2"]


def test_amounts_begin_at_zero_and_bytes_have_their_unit() -> None:
    made = drawn([(1, 18 * 2.0**30), (2, 20 * 2.0**30)], unit="bytes", from_zero=True)
    assert (made.y_ticks[0].text, made.y_ticks[-1].text) == ("0 GiB", "20 GiB")
    assert made.lines[0].newest == "20 GiB"


def test_a_bar_for_each_bin() -> None:
    made = histogram([LengthBin(first=10, last=19, examples=3), LengthBin(first=20, last=29, examples=6)])
    assert made is not None
    low, high = made.bars
    assert (low.x, low.width, high.x) == (0, SIDE / 2, SIDE / 2)
    assert high.height == pytest.approx(2 * low.height, abs=0.2)
    assert low.text == "10 to 19 tokens\n3 examples"
    assert histogram([]) is None


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (9.5, "9.5 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (18_600, "5 h 10 min"),
        (183_600, "2 d 3 h"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert text.duration(seconds) == said
