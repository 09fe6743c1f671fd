"""Limits that warn, stop a run, or take it back to where all was well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from opd.cli import main
from opd.config import build, load_recipe
from opd.errors import CollapseError, RecipeError
from opd.guard import Guard, Limit
from opd.learner.checkpoint import find_fault
from opd.loop import train
from opd.recipe import Recipe
from opd.run import open_run
from opd.tree import write_yaml
from opd.watch import heed
from tests.runs import run, tree


def limit(**keys: object) -> Guard:
    return build(Guard, {"limits": {"mine": {"metric": "entropy", **keys}}})


def breached(guard: Guard, *values: float) -> list[bool]:
    return [bool(guard.read({"entropy": value, "loss": 9.0})) for value in values]


@pytest.mark.parametrize(
    ("keys", "values", "expected"),
    [
        ({"most": 2}, (1.0, 2.0, 2.1), [False, False, True]),
        ({"least": 1}, (1.0, 0.9, 1.0), [False, True, False]),
        ({"least": -0.5, "against": "difference"}, (3.0, 2.5, 2.4), [False, False, True]),
        ({"most": 2, "against": "ratio"}, (0.5, 1.0, 1.01), [False, False, True]),
        ({"least": 0.7, "most": 2, "against": "ratio"}, (0.0, 0.0, 0.1), [False, False, True]),
        ({"most": 1, "patience": 2}, (2.0, 1.0, 2.0, 2.0), [False, False, False, True]),
        ({"most": 1}, (float("nan"),), [True]),
        (
            {"least": -0.5, "against": "difference", "reading": "best"},
            (1.0, 3.0, 2.5, 2.4, 3.1),
            [False, False, False, True, False],
        ),
        (
            {"most": 2, "against": "ratio", "reading": "best"},
            (3.0, 1.0, 2.0, 2.1, 0.9, 1.9),
            [False, False, False, True, False, True],
        ),
    ],
)
def test_limits_by_hand(keys: dict, values: tuple[float, ...], expected: list[bool]) -> None:
    assert breached(limit(**keys), *values) == expected


def test_a_breach_says_what_is_outside_and_of_what() -> None:
    guard = limit(most=2, against="ratio", patience=2)
    breached(guard, 0.5, 2.0)
    (breach,) = guard.read({"entropy": 1.5})
    assert breach.sentence == (
        "guard.limits.mine: entropy is 1.5, 3 times 0.5 at first, outside its limit of at most 2 "
        "2 times in a row"
    )


def test_what_a_guard_has_read_outlasts_a_checkpoint() -> None:
    guard, again = limit(most=2, against="ratio", patience=2), limit(most=2, patience=2)
    breached(guard, 0.5, 2.0)
    again.load_state_dict(guard.state_dict())
    assert not again.is_calm and again.unread() == [] and breached(again, 3.0) == [True]


def test_a_limit_without_bounds_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"mine: a limit needs least, most or both"):
        limit()
    with pytest.raises(RecipeError, match=r"mine: the best reading is the highest or the lowest"):
        limit(least=0, most=1, against="ratio", reading="best")
    with pytest.raises(RecipeError, match=r"mine: a limit against nothing reads no best"):
        limit(least=0, reading="best")
    with pytest.raises(RecipeError, match=r"evaluation.every=0 measures no state"):
        changes = ["guard.limits.mine={metric: entropy, most: 1, then: roll_back}"]
        build(Recipe, load_recipe("opsd", [*changes, "evaluation.every=0"]))


RATES = (2.5e-4, 5e-4, 7.5e-4, 1e-3)


def stepped(rates: tuple[float, ...]) -> dict[str, object]:
    schedule = {"name": "Switch", "values": list(rates), "at_steps": [1, 2, 3]}
    return {"optimizer": {"learning_rate": schedule}, "evaluation": {"samples": 2, "every": 1}}


def guarded(**keys: object) -> dict[str, object]:
    limits = {"rate": {"metric": "learning_rate", "most": 6e-4, **keys}}
    return {"guard": {"limits": limits}, **stepped(RATES)}


def rows(output: Path, name: str = "metrics") -> list[dict]:
    return [json.loads(line) for line in (output / f"{name}.jsonl").open()]


def test_going_back_is_bit_for_bit_and_loses_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The third step breaks the limit: what follows is a run that had halved its rate there."""
    torch.set_num_threads(1)
    again = guarded(then="roll_back") | {"log_rollouts_every": 1}
    summary = run(tiny_model_dir, tmp_path / "guarded", **again)
    halved = (*RATES[:2], RATES[2] * 0.5, RATES[3] * 0.5)
    plain = run(tiny_model_dir, tmp_path / "plain", **stepped(halved))
    found, expected = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("guarded", "plain")
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    kinds = [(row["kind"], row["step"]) for row in rows(tmp_path / "guarded")]
    assert [step for kind, step in kinds if kind == "update"] == [1, 2, 3, 4]
    assert [step for kind, step in kinds if kind == "warning"] == [2]
    lost = rows(tmp_path / "guarded", "metrics-before-rollback-1")
    assert [row["step"] for row in lost if row["kind"] == "update"] == [1, 2, 3]
    assert summary["learner_tokens"] > plain["learner_tokens"]
    assert summary["held_out"] == plain["held_out"]


