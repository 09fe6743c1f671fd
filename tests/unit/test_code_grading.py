"""No program is believed: cheats fail, honest ones pass, the grader's faults are no verdicts."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from opd.privileged import Case, ProgramTests
from opd.types import Verdict
from rewards.code import grade, grade_stdio
from rewards.code.wire import encoded, refused

pytestmark = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap is not on the PATH"
)

TOY = ProgramTests(
    assertions=("assert add(1, 2) == 3", "assert add(40, 2) == 42", "assert add(-1, 1) == 0"),
    shown=1,
)

FRAMES = """
import sys
def frames():
    for frame in sys._current_frames().values():
        while frame is not None:
            yield frame
            frame = frame.f_back
"""

TOLD_PASS = encoded({"token": "", "status": "pass"}, refused)

CHEATS = {
    # the table of the notes
    "exits at import": "import sys; sys.exit(0)",
    "leaves at import": "import os; os._exit(0)",
    "leaves inside the call": "import os\ndef add(a, b): os._exit(0)",
    "is equal to all": """
class Equal:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = None
def add(a, b): return Equal()
""",
    "an int that is equal to all": """
class Equal(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def add(a, b): return Equal(7)
""",
    "hooks the exception": """
import os, sys
sys.excepthook = lambda *_: os._exit(0)
def add(a, b): raise ValueError
""",
    "prints that all is well": """
import sys
print("OK\\nAll tests passed\\n{'status': 'pass'}", flush=True)
sys.exit(0)
""",
    "walks frames and writes the verdict": FRAMES
    + """
def add(a, b):
    for frame in frames():
        for name in list(frame.f_locals) + list(frame.f_globals):
            for space in (frame.f_locals, frame.f_globals):
                if isinstance(space.get(name), (list, dict)) and space is not globals():
                    try:
                        space[name].append("passed")
                    except Exception:
                        pass
        frame.f_locals.update(status="pass", passed=True, result="passed")
    return 7
""",
    "walks frames and reads the answer": FRAMES
    + """
def add(a, b):
    for frame in frames():
        for value in (*frame.f_locals.values(), *frame.f_code.co_consts):
            if type(value) is str and "assert" in value:
                return eval(value.rpartition("==")[2])
            if type(value) is int and value in (3, 42):
                return value
    return 7
""",
    "jumps over asserts": """
import sys
def jump(frame, event, argument):
    if event == "line" and frame.f_code.co_filename != __file__:
        frame.f_lineno += 1
    return jump
__file__ = "program.py"
sys.settrace(jump)
def add(a, b):
    frame = sys._getframe()
    while frame:
        frame.f_trace = jump
        frame = frame.f_back
    return 7
""",
    "patches builtins": """
import builtins
builtins.abs = builtins.sum = builtins.len = lambda *_: 0
builtins.AssertionError = builtins.Exception = KeyError
class Any(int):
    __eq__ = lambda *_: True
builtins.int = Any
def add(a, b): return 7
""",
    "finds the grader through gc": """
import gc
def add(a, b):
    for thing in gc.get_objects():
        if type(thing).__name__ in ("Candidate", "Channel", "Tests", "Program"):
            for name in ("stopped", "number", "error"):
                setattr(thing, name, "")
            thing.failure = lambda *_: {"status": "pass"}
        if type(thing) is dict and "status" in thing:
            thing["status"] = "pass"
    return 7
""",
    "disarms the alarm": """
import signal, os
signal.alarm(0)
signal.setitimer(signal.ITIMER_REAL, 0)
for number in range(1, 32):
    try:
        signal.signal(number, lambda *_: os._exit(0))
    except OSError:
        pass
os.kill(os.getpid(), signal.SIGTERM)
""",
    "registers an exit": """
import atexit, os
atexit.register(os._exit, 0)
def add(a, b): raise SystemExit(0)
""",
    # what the notes ask for besides
    "a reply of a gigabyte": "def add(a, b): return '[' * (1 << 30)",
    "a reply that just fits": "def add(a, b): return [[]] * 400_000",
    "no number": "def add(a, b): return float('nan')",
    "infinite": "def add(a, b): return float('inf')",
    "a huge integer": "def add(a, b): return 1 << 200_000",
    "an integer beyond all": "def add(a, b): return 1 << 80_000_000",
    "right at every other call": """
calls = {}
def add(a, b):
    calls[a, b] = calls.get((a, b), 0) + 1
    return a + b if calls[a, b] > 1 else a - b
""",
    "slow on hidden inputs": """
import time
from contextlib import suppress
def add(a, b):
    if a == 40:
        time.sleep(60)
    return a + b
""",
    # our own
    "forges a verdict on every descriptor": f"""
import os
import re
frame = {TOLD_PASS!r}
def add(a, b):
    for descriptor in range(256):
        try:
            os.write(descriptor, len(frame).to_bytes(4, "big") + frame)
        except OSError:
            pass
    return 7
""",
    "answers before it is asked": """
import os
import re
from rewards.code.wire import encoded, refused
for reply in ([["add"]], [True], [None], [3], [42]) * 9:
    frame = encoded(reply, refused)
    os.write(4, len(frame).to_bytes(4, "big") + frame)
def add(a, b): return 7
""",
    "announces four gigabytes": "import os\ndef add(a, b): os.write(4, b'\\xff' * 4000)",
    "answers with no value": "import os\ndef add(a, b): os.write(4, b'\\0\\0\\0\\2ab')",
    "answers in another shape": """
import os
import re
from rewards.code.wire import encoded, refused
def add(a, b):
    frame = encoded(["AssertionError", "AssertionError"], refused)
    os.write(4, len(frame).to_bytes(4, "big") + frame)
""",
    "raises what the tests may be waiting for": "def add(a, b): raise AssertionError('3 == 3')",
    "raises what ends a tester": """
class Quiet(SystemExit, KeyboardInterrupt if False else BaseException): code = 0
def add(a, b): raise Quiet(0)
""",
    "raises the end of an iteration": "def add(a, b): raise StopIteration(3)",
    "an endless iterator": "import itertools\ndef add(a, b): return itertools.count(3)",
    "a text that is equal to all": """
class Equal(str):
    __eq__ = __ne__ = __contains__ = __bool__ = lambda *_: True
    __hash__ = str.__hash__
def add(a, b): return Equal("3")
""",
    "says it is an int": """
class Meta(type):
    __instancecheck__ = __subclasscheck__ = __eq__ = lambda *_: True
    __hash__ = type.__hash__
class Pretender(metaclass=Meta):
    __class__ = property(lambda self: int)
    __eq__ = __index__ = __int__ = lambda *_: True
    __hash__ = lambda self: 3
def add(a, b): return Pretender()
""",
    "defines what the tests and their tester are made of": """
def __import__(*_): return None
def __build_class__(*_): return None
def AssertionError(*_): return None
class __builtins__: pass
class program:
    def add(a, b): return a + b
def add(a, b): return 7
def print(*_): return None
def eval(*_): return None
""",
    "kills whatever it can": """
import os
import re
for pid in (-1, 1, os.getppid()):
    try:
        os.kill(pid, 9)
    except OSError:
        pass
def add(a, b): return 7
""",
    "looks for tests in files": r"""
import os, re
def search():
    for folder in (".", "/", "/tmp", "/proc/self", "/proc/1", "/dev/shm", "/box", "/dev/fd"):
        for name in os.listdir(folder):
            try:
                with open(os.path.join(folder, name), "rb") as file:
                    found = re.search(rb"add\(40, 2\)\D+(\d+)", file.read(1 << 20))
            except OSError:
                continue
            if found:
                return int(found[1])
try:
    answer = search()
except OSError:
    answer = None
def add(a, b): return answer if a == 40 else a + b
""",
    "hangs up and sleeps": "import os, time\nos.close(3); os.close(4)\ntime.sleep(60)",
    "loops at import": "while True: pass",
    "hard-codes the test that is shown": "def add(a, b): return 3",
    "leaves a child that answers": """
import os
import re
if os.fork():
    os._exit(0)
def add(a, b): return 7
""",
    "takes all memory with its children": """
import os, time
def add(a, b):
    for _ in range(16):
        if not os.fork():
            memory = bytearray(b"x" * (120 << 20))
            time.sleep(60)
    memory = bytearray(b"x" * (900 << 20))
    return 7
""",
    "a set of numbers that all collide": """
def add(a, b): return set(n * (2**61 - 1) for n in range(30_000))
""",
    "is not defined": "x = 1",
    "cannot be compiled": "def add(a, b):",
    "a source of two million parentheses": "(" * 1_000_000,
    "a source with a zero": "x = '\\0'\0",
    "a source that is too long": "#" * 50_000_000,
    "nothing": "",
}


@pytest.mark.parametrize("program", CHEATS.values(), ids=CHEATS.keys())
def test_a_cheat_fails(program: str):
    verdict = grade(program, TOY, timeout=3.0)
    # not `no_verdict` either: a program that could ask for it would escape its zero
    assert verdict.status == "fail"
    assert verdict.reward == 0.0
    assert verdict.feedback
    # An object's address may hold the digits.
    assert "42" not in re.sub(r"\b0x[0-9a-f]+", "", verdict.feedback)


def passing(*assertions: str, setup: str = "", preamble: str = "") -> ProgramTests:
    return ProgramTests(assertions, setup, preamble, shown=len(assertions))


CLOSE = passing(
    "assert isclose(half(3), 1.5)",
    "assert abs(half(5) - 2.5) < 1e-6",
    "assert round(half(7), 1) == 3.5",
    setup="from math import isclose",
)
SETS = passing("assert set(shared((1, 2), (2, 3))) == set((2,))", "assert len(shared((), ())) == 0")
GIVEN = passing(
    "check(root)",
    preamble="def poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n",
    setup="def check(candidate):\n    assert abs(poly([-4, 2], candidate([-4, 2]))) < 1e-6\n",
)
RAISES = passing(
    "try:\n    root(-1)\nexcept ValueError:\n    pass\nelse:\n    assert False",
    "try:\n    assert root(4) == 2\nexcept:\n    pass",
)

OTHER_CHEATS = {
    "a builtin that the tests use": (SETS, "def set(x): return 1\ndef shared(a, b): return ()"),
    "a length that lies": (
        SETS,
        "class L(list):\n    __len__ = lambda s: 0\n    __iter__ = lambda s: iter((2,))\n"
        "def shared(a, b): return L([1, 2, 3])",
    ),
    "a name that the tests import": (
        CLOSE,
        "def isclose(*_): return True\ndef half(x): return x",
    ),
    "a float that lies": (
        CLOSE,
        "class F(float):\n"
        "    __sub__ = __rsub__ = __abs__ = __round__ = lambda *_: 0.0\n"
        "    __eq__ = __lt__ = lambda *_: True\n    __hash__ = float.__hash__\n"
        "def half(x): return F(9)",
    ),
    "no number where a difference is small": (CLOSE, "def half(x): return float('nan')"),
    "a helper that the prompt has given": (
        GIVEN,
        "def poly(xs, x): return 0\ndef root(xs): return 7",
    ),
    "the check itself": (GIVEN, "def check(candidate): return None\ndef root(xs): return 7"),
    "ends where a test takes any exception": (
        RAISES,
        "import os\ndef root(x):\n    if x < 0: raise ValueError\n    os._exit(0)",
    ),
    "exits where a test takes any exception": (
        RAISES,
        "def root(x):\n    if x < 0: raise ValueError\n    raise SystemExit(0)",
    ),
    "is late where a test takes any exception": (
        RAISES,
        "import time\ndef root(x):\n    if x < 0: raise ValueError\n    time.sleep(60)",
    ),
    "raises another error": (RAISES, "def root(x): raise KeyError"),
    "an object that is not equal to anything": (
        passing("assert root(4) != 3"),
        "class Odd: pass\ndef root(x): return Odd()",
    ),
    "an object in a container": (
        passing("assert root(4) == [2]"),
        "class E:\n    __eq__ = lambda *_: True\ndef root(x): return [E()]",
    ),
    "an object that contains all": (
        passing("assert 2 in root(4)"),
        "class E:\n    __contains__ = lambda *_: True\n    __iter__ = lambda s: iter([2])\n"
        "def root(x): return E()",
    ),
    "a function where a value is wanted": (
        passing("assert root(4) == 2"),
        "def root(x): return lambda: 2",
    ),
    "an endless list": (
        passing("assert 2 in list(root(4))"),
        "import itertools\ndef root(x): return itertools.repeat(2)",
    ),
    "a range as long as time": (
        passing("assert sum(root(4)) == 2"),
        "def root(x): return range(10**15)",
    ),
    "a hidden verdict in its own name": (
        passing("assert str(root(4)) == '2'"),
        "Two = type('2', (), {'__str__': lambda s: '2', '__repr__': lambda s: '2'})\n"
        "def root(x): return Two()",
    ),
}


@pytest.mark.parametrize(("tests", "program"), OTHER_CHEATS.values(), ids=OTHER_CHEATS.keys())
def test_a_cheat_on_other_tests_fails(tests: ProgramTests, program: str):
    assert grade(program, tests, timeout=2.0).status == "fail"


TREE = """
class Node:
    def __init__(self, data):
        self.data, self.left, self.right = data, None, None
def height(node):
    return 1 + max(height(node.left), height(node.right)) if node else 0
"""

HONEST = {
    "the toy": (TOY, "def add(a, b): return a + b"),
    "prints and comments": (TOY, "def add(a, b):\n    print(a, b)\n    return a + b"),
    "a demonstration behind a guard": (
        TOY,
        "def add(a, b): return a + b\nif __name__ == '__main__':\n    print(add(*input()))",
    ),
    "helpers, imports, state and annotations": (
        TOY,
        "from __future__ import annotations\nimport functools\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Pair:\n    a: int\n    b: int\n"
        "@functools.cache\ndef add(a: int, b: int) -> int:\n"
        "    p = Pair(a, b)\n    return functools.reduce(int.__add__, [p.a, p.b])",
    ),
    "threads": (
        TOY,
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def add(a, b):\n    with ThreadPoolExecutor(2) as p: return sum(p.map(int, [a, b]))",
    ),
    "a large answer": (
        passing("assert len(many(300000)) == 300000", "assert sum(many(1000)) == 499500"),
        "def many(n): return list(range(n))",
    ),
    "a large argument": (passing("assert f(list(range(300000))) == 299999"), "f = max"),
    "floats": (CLOSE, "def half(x): return x / 2"),
    "sets": (SETS, "def shared(a, b): return tuple(set(a) & set(b))"),
    "a helper of the prompt": (GIVEN, "def root(xs): return -xs[0] / poly(xs[1:], 0)"),
    "exceptions": (
        RAISES,
        "class Negative(ValueError):\n    def __init__(self, x, y): pass\n"
        "def root(x):\n    if x < 0: raise Negative(x, 1)\n    return x ** 0.5",
    ),
    "an error that takes many arguments": (
        passing("try:\n    f(b'\\xff')\nexcept ValueError:\n    pass\nelse:\n    assert False"),
        "def f(x): return x.decode()",
    ),
    "every kind of value": (
        passing(
            "x = [None, True, -1, 2.5, 1j, 'é', b'b', (1,), {2}, {3: [4]}, frozenset([5])]\n"
            "assert same(x) == x and list(map(type, same(x))) == list(map(type, x))"
        ),
        "def same(x): return x",
    ),
    "what inherits from builtins": (
        passing("assert f('aab') == {'a': 2, 'b': 1}", "assert g() == (1, 2)", "assert h() == 7"),
        "from collections import Counter, namedtuple\nfrom enum import IntEnum\n"
        "class C(IntEnum):\n    RED = 7\n"
        "f = Counter\ndef g(): return namedtuple('P', 'x y')(1, 2)\ndef h(): return C.RED",
    ),
    "generators and iterators": (
        passing(
            "assert list(evens(5)) == [0, 2, 4]",
            "assert next(evens(5)) == 0",
            "assert sorted(f([3, 1])) == [1, 3]",
            "assert evens(5) != [0, 2, 4]",
        ),
        "def evens(n):\n    for i in range(0, n, 2): yield i\ndef f(x): return map(int, x)",
    ),
    "keywords and defaults": (
        passing("assert f(1, b=2) == 12", "assert f(b=1) == 1"),
        "def f(a=0, *, b): return 10 * a + b",
    ),
    "objects of its own": (
        passing(
            "assert height(root) == 3",
            "assert root.left.data == 2 and root.right is None",
            setup="root = Node(1)\nroot.left = Node(2)\nroot.left.left = Node(3)",
        ),
        TREE,
    ),
    "a list of objects of its own": (
        passing("assert best([Pair(5, 24), Pair(15, 25)], 2) == 25"),
        "class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\n"
        "def best(pairs, n): return max(p.b for p in pairs)",
    ),
    "methods": (
        passing(
            "assert Solution().twice(4) == 8", "s = Solution(); s.n = 3; assert s.twice(1) == 3"
        ),
        "class Solution:\n    n = 2\n    def twice(self, x: int) -> int: return self.n * x",
    ),
    "functions that it returns and takes back": (
        passing("assert adder(2)(3) == 5", "assert twice(adder(2), 1) == 5"),
        "def adder(n): return lambda x: x + n\ndef twice(f, x): return f(f(x))",
    ),
    "builtins as arguments": (
        passing("assert without((4, 7.7, 'a'), int) == [7.7, 'a']", "assert apply(len, 'ab') == 2"),
        "def without(xs, kind): return [x for x in xs if not isinstance(x, kind)]\n"
        "def apply(f, x): return f(x)",
    ),
    "an object that is true": (
        passing("assert found('abb')", "assert not found('ac')"),
        "import re\ndef found(s): return re.search('ab', s)",
    ),
    "a builtin's name that a setup asks for": (
        passing("assert sum(10, 15) == 6", setup="sum = program.sum"),
        "def sum(a, b): return 6",
    ),
    "chance, with a seed": (
        passing("import random\nassert f() == f() or True", setup="import random"),
        "import random\ndef f(): return random.random()",
    ),
}


@pytest.mark.parametrize(("tests", "program"), HONEST.values(), ids=HONEST.keys())
def test_an_honest_program_passes(tests: ProgramTests, program: str):
    assert grade(program, tests) == Verdict("pass", 1.0)


def test_numbers_of_numpy_are_numbers():
    tests = passing("assert mean([1, 2]) == 1.5", "assert first([3]) == 3", "assert f([1])")
    program = (
        "import numpy\nmean = numpy.mean\n"
        "def first(x): return numpy.array(x)[0]\ndef f(x): return numpy.array(x)[0] == 1"
    )
    assert grade(program, tests, timeout=60.0).status == "pass"


def test_verdicts_are_the_same_every_time():
    program = "import random\ndef pick(n): return random.choice(list({str(i) for i in range(n)}))"
    tests = passing("assert pick(100) == ''")
    feedback = {grade(program, tests).feedback for _ in range(3)}
    assert len(feedback) == 1
    assert "gave '" in (feedback.pop() or "")


BOX_BREAKERS = {
    "memory of many": """
import os, time
for _ in range(27):
    if not os.fork():
        memory = bytearray(b"x" * (60 << 20))
        time.sleep(20)
time.sleep(20)
""",
    "memory and files": """
for path in ("/dev/shm/x", "/tmp/x"):
    try:
        open(path, "wb").write(b"x" * (64 << 20))
    except OSError:
        pass
memory = []
while True:
    memory.append(bytearray(b"x" * (10 << 20)))
""",
    "threads": """
import threading, time
while True:
    try:
        threading.Thread(target=time.sleep, args=(20,)).start()
    except RuntimeError:
        pass
""",
    "signals to all": """
import os
import re
for pid in range(1, 40000):
    try:
        os.kill(pid, 9)
    except OSError:
        pass
os.kill(os.getpid(), 9)
""",
    "the end of its group": "import os\nos.kill(0, 9)",
    "an interruption of its group": "import os\nos.killpg(os.getpgrp(), 2)",
    "an abort": "import os\nos.abort()",
    "a stop": "import os, signal\nos.kill(0, signal.SIGSTOP)",
    "the exit code of a signal": "import os\nos._exit(137)",
    "the exit code of a box that fails": """
import os
import re
os.write(2, b"bwrap: Can't create the namespace\\n")
os._exit(1)
""",
    "no descriptors": "import os, time\nos.closerange(0, 4096)\ntime.sleep(20)",
}


@pytest.mark.parametrize("program", BOX_BREAKERS.values(), ids=BOX_BREAKERS.keys())
def test_nothing_that_a_program_does_looks_like_a_fault_of_its_box(program: str):
    assert grade(program, TOY, timeout=1.0).status == "fail"
    assert grade_stdio(program, SUMS, timeout=1.0).status == "fail"


FAULTS = {
    "an import that is missing": passing("assert add(1, 2) == 3", setup="import no_such_module"),
    "tests that do not compile": passing("assert add(1, 2) =="),
    "a preamble that fails": passing("assert add(1, 2) == 3", preamble="1 / 0"),
    "tests that leave before they ask": passing("x", preamble="import os; os._exit(0)"),
}


@pytest.mark.parametrize("tests", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_of_the_tests_is_no_verdict(tests: ProgramTests, caplog: pytest.LogCaptureFixture):
    assert grade("def add(a, b): return a + b", tests) == Verdict("no_verdict", 0.0)
    assert "no verdict on a program: its tests ended with" in caplog.text


def test_a_test_cannot_forge_what_only_its_tester_tells():
    frame = len(TOLD_PASS).to_bytes(4, "big") + TOLD_PASS
    forging = f"import os\nos.write(5, {frame!r})\nos._exit(0)"
    assert grade("def add(a, b): return 7", passing(forging)).status == "fail"
    early = passing("x", preamble=f"import os\nif os.path.exists('job'): {forging.splitlines()[1]}")
    assert grade("x = 1", early).status == "no_verdict"


def box_of(script: str) -> int:
    """The process of ours that holds the box in which `script` runs."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if script.encode() in words and int(parent) == os.getpid():
            return int(folder.name)
    raise AssertionError(f"no box of ours runs {script}")


@pytest.mark.parametrize("script", ["tester.pyc", "candidate.pyc", "script.pyc"])
def test_a_box_that_is_killed_from_outside_is_no_verdict(script: str):
    verdicts: list[Verdict] = []
    program = "import time\ntime.sleep(20)"
    work: Callable[[], Verdict] = (
        (lambda: grade_stdio(program, ProgramTests(cases=(Case("", ""),)), timeout=30.0))
        if script == "script.pyc"
        else (lambda: grade(program, TOY, timeout=30.0))
    )
    thread = threading.Thread(target=lambda: verdicts.append(work()))
    thread.start()
    time.sleep(2.0)
    os.kill(box_of(script), signal.SIGKILL)
    thread.join(15.0)
    assert [verdict.status for verdict in verdicts] == ["no_verdict"]


def test_no_program_takes_longer_than_its_time_and_a_second():
    tests = passing("assert 2 ** f() and '9' * f()", "while True: f()")
    for program in ("while True: pass", "def f(): return 1", "def f(): return 10 ** 12"):
        started = time.perf_counter()
        assert grade(program, tests, timeout=1.0).status == "fail"
        # two boxes have to start as well, on a machine that may be busy
        assert time.perf_counter() - started < 1.0 + 1.0 + 3.0
    assert grade("def f(): return 1", tests, timeout=0.0).status == "fail"


def test_grades_do_not_disturb_each_other():
    programs = ["def add(a, b): return a + b", "def add(a, b): return a - b"] * 10
    grade(programs[0], TOY, timeout=60.0)  # what is opened once stays
    before = pipes()
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda program: grade(program, TOY, timeout=60.0), programs))
    assert [verdict.status for verdict in verdicts] == ["pass", "fail"] * 10
    assert pipes() <= before


