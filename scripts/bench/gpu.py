"""One NVIDIA GPU in at most ten minutes: the loss and the learner's step, beside their peers.

Ceilings of the device first, then accuracy, the loss over sizes, chunk sizes, the kernel's block
sizes, and steps of models with the shapes of Qwen3. Everything is random and nothing is downloaded.
A peer that does not import is skipped by name, and so is what no time is left for. Exits 1 when a
bar is missed or something of ours fails.

    python scripts/bench/gpu.py
    TRITON_INTERPRET=1 python scripts/bench/gpu.py --device cpu --shapes tiny --to FILE  # a trial
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from gpu_losses import DIVERGENCES, IMPLEMENTATIONS, OURS, PEERS, Make, Problem, dense, gap
from measure import RESULTS, Bar, machine, print_bars, print_table, ratio
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from opd.learner import row_kernel
from opd.learner.batch import pack, to_device
from opd.learner.learner import Learner, Optimizer
from opd.learner.model import LoRA, Model
from opd.learner.row_pairs import RowPairs
from opd.objective.divergence import Divergence, ReverseKL
from opd.objective.loss import Distill
from opd.objective.term import Term
from opd.privileged import Trajectory
from opd.teacher.score import Teacher
from opd.teacher.view import Plain
from opd.teacher.weights import Live
from opd.types import Message, Prompt, Rollout, Verdict

GIB = 2**30
PEAK_FLOPS = 989e12
"""bfloat16, dense, of an H100 or H200 by its datasheet: what utilisation is given as a share of."""
LIBRARIES = ("torch", "triton", "transformers", "peft", "trl", "liger-kernel")
LONGEST_MEASUREMENT = 1.5
"""Seconds after which a case is not repeated further."""
LOGIT_DEVIATION = 4.0
NEAR, FAR = 0.008, 0.3
"""Noise between student and teacher in standard deviations of the hidden states; the first gives
about 5e-4 nats a token, as in self-distillation."""


@dataclass(frozen=True)
class ModelShape:
    """A Qwen3 of random weights."""

    hidden: int
    layers: int
    heads: int
    inner: int
    tokens_per_batch: int
    """Positions of a micro-batch that fit on the device with a full fine-tune."""

    @property
    def body(self) -> int:
        """Parameters of the layers, which a token passes once."""
        attention = 2 * self.hidden * 128 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.inner)

    @property
    def kv_heads(self) -> int:
        return min(8, self.heads)


@dataclass(frozen=True)
class Shapes:
    """How large everything is."""

    vocabulary: int
    widths: tuple[int, ...]
    rows: tuple[int, ...]
    middle: int
    """The number of rows that the bars speak of."""
    chunks: tuple[int, ...]
    blocks: tuple[tuple[int, int, int], ...]
    """Entries, warps and stages of the kernel."""
    product: int
    copied_bytes: int
    models: Mapping[str, ModelShape]
    group: int
    prompt: int
    teacher_prompt: int
    response: tuple[int, int]
    """Shortest and longest."""
    minutes: float
    repeats: int
    """Of which the median is told, after a quarter as many that are not."""


SHAPES = {
    "full": Shapes(
        vocabulary=151_936,
        widths=(2048, 4096, 1024),
        rows=(8192, 1024, 32_768),
        middle=8192,
        chunks=(256, 512, 1024, 2048, 4096),
        blocks=tuple((b, w, s) for b, w in ((1024, 4), (2048, 8), (4096, 16)) for s in (1, 3)),
        product=8192,
        copied_bytes=8 * 10**9,
        models={
            "0.6B": ModelShape(1024, 28, 16, 3072, 40_960),
            "1.7B": ModelShape(2048, 28, 16, 6144, 20_480),
        },
        group=8,
        prompt=512,
        teacher_prompt=2048,
        response=(2048, 4096),
        minutes=9.5,
        repeats=20,
    ),
    "tiny": Shapes(
        vocabulary=512,
        widths=(32,),
        rows=(8,),
        middle=8,
        chunks=(4, 8),
        blocks=((1024, 4, 1),),
        product=64,
        copied_bytes=10**6,
        models={"tiny": ModelShape(32, 1, 2, 64, 4096)},
        group=2,
        prompt=5,
        teacher_prompt=9,
        response=(3, 6),
        minutes=2.0,
        repeats=1,
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shapes", choices=tuple(SHAPES), default="full")
    parser.add_argument("--to", type=Path, default=RESULTS / "gpu.json")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "gpu: no CUDA device is here; run it where there is one, or try the script itself with "
            "TRITON_INTERPRET=1 and --device cpu --shapes tiny --to FILE"
        )
    if options.device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise SystemExit("gpu: on a CPU the kernel needs TRITON_INTERPRET=1 in the environment")
    torch.manual_seed(0)
    bench = Bench(torch.device(options.device), SHAPES[options.shapes])
    bars = bench.run()
    print_bars(bars)
    judged = [{**asdict(bar), "holds": bar.holds} for bar in bars]
    found = {"machine": {**machine(), **bench.describe()}, **bench.found, "bars": judged}
    options.to.parent.mkdir(exist_ok=True)
    options.to.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {options.to.name}")
    return int(bool(bench.failed) or any(bar.holds is False for bar in bars))


# Measuring


@dataclass(frozen=True)
class Cost:
    """What one call takes."""

    milliseconds: float
    """The median."""
    repeats: int
    working_set_gib: float | None
    """Most memory during a call less that before it; of a loss, also less what any must keep: the
    rows' gradient and the head's in float32."""


class Device:
    """A clock and a memory gauge; on a CPU the gauge reads nothing."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device = device
        self.repeats = repeats
        self.is_cuda = device.type == "cuda"

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()

    def clear(self) -> None:
        """Let go of what earlier cases held."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def free_gib(self) -> float:
        return torch.cuda.mem_get_info()[0] / GIB if self.is_cuda else 1.0

    def once(self, call: Callable[[], object]) -> float:
        """Milliseconds of one call."""
        if not self.is_cuda:
            started = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - started)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last)

    def cost(self, call: Callable[[], object], leaves: Sequence[Tensor] = ()) -> Cost:
        """The median of `repeats` calls, of fewer where they take long; `leaves` lose their
        gradients before each."""

        def fresh() -> None:
            for leaf in leaves:
                leaf.grad = None

        fresh()
        # The first compiles; the second says how many there is time for.
        self.once(call)
        fresh()
        fits = int(1e3 * LONGEST_MEASUREMENT / max(self.once(call), 1e-3))
        repeats = min(self.repeats, max(3, fits))
        times: list[float] = []
        for _ in range(repeats // 4 + repeats):
            fresh()
            times.append(self.once(call))
        fresh()
        return Cost(statistics.median(times[-repeats:]), repeats, self.working_set(call))

    def working_set(self, call: Callable[[], object]) -> float | None:
        if not self.is_cuda:
            return None
        base = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - base) / GIB


@dataclass
class Clock:
    """The time that is left, and what it did not suffice for."""

    ends: float
    dropped: list[str] = field(default_factory=list)

    def allows(self, name: str, *, keep: float) -> bool:
        """Whether more than `keep` seconds are left; if not, `name` is put down as dropped."""
        if time.monotonic() < self.ends - keep:
            return True
        self.dropped.append(name)
        return False


class Bench:
    """All sections, in order, and what they found."""

    def __init__(self, device: torch.device, shapes: Shapes) -> None:
        self.device = Device(device, shapes.repeats)
        self.shapes = shapes
        self.clock = Clock(time.monotonic() + 60 * shapes.minutes)
        self.found: dict[str, Any] = {}
        self.bars: list[Bar] = []
        self.flops = 0.0
        """Of the product that was measured, a second."""
        self.broken: set[str] = set()
        """Peers that cannot run here."""
        self.failed: list[str] = []
        """What of ours raised an error."""

    def run(self) -> list[Bar]:
        # Seconds of the total that later sections keep: each may use what is left above its own.
        seconds = 60 * self.shapes.minutes
        sections: Sequence[tuple[Callable[[float], None], float]] = (
            (self.ceilings, 0.95),
            (self.accuracy, 0.86),
            (self.losses, 0.5),
            (self.chunk_sizes, 0.47),
            (self.block_sizes, 0.4),
            (self.steps, 0.02),
        )
        for section, share in sections:
            self.device.clear()
            self.guarded(section.__name__, partial(section, share * seconds))
        for name in self.clock.dropped:
            print(f"no time left: {name}")
        self.found |= {"dropped": self.clock.dropped, "failed": self.failed}
        if self.device.is_cuda:
            return self.bars
        print("a CPU run tries the script; its numbers mean nothing")
        return [Bar(bar.name, None, bar.limit, bar.at_least) for bar in self.bars]

    def describe(self) -> dict[str, object]:
        """The device and the libraries that decide the numbers."""
        name = torch.cuda.get_device_name() if self.device.is_cuda else "cpu"
        libraries = {library: installed(library) for library in LIBRARIES}
        return {"device": name, "threads": torch.get_num_threads(), "seed": 0, **libraries}

    # Ceilings

    def ceilings(self, keep: float) -> None:
        """A large product and a large copy: what the rest is held against."""
        size = self.shapes.product
        first, second = (self.normal(size, size).bfloat16() for _ in range(2))
        multiplied = self.device.cost(lambda: first @ second)
        self.flops = 2 * size**3 / multiplied.milliseconds * 1e3
        source = self.normal(self.shapes.copied_bytes // 4)
        target = torch.empty_like(source)
        copied = self.device.cost(lambda: target.copy_(source))
        rate = 2 * source.nbytes / copied.milliseconds * 1e3
        self.found["ceilings"] = {"tflops": self.flops / 1e12, "copy_tb_per_s": rate / 1e12}
        print(f"product of {size}^3 in bfloat16: {self.flops / 1e12:.3g} TFLOP/s")
        print(f"copy of {source.nbytes / 1e9:.2g} GB: {rate / 1e12:.3g} TB/s read and written\n")

    # The loss

    def accuracy(self, keep: float) -> None:
        """Gradients of 256 rows against float64, near the student and far from it."""
        rows, width = min(256, self.shapes.middle), min(self.shapes.widths)
        table: dict[str, dict[str, float]] = {}
        for label, noise in (("near", NEAR), ("far", FAR)):
            problem = self.problem(rows, width, noise=noise)
            for divergence in DIVERGENCES:
                exact = self.exact(problem, divergence)
                for name, make in IMPLEMENTATIONS.items():
                    case = f"{label} {divergence}"
                    if not self.clock.allows(f"accuracy: {name}, {case}", keep=keep):
                        continue
                    error = self.guarded(
                        name, lambda m=make, d=divergence, p=problem, e=exact: gap(m(d), p, e)
                    )
                    if error is not None:
                        table.setdefault(name, {})[case] = error
        self.found["accuracy"] = table
        columns = [f"{label} {d}" for label in ("near", "far") for d in DIVERGENCES]
        print(f"error of the rows' gradient against float64, {rows} rows, bfloat16")
        print_table(
            ("", *columns),
            [(n, *(number(row.get(c), ".1e") for c in columns)) for n, row in table.items()],
        )
        value = table.get("opd", {}).get("near reverse_kl")
        self.bars.append(Bar("bf16 dh error near the student: opd", value, 0.02))

    def exact(self, problem: Problem, divergence: str) -> Tensor:
        """The gradient of the mean divergence in the student states, in float64."""
        student, head, teacher = (t.detach().double() for t in problem)
        student.requires_grad_()
        loss = dense(divergence, linear(student, head), linear(teacher, head)).mean()
        (gradient,) = torch.autograd.grad(loss, student)
        return gradient

    def losses(self, keep: float) -> None:
        """Every implementation over widths, rows, divergences and a frozen head; what the bars
        speak of first."""
        cases = [
            Case(width, rows, divergence, frozen)
            for rows in self.shapes.rows
            for frozen in (False, True)
            for divergence in DIVERGENCES
            for width in self.shapes.widths
        ]
        found: dict[Case, dict[str, Cost]] = {}
        for case in cases:
            self.device.clear()
            found[case] = self.loss_case(case, keep)
            self.show_losses(case, found[case])
        self.found["losses"] = [
            {**asdict(case), "floor_ms": self.floor(case), "costs": costs_of(costs)}
            for case, costs in found.items()
        ]
        self.judge_losses(found)

    def loss_case(self, case: Case, keep: float) -> dict[str, Cost]:
        problem = self.problem(case.rows, case.width, frozen=case.frozen)
        leaves = [tensor for tensor in problem if tensor.requires_grad]
        costs: dict[str, Cost] = {}
        for name, make in IMPLEMENTATIONS.items():
            if name == "naive" and self.naive_gib(case) > 0.8 * self.device.free_gib():
                print(f"skipped naive at {case}: {self.naive_gib(case):.0f} GiB do not fit")
            elif self.clock.allows(f"loss: {name}, {case}", keep=keep):
                cost = self.guarded(name, lambda m=make: self.loss_cost(m, case, problem, leaves))
                if cost is not None:
                    costs[name] = cost
        return costs

    def loss_cost(self, make: Make, case: Case, problem: Problem, leaves: Sequence[Tensor]) -> Cost:
        loss = make(case.divergence)
        cost = self.device.cost(lambda: loss(*problem).backward(), leaves)
        if cost.working_set_gib is None:
            return cost
        kept = problem[0].nbytes + 4 * problem[1].numel() * problem[1].requires_grad
        return replace(cost, working_set_gib=cost.working_set_gib - kept / GIB)

    def naive_gib(self, case: Case) -> float:
        """Tables that full logits hold at once, by measurement elsewhere."""
        tables = 12 if case.divergence == "jsd" else 8
        return 4 * tables * case.rows * self.shapes.vocabulary / GIB

    def floor(self, case: Case) -> float:
        """Milliseconds of the products alone: student, teacher, rows and weight."""
        units = 3 if case.frozen else 4
        return 1e3 * units * 2 * case.rows * self.shapes.vocabulary * case.width / self.flops

    def show_losses(self, case: Case, costs: Mapping[str, Cost]) -> None:
        floor = self.floor(case)
        print(f"{case}: floor {floor:.2f} ms")
        print_table(
            ("", "ms", "over floor", "TFLOP/s", "working GiB", "repeats"),
            [
                (
                    name,
                    f"{cost.milliseconds:.2f}",
                    f"{cost.milliseconds / floor:.2f}x",
                    f"{self.flops / 1e12 * floor / cost.milliseconds:.4g}",
                    number(cost.working_set_gib, ".2f"),
                    str(cost.repeats),
                )
                for name, cost in costs.items()
            ],
        )

    def judge_losses(self, found: Mapping[Case, Mapping[str, Cost]]) -> None:
        """What ships, at the middle number of rows and with a trainable head."""
        for width in self.shapes.widths:
            for divergence, limit in (("reverse_kl", 0.75), ("jsd", 0.60)):
                case = Case(width, self.shapes.middle, divergence, False)
                costs = found[case]
                ours = costs["opd"].milliseconds if "opd" in costs else None
                title = f"D={width} {divergence}"
                if width >= 2048 or not self.device.is_cuda:
                    bar = ratio(ours, self.floor(case))
                    self.bars.append(Bar(f"{title}: opd over the floor", bar, 1.30))
                theirs = costs["trl"].milliseconds if "trl" in costs else None
                self.bars.append(Bar(f"{title}: opd over TRL", ratio(ours, theirs), limit))
        sets = [
            costs["opd"].working_set_gib
            for costs in found.values()
            if "opd" in costs and costs["opd"].working_set_gib is not None
        ]
        self.bars.append(Bar("opd's largest working set, GiB", max(sets, default=None), 1.5))

    def chunk_sizes(self, keep: float) -> None:
        """How many rows at once pay."""
        table: dict[str, dict[str, Any]] = {}
        width = self.shapes.widths[0]
        problem = self.problem(self.shapes.middle, width)
        leaves = [tensor for tensor in problem if tensor.requires_grad]
        for name, make in OURS.items():
            for rows in self.shapes.chunks:
                title = f"D={width} {name} chunks of {rows}"
                loss = make("reverse_kl", rows)
                if self.clock.allows(title, keep=keep):
                    cost = self.guarded(
                        name,
                        lambda f=loss: self.device.cost(lambda: f(*problem).backward(), leaves),
                    )
                    if cost is not None:
                        table[title] = asdict(cost)
        self.show("chunks", table)

    def block_sizes(self, keep: float) -> None:
        """The kernel alone: what its blocks, warps and stages should be on this device."""
        if not self.device.is_cuda:
            return
        table: dict[str, dict[str, Any]] = {}
        plain = row_kernel.BLOCK, row_kernel.WARPS, row_kernel.STAGES
        rows = min(1024, self.shapes.middle)
        logits = self.normal(rows, self.shapes.vocabulary)
        other = self.normal(rows, self.shapes.vocabulary)
        for block, warps, stages in self.shapes.blocks:
            row_kernel.BLOCK, row_kernel.WARPS, row_kernel.STAGES = block, warps, stages
            for name, (divergence, _) in DIVERGENCES.items():
                title = f"{name} block {block} warps {warps} stages {stages}"
                if self.clock.allows(title, keep=keep):
                    for pulls in (False, True):
                        call = partial(kernel_alone, logits, other, divergence, pulls=pulls)
                        cost = self.guarded(title, partial(self.device.cost, call))
                        if cost is not None:
                            table[title + (": both" if pulls else ": measure")] = asdict(cost)
        row_kernel.BLOCK, row_kernel.WARPS, row_kernel.STAGES = plain
        self.show("blocks", table)

    def show(self, name: str, table: Mapping[str, Mapping[str, Any]]) -> None:
        self.found[name] = table
        print(name)
        print_table(
            ("", "ms", "working GiB"),
            [
                (title, f"{row['milliseconds']:.3f}", number(row["working_set_gib"], ".2f"))
                for title, row in table.items()
            ],
        )

    def guarded(self, name: str, call: Callable[[], Any]) -> Any:
        """What `call` returns; None, and why, where it raises."""
        if name in self.broken:
            return None
        try:
            return call()
        except torch.OutOfMemoryError as error:
            print(f"skipped {name} here: {str(error).splitlines()[0]}")
        except Exception as error:
            # Neither a peer's fault nor one of ours may cost what the run has found so far.
            if name in (*PEERS, "SDFT"):
                print(f"skipped {name}: {type(error).__name__}: {str(error)[:200]}")
                self.broken.add(name)
            else:
                traceback.print_exc()
                self.failed.append(name)
        self.device.clear()
        return None

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device.device)

    def problem(
        self, rows: int, width: int, *, noise: float = FAR, frozen: bool = False
    ) -> Problem:
        """Student states, the head and teacher states in bfloat16."""
        head = self.normal(self.shapes.vocabulary, width) * (LOGIT_DEVIATION / math.sqrt(width))
        student = self.normal(rows, width)
        teacher = (student + noise * self.normal(rows, width)).bfloat16()
        head = head.bfloat16().requires_grad_(not frozen)
        return student.bfloat16().requires_grad_(), head, teacher

    # The step

    def steps(self, keep: float) -> None:
        """Steps of whole models on the same rollouts."""
        table: dict[str, dict[str, Any]] = {}
        layouts = ("packed, prompt shared", "packed", "padded")
        with tempfile.TemporaryDirectory() as folder:
            for name, shape in self.shapes.models.items():
                self.save_model(Path(folder) / name, shape)
            self.against_trl(Path(folder), table)
            for layout, lora, name in itertools.product(layouts, (False, True), self.shapes.models):
                title = f"{name} {'LoRA' if lora else 'full'}, {layout}"
                if self.clock.allows(title, keep=keep + 20):
                    self.device.clear()
                    shape = self.shapes.models[name]
                    call = partial(self.step, Path(folder) / name, shape, lora, layout)
                    run = self.guarded(title, call)
                    if run is not None:
                        table[title] = run
        self.found["steps"] = table
        columns = ("seconds", "tokens_per_second", "utilisation", "peak_gib")
        print("steps")
        print_table(
            ("", *columns),
            [(n, *(number(row[c], ".3g") for c in columns)) for n, row in table.items()],
        )
        for name in self.shapes.models:
            for kind, limit in (("full", 0.40), ("LoRA", 0.35)):
                row = table.get(f"{name} {kind}, packed, prompt shared", {})
                title = f"{name} {kind}: share of {PEAK_FLOPS / 1e12:.0f} TFLOP/s"
                self.bars.append(Bar(title, row.get("utilisation"), limit, at_least=True))

    def save_model(self, path: Path, shape: ModelShape) -> None:
        """Random weights, made on the device, with a tokenizer of one token a word."""
        words = {f"w{index}": index for index in range(self.shapes.vocabulary)}
        tokenizer = Tokenizer(models.WordLevel(vocab=words, unk_token="w0"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="w0",
            eos_token="w1",
            unk_token="w0",
            padding_side="left",
            chat_template="{% for turn in messages %}{{ turn['content'] }} {% endfor %}",
        ).save_pretrained(path)
        with self.device.device:
            model = Qwen3ForCausalLM(
                Qwen3Config(
                    vocab_size=self.shapes.vocabulary,
                    hidden_size=shape.hidden,
                    intermediate_size=shape.inner,
                    num_hidden_layers=shape.layers,
                    num_attention_heads=shape.heads,
                    num_key_value_heads=shape.kv_heads,
                    head_dim=128,
                    max_position_embeddings=16_384,
                    tie_word_embeddings=True,
                    pad_token_id=0,
                    eos_token_id=1,
                    bos_token_id=None,
                )
            )
        model.bfloat16().save_pretrained(path)
        del model
        self.device.clear()

    def rows(self, count: int) -> Rows:
        """Problems with answers of uneven lengths; every `group` answers share their prompts."""
        drawn = random.Random(0)

        def ids(length: int) -> tuple[int, ...]:
            return tuple(drawn.randrange(2, self.shapes.vocabulary) for _ in range(length))

        rows: Rows = []
        for index in range(count):
            if index % self.shapes.group == 0:
                prompt, shown = ids(self.shapes.prompt), ids(self.shapes.teacher_prompt)
            rows.append((prompt, shown, ids(drawn.randint(*self.shapes.response))))
        return rows

    def step(
        self,
        path: Path,
        shape: ModelShape,
        lora: bool,
        layout: str,
        *,
        count: int | None = None,
        tokens_per_batch: int | None = None,
    ) -> dict[str, Any]:
        """A step of opd: the teacher's passes, the loss, backward, clipping and AdamW."""
        count = count or self.shapes.group
        rows, is_shared = self.rows(count), layout.endswith("shared")
        cuda = self.device.is_cuda
        learner = Learner(
            Model(
                path=str(path),
                dtype="bfloat16" if cuda else "float32",
                attention="varlen" if cuda and layout != "padded" else "sdpa",
                lora=LoRA() if lora else None,
            ),
            {"distil": Term(loss=Distill(target="view", divergence=ReverseKL()))},
            Optimizer(),
            Accelerator(cpu=not cuda),
            steps=10,
            temperature=1.0,
            max_response_tokens=self.shapes.response[1],
        )
        teacher = Teacher(weights=Live(), views={"view": Plain()})
        trajectories = [
            trajectory(prompt, shown if is_shared else (2 + index, *shown[1:]), response)
            for index, (prompt, shown, response) in enumerate(rows)
        ]

        def call() -> None:
            batches = [
                to_device(batch, learner.accelerator.device)
                for batch in pack(
                    trajectories,
                    tokens_per_batch=tokens_per_batch or shape.tokens_per_batch,
                    packing=layout != "padded",
                    pad_id=0,
                )
            ]
            learner.update(batches, teacher.score(trajectories, batches, ("view",), learner), 0)

        call()
        self.device.synchronize()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = statistics.median(self.device.once(call) / 1e3 for _ in range(3))
        tokens = sum(len(response) for _, _, response in rows)
        flops = self.step_flops(shape, rows, lora=lora, is_shared=is_shared)
        return {
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "utilisation": flops / seconds / PEAK_FLOPS,
            "peak_gib": torch.cuda.max_memory_allocated() / GIB if cuda else None,
        }

    def step_flops(self, shape: ModelShape, rows: Rows, *, lora: bool, is_shared: bool) -> float:
        """What a step cannot do without: products and causal attention, adapters left out; a
        shared prompt is counted once."""
        attention = 2 * shape.layers * shape.heads * 128
        student = teacher = 0.0
        for index, (prompt, shown, response) in enumerate(rows):
            length = len(prompt) + len(response)
            # Frozen layers pass a gradient on but have none of their own.
            student += 2 * shape.body * length * (2 if lora else 3) + 3 * attention * length**2
            whole = len(shown) + len(response)
            known = len(shown) if is_shared and index % self.shapes.group else 0
            teacher += 2 * shape.body * (whole - known) + attention * (whole**2 - known**2)
        scored = sum(len(response) for _, _, response in rows)
        head = (3 if lora else 4) * 2 * scored * self.shapes.vocabulary * shape.hidden
        return student + teacher + head

    def against_trl(self, folder: Path, table: dict[str, dict[str, Any]]) -> None:
        """The first model against SDFT: the same answers, at the largest batch that SDFT fits."""
        name, shape = next(iter(self.shapes.models.items()))
        faster = larger = None
        count = self.shapes.group
        while count and self.clock.allows(f"SDFT, batch {count}", keep=15):
            self.device.clear()
            # It fails by running out of memory, so every size is a try of its own.
            call = partial(sdft, folder / name, self.rows(count), self.device)
            found = self.guarded("SDFT", call)
            if found is not None:
                break
            count //= 2
        else:
            found = None
        if found is not None:
            table[f"SDFT, batch {count}"] = found
            ours = partial(self.step, folder / name, shape, False, "packed, prompt shared")
            self.device.clear()
            equal = self.guarded("equal batch", partial(ours, count=count))
            self.device.clear()
            # One micro-batch of all, so that nothing is split.
            twice = partial(ours, count=2 * count, tokens_per_batch=1 << 30)
            double = self.guarded("twice the batch", twice)
            for size, row in ((count, equal), (2 * count, double)):
                if row is not None:
                    table[f"opd, batch {size}"] = row
                    faster = faster or row["tokens_per_second"] / found["tokens_per_second"]
                    larger = size / count
        self.bars.append(Bar(f"{name}: opd's tokens/s over SDFT's", faster, 1.3, at_least=True))
        self.bars.append(Bar(f"{name}: opd's largest batch over SDFT's", larger, 2, at_least=True))


