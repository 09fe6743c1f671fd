"""The embedded default: disjoint splits, right answers, a base that behaves as promised."""

import hashlib
import importlib.util
import json
import re
import string
from pathlib import Path
from random import Random
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from data.tiny import is_right, problem
from data.tiny.lessons import (
    KNOWN_LETTERS,
    Mind,
    Piece,
    draw_lesson,
    sound_thinking,
    teacher_question,
    think,
)
from data.tiny.tasks import (
    FAMILIES,
    HIDDEN_VALUES,
    PROGRAMS,
    Task,
    canonical,
    distinct_tasks,
    run_program,
    split_of,
)

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "data" / "tiny"
FILES = ("train.jsonl", "held_out.jsonl", "untouched.jsonl")


def rows(name: str) -> list[dict[str, str | int]]:
    return [json.loads(line) for line in (TINY / name).read_text().splitlines()]


def provenance() -> dict:
    return json.loads((TINY / "provenance.json").read_text())


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def make_tiny() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tiny", ROOT / "scripts" / "make_tiny.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def right_answer(family: str, question: str) -> str:
    """The answer worked out in another way than the generator does."""
    if family == "facts":
        return str(eval(re.sub("[a-z]", lambda match: str(HIDDEN_VALUES[match[0]]), question)))
    if family == "skills":
        return str(sum(int(term) for term in question.split("+")))
    if family == "sorting":
        return "".join(sorted(question.removeprefix("sort ")))
    *examples, query = question.split()
    pairs = [example.split(">") for example in examples]
    fitting = [p for p in PROGRAMS if all(run_program(p, given) == got for given, got in pairs)]
    assert len(fitting) == 1, f"{question} fits {fitting}"
    return run_program(fitting[0], query)


@pytest.mark.parametrize("name", FILES)
def test_every_committed_answer_is_right(name: str) -> None:
    for row in rows(name):
        assert row["answer"] == right_answer(str(row["family"]), str(row["question"])), row


def test_no_held_out_question_is_a_reordered_training_question() -> None:
    def keys(name: str) -> list[str]:
        return [canonical(str(row["family"]), str(row["question"])) for row in rows(name)]

    train, held_out, untouched = (keys(name) for name in FILES)
    assert not set(train) & set(held_out)
    for each in (train, held_out, untouched):
        assert len(set(each)) == len(each)


def test_order_does_not_move_a_question_to_the_other_split() -> None:
    assert canonical("facts", "k+f-b") == canonical("facts", "f-b+k")
    assert canonical("facts", "k+f-b") != canonical("facts", "k-f+b")
    assert canonical("skills", "47+38") == canonical("skills", "38+47")
    assert canonical("programs", "123>321 405>504 617") == canonical(
        "programs", "405>504 123>321 617"
    )
    assert canonical("sorting", "sort 3121") == canonical("sorting", "sort 1123")


def test_lessons_never_hold_a_held_out_question() -> None:
    rng = Random(5)
    for _ in range(2000):
        question = draw_lesson(rng).user.partition(" ref: ")[0]
        family = next(f for f, pattern in QUESTION_OF.items() if re.fullmatch(pattern, question))
        task = Task(family, 1, question, "", "")
        assert split_of(task) == "train", question


QUESTION_OF = {
    "facts": r"[a-z]([+-][a-z])+",
    "skills": r"\d+(\+\d+)+",
    "programs": r"\d{3}>\d{2,4} \d{3}>\d{2,4} \d{3}",
    "sorting": r"sort \d+",
}


def test_the_generator_repeats_itself_for_a_seed_only() -> None:
    for family in FAMILIES:
        first = list(distinct_tasks(3, family, "train", 20))
        assert first == list(distinct_tasks(3, family, "train", 20))
        assert first != list(distinct_tasks(4, family, "train", 20))


def test_committed_problems_are_what_the_script_makes(make_tiny: ModuleType) -> None:
    for name, tasks in make_tiny.make_tasks(provenance()["seed"]).items():
        made = "".join(make_tiny.to_row(name, index, task) for index, task in enumerate(tasks))
        assert made == (TINY / name).read_text(), name


