"""What the README tells a reader to do works as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from opd.cli import main

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
RECIPES_README = (Path(__file__).parents[2] / "recipes" / "README.md").read_text(encoding="utf-8")


def test_add_a_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n# my_lab\.py\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    (tmp_path / "my_lab.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    (command,) = re.findall(r"```bash\nopd (train .*my_lab.*)\n```", README)
    small = ["steps=1", "problems_per_step=2", "evaluation.samples=1", "evaluation.every=0"]
    few = ["benchmarks.held_out.limit=2", "benchmarks.untouched.limit=2"]
    assert main([*shlex.split(command), *small, *few, f"output={tmp_path / 'run'}"]) == 0


def test_every_recipe_stands_in_the_recipes_table() -> None:
    listed = set(re.findall(r"^\| \[`(\w+)`\]", RECIPES_README, re.MULTILINE))
    assert listed == {path.stem for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml")}


def test_the_tree_names_what_is_there() -> None:
    (tree,) = re.findall(r"## Where things are\n\n```\n(.*?)```", README, re.DOTALL)
    root = Path(__file__).parents[2]
    for line in tree.splitlines():
        folder = root if not line.startswith(" ") else root / "opd"
        for name in re.findall(r"^ *((?:[a-z_]+(?:/|\.py) *)+)", line):
            for path in name.split():
                assert (folder / path).exists(), path
