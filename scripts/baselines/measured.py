"""A trainer of TRL on a recipe's model, problems, reward and sampling, measured as a run is.

It meets the problems in the order of a run with the same seed, is asked the benchmarks at the same
steps with the same seeds, and leaves the same files: metrics.jsonl, summary.json, model/. One that
was killed starts again from the first step, because TRL's trainers do not keep all of their state.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from opd.config import build, load_recipe, locate
from opd.errors import OpdError, RecipeError
from opd.evaluation.evaluator import Measurement, before_and_after, measure
from opd.learner.checkpoint import claim, library_versions
from opd.learner.model import merged_weights, save_causal
from opd.log import Log, Spent
from opd.privileged import Problem
from opd.problems import Stream
from opd.recipe import Recipe
from opd.reward import Judge
from opd.rollout.chat import Chat
from opd.run import open_benchmark, open_sampler
from opd.teacher.view import Shown
from opd.types import Prompt, Rollout

Trainer = Any
"""A transformers Trainer; TRL's trainers share no type of their own."""

IGNORED = -100
"""The label of a token that is not learned."""

NAMES = {
    "completions/mean_length": "response_tokens",
    "reward": "reward",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "loss": "loss/trl",
}
"""What TRL logs, and what a run calls it."""


def baseline(name: str, recipe: str, open_trainer: Callable[[Recipe], Trainer]) -> None:
    """The command line of one baseline: the settings of `recipe`, changed by key=value.

    Raises RecipeError where TRL's trainer cannot do what the recipe asks for.
    """
    try:
        settings = [f"output=runs/{name}", *sys.argv[1:]]
        run_baseline(name, build(Recipe, load_recipe(recipe, settings)), open_trainer)
    except OpdError as error:
        raise SystemExit(str(error)) from error


def run_baseline(name: str, recipe: Recipe, open_trainer: Callable[[Recipe], Trainer]) -> None:
    """Train and measure, unless the recipe's folder holds this very baseline, finished."""
    output = Path(recipe.output)
    with claim(output, {**recipe.tree, "trainer": name}):
        if (output / "summary.json").exists():
            print(f"{output} holds this very baseline, finished")
            return
        trainer = open_trainer(recipe)
        followed = Measured(recipe, trainer)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(followed)
        trainer.train()
        followed.close()


class Measured(TrainerCallback):
    """Logs a trainer's steps and asks it the benchmarks as the loop does."""

    def __init__(self, recipe: Recipe, trainer: Trainer) -> None:
        self.recipe, self.trainer = recipe, trainer
        self.output = Path(recipe.output)
        self.log = Log(self.output, trainer.accelerator, recipe)
        self.sampler = open_sampler(recipe)
        self.benchmarks = [open_benchmark(name, recipe) for name in recipe.benchmarks]
        self.before: Sequence[Measurement] = ()
        self.responses = responses_per_step(recipe)
        self.spent = Spent(0, 0.0, 0, 0)

    def on_train_begin(self, *arguments: Any, **named: Any) -> None:
        self.started = time.perf_counter()
        self.before = self.evaluate()

    def on_log(self, *arguments: Any, logs: Mapping[str, float], **named: Any) -> None:
        """After every step; TRL's last word, about the whole training, is no step."""
        if "loss" not in logs:
            return
        step = self.trainer.state.global_step
        drawn = round(logs.get("completions/mean_length", 0.0) * self.responses)
        learned = drawn or written_tokens(self.trainer, step, self.responses)
        self.spent = Spent(
            step,
            self.seconds,
            self.spent.generated_tokens + drawn,
            self.spent.learner_tokens + learned,
        )
        self.log.update(self.spent, {NAMES[key]: logs[key] for key in NAMES if key in logs})
        every = self.recipe.evaluation.every
        if every and step % every == 0 and step < self.recipe.steps:
            self.evaluate()

    def evaluate(self) -> list[Measurement]:
        """Every benchmark under the trainer's current weights."""
        protocol, step = self.recipe.evaluation, self.spent.step
        self.sampler.engine.load(merged_weights(self.trainer.model), step)
        sampling = protocol.sampling or self.recipe.sampling
        measured = [
            measure(benchmark, self.sampler, sampling, protocol.samples)
            for benchmark in self.benchmarks
        ]
        self.spent = Spent(
            step, self.seconds, self.spent.generated_tokens, self.spent.learner_tokens
        )
        for measurement in measured:
            self.log.evaluation(self.spent, measurement)
        return measured

    def close(self) -> None:
        """Measure again and leave a summary and a plain model folder."""
        after = self.evaluate()
        save_causal(self.trainer.model, self.output / "model")
        self.sampler.chat.tokenizer.save_pretrained(self.output / "model")
        pairs = zip(self.before, after, strict=True)
        self.log.summary(
            {
                "name": self.output.name,
                **{new.benchmark: before_and_after(old, new) for old, new in pairs},
                "generated_tokens": self.spent.generated_tokens,
                "learner_tokens": self.spent.learner_tokens,
                "seconds": self.spent.seconds,
                "steps": self.spent.step,
                "seed": self.recipe.seed,
                "versions": library_versions(),
                "verdicts": dict(self.recipe.reward.provenance()),
            }
        )
        self.log.close()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


