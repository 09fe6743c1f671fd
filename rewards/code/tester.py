"""Runs inside a box: the tests of a problem, against a program that lives in another box.

What the tests see of the program is made here: functions that ask over a pipe. `0` holds the job,
`3` is answered on, `4` asks, and `5` takes the verdict, which no other process in a box can write.
"""

from __future__ import annotations

import builtins
import json
import os
import reprlib
import sys
import time
from collections.abc import Iterator

sys.path.insert(0, os.getcwd())
from wire import Channel, Closed, Late, WireError, decoded, encoded  # pyright: ignore  # noqa: E402

sys.path.pop(0)

QUOTED_CHARACTERS = 300


class Stopped(BaseException):
    """The program can be asked no more; no `except Exception` of a test may hide it."""


def says_so(cls: type) -> bool:
    """Whether a builtin class is an error that one text makes."""
    try:
        return issubclass(cls, Exception) and isinstance(cls("x"), cls)
    except TypeError:
        return False


ERRORS = {n: c for n, c in vars(builtins).items() if isinstance(c, type) and says_so(c)}


class Program:
    """The other box, as far as the tests can see it."""

    def __init__(self, deadline: float) -> None:
        self.channel = Channel(3, 4)
        self.deadline = deadline
        self.stopped = ""
        """Why it can be asked no more: `late`, `ended` or `garbled`."""
        self.error: Exception | None = None
        """What it last raised, as the tests got it."""
        self.described: list[object] = []
        self.asked = 0
        self.call = ""
        self.given = ""

    def hello(self) -> list[object]:
        names = self.heard()
        return names if type(names) is list else []

    def ask(self, *request: object) -> object:
        if self.stopped:
            raise Stopped
        self.asked += 1
        frame = encoded(list(request), self.sent)
        try:
            self.channel.send(frame, self.deadline)
        except WireError as error:
            raise self.stop(error) from None
        return self.heard()

    def heard(self) -> object:
        mine = {"object": lambda body: Remote(self, *body), "iterator": self.items}
        try:
            reply = decoded(self.channel.receive(self.deadline), mine)
        except WireError as error:
            raise self.stop(error) from None
        if type(reply) is not list or reply[:1] not in (["value"], ["raised"]):
            raise self.stop(WireError())
        if reply[0] == "value" and len(reply) == 2:
            return reply[1]
        shape = [type(part) for part in reply[1:]]
        if reply[0] == "value" or shape != [str, str, str, int]:
            raise self.stop(WireError())
        self.described = [reply[2][:QUOTED_CHARACTERS], reply[3][:QUOTED_CHARACTERS], reply[4]]
        self.error = ERRORS.get(reply[1], RuntimeError)(reply[3])
        raise self.error

    def stop(self, error: WireError) -> Stopped:
        kinds = {Closed: "ended", Late: "late"}
        self.stopped = kinds.get(type(error), "garbled")
        return Stopped()

    def sent(self, value: object) -> object:
        if type(value) is Remote:
            return {"object": value._place}
        raise TypeError(f"{type(value).__name__} cannot be given to a program in another box")

    def items(self, body: list[object]) -> Iterator[object]:
        """What an iterator of the program gives, asked for one by one."""
        place, _ = body
        remote = Remote(self, place, "iterator")
        while True:
            try:
                (item,) = self.ask("next", remote)  # pyright: ignore
            except StopIteration:
                return
            yield item


