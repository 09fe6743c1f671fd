"""The baselines: another's trainer on our problems, asked our questions, shown our text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opd.config import build, load_recipe
from opd.errors import RecipeError
from opd.loop import train
from opd.privileged import Group
from opd.recipe import Recipe
from opd.teacher.view import Plain, Solution
from opd.types import Rollout, Verdict

pytest.importorskip("trl", reason="TRL is not installed")

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "baselines"
SMALL = [
    *("steps=2", "evaluation.every=1", "evaluation.samples=1", "problems_per_step=4"),
    *("benchmarks.held_out.limit=4", "benchmarks.untouched=null"),
]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return __import__("measured")


def rows(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["kind"] != "warning"]


def test_imitation_by_trl_is_imitation_by_the_loop(
    measured: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    recipe = build(Recipe, load_recipe("sft", [*SMALL, f"output={theirs}"]))
    open_trainer = __import__("trl_sft").open_trainer
    measured.run_baseline("trl_sft", recipe, open_trainer)
    train(build(Recipe, load_recipe("sft", [*SMALL, f"output={ours}"])))
    assert len(rows(theirs)) == len(rows(ours)) == 5
    for their, our in zip(rows(theirs), rows(ours), strict=True):
        spent = ("kind", "step", "generated_tokens", "learner_tokens", "by_problem")
        assert {key: their.get(key) for key in spent} == {key: our.get(key) for key in spent}
        if their["kind"] == "update":
            expected = pytest.approx(our["metrics"]["loss/imitate"], rel=1e-5)
            assert their["metrics"]["loss/trl"] == expected
            assert their["learner_tokens"] > 0
    summaries = [json.loads((run / "summary.json").read_text()) for run in (theirs, ours)]
    assert summaries[0]["held_out"] == summaries[1]["held_out"]
    capsys.readouterr()
    measured.run_baseline("trl_sft", recipe, open_trainer)
    assert "finished" in capsys.readouterr().out
    with pytest.raises(RecipeError, match="trainer"):
        measured.run_baseline("trl_grpo", recipe, open_trainer)


@pytest.mark.parametrize("name", ["sdft", "sdpo"])
def test_the_same_privileged_text_is_shown(measured: Any, name: str) -> None:
    recipe = build(Recipe, load_recipe(name, ["steps=1"]))
    problem = measured.problems_in_order(recipe)[0]
    rollouts = [Rollout(problem.prompt, (), (), (), 0, "stop", text) for text in ("a;#1", "b;#2")]
    group = Group(problem, tuple(rollouts), (Verdict("fail", 0.0), Verdict("pass", 1.0)))
    (term,) = recipe.terms.values()
    view = recipe.teacher.views[term.loss.views[0]]
    messages = view.messages(group, 0)
    assert messages is not None and len(messages) == 1
    text = problem.privileged.solution if name == "sdft" else "b;#2"
    template = measured.template_of(view, "prompt", "text")
    assert template.format(prompt=problem.prompt.question, text=text) == messages[0].content


def test_a_template_keeps_braces_and_dollars(measured: Any) -> None:
    view = Solution(template="{$question} costs $$5: $solution")
    assert measured.template_of(view, "q", "s").format(q="x", s="y") == "{x} costs $5: y"
    with pytest.raises(RecipeError, match="one privileged text"):
        measured.template_of(Plain(), "q", "s")


def test_what_a_trainer_cannot_do_is_refused(measured: Any) -> None:
    falling = "optimizer.learning_rate={name: Linear, start: 1e-4, end: 0}"
    with pytest.raises(RecipeError, match="constant rate"):
        measured.training(build(Recipe, load_recipe("grpo", ["steps=4", falling])))
