"""One self-contained HTML page of a run, made from the run's own files alone."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from opd.chart import Chart, Point, Series, draw, number, percent
from opd.errors import DataError
from opd.rows import Row, read_rows, replace_file

T = TypeVar("T")
Interval = tuple[float, float]

PAGE = Path(__file__).parent / "page"
TOKENS_SHOWN = 30_000
"""Tokens on one page, so that a browser stays quick; the page says what is left out."""
LEVELS = (0.05, 0.2, 0.5, 1.0, 2.0)
"""Absolute teacher-minus-student log-prob, nats, from which a token's colour grows stronger."""


@dataclass(frozen=True)
class Panel:
    """A chart of the metrics whose whole name matches `pattern`; its group names the line."""

    title: str
    pattern: str
    note: str = ""
    shares: bool = False


PANELS = (
    Panel("Loss", r"loss/(.+)", "nats, per term"),
    Panel("Success", r"(success|no_answer|truncated|no_verdict)", "share of the rollouts", True),
    Panel("Response length", r"(response_tokens(?:/p\d+)?)", "tokens, mean and percentiles"),
    Panel(
        "Repetition", r"(terminal_loops|distinct_3)", "shares: ends in a loop; new 3-grams", True
    ),
    Panel("Appeals to a reference", r"(appeals)", "share of the responses", True),
    Panel("Deliberation", r"deliberation/(.+)", "words a thousand tokens"),
    Panel("Entropy", r"(entropy|teacher_entropy/.+)", "nats, at the taken tokens"),
    Panel("Teacher gap", r"teacher_gap/(.+)", "nats, teacher minus student"),
    Panel("Teacher gap by quarter", r"teacher_gap_by_quarter/(.+)", "nats, of the response"),
    Panel("Sampler mismatch", r"mismatch/(.+)", "nats to the trainer"),
    Panel("Gradient norm", r"(grad_norm)", "before clipping"),
    Panel("Learning rate", r"(learning_rate)"),
    Panel("Speed", r"(.+)_tokens_per_second", "tokens a second"),
)
"""What is drawn, in this order. A metric that none of them holds gets a panel by its prefix."""

HARM = (
    Panel("Some of k passes", r"(pass@\d+)", "pass@1 against pass@k", True),
    Panel("Response ends", r"(truncated|terminal_loops|distinct_3)", "shares", True),
    Panel("Response length", r"(response_tokens/p\d+)", "tokens, percentiles"),
    Panel("Sampled entropy", r"(entropy)", "nats a token"),
    Panel("Appeals to a reference", r"(appeals)", "share of the responses", True),
    Panel("Deliberation", r"deliberation/(.+)", "words a thousand tokens"),
)
"""What is drawn of each benchmark beside its accuracy."""


@dataclass(frozen=True)
class Update:
    """A row of metrics.jsonl: one optimizer step."""

    step: int
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class Evaluation:
    """A row of metrics.jsonl: one benchmark after `step` updates."""

    step: int
    benchmark: str
    samples: int
    sampled: float
    ci95: Interval
    greedy: float
    greedy_ci95: Interval | None = None
    truncated: float | None = None
    entropy: float | None = None
    signs: dict[str, float] = field(default_factory=dict)
    """See opd.evaluation.harm."""

    @property
    def readings(self) -> dict[str, float | None]:
        """All that is watched, by name."""
        return {"truncated": self.truncated, "entropy": self.entropy, **self.signs}


@dataclass(frozen=True)
class Warned:
    """A row of metrics.jsonl: what the guard has said after `step` updates."""

    step: int
    text: str


@dataclass(frozen=True)
class Sample:
    """A row of rollouts.jsonl: a response and what its readers thought of every token."""

    step: int
    prompt_id: str
    question: str
    finish: str
    status: str
    reward: float
    tokens: list[str]
    student_logprob: list[float | None]
    teacher_logprob: dict[str, list[float | None]]
    views: dict[str, str]
    """View name to the prompt that the teacher read."""

    def __post_init__(self) -> None:
        for name, values in {
            "student_logprob": self.student_logprob,
            **self.teacher_logprob,
        }.items():
            if len(values) != len(self.tokens):
                raise ValueError(f"{name} has {len(values)} values for {len(self.tokens)} tokens")


@dataclass(frozen=True)
class Accuracy:
    """A benchmark of summary.json."""

    before: float
    after: float
    ci95_before: Interval
    ci95_after: Interval
    greedy_before: float
    greedy_after: float
    greedy_ci95_before: Interval | None = None
    greedy_ci95_after: Interval | None = None
    samples: int | None = None
    problems: int | None = None

    @property
    def points(self) -> str:
        """The change of the sampled accuracy, in percentage points."""
        return f"{100 * (self.after - self.before):+.1f}".replace("-", "\N{MINUS SIGN}")

    @property
    def verdict(self) -> str:
        """up or down when the intervals before and after are disjoint, otherwise even."""
        if self.ci95_after[0] > self.ci95_before[1]:
            return "up"
        return "down" if self.ci95_after[1] < self.ci95_before[0] else "even"


