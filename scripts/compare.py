"""How many generated tokens one recipe needs to reach what another reaches at its best.

The reference recipe is tuned first: each learning rate is run once, and the one that reaches the
highest held-out accuracy is run with every seed. A seed's target is the best accuracy that the
reference reached with it at any evaluation; as that is measured too, and the highest of many, the
lower end of its 95 % interval is a target of its own. Runs that exist are read, not repeated.

    python scripts/compare.py opsd grpo --learning-rates 1e-4 3e-4 1e-3 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from transformers.utils.logging import disable_progress_bar

from opd.config import build, load_recipe
from opd.loop import train
from opd.recipe import Recipe


class Point(NamedTuple):
    """One evaluation of the held-out problems."""

    accuracy: float
    """avg@k."""
    low: float
    """Lower end of its 95 % interval."""
    tokens: int
    """Generated before it."""


LEVELS = (0.6, 0.7, 0.8, 0.9)
"""Accuracies at which both are compared on their way."""


def run(recipe: str, output: Path, changes: Sequence[str]) -> list[Point]:
    """Train, or go on, and read the held-out curve back."""
    train(build(Recipe, load_recipe(recipe, [*changes, f"output={output}"])))
    lines = (output / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        Point(row["sampled"], row["ci95"][0], row["generated_tokens"])
        for row in rows
        if row["kind"] == "evaluation" and row["benchmark"] == "held_out"
    ]


def tokens_to(curve: Sequence[Point], target: float) -> float:
    """Tokens generated before the first evaluation at or above `target`; infinite if there is
    none."""
    return next((point.tokens for point in curve if point.accuracy >= target), math.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("candidate", help="the recipe whose tokens are counted")
    parser.add_argument("reference", help="the recipe that sets the target")
    parser.add_argument("--learning-rates", nargs="+", default=["1e-4", "3e-4", "1e-3"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--candidate-settings", nargs="*", default=[], metavar="key=value")
    parser.add_argument("--reference-settings", nargs="*", default=[], metavar="key=value")
    parser.add_argument("--output", type=Path, default=Path("runs/compare"))
    options = parser.parse_args()
    disable_progress_bar()

    def reference(rate: str, seed: int) -> list[Point]:
        output = options.output / f"{options.reference}-lr{rate}-seed{seed}"
        settings = [f"optimizer.learning_rate={rate}", f"seed={seed}"]
        return run(options.reference, output, [*options.reference_settings, *settings])

    tuned = {rate: max(reference(rate, options.seeds[0])) for rate in options.learning_rates}
    rate = max(tuned, key=lambda r: tuned[r])
    references = [reference(rate, seed) for seed in options.seeds]
    candidates = [
        run(
            options.candidate,
            options.output / f"{options.candidate}-seed{seed}",
            [*options.candidate_settings, f"seed={seed}"],
        )
        for seed in options.seeds
    ]
    print(f"{options.reference}, best held-out accuracy by learning rate, seed {options.seeds[0]}:")
    for name, highest in tuned.items():
        print(f"  {name}: {100 * highest.accuracy:.1f} %")
    print(f"tokens to an accuracy: {options.reference} at {rate}, {options.candidate}, ratio")
    best = f"best of {options.reference}"
    names = [*(f"{100 * level:.0f} %" for level in LEVELS), f"interval of {best}", best]
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for seed, theirs, mine in zip(options.seeds, references, candidates, strict=True):
        highest = max(theirs)
        targets = (*LEVELS, highest.low, highest.accuracy)
        for name, target in zip(names, targets, strict=True):
            spent, needed = tokens_to(theirs, target), tokens_to(mine, target)
            ratios[name].append(spent / needed)
            print(
                f"  seed {seed}, {name} ({100 * target:.1f} %): {spent:,}, {needed:,}, "
                f"{spent / needed:.1f}x"
            )
        both = f"{100 * highest.accuracy:.1f} %, {100 * max(mine).accuracy:.1f} %"
        print(f"  seed {seed}, best of each: {both}")
    for name, found in ratios.items():
        reached = [ratio for ratio in found if ratio > 0]
        mean = statistics.geometric_mean(reached) if reached else math.nan
        print(
            f"{name}: reached with {len(reached)} of {len(found)} seeds, there with {mean:.1f}x "
            "fewer tokens (geometric mean)"
        )


if __name__ == "__main__":
    main()
