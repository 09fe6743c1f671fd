"""Bad input: one sentence with the place and the fix, an exit code of its own, no traceback."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file
from transformers import AutoTokenizer

from data.gsm8k import problem
from opd.cli import main
from opd.privileged import Problem
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
        ("terms.distil.loss.target=hint", 2, "terms.distil.*'hint'.*solution"),
        ("model.path=no/such/model", 2, "model.path: no/such/model"),
        ("problems.dataset=no/such/rows.jsonl", 4, "no/such/rows.jsonl"),
        ("problems.adapter=data.gsm8k:problems", 2, "adapter.*problem"),
        ("source=Demonstrations", 2, "source: terms.reinforce needs sampled"),
        ("teacher.views.solution=Sibling", 0, ""),
        ("sampling.max_response_tokens=5000", 4, "max_response_tokens=5000"),
        ("max_length=40", 4, "exceed the context of 40"),
        ("sync_tolerance=1e-30", 5, "log-probs differ by"),
        ("optimizer.learning_rate=1e30", 6, "lower optimizer.learning_rate"),
        ("trackers=[nowhere]", 2, "trackers"),
        ("optimizer.learning_rate=-1", 2, "learning_rate.*at 0 or above"),
        ("problems_per_step=6", 2, "problems_per_step"),
        ("sampling.temperature=0.7 terms.distil.loss.correction=TruncatedImportance", 2, "alike"),
    ],
)
def test_a_wrong_setting(
    recipe: Path, capsys: pytest.CaptureFixture[str], change: str, code: int, said: str
) -> None:
    found, sentence = outcome(
        capsys, "train", str(recipe), *change.split(), "benchmarks.held_out=null"
    )
    assert found == code, sentence
    assert not said or re.search(said, sentence), sentence


def test_a_duplicate_key(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(recipe.read_text() + "steps: 5\n")
    assert outcome(capsys, "train", str(recipe)) == (
        2,
        f"opd: {recipe}, line {recipe.read_text().count(chr(10))}: "
        "the key 'steps' is given twice; keep one",
    )


def test_an_unknown_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    code, sentence = outcome(capsys, "train", "quickstrat")
    assert (code, "did you mean 'quickstart'" in sentence) == (2, True)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"question": "1 + 1?", "answer"', "row 2"),
        ('{"question": "1 + 1?"}', "row 2.*'answer'"),
        ('{"question": "1 + 1?", "answer": "2"}', "row 2.*####"),
    ],
)
def test_a_bad_row(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, said: str
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "1 + 2?", "answer": "#### 3"}) + f"\n{row}\n")
    dataset = {"dataset": str(rows), "adapter": "data.gsm8k:problem"}
    recipe = written(tree(tiny_model_dir, tmp_path / "run", problems=dataset), tmp_path)
    code, sentence = outcome(capsys, "train", str(recipe))
    assert code == 4 and re.search(said, sentence), sentence


def test_a_view_without_its_field(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = tree(tiny_model_dir, tmp_path / "run")
    content["problems"]["adapter"] = f"{__name__}:without_solution"
    recipe = written(content, tmp_path)
    code, sentence = outcome(capsys, "train", str(recipe))
    assert code == 4 and "shows its solution, but it has none" in sentence


def without_solution(row: dict[str, str]) -> Problem:
    """An adapter that leaves the solution out."""
    full = problem(row)
    return replace(full, privileged=replace(full.privileged, solution=None))


def test_a_tokenizer_without_chat_template(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    recipe = written(tree(folder, tmp_path / "run"), tmp_path)
    code, sentence = outcome(capsys, "train", str(recipe))
    assert code == 4 and "no chat template" in sentence


def test_two_runs_into_one_directory(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        code, sentence = outcome(capsys, "train", str(recipe))
    assert code == 2 and "another run writes here" in sentence
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_another_recipe_into_a_finished_run(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(capsys, "train", str(recipe), "steps=1")[0] == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    code, sentence = outcome(capsys, "train", str(recipe), "steps=1", "seed=1")
    assert code == 2 and "seed=0" in sentence and "output=" in sentence
    assert all(p.read_bytes() == content for p, content in before.items() if p.name != ".lock")


def test_sample_then_score(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rollouts, scores = tmp_path / "rollouts.jsonl", tmp_path / "scores"
    sampled = ["sample", str(recipe), "--to", str(rollouts), "--problems", "3"]
    assert outcome(capsys, *sampled)[0] == 0
    command = ["score", str(recipe), "--rollouts", str(rollouts), "--to", str(scores)]
    assert outcome(capsys, *command)[0] == 0
    drawn = [json.loads(line) for line in rollouts.read_text().splitlines()]
    assert len(drawn) == 6
    (shard,) = scores.glob("scores-*")
    kept = load_file(shard)
    tokens = sum(len(row["rollout"]["token_ids"]) for row in drawn)
    assert kept["solution/logprob"].shape == kept["solution/entropy"].shape == (tokens,)
    alone, again = tmp_path / "alone.jsonl", tmp_path / "again"
    alone.write_text(json.dumps(drawn[1]))
    rescore = ["score", str(recipe), "--rollouts", str(alone), "--to", str(again)]
    assert outcome(capsys, *rescore)[0] == 0
    first, second = (len(row["rollout"]["token_ids"]) for row in drawn[:2])
    for name, values in load_file(again / shard.name).items():
        assert torch.allclose(values, kept[name][first : first + second], atol=1e-4)
        assert not torch.allclose(values, kept[name][:second], atol=1e-4)
    code, sentence = outcome(capsys, *sampled)
    assert code == 4 and "exists already" in sentence
    rollouts.write_text(rollouts.read_text().replace('"id": "gsm8k-', '"id": "other-'))
    command[-1] = str(tmp_path / "other")
    code, sentence = outcome(capsys, *command)
    assert code == 4 and "answers 'other-" in sentence


def test_show_prints_both_prompts(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(recipe)]) == 0
    printed = capsys.readouterr().out
    for part in ("student:", "teacher, view 'solution'", "predicts at", "masked:", "cut: nothing"):
        assert part in printed


def test_show_says_what_the_teacher_writes(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No model is loaded, so that there is nothing to show of it."""
    assert main(["show", str(recipe), "teacher.views.notes=Analysis"]) == 0
    assert "view 'notes': the teacher writes what it shows" in capsys.readouterr().out


def test_eval_measures_the_model_on_disk(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(recipe)]) == 0
    assert "held_out" in capsys.readouterr().out


def test_help_is_instant() -> None:
    """Help and the listing of verbs import no torch."""
    code = "import sys; from opd.cli import parser; parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_longest_prompt_is_named(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change = f"sampling.max_response_tokens={CONTEXT_LENGTH}"
    code, sentence = outcome(capsys, "train", str(recipe), change)
    assert code == 4 and "problem gsm8k-" in sentence and "lower max_response_tokens" in sentence