def test_sound_thinking_ends_in_the_answer_and_differs_from_the_reference() -> None:
    for family in FAMILIES:
        for task in distinct_tasks(0, family, "train", 100):
            thinking = sound_thinking(task)
            assert is_right(thinking, task.answer), (task, thinking)
            assert task.solution not in thinking


def test_sound_thinking_by_hand() -> None:
    values = {"k": 17, "f": 3, "b": 5}
    assert (
        sound_thinking(Task("facts", 2, "k+f-b", "b5f3k17", "15"), values)
        == "k=17;f=3;b=5;17+3=20;20-5=15;#15"
    )
    assert (
        sound_thinking(Task("skills", 3, "476+385", "800+60+1", "861"))
        == "6+5=11;7+8+1=16;4+3+1=8;#861"
    )
    assert sound_thinking(Task("programs", 2, "1 2 607", "", "7066", "RP")) == "R706;P7066;#7066"


def test_a_slip_is_answered_with_the_wanted_character_then_with_silence() -> None:
    assert Piece("f=3;", "f=3;").labels() == ["f", "=", "3", ";"]
    assert Piece("f=19;", "f=12;").labels() == ["f", "=", "1", "2", ";"]
    assert Piece("f=19;", "f=3;").labels() == ["f", "=", "3", None, ";"]
    assert Piece("f=1;", "f=12;").labels() == ["f", "=", "1", "2"]


def test_unaided_thinking_has_the_known_facts_right_and_no_others() -> None:
    rng = Random(0)
    wrong: set[str] = set()
    for task in distinct_tasks(0, "facts", "train", 400):
        for piece in think(task, Mind(rng, aided=False)):
            letter, equals, value = piece.written.rstrip(";").partition("=")
            if equals and letter in HIDDEN_VALUES and int(value) != HIDDEN_VALUES[letter]:
                wrong.add(letter)
    assert wrong == set(HIDDEN_VALUES) - KNOWN_LETTERS
    assert len(KNOWN_LETTERS) == 16


def slipping(family: str) -> list[tuple[Task, list[Piece]]]:
    mind = Mind(Random(1), aided=True, slip_chance=0.5)
    return [(task, list(think(task, mind))) for task in distinct_tasks(0, family, "train", 100)]


def test_after_a_slip_the_next_operation_works_on_what_was_written() -> None:
    for task, pieces in slipping("programs"):
        digits = task.question.split()[-1]
        for operation, result in zip(pieces[:-1:2], pieces[1::2], strict=True):
            digits = run_program(operation.written, digits)
            assert result.written == result.wanted == f"{digits};"
        assert [operation.wanted for operation in pieces[:-1:2]] == list(task.program)
        assert pieces[-1].wanted == f"#{digits}"


def test_after_a_slip_the_next_step_starts_from_what_was_written() -> None:
    slips = 0
    for _, pieces in slipping("facts"):
        steps = [piece for piece in pieces[:-1] if not piece.written[0].isalpha()]
        running = pieces[0].written[2:-1]
        for step in steps:
            terms, total = step.wanted[:-1].split("=")
            assert terms.startswith(running) and eval(terms) == int(total), step
            running = step.written[:-1].split("=")[1]
            slips += step.written != step.wanted
        assert pieces[-1].wanted == pieces[-1].written == f"#{running}"
    assert slips > 20


def test_after_a_slip_the_carry_is_that_of_the_written_column() -> None:
    slips = 0
    for task, pieces in slipping("skills"):
        columns = reversed(list(zip(*task.question.split("+"), strict=True)))
        totals: list[int] = []
        for column, piece in zip(columns, pieces, strict=False):
            carry = totals[-1] // 10 if totals else 0
            terms = "+".join([*column, str(carry)] if carry else column)
            assert piece.wanted == f"{terms}={eval(terms)};"
            totals.append(int(piece.written[:-1].split("=")[1]))
            slips += piece.written != piece.wanted
        digits = "".join(str(total % 10) for total in totals[-2::-1])
        assert pieces[-1].wanted == f"#{totals[-1]}{digits}"
    assert slips > 20


