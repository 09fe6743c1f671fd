"""The row kernel without a GPU: the tests of tests/gpu under Triton's interpreter, in a process of
their own, since Triton decides between interpreter and compiler when it is first imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

MOST_SKIPPED = 33
"""The tests on a real vocabulary."""


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_under_the_interpreter() -> None:
    pytest.importorskip("triton")
    done = python(
        *("-m", "pytest", "tests/gpu/test_row_kernel.py", "tests/gpu/test_step.py"),
        *("-m", "gpu", "-q", "-rN"),
        TRITON_INTERPRET="1",
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    counts = {
        word: int(count) for count, word in re.findall(r"(\d+) (passed|skipped)", done.stdout)
    }
    assert counts["passed"] > 150
    assert counts.get("skipped", 0) <= MOST_SKIPPED


def test_without_triton() -> None:
    """The module imports, and says that it can do nothing."""
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from opd.learner.row_kernel import supported\n"
        "from opd.objective.divergence import ForwardKL\n"
        "assert not supported(ForwardKL())\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
