"""Line charts as geometry: data in, SVG path strings and labelled ticks out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420.0, 210.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 14.0, 12.0, 26.0
SMOOTHED_FROM = 40
"""Points from which a noisy line is drawn smoothed, with the raw values faint behind it."""


@dataclass(frozen=True)
class Point:
    """One value, with a 95 % interval where there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """One line."""

    name: str
    points: tuple[Point, ...]
    dashed: bool = False
    colour: int | None = None
    """Index into the page's palette; None takes the line's place in its chart."""


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in SVG units."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """A drawn series."""

    name: str
    colour: int
    dashed: bool
    path: str
    raw: str
    """The unsmoothed path; empty when `path` is unsmoothed itself."""
    band: str
    """The outline of the interval; empty when there is none."""
    dots: tuple[tuple[float, float], ...]
    """Places to mark, when the points are few."""
    readings: tuple[tuple[float, str], ...]
    """Each point's place along the x axis in SVG units, and its value as text."""


@dataclass(frozen=True)
class Chart:
    """Everything that a page needs to draw."""

    title: str
    note: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    steps: tuple[tuple[float, str], ...]
    """Every x that holds a point, in SVG units, and its label."""


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def number(value: float) -> str:
    """About four digits, whatever the size."""
    if value == 0 or 0.001 <= abs(value) < 10_000:
        return f"{value:.4g}"
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.1e}".replace("e-0", "e-")


def draw(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    form: Callable[[float], str] = number,
    bounds: tuple[float, float] | None = None,
) -> Chart:
    """A chart of `series`, at least one of which has a point; `bounds` fixes the y axis."""
    xs = sorted({point.x for line in series for point in line.points})
    low, high = bounds or y_range([point for line in series for point in line.points])
    across = scale(xs[0], xs[-1], LEFT, WIDTH - RIGHT)
    up = scale(low, high, HEIGHT - BOTTOM, TOP)
    return Chart(
        title=title,
        note=note,
        lines=tuple(
            trace(line, index if line.colour is None else line.colour, across, up, form)
            for index, line in enumerate(series)
            if line.points
        ),
        x_ticks=tuple(Tick(across(x), number(x)) for x in ticks(xs[0], xs[-1], whole=True)),
        y_ticks=tuple(Tick(up(y), form(y).replace(".0 %", " %")) for y in ticks(low, high)),
        steps=tuple((round(across(x), 1), number(x)) for x in xs),
    )


def trace(
    line: Series,
    colour: int,
    across: Callable[[float], float],
    up: Callable[[float], float],
    form: Callable[[float], str],
) -> Line:
    """`line` in SVG units."""
    raw = [(across(p.x), up(p.y)) for p in line.points]
    means = smoothed(line.points)
    noisy = is_noisy(line.points, means)
    ends = [
        (across(p.x), up(p.low), up(p.high))
        for p in line.points
        if p.low is not None and p.high is not None
    ]
    outline = [(x, top) for x, _, top in ends] + [(x, bottom) for x, bottom, _ in reversed(ends)]
    return Line(
        name=line.name,
        colour=colour % 6,
        dashed=line.dashed,
        path=path([(x, up(y)) for (x, _), y in zip(raw, means, strict=True)] if noisy else raw),
        raw=path(raw) if noisy else "",
        band=path(outline) + "Z" if outline else "",
        dots=() if len(raw) >= SMOOTHED_FROM else tuple((round(x, 1), round(y, 1)) for x, y in raw),
        readings=tuple((round(across(p.x), 1), reading(p, form)) for p in line.points),
    )


def reading(point: Point, form: Callable[[float], str]) -> str:
    """A value as text, with its interval."""
    if point.low is None or point.high is None:
        return form(point.y)
    low, high = (form(end).removesuffix(" %") for end in (point.low, point.high))
    return f"{form(point.y)} [{low}, {high}]"


def is_noisy(points: Sequence[Point], means: Sequence[float]) -> bool:
    """Whether there are many points and they leave their smoothed line by 1 % of their range."""
    values = [p.y for p in points]
    span = max(values) - min(values)
    off = sum(abs(y - mean) for y, mean in zip(values, means, strict=True)) / len(values)
    return len(values) >= SMOOTHED_FROM and off > 0.01 * span


def smoothed(points: Sequence[Point]) -> list[float]:
    """Means over a twentieth of the points around each, narrower towards the ends."""
    reach = len(points) // 40
    means = []
    for at in range(len(points)):
        near = min(reach, at, len(points) - 1 - at)
        window = points[at - near : at + near + 1]
        means.append(sum(p.y for p in window) / len(window))
    return means


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The affine map that takes [low, high] to [start, end]; a single value to the middle."""
    if high == low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def path(places: Sequence[tuple[float, float]]) -> str:
    """SVG path data through `places`."""
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places)


def y_range(points: Sequence[Point]) -> tuple[float, float]:
    """Ends that hold every value, and zero when that costs less than half of the height."""
    values = [p.y for p in points]
    values += [end for p in points for end in (p.low, p.high) if end is not None]
    low, high = min(values), max(values)
    if low == high == 0:
        return 0.0, 1.0
    if low > 0 and low < high / 2:
        low = 0.0
    if high < 0 and high > low / 2:
        high = 0.0
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (low if low == 0 else low - margin), (high if high == 0 else high + margin)


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Three to six round numbers within [low, high]."""
    if high == low:
        return [low]
    rough = (high - low) / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.99)
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]
