"""Texts cut into segments: nothing is lost, and no number is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd.teacher.segments import opening, segments


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("First. Then.\n\nLast.", ["First. Then.\n\n", "Last."]),
        ("Do:\n1. this\n2. that", ["Do:\n", "1. this\n", "2. that"]),
        ("One holds. Two? So 3.5 holds!", ["One holds. ", "Two? ", "So 3.5 holds!"]),
        ("b5f3k17", ["b5", "f3", "k17"]),
        ("7,066", ["7", ",", "0", "6", "6"]),
        ("abc", ["a", "b", "c"]),
        ("", []),
    ],
)
def test_segments_by_hand(text: str, pieces: list[str]) -> None:
    assert list(segments(text)) == pieces


@given(st.text("ab.1 \n-;"))
def test_nothing_is_lost(text: str) -> None:
    assert "".join(segments(text)) == text
    assert all(segments(text))
    assert opening(text, len(segments(text))) == text and opening(text, 0) == ""
