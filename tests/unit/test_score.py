"""pass@k, maj@k and paired tests: brute force, worked by hand, and values from the literature."""

from __future__ import annotations

from itertools import combinations, product
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd.evaluation import paired as paired_module
from opd.evaluation.metrics import majority, pass_at, share_over_problems
from opd.evaluation.paired import bootstrap, paired, sign_flip
from opd.evaluation.score import score
from opd.evaluation.transcript import Kind, Sample


def sample(
    problem: str,
    index: int = 0,
    status: str | None = "pass",
    *,
    kind: Kind = "sampled",
    answer: str | None = None,
    finish: str = "stop",
    tokens: int = 10,
) -> Sample:
    return Sample(
        benchmark="b",
        kind=kind,
        problem=problem,
        sample=index,
        prompt_sha256="",
        seed=0,
        sampling={},
        tokens=tokens,
        finish=finish,
        status=status,
        reward=float(status == "pass"),
        answer=answer,
        text="",
    )


def group(problem: str, marks: str, answers: str = "") -> list[Sample]:
    """One sample a mark: + passes, - fails, 0 gives no answer, ? gets no verdict."""
    statuses = {"+": "pass", "-": "fail", "0": "no_answer", "?": "no_verdict"}
    named = [None if a in ("", ".") else a for a in answers or "." * len(marks)]
    return [
        sample(problem, i, statuses[mark], answer=answer)
        for i, (mark, answer) in enumerate(zip(marks, named, strict=True))
    ]


@pytest.mark.parametrize("count", range(1, 9))
def test_pass_at_k_is_the_share_of_draws_with_a_success(count: int) -> None:
    for passed, k in product(range(count + 1), range(1, count + 1)):
        draws = list(combinations([True] * passed + [False] * (count - passed), k))
        assert pass_at(k, count, passed) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_of_many_samples_is_a_number() -> None:
    assert pass_at(512, 1024, 1) == pytest.approx(0.5)
    with pytest.raises(AssertionError, match="pass@3"):
        pass_at(3, 2, 1)


def test_a_majority_by_hand() -> None:
    assert majority([("4", True), ("5", False), ("4", True)]) == 1.0
    assert majority([("4", True), ("5", False), ("5", False)]) == 0.0
    assert majority([]) == 0.0


def test_a_tie_is_worth_the_share_of_right_answers_whatever_their_order() -> None:
    tied = [("4", True), ("5", False), ("5", False), ("4", True), ("6", False)]
    assert majority(tied) == majority(tied[::-1]) == 0.5
    assert majority([("1", False), ("2", True), ("3", False)]) == pytest.approx(1 / 3)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.just(False)), min_size=1, max_size=9))
def test_a_majority_of_wrong_answers_is_wrong(votes: list[tuple[str, bool]]) -> None:
    assert majority(votes) == 0.0


def test_a_benchmark_by_hand() -> None:
    rows = [*group("p", "++-?"), *group("q", "----"), *group("r", "?-0+")]
    found = score(rows, 4)
    # p passes 2 of 3 that were judged, q none of 4, r 1 of 3.
    assert found.average is not None and found.average.value == pytest.approx((2 / 3 + 1 / 3) / 3)
    assert found.average.low < found.average.value < found.average.high
    two = found.pass_at[2]
    assert two is not None
    assert two.value == pytest.approx((1 + 0 + (1 - comb(2, 2) / comb(3, 2))) / 3)
    four = found.pass_at[4]  # q alone has four judged responses
    assert four is not None and four.value == 0.0
    assert (found.no_verdict, found.no_answer) == (2 / 12, 1 / 12)
    assert set(found.pass_at) == {1, 2, 3, 4} and found.greedy is None and found.majority is None


def test_pass_at_1_is_the_average() -> None:
    found = score([*group("p", "+-+-"), *group("q", "+--?")], 4)
    assert found.pass_at[1] == found.average


def test_the_majority_of_a_benchmark() -> None:
    rows = [*group("p", "++-0", "448."), *group("q", "-+", "78"), *group("r", "00")]
    found = score(rows, 4)
    # p's 4 wins, q ties, r votes for nothing.
    assert found.majority is not None and found.majority.value == pytest.approx(1.5 / 3)


def test_no_majority_where_the_reward_names_no_answers() -> None:
    assert score(group("p", "+-"), 2).majority is None
    # A pass without a name shows that names are not to be relied on.
    assert score(group("p", "++-", "4.5"), 3).majority is None


