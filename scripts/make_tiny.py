"""Make the embedded default from nothing: problems, tokenizer, base, and where they come from."""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.tiny import is_right  # noqa: E402
from data.tiny.lessons import Lesson, draw_lesson, teacher_question  # noqa: E402
from data.tiny.tasks import Split, Task, distinct_tasks  # noqa: E402

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PAD_ID, END_ID = 256, 258
ROLES = ("system", "user", "assistant")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTEXT = 1024
LONGEST_RESPONSE = 48
IGNORED = -100

ROWS: dict[str, tuple[Split, dict[str, int]]] = {
    "train.jsonl": ("train", {"facts": 2400, "skills": 1200, "programs": 1200}),
    "held_out.jsonl": ("held_out", {"facts": 200, "skills": 100, "programs": 100}),
    "untouched.jsonl": ("held_out", {"sorting": 200}),
}


def make_tasks(seed: int) -> dict[str, list[Task]]:
    """The tasks of each file, families mixed."""
    files: dict[str, list[Task]] = {}
    for name, (split, counts) in ROWS.items():
        tasks = [
            task
            for family, count in counts.items()
            for task in distinct_tasks(seed, family, split, count)
        ]
        Random(f"{seed} {name}").shuffle(tasks)
        files[name] = tasks
    return files


def to_row(name: str, index: int, task: Task) -> str:
    row = {
        "id": f"{Path(name).stem}-{index}",
        "family": task.family,
        "level": task.level,
        "question": task.question,
        "solution": task.solution,
        "answer": task.answer,
    }
    return json.dumps(row) + "\n"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that any text can be encoded, and one a role or ChatML mark."""
    return byte_tokenizer((), [PAD, START, END])


def byte_tokenizer(
    merges: Sequence[tuple[str, str]], special: Sequence[str]
) -> PreTrainedTokenizerFast:
    """One token a byte, one a merge, one a ChatML mark in the order `special`, and one a role."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[*merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*special])
    tokenizer.add_tokens([*ROLES])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=3,
            num_key_value_heads=3,
            head_dim=32,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            initializer_range=0.05,
            pad_token_id=PAD_ID,
            eos_token_id=END_ID,
            bos_token_id=None,
        )
    )


def prompt_ids(tokenizer: PreTrainedTokenizerFast, user: str) -> list[int]:
    messages = [{"role": "user", "content": user}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(str(text))


def encode(tokenizer: PreTrainedTokenizerFast, lesson: Lesson) -> tuple[list[int], list[int]]:
    """Inputs and labels; the label at i is what should stand there, not what stands there."""
    prompt = prompt_ids(tokenizer, lesson.user)
    response = tokenizer.encode(lesson.response, add_special_tokens=False)
    labels = [
        IGNORED if label is None else tokenizer.encode(label)[0]
        for piece in lesson.pieces
        for label in piece.labels()
    ]
    assert len(response) == len(labels), f"{lesson.response} is not one token a character"
    return [*prompt, *response, END_ID], [*([IGNORED] * len(prompt)), *labels, END_ID]


def input_length(encoded: tuple[list[int], list[int]]) -> int:
    return len(encoded[0])


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *([value] * (length - len(row)))] for row in rows])


