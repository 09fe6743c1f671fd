"""Recipes: what they turn into, what they refuse, and that a refusal names the place."""

from __future__ import annotations

import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from opd.config import RECIPES, build, callable_named, dump, load_recipe, locate, part
from opd.errors import RecipeError
from opd.tree import merged, parse_override, read_yaml, write_yaml


class Rate(ABC):
    @abstractmethod
    def at(self, step: int) -> float: ...

    @classmethod
    def from_number(cls, number: float) -> Rate:
        return Flat(value=number)


@part
class Flat(Rate):
    value: Annotated[float, Field(ge=0)]

    def at(self, step: int) -> float:
        return self.value


@part
class Steps(Rate):
    values: tuple[float, ...]
    changes: list[int]

    def at(self, step: int) -> float:
        return self.values[sum(change <= step for change in self.changes)]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.changes) + 1:
            raise ValueError("values must have one entry more than changes")


class Distance(ABC):  # noqa: B024
    choices: ClassVar[dict[str, str]] = {"far": "fractions:Fraction"}


class Smooth(Distance):
    @abstractmethod
    def width(self) -> float: ...


@part
class Straight(Distance):
    pass


@part
class Bent(Smooth):
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    inner: Distance | None = None

    def width(self) -> float:
        return self.share


class Bare(Distance):
    """Lacks @part."""


@part
class Goal:
    distance: Distance
    weights: tuple[Rate, ...] = ()
    scale: Rate = field(default_factory=lambda: Flat(value=1.0))
    average: Literal["token", "sequence"] = "token"
    count: int = field(init=False, default=0)


@part
class Plan:
    goals: Annotated[dict[str, Goal], Field(min_length=1)]
    steps: Annotated[int, Field(gt=0)] = 10
    share: Annotated[float | None, Field(lt=1)] = None
    betas: tuple[float, float] = (0.9, 0.99)
    labels: Mapping[str, str] = field(default_factory=dict)
    ids: list[str | int] = field(default_factory=list)
    packed: bool = False
    title: str = "plan"
    folder: Path = Path("here")
    chain: Sequence[Distance] = ()


PLAN = """
goals:
  near:
    distance: {name: Bent, share: 0.25, inner: Straight}
    weights: [0.5, {name: Flat, value: 2}, {name: Steps, values: [1, 0], changes: [3]}]
    scale: 1e-6
  far: {distance: Straight, average: sequence}
share: 5e-1
betas: [0, .5]
chain: [Straight, Bent]
"""


def tree(*overrides: str) -> object:
    result = read_yaml(PLAN, "plan")
    for override in overrides:
        result = merged(result, parse_override(override))
    return result


def plan(*overrides: str) -> Plan:
    return build(Plan, tree(*overrides))


def test_a_tree_becomes_parts_of_the_declared_types():
    near, far = plan().goals["near"], plan().goals["far"]
    assert near.distance == Bent(share=0.25, inner=Straight())
    assert near.weights == (
        Flat(value=0.5),
        Flat(value=2.0),
        Steps(values=(1.0, 0.0), changes=[3]),
    )
    assert near.scale == Flat(value=1e-6)
    assert (far.distance, far.average, far.count) == (Straight(), "sequence", 0)
    assert plan().share == 0.5
    assert plan().betas == (0.0, 0.5)
    assert plan().chain == (Straight(), Bent())


def test_dump_and_build_are_inverse():
    text = write_yaml(dump(plan()))
    assert build(Plan, read_yaml(text, "dumped")) == plan()
    assert "count" not in text


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
    | st.sampled_from(["1e-6", "on", "012", "12:30:00", "2024-01-01", "~", "", ".inf", "True"])
)
def test_written_yaml_reads_back(value: object):
    assert read_yaml(write_yaml(value), "written") == value


def test_scalars_follow_yaml_1_2():
    text = "{a: 1e-6, b: on, c: 012, d: 12:30:00, e: 2024-01-01, f: .inf, g: ~, h: True, on: -3}"
    assert read_yaml(text, "text") == {
        "a": 1e-6,
        "b": "on",
        "c": "012",
        "d": "12:30:00",
        "e": "2024-01-01",
        "f": float("inf"),
        "g": None,
        "h": True,
        "on": -3,
    }


