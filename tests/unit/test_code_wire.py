"""Values cross as what they are or not at all, and no frame does harm."""

from __future__ import annotations

import math
import os
import struct
import time
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Iterator
from enum import IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.code.wire import (
    FRAME_BYTES,
    INTEGER_BYTES,
    Channel,
    Closed,
    Late,
    WireError,
    decoded,
    encoded,
    marked,
    refused,
)

HASHABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=8,
)
VALUES = st.recursive(
    HASHABLE | st.sets(HASHABLE, max_size=3) | st.builds(bytearray, st.binary()),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(HASHABLE, inner, max_size=3),
    max_leaves=20,
)


def types(value: object) -> object:
    """The types of a value and of all in it."""
    if isinstance(value, dict):
        return dict, [(types(k), types(v)) for k, v in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [types(item) for item in value]
    return type(value)


@given(VALUES)
def test_a_value_comes_over_equal_and_of_the_same_types(value: object):
    back = decoded(encoded(value, refused), {})
    assert back == value
    assert types(back) == types(value)


def test_numbers_come_over_to_the_last_bit():
    for value in (math.inf, -math.inf, -0.0, 5e-324, 0.1):
        back = decoded(encoded(value, refused), {})
        assert struct.pack(">d", back) == struct.pack(">d", value)
    back = decoded(encoded(math.nan, refused), {})
    assert isinstance(back, float) and math.isnan(back)
    huge = -(1 << 8 * (INTEGER_BYTES - 1)) + 1
    assert decoded(encoded(huge, refused), {}) == huge
    assert decoded(encoded(range(5, -10, -3), refused), {}) == range(5, -10, -3)
    assert decoded(encoded("\ud800\0", refused), {}) == "\ud800\0"


class Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __repr__(self) -> str:
        return "42"

    __str__ = __repr__
    __hash__ = int.__hash__


class Color(IntEnum):
    RED = 7


Point = namedtuple("Point", "x y")


class LyingList(list):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Liar(3), 3),
        (Color.RED, 7),
        (Point(1, 2), (1, 2)),
        (Counter("aab"), {"a": 2, "b": 1}),
        (defaultdict(list, {1: [2]}), {1: [2]}),
        (OrderedDict(a=1), {"a": 1}),
        (LyingList([Liar(1)]), [1]),
    ],
)
def test_what_inherits_from_a_builtin_comes_over_as_that_builtin(value: object, plain: object):
    back = decoded(encoded(value, refused), {})
    assert types(back) == types(plain)
    assert back == plain


def test_what_is_not_plain_is_left_to_both_sides():
    with pytest.raises(TypeError, match="object is no plain value"):
        encoded([object()], refused)
    frame = encoded([object()], lambda value: marked(b"o", [4], refused))
    assert decoded(frame, {b"o": lambda body: ("handle", body)}) == [("handle", [4])]
    with pytest.raises(WireError):
        decoded(frame, {})


def item(tag: bytes, count: int, body: bytes = b"") -> bytes:
    return tag + count.to_bytes(4, "big") + body


NONE = encoded(None, refused)
HOSTILE = {
    "nothing": b"",
    "an unknown tag": b"!",
    "a tag of two boxes that is not asked for": b"o" + NONE,
    "a list that is cut": item(b"L", 2, NONE),
    "a list that says it is endless": item(b"L", 2**32 - 1, NONE * 1000),
    "a text that says it is endless": item(b"S", 2**32 - 1, b"x"),
    "a text that is none": item(b"S", 1, b"\xff"),
    "lists in lists": item(b"L", 1) * 200_000 + NONE,
    "a set of lists": item(b"E", 1, item(b"L", 0)),
    "a dict of one": item(b"D", 1, NONE),
    "a key that is a list": item(b"D", 2, item(b"L", 0) + NONE),
    "a range of texts": encoded(["x"], refused).replace(b"L", b"R", 1),
    "a step of zero": item(b"R", 3, encoded(0, refused) * 3),
    "an integer of a megabyte": item(b"I", 1 << 20, b"\1" * (1 << 20)),
    "a value and more": NONE + NONE,
    "a pickle": b"\x80\x04\x95\x1d\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "a literal": b"[1, 2, 3]",
}


@pytest.mark.parametrize("frame", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_frame_is_refused_at_once(frame: bytes):
    started = time.perf_counter()
    with pytest.raises(WireError):
        decoded(frame, {})
    assert time.perf_counter() - started < 1.0


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_decode_or_fail(frame: bytes):
    try:
        value = decoded(frame, {})
    except WireError:
        return
    assert len(encoded(value, refused)) <= 2 * len(frame) + 8


def test_too_large_an_integer_is_not_sent():
    with pytest.raises(OverflowError, match="over 32768"):
        encoded(1 << 8 * INTEGER_BYTES, refused)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, int, int]]:
    """A channel, and the raw ends that its other side has: to read from and to write to."""
    reads, their_writes = os.pipe()
    their_reads, writes = os.pipe()
    yield Channel(reads, writes), their_reads, their_writes
    for descriptor in (reads, their_writes, their_reads, writes):
        try:
            os.close(descriptor)
        except OSError:
            continue


def soon() -> float:
    return time.monotonic() + 0.2


def test_frames_arrive_whole_and_in_order(ends: tuple[Channel, int, int]):
    channel, _, their_writes = ends
    os.write(their_writes, b"\0\0\0\2ab\0\0\0\0\0\0\0\1")
    assert channel.receive(soon()) == b"ab"
    assert channel.receive(soon()) == b""
    with pytest.raises(Late):
        channel.receive(soon())
    os.write(their_writes, b"c")
    os.close(their_writes)


def test_a_frame_that_says_it_is_too_large_is_not_read(ends: tuple[Channel, int, int]):
    channel, _, their_writes = ends
    os.write(their_writes, (FRAME_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(WireError, match="is announced"):
        channel.receive(soon())
    with pytest.raises(WireError, match="may be sent"):
        channel.send(bytes(FRAME_BYTES + 1), soon())


def test_nobody_waits_for_a_side_that_does_nothing_or_has_gone(ends: tuple[Channel, int, int]):
    channel, their_reads, their_writes = ends
    with pytest.raises(Late):
        channel.receive(soon())
    with pytest.raises(Late):
        channel.send(bytes(1 << 20), soon())
    os.close(their_reads)
    os.close(their_writes)
    with pytest.raises(Closed):
        channel.receive(soon())
    with pytest.raises(Closed):
        channel.send(b"x", soon())
