"""Plain values between two boxes that distrust each other: tagged JSON in length-prefixed frames.

JSON and not Python literals: `ast.parse` of a hostile text may crash the interpreter, and a tester
that its program can crash is one that the program can silence. JSON has no parser to crash, and
what is decoded is of exact builtin types, so that nothing that came over compares as it likes.
This file is copied into boxes: it imports nothing outside the standard library.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable, Mapping

FRAME_BYTES = 8 << 20
INTEGER_BITS = 1 << 18
SAFE_INTEGER = 1 << 63

Foreign = Callable[[object], object]
"""What to send in place of a value that is not plain; raises TypeError where nothing will do."""


class WireError(Exception):
    """What came is no frame, or no plain value."""


class Closed(WireError):
    """The other side has gone."""


class Late(WireError):
    """The other side does not answer in time."""


class Channel:
    """Frames over two descriptors: four bytes of length, then as many bytes."""

    def __init__(self, reads: int, writes: int) -> None:
        self.reads, self.writes = reads, writes
        for descriptor in (reads, writes):
            os.set_blocking(descriptor, False)

    def send(self, frame: bytes, deadline: float | None = None) -> None:
        """Raises WireError for a frame that is too large, Closed and Late; `deadline` is in seconds
        of `time.monotonic`."""
        if len(frame) > FRAME_BYTES:
            raise WireError(f"a message has {len(frame)} bytes, and {FRAME_BYTES} may be sent")
        rest = memoryview(len(frame).to_bytes(4, "big") + frame)
        while rest:
            await_(self.writes, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self.writes, rest) :]
            except BlockingIOError:
                continue
            except OSError:
                raise Closed("the other side has gone") from None

    def receive(self, deadline: float | None = None) -> bytes:
        """The next frame. Raises WireError when more is announced than may be sent, Closed, Late."""
        size = int.from_bytes(self.exactly(4, deadline), "big")
        if size > FRAME_BYTES:
            raise WireError(f"a message of {size} bytes is announced, and {FRAME_BYTES} may be sent")
        return self.exactly(size, deadline)

    def exactly(self, size: int, deadline: float | None) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            await_(self.reads, select.POLLIN, deadline)
            try:
                part = os.read(self.reads, min(size - len(parts), 1 << 16))
            except BlockingIOError:
                continue
            if not part:
                raise Closed("the other side has gone")
            parts += part
        return bytes(parts)


def await_(descriptor: int, event: int, deadline: float | None) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    rest = None if deadline is None else (deadline - time.monotonic()) * 1000
    if (rest is not None and rest <= 0) or not poll.poll(rest):
        raise Late("the other side does not answer in time")


def encoded(value: object, foreign: Foreign) -> bytes:
    """A frame of `value`. Raises what `foreign` raises, and RecursionError for what is too deep."""
    return json.dumps(plain(value, foreign)).encode()


def plain(value: object, foreign: Foreign) -> object:
    """`value` as JSON has it. What inherits from a builtin is sent as that builtin."""
    kind = type(value)
    if kind in UNTAGGED:
        return value
    if kind is list:
        return [plain(item, foreign) for item in value]  # pyright: ignore
    if kind in TAGGED:
        return TAGGED[kind](value, foreign)
    for base, exact in EXACT.items():
        if issubclass(kind, base):
            return plain(exact(value), foreign)
    return foreign(value)


def plain_integer(value: int, foreign: Foreign) -> object:
    if -SAFE_INTEGER < value < SAFE_INTEGER:
        return value
    if value.bit_length() > INTEGER_BITS:
        raise OverflowError(f"an integer has {value.bit_length()} bits, over {INTEGER_BITS}")
    return {"int": hex(value)}


def plain_items(tag: str) -> Callable[..., object]:
    return lambda value, foreign: {tag: [plain(item, foreign) for item in value]}


def plain_dict(value: dict[object, object], foreign: Foreign) -> object:
    return {"dict": [[plain(k, foreign), plain(v, foreign)] for k, v in value.items()]}


UNTAGGED = frozenset({type(None), bool, float, str})

TAGGED: dict[type, Callable[..., object]] = {
    int: plain_integer,
    tuple: plain_items("tuple"),
    set: plain_items("set"),
    frozenset: plain_items("frozenset"),
    dict: plain_dict,
    bytes: lambda value, foreign: {"bytes": value.hex()},
    bytearray: lambda value, foreign: {"bytearray": value.hex()},
    complex: lambda value, foreign: {"complex": [value.real, value.imag]},
    range: lambda value, foreign: {"range": [str(v) for v in (value.start, value.stop, value.step)]},
}

EXACT: dict[type, Callable[..., object]] = {
    int: int.__pos__,
    float: float.__pos__,
    complex: complex.__pos__,
    str: str.__str__,
    bytes: lambda value: b"".join([value]),
    list: lambda value: [*list.__iter__(value)],
    tuple: lambda value: (*tuple.__iter__(value),),
    set: lambda value: {*set.__iter__(value)},
    frozenset: lambda value: frozenset([*frozenset.__iter__(value)]),
    dict: lambda value: dict(dict.items(value)),
}


def decoded(frame: bytes, foreign: Mapping[str, Callable[..., object]]) -> object:
    """The value of a frame: builtins of exact types, and what `foreign` makes of its own tags.
    Raises WireError for all else, whatever it is."""

    def made(tagged: dict[str, object]) -> object:
        ((tag, body),) = tagged.items()
        return foreign[tag](body) if tag in foreign else MADE[tag](body)

    try:
        return json.loads(frame, object_hook=made)
    except Exception as error:
        raise WireError(f"a message holds no plain value ({type(error).__name__})") from None


def items(value: object) -> list[object]:
    if type(value) is not list:
        raise TypeError("should be a list")
    return value


def text(value: object, most: int) -> str:
    if type(value) is not str or len(value) > most:
        raise TypeError("should be a short text")
    return value


MADE: dict[str, Callable[..., object]] = {
    "int": lambda body: int(text(body, INTEGER_BITS // 4 + 4), 16),
    "tuple": lambda body: tuple(items(body)),
    "set": lambda body: set(items(body)),
    "frozenset": lambda body: frozenset(items(body)),
    "dict": lambda body: dict(items(body)),  # pyright: ignore
    "bytes": lambda body: bytes.fromhex(body),
    "bytearray": lambda body: bytearray.fromhex(body),
    "complex": lambda body: complex(*items(body)),  # pyright: ignore
    "range": lambda body: range(*(int(text(v, 40)) for v in items(body))),
}
