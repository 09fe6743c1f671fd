"""What a person sees of a run while it runs, and the table at its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from opd.evaluation.evaluator import Measurement


class Screen:
    """One live block on a terminal, plain lines elsewhere."""

    def __init__(self, name: str, steps: int, console: Console | None = None) -> None:
        self.name = name
        self.steps = steps
        self.console = console or Console(highlight=False)
        self.accuracies: dict[str, float] = {}
        self._durations: deque[float] = deque(maxlen=20)
        self._seconds: float | None = None
        self._live: Live | None = None

    def say(self, line: str) -> None:
        """One line that stays."""
        self.console.print(Text(line), soft_wrap=True)

    def update(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """Show the state after `step`; `seconds` is what the run took so far."""
        if self._seconds is not None:
            self._durations.append(seconds - self._seconds)
        self._seconds = seconds
        readings = self.readings(metrics)
        if self.console.is_terminal:
            self._refresh(step, readings)
        elif step % max(1, self.steps // 50) == 0 or step == self.steps:
            shown = "  ".join(f"{name} {value}" for name, value in readings.items())
            self.say(f"step {step}/{self.steps}  {shown}{self.remaining(step)}")

    def evaluation(self, step: int, seconds: float, measurement: Measurement) -> None:
        """Show an accuracy with its interval."""
        self._seconds = seconds
        self.accuracies[measurement.benchmark] = measurement.sampled
        self.say(f"step {step}  {accuracy_line(measurement)}; {harm_line(measurement)}")

    def summary(self, summary: Mapping[str, object]) -> None:
        """The table that ends a run."""
        self.close()
        table = Table(title=str(summary.get("name", self.name)), title_justify="left")
        table.add_column("accuracy")
        for column in ("before", "after", "points"):
            table.add_column(column, justify="right")
        for name, found in summary.items():
            if isinstance(found, Mapping) and "before" in found:
                table.add_row(f"{name} avg@{found.get('samples', '?')}", *before_after(found, ""))
                table.add_row(f"{name} greedy", *before_after(found, "greedy_"))
        self.console.print(table)
        self.say(
            f"{summary.get('generated_tokens', 0):,} generated tokens, "
            f"{summary.get('seconds', 0.0):.0f} seconds"
        )
        verdicts = summary.get("verdicts")
        if isinstance(verdicts, Mapping) and verdicts:
            self.say(
                f"verdicts: {', '.join(f'{name} {found}' for name, found in verdicts.items())}"
            )

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def readings(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """The few numbers that a person follows, by name."""
        losses = [value for name, value in metrics.items() if name.startswith("loss/")]
        readings = {"loss": f"{sum(losses):.4f}"} if losses else {}
        readings |= {name: percent(value) for name, value in self.accuracies.items()}
        for name, label, form in (
            ("success", "success", percent),
            ("response_tokens", "length", "{:.1f}".format),
            ("entropy", "entropy", "{:.3f}".format),
            ("generated_tokens_per_second", "tokens/s", "{:,.0f}".format),
        ):
            if name in metrics:
                readings[label] = form(metrics[name])
        return readings

    def remaining(self, step: int) -> str:
        """The time that the steps after `step` will take at the pace of the last ones."""
        if not self._durations or step >= self.steps:
            return ""
        pace = sum(self._durations) / len(self._durations)
        minutes, seconds = divmod(round(pace * (self.steps - step)), 60)
        return f"  {minutes // 60}:{minutes % 60:02}:{seconds:02} left"

    def _refresh(self, step: int, readings: Mapping[str, str]) -> None:
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=self.steps, completed=step, width=32)
        head.add_row(Text(self.name, "bold"), bar, f"{step}/{self.steps}{self.remaining(step)}")
        body = Table.grid(padding=(0, 3, 0, 0))
        body.add_row(*(Text(name, "dim") for name in readings))
        body.add_row(*readings.values())
        self._live.update(Group(head, body), refresh=True)


def accuracy_line(measurement: Measurement) -> str:
    """A benchmark's sampled and greedy accuracy with their intervals."""
    m = measurement
    return (
        f"{m.benchmark}: avg@{m.samples} {percent(m.sampled)} {interval(m.ci95)}, "
        f"greedy {percent(m.greedy)} {interval(m.greedy_ci95)}"
    )


def harm_line(measurement: Measurement) -> str:
    """What may get worse while accuracy rises."""
    signs, most = measurement.signs, f"pass@{measurement.samples}"
    parts = [f"{most} {percent(signs[most])}"] if most in signs else []
    parts.append(f"entropy {measurement.entropy:.3f}")
    parts.append(f"90 % within {signs['response_tokens/p90']:.0f} tokens")
    if signs["terminal_loops"]:
        parts.append(f"loops {percent(signs['terminal_loops'])}")
    return ", ".join(parts)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def interval(ends: Sequence[float]) -> str:
    """A 95 % interval in percent."""
    low, high = ends
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def before_after(found: Mapping[str, float | Sequence[float]], prefix: str) -> list[str]:
    """Accuracies of a summary with their intervals, and the difference in percentage points."""
    before, after = (float(cast("float", found[f"{prefix}{when}"])) for when in ("before", "after"))
    ends = [found.get(f"{prefix}ci95_{when}") for when in ("before", "after")]
    return [
        *(
            f"{percent(value)} {interval(cast('Sequence[float]', known))}"
            if known
            else percent(value)
            for value, known in zip((before, after), ends, strict=True)
        ),
        f"{100 * (after - before):+.1f}",
    ]
