"""How responses change besides being right or wrong: what a training that does harm shows first.

Legend: `G` responses to one problem.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from opd.rollout.chat import Chat
from opd.types import Rollout

DELIBERATION = (
    *("wait", "hmm", "perhaps", "maybe", "actually", "alternatively", "seems", "might", "check"),
)
"""Words with which a model weighs what it has written. arXiv 2603.24472."""
WORD = re.compile(rf"\b({'|'.join(DELIBERATION)})\b", re.IGNORECASE)

APPEALS = (
    *("reference solution", "reference answer", "verified solution", "given solution"),
    *("given answer", "provided solution", "provided answer", "answer key", "the hint"),
)
"""What a response appeals to that was only ever shown to a teacher (arXiv 2604.03128 counts such
phrases; the list is ours). A question may speak of one too: compare with before."""
APPEAL = re.compile(rf"\b({'|'.join(APPEALS)})\b".replace(" ", r"\s+"), re.IGNORECASE)

GRAM = 3
"""Tokens whose repetition counts."""
LONGEST_PERIOD, LEAST_PERIODS, LEAST_LOOP = 50, 3, 30
"""Tokens of a period, periods and tokens of what is called a loop. arXiv 2609.38995."""

QUANTILES = (10, 50, 90)


@dataclass(frozen=True)
class Traits:
    """What is counted of the responses to one problem."""

    lengths: tuple[int, ...]
    """`[G]` tokens."""
    loops: int
    """Responses that end in a loop."""
    distinct: float
    """Share of all runs of three tokens that are different ones, in [0, 1]."""
    words: Counter[str]
    """How often each word of deliberation stands in them."""
    appeals: int
    """Responses that appeal to a reference."""


def traits(rollouts: Sequence[Rollout]) -> Traits:
    """Of the responses to one problem."""
    grams = [
        rollout.token_ids[start : start + GRAM]
        for rollout in rollouts
        for start in range(len(rollout.token_ids) - GRAM + 1)
    ]
    return Traits(
        lengths=tuple(len(rollout.token_ids) for rollout in rollouts),
        loops=sum(ends_in_loop(rollout.token_ids) for rollout in rollouts),
        distinct=len(set(grams)) / len(grams) if grams else 1.0,
        words=Counter(word.lower() for r in rollouts for word in WORD.findall(r.text)),
        appeals=sum(APPEAL.search(rollout.text) is not None for rollout in rollouts),
    )


def signs(found: Sequence[Traits], *, has_words: bool) -> dict[str, float]:
    """The numbers to watch, over all problems: lengths in tokens, shares in [0, 1], and words a
    thousand tokens, which a tokenizer without words does not have."""
    lengths = sorted(length for each in found for length in each.lengths)
    tokens = max(1, sum(lengths))
    words = sum((each.words for each in found), Counter[str]())
    per_word = {f"deliberation/{word}": 1000 * words[word] / tokens for word in DELIBERATION}
    return {
        **{f"response_tokens/p{q}": quantile(lengths, q) for q in QUANTILES},
        "terminal_loops": sum(each.loops for each in found) / max(1, len(lengths)),
        "appeals": sum(each.appeals for each in found) / max(1, len(lengths)),
        f"distinct_{GRAM}": fmean(each.distinct for each in found) if found else 1.0,
        **({"deliberation": 1000 * words.total() / tokens, **per_word} if has_words else {}),
    }


def quantile(ordered: Sequence[int], percent: int) -> float:
    """The smallest value that at least so many percent do not exceed; 0 of nothing."""
    return float(ordered[max(0, -(-percent * len(ordered) // 100) - 1)]) if ordered else 0.0


def ends_in_loop(token_ids: Sequence[int]) -> bool:
    """Whether the last tokens repeat, whatever of the last period was cut off."""
    return any(
        period + repeated >= max(LEAST_LOOP, LEAST_PERIODS * period)
        for period in range(1, min(LONGEST_PERIOD, len(token_ids) - 1) + 1)
        for repeated in (repeats(token_ids, period),)
    )


def repeats(token_ids: Sequence[int], period: int) -> int:
    """How many of the last tokens equal the one a period before them."""
    last = len(token_ids) - 1
    place = last
    while place >= period and token_ids[place] == token_ids[place - period]:
        place -= 1
    return last - place


def has_words(chat: Chat) -> bool:
    """Whether some word of deliberation is a token of its own: a tokenizer of characters or bytes,
    or of another language, has none."""
    encode = chat.tokenizer.encode
    return any(len(encode(f" {word}", add_special_tokens=False)) == 1 for word in DELIBERATION)
