"""The page of a study: one Markdown file with its figures beside it, and one HTML file with all.

The Markdown shows the figures as the pictures that `study.picture` draws of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from opd.chart import Chart, Series, draw, percent
from opd.chart import Point as Mark
from opd.errors import DataError
from opd.evaluation.metrics import Estimate, share_over_problems
from opd.rows import replace_file

from .claims import (
    SHARES,
    Claim,
    Findings,
    Verdict,
    difference_of,
    judged,
    paired_runs,
    read_claims,
)
from .execute import fault
from .found import Found, Point, costs, is_finished, read_run, shares, spread, summary_of
from .paired import Difference
from .plan import Budget, Study, runs

TEMPLATES = Path(__file__).parent / "templates"
Costs = Mapping[str, Mapping[str, Any]]
"""Run, or what was made for one, to what it took."""

COLUMNS = 3
"""Curves side by side."""


@dataclass(frozen=True)
class Line:
    """What the tables say of one row."""

    name: str
    seeds: int
    held_out: Estimate
    """At the budget, over problems; each problem's share is its mean over seeds."""
    seed_range: tuple[float, float]
    greedy: float
    untouched: Estimate | None
    difference: Difference | None
    """To the base in held-out accuracy; None for the base."""
    untouched_difference: Difference | None
    steps: float
    generated_tokens: float
    learner_tokens: float
    seconds: float
    """Training alone; the last four at the budget."""
    core_seconds: float | None
    """Of the processor, with evaluations, to the end of the run: the same whatever else the machine
    does. None where it was not kept."""
    entropy: float
    length: float
    targets: Mapping[str, str]
    """Target to the tokens that it took, and how many times fewer than the base's."""
    elsewhere: tuple[float, ...]
    """Held-out accuracy at the other budgets."""


def write_page(study: Study, rates: Mapping[str, str], source: Path) -> Path:
    """Write README.md, study.html and the figures of the runs that are finished; the Markdown's
    path. Raises DataError when the base has none."""
    findings, faults = gathered(study, rates)
    if not findings.get(study.base):
        raise DataError(f"{study.output}: no run of the base {study.base!r} is finished; run it")
    kept = costs(Path(study.output))
    lines = {row: line(study, findings, row, kept) for row in findings}
    lines = dict(sorted(lines.items(), key=lambda item: -item[1].held_out.value))
    folder = Path(study.page)
    folder.mkdir(parents=True, exist_ok=True)
    templates = environment()
    figures = {
        "accuracy.svg": templates.get_template("accuracy.svg").render(lines=lines, study=study),
        "curves.svg": templates.get_template("curves.svg").render(
            charts=curves(study, findings, list(lines)), columns=COLUMNS
        ),
    }
    words = {
        "study": study,
        "source": source.as_posix(),
        "lines": lines,
        "before": findings[study.base][0].curves["held_out"][0],
        "others": other_budgets(findings),
        "verdicts": verdicts(study, findings),
        "faults": faults,
        "rates": rates,
        "names": target_names(study),
        "made": made(findings, kept),
        "circumstances": circumstances(findings, kept),
        "versions": summary_of(findings[study.base][0].run)["versions"],
    }
    for name, figure in figures.items():
        replace_file(folder / name, figure)
    inline = {name.removesuffix(".svg"): Markup(figure) for name, figure in figures.items()}
    page = templates.get_template("study.html").render(**words, **inline)
    replace_file(folder / "study.html", page)
    replace_file(folder / "README.md", templates.get_template("README.md").render(**words))
    return folder / "README.md"


def gathered(study: Study, rates: Mapping[str, str]) -> tuple[Findings, list[str]]:
    """Finished runs by row, and a line for each that came to no end, with what it said last."""
    findings: dict[str, list[Found]] = {}
    faults: list[str] = []
    missing: dict[str, list[str]] = {}
    for run in runs(study, rates):
        if is_finished(run):
            findings.setdefault(run.row, []).append(read_run(run))
        elif last := fault(run):
            faults.append(f"{run.folder.name}: {last}")
        else:
            missing.setdefault(run.row, []).append(str(run.seed))
    never = [f"{row} ({', '.join(seeds)})" for row, seeds in missing.items()]
    return findings, [*faults, *([f"not run: {'; '.join(never)}"] if never else [])]


