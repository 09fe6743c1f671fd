"""The open parts of a recipe, and how a run is saved and taken up again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from opd.config import locate
from opd.errors import EngineError, RecipeError
from opd.evaluation.evaluator import Benchmark, Measurement
from opd.learner.batch import build_context, context_to
from opd.learner.checkpoint import Checkpoints, Saved, random_state, restore_random_state
from opd.learner.learner import Learner
from opd.learner.model import context_length
from opd.log import Log, Spent
from opd.parts import restore_state, state_of
from opd.pass_rate import counts
from opd.privileged import Group, Problem
from opd.problems import Stream
from opd.recipe import Recipe
from opd.reward import Judge
from opd.rollout.chat import Chat
from opd.rollout.engine import Sampling
from opd.rollout.sampler import Sampler

PROBE_TOKENS = 32


@dataclass
class Progress:
    """How far a run has come; kept in every checkpoint."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Spent in training and evaluation, over all sessions of the run."""
    generated_tokens: int = 0
    """Response tokens drawn for training, over all ranks; evaluations are not counted."""
    learner_tokens: int = 0
    """Response tokens that entered an update."""
    before: dict[str, Measurement] = field(default_factory=dict)
    """Benchmark to its measurement before the first step."""

    @property
    def spent(self) -> Spent:
        return Spent(self.step, self.seconds, self.generated_tokens, self.learner_tokens)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for item in fields(self):
            setattr(self, item.name, state[item.name])
        self.before = {name: Measurement(**row) for name, row in state["before"].items()}


@dataclass(frozen=True)
class Run:
    """Everything that the loop works with."""

    recipe: Recipe
    accelerator: Accelerator
    chat: Chat
    stream: Stream
    judge: Judge
    learner: Learner
    sampler: Sampler
    context_length: int
    """Positions of the model, for teacher prompts and their responses."""
    benchmarks: tuple[Benchmark, ...]
    checkpoints: Checkpoints
    good: Checkpoints
    """The last state whose numbers were all within the guard's limits."""
    log: Log
    progress: Progress
    probed: tuple[Group, ...]
    """What the recipe's probe watches."""

    @contextmanager
    def awake(self, weights: Iterator[tuple[str, Tensor]] | None = None) -> Iterator[Sampler]:
        """The sampler with the learner's current weights, or with others; its memory is freed again
        at the end."""
        engine = self.sampler.engine
        engine.wake()
        engine.load(self.learner.weights() if weights is None else weights, self.progress.step)
        yield self.sampler
        engine.sleep()

    def draw(self, problems: Sequence[Problem], count: int, occasion: str) -> list[Group]:
        """This rank's share of `problems` with `count` rollouts each under the current weights,
        judged: drawn to be measured, not trained on. What all ranks draw counts as generated."""
        mine = problems[self.accelerator.process_index :: self.accelerator.num_processes]
        with self.awake() as sampler:
            prompts = [problem.prompt for problem in mine]
            drawn = sampler.draw(prompts, self.recipe.sampling, count, occasion)
        tokens = sum(len(rollout.token_ids) for rollouts in drawn for rollout in rollouts)
        self.progress.generated_tokens += sum(gather_object([tokens]))
        return [
            Group(problem, tuple(rollouts), tuple(self.judge(rollouts)))
            for problem, rollouts in zip(mine, drawn, strict=True)
        ]

    def few(self, count: int) -> tuple[Problem, ...]:
        """`count` training problems, always the same; all where there are fewer."""
        shuffled = replace(self.stream, seed=self.stream.seed + 1)
        return shuffled.batch(0, min(count, len(shuffled.problems)))

    def solved(self, count: int) -> float:
        """The share of `count` training problems, always the same, that one rollout each solves
        under the current weights; 0 where none is judged. The same on all ranks."""
        drawn = self.draw(self.few(count), 1, f"extrapolate/{self.progress.step}")
        counted: list[tuple[int, int]] = gather_object([counts(group) for group in drawn])
        judged = sum(known for _, known in counted)
        return sum(successes for successes, _ in counted) / judged if judged else 0.0

    def save(self, to: Checkpoints | None = None) -> None:
        """Write a checkpoint of everything that the next step depends on."""
        if not self.accelerator.is_main_process:
            return
        learner = self.learner.state_dict()
        weights = learner.pop("weights")
        state = {
            "learner": learner,
            "parts": state_of(self.recipe),
            "progress": self.progress.state_dict(),
            "random": random_state(),
        }
        (to or self.checkpoints).save(self.progress.step, state, weights)

    def restore(self) -> None:
        """Go back to the newest checkpoint, if there is one."""
        latest = self.checkpoints.latest()
        if latest is None:
            return
        self.take_up(self.checkpoints.load(latest))
        self.log.resume(latest)

    def roll_back(self) -> None:
        """Go back to the last good state, bit for bit, with a lower learning rate.

        What was spent since stays spent, and what was logged since is kept beside.
        """
        self.accelerator.wait_for_everyone()
        guard, spent = self.recipe.guard, self.progress.spent
        times = guard.rolled_back + 1
        step = self.good.latest()
        assert step is not None, "a guard that goes back keeps the state before the first step"
        self.take_up(self.good.load(step))
        guard.rolled_back = times
        self.learner.learning_rate_scale = guard.learning_rate_factor**times
        self.progress.seconds = spent.seconds
        self.progress.generated_tokens = spent.generated_tokens
        self.progress.learner_tokens = spent.learner_tokens
        self.log.go_back(step, times)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.checkpoints.drop_from(step)
        self.save()

    def take_up(self, saved: Saved) -> None:
        """Go on from a checkpoint."""
        self.learner.load_state_dict({**saved.state["learner"], "weights": saved.weights})
        restore_state(self.recipe, saved.state["parts"])
        self.progress.load_state_dict(saved.state["progress"])
        restore_random_state(saved.state["random"])

    def verify_sync(self) -> None:
        """Compare the engine's and the trainer's log-probs of one probe response after a sync.

        Raises EngineError when their mean difference exceeds the recipe's tolerance.
        """
        sampling = Sampling(
            max_response_tokens=min(PROBE_TOKENS, self.recipe.sampling.max_response_tokens),
            temperature=self.recipe.sampling.temperature,
        )
        prompt = self.stream.batch(0, 1)[0].prompt
        with self.awake() as sampler:
            rollout = sampler.draw([prompt], sampling, 1, "probe")[0][0]
        context = build_context(
            [rollout.prompt_ids], [rollout.token_ids], packing=False, pad_id=self.chat.pad_id
        )
        device = self.accelerator.device
        targets = torch.tensor(rollout.token_ids, device=device)
        own = self.learner.logprobs(context_to(context, device), targets)
        theirs = torch.tensor(rollout.logprobs, device=device)
        self.refuse_mismatch((own - theirs).abs().mean().item())

    def refuse_mismatch(self, difference: float) -> None:
        """Raise EngineError when log-probs of freshly synced weights differ by more than the
        recipe's tolerance, nats on average over tokens."""
        if not difference <= self.recipe.sync_tolerance:
            raise EngineError(
                f"engine, step {self.progress.step}: after taking the trainer's weights its "
                f"log-probs differ by {difference:.3g} nats on average "
                f"(sync_tolerance={self.recipe.sync_tolerance:g}), so it samples from another "
                "model; use engine=hf or raise sync_tolerance"
            )


