"""Bad input: one sentence with the place and the fix, an exit code of its own, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from transformers import AutoTokenizer

from opd.cli import main
from tests.conftest import CONTEXT_LENGTH
from tests.runs import tree


@pytest.fixture
def recipe(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A recipe that runs, in a file."""
    return written(tree(tiny_model_dir, tmp_path / "run"), tmp_path)


def written(content: dict[str, object], folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code and the last line that stands on stderr."""
    code = main(list(arguments))
    said = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "\n".join(said)
    return code, said[-1] if said else ""


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ("steps=many", 2, "steps"),
        ("steps=0", 2, "steps: .*greater than 0"),
        ("stepz=3", 2, "did you mean 'steps'"),
        ("terms.distil.loss.divergence=KJSD", 2, "terms.distil.loss.divergence.*JSD"),
        ("terms.distil.loss.view=hint", 2, "terms.distil.*'hint'.*solution"),
        ("model.path=no/such/model", 4, "no/such/model"),
        ("problems.dataset=no/such/rows.jsonl", 4, "no/such/rows.jsonl"),
        ("problems.adapter=data.gsm8k:problems", 2, "adapter.*problem"),
        ("source=Demonstrations", 2, "source: a PolicyGradient term needs sampled"),
        ("teacher.views.solution=Sibling", 0, ""),
        ("sampling.max_response_tokens=5000", 4, "max_response_tokens=5000"),
        ("max_length=40", 4, "exceed the context of 40"),
        ("sync_tolerance=1e-30", 5, "log-probs differ by"),
        ("optimizer.learning_rate=1e30", 6, "gradient norm"),
        ("trackers=[nowhere]", 2, "trackers"),
    ],
)
def test_a_wrong_setting(
    recipe: Path, capsys: pytest.CaptureFixture[str], change: str, code: int, said: str
) -> None:
    found, sentence = outcome(capsys, "train", str(recipe), change, "benchmarks.held_out=null")
    assert found == code, sentence
    assert not said or __import__("re").search(said, sentence), sentence
