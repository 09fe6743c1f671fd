"""What the samples of a benchmark say of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from opd.evaluation.metrics import Estimate, majority, pass_at, share_over_problems
from opd.evaluation.transcript import Kind, Sample

Groups = Mapping[str, Sequence[Sample]]
"""Problem to its samples."""


@dataclass(frozen=True)
class Score:
    """One benchmark under one model. Shares are in [0, 1].

    A sample that its grader failed on (`no_verdict`) is left out of every accuracy, and a problem
    that has too few others is left out of that one; a problem that the model could not be asked
    counts as missed. An estimate is None where nothing is left to estimate from.
    """

    problems: int
    samples: int
    """Responses a problem."""
    average: Estimate | None
    """avg@samples."""
    pass_at: dict[int, Estimate | None]
    """Of every k from 1 to `samples`."""
    majority: Estimate | None
    """maj@samples; None also where the reward names no answers."""
    greedy: Estimate | None
    mean_length: float | None
    """Response tokens."""
    truncated: float | None
    no_answer: float | None
    no_verdict: float | None
    """Shares of the sampled responses, None where the model could be asked nothing."""
    does_not_fit: tuple[str, ...]
    unreadable: tuple[str, ...]
    """Problems that the model could not be asked."""

    def as_row(self) -> dict[str, object]:
        """For a summary: what people call each number, to what it is."""
        count = self.samples
        passes = {f"pass@{k}": row(found) for k, found in self.pass_at.items()}
        return {
            "problems": self.problems,
            "samples": count,
            f"avg@{count}": row(self.average),
            **passes,
            f"maj@{count}": row(self.majority),
            "greedy": row(self.greedy),
            "mean_length": self.mean_length,
            "truncated": self.truncated,
            "no_answer": self.no_answer,
            "no_verdict": self.no_verdict,
            "does_not_fit": list(self.does_not_fit),
            "unreadable": list(self.unreadable),
        }


def row(estimate: Estimate | None) -> dict[str, object] | None:
    if estimate is None:
        return None
    return {"value": estimate.value, "ci95": [estimate.low, estimate.high]}


def score(samples: Sequence[Sample], count: int) -> Score:
    """The score of a benchmark with `count` responses a problem; `samples` are all of them."""
    sampled, greedy = grouped(samples, "sampled"), grouped(samples, "greedy")
    asked = [sample for group in sampled.values() for sample in group if sample.was_asked]
    firsts = [group[0] for group in sampled.values()]
    return Score(
        problems=len(sampled),
        samples=count,
        average=estimate(sampled, lambda group: share(group, 1)),
        pass_at={k: estimate(sampled, at(k)) for k in range(1, count + 1)},
        majority=estimate(sampled, majority_of) if names_answers(asked) else None,
        greedy=estimate(greedy, lambda group: share(group, 1)),
        mean_length=mean([sample.tokens for sample in asked]),
        truncated=mean([sample.finish == "length" for sample in asked]),
        no_answer=mean([sample.status == "no_answer" for sample in asked]),
        no_verdict=mean([sample.status == "no_verdict" for sample in asked]),
        does_not_fit=tuple(s.problem for s in firsts if s.finish == "does_not_fit"),
        unreadable=tuple(s.problem for s in firsts if s.finish == "unreadable"),
    )


def grouped(samples: Sequence[Sample], kind: Kind) -> dict[str, list[Sample]]:
    """Each problem's samples of that kind, in the order of their indices."""
    groups: dict[str, list[Sample]] = {}
    for sample in sorted((s for s in samples if s.kind == kind), key=lambda s: s.sample):
        groups.setdefault(sample.problem, []).append(sample)
    return groups


def successes(samples: Sequence[Sample], kind: Kind) -> dict[str, list[bool]]:
    """Problem to whether each judged response passed."""
    groups = grouped(samples, kind).items()
    return {name: [s.passed for s in group if s.is_judged] for name, group in groups}


def estimate(groups: Groups, value: Callable[[Sequence[Sample]], float | None]) -> Estimate | None:
    """The mean of `value`, given a problem's judged samples, over the problems that have one."""
    judged = [[sample for sample in group if sample.is_judged] for group in groups.values()]
    values = [found for group in judged if group and (found := value(group)) is not None]
    return share_over_problems(values, sum(map(len, judged))) if values else None


def share(group: Sequence[Sample], k: int) -> float | None:
    """pass@k of one problem; None when it has fewer than k judged samples."""
    if len(group) < k:
        return None
    return pass_at(k, len(group), sum(sample.passed for sample in group))


def at(k: int) -> Callable[[Sequence[Sample]], float | None]:
    return lambda group: share(group, k)


def majority_of(group: Sequence[Sample]) -> float:
    return majority([(s.answer, s.passed) for s in group if s.answer is not None])


def names_answers(asked: Sequence[Sample]) -> bool:
    """Whether the reward writes down what it judges; one that passes a response and names no
    answer does not."""
    named = any(sample.answer is not None for sample in asked)
    return named and not any(sample.passed and sample.answer is None for sample in asked)


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
