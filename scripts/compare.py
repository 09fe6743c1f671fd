"""How many generated tokens one recipe needs to reach the best accuracy of another.

The reference recipe is tuned first: each learning rate is run once, and the one that reaches the
highest held-out accuracy is run with every seed. Its mean best accuracy is the target. Runs that
exist are taken up or read, so the command may be repeated.

    python scripts/compare.py opsd grpo --learning-rates 1e-4 3e-4 1e-3 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from opd.config import build, load_recipe
from opd.loop import train
from opd.recipe import Recipe

Curve = list[tuple[int, float]]
"""Generated tokens and held-out avg@k, in the order of a run."""


def run(recipe: str, output: Path, changes: Sequence[str]) -> Curve:
    """Train, or go on, and read the held-out curve back."""
    train(build(Recipe, load_recipe(recipe, [*changes, f"output={output}"])))
    lines = (output / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        (row["generated_tokens"], row["sampled"])
        for row in rows
        if row["kind"] == "evaluation" and row["benchmark"] == "held_out"
    ]


def best(curve: Curve) -> float:
    """The highest accuracy that a run reached at any evaluation."""
    return max(accuracy for _, accuracy in curve)


def tokens_to(curve: Curve, target: float) -> float:
    """Tokens generated before the first evaluation at or above `target`; infinite if there is
    none."""
    return next((tokens for tokens, accuracy in curve if accuracy >= target), math.inf)


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

    def reference(rate: str, seed: int) -> Curve:
        output = options.output / f"{options.reference}-lr{rate}-seed{seed}"
        settings = [f"optimizer.learning_rate={rate}", f"seed={seed}"]
        return run(options.reference, output, [*options.reference_settings, *settings])

    tuned = {rate: best(reference(rate, options.seeds[0])) for rate in options.learning_rates}
    rate = max(tuned, key=lambda r: tuned[r])
    references = [reference(rate, seed) for seed in options.seeds]
    target = statistics.mean(best(curve) for curve in references)
    candidates = [
        run(
            options.candidate,
            options.output / f"{options.candidate}-seed{seed}",
            [*options.candidate_settings, f"seed={seed}"],
        )
        for seed in options.seeds
    ]
    print(f"{options.reference}, best held-out avg by learning rate, seed {options.seeds[0]}:")
    for name, accuracy in tuned.items():
        print(f"  {name}: {100 * accuracy:.1f} %")
    print(f"target: {100 * target:.1f} %, the mean best of {len(options.seeds)} seeds at lr {rate}")
    for seed, mine, theirs in zip(options.seeds, candidates, references, strict=True):
        needed, spent = tokens_to(mine, target), tokens_to(theirs, best(theirs))
        print(
            f"  seed {seed}: {options.reference} reaches its best {100 * best(theirs):.1f} % after "
            f"{spent:,} tokens; {options.candidate} reaches the target after {needed:,} and "
            f"{100 * best(mine):.1f} % at best: {spent / needed:.1f}x fewer"
        )


if __name__ == "__main__":
    main()