def line(study: Study, findings: Findings, row: str, kept: Costs) -> Line:
    """One row of the tables."""
    found, budget = findings[row], study.budget
    points = [run.at(budget) for run in found]
    pairs = paired_runs(found, findings[study.base]) if row != study.base else []
    both = "untouched" in found[0].curves
    return Line(
        name=row,
        seeds=len(found),
        held_out=over_problems(points),
        seed_range=spread([point.sampled for point in points]),
        greedy=fmean(point.greedy for point in points),
        untouched=over_problems([run.at(budget, "untouched") for run in found]) if both else None,
        difference=difference_of(pairs, budget, "held_out") if pairs else None,
        untouched_difference=difference_of(pairs, budget, "untouched") if pairs and both else None,
        steps=fmean(point.step for point in points),
        generated_tokens=fmean(point.generated_tokens for point in points),
        learner_tokens=fmean(point.learner_tokens for point in points),
        seconds=fmean(point.seconds for point in points),
        core_seconds=core_seconds(found, kept),
        entropy=fmean(point.entropy for point in points),
        length=fmean(point.length for point in points),
        targets=targets(study, findings, row),
        elsewhere=tuple(
            fmean(run.at(other).sampled for run in found) for other in other_budgets(findings)
        ),
    )


def core_seconds(found: Sequence[Found], kept: Costs) -> float | None:
    names = [run.run.folder.name for run in found]
    known = [kept[name]["core_seconds"] for name in names if name in kept]
    return fmean(known) if known else None


def made(findings: Findings, kept: Costs) -> dict[str, float]:
    """Core seconds of what was made once for a row's seeds."""
    names = [path.name for found in findings.values() for path, _ in found[0].run.made]
    return {name: kept[name]["core_seconds"] for name in names if name in kept}


def circumstances(findings: Findings, kept: Costs) -> list[str]:
    """Every commit, processor and number of cores that a finished run was trained with."""
    names = [found.run.folder.name for row in findings.values() for found in row]
    rows = [kept[name] for name in names if name in kept]
    return sorted({f"commit {r['commit']}, {r['cores']} cores of {r['processor']}" for r in rows})


def over_problems(points: Sequence[Point]) -> Estimate:
    """The mean over seeds, with its interval over problems."""
    tables = [shares(point.by_problem) for point in points]
    means = [fmean(column) for column in zip(*tables, strict=True)]
    judged = [mean for mean in means if not math.isnan(mean)]
    responses = sum(count for point in points for _, count in point.by_problem)
    return share_over_problems(judged, responses)


def other_budgets(findings: Findings) -> list[Budget]:
    """What every row that spends any has spent, in the units that the study's runs were not planned
    by; the same runs are read there too."""
    found = [run for row in findings.values() for run in row]
    budgets: list[Budget] = []
    for unit in ("generated_tokens", "learner_tokens", "seconds"):
        ends = [run.curves["held_out"][-1].spent(unit) for run in found]
        budgets.append(Budget(unit=unit, amount=min(end for end in ends if end > 0)))
    return budgets


def target_names(study: Study) -> list[str]:
    best = f"best of {study.base}"
    return [*(percent(level).replace(".0", "") for level in study.levels), f"low {best}", best]


def targets(study: Study, findings: Findings, row: str) -> dict[str, str]:
    """Tokens to each target, as text. A base's best is the highest of many evaluations, so the
    lower end of its 95 % interval is a target of its own."""
    cells: dict[str, list[tuple[float, float]]] = {name: [] for name in target_names(study)}
    for mine, theirs in paired_runs(findings[row], findings[study.base]):
        goals = (*study.levels, theirs.best.low, theirs.best.sampled)
        for name, goal in zip(cells, goals, strict=True):
            cells[name].append((mine.spent_to(goal), theirs.spent_to(goal)))
    return {name: spent_on(found, row == study.base) for name, found in cells.items()}


