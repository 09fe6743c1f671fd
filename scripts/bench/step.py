"""One optimizer step of distillation: opd beside TRL's trainers, on the same rollouts.

A tiny random Qwen3 answers random prompts once; every trainer then takes the same steps on these
answers: tokenising prompts, student and teacher forward, loss, backward, clipping, AdamW. Nothing
is timed unless both sides start from the same loss. Last, each samples its own answers with
transformers' `generate`. Every row is a process of its own with one thread, and all rows of a
scenario take turns. Needs `pip install 'opd[trl]'`. Exits 1 when a bar is missed. Takes about 12
minutes and 8 GiB.

    python scripts/bench/step.py
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, NoReturn, cast

import torch
from accelerate import Accelerator
from measure import (
    RESULTS,
    Answer,
    Bar,
    Cost,
    Turns,
    by_turns,
    costing,
    middle,
    print_bars,
    print_table,
    ratio,
    save,
)
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils.logging import disable_progress_bar

from opd.learner.batch import pack
from opd.learner.learner import Learner, Optimizer
from opd.learner.model import Model
from opd.objective.divergence import ReverseKL
from opd.objective.loss import Distill
from opd.objective.schedule import Constant
from opd.objective.support import Full, Support, TopK
from opd.objective.term import Term
from opd.privileged import Group, Privileged, Problem, Trajectory
from opd.rollout.chat import Chat
from opd.rollout.engine import Sampling
from opd.rollout.hf import HF
from opd.rollout.sampler import Sampler
from opd.teacher.score import Teacher
from opd.teacher.view import Plain, Solution
from opd.teacher.weights import External, Live
from opd.types import Message, Prompt, Rollout, Verdict

VOCABULARY = 32_768
SPECIAL = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>", "<|unknown|>")
TEMPLATE = """\
{%- for turn in messages %}<|{{ turn['role'] }}|> {{ turn['content'] }} <|end|> {% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
TEMPLATE_TOKENS = 3
BATCH = 8
STEPS = 7
WARM_UPS = 2
PROMPT_TOKENS = (16, 112)
PRIVILEGED_TOKENS = 256
RESPONSE_TOKENS = (16, 128)
TOP_K = 100
LEARNING_RATE = 1e-5
TOLERANCE = 1e-4
CAVEATS = """\
TRL 1.16 on a CPU: its DistillationTrainer projects padded positions too, which it leaves out on a
GPU. Gradient checkpointing and bfloat16, both on by default in TRL, are off on both sides; logging
and checkpoints are not counted."""

Lengths = Literal["fixed", "variable", "generated"]
Rows = list[dict[str, Any]]
"""`prompt`, `privileged` and `response` of the problems of a run, a batch after the other."""


@dataclass(frozen=True)
class Case:
    """One trainer on one kind of rollouts."""

    system: Literal["trl", "opd"]
    peer: str
    lengths: Lengths
    folder: str


@dataclass(frozen=True)
class Peer:
    """A trainer of TRL, what of opd does the same, and the speed-up aimed at."""

    title: str
    privileged: bool
    """Whether the teacher is the student itself, shown privileged text, or another model."""
    support: Support
    average: Literal["token", "sequence"]
    speed_up: float
    mode: str = ""


PEERS = {
    "sdft_full": Peer("SDFT full logits", True, Full(), "sequence", 1.5, "full_logits"),
    "sdft_topk": Peer(
        f"SDFT top-k {TOP_K}",
        True,
        TopK(size=TOP_K, rest="renormalise"),
        "sequence",
        1.5,
        "topk_logits",
    ),
    "distillation": Peer("DistillationTrainer", False, Full(), "token", 2.0),
}


def main() -> int:
    disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    if options.case:
        work(Case(**json.loads(options.case)))
    print(CAVEATS, end="\n\n")
    scenarios: dict[str, object] = {}
    bars: list[Bar] = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for lengths in ("fixed", "variable", "generated"):
            cases = {
                f"{system} {peer}": asdict(Case(system, peer, lengths, folder))
                for peer in PEERS
                for system in ("trl", "opd")
            }
            answers = by_turns(
                __file__,
                cases,
                STEPS - WARM_UPS,
                warm_ups=WARM_UPS,
                check=prove_equal if lengths != "generated" else lambda first: None,
            )
            found = {name: summary(told) for name, told in answers.items()}
            show(lengths, found)
            scenarios[lengths] = found
            bars += judged(lengths, found)
    print_bars(bars)
    save(options.results / "step.json", {"scenarios": scenarios}, bars)
    return int(any(bar.holds is False for bar in bars))


def prove_equal(first: Mapping[str, Answer]) -> None:
    """Raise SystemExit unless both sides report the same loss on the first batch."""
    for peer in PEERS:
        if f"trl {peer}" not in first:
            continue
        theirs, mine = first[f"trl {peer}"]["loss"], first[f"opd {peer}"]["loss"]
        if abs(mine / theirs - 1) > TOLERANCE:
            raise SystemExit(
                f"{PEERS[peer].title}: its first loss is {theirs:.6g} and that of opd {mine:.6g}; "
                "they do not compute the same thing, so nothing is timed"
            )
        print(f"{PEERS[peer].title}: first loss {theirs:.7g}, opd {mine:.7g}", flush=True)


def summary(answers: Sequence[Answer]) -> dict[str, float]:
    """Medians over the steps that count, and the highest peak."""
    return {
        "seconds": middle(answers, "seconds"),
        "tokens_per_second": middle(
            [{"rate": answer["tokens"] / answer["seconds"]} for answer in answers], "rate"
        ),
        "peak_mib": max(answer["peak_mib"] for answer in answers),
        "generation_share": middle(
            [{"share": answer["generation"] / answer["seconds"]} for answer in answers], "share"
        ),
        "last_loss": answers[-1]["loss"],
    }


def show(lengths: str, found: Mapping[str, Mapping[str, float]]) -> None:
    columns = {
        "CPU s/step": ("seconds", "{:.2f}"),
        "tokens/CPU s": ("tokens_per_second", "{:.0f}"),
        "peak MiB": ("peak_mib", "{:.0f}"),
        "generation": ("generation_share", "{:.0%}"),
        f"loss at step {STEPS}": ("last_loss", "{:.7f}"),
    }
    print(f"responses: {lengths}")
    print_table(
        ("", *columns),
        [
            (name, *(form.format(row[field]) for field, form in columns.values()))
            for name, row in found.items()
        ],
    )


def judged(lengths: str, found: Mapping[str, Mapping[str, float]]) -> list[Bar]:
    """Throughput and, on replayed rollouts, memory against each peer."""
    bars: list[Bar] = []
    for name, peer in PEERS.items():
        mine, theirs = found.get(f"opd {name}", {}), found.get(f"trl {name}", {})
        generated = lengths == "generated"
        faster = ratio(mine.get("tokens_per_second"), theirs.get("tokens_per_second"))
        bars.append(
            Bar(
                f"{lengths}: opd's tokens/s over {peer.title}'s",
                faster,
                1.0 if generated else peer.speed_up,
                at_least=True,
            )
        )
        if not generated:
            smaller = ratio(mine.get("peak_mib"), theirs.get("peak_mib"))
            bars.append(Bar(f"{lengths}: opd's peak over {peer.title}'s", smaller, 0.5))
    return bars


def prepare(folder: Path) -> None:
    """Write the tokenizer, two random models and the rollouts of the first."""
    tokenizer = word_tokenizer()
    for seed, name in enumerate(("student", "teacher")):
        save_model(folder / name, tokenizer, seed)
    for lengths in ("fixed", "variable", "generated"):
        rows = draw_rows(lengths)
        if lengths != "generated":
            answer(folder / "student", tokenizer, rows)
        (folder / f"{lengths}.json").write_text(json.dumps(rows))


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A token a word: w0, w1 and so on."""
    words = (f"w{index}" for index in range(VOCABULARY - len(SPECIAL)))
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=SPECIAL[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        unk_token="<|unknown|>",
        chat_template=TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def save_model(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Random weights; nothing is downloaded."""
    torch.manual_seed(seed)
    pad, end = cast("tuple[int, int]", (tokenizer.pad_token_id, tokenizer.eos_token_id))
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=pad,
            eos_token_id=end,
            bos_token_id=None,
        )
    )
    model.generation_config = GenerationConfig(pad_token_id=pad, eos_token_id=end)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def draw_rows(lengths: str) -> Rows:
    """Prompts and privileged texts of random words; `response` holds how many tokens to write."""
    random = Random(0)

    def text(words: int) -> str:
        return " ".join(f"w{random.randrange(VOCABULARY - len(SPECIAL))}" for _ in range(words))

    return [
        {
            "prompt": text(random.randint(*PROMPT_TOKENS) - TEMPLATE_TOKENS),
            "privileged": text(PRIVILEGED_TOKENS),
            "response": [0] * random.randint(*RESPONSE_TOKENS)
            if lengths == "variable"
            else [0] * RESPONSE_TOKENS[1],
        }
        for _ in range(STEPS * BATCH)
    ]


