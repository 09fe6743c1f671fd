"""Give a trained model another tokenizer, so that it can teach across tokenizers.

The new vocabulary holds every byte and role of the old one under other ids, and merged tokens: a
letter with the equals sign after it, and the end of the reasoning. The model keeps its weights; a
merged token starts from its parts, and some steps on the model's own answers teach it to write
them.

    python scripts/make_foreign.py --model runs/quickstart/model --output runs/foreign
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from random import Random
from string import ascii_lowercase

import torch
from make_tiny import CONTEXT, END, IGNORED, PAD, START, byte_tokenizer, pad
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3ForCausalLM,
)
from transformers.utils.logging import disable_progress_bar

from opd.config import build, load_recipe
from opd.evaluation.evaluator import Benchmark, measure
from opd.problems import Stream
from opd.recipe import Recipe
from opd.rollout.chat import Chat
from opd.rollout.engine import Sampling
from opd.rollout.sampler import Sampler
from opd.run import open_benchmark
from opd.types import Rollout

MERGES = [*((letter, "=") for letter in ascii_lowercase), (";", "#")]
GREEDY = Sampling(max_response_tokens=56, temperature=0.0)
BATCH = 32


def merged_tokenizer() -> PreTrainedTokenizerFast:
    """The embedded model's characters, with MERGES."""
    return byte_tokenizer(MERGES, [START, END, PAD])


@torch.no_grad()
def carried_over(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """The model at `folder` under the new vocabulary: a merged token reads as the mean of its parts
    and is as likely as its first."""
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    old = AutoTokenizer.from_pretrained(folder).get_vocab()
    embedding, head = model.model.embed_tokens.weight.clone(), model.lm_head.weight.clone()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for token, index in tokenizer.get_vocab().items():
        parts = [old[token]] if token in old else [old[part] for part in token]
        model.model.embed_tokens.weight[index] = embedding[parts].mean(0)
        model.lm_head.weight[index] = head[parts[0]]
    end, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.config.update({"eos_token_id": end, "pad_token_id": padding})
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=padding)
    return model


def answers(recipe: Recipe, folder: Path) -> list[Rollout]:
    """What the model at `folder` says to every problem, greedily."""
    problems = Stream(recipe.problems.problems(), 0).problems
    sampler = opened(recipe, folder)
    drawn = sampler.draw([problem.prompt for problem in problems], GREEDY, 1, "foreign")
    return [rollouts[0] for rollouts in drawn]


def opened(recipe: Recipe, folder: Path) -> Sampler:
    recipe.engine.open(str(folder), dtype="float32", max_length=CONTEXT, seed=0)
    return Sampler(recipe.engine, Chat.open(str(folder)), CONTEXT, 0)


def teach(
    model: Qwen3ForCausalLM, chat: Chat, rollouts: Sequence[Rollout], steps: int, peak: float
) -> None:
    """Likelihood of `rollouts` in the new tokens; the rate falls to nothing."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.0)
    random = Random(0)
    model.train()
    for step in range(steps):
        rows: list[list[int]] = []
        labels: list[list[int]] = []
        for rollout in random.sample(rollouts, BATCH):
            prompt = chat.prompt_ids(rollout.prompt.messages)
            response = chat.response_ids(rollout.text)
            rows.append([*prompt, *response])
            labels.append([*([IGNORED] * len(prompt)), *response])
        logits = model(input_ids=pad(rows, chat.pad_id)[:, :-1]).logits
        targets = pad(labels, IGNORED)[:, 1:]
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = peak * (1 - step / steps)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:4d}  loss {loss.item():.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("runs/quickstart/model"))
    parser.add_argument("--output", type=Path, default=Path("runs/foreign"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    options = parser.parse_args()
    disable_progress_bar()
    torch.manual_seed(0)
    recipe = build(Recipe, load_recipe("quickstart"))
    tokenizer = merged_tokenizer()
    model = carried_over(options.model, tokenizer)
    if options.steps:
        rollouts = answers(recipe, options.model)
        teach(model, Chat(tokenizer), rollouts, options.steps, options.learning_rate)
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    held_out: Benchmark = open_benchmark("held_out", recipe)
    found = measure(held_out, opened(recipe, options.output), recipe.sampling, 4)
    print(f"held-out: sampled {100 * found.sampled:.1f} %, greedy {100 * found.greedy:.1f} %")


if __name__ == "__main__":
    main()
