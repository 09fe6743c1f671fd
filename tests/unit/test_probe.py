"""What a probe keeps from training, and what it measures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from opd.config import build, part
from opd.errors import DataError, RecipeError
from opd.learner.batch import build_context
from opd.privileged import Problem
from opd.probe import Probe
from opd.recipe import Recipe
from opd.reward import Reward
from opd.rollout.judged import read_judged, write_judged
from opd.run import Run, open_run
from opd.step import probe
from opd.stored import sample
from opd.types import Rollout, Verdict
from tests.runs import run, tree


@part
class Even(Reward):
    """Passes the second of two responses, and only to problems of an even number of letters."""

    none: bool = False

    def __call__(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        passes = len(problem.prompt.question) % 2 == 0 and not self.none
        return [
            Verdict("pass" if passes and place else "fail", 0.0) for place, _ in enumerate(rollouts)
        ]


WRITTEN = {"problems": 3, "answers": {"name": "Demonstrations", "read": "solution"}}


def opened(folder: Path, output: Path, **changes: object) -> Run:
    return open_run(build(Recipe, tree(folder, output, **changes)), Accelerator(cpu=True))


def test_what_is_kept_is_never_trained_on_and_is_the_same_for_every_seed(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    problems = build(Recipe, tree(tiny_model_dir, tmp_path / "a")).problems.problems()
    kept = {p.prompt.id for p in Probe(problems=3).kept(problems)}
    assert kept == {p.prompt.id for p in Probe(problems=3).kept(problems[::-1])}
    for seed in (0, 1):
        found = opened(tiny_model_dir, tmp_path / f"{seed}", probe=WRITTEN, seed=seed)
        assert {group.problem.prompt.id for group in found.probed} == kept
        assert kept.isdisjoint(p.prompt.id for p in found.stream.problems)
        assert len(found.stream.problems) == len(problems) - 3


def test_a_kept_problem_without_a_stored_answer_is_left_out(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    recipe = build(Recipe, tree(tiny_model_dir, tmp_path / "a"))
    sample(recipe, 1000, tmp_path / "all.jsonl")
    name = Probe(problems=3).kept(recipe.problems.problems())[1].prompt.id
    write_judged(tmp_path / "one.jsonl", read_judged(tmp_path / "all.jsonl")[name])
    answers = {"name": "Stored", "path": str(tmp_path / "one.jsonl")}
    found = opened(tiny_model_dir, tmp_path / "b", probe={"problems": 3, "answers": answers})
    assert [group.problem.prompt.id for group in found.probed] == [name]


def test_the_probes_loss_is_the_mean_over_all_tokens(tiny_model_dir: Path, tmp_path: Path) -> None:
    found = opened(tiny_model_dir, tmp_path / "a", probe=WRITTEN, tokens_per_batch=200)
    measured = probe(found, ("solution",), 1.0)
    rollouts = [group.rollouts[0] for group in found.probed]
    logprobs = [
        found.learner.logprobs(
            build_context([r.prompt_ids], [r.token_ids], packing=False, pad_id=0),
            torch.tensor(r.token_ids),
        )
        for r in rollouts
    ]
    assert measured["probe/nll"] == pytest.approx(-torch.cat(logprobs).mean().item(), rel=1e-5)
    assert measured["probe/teacher_logprob/solution"] != pytest.approx(-measured["probe/nll"])


def test_the_teacher_is_measured_as_exposed(tiny_model_dir: Path, tmp_path: Path) -> None:
    found = opened(tiny_model_dir, tmp_path / "a", probe=WRITTEN)
    whole, part, again = (probe(found, ("solution",), share) for share in (1.0, 0.5, 1.0))
    name = "probe/teacher_logprob/solution"
    assert whole == again and part["probe/nll"] == whole["probe/nll"]
    assert abs(part[name] - whole[name]) > 1e-6


def test_a_step_logs_what_the_probe_found_before_it(tiny_model_dir: Path, tmp_path: Path) -> None:
    before = probe(opened(tiny_model_dir, tmp_path / "a", probe=WRITTEN), ("solution",), 1.0)
    run(tiny_model_dir, tmp_path / "b", probe=WRITTEN)
    lines = (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()
    steps = [row["metrics"] for row in map(json.loads, lines) if row["kind"] == "update"]
    assert steps[0]["probe/nll"] == pytest.approx(before["probe/nll"], rel=1e-5)
    assert steps[-1]["probe/nll"] != steps[0]["probe/nll"]
    assert {step["exposure"] for step in steps} == {1.0}


def test_drawn_answers_are_those_that_succeed(tiny_model_dir: Path, tmp_path: Path) -> None:
    drawn = {"problems": 3, "answers": {"name": "OnPolicy", "rollouts_per_problem": 2}}
    reward = {"name": f"{__name__}:Even"}
    found = opened(tiny_model_dir, tmp_path / "a", probe=drawn, reward=reward)
    kept = Probe(problems=3).kept(found.recipe.problems.problems())
    even = [problem.prompt.id for problem in kept if len(problem.prompt.question) % 2 == 0]
    assert [group.problem.prompt.id for group in found.probed] == even and 0 < len(even) < 3
    with pytest.raises(DataError, match=r"none of 3 problems got an answer that succeeds"):
        opened(tiny_model_dir, tmp_path / "b", probe=drawn, reward={**reward, "none": True})


def test_a_share_that_changes_nothing_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    def teacher(view: str, exposure: object) -> dict[str, object]:
        return {"teacher": {"views": {"solution": view}, "exposure": exposure}}

    def built(**changes: object) -> Recipe:
        return build(Recipe, tree(tiny_model_dir, tmp_path / "a", **changes))

    with pytest.raises(RecipeError, match=r"teacher\.exposure: no view shows a part"):
        built(**teacher("Answer", 0.5))
    with pytest.raises(RecipeError, match=r"teacher\.exposure: BetaPolicy learns from .* a probe"):
        built(**teacher("Solution", "BetaPolicy"))
    assert built(**teacher("Answer", 1.0)) and built(**teacher("Solution", 0.5))
    assert built(**teacher("Solution", "BetaPolicy"), probe={})
