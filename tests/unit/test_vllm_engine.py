"""What the vLLM engine does on its own: stop tokens, and what it says of failures."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from opd.errors import EngineError
from opd.rollout.engine import Request, Sampling
from opd.rollout.vllm import VLLM, one_sentence


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path
):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EngineError, match=r"bash scripts/setup\.sh full"):
        VLLM().open(str(tiny_model_dir), dtype="float32", max_length=64, seed=0)


def test_a_failure_of_the_library_is_one_sentence():
    with pytest.raises(EngineError) as raised, one_sentence("drawing responses"):
        raise RuntimeError("no block is free\nand a long trace")
    assert str(raised.value).startswith("engine=vllm failed while drawing responses: no block")
    assert "\n" not in str(raised.value)


def test_an_error_of_ours_keeps_its_sentence():
    with pytest.raises(EngineError, match=r"^send every parameter\.$"), one_sentence("loading"):
        raise EngineError("send every parameter.")


def test_every_stop_token_of_the_generation_config_stops(tiny_model_dir: Path, tmp_path: Path):
    """The library reads them itself: config.json names one of them only."""
    pytest.importorskip("vllm")
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    stops = [2, *range(40, 50)]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    engine = VLLM(max_sequences=8)
    engine.open(str(folder), dtype="float32", max_length=64, seed=0)
    asked = [Request(prompt_ids=(5, 6), seed=seed) for seed in range(20)]
    drawn = engine.generate(asked, Sampling(max_response_tokens=40))
    engine.close()
    assert {c.token_ids[-1] for c in drawn if c.finish == "stop"} - {2}
    assert not any(set(stops) & set(c.token_ids[:-1]) for c in drawn)