@dataclass(frozen=True)
class Summary:
    """summary.json without its benchmarks."""

    generated_tokens: int
    seconds: float
    steps: int
    seed: int | None = None
    learner_tokens: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    verdicts: dict[str, str] = field(default_factory=dict)
    """What they depend on: see Reward.provenance."""


def write_report(run: Path) -> Path:
    """Write `run`/report.html and return its path.

    A run that is not over yet is reported as far as it got. Raises DataError that names the file
    and the line when one is missing or malformed.
    """
    if not (run / "metrics.jsonl").exists():
        raise DataError(f"{run}: holds no metrics.jsonl, so it is no run; give the folder of one")
    updates, evaluations, warnings = read_metrics(run / "metrics.jsonl")
    samples = read_samples(run / "rollouts.jsonl")
    accuracies, summary = read_summary(run / "summary.json")
    page = (
        environment()
        .get_template("report.html")
        .render(
            name=run.resolve().name,
            recipe=read_text(run / "recipe.yaml"),
            summary=summary,
            accuracies=accuracies or measured(evaluations),
            charts=[
                *accuracy_charts(evaluations),
                *harm_charts(evaluations),
                *metric_charts(updates),
            ],
            evaluations=evaluations,
            warnings=warnings,
            samples=spread(samples),
            total_samples=len(samples),
            last_step=max((row.step for row in [*updates, *evaluations]), default=0),
            **assets(),
        )
    )
    target = run / "report.html"
    replace_file(target, page)
    return target


