"""What `opd` does without: the heavy packages that only some runs need."""

import subprocess
import sys

import pytest

BUILD_EVERYTHING = """
import sys
sys.modules.update(dict.fromkeys({blocked!r}))  # None makes an import of it fail
import importlib, pkgutil
import opd
for module in pkgutil.walk_packages(opd.__path__, "opd."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
opd.config.build(opd.recipe.Recipe, opd.config.load_recipe("quickstart"))
"""


@pytest.mark.parametrize(
    ("blocked", "works"),
    [(["vllm", "trl", "datasets", "flash_attn"], True), (["torch"], False)],
    ids=["optional", "needed"],
)
def test_opd_works_without_optional_packages(blocked: list[str], works: bool):
    code = BUILD_EVERYTHING.format(blocked=blocked)
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (finished.returncode == 0) == works, finished.stderr
