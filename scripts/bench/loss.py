"""The divergence of two language-model heads: opd beside its peers, in time, memory and accuracy.

Every case is a process of its own with one thread, and all cases of a scenario take turns. Student
and teacher share the head, as in self-distillation; hidden states and the head are random, logits
have a standard deviation of 4. A call is the mean divergence and its gradients. Needs the peers
`pip install 'opd[trl,bench]'`; one that does not import is skipped by name. Exits 1 when a bar is
missed. Takes about 15 minutes and 5 GiB.

    python scripts/bench/loss.py            # the head of Qwen3-0.6B
    python scripts/bench/loss.py --quick    # a small head, under a minute
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch
from measure import (
    RESULTS,
    Answer,
    Bar,
    Turns,
    by_turns,
    costing,
    middle,
    print_bars,
    print_table,
    ratio,
    save,
)
from torch import Tensor
from torch.nn.functional import kl_div, linear, log_softmax
from torch.utils.checkpoint import checkpoint

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The mean divergence from `[N, D]` student states, `[V, D]` head and `[N, D]` teacher states."""

CHUNK_ROWS = 256
"""Rows of a chunk of the checkpointed and the Liger loss."""
LOGIT_DEVIATION = 4.0
NEAR, FAR = 0.008, 0.3
"""Noise between student and teacher in standard deviations of the hidden states; the first gives
about 5e-4 nats a token, as in self-distillation."""
STRIDE = 16
"""Every so many rows of the head's gradient are compared."""
SCENARIOS = ("accuracy", "memory", "float32", "bfloat16")
CAVEATS = """\
TRL 1.16 on a CPU: its kernel projects bfloat16 in float32, because torch's out_dtype needs CUDA,
and in a trainer it projects masked positions too (there are none here). No bar is set on its
bfloat16 seconds for that reason, and no ratio to it here says anything about a GPU."""


