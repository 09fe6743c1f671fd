"""What `opd` does without: the heavy and optional packages, and the files that point at it."""

import subprocess
import sys

import pytest

IMPORT_EVERYTHING = """
import sys
sys.modules.update(dict.fromkeys({blocked!r}))  # None makes an import of it fail
import importlib, pkgutil
import opd
for module in pkgutil.walk_packages(opd.__path__, "opd."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""

BUILD_QUICKSTART = """
from opd.config import build, load_recipe
from opd.recipe import Recipe
build(Recipe, load_recipe("quickstart"))
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("then", ["", BUILD_QUICKSTART], ids=["import", "build"])
def test_opd_works_without_optional_packages(then: str):
    code = IMPORT_EVERYTHING.format(blocked=["vllm", "trl", "datasets", "flash_attn"])
    finished = run(code + then)
    assert finished.returncode == 0, finished.stderr


def test_core_imports_without_rewards_and_data():
    finished = run(IMPORT_EVERYTHING.format(blocked=["rewards", "data"]))
    assert finished.returncode == 0, finished.stderr


def test_the_block_blocks():
    assert run(IMPORT_EVERYTHING.format(blocked=["torch"])).returncode != 0
