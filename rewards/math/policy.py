r"""What may stand in a final answer: the rules that come before any computer algebra.

Rules and their reasons: the answer is committed to (no "or", no list where a value is asked, no
equation that could be read two ways), finished (no integral left to do) and short. All else is
notation, and forgiven.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from rewards.number import boxes, number, stated

LONGEST = 512
"""Characters of an answer that is looked at."""
WORK_UNDONE = "leaves work undone"
SEVERAL_VALUES = "gives several values where one is asked for"

SYMBOLS = str.maketrans(
    {
        **dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}", "-"),
        **dict.fromkeys("\N{NO-BREAK SPACE}\N{THIN SPACE}\N{NARROW NO-BREAK SPACE}\t\n\r", " "),
        "\N{MULTIPLICATION SIGN}": r"\times ",
        "\N{MIDDLE DOT}": r"\cdot ",
        "\N{GREEK SMALL LETTER PI}": r"\pi ",
        "\N{INFINITY}": r"\infty ",
        "\N{LESS-THAN OR EQUAL TO}": r"\le ",
        "\N{GREATER-THAN OR EQUAL TO}": r"\ge ",
        "\N{NOT EQUAL TO}": r"\ne ",
        "\N{ALMOST EQUAL TO}": r"\approx ",
        "\N{ELEMENT OF}": r"\in ",
        "\N{UNION}": r"\cup ",
        "\N{PLUS-MINUS SIGN}": r"\pm ",
        "\N{DEGREE SIGN}": r"^\circ",
        "\N{SUPERSCRIPT TWO}": "^2",
        "\N{SUPERSCRIPT THREE}": "^3",
        "\N{INTEGRAL}": r"\int ",
        "\N{N-ARY SUMMATION}": r"\sum ",
        "\N{N-ARY PRODUCT}": r"\prod ",
        "\N{HORIZONTAL ELLIPSIS}": r"\dots ",
    }
)

NOTATION = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right)(?![a-zA-Z])\s*\.?|\\(?:displaystyle|[bB]igg?[lrm]?)(?![a-zA-Z])", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*(?=\{)", r"\\frac{\1}"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
        (r"\\(?:math(?:rm|bf|it|sf)|text(?:bf|it|rm|normal)|mbox|hbox)(?=\s*\{)", r"\\text"),
        (r"\\boxed\s*(?=\{)", ""),
        (r"\\langle(?![a-zA-Z])", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (r"(?<=\d)(?:\{,\}|,\\!|\\,)\s*(?=\d{3}(?!\d))", ""),
        (r"(?<!\\)\\[,;:! ]|~|\\q?quad(?![a-zA-Z])", " "),
        (r"(?<!\\)\\[()\[\]]|\\?[$\N{EURO SIGN}\N{POUND SIGN}]", ""),
        (r"\s*\\text\s*\{\s*per\s?cent\s*\}|\s*\bper\s?cent\b|\s*\\?%", "%"),
        (r"\s*\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])", ""),
        (r"\\text\s*\{\s*\}", ""),
        (r"\s+", " "),
    )
]
THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
BRACKETS = re.compile(r"[(\[]|\\\{")

REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\s*\{(\d+)\}")

SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
SCALED = re.compile(rf"(\d[\d.,]*)\s*(\\text\s*\{{)?\s*({'|'.join(SCALES)})\b\s*(\}})?")

TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
WORDS_OF_UNIT = r"[a-zA-Z][a-zA-Z .,/'-]*"
AREA = r"(?:\s*\^\s*\{?\s*[23]\s*\}?)?"
MEASURE = (
    r"(?:[a-zA-Z]{4,}|[ckm]m|[km]g|ft|mph|kph|sec|min|hrs?|lbs?|mi|yds?|oz|m[lL]|USD|deg|rad|sq|cu)"
)
UNIT = re.compile(
    rf"(?<=[\w}})])\s*/?\s*\\text\s*\{{\s*{WORDS_OF_UNIT}\}}{AREA}$"
    rf"|(?<=\d)\s*{MEASURE}\.?(?:(?: |/| / )[a-zA-Z]+\.?)*{AREA}$"
)
"""Letters without a \\text are a unit only where they can be no product of unknowns."""

RELATION = re.compile(
    r"=|[<>]|\\(?:leq?|geq?|leqslant|geqslant|neq?|lt|gt|approx|simeq|sim|cong|equiv|propto|in"
    r"|notin|ni|to|mapsto|(?:long)?(?:left)?rightarrow|Rightarrow|implies|iff|subset|subseteq)"
    r"(?![a-zA-Z])"
)
ASSIGNED = re.compile(r"=|\\in(?![a-zA-Z])")
DIGIT_OF_NAME = re.compile(r"_\{?\d\}?")
NAME = re.compile(r"(?=.*[a-zA-Z])[^-\d][^\d]*")

OR = r"(?:(?<![a-zA-Z\\])or(?![a-zA-Z])|\\(?:lor|vee)(?![a-zA-Z]))"
JOINED = re.compile(
    rf"\\text\s*\{{\s*,?\s*(?:and|or)\s*\}}|,?\s*(?<![a-zA-Z\\])and(?![a-zA-Z])|,?\s*{OR}"
)
HEDGE = re.compile(
    rf"{OR}|\?|(?<![a-zA-Z\\])(?:either|maybe|perhaps|possibly|probably|likely|about|roughly"
    r"|approximately|not|unless|unknown|guess)(?![a-zA-Z])",
    re.IGNORECASE,
)
SET = re.compile(r"\\\{.*\\\}")
SEVERAL = re.compile(r"\\[pm]{2}(?![a-zA-Z])|\d\s+\d")
WORK = re.compile(
    r"\\(?:i*nt|oint|sum|prod|coprod|lim(?:sup|inf)?|max|min|sup|inf|gcd|lcm|det|[bp]?mod|partial"
    r"|nabla|operatorname|bigcup|bigcap|[lcv]?dots)(?![a-zA-Z])|\.\.\.|\\frac\s*\{d\}\s*\{d[a-z]"
)

BASED = re.compile(r"([A-F]*\d[\dA-F]*)_\{?(\d+)\}?")
ARTICLE = re.compile(r"^(?:an?|the) (?=\w)")
CHOICE = re.compile(r"\(([A-Z])\)|([A-Z])")
LEADING_CHOICE = re.compile(r"(?:\(([A-Z])\)|([A-Z])[).:])\s.*")
BARE_WORDS = re.compile(r"[a-zA-Z][a-z]{3,}(?: [a-zA-Z]+)*")

GLUE = r"[\s$,;.:&*\\()\[\]]*"
CALLED_ANSWER = re.compile(r"answer(?: is|:)", re.IGNORECASE)
BETWEEN_BOXES = re.compile(rf"{GLUE}(?:(?:and|or|\\text\s*\{{[^{{}}]*\}}){GLUE})?")


def boxed(text: str) -> tuple[str, ...]:
    r"""The different contents of the last closed \boxed{...} and of those side by side with it,
    with no more than a comma or an "or" between them: they are one answer."""
    outer: list[tuple[int, int]] = []
    for start, end in sorted(boxes(text)):
        if not outer or start > outer[-1][1]:
            outer.append((start, end))
    contents = [text[slice(*span)].strip() for span in outer[-1:]]
    for after, before in pairwise(reversed(outer)):
        between = text[before[1] + 1 : text.rfind("\\boxed", before[1], after[0])]
        if not BETWEEN_BOXES.fullmatch(between):
            break
        if len(contents) > LONGEST:
            break  # More of them could only be too long.
        contents.append(text[slice(*before)].strip())
    return tuple(dict.fromkeys(reversed(contents)))


def unboxed(text: str, was_cut: bool) -> str | None:
    """The answer of a text without a box: what it calls its answer, else what `stated` finds."""
    called = deque(CALLED_ANSWER.finditer(text), maxlen=1)
    if not called or "####" in text:
        return stated(text, was_cut)
    start = called[0].end()
    line = text[start : start + 2 * LONGEST].partition("\n")[0].strip(" *")
    if line.startswith("$"):
        return line[1:].partition("$")[0]
    return line.partition(". ")[0].rstrip(" *.")


@dataclass(frozen=True)
class Answer:
    """An answer, notation apart."""

    text: str
    """In LaTeX, without units; of "x = 5" the 5."""
    whole: str
    """The same with all names."""
    name: str
    """What stands left of the equals sign."""

    @property
    def compact(self) -> str:
        return self.text.replace(" ", "")

    @property
    def relations(self) -> int:
        """How many are left where "x = 5" is read as 5."""
        return len(RELATION.findall(self.text))

    def is_named_unlike(self, other: Answer) -> bool:
        """Whether both say of what they are the value, and not of the same."""
        return bool(self.name and other.name) and self.name != other.name

    @property
    def is_several(self) -> bool:
        """Whether it is a list or a set of values."""
        inner = self.text[2:-2] if SET.fullmatch(self.text) else self.text
        return bool(SEVERAL.search(inner) or len(parts(inner)) > 1)

    @property
    def is_percentage(self) -> bool:
        return self.text.endswith("%")

    @property
    def digits_and_base(self) -> tuple[str, str]:
        """Of a number in a base that it tells; empty texts for any other."""
        found = BASED.fullmatch(self.compact)
        return (found[1], found[2]) if found else ("", "")

    @property
    def words(self) -> str:
        """Its letters, where notation does not matter."""
        plain = re.sub(r"\\text|[\\{}\"' ]+", " ", self.text).strip(" .,;:!").casefold()
        return ARTICLE.sub("", plain)

    @property
    def is_words(self) -> bool:
        whole = TEXT.fullmatch(self.text)
        return bool(BARE_WORDS.fullmatch(self.text) or (whole and re.search(r"\w", whole[1])))

    @property
    def choice(self) -> str | None:
        """The letter of an option."""
        plain = re.sub(r"\\text|[{}]", "", self.text).strip()
        found = CHOICE.fullmatch(plain) or LEADING_CHOICE.fullmatch(plain)
        return (found[1] or found[2]) if found else None

    @property
    def value(self) -> Fraction | None:
        """Of a number that is written out."""
        if re.search(r"[a-zA-Z%!^_]", self.text.replace(r"\frac", "")):
            return None
        return number(self.text)


def read(text: str) -> Answer:
    """An answer as its writer means it."""
    whole = without_units(tidy(text))
    assigned = [split_assignment(part) for part in parts(whole)]
    # "x = 1, 2" names its list as a whole.
    is_bare = [not name and not RELATION.search(text) for name, text in assigned]
    if not assigned[0][0] or not all(
        name or bare for (name, _), bare in zip(assigned, is_bare, strict=True)
    ):
        return Answer(whole, whole, "")
    values = ", ".join(without_units(value) for _, value in assigned)
    return Answer(values, whole, ", ".join(name for name, _ in assigned if name))


def tidy(text: str) -> str:
    """`text` in one notation."""
    text = text.translate(SYMBOLS)
    for pattern, replacement in NOTATION:
        text = pattern.sub(replacement, text)
    text = text.strip()
    if not text.endswith("..."):
        text = text.rstrip(" .,;:")
    while text.startswith("{") and closing(text) == len(text) - 1:
        text = text[1:-1].strip()
    inner = (TEXT.sub(r"\1", text) if TEXT.fullmatch(text) else text).strip(" ()")
    if inner != text and "," not in inner and number(inner) is not None:
        text = inner
    if not BRACKETS.search(text):
        text = THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    return REPEATING.sub(as_fraction, SCALED.sub(scaled, text))


def as_fraction(found: re.Match[str]) -> str:
    """A decimal that repeats: 0.1666... as 15/90."""
    whole, once, again = found.groups()
    top = int(f"{whole}{once}{again}") - int(f"{whole}{once}" or 0)
    return rf"\frac{{{top}}}{{{10 ** len(once) * (10 ** len(again) - 1)}}}"


def scaled(found: re.Match[str]) -> str:
    digits, opened, word, closed = found.groups()
    size = (number(digits) or 0) * SCALES[word]
    if not size or size.denominator != 1:
        return found[0]
    return str(size) + (r" \text{ " if opened and not closed else "")


def closing(text: str) -> int:
    """Where the brace that `text` starts with is closed; -1 where it never is."""
    depth = 0
    for place, letter in enumerate(text):
        escaped = place > 0 and text[place - 1] == "\\"
        depth += 0 if escaped else (letter == "{") - (letter == "}")
        if depth == 0:
            return place
    return -1


def without_units(text: str) -> str:
    found = UNIT.search(text)
    if found is None or HEDGE.search(found[0]) or JOINED.search(found[0]):
        return text
    return text[: found.start()].rstrip()


def split_assignment(text: str) -> tuple[str, str]:
    """Name and value of "x = 5" or "x in [0, 1)"; no name where it is nothing like that."""
    if len(RELATION.findall(text)) == 1 and (sign := ASSIGNED.search(text)):
        name = text[: sign.start()].strip()
        is_open = name.count("{") != name.count("}")  # as in "sum_{n = 1}"
        if not is_open and NAME.fullmatch(DIGIT_OF_NAME.sub("", name)):
            return name, text[sign.end() :].strip()
    return "", text


def in_shape_of(gold: Answer, given: Answer) -> Answer:
    """Coordinates given one by one, "x = 2, y = 3", as the point that is asked for, and digits
    without a base as those of the base that is asked for."""
    digits, base = gold.digits_and_base
    if given.text == digits:
        return replace(given, text=f"{digits}_{base}")
    if given.name and gold.text.startswith("(") and len(parts(given.text)) > 1:
        return replace(given, text=f"({given.text})")
    return given


def parts(text: str) -> list[str]:
    """The values of a list: what stands between commas outside of all brackets."""
    return ["".join(part).strip() for part in split_outside(JOINED.sub(",", text))]


def split_outside(text: str) -> Iterator[list[str]]:
    depth, part = 0, list[str]()
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter in ",;" and depth <= 0:
            yield part
            part = []
        else:
            part.append(letter)
    yield part


def refusal(gold: Answer, given: Answer) -> str | None:
    """What is wrong with the way an answer is given, whatever its value; None where it may be
    compared. Says nothing of the value of `gold`."""
    if set(WORK.findall(given.text)) - set(WORK.findall(gold.text)):
        return WORK_UNDONE
    if given.relations > gold.relations + bool(gold.name):
        return "is a relation and not a value"
    if HEDGE.search(re.sub(OR, ",", given.text) if gold.is_several else given.text):
        return "does not commit to its value"
    if given.digits_and_base[1] not in ("", "10", gold.digits_and_base[1]):
        return "is in another base than is asked for"
    if given.is_several and not gold.is_several and not gold.relations:
        return SEVERAL_VALUES
    return None