def test_overrides_reach_into_lists_and_maps():
    changed = plan(
        "goals.near.weights.2.changes.0=7",
        "goals.near.weights.0=3",
        "goals.new={distance: Straight}",
        "goals.far=null",
        "labels.run=first",
    )
    assert changed.goals["near"].weights[2] == Steps(values=(1.0, 0.0), changes=[7])
    assert changed.goals["near"].weights[0] == Flat(value=3.0)
    assert list(changed.goals) == ["near", "new"]
    assert changed.labels == {"run": "first"}


def test_mappings_merge_only_while_the_name_stays():
    assert plan("goals.near.distance.share=1").goals["near"].distance == Bent(
        share=1.0, inner=Straight()
    )
    assert plan("goals.near.distance=Bent").goals["near"].distance == Bent(
        share=0.25, inner=Straight()
    )
    assert plan("goals.near.distance=Straight").goals["near"].distance == Straight()
    assert plan("goals.far.distance={name: Bent}").goals["far"].distance == Bent()
    assert plan("goals.near.distance.name=Straight").goals["near"].distance == Straight()
    assert plan("chain.1.share=0").chain == (Straight(), Bent(share=0.0))


def test_a_name_at_the_root_is_a_plain_key():
    assert merged({"name": "a", "steps": 1}, {"name": "b"}) == {"name": "b", "steps": 1}


def test_merging_leaves_its_arguments_alone():
    old = {"a": {"b": [1, {"c": 2}]}}
    assert merged(old, {"a": {"b": {"1": {"c": 3}}}}) == {"a": {"b": [1, {"c": 3}]}}
    assert old == {"a": {"b": [1, {"c": 2}]}}


def test_an_interface_may_be_named_from_elsewhere():
    here = f"{__name__}:Straight"
    assert build(Distance, here) == Straight()
    assert build(Distance, {"name": here}) == Straight()
    assert dump(Straight()) == {"name": "Straight"}


