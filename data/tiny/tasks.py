"""The problems of the embedded default: four families, levels, a split by hash."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

Split = Literal["train", "held_out"]

TEACHER_TEMPLATE = "$question ref: $solution"
"""What the user message of the teacher says; the student's user message is the bare question."""

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LARGEST_VALUE = 20
HIDDEN_VALUES: Mapping[str, int] = {
    letter: Random(f"hidden value of {letter}").randint(1, LARGEST_VALUE) for letter in LETTERS
}
"""The facts to internalise: no question states them, the references reveal a few at a time."""

OPERATIONS: Mapping[str, Callable[[str], str]] = {
    "R": lambda x: x[2] + x[1] + x[0],
    "L": lambda x: x[1] + x[2] + x[0],
    "T": lambda x: x[2] + x[0] + x[1],
    "W": lambda x: x[1] + x[0] + x[2],
    "V": lambda x: x[0] + x[2] + x[1],
    "D": lambda x: x[:-1],
    "P": lambda x: x + x[-1],
    "Z": lambda x: x + "0",
}
"""What a program may do to a list of three digits, by the letter that the thinking uses."""

REFERENCE_NAMES: Mapping[str, str] = {
    "R": "x[210]",
    "L": "x[120]",
    "T": "x[201]",
    "W": "x[102]",
    "V": "x[021]",
    "D": "x[:-1]",
    "P": "x+x[-1]",
    "Z": "x+0",
}
"""The same operations as the references write them."""

MOVES, ENDINGS = "RLTWV", "DPZ"
PROGRAMS: tuple[str, ...] = (
    *MOVES,
    *ENDINGS,
    *(move + ending for move in MOVES for ending in ENDINGS),
)


@dataclass(frozen=True)
class Task:
    """One checkable problem; `program` names the operations of a task of the family programs."""

    family: str
    level: int
    question: str
    solution: str
    answer: str
    program: str = ""


@dataclass(frozen=True)
class Family:
    """How to draw a task of one kind at a level, which levels there are, and what order ignores."""

    draw: Callable[[Random, int], Task]
    levels: tuple[int, ...]
    parts: Callable[[str], list[str]]
    """Splits a question into parts whose order changes nothing."""


def signed_letters(question: str) -> list[str]:
    """Split "k+f-b" into "+k", "+f", "-b"."""
    return re.findall(r"[+-][a-z]", f"+{question}")


def draw_fact(rng: Random, level: int, values: Mapping[str, int] = HIDDEN_VALUES) -> Task:
    """Combine `level + 1` hidden values: "k+f-b"; the reference lists them by letter: "b5f3k17"."""
    letters = rng.sample(LETTERS, level + 1)
    signs = ["+", *rng.choices("+-", k=level)]
    signed = list(zip(signs, letters, strict=True))
    return Task(
        family="facts",
        level=level,
        question="".join(sign + letter for sign, letter in signed)[1:],
        solution="".join(f"{letter}{values[letter]}" for letter in sorted(letters)),
        answer=str(sum(int(f"{sign}{values[letter]}") for sign, letter in signed)),
    )


def place_values(number: int) -> str:
    """Write 861 as "800+60+1"."""
    digits = str(number)
    return "+".join(digit + "0" * (len(digits) - place) for place, digit in enumerate(digits, 1))


def has_carry(terms: Sequence[int]) -> bool:
    """Whether any column but the last passes something on."""
    return any(
        sum(term % 10**place for term in terms) >= 10**place
        for place in range(1, len(str(terms[0])))
    )


def draw_skill(rng: Random, level: int) -> Task:
    """Column addition, such as "47+38+25"; levels 2 and 3 always carry. Reference: "100+10+0"."""
    count, low, high = {1: (2, 10, 99), 2: (3, 10, 99), 3: (2, 100, 999)}[level]
    terms = [rng.randint(low, high) for _ in range(count)]
    while level > 1 and not has_carry(terms):
        terms = [rng.randint(low, high) for _ in range(count)]
    return Task(
        family="skills",
        level=level,
        question="+".join(map(str, terms)),
        solution=place_values(sum(terms)),
        answer=str(sum(terms)),
    )


def run_program(program: str, digits: str) -> str:
    for operation in program:
        digits = OPERATIONS[operation](digits)
    return digits


def is_identified(program: str, inputs: Sequence[str]) -> bool:
    """Whether no other program does the same to these inputs."""
    outputs = [run_program(program, digits) for digits in inputs]
    return all(
        other == program or [run_program(other, digits) for digits in inputs] != outputs
        for other in PROGRAMS
    )


def draw_digits(rng: Random) -> str:
    return "".join(map(str, rng.sample(range(10), 3)))


def draw_ascending(rng: Random) -> str:
    """An example's input: ascending, so that its output shows where each digit went."""
    return "".join(sorted(draw_digits(rng)))


def draw_program(rng: Random, level: int) -> Task:
    """A program of `level` operations seen through two examples, such as "235>532 148>841 607"."""
    program = rng.choice([program for program in PROGRAMS if len(program) == level])
    query = draw_digits(rng)
    first, second = (draw_ascending(rng) for _ in range(2))
    while query in (first, second) or not is_identified(program, (first, second)):
        first, second = (draw_ascending(rng) for _ in range(2))
    examples = [f"{digits}>{run_program(program, digits)}" for digits in (first, second)]
    return Task(
        family="programs",
        level=level,
        question=" ".join((*examples, query)),
        solution=" then ".join(REFERENCE_NAMES[operation] for operation in program),
        answer=run_program(program, query),
        program=program,
    )


def draw_sorting(rng: Random, level: int) -> Task:
    """Sort `level + 3` digits; kept out of post-training to measure forgetting."""
    digits = "".join(str(rng.randint(0, 9)) for _ in range(level + 3))
    ordered = "".join(sorted(digits))
    return Task(
        family="sorting",
        level=level,
        question=f"sort {digits}",
        solution="<".join(ordered),
        answer=ordered,
    )


FAMILIES: Mapping[str, Family] = {
    "facts": Family(draw_fact, levels=(1, 2), parts=signed_letters),
    "skills": Family(draw_skill, levels=(1, 2, 3), parts=lambda question: question.split("+")),
    "programs": Family(draw_program, levels=(1, 2), parts=str.split),
    "sorting": Family(draw_sorting, levels=(1, 2), parts=list),
}


def canonical(family: str, question: str) -> str:
    """Equal for questions that differ only in order: "k+f-b" and "f-b+k"."""
    return " ".join((family, *sorted(FAMILIES[family].parts(question))))


def split_of(task: Task) -> Split:
    """One canonical question in five is held out, whatever the seed."""
    digest = hashlib.sha256(canonical(task.family, task.question).encode()).digest()
    return "held_out" if digest[0] % 5 == 0 else "train"


def draw_task(rng: Random, family: str, split: Split) -> Task:
    chosen = FAMILIES[family]
    while True:
        task = chosen.draw(rng, rng.choice(chosen.levels))
        if split_of(task) == split:
            return task


def distinct_tasks(seed: int, family: str, split: Split, count: int) -> Iterator[Task]:
    """Yield `count` tasks of one family and split, no two with one canonical question."""
    rng = Random(f"{seed} {family} {split}")
    seen: set[str] = set()
    while len(seen) < count:
        task = draw_task(rng, family, split)
        key = canonical(family, task.question)
        if key not in seen:
            seen.add(key)
            yield task