Rows = list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""The student's prompt, the teacher's prompt and the response, in tokens."""


def trajectory(
    prompt: tuple[int, ...], shown: tuple[int, ...], response: tuple[int, ...]
) -> Trajectory:
    rollout = Rollout(
        prompt=Prompt("0", (Message("user", ""),)),
        prompt_ids=prompt,
        token_ids=response,
        logprobs=(math.nan,) * len(response),
        policy_step=-1,
        finish="length",
        text="",
    )
    return Trajectory(rollout, Verdict("pass", 1.0), 0.0, 1.0, {"view": shown})


def sdft(path: Path, rows: Rows, device: Device) -> dict[str, Any]:
    """A step of TRL's SDFT on the same answers, with full logits and a live teacher."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    steps = 4
    seconds: list[float] = []

    class Timed(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **named: Any) -> None:
            device.synchronize()
            self.started = time.perf_counter()

        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            device.synchronize()
            seconds.append(time.perf_counter() - self.started)

    class Replayed(SDFTTrainer):
        def _generate(self, prompt_ids: list[list[int]], *more: Any) -> Any:
            return prompt_ids, [list(response) for _, _, response in rows]

    def text(ids: Sequence[int]) -> str:
        return " ".join(f"w{token}" for token in ids)

    with tempfile.TemporaryDirectory() as output:
        trainer = Replayed(
            model=str(path),
            args=SDFTConfig(
                output_dir=output,
                per_device_train_batch_size=len(rows),
                max_steps=steps,
                learning_rate=1e-6,
                max_prompt_length=None,
                max_completion_length=max(len(response) for _, _, response in rows),
                num_generations=1,
                distillation_mode="full_logits",
                distillation_alpha=1.0,
                distillation_is_clip=None,
                teacher_model_kind="live",
                shuffle_dataset=False,
                gradient_checkpointing=False,
                bf16=device.is_cuda,
                use_cpu=not device.is_cuda,
                dataloader_pin_memory=False,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict(
                {
                    "prompt": [[{"role": "user", "content": text(row[0])}] for row in rows] * steps,
                    "privileged_context": [
                        text(row[1][: len(row[1]) - len(row[0])]) for row in rows
                    ]
                    * steps,
                }
            ),
            callbacks=[Timed()],
        )
        if device.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    median = statistics.median(seconds[1:])
    return {
        "seconds": median,
        "tokens_per_second": sum(len(response) for _, _, response in rows) / median,
        "utilisation": None,
        "peak_gib": torch.cuda.max_memory_allocated() / GIB if device.is_cuda else None,
    }


def kernel_alone(logits: Tensor, other: Tensor, divergence: Divergence, *, pulls: bool) -> None:
    """Both tables read, and with `pulls` the first overwritten; what stands there afterwards are
    logits like others."""
    ids = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    pairs = RowPairs(logits, other, ids, divergence, temperature=1.0, is_difference=True)
    statistics = row_kernel.measure(pairs)
    if pulls:
        ones = torch.ones(len(logits), device=logits.device)
        row_kernel.pull_(pairs, statistics, ones, ones)


@dataclass(frozen=True)
class Case:
    """One size of the loss."""

    width: int
    rows: int
    divergence: str
    frozen: bool

    def __str__(self) -> str:
        head = "frozen" if self.frozen else "trainable"
        return f"D={self.width} N={self.rows} {self.divergence} {head}"


def costs_of(costs: Mapping[str, Cost]) -> dict[str, object]:
    return {name: asdict(cost) for name, cost in costs.items()}


def installed(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    sys.exit(main())
