"""Which program a response is judged by, and when two outputs are the same."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.code.extraction import program_in
from rewards.code.output import is_same_output

RESPONSES = [
    ("```python\nx = 1\n```", "x = 1\n"),
    ("So:\n\n```py\nx = 1\n```\nDone.", "x = 1\n"),
    ("```\nx = 1\n```", "x = 1\n"),
    ("``` Python title=a\nx = 1\n```", "x = 1\n"),
    ("~~~python\nx = '```'\n~~~", "x = '```'\n"),
    ("````python\n```\nx\n```\n````", "```\nx\n```\n"),
    ("1. So:\n   ```python\n   def f():\n       x\n y\n   ```", "def f():\n    x\ny\n"),
    ("```python\nx = 1\n```\n\n```python\nx = 2\n```", "x = 2\n"),
    ("```python\nx = 1\n```\nwhich prints\n```\n1\n```", "x = 1\n"),
    ("```python\nx = 1\n```\n```bash\npython x.py\n```", "x = 1\n"),
    ("```\nx = 1\n```\n```\nx = 2\n```", "x = 2\n"),
    ("```python\r\nx = 1\r\n```\r\n", "x = 1\r\n"),
    ("```python\n```", ""),
    ("<think>```python\nx = 1\n```</think>```python\nx = 2\n```", "x = 2\n"),
    ("```python\nx = 1\n```\n<think>\n```python\nx = 2\n```", "x = 1\n"),
    ("<think>\n```python\nx = 1\n```\n</think>\nI do not know.", None),
    ("<think>\n```python\nx = 1\n```\n", None),
    ("```python\nx = 1\n", None),
    ("```python\nx = 1\n```\n```python\nx = 2", "x = 1\n"),
    ("```json\n{}\n```", None),
    ("x = 1", None),
    ("`x = 1`", None),
    ("```x = 1```", None),
    ("", None),
]


@pytest.mark.parametrize(("response", "program"), RESPONSES)
def test_the_last_closed_block_of_python_behind_the_reasoning_is_the_program(
    response: str, program: str | None
):
    assert program_in(response) == program


@given(st.text(alphabet="`~\n pyx<think>/", max_size=60))
def test_no_response_breaks_the_search(response: str):
    program = program_in(response)
    assert program is None or program.strip("\n") in response


@pytest.mark.parametrize(
    "response",
    ["```" * 300_000, "```\n" * 300_000, "`" * 1_000_000, "```python\n" + "x\n" * 500_000],
    ids=range(4),
)
def test_a_long_response_is_searched_at_once(response: str):
    started = time.perf_counter()
    program_in(response)
    assert time.perf_counter() - started < 2.0


OUTPUTS = [
    ("3\n", "3", True),
    ("  3  \n\n", "\n3", True),
    ("1 2\n3 \n", "1 2\n3", True),
    ("1  2", "1 2", True),
    ("a  b", "a b", False),
    ("1\n\n2", "1\n2", False),
    ("1 2", "1\n2", False),
    ("1.0", "1", True),
    ("1e3 x", "1000 x", False),
    ("1e3", "1000", True),
    ("0.30000000000000004", "0.3", False),
    ("yes", "YES", False),
    ("", "", True),
    ("", "0", False),
    ("nan", "0", False),
    ("inf", "Infinity", False),
    ("1_000", "1000", False),
    ("\u0661", "1", False),
    ("9" * 399, "9" * 399 + ".0", True),
    ("1e9999", "1e9998", False),
]


@pytest.mark.parametrize(("given", "expected", "same"), OUTPUTS)
def test_lines_are_the_same_as_text_or_as_exact_numbers(given: str, expected: str, same: bool):
    assert is_same_output(given, expected) is same


def test_a_tolerance_is_relative_beyond_one():
    assert is_same_output("0.3000001", "0.3", 1e-6)
    assert not is_same_output("0.30001", "0.3", 1e-6)
    assert is_same_output("1000000.9", "1000000", 1e-6)
    assert not is_same_output("1000001.1", "1000000", 1e-6)
    assert not is_same_output("inf", "1", 0.5)
    assert not is_same_output("1e9999", "1", 0.5)
    assert not is_same_output("x", "y", 0.5)


@pytest.mark.parametrize("text", ["9" * 1_000_000, "1 " * 500_000, "1e99999999", "\n" * 1_000_000])
def test_hostile_output_is_compared_at_once(text: str):
    started = time.perf_counter()
    assert not is_same_output(text, "204")
    assert not is_same_output(text, "204", 0.1)
    assert time.perf_counter() - started < 1.0
