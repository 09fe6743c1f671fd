"""Runs inside a box: loads a program and answers what a tester in another box asks of it.

The program owns this process and may answer what it likes: answers are all that it can give. It
sees the arguments of the tests and nothing else of them. `3` is asked on, `4` answered on.
"""

from __future__ import annotations

import builtins
import os
import sys

from rewards.code.wire import FRAME_BYTES, READY, Channel, Closed, decoded, encoded, marked

MESSAGE_CHARACTERS = 500


class Candidate:
    """A loaded program and the objects of it that a tester holds on to."""

    def __init__(self) -> None:
        self.module = type(sys)("program")
        self.kept: list[object] = []

    def load(self) -> object:
        sys.modules["program"] = self.module
        for name in ("preamble.py", "program.py"):
            with open(name, "rb") as file:
                source = file.read()
            exec(compile(source, name, "exec", dont_inherit=True), vars(self.module))
        if "random" in sys.modules:
            sys.modules["random"].seed(0)
        return [name for name, value in vars(self.module).items() if callable(value)]

    def answer(self, request: object) -> object:
        verb, target, *rest = request  # pyright: ignore
        if verb == "call":
            arguments, named = rest
            return target(*arguments, **named)
        if verb == "next":
            return [next(target)]
        if verb == "true":
            return bool(target)
        if verb == "get":
            return getattr(target, *rest)
        return setattr(target, *rest)

    def held(self, place: object) -> object:
        """What a tester knows by a number, by its name, or as None: the program."""
        if type(place) is int:
            return self.kept[place]
        return vars(self.module)[place] if place else self.module  # pyright: ignore

    def foreign(self, value: object) -> bytes:
        """A scalar of numpy as the number that it is, and anything else as a handle to it."""
        if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
            return encoded(value.item(), self.foreign)  # pyright: ignore
        self.kept.append(value)
        tag = b"i" if hasattr(type(value), "__next__") else b"o"
        return marked(tag, [len(self.kept) - 1, type(value).__name__], self.foreign)

    def reply(self, work: object) -> bytes:
        """What `work` returns or raises."""
        try:
            frame = encoded([work()], self.foreign)  # pyright: ignore
            if len(frame) > FRAME_BYTES:
                raise OverflowError(f"a value takes {len(frame)} bytes, over {FRAME_BYTES}")
            return frame
        except BaseException as error:
            return encoded(list(described(error)), self.foreign)


def described(error: BaseException) -> tuple[str, str, str, int]:
    """The builtin class of an error, its own class, what it says, and the program's line."""
    builtin = next(c for c in type(error).__mro__ if c.__module__ == "builtins")
    try:
        message = str.__str__(str(error))[:MESSAGE_CHARACTERS]
    except BaseException:
        message = ""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "program.py":
            line = frame.tb_lineno
        frame = frame.tb_next
    return builtin.__name__, type(error).__name__, message, line or 0


def main() -> None:
    channel, candidate = Channel(3, 4), Candidate()
    channel.send(READY)
    channel.send(candidate.reply(candidate.load))
    mine = {b"o": candidate.held, b"b": vars(builtins).__getitem__}
    while True:
        try:
            frame = channel.receive()
        except Closed:
            # The tests are over; what the program has registered for its exit is not waited for.
            os._exit(0)
        channel.send(candidate.reply(lambda frame=frame: candidate.answer(decoded(frame, mine))))


if __name__ == "__main__":
    main()
