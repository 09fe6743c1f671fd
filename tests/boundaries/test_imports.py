"""What is imported is asked for at installation, and what only some runs need is not needed."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMPORT_NAMES = {"pyyaml": "yaml", "math-verify": "math_verify"}
OPTIONAL = ["vllm", "triton", "trl", "datasets", "flash_attn"]

BUILD_EVERYTHING = """
import sys
sys.modules.update(dict.fromkeys({blocked!r}))  # None makes an import of it fail
import importlib, pkgutil
import opd
for module in pkgutil.walk_packages(opd.__path__, "opd."):
    # Triton's programs are Triton; what launches them imports them at the first launch.
    if not module.name.endswith(("__main__", "row_programs")):
        importlib.import_module(module.name)
opd.config.build(opd.recipe.Recipe, opd.config.load_recipe("quickstart"))
"""


@pytest.mark.parametrize(
    ("blocked", "works"),
    [(OPTIONAL, True), (["torch"], False)],
    ids=["optional", "needed"],
)
def test_opd_works_without_optional_packages(blocked: list[str], works: bool):
    code = BUILD_EVERYTHING.format(blocked=blocked)
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (finished.returncode == 0) == works, finished.stderr


def imported(path: Path) -> Iterator[str]:
    """Top-level names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def test_every_import_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {str(re.split(r"[<>=\[]", asked)[0]) for asked in project["dependencies"]}
    declared = {IMPORT_NAMES.get(name, name) for name in names}
    packages = {"opd", "rewards", "data"}
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    used = {name for path in files for name in imported(path)} - sys.stdlib_module_names
    assert used - packages - declared <= {*OPTIONAL, "_typeshed"}
