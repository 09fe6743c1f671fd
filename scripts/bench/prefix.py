"""A teacher's pass over responses that share a privileged prompt: read once, or before each.

Both ways are those of `opd.teacher.sweep`, on a random Qwen3 in float32 with one thread, and take
turns in one process. The ratio of seconds is compared with that of the tokens that are read. Exits
1 when a bar is missed. Takes about three minutes and 1 GiB.

    python scripts/bench/prefix.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from statistics import median

import torch
from measure import RESULTS, Bar, Cost, costing, print_bars, print_table, save
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from opd.learner.batch import Ids
from opd.teacher.sweep import sweep, whole

RESPONSES = 8
SHAPES = ((512, 128), (1024, 128), (256, 256))
"""Tokens of the prompt and of each response."""
TOKENS_PER_BATCH = 32_768
CONFIG = Qwen3Config(
    vocab_size=1_000,
    hidden_size=512,
    intermediate_size=1_536,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    max_position_embeddings=4_096,
)
SEED = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = Qwen3ForCausalLM(CONFIG).eval()
    found = [measured(model, *shape, options.rounds) for shape in SHAPES]
    print_table(
        ("prompt/response", "plain CPU s", "shared CPU s", "tokens", "seconds", "quotient", "gap"),
        [
            (
                f"{row['prompt']}/{row['response']}",
                f"{row['plain_seconds']:.3f}",
                f"{row['shared_seconds']:.3f}",
                f"{row['token_ratio']:.2f}",
                f"{row['time_ratio']:.2f}",
                f"{row['quotient']:.2f}",
                f"{row['largest_difference']:.1e}",
            )
            for row in found
        ],
    )
    bars = [bar for row in found for bar in bars_of(row)]
    print_bars(bars)
    save(
        options.results / "prefix.json",
        {"seed": SEED, "rounds": options.rounds, "shapes": found},
        bars,
    )
    return int(any(bar.holds is False for bar in bars))


def measured(
    model: Qwen3ForCausalLM, prompt_tokens: int, response_tokens: int, rounds: int
) -> dict[str, float]:
    """Medians of both ways, which take turns; the first turn of each is not counted."""
    random = Random(SEED)
    prompts = [ids(random, prompt_tokens)] * RESPONSES
    responses = [ids(random, response_tokens) for _ in range(RESPONSES)]

    def shared() -> Iterator[tuple[int, Tensor]]:
        return sweep(model, prompts, responses, tokens_per_batch=TOKENS_PER_BATCH, packing=False)

    def plain() -> Iterator[tuple[int, Tensor]]:
        everyone = range(RESPONSES)
        return whole(model, prompts, responses, everyone, TOKENS_PER_BATCH, packing=False)

    turns = [(timed(shared), timed(plain)) for _ in range(1 + rounds)]
    difference = max(
        float((found[index] - expected[index]).abs().max())
        for (_, found), (_, expected) in turns
        for index in range(RESPONSES)
    )
    ours, theirs = ([turn[way][0] for turn in turns[1:]] for way in (0, 1))
    seconds = median(cost.seconds for cost in ours), median(cost.seconds for cost in theirs)
    read = prompt_tokens + RESPONSES * response_tokens
    token_ratio = RESPONSES * (prompt_tokens + response_tokens) / read
    time_ratio = seconds[1] / seconds[0]
    return {
        "responses": RESPONSES,
        "prompt": prompt_tokens,
        "response": response_tokens,
        "shared_seconds": seconds[0],
        "plain_seconds": seconds[1],
        "shared_peak_mib": median(cost.peak_mib for cost in ours),
        "plain_peak_mib": median(cost.peak_mib for cost in theirs),
        "token_ratio": token_ratio,
        "time_ratio": time_ratio,
        "quotient": time_ratio / token_ratio,
        "largest_difference": difference,
    }


@torch.no_grad()
def timed(reading: Callable[[], Iterator[tuple[int, Tensor]]]) -> tuple[Cost, dict[int, Tensor]]:
    """What it takes to read everything, and what is found: index to `[T, D]` hidden states."""
    with costing() as cost:
        found = dict(reading())
    return cost, found


def bars_of(row: Mapping[str, float]) -> list[Bar]:
    """What a shape has to keep."""
    shape = f"{row['prompt']}/{row['response']}"
    return [
        Bar(f"{shape}: seconds saved / tokens saved", row["quotient"], 0.85, at_least=True),
        Bar(f"{shape}: largest difference of hidden states", row["largest_difference"], 1e-4),
    ]


def ids(random: Random, count: int) -> Ids:
    return tuple(random.randrange(CONFIG.vocab_size) for _ in range(count))


if __name__ == "__main__":
    sys.exit(main())
