"""What a person sees of an evaluation: numbers with their intervals, and what was left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from opd.evaluation.comparison import Comparison
from opd.evaluation.metrics import Estimate
from opd.evaluation.paired import Paired
from opd.evaluation.score import Score
from opd.screen import percent

NAMED = 5
"""Problems that are named on the screen; a summary names all."""
NOTHING = "-"


def show_scores(name: str, scores: Mapping[str, Score], console: Console) -> None:
    """Accuracies in percent with their intervals, then lengths and shares; below, what no table
    can hold."""
    accuracies = {"problems": counts, "k": draws, **ACCURACIES}
    show_columns(f"{name}: accuracy in percent [95 %]", accuracies, scores, console)
    show_columns("responses: mean length in tokens, and percent", SHARES, scores, console)
    for benchmark, found in scores.items():
        for line in left_out(benchmark, found):
            console.print(Text(line), soft_wrap=True)


def show_columns(
    title: str,
    columns: Mapping[str, Callable[[Score], str]],
    scores: Mapping[str, Score],
    console: Console,
) -> None:
    """One row a benchmark; a column that has nothing to say is left out."""
    cells = {name: [cell(found) for found in scores.values()] for name, cell in columns.items()}
    told = {name: column for name, column in cells.items() if set(column) != {NOTHING}}
    console.print(Text(title, "bold"), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("benchmark")
    for name in told:
        table.add_column(name, justify="right", no_wrap=True)
    for index, benchmark in enumerate(scores):
        table.add_row(benchmark, *(column[index] for column in told.values()))
    console.print(table)


def counts(found: Score) -> str:
    return f"{found.problems:,}"


def draws(found: Score) -> str:
    return str(found.samples)


def with_interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return NOTHING
    low, high = (100 * end for end in (estimate.low, estimate.high))
    return f"{100 * estimate.value:.1f} [{low:.1f}, {high:.1f}]"


def passes(found: Score) -> str:
    """pass@k of the largest k; of one response it is the average."""
    return NOTHING if found.samples == 1 else with_interval(found.pass_at[found.samples])


def in_percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.1f}"


ACCURACIES: dict[str, Callable[[Score], str]] = {
    "avg@k": lambda found: with_interval(found.average),
    "pass@k": passes,
    "maj@k": lambda found: NOTHING if found.samples == 1 else with_interval(found.majority),
    "greedy": lambda found: with_interval(found.greedy),
}
SHARES: dict[str, Callable[[Score], str]] = {
    "length": lambda found: NOTHING if found.mean_length is None else f"{found.mean_length:,.1f}",
    "truncated": lambda found: in_percent(found.truncated),
    "no answer": lambda found: in_percent(found.no_answer),
    "no verdict": lambda found: in_percent(found.no_verdict),
    "problems not asked": lambda found: f"{len(found.does_not_fit) + len(found.unreadable):,}",
}


def left_out(benchmark: str, found: Score) -> Iterator[str]:
    """Problems that count as missed because the model could not be asked them."""
    for names, why in (
        (found.does_not_fit, "do not fit into the context beside their response (does_not_fit)"),
        (found.unreadable, "hold what the tokenizer cannot write (unreadable)"),
    ):
        if names:
            yield (
                f"{benchmark}: {len(names):,} of {found.problems:,} problems {why} and count as "
                f"missed: {listed(names)}"
            )
    if found.no_verdict:
        yield (
            f"{benchmark}: {percent(found.no_verdict)} of the responses got no verdict and are "
            "left out"
        )


def listed(names: Sequence[str]) -> str:
    rest = f", ... ({len(names) - NAMED:,} more)" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest


def show_origin(about: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """What a benchmark's adapter was told to take, and what verdicts depend on, each said once."""
    verdicts: dict[str, list[str]] = {}
    for benchmark, found in about.items():
        adapter = found["adapter"]
        settings = adapter if isinstance(adapter, Mapping) else {}
        told = [f"{k} {v}" for k, v in settings.items() if k != "name" and v is not None]
        if told:
            console.print(Text(f"{benchmark}: {', '.join(told)}"), soft_wrap=True)
        line = ", ".join(f"{name} {value}" for name, value in found["provenance"].items())
        if line:
            verdicts.setdefault(line, []).append(benchmark)
    for line, benchmarks in verdicts.items():
        console.print(Text(f"verdicts of {', '.join(benchmarks)}: {line}"), soft_wrap=True)


def show_comparison(found: Comparison, console: Console) -> None:
    """Both models side by side, the difference with its interval, and its p."""
    names, measures = (found.model.name, found.against.name), found.measures
    title = f"{names[0]} (A) against {names[1]} (B), in percent"
    console.print(Text(title, "bold"), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column in ("benchmark", "measure"):
        table.add_column(column)
    for column in ("problems", "A", "B", "A - B [95 %]", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    for benchmark, rows in measures.items():
        for label, row in rows.items():
            table.add_row(benchmark, label, *paired_cells(row))
    console.print(table)
    if found.unlike:
        console.print(f"the two are unlike in {', '.join(found.unlike)}; see their protocols")
    if sum(map(len, measures.values())) > 1:
        console.print(
            "each p stands for itself: none is corrected for the number of rows; where an interval "
            "disagrees with its p, only a handful of problems differ, and p is the exact one",
            soft_wrap=True,
        )


def paired_cells(found: Paired | None) -> list[str]:
    if found is None:
        return [NOTHING] * 5
    low, high = found.ci95
    return [
        f"{found.problems:,}",
        in_percent(found.model),
        in_percent(found.against),
        f"{100 * found.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
        f"{found.p:.2g}",
    ]