def answer(folder: Path, tokenizer: PreTrainedTokenizerFast, rows: Rows) -> None:
    """Put what the model at `folder` samples into `response`, as long as that was."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": row["prompt"]}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for row in batch
        ]
        prompts = tokenizer(cast("list[str]", texts), padding=True, return_tensors="pt")
        count = max(len(row["response"]) for row in batch)
        output = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
            **prompts, do_sample=True, top_k=0, min_new_tokens=count, max_new_tokens=count
        )
        for row, written in zip(batch, output[:, -count:].tolist(), strict=True):
            row["response"] = written[: len(row["response"])]


def work(case: Case) -> NoReturn:
    """A worker: one training step a turn."""
    turns = Turns()
    torch.set_num_threads(1)
    rows: Rows = json.loads((Path(case.folder) / f"{case.lengths}.json").read_text())
    if case.system == "opd":
        work_opd(case, rows, turns)
    work_trl(case, rows, turns)


@dataclass
class Step:
    """What a worker tells of a step."""

    cost: Cost
    loss: float = 0.0
    tokens: int = 0
    """Response tokens."""
    generation: float = 0.0
    """CPU seconds of it."""

    def told(self) -> dict[str, object]:
        fields = asdict(self)
        return {**fields.pop("cost"), **fields}


# opd


def work_opd(case: Case, rows: Rows, turns: Turns) -> NoReturn:
    peer, student = PEERS[case.peer], str(Path(case.folder) / "student")
    loss = Distill(target="view", divergence=ReverseKL(), support=peer.support)
    learner = Learner(
        Model(path=student),
        {"distil": Term(loss=loss, average=peer.average)},
        Optimizer(learning_rate=Constant(value=LEARNING_RATE)),
        Accelerator(cpu=True),
        steps=STEPS,
        temperature=1.0,
        max_response_tokens=RESPONSE_TOKENS[1],
    )
    shown = Solution(template="$question\n\n$solution")
    teacher = (
        Teacher(weights=Live(), views={"view": shown})
        if peer.privileged
        else Teacher(
            weights=External(path=str(Path(case.folder) / "teacher")), views={"view": Plain()}
        )
    )
    teacher.weights.setup(learner)
    chat = Chat.open(student)
    sampler = open_sampler(student, chat) if case.lengths == "generated" else None
    batches = iter(range(0, len(rows), BATCH))

    def step() -> dict[str, object]:
        start = next(batches)
        # TRL's trainer lets go of its gradients at the end of a step.
        learner.optimizer.zero_grad(set_to_none=True)
        with costing() as cost:
            taken = Step(cost)
            take_step(learner, teacher, chat, sampler, rows[start : start + BATCH], start, taken)
        return taken.told()

    turns.serve(step)


def open_sampler(student: str, chat: Chat) -> Sampler:
    engine = HF()
    engine.open(student, dtype="float32", max_length=1024, seed=0)
    return Sampler(engine, chat, 1024, seed=0)


def take_step(
    learner: Learner,
    teacher: Teacher,
    chat: Chat,
    sampler: Sampler | None,
    rows: Rows,
    start: int,
    taken: Step,
) -> None:
    """What the loop does between two steps, but for rewards and records."""
    prompts = [
        Prompt(str(start + index), (Message("user", row["prompt"]),))
        for index, row in enumerate(rows)
    ]
    if sampler is None:
        rollouts = [
            recorded(prompt, chat, row["response"])
            for prompt, row in zip(prompts, rows, strict=True)
        ]
    else:
        began = time.process_time()
        sampler.engine.load(learner.weights(), start)
        sampling = Sampling(max_response_tokens=RESPONSE_TOKENS[1])
        rollouts = [drawn[0] for drawn in sampler.draw(prompts, sampling, 1, str(start))]
        taken.generation = time.process_time() - began
    verdict = Verdict("pass", 1.0)
    trajectories: list[Trajectory] = []
    for rollout, row in zip(rollouts, rows, strict=True):
        problem = Problem(rollout.prompt, Privileged(solution=row["privileged"]))
        group = Group(problem, (rollout,), (verdict,))
        seen = teacher.contexts(group, 0, ("view",), chat)
        trajectories.append(Trajectory(rollout, verdict, 0.0, 1.0, seen))
    micro = pack(trajectories, tokens_per_batch=16_384, packing=False, pad_id=chat.pad_id)
    scores = teacher.score(trajectories, micro, ("view",), learner)
    update = learner.update(micro, scores, start // BATCH)
    taken.loss = update.metrics["loss/distil"]
    taken.tokens = update.tokens


def recorded(prompt: Prompt, chat: Chat, response: Sequence[int]) -> Rollout:
    """A rollout of which only the tokens were kept."""
    return Rollout(
        prompt=prompt,
        prompt_ids=chat.prompt_ids(prompt.messages),
        token_ids=tuple(response),
        logprobs=(math.nan,) * len(response),
        policy_step=-1,
        finish="length",
        text="",
    )


# TRL


def work_trl(case: Case, rows: Rows, turns: Turns) -> NoReturn:
    try:
        trainer = open_trainer(case, rows, turns)
    except ImportError as error:
        turns.decline(f"it does not import here ({error})")
    trainer.train()
    sys.exit(0)


def open_trainer(case: Case, rows: Rows, turns: Turns) -> Any:
    """The trainer, whose steps take turns."""
    from datasets import Dataset
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer
    from trl.trainer.distillation_config import DistillationConfig
    from trl.trainer.distillation_trainer import DistillationTrainer

    peer, folder = PEERS[case.peer], Path(case.folder)
    common: dict[str, Any] = {
        "output_dir": str(folder / f"{case.peer}-{case.lengths}"),
        "per_device_train_batch_size": BATCH,
        "max_steps": STEPS,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_completion_length": RESPONSE_TOKENS[1],
        "temperature": 1.0,
        "shuffle_dataset": False,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }
    columns = {
        "prompt": [[{"role": "user", "content": row["prompt"]}] for row in rows],
        "privileged_context": [row["privileged"] for row in rows],
    }
    student = str(folder / "student")
    if peer.privileged:
        settings = SDFTConfig(
            **common,
            num_generations=1,
            distillation_mode=peer.mode,  # type: ignore[arg-type]
            distillation_topk=TOP_K,
            distillation_add_tail=False,
            distillation_alpha=1.0,
            distillation_is_clip=None,
            teacher_model_kind="live",
        )
        kind = taking_turns(SDFTTrainer, "_generate", case, rows, turns)
        return kind(model=student, args=settings, train_dataset=Dataset.from_dict(columns))
    kind = taking_turns(DistillationTrainer, "_generate_single_turn", case, rows, turns)
    return kind(
        model=student,
        teacher_model=str(folder / "teacher"),
        args=DistillationConfig(**common, beta=1.0),
        train_dataset=Dataset.from_dict({"prompt": columns["prompt"]}),
    )


def taking_turns(base: Any, generate: str, case: Case, rows: Rows, turns: Turns) -> Any:
    """`base` with recorded answers in place of its method `generate`, asked before every step."""
    from transformers import TrainerCallback

    class Asked(TrainerCallback):
        """Measures from where a step begins to where its gradients are let go."""

        def __init__(self, trainer: Any) -> None:
            self.trainer = trainer

        def on_step_begin(self, *arguments: Any, **named: Any) -> None:
            turns.wait()
            self.block = ExitStack()
            self.trainer.taken = Step(self.block.enter_context(costing()))

        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            self.block.close()
            turns.tell(self.trainer.taken.told())

    class Replayed(base):
        def __init__(self, **named: Any) -> None:
            super().__init__(**named)
            self.add_callback(Asked(self))
            starts = range(0, len(rows), BATCH)
            self.batches = iter([rows[start : start + BATCH] for start in starts])

        def training_step(self, *arguments: Any, **named: Any) -> Any:
            loss = super().training_step(*arguments, **named)
            self.taken.loss = loss.item()
            return loss

        def answers(self, prompt_ids: list[list[int]], *more: Any) -> Any:
            if case.lengths == "generated":
                began = time.process_time()
                result = getattr(super(), generate)(prompt_ids, *more)
                self.taken.generation = time.process_time() - began
            else:
                responses = [row["response"] for row in next(self.batches)]
                result = (prompt_ids, responses) if generate == "_generate" else responses
            responses = result[1] if generate == "_generate" else result
            self.taken.tokens = sum(map(len, responses))
            return result

    setattr(Replayed, generate, Replayed.answers)
    return Replayed


if __name__ == "__main__":
    sys.exit(main())
