"""The doctor: finds what is here without importing it, and fails only on what a run needs."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from opd import doctor as doctor_module
from opd.doctor import TINY, Check, chromium, diagnose, disk, doctor, loads, optional, package

LOADED = """
import sys
from opd.doctor import doctor
code = doctor()
print("loaded", [name for name in ("vllm", "trl", "flash_attn") if name in sys.modules])
sys.exit(code)
"""


def test_this_machine_is_fit_and_optional_libraries_stay_unimported() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[-1] == "loaded []"
    assert any("torch" in line and importlib.metadata.version("torch") in line for line in lines)
    assert any(TINY in line and "parameters" in line for line in lines)


def test_a_missing_required_library_is_a_fault() -> None:
    found = package("no-such-library")
    assert (found.status, found.found) == ("fault", "not installed; pip install -e .")


def test_a_version_that_we_do_not_take_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = doctor_module.Requirement("torch<2")
    monkeypatch.setattr(doctor_module, "wanted_versions", lambda: {"torch": wanted})
    found = package("torch")
    assert found.status == "fault" and "but torch<2 is needed" in found.found
    assert package("rich").status == "ok"


def test_a_missing_optional_library_is_no_fault() -> None:
    assert optional(("no-such-library",), "something").status == "absent"
    either = optional(("no-such-library", "rich"), "something")
    assert either == Check("no-such-library", "ok", f"{importlib.metadata.version('rich')} (rich)")


def test_a_missing_or_torn_model_is_a_fault(tiny_model_dir: Path, tmp_path: Path) -> None:
    assert loads(str(tiny_model_dir)).status == "ok"
    assert loads(str(tmp_path / "gone")).status == "fault"
    torn = tmp_path / "torn"
    torn.mkdir()
    for file in tiny_model_dir.iterdir():
        (torn / file.name).write_bytes(file.read_bytes())
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert loads(str(torn)).status == "fault"


def test_a_full_disk_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert disk(tmp_path).status == "ok"
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage(free=1024**3))
    assert disk(tmp_path).found.endswith("; free at least 2 GiB")


def test_no_browser_is_no_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert chromium().status == "absent"


def test_the_chat_template_of_a_model_is_shown(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {check.name: check for check in diagnose(str(tiny_model_dir))}
    assert "<|im_start|>user\\n2+2<|im_end|>" in found["chat template"].found
    assert found["stop tokens"].found == "'<|im_end|>'"
    assert found["padding"].found == "'<|endoftext|>'"
    assert doctor(str(tmp_path)) == 1
    assert "no tokenizer can be loaded" in " ".join(capsys.readouterr().out.split())
