"""Recipes as trees of parts: strict, typed, overridable YAML.

A part's fields are its keys. A field typed by an interface (an abstract class) takes the name of a
class in the interface's module, or `package.module:Class`.
"""

from __future__ import annotations

import json
import sys
from abc import ABC
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from opd.errors import RecipeError
from opd.tree import is_list, is_mapping, joined, mapping_at, merged, parse_override, read_yaml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds `opd` and `data`: the repository, or where the packages are installed."""

PACKAGED_RECIPES = ROOT / "opd" / "recipes"
RECIPES = PACKAGED_RECIPES if PACKAGED_RECIPES.is_dir() else ROOT / "recipes"

LISTED = 12

FIXES = {
    "bool_type": "; write true or false",
    "string_type": "; put it in quotes",
    "float_type": "; write a number without quotes",
    "int_type": "; write a whole number without quotes",
}
"""What to do about the commonest faults that pydantic finds."""


@dataclass_transform(kw_only_default=True)
def part(cls: type[T]) -> type[T]:
    """Make `cls` a part: a dataclass whose fields are its YAML keys, checked when it is built.

    Fields with `init=False` are state and no keys. A `__post_init__` that finds fields in conflict
    raises ValueError; the loader adds the YAML path.
    """
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return cast("type[T]", pydantic_dataclass(config=config, kw_only=True)(cls))


def load_recipe(name: str, overrides: Iterable[str] = ()) -> dict[str, object]:
    """The tree of the recipe with that name or path, over its base and under `key=value` overrides.

    Mappings merge only while `name` is unchanged; a null drops an entry of a map of parts.
    """
    tree = over_bases(recipe_path(name))
    for override in overrides:
        tree = merged(tree, parse_override(override))
    return cast("dict[str, object]", tree)


def over_bases(path: Path, above: tuple[Path, ...] = ()) -> object:
    """The tree of a file over the base that it names, which may have one too; `above` are the files
    that stand over it."""
    if path.resolve() in above:
        raise RecipeError(
            f"{path}: base: it is the base of a recipe that it stands over; let one of them go "
            "without"
        )
    tree = read_recipe(path)
    if "base" not in tree:
        return tree
    base = recipe_path(str(tree.pop("base")), beside=path.parent)
    return merged(over_bases(base, (*above, path.resolve())), tree)


def recipe_path(name: str, beside: Path | None = None) -> Path:
    """The file of a recipe: a path that ends in .yaml, or a bare name."""
    is_file = name.endswith((".yaml", ".yml"))
    folders = (beside or (Path() if is_file else RECIPES), RECIPES)
    paths = [folder / (name if is_file else f"{name}.yaml") for folder in folders]
    for path in paths:
        if path.is_file():
            return path
    known = [path.relative_to(RECIPES).with_suffix("") for path in RECIPES.rglob("*.yaml")]
    near = nearest(name.removesuffix(".yaml"), [path.as_posix() for path in known])
    raise RecipeError(f"there is no recipe {name!r}; {near}")


def read_recipe(path: Path) -> dict[str, object]:
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no readable UTF-8 text: {error}") from None
    return mapping_at(tree, str(path))


def build(cls: type[T], tree: object, where: str = "") -> T:
    """The `cls` that `tree` describes. Raises RecipeError with the YAML path, which starts at
    `where`, for unknown keys, unknown names, missing keys, wrong types and values out of range."""
    return cast(T, value_of(cls, tree, where))


def value_of(hint: object, tree: object, where: str) -> object:
    """`tree` as a value of the type that `hint` annotates."""
    kind, arguments = get_origin(hint), get_args(hint)
    if kind in (dict, Mapping) and is_mapping(tree):
        tree = {key: item for key, item in tree.items() if item is not None}
    if not holds_parts(hint):
        return plain_value(hint, tree, where)
    if kind is Annotated:
        return value_of(arguments[0], tree, where)
    if kind in (Union, UnionType):
        if isinstance(tree, str) and str in arguments:
            return tree
        (inner,) = (argument for argument in arguments if argument not in (NoneType, str))
        return None if tree is None else value_of(inner, tree, where)
    if kind in (list, tuple, Sequence):
        if not is_list(tree):
            raise RecipeError(f"{where}: should be a list, not {tree!r}")
        built = [value_of(arguments[0], item, joined(where, i)) for i, item in enumerate(tree)]
        return built if kind is list else tuple(built)
    if kind in (dict, Mapping):
        entries = mapping_at(tree, where).items()
        return {key: value_of(arguments[1], item, joined(where, key)) for key, item in entries}
    return part_of(cast("type[object]", hint), tree, where)


def plain_value(hint: object, tree: object, where: str) -> object:
    # To pydantic YAML is JSON: a list may be a tuple, but no text is a number, no number a truth.
    adapter = TypeAdapter(cast("type[object]", hint))
    return constructed(lambda: adapter.validate_json(json.dumps(tree), strict=True), tree, where)


def part_of(cls: type[object], tree: object, where: str) -> object:
    """An instance of `cls`, or of the class under it that `tree` names."""
    from_number = getattr(cls, "from_number", None)
    if from_number is not None and isinstance(tree, int | float) and not isinstance(tree, bool):
        return constructed(lambda: from_number(tree), tree, where)
    chosen, tree = chosen_class(cls, tree, where)
    keys = {field.name: field for field in fields(chosen) if field.init}
    hints = get_type_hints(chosen, include_extras=True)
    for key in tree:
        if key not in keys:
            place = joined(where, key)
            raise RecipeError(f"{place}: {chosen.__name__} has no such key; {nearest(key, keys)}")
    for key, field in keys.items():
        if key not in tree and field.default is MISSING and field.default_factory is MISSING:
            raise RecipeError(f"{joined(where, key)}: {chosen.__name__} needs this key; add it")
    values = {key: value_of(hints[key], tree[key], joined(where, key)) for key in tree}
    return constructed(lambda: chosen(**values), dict.fromkeys(keys) | values, where)


def chosen_class(
    cls: type[object], tree: object, where: str
) -> tuple[type[DataclassInstance], dict[str, object]]:
    """The part that `tree` asks for, and its keys."""
    keys = {"name": tree} if is_interface(cls) and not is_mapping(tree) else mapping_at(tree, where)
    if not is_interface(cls) and ("name" not in keys or not issubclass(cls, ABC)):
        return cast("type[DataclassInstance]", cls), keys
    rest = {key: item for key, item in keys.items() if key != "name"}
    return class_named(keys.get("name"), cls, where), rest


def class_named(name: object, interface: type[object], where: str) -> type[DataclassInstance]:
    if not isinstance(name, str):
        fault = "is missing" if name is None else f"should be a text, not {name!r}"
        choices = nearest("", choices_of(interface))
        raise RecipeError(f"{where}: the name of the {interface.__name__} {fault}; {choices}")
    full_name = choices_of(interface).get(name, name)
    found = attribute(full_name, where) if ":" in full_name else None
    if not isinstance(found, type) or not issubclass(found, interface) or is_interface(found):
        near = nearest(name, choices_of(interface))
        raise RecipeError(f"{where}: {name!r} is no {interface.__name__}; {near}")
    if "__dataclass_fields__" not in vars(found):
        raise RecipeError(f"{where}: the class {name!r} is no part; put @part above it")
    return cast("type[DataclassInstance]", found)


def choices_of(interface: type[object]) -> dict[str, str]:
    """Short name to `package.module:Class` of the parts that the interface's `choices` lists and of
    those that stand beside it."""
    module = sys.modules[interface.__module__]
    beside = {
        name: f"{module.__name__}:{name}"
        for name, found in vars(module).items()
        if isinstance(found, type) and issubclass(found, interface) and not is_interface(found)
    }
    return cast("dict[str, str]", getattr(interface, "choices", {})) | beside


def attribute(name: str, where: str) -> object:
    """What `package.module:name` stands for."""
    module_name, _, attribute_name = name.partition(":")
    if not all(step.isidentifier() for step in (*module_name.split("."), attribute_name)):
        raise RecipeError(f"{where}: {name!r} is not of the form package.module:name")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        is_misspelt = f"{module_name}.".startswith(f"{error.name}.")
        fix = "check the spelling" if is_misspelt else "install it"
        raise RecipeError(f"{where}: {name!r} needs the module {error.name!r}; {fix}") from None
    if not hasattr(module, attribute_name):
        near = nearest(attribute_name, [known for known in vars(module) if known[0] != "_"])
        raise RecipeError(f"{where}: {module_name} has no {attribute_name!r}; {near}")
    return cast(object, getattr(module, attribute_name))


def callable_named(name: str, where: str) -> Callable[..., object]:
    """The function that `package.module:function` stands for."""
    found = attribute(name, where)
    if not callable(found):
        raise RecipeError(f"{where}: {name!r} is no function; name one")
    return found


def constructed(construct: Callable[[], object], given: object, where: str) -> object:
    """What `construct` makes; what pydantic refuses becomes a RecipeError with the YAML path."""
    try:
        return construct()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    except ValueError as error:
        raise RecipeError(f"{where or 'recipe'}: {error}") from None
    place = path_within(given, first["loc"], where)
    cause = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    shown = "" if first["type"] in ("value_error", "missing") else f", not {first['input']!r}"
    raise RecipeError(f"{place or 'recipe'}: {cause}{shown}{FIXES.get(first['type'], '')}")


def path_within(tree: object, steps: Sequence[int | str], where: str) -> str:
    """`where` and as many of the steps as `tree` has: pydantic's also name arms of unions."""
    for step in steps:
        if is_mapping(tree) and step in tree:
            tree = tree[str(step)]
        elif is_list(tree) and isinstance(step, int):
            tree = tree[step] if step < len(tree) else None
        else:
            break
        where = joined(where, step)
    return where


