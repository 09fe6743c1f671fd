"""What is said of a library's error."""

from __future__ import annotations

import pytest

from opd.errors import first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one \ntwo"), "one "),
        (OSError(), "OSError"),
        (ValueError("  \n "), "ValueError"),
    ],
)
def test_the_first_line_of_an_error_or_its_class(error: Exception, said: str) -> None:
    assert first_line(error) == said
