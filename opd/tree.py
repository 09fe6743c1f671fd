"""Recipe trees before they are typed: plain YAML, merging and overrides."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, TypeGuard, cast

import yaml

from opd.errors import RecipeError, first_line

TAG = "tag:yaml.org,2002:"
PLAIN_TYPES = ("null", "bool", "int", "float", "str", "seq", "map")
NUMBER = r"[-+]?(((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|\.inf)"
PLAIN_SCALARS = {
    "null": (r"~|null|Null|NULL|", ("~", "n", "N", "")),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    "float": (NUMBER, "-+.0123456789"),
}
"""YAML 1.2's unquoted scalars that are no text: pattern and possible first characters."""


class Loader(yaml.SafeLoader):
    """Plain data under the scalar rules of YAML 1.2: `1e-6` is a number, `on` is a text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012
    yaml_constructors = {  # noqa: RUF012
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (None, *(f"{TAG}{name}" for name in PLAIN_TYPES))
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != f"{TAG}str":
                raise fault(f"the key {key.value!r} is no text; put it in quotes", key)
            if key.value in seen:
                raise fault(f"the key {key.value!r} is given twice; keep one", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def fault(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)


class Dumper(yaml.SafeDumper):
    """Quotes whatever text this reader, or one of YAML 1.1, would take for something else."""


for name, (pattern, first) in PLAIN_SCALARS.items():
    for side in (Loader, Dumper):
        side.add_implicit_resolver(f"{TAG}{name}", re.compile(f"^({pattern})$"), list(first))


def read_yaml(text: str, where: str) -> object:
    """The plain data that `text` holds; RecipeError names `where` and the line."""
    try:
        loader = Loader(text)
        loader.deep_construct = True  # refuses an alias inside what it stands for
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{where}{line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{where}: {first_line(error)}") from None


def write_yaml(tree: object) -> str:
    """Text that `read_yaml` turns back into `tree`, keys in their order."""
    return yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def parse_override(override: str) -> dict[str, object]:
    """`"a.b=1"` as the tree `{"a": {"b": 1}}`."""
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise RecipeError(f"the override {override!r} is not of the form key=value or a.b.c=value")
    tree = read_yaml(text, f"the override {override!r}")
    for key in reversed(keys):
        tree = {key: tree}
    return cast("dict[str, object]", tree)


def merged(old: object, new: object, where: str = "") -> object:
    """`new` over `old`. Mappings merge unless the `name` of a part changes (at the root a `name` is
    a plain key). A bare name is `{name: it}`; a mapping over a list has indices for keys."""
    if is_list(old) and is_mapping(new):
        return merged_list(old, new, where)
    old = {"name": old} if isinstance(old, str) and is_mapping(new) else old
    new = {"name": new} if isinstance(new, str) and is_mapping(old) and "name" in old else new
    if not is_mapping(old) or not is_mapping(new):
        return new
    if where and "name" in new and new["name"] != old.get("name"):
        return new
    return old | {key: merged(old.get(key), new[key], joined(where, key)) for key in new}


def merged_list(old: list[object], new: dict[str, object], where: str) -> list[object]:
    for key in new:
        if not key.isdecimal() or int(key) >= len(old):
            place = joined(where, key)
            raise RecipeError(f"{place}: {where} is a list; give an index below {len(old)}")
    return [merged(item, new.get(str(i), item), joined(where, i)) for i, item in enumerate(old)]


def is_list(tree: object) -> TypeGuard[list[object]]:
    return isinstance(tree, list)


def is_mapping(tree: object) -> TypeGuard[dict[str, object]]:
    return isinstance(tree, dict)


def mapping_at(tree: object, where: str) -> dict[str, object]:
    if not is_mapping(tree):
        raise RecipeError(f"{where or 'recipe'}: should be a mapping of keys, not {tree!r}")
    return tree


def joined(where: str, key: str | int) -> str:
    return f"{where}.{key}" if where else str(key)


def first_difference(
    then: object, now: object, where: str = ""
) -> tuple[str, object, object] | None:
    """The first key, in the order of `now`, at which two trees differ, with both values."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*now, *then]):
            path = f"{where}.{key}" if where else str(key)
            found = first_difference(then.get(key, "nothing"), now.get(key, "nothing"), path)
            if found is not None:
                return found
        return None
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for index, pair in enumerate(zip(then, now, strict=True)):
            found = first_difference(*pair, f"{where}.{index}")
            if found is not None:
                return found
        return None
    return None if then == now else (where or "the recipe", then, now)
