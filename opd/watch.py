"""What a run does about the limits that its guard watches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from accelerate.utils import broadcast_object_list

from opd.errors import CollapseError, RecipeError
from opd.evaluation.evaluator import Measurement
from opd.guard import Breach
from opd.run import Run


def readings(measured: Iterable[Measurement]) -> dict[str, float]:
    """Everything that evaluations have found, by benchmark/name."""
    return {name: value for each in measured for name, value in each.readings.items()}


def heed(run: Run, numbers: Mapping[str, float], *, measured: bool) -> bool:
    """Whether the run may go on from where it is, and not from where it went back to.

    Raises CollapseError, with a checkpoint on disk, when a limit that stops the run is not kept.
    """
    guard = run.recipe.guard
    # Clocks differ from rank to rank, and all must go on or back together.
    (numbers,) = broadcast_object_list([dict(numbers)])
    breaches = guard.read(numbers)
    for breach in breaches:
        run.log.warn(run.progress.step, breach.sentence)
    for name in guard.unread() if run.progress.step == 1 else ():
        sentence = (
            f"guard.limits.{name}.metric: nothing is called {guard.limits[name].metric!r}; choose "
            f"from {', '.join(sorted({*numbers, *readings(run.progress.before.values())}))}"
        )
        # What is of a term or a view may be reported once it is active or present.
        about = guard.limits[name].metric.split("/")
        may_come = not {*run.recipe.terms, *run.recipe.teacher.views}.isdisjoint(about)
        if guard.limits[name].then != "warn" and not may_come:
            raise RecipeError(sentence)
        run.log.warn(1, sentence)
    grave = [breach for breach in breaches if breach.then != "warn"]
    if grave:
        go_back(run, grave)
    elif measured and guard.keeps_good and guard.is_calm:
        run.save(to=run.good)
    return not grave


def go_back(run: Run, grave: Sequence[Breach]) -> None:
    """Take up the last good state, or raise CollapseError where that is not asked for, was done as
    often as may be, or there is none."""
    guard, step, good = run.recipe.guard, run.progress.step, run.good.latest()
    stops = [breach for breach in grave if breach.then == "stop"]
    if stops or guard.rolled_back == guard.rollbacks or good is None:
        run.save()
        kept = "no state was good" if good is None else f"{run.good.folder} keeps step {good}"
        raise CollapseError(
            f"{(stops or grave)[0].sentence} at step {step}, where the run stops; {kept}; lower "
            "optimizer.learning_rate or widen the limit, and give another `output=`"
        )
    run.roll_back()
    factor = run.learner.learning_rate_scale
    run.log.warn(good, f"back from step {step}, with the learning rate times {factor:g}")