def assets() -> dict[str, str]:
    """Style and script with the hashes by which the page allows these and nothing else."""
    texts = {kind: (PAGE / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")}
    hashes = {f"{kind}_hash": sha256(text) for kind, text in texts.items()}
    return texts | hashes


def sha256(text: str) -> str:
    """The hash of an inline block, as a content security policy writes it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def environment() -> Environment:
    """Templates that escape every value."""
    made = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "percent": percent,
        "number": number,
        "level": level,
        "settings": settings_lines,
        "percentage": lambda share: round(100 * share, 1),
    }
    return made


def read_metrics(path: Path) -> tuple[list[Update], list[Evaluation], list[Warned]]:
    """Updates, evaluations and warnings, in the order of the file."""
    updates: list[Update] = []
    evaluations: list[Evaluation] = []
    warnings: list[Warned] = []
    for row, place in placed(path):
        if row.get("kind") == "update":
            updates.append(parsed(Update, row, place))
        elif row.get("kind") == "evaluation":
            evaluations.append(parsed(Evaluation, row, place))
        elif row.get("kind") == "warning":
            warnings.append(parsed(Warned, row, place))
        else:
            raise DataError(
                f"{place}: its `kind` is neither update, evaluation nor warning; delete it"
            )
    return updates, evaluations, warnings


def read_samples(path: Path) -> list[Sample]:
    """The kept rollouts; none when the run kept none."""
    return [parsed(Sample, row, place) for row, place in placed(path)] if path.exists() else []


def read_summary(path: Path) -> tuple[dict[str, Accuracy], Summary | None]:
    """Benchmarks and totals; nothing when the run is not over."""
    if not path.exists():
        return {}, None
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(
            f"{path}: is no JSON ({error}); run the recipe again to write it"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: is no JSON object; run the recipe again to write it")
    accuracies = {
        name: parsed(Accuracy, found, f"{path}, {name}")
        for name, found in content.items()
        if isinstance(found, dict) and "before" in found
    }
    return accuracies, parsed(Summary, content, str(path))


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); is {path.parent} the folder of a run?"
        ) from error


def placed(path: Path) -> Iterable[tuple[Row, str]]:
    """Rows with their file and line."""
    return ((row, f"{path}, line {number}") for number, row in enumerate(read_rows(path), 1))


def parsed(kind: type[T], row: Mapping[str, object], place: str) -> T:
    """`row` as a `kind`; DataError names `place` and the key."""
    try:
        return TypeAdapter(kind).validate_python(dict(row))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(key) for key in fault["loc"])
        said = fault["msg"].removeprefix("Value error, ")
        raise DataError(
            f"{place}: {where + ': ' if where else ''}{said}; mend or delete it"
        ) from error


def measured(evaluations: Sequence[Evaluation]) -> dict[str, Accuracy]:
    """First and last evaluation of each benchmark of a run that is not over."""
    accuracies = {}
    for name in dict.fromkeys(row.benchmark for row in evaluations):
        rows = [row for row in evaluations if row.benchmark == name]
        first, last = rows[0], rows[-1]
        accuracies[name] = Accuracy(
            before=first.sampled,
            after=last.sampled,
            ci95_before=first.ci95,
            ci95_after=last.ci95,
            greedy_before=first.greedy,
            greedy_after=last.greedy,
            greedy_ci95_before=first.greedy_ci95,
            greedy_ci95_after=last.greedy_ci95,
            samples=last.samples,
        )
    return accuracies


def accuracy_charts(evaluations: Sequence[Evaluation]) -> list[Chart]:
    """Every benchmark over the steps: sampled with its interval, greedy dashed."""
    lines = []
    for colour, name in enumerate(dict.fromkeys(row.benchmark for row in evaluations)):
        rows = [row for row in evaluations if row.benchmark == name]
        label = name.replace("_", " ")
        sampled = tuple(Point(row.step, row.sampled, *row.ci95) for row in rows)
        greedy = tuple(Point(row.step, row.greedy) for row in rows)
        lines.append(Series(f"{label} avg@{rows[-1].samples}", sampled, colour=colour))
        lines.append(Series(f"{label} greedy", greedy, dashed=True, colour=colour))
    if not lines:
        return []
    note = "95 % intervals shaded"
    return [draw("Accuracy", lines, note=note, form=percent, bounds=(0.0, 1.0))]


def harm_charts(evaluations: Sequence[Evaluation]) -> list[Chart]:
    """What evaluations watch beside accuracy, a chart for each benchmark and panel."""
    charts = []
    for name in dict.fromkeys(row.benchmark for row in evaluations):
        rows = [row for row in evaluations if row.benchmark == name]
        label = name.replace("_", " ")
        for panel in HARM:
            charts += charts_of(replace(panel, title=f"{panel.title}, {label}"), readings(rows))
    return charts


def readings(rows: Sequence[Evaluation]) -> list[Update]:
    """What one benchmark's evaluations watch, as metrics of their steps."""
    return [Update(row.step, row.readings) for row in rows]


def metric_charts(updates: Sequence[Update]) -> list[Chart]:
    """Every metric of the updates over the steps."""
    names = list(dict.fromkeys(name for row in updates for name in row.metrics))
    charts = []
    for panel in [*PANELS, *other_panels(names)]:
        charts += charts_of(panel, updates)
    return charts


def charts_of(panel: Panel, updates: Sequence[Update]) -> list[Chart]:
    """The panel's chart, or none where it has nothing to draw."""
    names = dict.fromkeys(name for row in updates for name in row.metrics)
    found = {name: match[1] for name in names if (match := re.fullmatch(panel.pattern, name))}
    lines = [line_of(updates, name, label.replace("_", " ")) for name, label in found.items()]
    if not any(line.points for line in lines):
        return []
    form, bounds = (percent, (0.0, 1.0)) if panel.shares else (number, None)
    return [draw(panel.title, lines, note=panel.note, form=form, bounds=bounds)]


def other_panels(names: Iterable[str]) -> list[Panel]:
    """One panel for each prefix of the metrics that no known panel holds."""
    rest = [name for name in names if not any(re.fullmatch(p.pattern, name) for p in PANELS)]
    prefixes = dict.fromkeys(name.partition("/")[0] for name in rest)
    return [
        Panel(prefix.replace("_", " ").capitalize(), rf"({re.escape(prefix)}(?:/.+)?)")
        for prefix in prefixes
    ]


def line_of(updates: Sequence[Update], metric: str, label: str) -> Series:
    """One metric over the steps; steps at which it was not finite are left out."""
    values = ((row.step, row.metrics.get(metric)) for row in updates)
    return Series(label, tuple(Point(step, value) for step, value in values if value is not None))


def spread(samples: Sequence[Sample]) -> list[Sample]:
    """As many samples as a page can hold, taken evenly over the run, the last one included."""
    budget = TOKENS_SHOWN / max(1, sum(len(sample.tokens) for sample in samples))
    count = max(1, min(len(samples), int(budget * len(samples))))
    last = len(samples) - 1
    places = {round(last * at / max(1, count - 1)) for at in range(count)} if samples else set()
    return [samples[place] for place in sorted(places)]


def level(teacher: float | None, student: float | None) -> str:
    """A token's colour class: n5 (the teacher finds it far less likely) over z to p5; none where
    a log-prob is missing."""
    if teacher is None or student is None:
        return "none"
    strength = sum(abs(teacher - student) >= bound for bound in LEVELS)
    return f"{'n' if teacher < student else 'p'}{strength}" if strength else "z"


def settings_lines(recipe: str) -> list[tuple[str, str]]:
    """Lines of YAML as (key with its indent, the rest)."""
    lines = []
    for line in recipe.rstrip("\n").split("\n"):
        match = re.match(r"(\s*(?:- )*[\w.-]+:)(.*)", line)
        lines.append((match[1], match[2]) if match else ("", line))
    return lines