@dataclass(frozen=True)
class Case:
    """One implementation on one problem."""

    implementation: str
    dtype: str
    rows: int
    vocabulary: int
    width: int
    divergence: str = "reverse_kl"
    frozen: bool = False
    noise: float = FAR
    reference: str = ""
    """File of the float64 gradients; empty compares nothing."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="a small head, under a minute")
    parser.add_argument("--implementations", nargs="+", default=list(IMPLEMENTATIONS))
    parser.add_argument("--scenarios", nargs="+", default=SCENARIOS, choices=SCENARIOS)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    if options.case:
        work(Case(**json.loads(options.case)))
    print(CAVEATS, end="\n\n")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.quick, options.implementations)
        bars = bench.run(options.scenarios)
    print_bars(bars)
    name = "loss_quick" if options.quick else "loss"
    save(options.results / f"{name}.json", {"scenarios": bench.scenarios}, bars)
    return int(any(bar.holds is False for bar in bars))


class Bench:
    """The scenarios, in order, and what they found."""

    def __init__(self, folder: Path, quick: bool, implementations: Iterable[str]) -> None:
        self.folder = folder
        self.quick = quick
        self.implementations = set(implementations)
        self.vocabulary, self.width = (32_768, 512) if quick else (151_936, 1_024)
        self.scenarios: dict[str, dict[str, dict[str, float | None]]] = {}

    def run(self, scenarios: Sequence[str]) -> list[Bar]:
        return [bar for name in scenarios for bar in getattr(self, name)()]

    def case(self, implementation: str, dtype: str, rows: int, **more: object) -> Case:
        plain = Case(implementation, dtype, rows, self.vocabulary, self.width)
        return replace(plain, **more)

    def scenario(self, title: str, cases: Sequence[Case], rounds: int) -> Mapping[str, Found]:
        """Run the cases by turns; print and keep a table. One round is a memory run: cold."""
        wanted = [case for case in cases if case.implementation in self.implementations]
        found = {
            name: Found.of(answers)
            for name, answers in by_turns(
                __file__,
                {title_of(case): asdict(case) for case in wanted},
                rounds,
                warm_ups=int(rounds > 1),
            ).items()
        }
        print(title)
        print_table(
            ("", "CPU s", "peak MiB", "dh error", "dW error", "loss"),
            [(name, *row.cells()) for name, row in found.items()],
        )
        self.scenarios[title] = {name: asdict(row) for name, row in found.items()}
        return found

    def reference(self, case: Case) -> str:
        """The float64 gradients of the case's problem, in a file."""
        path = str(self.folder / f"{case.dtype}-{case.rows}-{case.divergence}-{case.noise}.pt")
        answers = by_turns(
            __file__,
            {"reference": asdict(replace(case, implementation="reference", reference=path))},
            rounds=1,
            warm_ups=0,
        )
        print(f"mean divergence {answers['reference'][0]['loss']:.3g} nats")
        return path

    def accuracy(self) -> list[Bar]:
        """Student and teacher as near as in self-distillation, in bfloat16."""
        plain = self.case("naive", "bfloat16", CHUNK_ROWS, noise=NEAR)
        plain = replace(plain, reference=self.reference(plain))
        names = ("naive", "liger", "trl", "opd")
        cases = [replace(plain, implementation=name) for name in names]
        found = self.scenario(
            f"accuracy: bfloat16, {plain.rows} rows, teacher near the student", cases, rounds=1
        )
        return [
            Bar("bf16 dh error at 5e-4 nats: opd", one(found, "opd", "dh_error"), 0.02),
            Bar("bf16 dh error at 5e-4 nats: opd / naive", of(found, "dh_error", "naive"), 0.1),
        ]

    def memory(self) -> list[Bar]:
        rows = 1_024 if self.quick else 2_048
        plain = self.case("naive", "bfloat16", rows)
        cases = [replace(plain, implementation=name) for name in IMPLEMENTATIONS]
        cases.append(replace(plain, implementation="opd", frozen=True))
        found = self.scenario(f"memory: bfloat16, {rows} rows, reverse KL", cases, rounds=1)
        bars = [
            Bar("bf16 peak: opd / naive", of(found, "peak_mib", "naive"), 0.15),
            Bar("bf16 peak: opd / Liger", of(found, "peak_mib", "liger"), 0.75),
            Bar("bf16 peak: opd / TRL", of(found, "peak_mib", "trl"), 0.30),
            Bar(
                "bf16 peak: opd with a frozen head / naive",
                of(found, "peak_mib", "naive", ours="opd, frozen"),
                0.06,
            ),
        ]
        if self.quick:
            # At this size fixed costs hide what grows with the rows; only the naive one is far.
            return [replace(bars[0], limit=0.5), replace(bars[3], limit=0.35)]
        return [*bars, self.growth()]

    def growth(self) -> Bar:
        """What a call needs beyond its gradients, for four times the rows."""
        few, many = (self.case("opd", "bfloat16", rows) for rows in (1_024, 4_096))
        needs: list[float | None] = []
        for case in (few, many):
            found = self.scenario(f"growth: bfloat16, {case.rows} rows", [case], rounds=1)
            peak = one(found, "opd", "peak_mib")
            gradients = 2 * (case.rows + case.vocabulary) * case.width / 2**20
            needs.append(None if peak is None else peak - gradients)
        return Bar("bf16 working set: 4096 rows / 1024 rows", ratio(needs[1], needs[0]), 1.05)

    def float32(self) -> list[Bar]:
        rows = 256 if self.quick else 512
        bars: list[Bar] = []
        for divergence, trl_limit in (("reverse_kl", 0.60), ("jsd", 0.45)):
            plain = self.case("naive", "float32", rows, divergence=divergence)
            plain = replace(plain, reference=self.reference(plain))
            names = [*IMPLEMENTATIONS]
            if divergence != "reverse_kl":
                names.remove("checkpointed")
            cases = [replace(plain, implementation=name) for name in names]
            if divergence == "reverse_kl":
                cases.append(replace(plain, implementation="opd", frozen=True))
            found = self.scenario(f"time: float32, {rows} rows, {divergence}", cases, self.rounds)
            label = f"fp32 {divergence}"
            bars += [
                Bar(f"{label} dh error: opd", one(found, "opd", "dh_error"), 1e-5),
                Bar(f"{label} dW error: opd", one(found, "opd", "dw_error"), 1e-5),
                *self.timed(f"{label} time: opd / naive", found, "naive", 1.0),
                *self.timed(f"{label} time: opd / Liger", found, "liger", 0.85),
                *self.timed(f"{label} time: opd / TRL", found, "trl", trl_limit),
            ]
            if self.quick:
                break
        return bars

    def bfloat16(self) -> list[Bar]:
        if self.quick:
            return []
        plain = self.case("naive", "bfloat16", 1_024)
        plain = replace(plain, reference=self.reference(plain))
        names = ("naive", "liger", "opd")
        cases = [replace(plain, implementation=name) for name in names]
        cases.append(replace(plain, implementation="opd", frozen=True))
        found = self.scenario("time: bfloat16, 1024 rows, reverse_kl", cases, self.rounds)
        frozen = ratio(one(found, "opd, frozen", "seconds"), one(found, "opd", "seconds"))
        return [
            *self.timed("bf16 time: opd / naive", found, "naive", 0.65),
            *self.timed("bf16 time: opd / Liger", found, "liger", 0.80),
            Bar("bf16 time: opd with a frozen head / trainable", frozen, 0.80),
        ]

    @property
    def rounds(self) -> int:
        return 2 if self.quick else 3

    def timed(
        self, name: str, found: Mapping[str, Found], peer: str, limit: float
    ) -> Iterable[Bar]:
        """A bar on seconds; none on the small head, where overheads decide."""
        return [] if self.quick else [Bar(name, of(found, "seconds", peer), limit)]


