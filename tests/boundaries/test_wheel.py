"""The wheel carries all that a run needs, and nothing of the repository's workshop."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in a freshly built wheel, its own metadata left out."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    subprocess.run([*build, str(folder)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}


def test_recipes_travel_inside_the_package(packed: set[str]):
    recipes = ROOT / "recipes"
    names = {path.relative_to(recipes).as_posix() for path in recipes.rglob("*.yaml")}
    assert names
    assert {f"opd/recipes/{name}" for name in names} <= packed


def test_embedded_model_and_problems_travel(packed: set[str]):
    assert {"data/tiny/model.safetensors", "data/tiny/train.jsonl"} <= packed


def test_only_packages_travel(packed: set[str]):
    assert {name.split("/")[0] for name in packed} == {"opd", "rewards", "data"}