def spent_on(found: Sequence[tuple[float, float]], is_base: bool) -> str:
    """Geometric means over the seeds that reach a target: tokens, and how many times fewer."""
    needed = [mine for mine, _ in found if math.isfinite(mine)]
    if not needed:
        return f"0 of {len(found)}"
    if 0 in needed:
        return "before"
    text = f"{statistics.geometric_mean(needed) / 1000:,.0f}k"
    if len(needed) < len(found):
        text += f" ({len(needed)} of {len(found)})"
    ratios = [theirs / mine for mine, theirs in found if math.isfinite(mine + theirs)]
    if is_base or not ratios:
        return text
    return f"{text}, {statistics.geometric_mean(ratios):.1f}x"


def verdicts(study: Study, findings: Findings) -> list[Verdict]:
    """Of the claims on two rows of this study; others are another study's."""
    if study.claims is None:
        return []
    claims = [
        claim for claim in read_claims(Path(study.claims)) if study.rows.keys() >= {*claim.rows}
    ]
    return [judged(claim, findings, study.budget) for claim in claims]


def curves(study: Study, findings: Findings, rows: Sequence[str]) -> list[Chart]:
    """One panel a row: mean over seeds with its range, and the base dashed."""
    base = Series(study.base, marks(findings[study.base]), dashed=True, colour=1)
    return [
        draw(
            row,
            [Series(row, marks(findings[row]), colour=0), *([base] if row != study.base else [])],
            note="thousand tokens",
            form=percent,
            bounds=(0.0, 1.0),
        )
        for row in rows
    ]


def marks(found: Sequence[Found]) -> tuple[Mark, ...]:
    """Evaluations after the same step, over seeds; tokens in thousands."""
    steps: dict[int, list[tuple[float, float]]] = {}
    for run in found:
        for point in run.curves["held_out"]:
            steps.setdefault(point.step, []).append((run.spent(point), point.sampled))
    marks: list[Mark] = []
    for points in steps.values():
        tokens, accuracies = zip(*points, strict=True)
        marks.append(Mark(fmean(tokens) / 1000, fmean(accuracies), *spread(accuracies)))
    return tuple(marks)


def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and not name.endswith(".md"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "share": lambda value: f"{100 * value:.1f}",
        "whole": lambda value: "-" if value is None else f"{value:.0f}",
        "thousands": lambda value: f"{value / 1000:,.0f}k",
        "estimate": estimate,
        "points": points_of,
        "difference": difference_text,
        "metric": metric_text,
        "chance": chance,
        "spent": spent_text,
    }
    return made


def estimate(found: Estimate | None) -> str:
    if found is None:
        return "-"
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def points_of(found: Difference | None) -> str:
    """A difference of shares, in points."""
    if found is None:
        return "-"
    return f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def difference_text(verdict: Verdict) -> str:
    """A claim's difference in its own unit."""
    found, metric = verdict.difference, verdict.claim.metric
    if found is None:
        return "-"
    if metric in SHARES:
        return f"{points_of(found)} points"
    if metric == "spent":
        return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}] times"
    unit = "tokens" if metric == "length" else "nats"
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}] {unit}"


def metric_text(claim: Claim, study: Study) -> str:
    """What two rows are compared in."""
    unit = (claim.unit or study.budget.unit).replace("_", " ")
    if claim.metric == "spent":
        return f"{unit} to {100 * claim.level:.0f} %"
    name = claim.metric.replace("_", "-")
    if claim.amount is not None:
        return f"{name} at {claim.amount:,.0f} {unit}"
    return name if claim.unit is None else f"{name} at equal {unit}"


def chance(found: Difference | None) -> str:
    return "-" if found is None else f"{found.p:.2g}"


def spent_text(budget: Budget) -> str:
    name = budget.unit.replace("_", " ")
    return f"{budget.amount:,.0f} {'training ' if budget.unit == 'seconds' else ''}{name}"