@dataclass(frozen=True)
class Found:
    """What a scenario says of one case."""

    seconds: float
    """Median CPU seconds."""
    peak_mib: float
    """The highest of its calls."""
    loss: float
    dh_error: float | None
    """Norm of the difference to float64 over the norm of float64."""
    dw_error: float | None

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Found:
        last = answers[-1]
        return cls(
            middle(answers, "seconds"),
            max(answer["peak_mib"] for answer in answers),
            last["loss"],
            last["dh_error"],
            last["dw_error"],
        )

    def cells(self) -> tuple[str, ...]:
        errors = (self.dh_error, self.dw_error)
        return (
            f"{self.seconds:.2f}",
            f"{self.peak_mib:.0f}",
            *("-" if error is None else f"{error:.1e}" for error in errors),
            f"{self.loss:.6g}",
        )


def title_of(case: Case) -> str:
    return case.implementation + (", frozen" if case.frozen else "")


def one(found: Mapping[str, Found], name: str, field: str) -> float | None:
    """A number of one case, None when the case was skipped."""
    return getattr(found[name], field) if name in found else None


def of(found: Mapping[str, Found], field: str, peer: str, *, ours: str = "opd") -> float | None:
    """A number of opd over a peer's."""
    return ratio(one(found, ours, field), one(found, peer, field))


def work(case: Case) -> NoReturn:
    """A worker: answer turns with the cost and the errors of one call each."""
    turns = Turns()
    torch.set_num_threads(1)
    if case.implementation == "reference":
        turns.serve(lambda: write_reference(case))
    try:
        loss_of = IMPLEMENTATIONS[case.implementation](case.divergence)
    except ImportError as error:
        if case.implementation == "opd":
            raise
        turns.decline(f"it does not import here ({error})")
    student, head, teacher = problem(case)
    # Loads code and thread pools; what a real size allocates stays in the measured call.
    loss_of(student[:16], head, teacher[:16]).backward()
    errors: dict[str, float | None] = {}

    def call() -> dict[str, object]:
        student.grad = head.grad = None
        with costing() as cost:
            loss = loss_of(student, head, teacher)
            loss.backward()
        if not errors:
            errors.update(compared(case, student, head))
        return {**asdict(cost), **errors, "loss": loss.item()}

    turns.serve(call)


