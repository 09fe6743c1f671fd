"""Where bubblewrap cannot work, these tests are skipped, by its own words."""

from __future__ import annotations

import pytest

from opd.errors import SandboxError
from rewards.sandbox import isolation


@pytest.fixture(scope="session", autouse=True)
def box() -> None:
    try:
        isolation()
    except SandboxError as error:
        pytest.skip(str(error))
