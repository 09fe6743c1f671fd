"""Benchmarks of programs: reference solutions pass, stubs do not, and no test is run to be read."""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data.humaneval import problem as humaneval
from data.livecodebench import LiveCodeBench
from data.livecodebench import problem as livecodebench
from data.mbpp import problem as mbpp
from opd.config import ROOT
from opd.errors import DataError
from opd.privileged import Case, Problem, ProgramTests
from opd.problems import Dataset
from opd.types import Verdict
from rewards.code import PassesTests, grade
from rewards.code.extraction import program_in

BENCHMARKS = Path(os.environ.get("OPD_BENCHMARKS", ROOT.parent / "shared" / "benchmarks"))
needs_boxes = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap is not on the PATH"
)
REWARD = PassesTests()


def problems(name: str, adapter: str) -> tuple[Problem, ...]:
    path = BENCHMARKS / name
    if not path.exists():
        pytest.skip(f"no {name} in {BENCHMARKS}; set OPD_BENCHMARKS to the folder that has it")
    return Dataset(dataset=str(path), adapter=adapter).problems()


def program_tests(problem: Problem) -> ProgramTests:
    assert problem.privileged.tests is not None
    return problem.privileged.tests


def graded(program: str, tests: ProgramTests) -> Verdict:
    """With patience: on a busy machine a right solution is slow, and not wrong."""
    return REWARD.graded(program, tests, timeout=120.0)


def failures(programs: Mapping[str, tuple[str, ProgramTests]]) -> dict[str, Verdict]:
    """The verdicts on the programs that do not pass, by name; two are graded at a time."""
    with ThreadPoolExecutor(2) as pool:
        verdicts = pool.map(lambda pair: graded(*pair), programs.values())
        judged = dict(zip(programs, verdicts, strict=True))
    return {name: verdict for name, verdict in judged.items() if not verdict.success}


def references(found: tuple[Problem, ...]) -> dict[str, tuple[str, ProgramTests]]:
    programs = {p.prompt.id: program_in(p.privileged.demonstration or "") for p in found}
    return {p.prompt.id: (programs[p.prompt.id] or "", program_tests(p)) for p in found}


@needs_boxes
def test_every_humaneval_solution_passes_and_no_stub():
    found = problems("humaneval.jsonl", "data.humaneval:problem")
    assert len(found) == 164
    assert failures(references(found)) == {}
    entries = {p.prompt.id: program_tests(p).assertions[0][len("check(") : -1] for p in found}
    stubs = {
        p.prompt.id: (f"def {entries[p.prompt.id]}(*_, **__):\n    return None\n", program_tests(p))
        for p in found
    }
    failed = failures(stubs)
    assert len(failed) == 164
    assert {verdict.status for verdict in failed.values()} == {"fail"}


@needs_boxes
def test_every_sanitized_mbpp_solution_passes():
    found = problems("mbpp_sanitized.jsonl", "data.mbpp:problem")
    assert len(found) == 427
    assert failures(references(found)) == {}


def test_prompts_show_no_solution_and_no_more_tests_than_they_say():
    found = problems("humaneval.jsonl", "data.humaneval:problem")
    for problem in found:
        assert program_tests(problem).shown == 0
        assert program_tests(problem).setup.strip() not in problem.prompt.question
    for problem in problems("mbpp_sanitized.jsonl", "data.mbpp:problem"):
        question, (first, *hidden) = problem.prompt.question, program_tests(problem).assertions
        assert first in question
        assert not any(test in question for test in hidden)
        assert (problem.privileged.solution or "?") not in question


HUMANEVAL = {
    "task_id": "HumanEval/38",
    "prompt": "import math\n\n\ndef double(x):\n    return 2 * x\n\n\ndef half(x):\n"
    '    """ Undoes double.\n    >>> half(4)\n    2\n    """\n',
    "entry_point": "half",
    "canonical_solution": "    return x // 2\n",
    "test": "def check(candidate):\n    for x in range(9):\n"
    "        assert candidate(double(x)) == x\n",
}
HUMANEVAL_PLUS = {
    **HUMANEVAL,
    "test": "import numpy as np\n\ndef assertion(out, exp, atol):\n    if out != exp:\n"
    "        assert np.allclose(out, exp, atol=1e-6)\n\ndef check(candidate):\n"
    "    inputs = [[4], [6]]\n    results = [2, 3]\n"
    "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n"
    "        assertion(candidate(*inp), exp, 0)\n",
}


@needs_boxes
@pytest.mark.parametrize("row", [HUMANEVAL, HUMANEVAL_PLUS], ids=["base", "plus"])
def test_a_row_of_humaneval_judges_its_function_alone(row: Mapping[str, object]):
    problem = humaneval(row)
    tests = program_tests(problem)
    assert tests.preamble.split() == [
        "import",
        "math",
        "def",
        "double(x):",
        "return",
        "2",
        "*",
        "x",
    ]
    assert problem.prompt.id == "HumanEval/38"
    REWARD.check(problem)
    cheat = "def double(x): return 0\ndef half(x): return 0"
    assert grade(cheat, tests, timeout=60.0).status == "fail"
    assert grade("def half(x): return x / 2", tests, timeout=60.0).status == "pass"


