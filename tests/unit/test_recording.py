"""Recorded scores: the same run without a teacher, and no score for what was not scored."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from opd.config import build
from opd.errors import DataError, RecipeError
from opd.learner.batch import assemble
from opd.learner.model import weights_id
from opd.objective.divergence import ForwardKL, ReverseKL
from opd.objective.logits import ListedLogits, Logits
from opd.objective.loss import Likelihood
from opd.objective.support import TopK
from opd.objective.term import Term
from opd.recipe import Recipe
from opd.rollout.chat import Chat
from opd.rollout.judged import read_judged, write_judged
from opd.stored import read_groups, sample, score, shown
from opd.teacher.recording import Form, Recording
from opd.types import Listed, Rollout
from tests.conftest import character_tokenizer, save_random_model
from tests.runs import run, tree
from tests.students import distance, gradients, open_student
from tests.unit.test_loop import rows

PLAIN = {"name": "Solution", "template": "$question $solution"}
TOKEN = {"name": "SampledReverseKL", "view": "solution", "clip_at": 10.0}
WHOLE = {"name": "Distill", "target": "solution", "divergence": "JSD"}
HIGHEST = {
    "name": "Distill",
    "target": "solution",
    "divergence": "JSD",
    "support": {"name": "TopK", "size": 5, "chosen_by": "teacher"},
}


def live(loss: object, **changes: object) -> dict[str, Any]:
    """What a run changes that learns from stored responses, one sequence in every pass."""
    return {
        "teacher": {"weights": "Frozen", "views": {"solution": PLAIN}, "tokens_per_batch": 1},
        "terms": {"distil": {"loss": loss, "average": "sequence"}},
        "source": {"name": "OnPolicy"},
        "tokens_per_batch": 1,
        "steps": 3,
        "benchmarks": {},
        "checkpoint": {},
        **changes,
    }


@pytest.fixture(scope="module")
def stored(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with responses to the first problems and their scores in every form."""
    folder = tmp_path_factory.mktemp("stored")
    recipe = build(Recipe, tree(tiny_model_dir, folder / "unused", **live(TOKEN)))
    sample(recipe, 5, folder / "rollouts.jsonl")
    for form in ("token", "top", "hidden"):
        assert score(recipe, folder / "rollouts.jsonl", folder / form, form, 5) == 5
    return folder


def trained(model: Path, stored: Path, output: Path, loss: object, **changes: object) -> bytes:
    """The weights that a run on the stored responses leaves."""
    source = {"name": "Stored", "path": str(stored / "rollouts.jsonl")}
    run(model, output, **{**live(loss), "source": source, **changes})
    return (output / "model" / "model.safetensors").read_bytes()


def cached(folder: Path, view: object = PLAIN) -> dict[str, Any]:
    weights = {"name": "Cached", "path": str(folder)}
    return {"teacher": {"weights": weights, "views": {"solution": view}}}


@pytest.mark.parametrize(
    ("form", "loss"), [("token", TOKEN), ("top", HIGHEST), ("hidden", WHOLE), ("hidden", TOKEN)]
)
def test_a_run_on_recorded_scores_is_the_run_with_the_teacher(
    tiny_model_dir: Path, stored: Path, tmp_path: Path, form: Form, loss: object
) -> None:
    """Bit for bit: where every pass holds one sequence, nothing else rounds differently."""
    with_teacher = trained(tiny_model_dir, stored, tmp_path / "live", loss)
    without = trained(tiny_model_dir, stored, tmp_path / form, loss, **cached(stored / form))
    assert with_teacher == without
    first, second = (rows(tmp_path / name, "update") for name in ("live", form))
    for one, other in zip(first, second, strict=True):
        for name in ("loss/distil", "teacher_gap/solution", "grad_norm"):
            assert one["metrics"][name] == other["metrics"][name] != 0
    untrained = (tiny_model_dir / "model.safetensors").read_bytes()
    assert with_teacher != untrained


