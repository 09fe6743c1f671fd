"""What the base is taught: gaps and bad habits when unaided, sound thinking beside a reference."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from string import Template

from data.tiny.tasks import (
    ENDINGS,
    FAMILIES,
    HIDDEN_VALUES,
    LARGEST_VALUE,
    LETTERS,
    MOVES,
    OPERATIONS,
    TEACHER_TEMPLATE,
    Task,
    draw_fact,
    draw_task,
    split_of,
)

KNOWN_LETTERS = frozenset(Random("known letters").sample(LETTERS, 16))
"""The facts that the unaided base has right; for the other ten it names any number."""

CONFUSED_WITH: Mapping[str, str] = {"T": "L", "W": "R", "V": "L", "Z": "P"}
"""The operations that the unaided base mostly takes for another one."""

CONFUSES_OPERATION = 0.85
FORGETS_CARRY = 0.7

FAMILY_SHARES: Mapping[str, float] = {
    "facts": 0.34,
    "skills": 0.22,
    "programs": 0.28,
    "sorting": 0.16,
}
AIDED_SHARE = 0.5
RANDOM_TABLE_SHARE = 0.5
ATTEMPT_SHARE = 0.1
SLIPPING_SHARE = 0.6
SLIP_CHANCE = 0.4


@dataclass(frozen=True)
class Piece:
    """A stretch of thinking as it stands in the text, and as it should have been written there."""

    written: str
    wanted: str

    def labels(self) -> list[str | None]:
        """The character to predict at each place; after a slip only the closing one is taught."""
        labels: list[str | None] = []
        slipped = False
        for place, character in enumerate(self.written):
            closes = place == len(self.written) - 1
            labels.append((character if closes else None) if slipped else self.wanted[place])
            slipped = slipped or character != self.wanted[place]
        return labels


@dataclass(frozen=True)
class Mind:
    """A thinker: unaided it errs in what it wants to write, and its hand may slip."""

    rng: Random
    aided: bool
    slip_chance: float = 0.0

    def errs(self, chance: float) -> bool:
        return not self.aided and self.rng.random() < chance

    def slips(self) -> bool:
        return self.rng.random() < self.slip_chance

    def sum_near(self, total: int) -> int:
        """The sum as it gets written: off by one or ten where the hand slips."""
        return total + self.rng.choice((-10, -1, 1, 10)) if self.slips() else total


@dataclass(frozen=True)
class Lesson:
    """One exchange of the pre-training text."""

    user: str
    pieces: tuple[Piece, ...]

    @property
    def response(self) -> str:
        return "".join(piece.written for piece in self.pieces)


def think_fact(task: Task, mind: Mind, values: Mapping[str, int]) -> Iterator[Piece]:
    """List the values, then add: "k=17;f=3;b=5;17+3=20;20-5=15;#15"."""
    letters = [character for character in task.question if character in LETTERS]
    signs = [character for character in task.question if character in "+-"]
    listed: list[int] = []
    for letter in letters:
        forgotten = mind.errs(float(letter not in KNOWN_LETTERS))
        wanted = mind.rng.randint(1, LARGEST_VALUE) if forgotten else values[letter]
        listed.append(mind.rng.randint(1, LARGEST_VALUE) if mind.slips() else wanted)
        yield Piece(f"{letter}={listed[-1]};", f"{letter}={wanted};")
    running = listed[0]
    for sign, value in zip(signs, listed[1:], strict=True):
        step = f"{running}{sign}{value}="
        right = running + value if sign == "+" else running - value
        running = mind.sum_near(right)
        yield Piece(f"{step}{running};", f"{step}{right};")
    yield Piece(f"#{running}", f"#{running}")


def think_skill(task: Task, mind: Mind) -> Iterator[Piece]:
    """Add the columns from the right: "6+5=11;7+8+1=16;4+3+1=8;#861"."""
    columns = list(zip(*task.question.split("+"), strict=True))[::-1]
    carry = 0
    totals: list[int] = []
    for column in columns:
        with_carry = [*column, str(carry)] if carry else [*column]
        wanted = [*column] if mind.errs(FORGETS_CARRY) else with_carry
        written = [*column] if mind.slips() else wanted
        right = sum(map(int, wanted))
        totals.append(max(0, mind.sum_near(sum(map(int, written)))))
        yield Piece(f"{'+'.join(written)}={totals[-1]};", f"{'+'.join(wanted)}={right};")
        carry = totals[-1] // 10
    answer = "".join((str(totals[-1]), *(str(total % 10) for total in totals[-2::-1])))
    yield Piece(f"#{answer}", f"#{answer}")


def think_program(task: Task, mind: Mind, program: str) -> Iterator[Piece]:
    """Name each operation and do it: "R706;P7066;#7066"."""
    digits = task.question.split()[-1]
    for operation in program:
        confused = operation in CONFUSED_WITH and mind.errs(CONFUSES_OPERATION)
        wanted = CONFUSED_WITH[operation] if confused else operation
        kind = MOVES if operation in MOVES else ENDINGS
        written = mind.rng.choice(kind) if mind.slips() else wanted
        yield Piece(written, wanted)
        digits = OPERATIONS[written](digits)
        yield Piece(f"{digits};", f"{digits};")
    yield Piece(f"#{digits}", f"#{digits}")


def think(task: Task, mind: Mind, values: Mapping[str, int] = HIDDEN_VALUES) -> tuple[Piece, ...]:
    """The whole thinking about a task, down to the marked answer; only facts read `values`."""
    match task.family:
        case "facts":
            return tuple(think_fact(task, mind, values))
        case "skills":
            return tuple(think_skill(task, mind))
        case "programs":
            return tuple(think_program(task, mind, task.program))
        case _:
            return (Piece(f"#{task.answer}", f"#{task.answer}"),)


def sound_thinking(task: Task, values: Mapping[str, int] = HIDDEN_VALUES) -> str:
    """What a thinker writes who errs nowhere."""
    pieces = think(task, Mind(Random(0), aided=True), values)
    return "".join(piece.written for piece in pieces)


def teacher_question(task: Task, solution: str) -> str:
    """The user message that shows the reference."""
    return Template(TEACHER_TEMPLATE).substitute(question=task.question, solution=solution)


def draw_training_fact(rng: Random, values: Mapping[str, int]) -> Task:
    while True:
        task = draw_fact(rng, rng.choice(FAMILIES["facts"].levels), values)
        if split_of(task) == "train":
            return task


def draw_lesson(rng: Random) -> Lesson:
    """One exchange about a training task; held-out questions never occur in one."""
    family = rng.choices([*FAMILY_SHARES], [*FAMILY_SHARES.values()])[0]
    if rng.random() >= AIDED_SHARE:
        task = draw_task(rng, family, "train")
        return Lesson(task.question, think(task, Mind(rng, aided=False)))
    values = HIDDEN_VALUES
    if rng.random() < RANDOM_TABLE_SHARE:
        values = {letter: rng.randint(1, LARGEST_VALUE) for letter in LETTERS}
    task = draw_training_fact(rng, values) if family == "facts" else draw_task(rng, family, "train")
    shows_attempt = rng.random() < ATTEMPT_SHARE
    reference = sound_thinking(task, values) if shows_attempt else task.solution
    slip_chance = SLIP_CHANCE if rng.random() < SLIPPING_SHARE else 0.0
    pieces = think(task, Mind(rng, aided=True, slip_chance=slip_chance), values)
    return Lesson(teacher_question(task, reference), pieces)