def test_a_humaneval_prompt_has_to_define_what_is_asked_for():
    with pytest.raises(ValueError, match="does not define 'third'"):
        humaneval({**HUMANEVAL, "entry_point": "third"})
    with pytest.raises(ValueError, match="column 'prompt' is no Python"):
        humaneval({**HUMANEVAL, "prompt": "def half(x"})
    with pytest.raises(KeyError, match="test"):
        humaneval({k: v for k, v in HUMANEVAL.items() if k != "test"})


MBPP = {
    "task_id": 601,
    "text": "Write a function to find the longest reach.",
    "code": "import math\r\nfrom math import isclose, sqrt\r\nclass Pair(object):\r\n"
    "    def __init__(self, a, b):\r\n        self.a = a\r\n        self.b = b\r\n"
    "def sum(a, b):\r\n    return a + b\r\n"
    "def reach(pairs, n):\r\n    return max(p.b for p in pairs) / n",
    "test_list": [
        "assert isclose(reach([Pair(5, 24), Pair(15, 25)], 2), 12.5)",
        "assert reach([root], 1) == sum(40, 2)",
    ],
    "test_setup_code": "root = Pair(0, 42)",
    "challenge_test_list": [],
}


@needs_boxes
def test_a_row_of_mbpp_may_hand_objects_of_the_program_to_its_tests():
    problem = mbpp(MBPP)
    tests = program_tests(problem)
    assert tests.setup.split("\n") == [
        "from math import isclose",
        "sum = program.sum",
        "root = Pair(0, 42)",
    ]
    assert tests.shown == 1
    REWARD.check(problem)
    program = program_in(problem.privileged.demonstration or "") or ""
    cheat = program.replace("/ n", "").replace(
        "from math", "def isclose(*_): return 1\nfrom nomath"
    )
    assert grade(cheat.replace("from nomath import isclose, sqrt", ""), tests).status == "fail"


@needs_boxes
def test_a_row_of_mbpp_plus_is_judged_by_both_kinds_of_tests():
    row = {
        "task_id": 2,
        "prompt": "Write a function to double.",
        "code": "def double(x):\n    return 2 * x",
        "test_imports": ["import math"],
        "test_list": ["assert double(2) == 4", "assert double(math.pi) > 6"],
        "test": "inputs = [[7], [0]]\nresults = [14, 0]\n"
        "for i, (inp, exp) in enumerate(zip(inputs, results)):\n"
        "    assert double(*inp) == exp\n",
    }
    problem = mbpp(row)
    REWARD.check(problem)
    program = "def double(x): return 2 * x if x != 7 else 0"
    verdict = grade(program, program_tests(problem))
    assert verdict.feedback == "Hidden test 3 of 3 fails: it gets a wrong result."
    with pytest.raises(ValueError, match="'test_list' is empty"):
        mbpp({**row, "test_list": []})
    with pytest.raises(ValueError, match="'test_list' holds no list"):
        mbpp({**row, "test_list": [1]})


def packed(value: object, protocol: int = 4) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value, protocol))).decode()


def json_tests(*pairs: tuple[str, str], kind: str = "stdin") -> str:
    return json.dumps([{"input": a, "output": b, "testtype": kind} for a, b in pairs])


READING = {
    "question_title": "A",
    "question_content": "Print the sum.",
    "platform": "atcoder",
    "question_id": "abc301_a",
    "contest_date": "2025-02-01T00:00:00",
    "starter_code": "",
    "public_test_cases": json_tests(("1 2\n", "3\n")),
    "private_test_cases": packed(json_tests(("40 2\n", "42\n"), ("-1 1\n", "0"))),
    "metadata": "{}",
}
FUNCTIONAL = {
    **READING,
    "question_id": "3001",
    "starter_code": "class Solution:\n    def pick(self, xs: List[int], name: str) -> List[int]:\n",
    "public_test_cases": json_tests(('[3, 1]\n"a"', "[1, 3]"), kind="functional"),
    "private_test_cases": packed(json_tests(('[]\n"b\\n"', "[]"), kind="functional")),
    "metadata": json.dumps({"func_name": "pick"}),
}


@needs_boxes
def test_a_contest_problem_that_reads_is_judged_by_all_its_cases():
    problem = livecodebench(READING)
    tests = program_tests(problem)
    assert tests.cases == (Case("1 2\n", "3\n"), Case("40 2\n", "42\n"), Case("-1 1\n", "0"))
    assert (tests.assertions, tests.shown) == ((), 1)
    assert problem.prompt.id == "livecodebench-abc301_a"
    assert graded("print(reduce(add, map(int, input().split())))", tests).status == "fail"
    assert graded("print(reduce(int.__add__, map(int, input().split())))", tests).success
    assert graded("print(sum(map(int, input().split())))", tests).success
    assert not graded("print(3)", tests).success