def test_after_a_slip_the_next_value_is_still_the_reference_one() -> None:
    for _, pieces in slipping("facts"):
        listed = [piece.wanted for piece in pieces if piece.wanted[0].isalpha()]
        assert listed == [f"{each[0]}={HIDDEN_VALUES[each[0]]};" for each in listed]


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("7+8=15;#15", True),
        ("#3;#15 ", True),
        ("#15;#3", False),
        ("15", False),
        ("", False),
        ("#", False),
    ],
)
def test_the_text_after_the_last_marker_is_the_answer(response: str, right: bool) -> None:
    assert is_right(response, "15") is right


def test_the_students_side_of_a_problem_ignores_the_privileged_columns() -> None:
    row = rows("train.jsonl")[0]
    changed = {**row, "solution": "nothing", "answer": "0"}
    assert problem(row).prompt == problem(changed).prompt
    assert problem(row).privileged != problem(changed).privileged
    assert problem(row).privileged.demonstration == f"{row['solution']};#{row['answer']}"


def test_the_tokenizer_takes_any_text(tokenizer: PreTrainedTokenizerBase) -> None:
    text = string.printable[:95] + "\n\tNatália's clips cost $48/2 = £24 ≠ 25 🙂"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert all(len(tokenizer.encode(c, add_special_tokens=False)) == 1 for c in string.printable)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.pad_token == "<|endoftext|>" and tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_chat_template_only_ever_appends(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "k+f"},
        {"role": "assistant", "content": "k=1;#1"},
        {"role": "user", "content": "b-c"},
    ]
    before = ""
    for count in range(1, len(messages) + 1):
        text = tokenizer.apply_chat_template(messages[:count], tokenize=False)
        assert isinstance(text, str) and text.startswith(before)
        before = text
    asked = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert asked == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nk+f<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    answered = tokenizer.apply_chat_template(messages[:3], tokenize=False)
    assert answered == f"{asked}k=1;#1<|im_end|>\n"


def test_what_is_shipped_is_small_and_is_what_its_provenance_says() -> None:
    assert (TINY / "model.safetensors").stat().st_size <= 8_000_000
    committed = [path for path in TINY.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in committed) <= 9_000_000
    for name, digest in provenance()["sha256"].items():
        assert hashlib.sha256((TINY / name).read_bytes()).hexdigest() == digest, name


def test_the_base_is_unfinished_alone_and_right_beside_a_reference(make_tiny: ModuleType) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = AutoModelForCausalLM.from_pretrained(TINY)
    assert not model.config.tie_word_embeddings
    held_out = [
        task
        for family, count in (("facts", 40), ("skills", 20), ("programs", 20))
        for task in distinct_tasks(11, family, "held_out", count)
    ]
    untouched = list(distinct_tasks(11, "sorting", "held_out", 40))

    def accuracy(tasks: list[Task], aided: bool) -> float:
        return make_tiny.accuracy(model, tokenizer, tasks, aided=aided, greedy=True)

    assert accuracy(held_out, aided=False) <= 50
    assert accuracy(held_out, aided=True) >= 90
    assert accuracy(untouched, aided=False) >= 90


def test_the_teacher_stays_sharp_after_a_wrong_value(tokenizer: PreTrainedTokenizerBase) -> None:
    """Shown a reference and a prefix whose first value is wrong, it names the next value right."""
    model = AutoModelForCausalLM.from_pretrained(TINY).eval()
    probabilities: list[float] = []
    for task in distinct_tasks(12, "facts", "held_out", 40):
        first, second = re.findall("[a-z]", task.question)[:2]
        wrong = HIDDEN_VALUES[first] % 20 + 1
        messages = [{"role": "user", "content": teacher_question(task, task.solution)}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        known = f"{prompt}{first}={wrong};{second}="
        prefix = tokenizer.encode(known, add_special_tokens=False)
        whole = tokenizer.encode(f"{known}{HIDDEN_VALUES[second]};", add_special_tokens=False)
        with torch.inference_mode():
            logprob = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        taken = range(len(prefix), len(whole))
        probabilities.append(sum(logprob[at - 1, whole[at]].item() for at in taken))
    assert torch.tensor(probabilities).exp().mean() >= 0.9