def training(recipe: Recipe) -> dict[str, Any]:
    """The arguments that all trainers share."""
    optimizer, output = recipe.optimizer, str(Path(recipe.output) / "trl")
    rates = {optimizer.learning_rate.at(step, recipe.steps) for step in range(recipe.steps)}
    if len(rates) > 1 or recipe.updates_per_step > 1:
        raise RecipeError(
            "optimizer.learning_rate, updates_per_step: the baselines take one step a batch at a "
            "constant rate; set optimizer.learning_rate to a number and updates_per_step=1"
        )
    return {
        "output_dir": output,
        "per_device_train_batch_size": responses_per_step(recipe),
        "max_steps": recipe.steps,
        "learning_rate": rates.pop(),
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "weight_decay": optimizer.weight_decay,
        "adam_beta1": optimizer.beta1,
        "adam_beta2": optimizer.beta2,
        "max_grad_norm": optimizer.max_grad_norm,
        "gradient_checkpointing": False,
        "bf16": recipe.model.dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": recipe.seed,
    }


def sampling(recipe: Recipe) -> dict[str, Any]:
    """The arguments that trainers that sample share on top."""
    drawn = recipe.sampling
    return {
        "num_generations": rollouts_per_problem(recipe),
        "max_completion_length": drawn.max_response_tokens,
        "temperature": drawn.temperature,
        "top_p": drawn.top_p,
        "top_k": drawn.top_k,
        "shuffle_dataset": False,
    }


def model_of(recipe: Recipe) -> str:
    return locate(recipe.model.path)


def rollouts_per_problem(recipe: Recipe) -> int:
    """1 where answers are written. Raises RecipeError where nobody knows before they are read."""
    most = recipe.source.most_per_problem
    if not math.isfinite(most):
        raise RecipeError("source: a baseline samples or reads demonstrations; nothing is stored")
    return int(most)


def responses_per_step(recipe: Recipe) -> int:
    return recipe.problems_per_step * rollouts_per_problem(recipe)


def problems_in_order(recipe: Recipe) -> list[Problem]:
    """The problems of all steps, as a run with the same seed meets them."""
    stream = Stream(recipe.problems.problems(), recipe.seed)
    batches = (stream.batch(step, recipe.problems_per_step) for step in range(recipe.steps))
    return [problem for batch in batches for problem in batch]


def asked(recipe: Recipe) -> Dataset:
    """What trainers that are given a reward draw responses to."""
    problems = problems_in_order(recipe)
    rows = [{"prompt": messages_of(p.prompt), "id": p.prompt.id} for p in problems]
    return Dataset.from_list(rows)


def messages_of(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in prompt.messages]


def written_tokens(trainer: Trainer, step: int, problems: int) -> int:
    """Response tokens of the written answers that the step up to `step` learned."""
    rows = trainer.train_dataset[(step - 1) * problems : step * problems]
    return sum(label != IGNORED for labels in rows["labels"] for label in labels)


def reward_of(recipe: Recipe) -> Callable[..., list[float | None]]:
    """The recipe's reward as TRL calls one; None for a response that could not be judged."""
    problems = recipe.problems.problems()
    prompts = {problem.prompt.id: problem.prompt for problem in problems}
    judge, chat = Judge(recipe.reward, problems), Chat.open(model_of(recipe))

    def reward(completion_ids: list[list[int]], id: list[str], **named: Any) -> list[float | None]:
        rollouts = [
            Rollout(prompts[name], (), tuple(ids), (), 0, "stop", chat.text(ids))
            for name, ids in zip(id, completion_ids, strict=True)
        ]
        return [None if v.status == "no_verdict" else v.reward for v in judge(rollouts)]

    return reward


def template_of(view: object, question: str, text: str) -> str:
    """The template of a view for `str.format`, with the names `question` and `text` for its marks,
    so that TRL shows what the view shows."""
    if not isinstance(view, Shown):
        raise RecipeError("teacher.views: the baselines show one privileged text by a template")
    template = view.template.replace("{", "{{").replace("}", "}}")
    for mark, name in (("question", question), (view.mark, text)):
        template = template.replace(f"${mark}", f"{{{name}}}")
    return template.replace("$$", "$")
