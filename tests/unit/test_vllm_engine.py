"""What the vLLM engine says when the library is not there or fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from opd.errors import EngineError
from opd.rollout.vllm import VLLM, one_sentence


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path
):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EngineError, match=r"pip install -e '\.\[vllm\]'"):
        VLLM().open(str(tiny_model_dir), dtype="float32", max_length=64, seed=0)


def test_a_failure_of_the_library_is_one_sentence():
    with pytest.raises(EngineError) as raised, one_sentence("drawing responses"):
        raise RuntimeError("no block is free\nand a long trace")
    assert str(raised.value).startswith("engine=vllm failed while drawing responses: no block")
    assert "\n" not in str(raised.value)


def test_an_error_of_ours_keeps_its_sentence():
    with pytest.raises(EngineError, match=r"^send every parameter\.$"), one_sentence("loading"):
        raise EngineError("send every parameter.")