def test_choices_of_an_interface_give_short_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "elsewhere.py").write_text(
        "from opd.config import part\n"
        f"from {__name__} import Distance\n\n\n@part\nclass Curve(Distance):\n    bow: int = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(Distance.choices, "curve", "elsewhere:Curve")
    built = build(Distance, {"name": "curve", "bow": 3})
    assert dump(built) == {"name": "curve", "bow": 3}
    monkeypatch.delitem(Distance.choices, "curve")
    assert dump(built) == {"name": "elsewhere:Curve", "bow": 3}
    assert build(Distance, dump(built)) == built


REFUSED = [
    # unknown keys
    ("stepz=1", "stepz", "did you mean 'steps'?"),
    ("goals.near.averag=token", "goals.near.averag", "did you mean 'average'?"),
    ("goals.near.count=3", "goals.near.count", "has no such key"),
    ("goals.near.distance.shar=1", "goals.near.distance.shar", "did you mean 'share'?"),
    ("goals.near.distance.inner.x=1", "goals.near.distance.inner.x", "Straight has no such key"),
    ("on=1", "on", "Plan has no such key"),
    # unknown parts
    ("goals.far.distance=Strait", "goals.far.distance", "did you mean 'Straight'?"),
    ("goals.far.distance=Smooth", "goals.far.distance", "is no Distance"),
    ("goals.far.distance=Flat", "goals.far.distance", "is no Distance"),
    ("goals.far.distance=far", "goals.far.distance", "is no Distance"),
    ("goals.far.distance=Bare", "goals.far.distance", "put @part above it"),
    ("goals.far.distance=json:JSONDecoder", "goals.far.distance", "is no Distance"),
    ("goals.far.distance=json:Nope", "goals.far.distance", "json has no 'Nope'"),
    ("goals.far.distance=opd.nope:X", "goals.far.distance", "the module 'opd.nope'"),
    ("goals.far.distance=./x:Y", "goals.far.distance", "package.module:name"),
    ("goals.far.distance=3", "goals.far.distance", "should be a text, not 3"),
    ("goals.far.distance=null", "goals.far.distance", "is missing; choose from"),
    ("goals.far.distance=[Bent]", "goals.far.distance", "should be a text"),
    ("goals.far.name=Goal", "goals.far.name", "Goal has no such key"),
    ("chain.0=Bend", "chain.0", "did you mean 'Bent'?"),
    # missing
    ("goals.new={}", "goals.new.distance", "needs this key"),
    ("goals.near.scale=Flat", "goals.near.scale.value", "needs this key"),
    ("goals={near: null, far: null}", "goals", "at least 1 item"),
    ("betas=[0.1]", "betas.1", "Field required"),
    # wrong types
    ("steps=1.5", "steps", "should be a valid integer, not 1.5"),
    ("steps='3'", "steps", "without quotes"),
    ("steps=012", "steps", "should be a valid integer, not '012'"),
    ("steps=true", "steps", "should be a valid integer, not True"),
    ("steps=null", "steps", "should be a valid integer, not None"),
    ("steps=.nan", "steps", "should be a valid integer"),
    ("share=yes", "share", "should be a valid number, not 'yes'"),
    ("share=true", "share", "should be a valid number, not True"),
    ("packed=on", "packed", "write true or false"),
    ("packed=1", "packed", "write true or false"),
    ("title=12", "title", "put it in quotes"),
    ("betas=[0, x]", "betas.1", "should be a valid number"),
    ("labels.run=3", "labels.run", "put it in quotes"),
    ("labels=x", "labels", "should be"),
    ("ids=[a, 1.5]", "ids.1", "should be a valid string, not 1.5"),
    ("goals=[]", "goals", "should be a mapping of keys"),
    ("goals.far=Goal", "goals.far", "should be a mapping of keys"),
    ("goals.new=3", "goals.new", "should be a mapping of keys, not 3"),
    ("goals.near.weights=Flat", "goals.near.weights", "should be a list"),
    # out of range, or in conflict
    ("steps=0", "steps", "should be greater than 0, not 0"),
    ("share=1", "share", "should be less than 1"),
    ("goals.near.average=tokens", "goals.near.average", "should be 'token' or 'sequence'"),
    ("goals.near.scale=-1", "goals.near.scale", "greater than or equal to 0, not -1"),
    ("goals.near.weights.1.value=-2", "goals.near.weights.1.value", "greater than or equal to 0"),
    ("goals.near.weights.2.changes=[]", "goals.near.weights.2", "one entry more than changes"),
    ("goals.near.weights.7=1", "goals.near.weights.7", "an index below 3"),
    ("goals.near.weights.last=1", "goals.near.weights.last", "an index below 3"),
]


@pytest.mark.parametrize(("override", "place", "cause"), REFUSED)
def test_a_refusal_names_the_yaml_path_and_the_cause(override: str, place: str, cause: str):
    with pytest.raises(RecipeError) as refused:
        plan(override)
    assert str(refused.value).startswith(f"{place}: ")
    assert cause in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_path_starts_where_the_caller_says():
    with pytest.raises(RecipeError, match=r"^terms\.near\.averag: "):
        build(Goal, {"distance": "Bent", "averag": 1}, "terms.near")
    with pytest.raises(RecipeError, match=r"^recipe: should be a mapping"):
        build(Plan, 3)


@pytest.mark.parametrize(
    "override", ["steps", "=3", "a..b=1", ".a=1", "steps=[1", "steps={a: 1, a: 2}", "steps=\0"]
)
def test_a_malformed_override_is_refused(override: str):
    with pytest.raises(RecipeError, match="the override"):
        parse_override(override)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is given twice"),
        ("a:\n  b: {c: 1, c: 2}", "line 2: the key 'c' is given twice"),
        ("a: 1\n2: x", "line 2: the key '2' is no text"),
        ("true: x", "line 1: the key 'true' is no text"),
        ("a: &x {b: *x}", "line 1: found unconstructable recursive node"),
        ("a: !!python/object:os.system {}", "line 1: could not determine a constructor"),
        ("a: [1,", "line 1: expected"),
        ("a: b: c", "line 1: mapping values are not allowed"),
        ("\0", "unacceptable character"),
        ("[" * 1000, "recursion"),
        ("- 1", "should be a mapping of keys"),
        ("", "should be a mapping of keys"),
    ],
)
def test_a_malformed_recipe_is_refused_with_file_and_line(tmp_path: Path, text: str, cause: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as refused:
        load_recipe(str(path))
    assert str(refused.value).startswith(str(path))
    assert cause in str(refused.value)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"a: \xff")
    with pytest.raises(RecipeError, match="UTF-8"):
        load_recipe(str(path))


