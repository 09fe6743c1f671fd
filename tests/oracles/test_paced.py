"""Problems weighted by what the student can do: arXiv 2603.11178."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from opd.config import build, load_recipe
from opd.errors import DataError
from opd.objective.divergence import ForwardKL
from opd.objective.loss import Distill
from opd.objective.term import Term
from opd.objective.weight import PassRate
from opd.pass_rate import Measured, smoothed
from opd.recipe import Recipe
from tests.batches import batch_of, scores_of
from tests.runs import run

RATES = (0.0, 0.25, 0.5, 0.75, 1.0)
LOSSES = (0.4, 0.8, 1.2, 0.6, 0.1)


def value(term: Term, losses: Sequence[float], rates: Sequence[float]) -> float:
    """The term over one token a problem."""
    batch = batch_of([1] * len(rates), pass_rate=rates)
    for weight in term.weights:
        weight.fit(rates)
    weight = term.weight(batch, {"solution": scores_of(len(rates))})
    mass = term.mass(weight, batch, 8)
    return (term.numerator(torch.tensor(losses), weight, batch, 8) / mass).item()


def term(denominator: str, **weight: object) -> Term:
    return build(
        Term,
        {
            "loss": {"name": "Distill", "target": "solution", "divergence": "ForwardKL"},
            "weights": [{"name": "PassRate", **weight}],
            "denominator": denominator,
        },
    )


@pytest.mark.parametrize(
    ("denominator", "divide_by", "expected"),
    [
        ("all", "nothing", 0.1125),
        ("weights", "nothing", 0.9),
        ("all", "mean", 0.1125 / 0.125),
        ("all", "peak", 0.1125 * 4),
    ],
)
def test_normalisations(denominator: str, divide_by: str, expected: float) -> None:
    assert value(term(denominator, divide_by=divide_by), LOSSES, RATES) == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize(
    ("divide_by", "a", "weights"),
    [
        ("nothing", 1, (0, 0.1875, 0.25, 0.1875, 0)),
        ("nothing", 2, (0, 0.046875, 0.125, 0.140625, 0)),
        ("mean", 1, (0, 1.5, 2, 1.5, 0)),
        ("peak", 1, (0, 0.75, 1, 0.75, 0)),
        ("peak", 0, (1, 0.75, 0.5, 0.25, 0)),
    ],
)
def test_kernel(divide_by: str, a: float, weights: Sequence[float]) -> None:
    weight = build(PassRate, {"a": a, "divide_by": divide_by})
    weight.fit(RATES)
    found = weight(batch_of([1] * 5, pass_rate=RATES), {})
    assert found.tolist() == pytest.approx(weights, abs=1e-6)


def test_the_peak_stands_where_it_should() -> None:
    assert PassRate(a=2, b=1).peak == pytest.approx(0.148148, abs=1e-6)
    assert PassRate(a=0, b=0).peak == 1.0


def test_smoothing_keeps_what_rarely_succeeds() -> None:
    rate = smoothed(0, 8, 0.5)
    assert rate == pytest.approx(0.055556, abs=1e-6)
    weight = PassRate()(batch_of([1], pass_rate=[rate]), {})
    assert weight.item() == pytest.approx(0.052469, abs=1e-6)
    assert smoothed(4, 8, 0.0) == 0.5 and smoothed(0, 0, 0.0) == 0.0


def test_few_rollouts_shrink_all_weights_alike() -> None:
    """E[c/K (1 - c/K)] = p (1 - p) (1 - 1/K)."""
    chances = [torch.tensor(0.5) ** 8 * torch.exp(binomial(8, c)) for c in range(9)]
    mean = sum(
        chance * PassRate()(batch_of([1], pass_rate=[smoothed(c, 8, 0.0)]), {})
        for c, chance in enumerate(chances)
    )
    assert float(mean) == pytest.approx(0.21875, abs=1e-6)


def binomial(count: int, chosen: int) -> torch.Tensor:
    """log of the number of ways."""
    total, inside, outside = (torch.tensor(n + 1.0) for n in (count, chosen, count - chosen))
    return total.lgamma() - inside.lgamma() - outside.lgamma()


def test_all_solved_or_unsolved_is_no_loss_and_no_nan() -> None:
    for denominator, divide_by in (("weights", "nothing"), ("all", "mean"), ("all", "peak")):
        ours = term(denominator, divide_by=divide_by)
        batch = batch_of([1, 1], pass_rate=[0.0, 1.0])
        ours.weights[0].fit([0.0, 1.0])
        weight = ours.weight(batch, {"solution": scores_of(2)})
        assert weight.tolist() == [0, 0]
        assert ours.mass(weight, batch, 8).item() == (0 if denominator == "weights" else 2)


def test_no_exponents_are_no_weights() -> None:
    plain = Term(loss=Distill(target="solution", divergence=ForwardKL()))
    for denominator, divide_by in (("weights", "nothing"), ("all", "mean"), ("all", "peak")):
        ours = term(denominator, a=0, b=0, divide_by=divide_by)
        assert value(ours, LOSSES, RATES) == pytest.approx(value(plain, LOSSES, RATES))


SHORT = {"steps": 2, "benchmarks": {}, "checkpoint": {"every": 0}}


def terms_of(recipe: str, *overrides: str) -> object:
    """The terms of a recipe whose stages change before the second step."""
    at = [f"terms.{name}.coefficient.at_steps=[1]" for name in ("cover", "sharpen")]
    return load_recipe(recipe, [*at, *overrides])["terms"]


def final_weights(output: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(output / "model" / "model.safetensors")


def test_without_exponents_a_run_is_the_uniform_one(tiny_model_dir: Path, tmp_path: Path) -> None:
    flat = [
        f"terms.{name}.weights=[{{name: PassRate, a: 0, b: 0, divide_by: mean}}]"
        for name in ("cover", "sharpen")
    ]
    measured = {"name": "Measured", "rollouts": 2, "at_steps": [1]}
    ours = {**SHORT, "terms": terms_of("paced", *flat), "pass_rate": measured}
    run(tiny_model_dir, tmp_path / "ours", **ours)
    run(tiny_model_dir, tmp_path / "plain", **SHORT, terms=terms_of("paced_uniform"))
    found, expected = (final_weights(tmp_path / name) for name in ("ours", "plain"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    rows = [json.loads(line) for line in (tmp_path / "ours" / "metrics.jsonl").open()]
    metrics = [row["metrics"] for row in rows if row["kind"] == "update"]
    assert [("loss/cover" in m, "loss/sharpen" in m) for m in metrics] == [
        (True, False),
        (False, True),
    ]


def test_limits_that_admit_all_problems_make_a_run_the_uniform_one(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Within the recipe's own none is left: a random model solves nothing."""

    def changes(*limits: str) -> dict[str, object]:
        few = ("pass_rate.rollouts=2", "pass_rate.at_steps=[1]")
        recipe = load_recipe("paced_filtered", [*few, *limits])
        return {**SHORT, "terms": terms_of("paced_filtered"), "pass_rate": recipe["pass_rate"]}

    run(tiny_model_dir, tmp_path / "ours", **changes("pass_rate.between=[-1, 2]"))
    run(tiny_model_dir, tmp_path / "plain", **SHORT, terms=terms_of("paced_uniform"))
    found, expected = (final_weights(tmp_path / name) for name in ("ours", "plain"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(DataError, match="none of 5 problems"):
        run(tiny_model_dir, tmp_path / "none", **changes())


def test_paced_measures_before_each_stage() -> None:
    recipe = build(Recipe, load_recipe("paced"))
    assert isinstance(recipe.pass_rate, Measured)
    assert recipe.pass_rate.at_steps == (75,) and recipe.pass_rate.refresh_every is None
    switches = [term.coefficient.at(75, 150) for term in recipe.terms.values()]
    assert switches == [0, 1]


def test_measured_once_it_is_measured_at_the_start() -> None:
    recipe = build(Recipe, load_recipe("paced_once"))
    assert isinstance(recipe.pass_rate, Measured)
    assert recipe.pass_rate.at_steps == () and recipe.pass_rate.refresh_every is None
    again = load_recipe("paced_once", ["pass_rate.at_steps=[75]", "output=x"])
    assert again == load_recipe("paced", ["output=x"])