def test_a_run_that_was_killed_after_going_back_goes_on(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = guarded(then="roll_back") | {"checkpoint": {"every": 1, "keep": 10}}
    whole = run(tiny_model_dir, tmp_path / "whole", **changes)
    monkeypatch.setattr("opd.loop.close", lambda run: {})
    run(tiny_model_dir, tmp_path / "killed", **changes)
    monkeypatch.undo()
    resumed = run(tiny_model_dir, tmp_path / "killed", **changes)
    assert resumed["held_out"] == whole["held_out"]
    assert resumed["learner_tokens"] == whole["learner_tokens"]


def test_a_run_that_keeps_going_wrong_stops(tiny_model_dir: Path, tmp_path: Path) -> None:
    changes = guarded(then="roll_back", most=1e-4)
    guard = {**cast("dict", changes["guard"]), "learning_rate_factor": 0.9}
    with pytest.raises(CollapseError, match=r"rate: learning_rate is 0\.0002?.* keeps step 0"):
        run(tiny_model_dir, tmp_path / "run", **{**changes, "guard": guard})
    warned = [row["text"] for row in rows(tmp_path / "run") if row["kind"] == "warning"]
    assert "back from step 1, with the learning rate times 0.81" in warned
    assert len(list((tmp_path / "run").glob("metrics-before-rollback-*.jsonl"))) == 2


def test_stopping_is_an_exit_code_and_keeps_everything(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(write_yaml(tree(tiny_model_dir, output, **guarded(then="stop"))))
    assert main(["train", str(recipe)]) == CollapseError.exit_code == 7
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("opd: guard.limits.rate: learning_rate is 0.00075, outside its limit")
    assert "at step 3" in said and "keeps step 2" in said
    assert find_fault(output / "good" / "step-000002") is None
    assert find_fault(output / "checkpoints" / "step-000003") is None
    assert [row["step"] for row in rows(output) if row["kind"] == "update"] == [1, 2, 3]


def test_warnings_only_warn(tiny_model_dir: Path, tmp_path: Path) -> None:
    run(tiny_model_dir, tmp_path / "run", **guarded())
    warned = [row["step"] for row in rows(tmp_path / "run") if row["kind"] == "warning"]
    assert warned == [3, 4] and not (tmp_path / "run" / "good").exists()


def test_a_metric_that_is_never_read_is_one_sentence(tiny_model_dir: Path, tmp_path: Path) -> None:
    limits = {"mine": {"metric": "entropie", "most": 1, "then": "warn"}}
    run(tiny_model_dir, tmp_path / "warned", guard={"limits": limits}, steps=2)
    (warned,) = [row for row in rows(tmp_path / "warned") if row["kind"] == "warning"]
    assert "nothing is called 'entropie'" in warned["text"]
    guard = {"limits": {"mine": {**limits["mine"], "then": "stop"}}}
    with pytest.raises(RecipeError, match=r"mine.metric: nothing is called 'entropie'; choose"):
        run(tiny_model_dir, tmp_path / "run", guard=guard)


@pytest.mark.parametrize("metric", ["teacher_gap/sibling", "teacher_gap_by_quarter/sibling/4"])
def test_a_metric_of_a_view_that_is_not_there_yet_may_come(
    tiny_model_dir: Path, tmp_path: Path, metric: str
) -> None:
    """No response succeeds, so that none has a sibling to show."""
    limits = {"mine": {"metric": metric, "least": -9, "then": "stop"}}
    loss = {"name": "Distill", "target": "sibling", "divergence": "JSD"}
    changes = {
        "teacher": {"views": {"sibling": "Sibling"}},
        "terms": {"distil": {"loss": loss}, "imitate": {"loss": "Likelihood"}},
    }
    output = tmp_path / "run"
    run(tiny_model_dir, output, guard={"limits": limits}, steps=2, benchmarks={}, **changes)
    (warned,) = [row for row in rows(output) if row["kind"] == "warning"]
    assert f"nothing is called {metric!r}" in warned["text"]


def test_every_rank_heeds_the_numbers_of_the_first(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = "learner_tokens_per_second"
    limits = {"mine": {"metric": speed, "least": 3, "then": "stop"}}
    recipe = build(Recipe, tree(tiny_model_dir, tmp_path / "run", guard={"limits": limits}))
    opened = open_run(recipe, Accelerator(cpu=True))
    (tmp_path / "run").mkdir()
    monkeypatch.setattr("opd.watch.broadcast_object_list", lambda _: [{speed: 4.0}])
    assert heed(opened, {speed: 2.0}, measured=False)
    monkeypatch.setattr("opd.watch.broadcast_object_list", lambda _: [{speed: 2.0}])
    with pytest.raises(CollapseError, match=speed):
        heed(opened, {speed: 4.0}, measured=False)


def test_limits_are_parts_of_a_recipe() -> None:
    assert isinstance(limit(most=1).limits["mine"], Limit) and not limit(most=1).keeps_good


def test_a_live_teacher_that_learns_too_fast_collapses_and_is_caught(tmp_path: Path) -> None:
    fast = ["teacher.weights=Live", "optimizer.learning_rate=5e-3", "problems_per_step=8"]
    small = ["benchmarks.held_out.limit=4", "benchmarks.untouched.limit=4", "evaluation.samples=1"]
    caught = "guard.limits.truncated={metric: truncated, most: 0.5, then: stop, against: nothing}"
    changes = [*fast, *small, caught, "steps=8", "evaluation.every=0", f"output={tmp_path / 'run'}"]
    with pytest.raises(CollapseError, match=r"truncated is 1, .* keeps step 0"):
        train(build(Recipe, load_recipe("opsd", changes)))
    updates = [row["metrics"] for row in rows(tmp_path / "run") if row["kind"] == "update"]
    assert updates[0]["truncated"] == 0.0 and len(updates) < 8