def test_a_recipe_stands_over_its_base_and_under_overrides(tmp_path: Path):
    (tmp_path / "common.yaml").write_text("steps: 1\nloss: {name: A, k: 1}\nlist: [1, 2]\n")
    child = tmp_path / "child.yaml"
    child.write_text("base: common\nloss: {name: B}\nlist: [3]\n")
    assert load_recipe(str(child), ["steps=5", "loss.j=2"]) == {
        "steps": 5,
        "loss": {"name": "B", "j": 2},
        "list": [3],
    }


def test_a_variant_stands_over_a_method_over_what_several_share(tmp_path: Path):
    texts = {"a": "base: b\nseed: 4\n", "b": "base: c\nlist: [2]\n", "c": "base: d\nsteps: 2\n"}
    for name, text in {**texts, "d": "steps: 1\nseed: 3\n"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    assert load_recipe(str(tmp_path / "b.yaml")) == {"steps": 2, "seed": 3, "list": [2]}
    assert load_recipe(str(tmp_path / "a.yaml")) == {"steps": 2, "seed": 4, "list": [2]}


def test_bases_in_a_circle_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.yaml").write_text("base: b\n")
    (tmp_path / "b.yaml").write_text("base: ./a.yaml\n")
    (tmp_path / "own.yaml").write_text("base: own\n")
    with pytest.raises(RecipeError, match=r"a\.yaml: base: it is the base of a recipe"):
        load_recipe(str(tmp_path / "a.yaml"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"own\.yaml: base: "):
        load_recipe("own.yaml")


def test_an_unknown_recipe_offers_the_nearest_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "base").mkdir()
    for name in ("quickstart", "base/shared"):
        (tmp_path / f"{name}.yaml").write_text("steps: 3\n")
    monkeypatch.setattr("opd.config.RECIPES", tmp_path)
    assert load_recipe("quickstart") == load_recipe("base/shared") == {"steps": 3}
    with pytest.raises(RecipeError, match=r"'quikstart'; did you mean 'quickstart'\?"):
        load_recipe("quikstart")
    with pytest.raises(RecipeError, match="choose from base/shared, quickstart"):
        load_recipe("zzz.yaml")


def test_callables_are_found_by_name():
    assert callable_named("json:loads", "adapter")("1") == 1
    with pytest.raises(RecipeError, match=r"^adapter: 'json:__doc__' is no function"):
        callable_named("json:__doc__", "adapter")
    with pytest.raises(RecipeError, match=r"^adapter: json has no 'load_s'; did you mean 'loads'"):
        callable_named("json:load_s", "adapter")


def test_a_module_that_lacks_its_own_import_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "thirsty.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RecipeError, match="needs the module 'no_such_package'; install it"):
        callable_named("thirsty:x", "adapter")


def test_files_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert Path(locate("data/samples/gsm8k.jsonl")).is_file()
    assert locate("someone/some-model") == "someone/some-model"
    (tmp_path / "data").mkdir()
    assert locate("data") == "data"


def test_a_stdlib_dataclass_serves_as_a_part():
    @dataclass
    class Plain:
        size: int
        name: str = "x"

    assert build(Plain, {"size": 3, "name": "y"}) == Plain(3, "y")
    with pytest.raises(RecipeError, match=r"^p\.size: should be a valid integer"):
        build(Plain, {"size": "3"}, "p")


def test_config_imports_no_torch():
    code = "import sys, opd.config; sys.exit('torch' in sys.modules)"
    root = RECIPES.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
