"""The process that compares answers with math-verify: a nursery that forks workers, and a worker.

A script of its own, started by `rewards.math.pool` with a fresh interpreter, so that nothing of the
caller (threads, torch, open files) comes along. The nursery imports the verifier, makes it warm and
then only forks and kills: a worker is there in milliseconds, whatever became of the one before it.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Sequence
from functools import lru_cache
from math import log2
from typing import Any

from math_verify import verify
from math_verify.parser import (
    NormalizationConfig,
    latex2sympy,
    normalize_latex,
    should_treat_as_complex,
)
from sympy import (
    Expr,
    FiniteSet,
    Float,
    Interval,
    MatrixBase,
    Pow,
    Tuple,
    binomial,
    expand,
    factorial,
    nan,
    zoo,
)

# Nothing is dropped from an answer here: the policy has taken off units, and "5c" is not 5.
PLAIN = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
)
DIGITS = 12
MOST_BITS = 1 << 16
"""Of a number that is worked out; 9^{9^{9^9}} has more than fit in a memory."""
MOST_FACTORIAL = 1 << 13
MOST_FACTORS = 32
"""Of a power of a sum that is multiplied out."""
SET_PARENT_DEATH_SIGNAL = 1
LIFE_SIGN_SECONDS = 1.0

Request = dict[str, object]

Formula = Any
"""An expression, a set, a tuple, a relation or a matrix of sympy's, whose types have nothing in
common that says so."""


def answer_to(request: Request) -> Request:
    """`{"golds": [latex, ...], "given": latex}` compared: `equal` to any, and `canonical`, a text
    that equal answers share; `error` when `given` cannot be read, or is too large to work out."""
    golds, latex = request["golds"], request["given"]
    assert isinstance(golds, list) and isinstance(latex, str)
    given = read(latex)
    if given is None:
        return {"error": "unreadable"}
    rights = [right for right in map(read, golds) if right is not None]
    if any(given == right for right in rights):
        return {"equal": True, "canonical": canonical(given)}
    if not is_bounded(given):
        return {"error": "large"}
    is_equal = any(is_bounded(right) and equal(right, given) for right in rights)
    return {"equal": is_equal, "canonical": canonical(given)}


@lru_cache(maxsize=1024)
def read(latex: str) -> Formula | None:
    """What sympy understands by an answer, None when it does not."""
    text = normalize_latex(latex, PLAIN)
    try:
        found = latex2sympy(
            text,
            is_real=not should_treat_as_complex(text),
            convert_degrees=False,
            normalization_config=None,
        )
    except MemoryError:
        raise
    except Exception:
        return None
    if isinstance(found, list):
        return Tuple(*found)
    return None if found is nan or found is zoo else found


def equal(gold: Formula, given: Formula) -> bool:
    """Whether math-verify says so, and numbers agree in their first 12 digits too: it compares
    places after the point, to which 1/2^100 is 0."""
    # A pair that answers for a set of two is compared in its order, as the other way round.
    first, second = (given, gold) if is_pair(given) and is_set(gold) else (gold, given)
    if not verify(first, second, float_rounding=DIGITS, strict=True, timeout_seconds=None):
        return False
    if not (is_number(gold) and is_number(given)):
        return True
    right, value = gold.evalf(30), given.evalf(30)
    return bool(abs(right - value) <= abs(right) * 10**-DIGITS)


def is_pair(value: Formula) -> bool:
    return isinstance(value, Tuple | Interval)


def is_set(value: Formula) -> bool:
    return isinstance(value, FiniteSet)


def is_number(value: Formula) -> bool:
    return bool(getattr(value, "is_number", False)) and bool(getattr(value, "is_finite", False))


def canonical(value: Formula) -> str:
    """A text that answers share which are easily seen to be equal."""
    if not is_bounded(value):
        return str(value)
    if is_set(value):
        return f"{{{', '.join(sorted(map(canonical, value.args)))}}}"
    if isinstance(value, Tuple):
        return f"({', '.join(map(canonical, value.args))})"
    done = value.doit()
    if is_number(done):
        return str(done if done.is_Rational else done.evalf(DIGITS))
    return str(expand(done) if isinstance(done, Expr) else done)


def is_bounded(value: Formula) -> bool:
    """Whether working `value` out takes no more than a moment, as far as its powers tell."""
    parts = value.flat() if isinstance(value, MatrixBase) else getattr(value, "args", ())
    if not all(is_bounded(part) for part in parts):
        return False
    if isinstance(value, Pow):
        return is_bounded_power(*value.args)
    if isinstance(value, factorial | binomial):
        size = bits(value.args[0])
        return size is None or size <= log2(MOST_FACTORIAL)
    return True


def is_bounded_power(base: Formula, exponent: Formula) -> bool:
    length = bits(exponent)
    if length is None:
        return True
    if length > 32:
        return False
    times, size = abs(float(exponent.evalf(15))), bits(base)
    if size is None:
        return times <= MOST_FACTORS or not base.args
    return times * max(abs(size), 1) <= MOST_BITS


def bits(value: Formula) -> int | None:
    """The place of the highest bit of a number's size, None for what is no number."""
    found = abs(value).evalf(15) if is_number(value) else None
    if not isinstance(found, Float):
        return None
    _, _, exponent, length = found._mpf_
    return exponent + length


def serve(connection: socket.socket) -> None:
    """A worker's life: one request a line, one answer a line, until the other end is closed."""
    with connection.makefile("r", encoding="utf-8") as lines:
        for line in lines:
            connection.sendall(f"{json.dumps(answer_to(json.loads(line)))}\n".encode())


def raise_children(control: socket.socket, memory: int) -> None:
    """The nursery's life: fork for every connection sent, kill what is named, until the other end
    is closed or the process that started this one is gone."""
    parent, children = os.getppid(), set[int]()
    while os.getppid() == parent:
        # An open end may live on in other children of a parent that is gone.
        if not select.select([control], [], [], LIFE_SIGN_SECONDS)[0]:
            continue
        message, connections, _, _ = socket.recv_fds(control, 64, 1)
        if not message:
            return
        if connections:
            child = forked(control, connections[0], memory)
            os.close(connections[0])
            children.add(child)
            control.sendall(f"{child}\n".encode())
        else:
            child = int(message)
            assert child in children, "only its own children may a nursery kill"
            children.remove(child)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            control.sendall(b"gone\n")


def forked(control: socket.socket, connection: int, memory: int) -> int:
    """The process id of a new worker."""
    nursery = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        control.close()
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if os.getppid() == nursery:
            serve(socket.socket(fileno=connection))
    finally:
        os._exit(0)


def warm_up(examples: Sequence[str]) -> None:
    """Build the parser's tables and import what sympy imports late, once for all workers."""
    for example in examples:
        answer_to({"golds": [example], "given": example})
        answer_to({"golds": ["3"], "given": example})


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    # Ctrl-C is for the caller, who lets go of this process when it ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    warm_up([r"\frac{\sqrt{12}}{2}+x^2", r"\{1,2\}", r"(1,2,3)", r"[0,1)", r"x=5", r"\sin(\pi)"])
    control.sendall(b"ready\n")
    raise_children(control, int(sys.argv[2]))


if __name__ == "__main__":
    main()
