"""What a training that does harm shows first."""

from __future__ import annotations

import pytest

from opd.evaluation.evaluator import passes
from opd.evaluation.harm import ends_in_loop, has_words, quantile, signs, traits
from opd.learner.metrics import quarters
from opd.rollout.chat import Chat
from opd.types import Message, Prompt, Rollout
from tests.batches import batch_of
from tests.conftest import character_tokenizer

PROMPT = Prompt("p", (Message("user", "?"),))


def response(tokens: list[int], text: str = "") -> Rollout:
    ids = tuple(tokens)
    return Rollout(PROMPT, (1,), ids, (-1.0,) * len(ids), 0, "stop", text)


def test_pass_at_k_by_hand() -> None:
    """3 of 16 pass: .1875, .607142857 and 1."""
    found = passes([[True] * 3 + [False] * 13], 16)
    assert list(found) == ["pass@1", "pass@2", "pass@4", "pass@8", "pass@16"]
    assert found["pass@1"] == pytest.approx(0.1875, abs=1e-9)
    assert found["pass@4"] == pytest.approx(0.607142857, abs=1e-9)
    assert found["pass@16"] == 1.0


def test_pass_at_k_leaves_out_problems_with_fewer_verdicts() -> None:
    found = passes([[True, False, False], [True]], 3)
    assert found == pytest.approx({"pass@1": (1 / 3 + 1) / 2, "pass@2": 2 / 3, "pass@3": 1.0})
    assert passes([[]], 2) == {}


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        (list(range(100)), False),
        (list(range(70)) + [5] * 29, False),
        (list(range(70)) + [5] * 30, True),
        (list(range(70)) + [7, 8, 9] * 10, True),
        (list(range(70)) + [7, 8, 9] * 10 + [7, 8], True),
        (list(range(70)) + [7, 8, 9] * 10 + [1], False),
        (list(range(40)) * 2, False),
        (list(range(40)) * 3, True),
        (list(range(60)) * 3, False),
        ([4], False),
        ([], False),
    ],
)
def test_what_a_loop_is(tokens: list[int], loops: bool) -> None:
    assert ends_in_loop(tokens) is loops


def test_signs_by_hand() -> None:
    first = traits([response([1, 2, 3, 1, 2, 3], "Wait. MAYBE wait"), response([1, 2, 3, 4])])
    second = traits([response([5] * 40, "awaits"), response([])])
    found = signs([first, second], has_words=True)
    assert [found[f"response_tokens/p{q}"] for q in (10, 50, 90)] == [0.0, 4.0, 40.0]
    assert found["terminal_loops"] == 1 / 4
    # 123 231 312 123, 123 234: four of six differ; of 38 times 555 one does.
    assert found["distinct_3"] == pytest.approx((4 / 6 + 1 / 38) / 2)
    assert found["deliberation/wait"] == pytest.approx(2 / 50 * 1000)
    assert found["deliberation/maybe"] == pytest.approx(1 / 50 * 1000)
    assert found["deliberation"] == pytest.approx(60)


@pytest.mark.parametrize(
    ("text", "appeals"),
    [
        ("As the Reference Solution says, 4.", True),
        ("By the provided\nanswer it is 4.", True),
        ("The hint was to halve it, and halve it.", True),
        ("The answer keys are 1 and 2.", False),
        ("A solution, provided the answer is given.", False),
        ("", False),
    ],
)
def test_what_appeals_to_a_reference(text: str, appeals: bool) -> None:
    assert traits([response([1], text)]).appeals == appeals


def test_a_response_appeals_once() -> None:
    """Two of five responses, whatever the tokenizer."""
    twice = "the given solution and the given solution"
    found = [
        traits([response([1], twice), response([2])]),
        traits([response([1], t) for t in "ab"]),
    ]
    found.append(traits([response([3], "see the answer key")]))
    for counted in (True, False):
        assert signs(found, has_words=counted)["appeals"] == pytest.approx(2 / 5)
    assert signs([], has_words=True)["appeals"] == 0


def test_a_tokenizer_of_characters_has_no_words() -> None:
    plain = character_tokenizer()
    assert not has_words(Chat(plain))
    assert not any("deliberation" in name for name in signs([], has_words=False))
    plain.add_tokens([" maybe"])
    assert has_words(Chat(plain))


@pytest.mark.parametrize(("percent", "value"), [(10, 1.0), (50, 5.0), (90, 9.0), (100, 10.0)])
def test_quantiles_are_lengths_that_occur(percent: int, value: float) -> None:
    assert quantile(range(1, 11), percent) == value


def test_quarters_are_of_each_response() -> None:
    batch = batch_of([8, 2, 1])
    assert quarters(batch).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0, 2, 0]
