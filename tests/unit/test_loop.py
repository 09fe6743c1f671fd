"""The loop: what a step leaves out, counts, follows and logs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from opd.config import build, part
from opd.errors import EngineError
from opd.evaluation.evaluator import Benchmark, Measurement, measure
from opd.privileged import Group, Problem
from opd.recipe import Recipe
from opd.reward import Reward
from opd.rollout.hf import HF
from opd.rollout.sampler import Sampler
from opd.run import Run, open_run
from opd.selection import ShortestSuccess
from opd.step import annotate, shares
from opd.types import Rollout, Verdict
from rewards.exact import Exact
from tests.runs import run, tree


def rows(output: Path, kind: str) -> list[dict]:
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4}])
def test_every_step_samples_from_the_weights_it_trains(
    tiny_model_dir: Path, tmp_path: Path, lora: object
) -> None:
    model = {"path": str(tiny_model_dir), "lora": lora}
    run(tiny_model_dir, tmp_path / "run", model=model, optimizer={"learning_rate": 1e-2})
    mismatches = [row["metrics"]["mismatch/max"] for row in rows(tmp_path / "run", "update")]
    assert len(mismatches) == 4 and max(mismatches) < 1e-3


def test_several_updates_a_step_leave_the_sampling_policy_behind(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    changes = {"updates_per_step": 2, "optimizer": {"learning_rate": 1e-2}}
    run(tiny_model_dir, tmp_path / "run", **changes)
    mismatches = [row["metrics"]["mismatch/max"] for row in rows(tmp_path / "run", "update")]
    assert min(mismatches) > 1e-2


def test_tokens_are_counted_once(tiny_model_dir: Path, tmp_path: Path) -> None:
    summary = run(tiny_model_dir, tmp_path / "run")
    updates = rows(tmp_path / "run", "update")
    per_step = [row["metrics"]["response_tokens"] * 4 for row in updates]
    assert summary["generated_tokens"] == pytest.approx(sum(per_step))
    assert summary["learner_tokens"] == summary["generated_tokens"]
    assert [row["step"] for row in updates] == [1, 2, 3, 4]
    assert all(math.isfinite(v) for row in updates for v in row["metrics"].values())
    written = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert written["held_out"] == summary["held_out"]


def test_a_finished_run_is_shown_not_repeated(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(tiny_model_dir, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.json*")}
    capsys.readouterr()
    assert run(tiny_model_dir, tmp_path / "run") == json.loads(json.dumps(summary))
    assert "finished" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*.json*")}


def test_logged_rollouts_line_up(tiny_model_dir: Path, tmp_path: Path) -> None:
    run(tiny_model_dir, tmp_path / "run")
    logged = (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()
    assert len(logged) == 8
    for row in map(json.loads, logged):
        count = len(row["tokens"])
        assert len(row["student_logprob"]) == count
        assert {len(v) for v in row["teacher_logprob"].values()} == {count}
        assert row["question"] in row["views"]["solution"]


@part
class Moody(Reward):
    """Cannot judge a problem's first rollout."""

    def __call__(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        others = [Verdict("pass", 1.0)] * (len(rollouts) - 1)
        return [Verdict("no_verdict", 0.0), *others]


@part
class Stamped(Exact):
    """Says what its verdicts depend on."""

    def provenance(self) -> dict[str, str]:
        return {"sandbox": "UNSANDBOXED"}


def test_a_run_says_what_its_verdicts_depend_on(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(tiny_model_dir, tmp_path / "run", reward=f"{__name__}:Stamped", steps=1)
    assert summary["verdicts"] == {"sandbox": "UNSANDBOXED"}
    assert "verdicts: sandbox UNSANDBOXED" in capsys.readouterr().out


@pytest.fixture
def opened(tiny_model_dir: Path, tmp_path: Path) -> Run:
    recipe = build(Recipe, tree(tiny_model_dir, tmp_path / "run", reward=f"{__name__}:Moody"))
    return open_run(recipe, Accelerator(cpu=True))


def collected(opened: Run) -> list[Group]:
    problems = opened.stream.batch(0, 2)
    drawn = opened.recipe.source.collect(problems, opened.sampler, opened.recipe.sampling, 0)
    return [
        Group(problem, tuple(rollouts), tuple(opened.judge(rollouts)))
        for problem, rollouts in zip(problems, drawn, strict=True)
    ]


def test_a_rollout_without_a_verdict_is_left_out(opened: Run) -> None:
    groups = collected(opened)
    assert all(len(group.rollouts) == 2 and group.pass_rate == 1.0 for group in groups)
    trajectories = annotate(opened, groups, ("solution",))
    assert [t.rollout for t in trajectories] == [group.rollouts[1] for group in groups]


def test_what_is_not_selected_still_counts_in_its_group(opened: Run) -> None:
    opened.recipe.selection = ShortestSuccess()
    judged = (Verdict("fail", 0.0), Verdict("pass", 1.0))
    groups = [replace(group, verdicts=judged) for group in collected(opened)]
    trajectories = annotate(opened, groups, ("solution",))
    assert [t.rollout for t in trajectories] == [group.rollouts[1] for group in groups]
    assert {t.pass_rate for t in trajectories} == {0.5}
    assert [t.advantage for t in trajectories] == [opened.recipe.credit(g)[1] for g in groups]


def test_a_step_on_which_nothing_is_selected_changes_nothing(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    summary = run(tiny_model_dir, tmp_path / "run", selection="ShortestSuccess", steps=2)
    assert summary["learner_tokens"] == 0 and summary["generated_tokens"] > 0
    updates = rows(tmp_path / "run", "update")
    assert [row["metrics"]["grad_norm"] for row in updates] == [0.0, 0.0]
    before, after = (
        load_file(d / "model.safetensors") for d in (tiny_model_dir, tmp_path / "run/model")
    )
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_teacher_prompt_without_room_is_absent_not_cut(opened: Run) -> None:
    groups = collected(opened)
    whole = annotate(opened, groups, ("solution",))
    room = max(len(t.views["solution"]) + len(t.rollout.token_ids) for t in whole)
    exact = annotate(replace(opened, context_length=room), groups, ("solution",))
    assert [t.views for t in exact] == [t.views for t in whole]
    tight = annotate(replace(opened, context_length=room - 1), groups, ("solution",))
    assert sum("solution" not in t.views for t in tight) == 1


@pytest.mark.parametrize("thinking", [None, True])
def test_an_evaluation_may_think_where_training_does_not(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thinking: bool | None
) -> None:
    modes: list[bool | None] = []

    def tapped(benchmark: Benchmark, sampler: Sampler, *args: Any, **kwargs: Any) -> Measurement:
        modes.append(sampler.chat.thinking)
        return measure(benchmark, sampler, *args, **kwargs)

    monkeypatch.setattr("opd.loop.measure", tapped)
    run(
        tiny_model_dir,
        tmp_path / "run",
        model={"path": str(tiny_model_dir), "thinking": False},
        evaluation={"samples": 1, "thinking": thinking},
        steps=1,
    )
    assert modes == [bool(thinking)] * 2


def test_an_engine_that_keeps_old_weights_is_stopped(opened: Run) -> None:
    opened.verify_sync()
    opened.sampler.engine.load = lambda weights, step: None  # a sync that does nothing
    for parameter in opened.learner.parameters:
        parameter.data.mul_(1.5)
    with pytest.raises(EngineError, match=r"its log-probs differ by"):
        opened.verify_sync()


def test_weights_that_go_stale_later_are_noticed(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first sync sends what the engine has; only training shows that a sync does nothing."""
    monkeypatch.setattr(HF, "load", lambda self, weights, step: None)
    with pytest.raises(EngineError, match=r"engine, step [1-4]: .* on average"):
        run(tiny_model_dir, tmp_path / "run", optimizer={"learning_rate": 3e-2})


def test_shares_are_even_and_whole() -> None:
    assert [len(share) for share in shares(list(range(10)), 4)] == [2, 3, 2, 3]
    assert [i for share in shares(list(range(7)), 3) for i in share] == list(range(7))
