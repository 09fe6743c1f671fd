"""Stored responses: what is read back, which are chosen, and what of them is learned."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from opd.config import build
from opd.errors import DataError, RecipeError
from opd.privileged import Privileged, Problem
from opd.recipe import Recipe
from opd.rollout.chat import Chat
from opd.rollout.engine import Sampling
from opd.rollout.hf import HF
from opd.rollout.judged import Judged, read_judged, write_judged
from opd.rollout.sampler import Sampler
from opd.rollout.source import Both, Demonstrations, InView, Mixed, OnPolicy, Stored
from opd.types import Message, Prompt, Rollout, Verdict
from tests.runs import run, tree
from tests.unit.test_loop import rows

SAMPLING = Sampling(max_response_tokens=6)
PROBLEMS = tuple(
    Problem(Prompt(f"p{index}", (Message("user", f"{index}?"),)), Privileged(solution="so"))
    for index in range(3)
)


@pytest.fixture(scope="module")
def sampler(tiny_model_dir: Path) -> Iterator[Sampler]:
    engine = HF()
    engine.open(str(tiny_model_dir), dtype="float32", max_length=64, seed=0)
    yield Sampler(engine, Chat.open(str(tiny_model_dir)), 64, seed=0)
    engine.close()


def judged(sampler: Sampler, problem: Problem, text: str, status: str = "pass") -> Judged:
    """A response that another model of the same tokenizer has drawn."""
    token_ids = sampler.chat.response_ids(text)
    rollout = Rollout(
        prompt=problem.prompt,
        prompt_ids=sampler.chat.prompt_ids(problem.prompt.messages),
        token_ids=token_ids,
        logprobs=tuple(-0.5 * (i + 1) for i in range(len(token_ids))),
        policy_step=7,
        finish="stop",
        text=text,
    )
    return Judged(rollout, Verdict(status, 1.0), "weights", sampler.chat.fingerprint)  # type: ignore[arg-type]


def behind(row: Judged, more: tuple[int, ...]) -> Judged:
    """The same response, drawn behind a prompt that goes on."""
    given = row.rollout.prompt_ids + more
    return replace(row, rollout=replace(row.rollout, prompt_ids=given))


def stored(tmp_path: Path, *rows: Judged, **settings: object) -> Stored:
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
    write_judged(path, rows)
    return build(Stored, {"path": str(path), **settings})


def test_what_is_written_is_read_back_and_never_written_over(
    sampler: Sampler, tmp_path: Path
) -> None:
    row = judged(sampler, PROBLEMS[0], "a")
    unknown = replace(row.rollout, logprobs=(math.nan,) * len(row.rollout.token_ids))
    path = tmp_path / "rows.jsonl"
    assert write_judged(path, [row, replace(row, rollout=unknown)]) == 2
    first, second = read_judged(path)["p0"]
    assert first == row and all(map(math.isnan, second.rollout.logprobs))
    json.loads(path.read_text().splitlines()[1], parse_constant=pytest.fail)
    with pytest.raises(DataError, match="exists already"):
        write_judged(path, [row])


def test_a_text_may_hold_any_separator_of_lines(sampler: Sampler, tmp_path: Path) -> None:
    row = judged(sampler, PROBLEMS[0], "a")
    row = replace(row, rollout=replace(row.rollout, text="a\u2028b\x85c\x1ed\re\n"))
    write_judged(tmp_path / "rows.jsonl", [row, row])
    assert read_judged(tmp_path / "rows.jsonl") == {"p0": [row, row]}


def test_a_file_is_there_whole_or_not_at_all(sampler: Sampler, tmp_path: Path) -> None:
    def cut_short() -> Iterator[Judged]:
        yield judged(sampler, PROBLEMS[0], "a")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_judged(tmp_path / "rows.jsonl", cut_short())
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_malformed_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    with pytest.raises(DataError, match=r"row 1 is no stored rollout"):
        read_judged(path)


def test_verdicts_repeats_and_number_choose(sampler: Sampler, tmp_path: Path) -> None:
    a, b = judged(sampler, PROBLEMS[0], "a"), judged(sampler, PROBLEMS[0], "b", "fail")
    c = judged(sampler, PROBLEMS[1], "c", "no_answer")

    def texts(**settings: object) -> list[list[str]]:
        source = stored(tmp_path, a, b, a, c, **settings)
        problems = source.answered(PROBLEMS)
        drawn = source.collect(problems, sampler, SAMPLING, 0)
        return [[rollout.text for rollout in rollouts] for rollouts in drawn]

    assert texts() == [["a", "b", "a"], ["c"]]
    assert texts(only="success") == [["a", "a"]]
    assert texts(only="failure") == [["b"], ["c"]]
    assert texts(repeats="drop") == [["a", "b"], ["c"]]
    assert texts(rollouts_per_problem=1) == [["a"], ["c"]]
    with pytest.raises(DataError, match="answers none of the problems"):
        stored(tmp_path, b, only="success").answered(PROBLEMS)


def test_each_way_of_learning_a_response(sampler: Sampler, tmp_path: Path) -> None:
    row = judged(sampler, PROBLEMS[0], "so")
    plain, more = row.rollout.prompt_ids, (20, 21)

    def learned(way: str) -> Rollout:
        source = stored(tmp_path, behind(row, more), learned=way)
        return source.collect(PROBLEMS[:1], sampler, SAMPLING, 0)[0][0]

    drawn, bare, stream = learned("as_drawn"), learned("plain"), learned("stream")
    response = row.rollout.token_ids
    assert (drawn.prompt_ids, drawn.token_ids) == (plain + more, response)
    assert drawn.logprobs == row.rollout.logprobs
    assert (bare.prompt_ids, bare.token_ids) == (plain, response)
    assert (stream.prompt_ids, stream.token_ids) == (plain, more + response)
    for other in (bare, stream):
        assert len(other.logprobs) == len(other.token_ids) and all(map(math.isnan, other.logprobs))
    assert {r.policy_step for r in (drawn, bare, stream)} == {-1}
    source = stored(tmp_path, row, learned="plain")
    assert source.collect(PROBLEMS[:1], sampler, SAMPLING, 0)[0][0].logprobs == row.rollout.logprobs


def test_what_does_not_fit_the_student_is_refused(sampler: Sampler, tmp_path: Path) -> None:
    row = judged(sampler, PROBLEMS[0], "so")

    def collected(row: Judged, **settings: object) -> list[list[Rollout]]:
        return stored(tmp_path, row, **settings).collect(PROBLEMS[:1], sampler, SAMPLING, 0)

    foreign = replace(row, chat="another")
    with pytest.raises(DataError, match="another tokenizer or chat template"):
        collected(foreign)
    ((anew,),) = collected(foreign, learned="text")
    assert anew.token_ids == row.rollout.token_ids and all(map(math.isnan, anew.logprobs))
    asked = replace(row.rollout.prompt, messages=(Message("user", "else?"),))
    with pytest.raises(DataError, match="answers another question"):
        collected(replace(row, rollout=replace(row.rollout, prompt=asked)))
    shown = replace(row.rollout, prompt_ids=(50, 51, *row.rollout.prompt_ids))
    with pytest.raises(DataError, match="does not go on from"):
        collected(replace(row, rollout=shown), learned="stream")
    longer = replace(row.rollout, prompt_ids=(50,) * 64)
    with pytest.raises(DataError, match=r"p0: its prompt and response of \d+ tokens exceed"):
        collected(replace(row, rollout=longer))


def test_only_sources_with_log_probs_serve_a_policy_gradient(tmp_path: Path) -> None:
    def recipe(source: object) -> Recipe:
        return build(Recipe, tree(tmp_path, tmp_path / "run", source=source))

    path = {"name": "Stored", "path": "somewhere.jsonl"}
    assert recipe(path).source.tells_logprobs
    for inner in ({**path, "learned": "text"}, {**path, "learned": "stream"}, "Demonstrations"):
        with pytest.raises(RecipeError, match=r"source: terms\.reinforce needs sampled"):
            recipe({"name": "Mixed", "first": "OnPolicy", "second": inner})


def test_siblings_are_refused_where_every_group_is_one(tmp_path: Path) -> None:
    views = {"weights": "Frozen", "views": {"solution": "Sibling"}}
    terms = {"distil": {"loss": {"name": "Distill", "target": "solution", "divergence": "JSD"}}}

    def recipe(source: object) -> Recipe:
        changes = {"teacher": views, "terms": terms, "source": source}
        return build(Recipe, tree(tmp_path, tmp_path / "run", **changes))

    recipe({"name": "Stored", "path": "somewhere.jsonl"})
    for source in (
        "OnPolicy",
        "Demonstrations",
        {"name": "Stored", "path": "x", "rollouts_per_problem": 1},
    ):
        with pytest.raises(RecipeError, match="Sibling view needs other rollouts"):
            recipe(source)


def test_mixed_asks_what_both_sides_answer(sampler: Sampler, tmp_path: Path) -> None:
    first = stored(tmp_path, *(judged(sampler, PROBLEMS[i], "a") for i in (0, 1)))
    second = stored(tmp_path, *(judged(sampler, PROBLEMS[i], "a") for i in (1, 2)))
    assert Mixed(first=first, second=second).answered(PROBLEMS) == PROBLEMS[1:2]
    assert OnPolicy().answered(PROBLEMS) == Demonstrations().answered(PROBLEMS) == PROBLEMS


def test_a_run_on_stored_responses_draws_nothing_and_forgives_drift(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """The weights leave those that drew behind, which is no fault of the engine."""
    from opd.stored import sample

    recipe = build(Recipe, tree(tiny_model_dir, tmp_path / "unused"))
    assert sample(recipe, 3, tmp_path / "rows.jsonl") == 6
    (row, *_) = next(iter(read_judged(tmp_path / "rows.jsonl").values()))
    assert row.drawn_by and row.chat and row.rollout.policy_step == 0
    changes = {
        "source": {"name": "Stored", "path": str(tmp_path / "rows.jsonl")},
        "optimizer": {"learning_rate": 1e-2},
        "sync_tolerance": 1e-3,
    }
    summary = run(tiny_model_dir, tmp_path / "run", **changes)
    metrics = [row["metrics"] for row in rows(tmp_path / "run", "update")]
    assert summary["generated_tokens"] == 0 and summary["learner_tokens"] > 0
    assert metrics[0]["mismatch/mean"] < 1e-4 and metrics[-1]["mismatch/mean"] > 1e-2


def test_a_view_may_stand_before_what_is_written(sampler: Sampler) -> None:
    """The side that sees more writes; what is learned stands behind the plain prompt."""
    view = {"name": "Solution", "template": "$question $solution"}

    def drawn(**settings: object) -> list[list[Rollout]]:
        source = build(InView, {"view": view, **settings})
        assert source.answered(PROBLEMS) == PROBLEMS
        return source.collect(PROBLEMS[:2], sampler, SAMPLING, 3)

    ((first,), (second,)) = drawn(learned="as_drawn")
    shown = sampler.chat.prompt_ids((Message("user", "0? so"),))
    assert first.prompt_ids == shown and first.prompt == PROBLEMS[0].prompt
    assert first.policy_step == 0 and not any(map(math.isnan, first.logprobs))
    ((plain,), _) = drawn()
    assert plain.prompt_ids == sampler.chat.prompt_ids(PROBLEMS[0].prompt.messages)
    assert plain.token_ids == first.token_ids and all(map(math.isnan, plain.logprobs))
    assert plain.policy_step == 0, "it counts as drawn, and tells no mismatch"
    twice = drawn(rollouts_per_view=2)
    assert [len(rollouts) for rollouts in twice] == [2, 2]
    assert len({r.token_ids for rollouts in twice for r in rollouts} | {second.token_ids}) > 2


def test_an_attempt_is_read_and_written_again(sampler: Sampler, tmp_path: Path) -> None:
    attempts = [judged(sampler, PROBLEMS[0], text, s) for text, s in (("a", "pass"), ("b", "fail"))]
    unjudged = judged(sampler, PROBLEMS[0], "c", "no_verdict")
    write_judged(tmp_path / "attempts.jsonl", [*attempts, unjudged])
    of = {"name": "Stored", "path": str(tmp_path / "attempts.jsonl")}
    view = {"name": "Attempt", "right": "+", "wrong": "-", "gap": " "}

    def made(**settings: object) -> list[Rollout]:
        source = build(InView, {"view": view, "of": of, **settings})
        return source.collect(source.answered(PROBLEMS), sampler, SAMPLING, 0)[0]

    plain = sampler.chat.prompt_ids(PROBLEMS[0].prompt.messages)
    behind = [plain + sampler.chat.response_ids(text)[:-1] for text in ("a + ", "b - ")]
    drawn = made(learned="as_drawn")
    assert [rollout.prompt_ids for rollout in drawn] == behind
    stream = made(learned="stream")
    for one, other, before in zip(drawn, stream, behind, strict=True):
        assert other.prompt_ids == plain
        assert other.token_ids == before[len(plain) :] + one.token_ids
    answers = {**of, "only": "success"}
    written = made(answers=answers, learned="as_drawn")
    response = sampler.chat.response_ids("a")
    assert [(r.prompt_ids, r.token_ids) for r in written] == [(b, response) for b in behind]
    assert all(math.isnan(nats) for r in written for nats in r.logprobs)
    assert {r.policy_step for r in written} == {-1}
    assert build(InView, {"view": view, "of": of}).authors() == frozenset()
    assert build(InView, {"view": view, "of": of, "answers": answers}).authors() == {"weights"}


def test_what_is_drawn_here_is_not_encoded_anew() -> None:
    with pytest.raises(RecipeError, match=r"source: what is drawn here is in this model's tokens"):
        build(InView, {"view": "Plain", "learned": "text"}, "source")


def test_a_view_with_nothing_to_say_is_named(sampler: Sampler, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_judged(path, [judged(sampler, PROBLEMS[0], "c", "no_verdict")])
    of = {"name": "Stored", "path": str(path)}
    source = build(InView, {"view": "Attempt", "of": of})
    with pytest.raises(DataError, match=r"problem p0: source\.view has nothing to show"):
        source.collect(PROBLEMS[:1], sampler, SAMPLING, 0)


def test_both_lays_one_source_before_the_other(sampler: Sampler, tmp_path: Path) -> None:
    first = stored(tmp_path, *(judged(sampler, PROBLEMS[i], "a") for i in (0, 1)))
    second = stored(tmp_path, *(judged(sampler, PROBLEMS[i], "b") for i in (1, 2)))
    both = Both(first=first, second=second)
    assert both.answered(PROBLEMS) == PROBLEMS[1:2] and both.authors() == {"weights"}
    ((one, other),) = both.collect(PROBLEMS[1:2], sampler, SAMPLING, 0)
    assert (one.text, other.text) == ("a", "b")
    assert both.most_per_problem == math.inf and both.tells_logprobs
    assert Both(first=OnPolicy(), second=Demonstrations()).most_per_problem == 2
    assert not Both(first=OnPolicy(), second=Demonstrations()).tells_logprobs