def test_what_does_not_fit_is_missed_and_named() -> None:
    unasked = [sample("q", i, None, finish="does_not_fit", tokens=0) for i in range(2)]
    strange = [sample("r", i, None, finish="unreadable", tokens=0) for i in range(2)]
    found = score([*group("p", "++"), *unasked, *strange], 2)
    assert found.average is not None and found.average.value == pytest.approx(1 / 3)
    assert (found.does_not_fit, found.unreadable) == (("q",), ("r",))
    assert found.mean_length == 10 and found.no_answer == 0.0
    alone = score(unasked, 2)
    assert alone.average is not None and alone.average.value == 0.0
    assert alone.mean_length is None and alone.truncated is None


def test_no_verdict_at_all_is_no_accuracy() -> None:
    found = score(group("p", "??"), 2)
    assert found.average is None and found.pass_at == {1: None, 2: None} and found.no_verdict == 1.0


def test_greedy_responses_are_scored_apart() -> None:
    rows = [*group("p", "--"), sample("p", kind="greedy"), *group("q", "+-")]
    found = score([*rows, sample("q", status="fail", kind="greedy")], 2)
    assert found.greedy is not None and found.greedy.value == 0.5
    assert found.average is not None and found.average.value == 0.25


def test_values_between_0_and_1_get_an_interval_of_their_spread() -> None:
    values = [0.25, 0.5, 0.75, 0.5] * 100
    found = share_over_problems(values, 4000)
    error = (sum((v - 0.5) ** 2 for v in values) / 399 / 400) ** 0.5
    assert found.high - found.value == pytest.approx(1.96 * error, rel=0.01)


DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
"""Pairs of maize plants, in eighths of an inch; Fisher (1935) counts 863 of 32,768 flips."""


def test_the_exact_test_is_fishers() -> None:
    assert sign_flip(DARWIN) == (pytest.approx(2 * 863 / 32768), True)


@pytest.mark.parametrize(("wins", "losses", "p"), [(8, 1, 20 / 512), (5, 0, 1 / 16), (3, 3, 1.0)])
def test_one_response_a_problem_is_mcnemars_exact_test(wins: int, losses: int, p: float) -> None:
    mine = [[True]] * wins + [[False]] * losses + [[True]] * 4
    theirs = [[False]] * wins + [[True]] * losses + [[True]] * 4
    found = paired(dict(enumerated(mine)), dict(enumerated(theirs)))
    assert found is not None and found.exact
    assert found.p == pytest.approx(p)
    assert found.difference == pytest.approx((wins - losses) / (wins + losses + 4))


def enumerated(groups: list[list[bool]]) -> list[tuple[str, list[bool]]]:
    return [(str(index), passed) for index, passed in enumerate(groups)]


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_the_exact_test_counts_every_flip(differences: list[int]) -> None:
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    as_far = sum(value >= abs(sum(differences)) for value in sums)
    assert sign_flip(differences)[0] == pytest.approx(as_far / len(sums))


def test_a_test_too_large_to_count_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired_module, "LARGEST", 0)
    p, exact = sign_flip(DARWIN)
    assert not exact and p == pytest.approx(2 * 863 / 32768, abs=0.003)
    assert sign_flip(DARWIN)[0] == p


def test_a_comparison_by_hand() -> None:
    mine = {"p": [True, True], "q": [True, False], "r": [False], "s": [True], "t": []}
    theirs = {"p": [False, True], "q": [True, False], "r": [False], "s": [], "t": [True]}
    found = paired(mine, theirs)  # s and t lack a verdict on one side
    assert found is not None and found.problems == 3
    assert (found.model, found.against) == (pytest.approx(0.5), pytest.approx(1 / 3))
    assert found.difference == pytest.approx(0.5 / 3) and found.p == 1.0
    assert paired({"p": []}, {"p": [True]}) is None


def test_the_bootstrap_is_of_the_paired_differences() -> None:
    """About 1.96 standard errors to each side of the mean, and the same in every run."""
    differences = [1] * 300 + [0] * 600 + [-1] * 100
    low, high = bootstrap(differences)
    error = ((0.4 - 0.2**2) / 1000) ** 0.5
    assert low == pytest.approx(0.2 - 1.96 * error, abs=0.004)
    assert high == pytest.approx(0.2 + 1.96 * error, abs=0.004)
    assert bootstrap(differences) == (low, high)