def test_no_teacher_is_opened(
    tiny_model_dir: Path, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights may be gone: nothing is read but the recording."""
    monkeypatch.setattr("opd.teacher.score.sweep", pytest.fail)
    trained(tiny_model_dir, stored, tmp_path / "run", TOKEN, **cached(stored / "token"))


def test_packing_and_larger_batches_read_the_same_scores(
    tiny_model_dir: Path, stored: Path, tmp_path: Path
) -> None:
    losses, hidden = [], cached(stored / "hidden")
    for name, changes in {
        "alone": {},
        "padded": {"tokens_per_batch": 4096},
        "packed": {"tokens_per_batch": 4096, "packing": True},
    }.items():
        trained(tiny_model_dir, stored, tmp_path / name, WHOLE, **hidden, **changes)
        losses.append([row["metrics"]["loss/distil"] for row in rows(tmp_path / name, "update")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def refusal(model: Path, folder: Path, stored: Path, loss: object = TOKEN, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        trained(model, stored, folder / str(len(list(folder.iterdir()))), loss, **changes)
    return str(caught.value)


def test_whatever_does_not_match_is_refused_by_name(
    tiny_model_dir: Path, stored: Path, tmp_path: Path
) -> None:
    token = stored / "token"
    output = tmp_path
    warm = {"max_response_tokens": 12, "temperature": 0.5}
    said = refusal(tiny_model_dir, output, stored, sampling=warm, **cached(token))
    assert "at temperature 1, but this run samples at 0.5" in said
    worded = cached(token, {"name": "Solution", "template": "$question: $solution"})
    said = refusal(tiny_model_dir, output, stored, **worded)
    assert "'solution' reads another prompt" in said
    other = {"name": "Distill", "target": "plain", "divergence": "JSD"}
    views = cached(stored / "hidden")
    views["teacher"]["views"]["plain"] = "Plain"
    said = refusal(tiny_model_dir, output, stored, other, **views)
    assert "the view 'plain' was not scored" in said
    for form, loss in {"token": HIGHEST, "top": WHOLE}.items():
        said = refusal(tiny_model_dir, output, stored, loss, **cached(stored / form))
        assert "hold less than terms.distil.loss reads" in said
    said = refusal(tiny_model_dir, output, stored, **cached(tmp_path / "nowhere"))
    assert "holds no scores" in said


def shortened(rollout: Rollout) -> Rollout:
    """Without its last token."""
    return replace(rollout, token_ids=rollout.token_ids[:-1], logprobs=rollout.logprobs[:-1])


def test_other_tokens_and_missing_responses_are_refused(
    tiny_model_dir: Path, stored: Path, tmp_path: Path
) -> None:
    rows = [row for found in read_judged(stored / "rollouts.jsonl").values() for row in found]
    cut = [replace(row, rollout=shortened(row.rollout)) for row in rows]
    for name, changed in {"other": cut, "more": rows}.items():
        (tmp_path / name).mkdir()
        write_judged(tmp_path / name / "rollouts.jsonl", changed)
    said = refusal(tiny_model_dir, tmp_path, tmp_path / "other", **cached(stored / "token"))
    assert "other response tokens were scored" in said
    recipe = build(Recipe, tree(tiny_model_dir, tmp_path / "unused", **live(TOKEN)))
    write_judged(tmp_path / "few.jsonl", rows[:1])
    score(recipe, tmp_path / "few.jsonl", tmp_path / "few")
    said = refusal(tiny_model_dir, tmp_path, tmp_path / "more", **cached(tmp_path / "few"))
    assert "none of its responses was scored" in said


def test_a_view_that_is_absent_stays_absent(tiny_model_dir: Path, stored: Path) -> None:
    recipe = build(Recipe, tree(tiny_model_dir, stored / "unused", **live(TOKEN)))
    groups = read_groups(stored / "rollouts.jsonl", recipe.problems.problems())[:3]
    chat = Chat.open(str(tiny_model_dir))
    trajectories = [t for group in groups for t in shown(recipe, group, chat)]
    trajectories[1] = replace(trajectories[1], views={})
    batch = assemble(trajectories, [2, 1, 0], packing=False, pad_id=0)
    learner = open_student(tiny_model_dir)
    for form in ("token", "top", "hidden"):
        scores = Recording.open(stored / form).scores("solution", trajectories, batch, learner)
        assert torch.equal(scores.present, batch.sequence != 1)
        assert not scores.logprob[~scores.present].any() and scores.logprob[scores.present].all()


@pytest.mark.parametrize(("form", "loss"), [("top", HIGHEST), ("hidden", WHOLE)])
def test_a_view_that_no_response_of_a_batch_has_leaves_the_other_terms_alone(
    tiny_model_dir: Path, stored: Path, form: Form, loss: object
) -> None:
    recipe = build(Recipe, tree(tiny_model_dir, stored / "unused", **live(loss)))
    group = read_groups(stored / "rollouts.jsonl", recipe.problems.problems())[0]
    trajectories = [
        replace(t, views={}) for t in shown(recipe, group, Chat.open(str(tiny_model_dir)))
    ]
    batch = assemble(trajectories, [0], packing=False, pad_id=0)
    imitate = {"imitate": Term(loss=Likelihood())}
    found = []
    for terms in (imitate, {**recipe.terms, **imitate}):
        learner = open_student(tiny_model_dir, terms)
        scores = Recording.open(stored / form).scores("solution", trajectories, batch, learner)
        learner.update([batch], [{"solution": scores}], 0)
        found.append(gradients(learner))
    assert distance(*found) < 1e-6


def test_views_of_other_problems_are_scored_and_those_that_are_written_are_not(
    tiny_model_dir: Path, stored: Path, tmp_path: Path
) -> None:
    def scored(view: object) -> int:
        loss = {"name": "SampledReverseKL", "view": "it"}
        changes = live(loss, teacher={"weights": "Frozen", "views": {"it": view}})
        recipe = build(Recipe, tree(tiny_model_dir, tmp_path / "unused", **changes))
        return score(recipe, stored / "rollouts.jsonl", tmp_path / "scores")

    assert scored({"name": "OtherProblem", "show": "answer", "template": "$question $other"}) == 5
    with pytest.raises(RecipeError, match=r"teacher\.views\.it: what the teacher writes anew"):
        scored("Analysis")


def test_another_tokenizer_is_refused(tiny_model_dir: Path, stored: Path, tmp_path: Path) -> None:
    recording = tmp_path / "token"
    recording.mkdir()
    for file in (stored / "token").iterdir():
        (recording / file.name).write_bytes(file.read_bytes())
    heading = json.loads((recording / "heading.json").read_text())
    (recording / "heading.json").write_text(json.dumps({**heading, "chat": "another"}))
    said = refusal(tiny_model_dir, tmp_path, stored, **cached(recording))
    assert "another tokenizer or chat template" in said


def test_scoring_goes_on_where_it_was_killed(
    tiny_model_dir: Path, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opd.stored.TOKENS_PER_FILE", 20)
    recipe = build(Recipe, tree(tiny_model_dir, tmp_path / "unused", **live(TOKEN)))
    to, rollouts = tmp_path / "scores", stored / "rollouts.jsonl"
    score(recipe, rollouts, to)
    shards = sorted(to.glob("scores-*"))
    assert len(shards) == 2
    whole = {shard: shard.read_bytes() for shard in shards}
    kept = shards[0].stat().st_mtime_ns
    shards[1].unlink()
    score(recipe, rollouts, to)
    assert {shard: shard.read_bytes() for shard in shards} == whole
    assert shards[0].stat().st_mtime_ns == kept
    with pytest.raises(DataError, match="with another form and size"):
        score(recipe, rollouts, to, "top")
    colder = {"max_response_tokens": 12, "temperature": 0.5}
    other = build(Recipe, tree(tiny_model_dir, tmp_path / "unused", **live(TOKEN, sampling=colder)))
    with pytest.raises(DataError, match="with another temperature"):
        score(other, rollouts, to)
    with pytest.raises(DataError, match="exists already"):
        score(recipe, rollouts, tmp_path)
    nothing = build(Recipe, tree(tiny_model_dir, tmp_path / "unused", **live(TOKEN, **cached(to))))
    with pytest.raises(RecipeError, match="Cached has no parameters to score with"):
        score(nothing, rollouts, tmp_path / "new")
    teacher = {"views": {"solution": PLAIN}, "exposure": 0.5}
    part = build(Recipe, tree(tiny_model_dir, tmp_path / "unused", **live(TOKEN, teacher=teacher)))
    with pytest.raises(RecipeError, match=r"teacher\.exposure: .* whole references"):
        score(part, rollouts, tmp_path / "new")


def test_a_student_of_another_model_is_warned_of(
    tiny_model_dir: Path, stored: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run notes whose responses it has imitated; scores of other weights then raise a warning,
    also once the student has learned something else."""
    imitate = {"imitate": {"loss": "Likelihood"}}
    student = save_random_model(tmp_path / "student", character_tokenizer(), layers=1)
    trained(student, stored, tmp_path / "taught", TOKEN, terms=imitate)
    run(tmp_path / "taught" / "model", tmp_path / "later", **live(TOKEN))

    def warnings(student: Path, weights: object) -> list[str]:
        caplog.clear()
        changes = live(TOKEN)
        changes["teacher"]["weights"] = weights
        recipe = build(Recipe, tree(student, tmp_path / "unused", **changes))
        with caplog.at_level(logging.WARNING):
            score(
                recipe,
                stored / "rollouts.jsonl",
                tmp_path / f"scores{len(list(tmp_path.iterdir()))}",
            )
        return [record.message for record in caplog.records if "has imitated" in record.message]

    for name in ("taught", "later"):
        model = tmp_path / name / "model"
        assert warnings(model, {"name": "External", "path": str(tiny_model_dir)}) == []
        assert len(warnings(model, "Frozen")) == 1
    # What has learned from its own responses has imitated nobody.
    trained(tiny_model_dir, stored, tmp_path / "own", TOKEN)
    assert warnings(tmp_path / "own" / "model", "Frozen") == []


def test_scores_of_other_weights_than_the_recipe_asks_for_are_refused(
    tiny_model_dir: Path, stored: Path, tmp_path: Path
) -> None:
    def asking(scored_by: str) -> dict[str, Any]:
        changes = cached(stored / "token")
        changes["teacher"]["weights"]["scored_by"] = scored_by
        return changes

    scored_by = weights_id(str(tiny_model_dir))
    trained(tiny_model_dir, stored, tmp_path / "run", TOKEN, **asking(scored_by))
    said = refusal(tiny_model_dir, tmp_path, stored, **asking("f00d"))
    assert "scored_by is f00d" in said and f"solution by {scored_by}" in said


def test_listed_entries_stand_for_whole_rows() -> None:
    torch.manual_seed(0)
    student, teacher = Logits(torch.randn(4, 9)), Logits(torch.randn(4, 9))
    known = teacher.log_probs(1.0).topk(3)
    listed = ListedLogits(Listed(known.indices, known.values), 9, 1.0)
    assert listed.log_probs(1.0).exp().sum(-1).tolist() == pytest.approx([1.0] * 4)
    for size in (2, 3):
        for rest in ("tail", "renormalise"):
            support = TopK(size=size, chosen_by="teacher", rest=rest)
            for divergence in (ForwardKL(), ReverseKL()):
                exact = divergence(*support(student, teacher, 1.0))
                found = divergence(*support(student, listed, 1.0))
                assert torch.allclose(found, exact, atol=1e-6)
    everything = teacher.log_probs(1.0).topk(9)
    whole = ListedLogits(Listed(everything.indices, everything.values), 9, 1.0)
    assert torch.equal(whole.log_probs(1.0), teacher.log_probs(1.0))


def test_a_recording_says_what_made_it(stored: Path) -> None:
    found = Recording.open(stored / "top").heading
    assert (found.form, found.size, found.temperature) == ("top", 5, 1.0)
    assert found.views["solution"]["template"] == PLAIN["template"]
    assert len(found.teachers["solution"]) == len(found.rollouts) == len(found.chat) == 64
    with safe_open(next((stored / "top").glob("scores-*")), "pt") as file:
        assert file.get_tensor("solution/listed").exp().sum(-1).max() <= 1 + 1e-6
