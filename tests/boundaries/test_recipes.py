"""Every recipe builds, and every part earns its place in one."""

import importlib
import pkgutil
from abc import ABC
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from inspect import isabstract
from pathlib import Path

import pytest
from pydantic.dataclasses import is_pydantic_dataclass

import opd
from opd.config import build, dump, load_recipe
from opd.recipe import Recipe

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))

UNUSED = {
    "ArithmeticMean": "what AlignedMean is to be set against",
    "GeometricMean": "what AlignedMean is to be set against",
    "HandOff": "a stage of scripts/dasd.sh",
    "LeaveOneOut": "the unbiased choice beside GroupMean",
    "MixedKL": "a divergence to compare",
    "SkewReverseKL": "what HeldSkewReverseKL is to be set against",
    "TotalVariation": "a divergence to compare",
}
"""Parts that no recipe names, each with the reason why it stays."""


def built(path: Path) -> Recipe:
    return build(Recipe, load_recipe(str(path)))


def parts_of(value: object) -> Iterator[type]:
    """Classes of all parts within a value."""
    if is_dataclass(value) and not isinstance(value, type):
        yield type(value)
        for key in (field.name for field in fields(value) if field.init):
            yield from parts_of(getattr(value, key))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from parts_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from parts_of(item)


def all_choices() -> Iterator[type]:
    """Every part that stands in `opd` and that a recipe may name, being one of several."""
    for found in pkgutil.walk_packages(opd.__path__, "opd."):
        if found.name.endswith("__main__"):
            continue
        for member in vars(importlib.import_module(found.name)).values():
            is_here = getattr(member, "__module__", None) == found.name
            is_part = is_here and is_pydantic_dataclass(member) and not isabstract(member)
            if is_part and issubclass(member, ABC):
                yield member


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_builds_and_survives_a_round_trip(path: Path):
    resolved = dump(built(path))
    assert dump(build(Recipe, resolved)) == resolved


def test_every_part_is_in_a_recipe():
    used = {part.__name__ for path in RECIPES for part in parts_of(built(path))}
    known = {part.__name__ for part in all_choices()}
    assert known - used == set(UNUSED), "a part that no recipe uses goes away, or says why not"