def open_run(recipe: Recipe, accelerator: Accelerator) -> Run:
    """Open everything that a recipe names: the first moment that touches models and data."""
    if recipe.problems_per_step < accelerator.num_processes:
        raise RecipeError(
            f"problems_per_step: {recipe.problems_per_step} leave some of the "
            f"{accelerator.num_processes} processes without a problem; raise it"
        )
    problems = recipe.source.answered(recipe.problems.problems())
    kept = recipe.probe.kept(problems) if recipe.probe else ()
    stream = Stream(tuple(p for p in problems if p not in kept), recipe.seed)
    stream.batch(0, recipe.problems_per_step)  # too few problems are named before models are opened
    recipe.teacher.open_views(problems)
    judge = Judge(recipe.reward, problems)
    benchmarks = tuple(open_benchmark(name, recipe) for name in recipe.benchmarks)
    learner = open_learner(recipe, accelerator)
    sampler = open_sampler(recipe)
    output = Path(recipe.output)
    run = Run(
        recipe=recipe,
        accelerator=accelerator,
        chat=sampler.chat,
        stream=stream,
        judge=judge,
        learner=learner,
        sampler=sampler,
        context_length=context_length(recipe.model.path),
        benchmarks=benchmarks,
        checkpoints=Checkpoints(output / "checkpoints", recipe.tree, recipe.checkpoint.keep),
        good=Checkpoints(output / "good", recipe.tree, keep=1),
        log=Log(output, accelerator, recipe),
        progress=Progress(),
        probed=(),
    )
    if recipe.probe is None:
        return run
    with run.awake() as awake:
        return replace(run, probed=recipe.probe.groups(kept, awake, recipe.sampling, judge))


def open_learner(recipe: Recipe, accelerator: Accelerator) -> Learner:
    """The student and the teacher's weights as they are before the first step."""
    learner = Learner(
        recipe.model,
        recipe.terms,
        recipe.optimizer,
        accelerator,
        steps=recipe.steps,
        temperature=recipe.sampling.temperature or 1.0,
        max_response_tokens=recipe.sampling.max_response_tokens,
    )
    recipe.teacher.setup(learner)
    recipe.extrapolation.setup(learner)
    return learner


def open_sampler(recipe: Recipe) -> Sampler:
    """The recipe's engine on the model's own weights, with its chat template."""
    folder = locate(recipe.model.path)
    chat = Chat.open(folder, recipe.model.thinking)
    length = context_length(recipe.model.path)
    served = min(recipe.max_length or length, length)
    recipe.engine.open(folder, dtype=recipe.model.dtype, max_length=served, seed=recipe.seed)
    return Sampler(recipe.engine, chat, served, recipe.seed)


def open_benchmark(name: str, recipe: Recipe) -> Benchmark:
    """A benchmark of the recipe; the evaluator gets its prompts and a judge, never a Problem."""
    problems = recipe.benchmarks[name].problems()
    judge = Judge(recipe.reward, problems)
    return Benchmark(name, tuple(problem.prompt for problem in problems), judge)
