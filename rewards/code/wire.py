"""Plain values between two boxes that distrust each other, in length-prefixed frames.

A format of our own, not Python literals: `ast.parse` of a hostile text may crash the interpreter,
and a tester that its program can crash is one that the program can silence. What is decoded is of
exact builtin types, so that nothing that came over compares as it likes. Every value takes at least
a byte, so that a frame of bounded size holds a bounded number of them. Not `json` either, which
doubles the time that a box takes to start. This file is copied into boxes: it imports nothing
outside the standard library.
"""

from __future__ import annotations

import os
import select
import struct
import time

FRAME_BYTES = 8 << 20
INTEGER_BYTES = 1 << 15
READY = b""
"""The frame that a box sends before any of a program has run in it."""

# Not from `typing`, and no more imports than are needed: each costs every box a millisecond.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Foreign = Callable[[object], bytes]
    """What to send in place of a value that is not plain, as `marked` makes it; raises TypeError
    where nothing will do."""


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
        """The next frame. Raises Closed, Late, and WireError where one too large is announced."""
        size = int.from_bytes(self.exactly(4, deadline), "big")
        if size > FRAME_BYTES:
            raise WireError(f"a message of {size} bytes is announced, over {FRAME_BYTES}")
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
    """A frame of `value`, where what inherits from a builtin is sent as that builtin. Raises what
    `foreign` raises, and RecursionError for what is too deep."""
    kind = type(value)
    if kind in WRITERS:
        tag, write = WRITERS[kind]
        return tag + write(value, foreign)
    for base, exact in EXACT.items():
        if issubclass(kind, base):
            return encoded(exact(value), foreign)
    return foreign(value)


def marked(tag: bytes, body: object, foreign: Foreign) -> bytes:
    """A value that only the other side's `foreign` can read."""
    return tag + encoded(body, foreign)


def size(count: int) -> bytes:
    return count.to_bytes(4, "big")


def write_integer(value: int, foreign: Foreign) -> bytes:
    count = value.bit_length() // 8 + 1
    if count > INTEGER_BYTES:
        raise OverflowError(f"an integer has {count} bytes, over {INTEGER_BYTES}")
    return size(count) + value.to_bytes(count, "big", signed=True)


def write_text(value: str, foreign: Foreign) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return size(len(data)) + data


def write_bytes(value: bytes, foreign: Foreign) -> bytes:
    return size(len(value)) + value


def write_items(value: list[object], foreign: Foreign) -> bytes:
    return size(len(value)) + b"".join([encoded(item, foreign) for item in value])


def write_dict(value: dict[object, object], foreign: Foreign) -> bytes:
    return write_items([item for pair in value.items() for item in pair], foreign)


def write_range(value: range, foreign: Foreign) -> bytes:
    return write_items([value.start, value.stop, value.step], foreign)


WRITERS: dict[type, tuple[bytes, Callable[..., bytes]]] = {
    type(None): (b"N", lambda value, foreign: b""),
    bool: (b"B", lambda value, foreign: b"\1" if value else b"\0"),
    int: (b"I", write_integer),
    float: (b"F", lambda value, foreign: struct.pack(">d", value)),
    complex: (b"C", lambda value, foreign: struct.pack(">dd", value.real, value.imag)),
    str: (b"S", write_text),
    bytes: (b"Y", write_bytes),
    bytearray: (b"A", write_bytes),
    list: (b"L", write_items),
    tuple: (b"T", write_items),
    set: (b"E", write_items),
    frozenset: (b"Z", write_items),
    dict: (b"D", write_dict),
    range: (b"R", write_range),
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


def decoded(frame: bytes, foreign: Mapping[bytes, Callable[..., object]]) -> object:
    """The value of a frame: builtins of exact types, and what `foreign` makes of the bodies of its
    own tags. Raises WireError for all else, whatever it is."""
    reader = Reader(frame, foreign)
    try:
        value = reader.value()
    except Exception as error:
        raise WireError(f"a message holds no plain value ({type(error).__name__})") from None
    if reader.at != len(frame):
        raise WireError("a message goes on behind its value")
    return value


class Reader:
    """A place in a frame."""

    def __init__(self, frame: bytes, foreign: Mapping[bytes, Callable[..., object]]) -> None:
        self.frame, self.foreign, self.at = frame, foreign, 0

    def value(self) -> object:
        tag = self.take(1)
        if tag in READERS:
            return READERS[tag](self)
        return self.foreign[tag](self.value())

    def take(self, count: int) -> bytes:
        data = self.frame[self.at : self.at + count]
        if len(data) != count:
            raise ValueError("the frame is too short")
        self.at += count
        return data

    def sized(self) -> bytes:
        return self.take(int.from_bytes(self.take(4), "big"))

    def items(self) -> list[object]:
        return [self.value() for _ in range(int.from_bytes(self.take(4), "big"))]

    def integer(self) -> int:
        data = self.sized()
        if len(data) > INTEGER_BYTES:
            raise ValueError("the integer is too large")
        return int.from_bytes(data, "big", signed=True)

    def dict(self) -> dict[object, object]:
        items = self.items()
        return dict(zip(items[::2], items[1::2], strict=True))


READERS: dict[bytes, Callable[[Reader], object]] = {
    b"N": lambda reader: None,
    b"B": lambda reader: reader.take(1) == b"\1",
    b"I": Reader.integer,
    b"F": lambda reader: struct.unpack(">d", reader.take(8))[0],
    b"C": lambda reader: complex(*struct.unpack(">dd", reader.take(16))),
    b"S": lambda reader: reader.sized().decode("utf-8", "surrogatepass"),
    b"Y": Reader.sized,
    b"A": lambda reader: bytearray(reader.sized()),
    b"L": Reader.items,
    b"T": lambda reader: tuple(reader.items()),
    b"E": lambda reader: set(reader.items()),
    b"Z": lambda reader: frozenset(reader.items()),
    b"D": Reader.dict,
    b"R": lambda reader: range(*reader.items()),  # pyright: ignore
}


def refused(value: object) -> bytes:
    """For sides that send nothing but plain values."""
    raise TypeError(f"{type(value).__name__} is no plain value")
