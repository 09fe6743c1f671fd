"""The loop: sample, judge, show the teacher, score, update, follow: the algorithm in order."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed

from opd.evaluation.evaluator import Measurement, before_and_after, measure
from opd.learner.batch import assemble, pack, to_device
from opd.learner.checkpoint import claim, library_versions
from opd.learner.learner import Learner
from opd.learner.model import save_causal
from opd.privileged import Group, Problem, Trajectory
from opd.recipe import Recipe
from opd.run import Run, open_run
from opd.types import Batch, Update


def train(recipe: Recipe) -> Mapping[str, object]:
    """Run `recipe`, or take it up again, and return what stands in its summary.json.

    Raises OpdError, with the last checkpoint on disk, when something is at fault.
    """
    accelerator = Accelerator()
    set_seed(recipe.seed)
    alone = claim(Path(recipe.output), recipe.tree)
    with alone if accelerator.is_main_process else nullcontext():
        run = open_run(recipe, accelerator)
        try:
            run.restore()
            run.verify_sync()
            take_steps(run)
            return close(run)
        finally:
            run.log.close()
            run.sampler.engine.close()


def take_steps(run: Run) -> None:
    """Every step that is left."""
    recipe, learner, teacher = run.recipe, run.learner, run.recipe.teacher
    if not run.progress.before:
        run.progress.before = {m.benchmark: m for m in evaluate(run)}
    for step in range(run.progress.step, recipe.steps):
        started = time.perf_counter()
        problems = run.stream.batch(step, recipe.problems_per_step)
        groups = collect(run, problems, step)
        sampled = time.perf_counter()
        views = needed_views(learner, step)
        trajectories = annotate(run, groups, views)
        log_rollouts(run, trajectories, views, step)
        updates = []
        for share in shares(trajectories, recipe.updates_per_step):
            batches = micro_batches(run, share)
            scores = teacher.score(batches, views, learner)
            updates.append(learner.update(batches, scores, step))
        teacher.weights.follow(learner)
        ended = time.perf_counter()
        record(run, groups, updates, sampled - started, ended - sampled)
        every = recipe.evaluation.every
        if every and run.progress.step % every == 0 and run.progress.step < recipe.steps:
            evaluate(run)
        if recipe.checkpoint.every and run.progress.step % recipe.checkpoint.every == 0:
            run.save()


def collect(run: Run, problems: Sequence[Problem], step: int) -> list[Group]:
    """This rank's rollouts of a step, judged."""
    mine = problems[run.accelerator.process_index :: run.accelerator.num_processes]
    with run.awake() as sampler:
        drawn = run.recipe.source.collect(mine, sampler, run.recipe.sampling, step)
    return [
        Group(problem, tuple(rollouts), tuple(run.judge(rollouts)))
        for problem, rollouts in zip(mine, drawn, strict=True)
    ]


def needed_views(learner: Learner, step: int) -> tuple[str, ...]:
    """The views that some active term reads, each once."""
    read = (view for term in learner.active(step).values() for view in term.views)
    return tuple(dict.fromkeys(read))


def annotate(run: Run, groups: Sequence[Group], views: Sequence[str]) -> list[Trajectory]:
    """Judged rollouts with their advantage and what the teacher reads before them.

    A rollout without a verdict is left out. A teacher prompt that leaves no room for its response
    counts as absent: nothing is cut.
    """
    trajectories = []
    for group in groups:
        advantages = run.recipe.credit(group)
        for index, (rollout, verdict) in enumerate(
            zip(group.rollouts, group.verdicts, strict=True)
        ):
            if verdict.status == "no_verdict":
                continue
            seen = run.recipe.teacher.contexts(group, index, views, run.chat)
            room = run.context_length - len(rollout.token_ids)
            fitting = {name: ids for name, ids in seen.items() if len(ids) <= room}
            trajectories.append(
                Trajectory(rollout, verdict, advantages[index], group.pass_rate, fitting)
            )
    return trajectories


