"""Which rollouts are trained on."""

from __future__ import annotations

import pytest

from opd.privileged import Group, Privileged, Problem
from opd.selection import Contested, Everything, Selection, ShortestSuccess
from opd.types import Prompt, Rollout, Status, Verdict


def group(lengths: list[int], marks: str) -> Group:
    """Rollouts of so many tokens; + passes, - fails, ? gets no verdict."""
    statuses: dict[str, Status] = {"+": "pass", "-": "fail", "?": "no_verdict"}
    prompt = Prompt("p", ())
    rollouts = tuple(Rollout(prompt, (1,), (2,) * n, (0.0,) * n, 0, "stop", "") for n in lengths)
    verdicts = tuple(Verdict(statuses[mark], float(mark == "+")) for mark in marks)
    return Group(Problem(prompt, Privileged()), rollouts, verdicts)


@pytest.mark.parametrize(
    ("lengths", "marks", "chosen"),
    [
        ([900, 700, 850, 400], "+-+-", {2}),
        ([900, 850], "++", {1}),
        ([5, 5], "++", {0}),
        ([5, 4, 3], "-?-", set()),
    ],
)
def test_the_shortest_success_by_hand(lengths: list[int], marks: str, chosen: set[int]) -> None:
    assert ShortestSuccess()(group(lengths, marks)) == chosen


@pytest.mark.parametrize(
    ("marks", "chosen"),
    [("+-", {0, 1}), ("++", set()), ("--", set()), ("??", set()), ("+?", set())],
)
def test_a_contested_group_has_both(marks: str, chosen: set[int]) -> None:
    assert Contested()(group([1, 2], marks)) == chosen


@pytest.mark.parametrize("marks", ["+-", "?-"])
def test_everything_is_all(marks: str) -> None:
    select: Selection = Everything()
    assert select(group([1, 2], marks)) == {0, 1}
