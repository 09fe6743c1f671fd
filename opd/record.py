"""What a step did, in numbers over all ranks, and a few of its rollouts token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from accelerate.utils import gather_object

from opd.evaluation.harm import Traits, has_words, signs, traits
from opd.learner.batch import assemble, to_device
from opd.objective.schedule import Constant, Schedule
from opd.parts import parts
from opd.privileged import Group, Trajectory
from opd.recipe import Recipe
from opd.run import Run
from opd.types import Update


def record_step(
    run: Run,
    groups: Sequence[Group],
    update: Update,
    sampling_seconds: float,
    learning_seconds: float,
) -> dict[str, float]:
    """Count the step as done, log what it did, and return the logged metrics."""
    sums = summed_over_ranks(rollout_sums(groups))
    progress = run.progress
    progress.step += 1
    progress.seconds += sampling_seconds + learning_seconds
    progress.generated_tokens += int(sums["generated"])
    progress.learner_tokens += update.tokens
    means = ("response_tokens", "success", "reward", "no_answer", "no_verdict", "truncated")
    metrics = {
        **{name: sums[name] / sums["rollouts"] for name in means},
        **signs(traits_over_ranks(groups), has_words=has_words(run.chat)),
        **update.metrics,
        **schedules(run.recipe),
        **run.recipe.pass_rate.metrics(),
        "learning_rate": update.learning_rate,
        "grad_norm": update.grad_norm,
        "generated_tokens_per_second": sums["generated"] / sampling_seconds,
        "learner_tokens_per_second": update.tokens / learning_seconds,
    }
    run.log.update(progress.spent, metrics)
    return metrics


def rollout_sums(groups: Sequence[Group]) -> dict[str, float]:
    """Counts and sums over this rank's rollouts; written responses are no generated tokens."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    return {
        "rollouts": len(rollouts),
        "response_tokens": sum(len(r.token_ids) for r in rollouts),
        "generated": sum(len(r.token_ids) for r in rollouts if r.policy_step >= 0),
        "truncated": sum(r.finish == "length" for r in rollouts),
        "success": sum(v.success for v in verdicts),
        "reward": sum(v.reward for v in verdicts),
        "no_answer": sum(v.status == "no_answer" for v in verdicts),
        "no_verdict": sum(v.status == "no_verdict" for v in verdicts),
    }


def traits_over_ranks(groups: Sequence[Group]) -> list[Traits]:
    """What the responses to each problem are like."""
    ranks = gather_object([[traits(group.rollouts) for group in groups]])
    return [found for rank in ranks for found in rank]


def summed_over_ranks(local: Mapping[str, float]) -> dict[str, float]:
    """The same names, each summed over all ranks."""
    ranks: list[Mapping[str, float]] = gather_object([dict(local)])
    return {name: sum(rank[name] for rank in ranks) for name in local}


def as_one(updates: Sequence[Update], metrics: Mapping[str, float]) -> Update:
    """What a step's updates did together: all tokens, the largest gradient norm, the last learning
    rate, and each metric's mean over the updates that report it, beside `metrics` of the step."""
    names = dict.fromkeys(name for update in updates for name in update.metrics)
    found = {n: [u.metrics[n] for u in updates if n in u.metrics] for n in names}
    return replace(
        updates[-1],
        grad_norm=max(update.grad_norm for update in updates),
        tokens=sum(update.tokens for update in updates),
        metrics={name: sum(values) / len(values) for name, values in found.items()} | dict(metrics),
    )


def schedules(recipe: Recipe) -> dict[str, float]:
    """The value in this step of every number that moves, under its YAML path."""
    return {
        f"schedule/{where}": part.now
        for where, part in parts(recipe)
        if isinstance(part, Schedule) and not isinstance(part, Constant)
    }


def record_rollouts(
    run: Run, trajectories: Sequence[Trajectory], views: Sequence[str], step: int
) -> None:
    """Log the first few rollouts of every so many steps, and of the last one."""
    recipe = run.recipe
    if step % recipe.log_rollouts_every and step != recipe.steps - 1:
        return
    for trajectory in trajectories[: recipe.rollouts_logged]:
        run.log.rollout({"step": step, **rollout_row(run, trajectory, views)})


def rollout_row(run: Run, trajectory: Trajectory, views: Sequence[str]) -> dict[str, object]:
    """A rollout with what the student and its teachers think of every token, before the update."""
    chat, rollout = run.chat, trajectory.rollout
    batch = assemble([trajectory], [0], packing=False, pad_id=chat.pad_id)
    batch = to_device(batch, run.accelerator.device)
    scores = run.recipe.teacher.score([trajectory], [batch], views, run.learner)[0]
    seen = {name: scores[name] for name in trajectory.views}
    student = run.learner.logprobs(batch.student, batch.target_ids)
    return {
        "prompt_id": rollout.prompt.id,
        "question": rollout.prompt.question,
        "text": rollout.text,
        "finish": rollout.finish,
        "status": trajectory.verdict.status,
        "reward": trajectory.verdict.reward,
        "tokens": chat.pieces(rollout.token_ids),
        "student_logprob": student.tolist(),
        "teacher_logprob": {name: scored.logprob.tolist() for name, scored in seen.items()},
        "teacher_entropy": {name: scored.entropy.tolist() for name, scored in seen.items()},
        "views": {
            name: run.recipe.teacher.weights_of(name).reads(chat).decoded(ids)
            for name, ids in trajectory.views.items()
        },
    }
