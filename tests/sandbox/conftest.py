"""Where bubblewrap cannot work, these tests are skipped, by its own words; not where it leaks."""

from __future__ import annotations

import pytest

from opd.errors import SandboxError
from rewards.sandbox import isolation


@pytest.fixture(scope="module", autouse=True)
def box(request: pytest.FixtureRequest) -> None:
    if request.path.name == "test_landlock.py":
        return
    try:
        if isolation().tier != "bwrap":
            pytest.skip(isolation().sentence)
    except SandboxError as error:
        if "got past" in str(error):
            raise
        pytest.skip(str(error))