def shares(trajectories: Sequence[Trajectory], count: int) -> list[Sequence[Trajectory]]:
    """`count` runs of neighbours, as even as can be."""
    ends = [len(trajectories) * i // count for i in range(count + 1)]
    return [trajectories[start:end] for start, end in pairwise(ends)]


def micro_batches(run: Run, trajectories: Sequence[Trajectory]) -> list[Batch]:
    """Micro-batches on the learner's device."""
    batches = pack(
        trajectories,
        tokens_per_batch=run.recipe.tokens_per_batch,
        packing=run.recipe.packing,
        pad_id=run.chat.pad_id,
    )
    return [to_device(batch, run.accelerator.device) for batch in batches]


def record(
    run: Run,
    groups: Sequence[Group],
    updates: Sequence[Update],
    sampling_seconds: float,
    learning_seconds: float,
) -> None:
    """Count the step as done and log what it did."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    drawn = [len(r.token_ids) for r in rollouts if r.policy_step >= 0]
    local = {
        "rollouts": len(rollouts),
        "response_tokens": sum(len(r.token_ids) for r in rollouts),
        "generated": sum(drawn),
        "success": sum(v.success for v in verdicts),
        "reward": sum(v.reward for v in verdicts),
        "no_answer": sum(v.status == "no_answer" for v in verdicts),
        "no_verdict": sum(v.status == "no_verdict" for v in verdicts),
        "truncated": sum(r.finish == "length" for r in rollouts),
    }
    ranks = gather_object([local])
    total = {name: sum(rank[name] for rank in ranks) for name in local}
    progress = run.progress
    progress.step += 1
    progress.seconds += sampling_seconds + learning_seconds
    progress.generated_tokens += total["generated"]
    trained = sum(update.tokens for update in updates)
    progress.learner_tokens += trained
    count = total.pop("rollouts")
    generated = total.pop("generated")
    metrics = {name: value / count for name, value in total.items()}
    for name in updates[-1].metrics:
        metrics[name] = sum(u.metrics.get(name, 0.0) for u in updates) / len(updates)
    metrics |= {
        "learning_rate": updates[-1].learning_rate,
        "grad_norm": max(update.grad_norm for update in updates),
        "generated_tokens_per_second": generated / sampling_seconds,
        "learner_tokens_per_second": trained / learning_seconds,
    }
    run.log.update(progress.step, progress.seconds, progress.generated_tokens, metrics)


def log_rollouts(
    run: Run, trajectories: Sequence[Trajectory], views: Sequence[str], step: int
) -> None:
    """Keep a few rollouts with what the student and its teachers think of every token."""
    recipe, chat = run.recipe, run.chat
    shown = trajectories[: recipe.rollouts_logged]
    last = step == recipe.steps - 1
    if not shown or not (step % recipe.log_rollouts_every == 0 or last):
        return
    for trajectory in shown:
        batch = to_device(
            assemble([trajectory], packing=False, pad_id=chat.pad_id), run.accelerator.device
        )
        scores = recipe.teacher.score([batch], views, run.learner)[0]
        student = run.learner.logprobs(batch.student, batch.target_ids)
        rollout = trajectory.rollout
        run.log.rollout(
            {
                "step": step,
                "prompt_id": rollout.prompt.id,
                "question": rollout.prompt.question,
                "text": rollout.text,
                "finish": rollout.finish,
                "status": trajectory.verdict.status,
                "reward": trajectory.verdict.reward,
                "tokens": chat.pieces(rollout.token_ids),
                "student_logprob": student.tolist(),
                "teacher_logprob": {
                    name: seen.logprob.tolist()
                    for name, seen in scores.items()
                    if name in trajectory.views
                },
                "teacher_entropy": {
                    name: seen.entropy.tolist()
                    for name, seen in scores.items()
                    if name in trajectory.views
                },
                "views": {name: chat.decoded(ids) for name, ids in trajectory.views.items()},
            }
        )


def evaluate(run: Run) -> list[Measurement]:
    """Measure every benchmark under the current weights and log it."""
    started = time.perf_counter()
    protocol = run.recipe.evaluation
    sampling = protocol.sampling or run.recipe.sampling
    with run.awake() as sampler:
        measured = [
            measure(
                benchmark,
                sampler,
                sampling,
                protocol.samples,
                rank=run.accelerator.process_index,
                ranks=run.accelerator.num_processes,
            )
            for benchmark in run.benchmarks
        ]
    run.progress.seconds += time.perf_counter() - started
    for measurement in measured:
        run.log.evaluation(
            run.progress.step, run.progress.seconds, run.progress.generated_tokens, measurement
        )
    return measured


def close(run: Run) -> Mapping[str, object]:
    """Measure again, write the summary, the last checkpoint and a plain model folder."""
    recipe, progress = run.recipe, run.progress
    after = evaluate(run)
    run.save()
    output = Path(recipe.output)
    summary = {
        "name": output.name,
        **{m.benchmark: before_and_after(progress.before[m.benchmark], m) for m in after},
        "generated_tokens": progress.generated_tokens,
        "learner_tokens": progress.learner_tokens,
        "seconds": progress.seconds,
        "steps": progress.step,
        "seed": recipe.seed,
        "versions": library_versions(),
    }
    if run.accelerator.is_main_process:
        save_causal(run.learner.model, output / "model")
        run.chat.tokenizer.save_pretrained(output / "model")
        run.log.summary(summary)
    return summary