def pipes() -> set[str]:
    """What of ours is open."""
    found: set[str] = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return {target for target in found if target.startswith("pipe:")}


SUMS = ProgramTests(
    cases=(Case("1 2\n", "3\n"), Case("40 2\n", "42\n"), Case("0.5 1\n", "1.50\n")), shown=1
)
READS = "a, b = map(float, input().split())\n"


@pytest.mark.parametrize(
    ("program", "status"),
    [
        (READS + "print(a + b)", "pass"),
        (READS + "print(f' {a + b} \\n\\n')", "pass"),
        ("import sys\na, b = map(float, sys.stdin.read().split())\nprint(a + b)", "pass"),
        (READS + "if __name__ == '__main__':\n    print(a + b)\n    raise SystemExit", "pass"),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\n" + READS
         + "print(A(a).x + b)", "pass"),
        (READS + "print(a + b); import sys; sys.exit(1)", "fail"),
        (READS + "print(a + b, flush=True); import os; os.kill(os.getpid(), 9)", "fail"),
        (READS + "print(a + b, flush=True); 1 / 0", "fail"),
        (READS + "import time\nprint(a + b, flush=True); time.sleep(60)", "fail"),
        (READS + "print(a - b)", "fail"),
        (READS + "print(a + b)\nprint('x' * (2 << 20))", "fail"),
        (READS + "import sys\nsys.stdout.buffer.write(b'\\xff3')", "fail"),
        ("print(3)", "fail"),
        ("print('3\\n\\n4\\n1.5')", "fail"),
        ("import os; os._exit(0)", "fail"),
        ("", "fail"),
        ("def f(", "fail"),
        ("#" * 50_000_000, "fail"),
    ],
    ids=range(18),
)  # fmt: skip
def test_a_program_is_judged_by_what_it_prints(program: str, status: str):
    verdict = grade_stdio(program, SUMS, timeout=3.0)
    assert verdict.status == status
    assert "42" not in (verdict.feedback or "")