class Remote:
    """An object of the program. It can be called, asked whether it is true, and its attributes read
    and set; it has no value, so that comparing or counting it fails the test that does."""

    __slots__ = ("_kind", "_place", "_program")

    def __init__(self, program: Program, place: object, kind: object) -> None:
        for name, value in (("_program", program), ("_place", place), ("_kind", kind)):
            object.__setattr__(self, name, value)

    def __call__(self, *arguments: object, **named: object) -> object:
        program = self._program
        shown = [shortened(value) for value in arguments]
        shown += [f"{name}={shortened(value)}" for name, value in named.items()]
        program.call, program.given = f"{self._kind}({', '.join(shown)})", ""
        value = program.ask("call", self.target(), list(arguments), named)
        program.given = shortened(value)
        return value

    def target(self) -> object:
        """What the program knows it by: a handle, a name, or None for the program."""
        return self if type(self._place) is int else self._place

    def __getattr__(self, name: str) -> object:
        if name[:2] == "__":
            raise AttributeError(name)
        value = self._program.ask("get", self.target(), name)
        if type(value) is Remote:
            kind = name if self._place is None else f"{self._kind}.{name}"
            object.__setattr__(value, "_kind", kind)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        self._program.ask("set", self.target(), name, value)

    def __repr__(self) -> str:
        return f"<an object of the program: {self._kind}>"

    def refuse(self, *_: object) -> object:
        raise TypeError(f"the program gave {self!r} where a plain value is wanted")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = refuse  # type: ignore
    __len__ = __iter__ = __contains__ = __hash__ = refuse  # type: ignore

    def __bool__(self) -> bool:
        # Asked of the program, for it tells the program nothing; what is compared with would.
        return self._program.ask("true", self.target()) is True


def shortened(value: object) -> str:
    try:
        return reprlib.repr(value)[:QUOTED_CHARACTERS]
    except Exception:
        return f"<{type(value).__name__}>"


class Tests:
    """The job that a host gave, and what becomes of it."""

    def __init__(self, job: dict[str, object]) -> None:
        self.token, self.preamble, self.setup, self.assertions, seconds = job.values()
        self.program = Program(time.monotonic() + seconds)  # pyright: ignore
        self.names: dict[str, object] = {"__name__": "tests", "__builtins__": builtins}

    def tell(self, **what: object) -> None:
        os.write(5, json.dumps({"token": self.token, **what}).encode() + b"\n")

    def run(self) -> None:
        """Tell whether all assertions hold, and of the first that does not, why."""
        try:
            parts = [compile(self.setup, "setup.py", "exec", dont_inherit=True)]
            parts += [compile(t, "test.py", "exec", dont_inherit=True) for t in self.assertions]
            exec(compile(self.preamble, "preamble.py", "exec", dont_inherit=True), self.names)
        except BaseException as error:
            return self.tell(status="fault", error=type(error).__name__)
        self.tell(status="started")
        number = -1
        try:
            self.meet(self.program.hello())
            for number, part in enumerate(parts):
                self.seed()
                exec(part, self.names)
                if self.program.stopped:
                    raise Stopped
        except BaseException as error:
            return self.tell(**self.failure(error, number))
        self.tell(status="pass")

    def meet(self, names: list[object]) -> None:
        """Let the tests use what the program defines, save what is theirs or the language's. The
        name `program` stands for all of it, for a setup that wants a builtin's name from there."""
        self.names["program"] = Remote(self.program, None, "program")
        for name in names:
            if type(name) is str and name.isidentifier() and not name.startswith("__"):
                if name not in self.names and not hasattr(builtins, name):
                    self.names[name] = Remote(self.program, name, name)

    def seed(self) -> None:
        if "random" in sys.modules:
            sys.modules["random"].seed(0)

    def failure(self, error: BaseException, number: int) -> dict[str, object]:
        """What is told of the part that failed: -1 is the program's own loading, 0 the setup."""
        program = self.program
        is_theirs = isinstance(error, Stopped) or error is program.error
        if number == 0 and not (is_theirs or program.asked or isinstance(error, NameError)):
            return {"status": "fault", "error": type(error).__name__}
        return {
            "status": "fail",
            "test": number,
            "stopped": program.stopped,
            "raised": program.described if error is program.error else [],
            "error": type(error).__name__,
            "says": str(error)[:QUOTED_CHARACTERS],
            "call": program.call,
            "given": program.given,
        }


def main() -> None:
    tests = Tests(json.loads(sys.stdin.buffer.read()))
    if "random" in f"{tests.setup}{tests.assertions}":
        import random  # noqa: F401
    tests.run()
    # Not left to the interpreter: what a test has registered at its exit is no part of the verdict.
    os._exit(0)


main()
