"""Grading 1,000 responses like GSM8K's, beside a training step on as many tokens.

The step is the cheapest there is: forward, cross-entropy, backward and AdamW of the embedded model
of 0.38 M parameters, to which a byte is a token, on one thread, without sampling and without a
teacher. A model that solves such problems has a thousand times as many. Both sides are in CPU
seconds, those of the worker processes counted in; what starting these takes, once in a run, is
told apart. Exits 1 when grading takes 5 % of the step or more.

    python scripts/bench/grading.py --benchmarks FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random

import torch
from measure import ROOT, Bar, print_bars
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(ROOT))

from rewards.math import grade, pool

RESPONSES = 1000
BATCH = 8
LONGEST = 1024
"""Tokens that the embedded model has positions for."""
MOST = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--benchmarks", type=Path, default=ROOT.parent / "shared" / "benchmarks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.benchmarks / "gsm8k_test.jsonl"
    if not path.is_file():
        print(f"there is no {path}; name the folder that has it with --benchmarks")
        return 0
    pairs = written([json.loads(line) for line in path.read_text().splitlines()])

    began = cpu_seconds()
    pool.ask({"golds": ["1"], "given": "2"}, 60)
    start = cpu_seconds() - began
    began = cpu_seconds()
    statuses = Counter(grade(response, gold).status for response, gold in pairs)
    grading = cpu_seconds() - began
    tokens = [min(len(response.encode()), LONGEST) for response, _ in pairs]
    training = step_seconds(tokens)

    print(f"load average {os.getloadavg()[0]:.1f}; {RESPONSES} responses, {sum(tokens)} tokens")
    print(", ".join(f"{status} {count}" for status, count in statuses.most_common()))
    print(f"starting the workers {start:.2f} CPU s, grading {grading:.3f}, a step {training:.1f}")
    bar = Bar("grading over a training step", grading / training, MOST)
    print_bars([bar])
    return int(not bar.holds)


def written(rows: Sequence[dict[str, str]]) -> list[tuple[str, str]]:
    """Responses and golds: of ten six are right, two wrong, one has no box, one boxes a formula."""
    random, pairs = Random(0), list[tuple[str, str]]()
    for index, row in enumerate(random.sample(list(rows), RESPONSES)):
        work, _, final = row["answer"].partition("####")
        gold = final.strip().replace(",", "")
        ends = [rf"\boxed{{{gold}}}"] * 6 + [rf"\boxed{{{random.randrange(999)}}}"] * 2
        ends += [f"The answer is {gold}.", rf"\boxed{{{gold} \cdot {index} / {index + 1}}}"]
        pairs.append((f"{work}{ends[index % 10]}", gold))
    return pairs


def cpu_seconds() -> float:
    """Of this process, its nursery and that one's workers."""
    ticks = os.sysconf("SC_CLK_TCK")
    parents: dict[int, tuple[int, float]] = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            used = (int(fields[11]) + int(fields[12])) / ticks
            parents[int(entry.name)] = int(fields[1]), used
    mine = {child for child, (above, _) in parents.items() if above == os.getpid()}
    family = {child for child, (above, _) in parents.items() if above in mine} | mine
    return time.process_time() + sum(parents[child][1] for child in family)


def step_seconds(tokens: Sequence[int]) -> float:
    """CPU seconds of one optimizer step on random responses of these lengths, sorted so that
    little is padded."""
    model = AutoModelForCausalLM.from_pretrained(ROOT / "data" / "tiny")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    lengths = sorted(tokens)
    began = time.process_time()
    for start in range(0, len(lengths), BATCH):
        width = lengths[start : start + BATCH][-1]
        ids = torch.randint(model.config.vocab_size, (BATCH, width))
        (model(input_ids=ids, labels=ids).loss / len(lengths)).backward()
    optimizer.step()
    return time.process_time() - began


if __name__ == "__main__":
    sys.exit(main())