def dump(value: object) -> object:
    """The plain tree of a part, which `build` turns into an equal part."""
    if is_dataclass(value) and not isinstance(value, type):
        name = {"name": name_of(type(value))} if isinstance(value, ABC) else {}
        return name | {f.name: dump(getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, Mapping):
        return {key: dump(item) for key, item in cast("Mapping[str, object]", value).items()}
    if isinstance(value, list | tuple):
        return [dump(item) for item in cast("Sequence[object]", value)]
    return str(value) if isinstance(value, Path) else value


def name_of(cls: type[object]) -> str:
    """The name under which a recipe finds `cls`."""
    full_name = f"{cls.__module__}:{cls.__qualname__}"
    for interface in filter(is_interface, cls.__mro__):
        for name, choice in choices_of(interface).items():
            if choice == full_name:
                return name
    return full_name


def holds_parts(hint: object) -> bool:
    if isinstance(hint, type) and get_origin(hint) is None:
        return is_dataclass(hint) or is_interface(cast("type[object]", hint))
    return any(holds_parts(argument) for argument in get_args(hint))


def is_interface(cls: type[object]) -> bool:
    return issubclass(cls, ABC) and (ABC in cls.__bases__ or isabstract(cls))


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence's end that offers the known name closest to `name`, or the first ones."""
    choices = sorted(known)
    close = get_close_matches(name, choices, n=1, cutoff=0.5)
    listed = ", ".join(choices[:LISTED]) + (", ..." if len(choices) > LISTED else "")
    return f"did you mean {close[0]!r}?" if close else f"choose from {listed}"


def locate(path: str) -> str:
    """`path` where it exists, else the same under the folder that holds `opd` and `data` where that
    exists, else `path` as it stands: the name of something on a hub."""
    places = (Path(path).expanduser(), ROOT / path)
    return next((str(place) for place in places if place.exists()), path)
