"""Runs inside a box: the tests of a problem, against a program that lives in another box.

What the tests see of the program is made here: functions that ask over a pipe. `3` is answered on,
`4` asks, and `5` takes the verdict, which no other box can write.
"""

from __future__ import annotations

import builtins
import faulthandler
import os
import reprlib
import sys
import time

from rewards.code.wire import (
    READY,
    Channel,
    Closed,
    Late,
    WireError,
    decoded,
    encoded,
    marked,
    refused,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

QUOTED_CHARACTERS = 300


class Stopped(BaseException):
    """The program can be asked no more; no `except Exception` of a test may hide it."""


def says_so(cls: type) -> bool:
    """Whether a builtin class is an error that one text makes."""
    try:
        return issubclass(cls, Exception) and isinstance(cls("x"), cls)
    except TypeError:
        return False


ERRORS = {c for c in vars(builtins).values() if isinstance(c, type) and says_so(c)}


def error_named(name: object) -> type[Exception] | None:
    """The builtin error with that name, or the nearest above it that can be made; None for what
    ends a program, as SystemExit does."""
    cls = vars(builtins).get(name)  # pyright: ignore
    return next((base for base in getattr(cls, "__mro__", ()) if base in ERRORS), None)


class Program:
    """The other box, as far as the tests can see it."""

    def __init__(self) -> None:
        self.channel = Channel(3, 4)
        self.deadline = 0.0
        """In seconds of `time.monotonic`."""
        self.stopped = ""
        """Why it can be asked no more: `late`, `ended` or `garbled`."""
        self.error: Exception | None = None
        """What it last raised, as the tests got it."""
        self.described: list[object] = []
        self.asked = 0
        self.call = ""
        self.given = ""

    def is_ready(self, starting: float, seconds: float) -> bool:
        """Wait for its box, and start the program's clock; False when the box does not come up."""
        try:
            frame = self.channel.receive(time.monotonic() + starting)
        except WireError:
            return False
        self.deadline = time.monotonic() + seconds
        return frame == READY

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
        """What it answers: a list of one value, or of four parts that describe an error."""
        self.described = []
        mine = {b"o": lambda body: Remote(self, *body), b"i": self.items}
        try:
            reply = decoded(self.channel.receive(self.deadline), mine)
        except WireError as error:
            raise self.stop(error) from None
        if type(reply) is not list:
            raise self.stop(WireError())
        if len(reply) == 1:
            return reply[0]
        if [type(part) for part in reply] != [str, str, str, int]:
            raise self.stop(WireError())
        builtin, kind, message, line = reply
        self.described = [kind[:QUOTED_CHARACTERS], message[:QUOTED_CHARACTERS], line]
        cls = error_named(builtin)
        if cls is None:
            raise self.stop(Closed())
        self.error = raised = cls(message)
        raise raised

    def stop(self, error: WireError) -> Stopped:
        kinds = {Closed: "ended", Late: "late"}
        self.stopped = kinds.get(type(error), "garbled")
        return Stopped()

    def sent(self, value: object) -> bytes:
        if type(value) is Remote:
            return marked(b"o", value._place, self.sent)
        if getattr(value, "__module__", "") == "builtins":
            # such as a type to choose by: the program finds its own under that name
            return marked(b"b", getattr(value, "__name__", ""), self.sent)
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
        value = program.ask("call", self, list(arguments), named)
        program.given = shortened(value)
        return value

    def __getattr__(self, name: str) -> object:
        if name[:2] == "__":
            raise AttributeError(name)
        value = self._program.ask("get", self, name)
        if type(value) is Remote:
            kind = name if self._place is None else f"{self._kind}.{name}"
            object.__setattr__(value, "_kind", kind)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        self._program.ask("set", self, name, value)

    def __repr__(self) -> str:
        return f"<an object of the program: {self._kind}>"

    def refuse(self, *_: object) -> object:
        raise TypeError(f"the program gave {self!r} where a plain value is wanted")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = refuse  # type: ignore
    __len__ = __iter__ = __contains__ = __hash__ = refuse  # type: ignore

    def __bool__(self) -> bool:
        # Asked of the program, for it tells the program nothing; what is compared with would.
        return self._program.ask("true", self) is True


def shortened(value: object) -> str:
    try:
        return reprlib.repr(value)[:QUOTED_CHARACTERS]
    except Exception:
        return f"<{type(value).__name__}>"


class Tests:
    """A job that a host gave, and what becomes of it."""

    def __init__(
        self, token: str, preamble: str, setup: str, assertions: list[str], times: list[float]
    ) -> None:
        """`token` makes a frame on the verdict's descriptor believable; `times` are the seconds for
        the program's box to start, for the program, and for the tests behind that."""
        self.token, self.preamble = token, preamble
        self.setup, self.assertions = setup, assertions
        self.starting, self.seconds, self.grace = times
        self.program = Program()
        self.names: dict[str, object] = {"__name__": "tests", "__builtins__": builtins}
        self.number = -1
        """The part that runs: -1 while the program is loaded, 0 the setup, then the assertions."""

    def tell(self, **what: object) -> None:
        frame = encoded({"token": self.token, **what}, refused)
        os.write(5, len(frame).to_bytes(4, "big") + frame)

    def run(self) -> None:
        """Tell whether all assertions hold, and of the first that does not, why."""
        try:
            sources = [self.setup, *self.assertions]
            parts = [compile(text, "test.py", "exec", dont_inherit=True) for text in sources]
            exec(compile(self.preamble, "preamble.py", "exec", dont_inherit=True), self.names)
        except BaseException as error:
            return self.tell(status="fault", error=type(error).__name__)
        if not self.program.is_ready(self.starting, self.seconds):
            return
        faulthandler.dump_traceback_later(self.seconds + self.grace, exit=True)
        self.tell(status="started")
        try:
            self.meet(self.program.hello())
            for part in parts:
                self.number += 1
                self.execute(part)
        except BaseException as error:
            return self.tell(**self.failure(error))
        self.tell(status="pass")

    def execute(self, part: CodeType) -> None:
        if "random" in sys.modules:
            sys.modules["random"].seed(0)
        exec(part, self.names)
        # A bare `except` of the tests may have hidden it.
        if self.program.stopped:
            raise Stopped

    def meet(self, names: list[object]) -> None:
        """Let the tests use what the program defines, save what is theirs or the language's. The
        name `program` stands for all of it, for a setup that wants a builtin's name from there."""
        taken = {*vars(builtins), *self.names, "program"}
        self.names["program"] = Remote(self.program, None, "program")
        for name in names:
            if type(name) is str and name not in taken:
                self.names[name] = Remote(self.program, name, name)

    def failure(self, error: BaseException) -> dict[str, object]:
        """What is told of the part that has failed."""
        program = self.program
        is_theirs = isinstance(error, Stopped) or error is program.error
        is_unasked = not (is_theirs or program.asked or isinstance(error, NameError))
        if self.number == 0 and is_unasked:
            return {"status": "fault", "error": type(error).__name__}
        return {
            "status": "fail",
            "test": self.number,
            "stopped": program.stopped,
            "raised": program.described if is_theirs else [],
            "error": type(error).__name__,
            "says": str(error)[:QUOTED_CHARACTERS],
            "call": program.call[:QUOTED_CHARACTERS],
            "given": program.given,
        }


def main() -> None:
    with open("job", "rb") as file:
        tests = Tests(*decoded(file.read(), {}))  # pyright: ignore
    if "random" in f"{tests.setup}{tests.assertions}":
        import random  # noqa: F401
    tests.run()
    # Not left to the interpreter: what a test has registered at its exit is no part of the verdict.
    os._exit(0)


if __name__ == "__main__":
    main()