@needs_boxes
def test_a_contest_problem_with_a_class_is_judged_by_its_method():
    problem = livecodebench(FUNCTIONAL)
    tests = program_tests(problem)
    assert tests.assertions == (
        "assert as_list(Solution().pick([3, 1], 'a')) == [1, 3]",
        "assert as_list(Solution().pick([], 'b\\n')) == []",
    )
    assert FUNCTIONAL["starter_code"].strip() in problem.prompt.question
    head = "class Solution:\n    def pick(self, xs: List[int], name: str) -> List[int]:\n"
    assert graded(f"{head}        return sorted(xs)", tests).success
    assert graded(f"{head}        return tuple(sorted(xs))", tests).success
    assert not graded(f"{head}        return set(xs)", tests).success
    assert not graded(f"{head}        return [1, 3]", tests).success


@pytest.mark.parametrize("protocol", range(6))
def test_private_tests_are_read_from_a_pickle_of_any_protocol(protocol: int):
    text = json_tests(("é\n" * 100, "\U0001f600"))
    row = {**READING, "private_test_cases": packed(text, protocol)}
    assert program_tests(livecodebench(row)).cases[1:] == (Case("é\n" * 100, "\U0001f600"),)
    row = {**READING, "private_test_cases": text}
    assert program_tests(livecodebench(row)).cases[1:] == (Case("é\n" * 100, "\U0001f600"),)


class Gadget:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def raw(pickled: bytes) -> str:
    return base64.b64encode(zlib.compress(pickled)).decode()


UNREADABLE = {
    "two texts": packed(["[]", "[]"]),
    "a number": packed(7),
    "bytes": packed(b"[]"),
    "a builtin": packed(eval),
    "a call behind the text": raw(b"X\2\0\0\0[]cos\nsystem\n(X\4\0\0\0truetR."),
    "a text that is cut": raw(b"X\xff\0\0\0[]."),
    "no end": raw(b"X\2\0\0\0[]"),
    "nothing": raw(b""),
    "a text that is made a hundred million times": raw(b"X\2\0\0\0[]0" * 100 + b"]" * (100 << 20)),
    "no compression": base64.b64encode(b"[]").decode(),
    "no base 64": "*",
    "cut compression": base64.b64encode(zlib.compress(b"x" * 999)[:-6]).decode(),
    "no JSON": packed("[1"),
    "no list": packed("{}"),
    "no tests": packed("[1]"),
    "a test without output": packed('[{"input": "1"}]'),
}


@pytest.mark.parametrize("cell", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_private_tests_that_are_no_text_are_refused(cell: str):
    with pytest.raises(ValueError, match="private_test_cases"):
        livecodebench({**READING, "private_test_cases": cell})


def test_private_tests_are_unpacked_up_to_a_size(monkeypatch: pytest.MonkeyPatch):
    row = {**READING, "private_test_cases": packed(json_tests(("", "x" * 100_000)))}
    livecodebench(row)
    monkeypatch.setattr("data.livecodebench.TESTS_BYTES", 100_000)
    with pytest.raises(ValueError, match="is cut, or holds over 100000 bytes"):
        livecodebench(row)


def test_private_tests_are_never_unpickled(tmp_path: Path):
    mark = tmp_path / "mark"
    cell = packed(Gadget(mark))
    with pytest.raises(ValueError, match="the pickle of something else than a text"):
        livecodebench({**READING, "private_test_cases": cell})
    assert not mark.exists()
    # The trap is set: whoever loads it does leave the mark.
    pickle.loads(zlib.decompress(base64.b64decode(cell)))
    assert mark.exists()


@pytest.mark.parametrize(
    ("columns", "cause"),
    [
        ({"metadata": "{}"}, "names no function"),
        ({"metadata": '{"func_name": "a; b"}'}, "names no function"),
        ({"metadata": "x"}, "metadata is not JSON"),
        ({"starter_code": None}, "'starter_code' holds no text"),
        ({"public_test_cases": json_tests(("x", "1"), kind="functional")}, "input is not JSON"),
    ],
)
def test_a_functional_problem_that_cannot_be_read_is_refused(
    columns: Mapping[str, object], cause: str
):
    with pytest.raises(ValueError, match=cause):
        livecodebench({**FUNCTIONAL, **columns})


def test_a_window_leaves_out_other_contests_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    days = ["2024-12-31", "2025-01-01T10:00:00", "2025-04-30T23:59:59", "2025-05-01"]
    rows = [{**READING, "question_id": day, "contest_date": day} for day in days]
    path = tmp_path / "contests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def ids(since: str | None, until: str | None) -> list[str]:
        window = LiveCodeBench(since=since, until=until)
        found = Dataset(dataset=str(path), adapter=window).problems()
        return [p.prompt.id.removeprefix("livecodebench-") for p in found]

    assert ids("2025-01-01", "2025-04-30") == days[1:3]
    assert "2 rows are left out: contest_date is outside 2025-01-01 to 2025-04-30" in caplog.text
    assert ids(None, "2024-12-31") == days[:1]
    assert ids(None, None) == days
    with pytest.raises(DataError, match="every row is left out"):
        ids("2026-01-01", None)
    for since, until in (("2025-02-01", "2025-01-01"), ("2025", None), (None, "soon")):
        with pytest.raises(ValueError):
            ids(since, until)
