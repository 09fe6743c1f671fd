"""Where bubblewrap cannot work, these tests are skipped, by its own words; not where it leaks."""

from __future__ import annotations

import pytest

from opd.errors import SandboxError
from rewards.sandbox import isolation


@pytest.fixture(scope="session", autouse=True)
def box() -> None:
    try:
        isolation()
    except SandboxError as error:
        if "got past" in str(error):
            raise
        pytest.skip(str(error))