def test_a_program_that_reads_has_what_its_prompt_gave():
    tests = ProgramTests(cases=(Case("4", "2.0"),), preamble="from math import *")
    assert grade_stdio("print(sqrt(int(input())))", tests).status == "pass"
    tests = ProgramTests(cases=(Case("2", "1.41421"),), preamble="from math import *")
    program = "print(sqrt(int(input())))"
    assert grade_stdio(program, tests).status == "fail"
    assert grade_stdio(program, tests, tolerance=1e-5).status == "pass"


FEEDBACK = [
    ("def add(a, b): return a - b", 1, "Test 1 of 3 fails: it does not hold; the last call, add(1, "
     "2), gave -1. The test is: assert add(1, 2) == 3"),
    ("def add(a, b): return 3", 1, "Hidden test 2 of 3 fails: it gets a wrong result."),
    ("def add(a, b): return 3", 3, "Test 2 of 3 fails: it does not hold; the last call, add(40, 2),"
     " gave 3. The test is: assert add(40, 2) == 42"),
    ("def add(a, b):\n    return a + b if a < 2 else 1 / 0", 1, "Hidden test 2 of 3 fails: your "
     "program raises ZeroDivisionError: division by zero in line 2: return a + b if a < 2 else 1 / "
     "0."),
    ("def add(a, b): return [] if a > 2 else a + b", 1, "Hidden test 2 of 3 fails: it gets a wrong "
     "result."),
    ("x = y", 1, "Your program cannot be loaded: your program raises NameError: name 'y' is not "
     "defined in line 1: x = y."),
    ("import sys\nsys.exit(3)", 1, "Your program cannot be loaded: your program raises SystemExit: "
     "3 in line 2: sys.exit(3)."),
    ("\nimport os; os._exit(0)", 1, "Your program cannot be loaded: your program ends its own "
     "process."),
    ("x = 1", 0, "Hidden test 1 of 3 fails: a name is missing in your program: name 'add' is not "
     "defined."),
    ("def add(a, b): raise ValueError('\\x1b[2J\\0\\u202e' + 'x' * 5000)", 1, "Test 1 of 3 fails: "
     "your program raises ValueError: \\x1b[2J\\x00\\u202e" + "x" * 285),
]  # fmt: skip


