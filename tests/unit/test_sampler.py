"""Seeds, sources and measurements: what is drawn depends on nothing but what it should."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from opd.config import build
from opd.errors import DataError
from opd.evaluation.evaluator import Benchmark, Judged, in_order, measure
from opd.objective.schedule import Constant
from opd.parts import tell
from opd.privileged import Privileged, Problem
from opd.rollout.chat import Chat
from opd.rollout.engine import Sampling
from opd.rollout.hf import HF
from opd.rollout.sampler import Sampler, seed_of
from opd.rollout.source import Demonstrations, Mixed, OnPolicy, Source
from opd.types import Message, Prompt, Rollout, Verdict

SAMPLING = Sampling(max_response_tokens=6)
PROBLEMS = tuple(
    Problem(
        Prompt(f"p{index}", (Message("user", f"{index}?"),)),
        Privileged(solution=f"it is {index}", demonstration=f"so {index}"),
    )
    for index in range(5)
)
PROMPTS = [problem.prompt for problem in PROBLEMS]


@pytest.fixture(scope="module")
def sampler(tiny_model_dir: Path) -> Iterator[Sampler]:
    engine = HF()
    engine.open(str(tiny_model_dir), dtype="float32", max_length=64, seed=0)
    yield Sampler(engine, Chat.open(str(tiny_model_dir)), 64, seed=0)
    engine.close()


def tokens(groups: Sequence[Sequence[Rollout]]) -> list[list[tuple[int, ...]]]:
    return [[rollout.token_ids for rollout in group] for group in groups]


def test_a_prompt_draws_the_same_in_any_company(sampler: Sampler) -> None:
    together = sampler.draw(PROMPTS, SAMPLING, 3, "train/0")
    alone = [sampler.draw([prompt], SAMPLING, 3, "train/0")[0] for prompt in PROMPTS]
    assert tokens(together) == tokens(alone)


def test_rollouts_steps_and_runs_draw_differently(sampler: Sampler) -> None:
    first = tokens(sampler.draw(PROMPTS, SAMPLING, 4, "train/0"))
    assert all(len(set(group)) > 1 for group in first)
    assert tokens(sampler.draw(PROMPTS, SAMPLING, 4, "train/1")) != first
    other = Sampler(sampler.engine, sampler.chat, 64, seed=1)
    assert tokens(other.draw(PROMPTS, SAMPLING, 4, "train/0")) != first


def test_seeds_fit_an_engine_and_do_not_collide() -> None:
    seeds = {seed_of(0, "train/1", name, i) for name in range(100) for i in range(100)}
    assert len(seeds) == 10_000 and all(0 <= seed < 2**63 for seed in seeds)


def test_a_rollout_says_what_was_drawn(sampler: Sampler) -> None:
    ((rollout,),) = sampler.draw(PROMPTS[:1], SAMPLING, 1, "train/0")
    assert rollout.prompt_ids == sampler.chat.prompt_ids(PROMPTS[0].messages)
    assert rollout.text == sampler.chat.text(rollout.token_ids)
    assert len(rollout.logprobs) == len(rollout.token_ids) and rollout.policy_step == 0


def test_a_prompt_without_room_is_named(sampler: Sampler) -> None:
    with pytest.raises(DataError, match=r"problem p0: .*exceed the context of 64"):
        sampler.draw(PROMPTS, Sampling(max_response_tokens=60), 1, "train/0")


def test_demonstrations_are_written_not_sampled(sampler: Sampler) -> None:
    ((rollout,), *_) = Demonstrations().collect(PROBLEMS, sampler, SAMPLING, 0)
    assert rollout.text == "so 0" and rollout.policy_step == -1
    assert rollout.token_ids[-1] == sampler.chat.end_of_turn
    ((other,), *_) = Demonstrations(read="solution").collect(PROBLEMS, sampler, SAMPLING, 0)
    assert other.text == "it is 0"
    bare = Problem(PROMPTS[0], Privileged())
    with pytest.raises(DataError, match=r"problem p0: it has no demonstration"):
        Demonstrations().collect([bare], sampler, SAMPLING, 0)


def test_mixed_takes_one_source_a_step_by_its_share(sampler: Sampler) -> None:
    def sampled(share: float) -> list[bool]:
        mixed = Mixed(first=OnPolicy(), second=Demonstrations(), share=Constant(value=share))
        steps = [mixed.collect(PROBLEMS[:2], sampler, SAMPLING, step) for step in range(40)]
        kinds = [{r.policy_step >= 0 for group in groups for r in group} for groups in steps]
        assert all(len(kind) == 1 for kind in kinds)
        return [kind.pop() for kind in kinds]

    assert not any(sampled(0.0)) and all(sampled(1.0))
    assert 10 <= sum(sampled(0.5)) <= 30
    assert sampled(0.5) == sampled(0.5)


def test_mixed_takes_one_source_after_the_other(sampler: Sampler) -> None:
    mixed = build(
        Source,
        {
            "name": "Mixed",
            "first": "OnPolicy",
            "second": "Demonstrations",
            "share": {"name": "Switch", "values": [0, 1], "at_steps": [3]},
        },
    )
    sampled = []
    for step in range(6):
        tell(mixed, step, 6)
        ((rollout,),) = mixed.collect(PROBLEMS[:1], sampler, SAMPLING, step)
        sampled.append(rollout.policy_step >= 0)
    assert sampled == [False] * 3 + [True] * 3


def judge(rollouts: Sequence[Rollout]) -> list[Verdict]:
    """Passes even ids; cannot judge p3."""
    index = int(rollouts[0].prompt.id[1:])
    status = "no_verdict" if index == 3 else ("fail" if index % 2 else "pass")
    return [Verdict(status, float(status == "pass")) for _ in rollouts]


def test_what_cannot_be_judged_is_no_miss(sampler: Sampler) -> None:
    found = measure(Benchmark("b", tuple(PROMPTS), judge), sampler, SAMPLING, 2)
    # p0, p2, p4 pass; p1 fails; p3 is left out.
    assert found.sampled == pytest.approx(3 / 4) and found.greedy == pytest.approx(3 / 4)
    assert found.no_verdict == pytest.approx(1 / 5)
    assert found.ci95[0] < 3 / 4 < found.ci95[1]
    assert found.by_problem == ((2, 2), (0, 2), (2, 2), (0, 0), (2, 2))
    drawn = sampler.draw(PROMPTS, SAMPLING, 2, "evaluate/b")
    logprobs = [value for group in drawn for rollout in group for value in rollout.logprobs]
    assert found.entropy == pytest.approx(-sum(logprobs) / len(logprobs))


def test_problems_stand_in_the_order_of_the_benchmark_whatever_the_ranks() -> None:
    groups: list[Judged] = [[] for _ in range(7)]
    for ranks in (1, 2, 3, 9):
        shares = [groups[rank::ranks] for rank in range(ranks)]
        assert [id(group) for group in in_order(shares)] == [id(group) for group in groups]


def test_evaluation_repeats_itself(sampler: Sampler) -> None:
    benchmark = Benchmark("b", tuple(PROMPTS), judge)
    assert measure(benchmark, sampler, SAMPLING, 3) == measure(benchmark, sampler, SAMPLING, 3)
