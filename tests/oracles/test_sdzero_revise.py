"""Learning to revise: what is learned of an attempt, a cue and a revision."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd.config import build, load_recipe
from opd.objective.loss import Likelihood
from opd.privileged import Group, Privileged, Problem
from opd.recipe import Recipe
from opd.rollout.chat import Chat
from opd.rollout.engine import Sampling
from opd.rollout.hf import HF
from opd.rollout.judged import Judged, write_judged
from opd.rollout.sampler import Sampler
from opd.rollout.source import Both, InView
from opd.teacher.view import Attempt
from opd.types import Message, Prompt, Rollout, Verdict


def written(prompt: Prompt, text: str, chat: Chat, status: str) -> Judged:
    ids = chat.response_ids(text)
    plain = chat.prompt_ids(prompt.messages)
    rollout = Rollout(prompt, plain, ids, (0.0,) * len(ids), 0, "stop", text)
    return Judged(rollout, Verdict(status, 0.0), None, chat.fingerprint)  # type: ignore[arg-type]


def test_what_is_learned_of_a_revision(tiny_model_dir: Path, tmp_path: Path) -> None:
    """An attempt of 4 tokens, a cue of 2 and a revision of 5 and its end: 6 tokens are learned
    behind the attempt, 12 behind the plain prompt."""
    chat, prompt = Chat.open(str(tiny_model_dir)), Prompt("p", (Message("user", "?"),))
    rows = [written(prompt, text, chat, s) for text, s in (("wron", "fail"), ("right", "pass"))]
    path = tmp_path / "rows.jsonl"
    write_judged(path, rows)
    changes = [
        f"source.{side}.view={{name: Attempt, wrong: NO, gap: ''}}" for side in ("first", "second")
    ]
    changes += [
        f"source.{side}.{read}.path={path}"
        for side in ("first", "second")
        for read in ("of", "answers")
    ]
    source = build(Recipe, load_recipe("sdzero_revise", changes)).source
    assert isinstance(source, Both)
    engine = HF()
    engine.open(str(tiny_model_dir), dtype="float32", max_length=512, seed=0)
    sampler = Sampler(engine, chat, 512, seed=0)
    problem = Problem(prompt, Privileged())
    assert source.answered([problem]) == (problem,)
    ((revision, stream),) = source.collect([problem], sampler, Sampling(max_response_tokens=1), 0)
    engine.close()
    plain = chat.prompt_ids(prompt.messages)
    assert len(revision.token_ids) == 6 and revision.text == "right"
    assert len(stream.token_ids) == 4 + 2 + 6
    assert revision.prompt_ids + revision.token_ids == plain + stream.token_ids
    assert stream.prompt_ids == plain
    assert chat.text(stream.token_ids) == "wronNOright"


@pytest.mark.parametrize(("status", "cue"), [("pass", "Y"), ("fail", "N"), ("no_answer", "N")])
def test_the_cue_depends_on_the_verdict_alone(tiny_model_dir: Path, status: str, cue: str) -> None:
    recipe = build(Recipe, load_recipe("sdzero_revise"))
    assert isinstance(recipe.source, Both) and isinstance(recipe.source.first, InView)
    view = recipe.source.first.view
    assert isinstance(view, Attempt)
    chat, prompt = Chat.open(str(tiny_model_dir)), Prompt("p", (Message("user", "?"),))
    row = written(prompt, "so", chat, status)
    said = {
        view.messages(Group(Problem(prompt, privileged), (row.rollout,), (row.verdict,)), 0)
        for privileged in (Privileged(), Privileged(solution="a", answer="b"))
    }
    assert said == {(*prompt.messages, Message("assistant", f"so;{cue};"))}


def test_both_losses_are_one_likelihood() -> None:
    recipe = build(Recipe, load_recipe("sdzero_revise"))
    assert [type(term.loss) for term in recipe.terms.values()] == [Likelihood]
    assert isinstance(recipe.source, Both)
    first, second = recipe.source.first, recipe.source.second
    assert isinstance(first, InView) and isinstance(second, InView)
    assert (first.learned, second.learned) == ("as_drawn", "stream")
    assert first.view == second.view and first.of == second.of and first.answers == second.answers


def test_without_revisions_it_imitates_what_was_verified() -> None:
    same = ["source={name: Stored, path: rows.jsonl, only: success, repeats: drop}", "output=x"]
    sizes = ["sampling.max_response_tokens=56", "problems_per_step=32"]
    found, base = (
        build(Recipe, load_recipe(name, [*same, *sizes])) for name in ("sdzero_revise", "rft")
    )
    assert found == base and isinstance(found.terms["imitate"].loss, Likelihood)