@pytest.mark.parametrize(("program", "shown", "feedback"), FEEDBACK, ids=range(len(FEEDBACK)))
def test_feedback_tells_what_failed_and_hides_what_is_hidden(
    program: str, shown: int, feedback: str
):
    told = grade(program, ProgramTests(TOY.assertions, shown=shown)).feedback
    assert told is not None
    assert told.startswith(feedback)
    assert len(told) < 1500


def test_a_program_that_is_too_long_is_not_run():
    told = "Your program has 50000000 characters, and 1048576 are allowed."
    assert grade("#" * 50_000_000, TOY).feedback == told
    assert grade_stdio("#" * 50_000_000, SUMS).feedback == told


SECRETS = ProgramTests(
    assertions=(
        "assert f(1) == 7310, f'not 7310 but {f(1)}'",
        "x = f(2)\nif x != 7310:\n    raise ValueError('7310 is right')",
        "assert f(3)['7310'] == 1",
        "assert [7310, 7310][f(4)]",
    ),
    cases=(),
)


@pytest.mark.parametrize("answer", ["0", "'a'", "None", "{}", "[]", "object()", "(1, 2)"])
@pytest.mark.parametrize("number", range(4))
def test_feedback_never_tells_what_a_hidden_test_expects(answer: str, number: int):
    tests = ProgramTests((SECRETS.assertions[number],))
    verdict = grade(f"def f(x): return {answer}", tests)
    if verdict.status == "fail":
        assert "7310" not in (verdict.feedback or "")
        revealed = grade(f"def f(x): return {answer}", tests, reveals_hidden=True)
        assert "7310" in (revealed.feedback or "")


def test_feedback_on_what_is_printed_hides_what_is_hidden():
    shown = grade_stdio("print(9)", SUMS).feedback
    assert shown == (
        "Case 1 of 3 fails: your program prints a wrong output.\n"
        "Input: 1 2\\n\nExpected output: 3\\n\nYour output: 9\\n"
    )
    assert grade_stdio("print(3)", SUMS).feedback == (
        "Hidden case 2 of 3 fails: your program prints a wrong output."
    )
    revealed = grade_stdio("print(3)", SUMS, reveals_hidden=True).feedback
    assert revealed is not None and "Expected output: 42" in revealed
    raised = grade_stdio("\nint('x')", SUMS).feedback
    assert raised is not None and raised.startswith(
        "Case 1 of 3 fails: your program ends with exit code 1, saying ValueError: invalid literal "
        "for int() with base 10: 'x' in line 2: int('x')."
    )