def draw_batch(
    tokenizer: PreTrainedTokenizerFast, rng: Random, size: int, slices: int = 2
) -> list[tuple[Tensor, Tensor]]:
    """Inputs and labels `[size / slices, L]`, right-padded, short lessons with short ones."""
    encoded = sorted((encode(tokenizer, draw_lesson(rng)) for _ in range(size)), key=input_length)
    batch: list[tuple[Tensor, Tensor]] = []
    for start in range(0, size, size // slices):
        inputs, labels = zip(*encoded[start : start + size // slices], strict=True)
        batch.append((pad(inputs, PAD_ID), pad(labels, IGNORED)))
    return batch


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm up over a hundred steps, then fall linearly to nothing."""
    return peak * min((step + 1) / 100, (steps - step) / steps)


def pretrain(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    steps: int,
    batch_size: int,
    peak: float,
) -> None:
    rng = Random(f"{seed} lessons")
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    model.train()
    started = time.time()
    for step in range(steps):
        batch = draw_batch(tokenizer, rng, batch_size)
        taught = sum(int((labels != IGNORED).sum()) for _, labels in batch)
        total = 0.0
        optimizer.zero_grad()
        for inputs, labels in batch:
            logits = model(input_ids=inputs[:, :-1]).logits.flatten(0, 1)
            loss = cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / taught
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(
                f"step {step:5d}  loss {total:.4f}  {time.time() - started:5.0f} s",
                flush=True,
            )


@torch.inference_mode()
def respond(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    users: Sequence[str],
    samples: int,
    greedy: bool,
    batch_size: int = 200,
) -> Iterator[list[str]]:
    """`samples` answers to each user message, at temperature 1 or greedy."""
    model.eval()
    for first in range(0, len(users), batch_size):
        prompts = [prompt_ids(tokenizer, user) for user in users[first : first + batch_size]]
        batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        # transformers types `generate` for a protocol that its own models do not meet
        tokens = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
            **batch,
            max_new_tokens=LONGEST_RESPONSE,
            do_sample=not greedy,
            temperature=None if greedy else 1.0,
            top_k=None if greedy else 0,
            top_p=None if greedy else 1.0,
            num_return_sequences=samples,
        )
        responses = tokens[:, batch["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        yield from (texts[at : at + samples] for at in range(0, len(texts), samples))


def accuracy(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[Task],
    *,
    aided: bool,
    greedy: bool,
) -> float:
    """Share of right answers in percent, over four samples each where sampled."""
    users = [teacher_question(task, task.solution) if aided else task.question for task in tasks]
    answers = respond(model, tokenizer, users, samples=1 if greedy else 4, greedy=greedy)
    right = [
        is_right(text, task.answer)
        for task, texts in zip(tasks, answers, strict=True)
        for text in texts
    ]
    return round(100 * sum(right) / len(right), 1)


def measure(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tasks: Sequence[Task]
) -> dict[str, dict[str, float]]:
    """Accuracies per family, and of the held-out mix."""
    touched = [task for task in tasks if task.family != "sorting"]
    families = sorted({task.family for task in tasks})
    groups = {family: [task for task in tasks if task.family == family] for family in families}
    return {
        name: {
            "sampled": accuracy(model, tokenizer, group, aided=False, greedy=False),
            "greedy": accuracy(model, tokenizer, group, aided=False, greedy=True),
            "sampled_with_reference": accuracy(model, tokenizer, group, aided=True, greedy=False),
            "greedy_with_reference": accuracy(model, tokenizer, group, aided=True, greedy=True),
        }
        for name, group in {**groups, "held_out mix": touched}.items()
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=ROOT / "data" / "tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    started = time.time()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)
    files = make_tasks(arguments.seed)
    for name, tasks in files.items():
        rows = (to_row(name, index, task) for index, task in enumerate(tasks))
        (arguments.output / name).write_text("".join(rows))

    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    pretrain(
        model,
        tokenizer,
        arguments.seed,
        arguments.steps,
        arguments.batch_size,
        arguments.learning_rate,
    )
    model.generation_config = GenerationConfig(
        do_sample=True,
        pad_token_id=PAD_ID,
        eos_token_id=END_ID,
    )
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)

    minutes = round((time.time() - started) / 60, 1)
    made = [*ROWS, "model.safetensors", "tokenizer.json"]
    provenance = {
        "command": " ".join(["python", "scripts/make_tiny.py", *sys.argv[1:]]),
        "seed": arguments.seed,
        "steps": arguments.steps,
        "minutes": minutes,
        "threads": arguments.threads,
        "torch": torch.__version__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sha256": {name: sha256(arguments.output / name) for name in made},
        "accuracy_percent": measure(
            model, tokenizer, [*files["held_out.jsonl"], *files["untouched.jsonl"]]
        ),
    }
    text = json.dumps(provenance, indent=2)
    (arguments.output / "provenance.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
