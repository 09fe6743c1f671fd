"""What a teacher writes of a reference: with its own weights, for its own eyes only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from opd.config import build
from opd.privileged import Group
from opd.recipe import Recipe
from opd.rollout.engine import Sampling
from opd.rollout.sampler import Sampler
from opd.run import Run, open_run
from opd.step import annotate, collect, prepare
from opd.teacher.analysis import Analysis
from opd.teacher.weights import EMA, Frozen, Live, TeacherWeights
from opd.types import Prompt
from tests.runs import tree
from tests.students import perturb_adapter

VIEW = "notes"


def opened(folder: Path, output: Path, weights: object = "Frozen", lora: object = None) -> Run:
    """A run whose only view is an analysis."""
    reads = {"name": "Solution", "template": "$question $solution"}
    view = {
        "name": "Analysis",
        "reads": reads,
        "template": "$question|$analysis",
        "max_response_tokens": 5,
    }
    changes = {
        "model": {"path": str(folder), "lora": lora},
        "teacher": {"weights": weights, "views": {VIEW: view}},
        "terms": {"distil": {"loss": {"name": "Distill", "target": VIEW, "divergence": "JSD"}}},
    }
    return open_run(build(Recipe, tree(folder, output, **changes)), Accelerator(cpu=True))


def drawn(run: Run) -> list[Group]:
    return collect(run, run.stream.batch(0, 2), 0)


def notes(run: Run) -> dict[str, str]:
    view = run.recipe.teacher.views[VIEW]
    assert isinstance(view, Analysis)
    return view.notes


def test_the_analysis_is_written_behind_the_reference_and_shown_to_the_teacher_alone(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    run = opened(tiny_model_dir, tmp_path / "run")
    groups = drawn(run)
    before = run.progress.generated_tokens
    assert all(not t.views for t in annotate(run, groups, (VIEW,)))
    prepare(run, groups, (VIEW,), 3)
    asked = []
    for group in groups:
        question, solution = group.problem.prompt.question, group.problem.privileged.solution
        messages = run.recipe.teacher.views["notes"].reads.messages(group, 0)  # pyright: ignore
        assert messages[-1].content == f"{question} {solution}"
        asked.append(Prompt(group.problem.prompt.id, messages))
    with run.awake() as sampler:
        expected = sampler.draw(asked, Sampling(max_response_tokens=5), 1, f"{VIEW}//3")
    texts = {rollouts[0].prompt.id: rollouts[0].text for rollouts in expected}
    assert notes(run) == texts
    # Whatever was written, the student draws what it would have drawn.
    assert drawn(run) == groups
    spent = sum(len(rollouts[0].token_ids) for rollouts in expected)
    assert run.progress.generated_tokens - before == spent > 0
    for trajectory in annotate(run, groups, (VIEW,)):
        prompt = trajectory.rollout.prompt
        assert trajectory.rollout.prompt_ids == run.chat.prompt_ids(prompt.messages)
        if VIEW in trajectory.views:
            shown = run.chat.decoded(trajectory.views[VIEW])
            assert f"{prompt.question}|{texts[prompt.id].strip()}" in shown


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4}])
@pytest.mark.parametrize("weights", [Live(), Frozen(), EMA(decay=0.5)])
def test_the_weights_that_score_are_those_that_write(
    tiny_model_dir: Path, tmp_path: Path, weights: TeacherWeights, lora: object
) -> None:
    run = opened(tiny_model_dir, tmp_path / "run", lora=lora)
    learner = run.learner
    if lora is not None:
        perturb_adapter(learner)
    weights.setup(learner)
    for parameter in learner.parameters:
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    weights.follow(learner)
    prompt = run.stream.batch(0, 1)[0].prompt
    with run.awake(weights.weights(learner)) as sampler:
        rollout = sampler.draw([prompt], Sampling(max_response_tokens=8), 1, "x")[0][0]
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.token_ids]])
    start = len(rollout.prompt_ids)
    with torch.no_grad(), weights.scoring(learner) as model:
        rows = model(input_ids=ids).logits[0].log_softmax(-1)
        own = learner.model(input_ids=ids).logits[0].log_softmax(-1)
    taken = rows[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0]
    assert torch.allclose(taken, torch.tensor(rollout.logprobs), atol=1e-4)
    if isinstance(weights, Live):
        assert torch.equal(rows, own)


def test_frozen_weights_write_with_their_own_weights_whatever_the_student_is_now(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    run = opened(tiny_model_dir, tmp_path / "run")
    groups = drawn(run)
    prepare(run, groups, (VIEW,), 0)
    written = dict(notes(run))
    for parameter in run.learner.parameters:
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    prepare(run, groups, (VIEW,), 0)
    assert notes(run) == written
    assert collect(run, run.stream.batch(0, 2), 0) != groups


def test_an_analysis_that_spells_a_control_token_is_not_shown(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    run = opened(tiny_model_dir, tmp_path / "run")
    groups = drawn(run)
    prepare(run, groups, (VIEW,), 0)
    for name in notes(run):
        notes(run)[name] = "<|im_end|> so"
    assert all(not t.views for t in annotate(run, groups, (VIEW,)))
    for name in notes(run):
        notes(run)[name] = "so"
    assert all(set(t.views) == {VIEW} for t in annotate(run, groups, (VIEW,)))


def test_it_is_written_in_the_mode_of_its_view(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened(tiny_model_dir, tmp_path / "run")
    run.recipe.teacher.thinking_by_view[VIEW] = False
    modes: list[bool | None] = []

    def watched(self: Analysis, groups: object, sampler: Sampler, *rest: object) -> int:
        modes.append(sampler.chat.thinking)
        return 0

    monkeypatch.setattr(Analysis, "prepare", watched)
    prepare(run, drawn(run), (VIEW,), 0)
    assert run.chat.thinking is None and modes == [False]
