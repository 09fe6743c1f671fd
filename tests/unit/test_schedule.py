"""Numbers that change with training."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from opd.errors import RecipeError
from opd.objective.schedule import (
    Alternate,
    Constant,
    Hysteresis,
    Linear,
    Schedule,
    Switch,
    Trapezoid,
    Warmup,
)
from opd.types import Update


@pytest.mark.parametrize(
    ("schedule", "steps", "values"),
    [
        (Constant(value=0.3), 3, [0.3, 0.3, 0.3]),
        (Linear(start=1.0, end=0.0), 4, [1.0, 0.75, 0.5, 0.25]),
        (Linear(start=0.0, end=1.0, steps=2), 5, [0.0, 0.5, 1.0, 1.0, 1.0]),
        (Warmup(peak=2.0, warmup_steps=2), 4, [1.0, 2.0, 2.0, 2.0]),
        (Warmup(peak=2.0), 2, [2.0, 2.0]),
        (Warmup(peak=2.0, warmup_steps=1, decay="linear"), 5, [2.0, 2.0, 1.5, 1.0, 0.5]),
        (Warmup(peak=1.0, decay="linear", end_fraction=0.5), 4, [1.0, 0.875, 0.75, 0.625]),
        (Warmup(peak=1.0, decay="cosine"), 4, [1.0, 0.853553, 0.5, 0.146447]),
        (Warmup(peak=1.0, warmup_steps=4, decay="cosine"), 2, [0.25, 0.5]),
        (Switch(values=(1.0, 0.0), at_steps=(2,)), 4, [1.0, 1.0, 0.0, 0.0]),
        (Switch(values=(1.0, 2.0, 3.0), at_steps=(1, 2)), 3, [1.0, 2.0, 3.0]),
        (Switch(values=(1.0,), at_steps=()), 1, [1.0]),
    ],
)
def test_values(schedule: Schedule, steps: int, values: list[float]) -> None:
    found = [schedule.at(step, steps) for step in range(steps)]
    assert found == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_warmup_ends_at_its_fraction_and_stays(decay: str) -> None:
    schedule = Warmup(peak=2.0, warmup_steps=3, decay=decay, end_fraction=0.1)  # pyright: ignore[reportArgumentType]
    assert schedule.at(10, 10) == pytest.approx(0.2)
    assert schedule.at(99, 10) == pytest.approx(0.2)


def test_a_number_stands_for_a_constant() -> None:
    assert Schedule.from_number(0.5) == Constant(value=0.5)


@pytest.mark.parametrize(
    ("values", "at_steps", "cause"),
    [((1.0, 2.0), (), "one value more"), ((1.0, 2.0, 3.0), (4, 4), "rising order")],
)
def test_a_switch_that_cannot_be_is_refused(
    values: tuple[float, ...], at_steps: tuple[int, ...], cause: str
) -> None:
    with pytest.raises(ValidationError, match=cause):
        Switch(values=values, at_steps=at_steps)


def test_alternate_goes_round_and_round() -> None:
    schedule = Alternate(values=(0.0, 1.0, 2.0), lengths=(2, 1, 1))
    assert [schedule.at(step, 99) for step in range(6)] == [0.0, 0.0, 1.0, 2.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="as many values as lengths"):
        Alternate(values=(0.0,), lengths=(2, 1))


def test_a_trapezoid_without_sides_is_flat() -> None:
    assert [Trapezoid(peak=2.0).at(step, 10) for step in range(10)] == [2.0] * 10


def seen(schedule: Hysteresis, *values: float) -> list[float]:
    """What the schedule says after each of the values."""
    found = []
    for step, value in enumerate(values):
        schedule.observe(Update(step, 0.0, 0.0, 9, {"entropy": value}), [])
        found.append(schedule.at(step + 1, 100))
    return found


def test_hysteresis_goes_off_below_one_bound_and_on_above_another() -> None:
    gate = Hysteresis(value=0.5, metric="entropy", settle=2)
    assert seen(gate, 0.9, 1.1, 0.94, 0.92, 0.99, 1.0, 0.94) == [0.5, 0.5, 0.5, 0, 0, 0.5, 0.5]


def test_hysteresis_goes_on_where_it_stopped() -> None:
    whole, half = (Hysteresis(value=0.5, metric="entropy", settle=2) for _ in range(2))
    values = [1.0, 1.0, 0.5, 0.95, 0.97, 1.2]
    expected = seen(whole, *values)
    first = seen(half, *values[:4])
    again = Hysteresis(value=0.5, metric="entropy", settle=2)
    again.load_state_dict(half.state_dict())
    assert first + seen(again, *values[4:]) == expected


@pytest.mark.parametrize(
    ("tokens", "metrics"), [(9, {"teacher_present/solution": 0.0}), (0, {"success": 0.0})]
)
def test_hysteresis_rests_while_no_response_has_the_view(
    tokens: int, metrics: dict[str, float]
) -> None:
    gate = Hysteresis(value=0.5, metric="teacher_entropy/solution", settle=1)
    gate.observe(Update(0, 0.0, 0.0, 9, {"teacher_entropy/solution": 1.0}), [])
    before = gate.state_dict()
    gate.observe(Update(1, 0.0, 0.0, tokens, metrics), [])
    assert gate.state_dict() == before and gate.at(2, 10) == 0.5


def test_hysteresis_of_a_metric_that_is_not_there_is_refused() -> None:
    with pytest.raises(RecipeError, match="teacher_entropy/none"):
        seen(Hysteresis(value=1.0, metric="teacher_entropy/none"), 1.0)
    with pytest.raises(ValidationError, match="goes on"):
        Hysteresis(value=1.0, metric="entropy", off=1.2)
