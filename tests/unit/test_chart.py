"""Charts: round ticks inside the axis, intervals around their line, smoothing only of noise."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd.chart import Point, Series, draw, number, path, percent, smoothed, ticks, y_range


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]),
        (0.0, 100.0, [0, 25, 50, 75, 100]),
        (-0.43, 0.02, [-0.4, -0.2, 0]),
        (3e-6, 11e-6, [4e-6, 6e-6, 8e-6, 1e-5]),
        (5.0, 5.0, [5]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 2 <= len(found) <= 6
    assert low - 1e-6 * span <= found[0] and found[-1] <= low + span * (1 + 1e-6)


def test_step_ticks_are_whole() -> None:
    assert ticks(0, 3, whole=True) == [0, 1, 2, 3]


def test_numbers_are_short() -> None:
    shown = [number(x) for x in (0, 0.25, 3e-4, 1.1e-5, 12345.6, 164_301)]
    assert shown == ["0", "0.25", "3.0e-4", "1.1e-5", "12,346", "164,301"]


def test_zero_is_on_the_axis_when_it_is_near() -> None:
    def of(*values: float) -> list[Point]:
        return [Point(0, value) for value in values]

    assert y_range(of(0.01, 0.3))[0] == 0.0
    assert y_range(of(-0.3, -0.01))[1] == 0.0
    low, high = y_range(of(30, 34))
    assert 29 < low < 30 and 34 < high < 35
    assert y_range([Point(0, 0.5, 0.1, 0.9)]) == (0.0, pytest.approx(0.954))
    assert y_range(of(0.0)) == (0.0, 1.0)


def test_a_line_lies_in_its_band() -> None:
    points = tuple(Point(x, y, y - 0.1, y + 0.1) for x, y in ((0, 0.2), (10, 0.8)))
    (line,) = draw("t", [Series("a", points)], form=percent, bounds=(0.0, 1.0)).lines
    assert line.path == "M50.0,149.6L406.0,46.4"
    assert line.band == "M50.0,132.4L406.0,29.2L406.0,63.6L50.0,166.8Z"
    assert line.readings == ((50.0, "20.0 % [10.0, 30.0]"), (406.0, "80.0 % [70.0, 90.0]"))
    assert line.dots == ((50.0, 149.6), (406.0, 46.4)) and not line.raw


def test_only_noise_is_smoothed() -> None:
    def drawn(values: list[float]) -> tuple[str, str]:
        series = Series("a", tuple(Point(float(x), y) for x, y in enumerate(values)))
        (line,) = draw("t", [series]).lines
        return line.path, line.raw

    smooth, raw = drawn([float(x % 2) for x in range(100)])
    assert raw and smooth != raw and len(re.findall("L", smooth)) == 99
    assert drawn([float(x) for x in range(100)])[1] == ""
    assert drawn([float(x % 2) for x in range(39)])[1] == ""


def test_means_keep_the_ends() -> None:
    points = [Point(float(x), float(y)) for x, y in enumerate([1, 0] * 40 + [7])]
    means = smoothed(points)
    assert (means[0], means[-1]) == (1.0, 7.0)
    assert means[1] == pytest.approx(2 / 3) and means[40] == pytest.approx(3 / 5)


def test_paths_are_svg() -> None:
    assert path([(0, 1), (2.25, 3)]) == "M0.0,1.0L2.2,3.0"
