"""What engines refuse before they serve a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from opd.errors import EngineError
from opd.rollout.serving import read_served


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def test_a_tied_head_is_known_under_both_names_and_required_once(
    tied_model_dir: Path, tiny_model_dir: Path
):
    tied, untied = (read_served(str(path), 64) for path in (tied_model_dir, tiny_model_dir))
    assert tied.shapes.keys() == untied.shapes.keys()
    assert untied.required - tied.required == {"lm_head.weight"}


@pytest.mark.parametrize("end, expected", [(2, (2,)), ([2, 0], (2, 0))])
def test_stop_tokens_are_the_generation_configs(folder: Path, end: object, expected: tuple):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    assert read_served(str(folder), 64).stop_ids == expected


def test_stop_tokens_are_the_models_where_nothing_else_is_said(folder: Path):
    (folder / "generation_config.json").unlink()
    assert read_served(str(folder), 64).stop_ids == (2,)


def test_a_model_without_a_stop_token_is_refused(folder: Path):
    (folder / "generation_config.json").write_text("{}")
    with pytest.raises(EngineError, match="no token ends a response; set eos_token_id"):
        read_served(str(folder), 64)


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(EngineError, match=r"model\.path=.*no causal language model") as raised:
        read_served(str(tmp_path), 64)
    assert "\n" not in str(raised.value)


def test_a_length_over_the_context_is_refused(folder: Path):
    assert read_served(str(folder), 512).max_length == 512
    with pytest.raises(EngineError, match=r"513 tokens a sequence.*context holds 512"):
        read_served(str(folder), 513)