def problem(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Student states, the head and teacher states, the same for every implementation."""
    generator = torch.Generator().manual_seed(0)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, case.width, generator=generator)

    dtype = getattr(torch, case.dtype)
    head = (LOGIT_DEVIATION / math.sqrt(case.width) * normal(case.vocabulary)).to(dtype)
    student = normal(case.rows)
    teacher = (student + case.noise * normal(case.rows)).to(dtype)
    return student.to(dtype).requires_grad_(), head.requires_grad_(not case.frozen), teacher


def write_reference(case: Case) -> dict[str, object]:
    """Write the float64 gradients for the same, already rounded, inputs; tell the loss."""
    student, head, teacher = (tensor.detach().double() for tensor in problem(case))
    dh, dw, total = torch.empty_like(student), torch.zeros_like(head[::STRIDE]), 0.0
    for start in range(0, case.rows, 32):
        rows = slice(start, start + 32)
        logits = linear(student[rows], head).requires_grad_()
        loss = dense(case.divergence, logits, linear(teacher[rows], head)).sum() / case.rows
        (pull,) = torch.autograd.grad(loss, logits)
        dh[rows] = pull @ head
        dw += pull[:, ::STRIDE].T @ student[rows]
        total += loss.item()
    torch.save({"dh": dh, "dw": dw}, case.reference)
    return {"loss": total}


def compared(case: Case, student: Tensor, head: Tensor) -> dict[str, float | None]:
    """How far the gradients are from the float64 ones, relative to their norm."""
    if not case.reference:
        return {"dh_error": None, "dw_error": None}
    exact = torch.load(case.reference)

    def distance(gradient: Tensor, reference: Tensor) -> float:
        return float((gradient.double() - reference).norm() / reference.norm())

    assert student.grad is not None, "every implementation gives the student a gradient"
    return {
        "dh_error": distance(student.grad, exact["dh"]),
        "dw_error": None if head.grad is None else distance(head.grad[::STRIDE], exact["dw"]),
    }


def dense(divergence: str, student: Tensor, teacher: Tensor) -> Tensor:
    """Divergences `[n]` from `[n, V]` logits, as one would write them; softmax in float32."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    log_s = log_softmax(student, -1, dtype=dtype)
    log_q = log_softmax(teacher, -1, dtype=dtype)
    if divergence == "reverse_kl":
        return kl_div(log_q, log_s, reduction="none", log_target=True).sum(-1)
    mixture = torch.logaddexp(log_s, log_q) - math.log(2)
    both = kl_div(mixture, log_s, reduction="none", log_target=True) + kl_div(
        mixture, log_q, reduction="none", log_target=True
    )
    return both.sum(-1) / 2


def rows_loss(divergence: str, student: Tensor, head: Tensor, teacher: Tensor) -> Tensor:
    """Divergences `[n]` through full logits in the type of the inputs."""
    with torch.no_grad():
        shown = linear(teacher, head)
    return dense(divergence, linear(student, head), shown)


def naive(divergence: str) -> Loss:
    return lambda student, head, teacher: rows_loss(divergence, student, head, teacher).mean()


def checkpointed(divergence: str) -> Loss:
    def loss(student: Tensor, head: Tensor, teacher: Tensor) -> Tensor:
        parts = [
            checkpoint(rows_loss, divergence, rows, head, shown, use_reentrant=False)
            for rows, shown in zip(
                student.split(CHUNK_ROWS), teacher.split(CHUNK_ROWS), strict=True
            )
        ]
        return torch.cat(parts).mean()  # pyright: ignore[reportArgumentType]

    return loss


def trl(divergence: str) -> Loss:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    beta = {"reverse_kl": 1.0, "jsd": 0.5}[divergence]

    def loss(student: Tensor, head: Tensor, teacher: Tensor) -> Tensor:
        per_token, _ = ChunkedDivergenceFunction.apply(  # pyright: ignore
            student, head, None, teacher, head.detach(), None, beta
        )
        return per_token.mean()

    return loss


def liger(divergence: str) -> Loss:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # pyright: ignore

    fused = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0,
        weight_soft_loss=1.0,
        beta={"reverse_kl": 1.0, "jsd": 0.5}[divergence],
        compiled=False,
        chunk_size=CHUNK_ROWS,
    )

    def loss(student: Tensor, head: Tensor, teacher: Tensor) -> Tensor:
        labels = torch.zeros(len(student), dtype=torch.long)
        return fused(student, head, teacher, head.detach(), labels)

    return loss


def opd(divergence: str) -> Loss:
    from opd.learner.chunked import linear_divergence
    from opd.objective.divergence import JSD, ReverseKL

    part = {"reverse_kl": ReverseKL(), "jsd": JSD()}[divergence]

    def loss(student: Tensor, head: Tensor, teacher: Tensor) -> Tensor:
        weights = torch.full((len(student),), 1 / len(student))
        total, _ = linear_divergence(student, head, teacher, head, part, weights=weights)
        return total

    return loss


IMPLEMENTATIONS: Mapping[str, Callable[[str], Loss]] = {
    "naive": naive,
    "checkpointed": checkpointed,
    "trl": trl,
    "liger": liger,
    "opd": opd,
}


if __name__ == "__main__":
    sys.exit(main())
