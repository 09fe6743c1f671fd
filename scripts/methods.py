"""How much of a method is recipe, how much Python of its own.

Lines hold something other than blanks and comments. A part counts for the recipes that name it when
nothing else does; the last line divides all that stands on the axes, helpers and docstrings
included, by the number of recipes.

    python scripts/methods.py
"""

from __future__ import annotations

import importlib
import inspect
import io
import tokenize
from collections import defaultdict
from pathlib import Path
from types import ModuleType

from opd.config import RECIPES, ROOT, build, load_recipe
from opd.parts import parts
from opd.recipe import Recipe

SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def python_lines(source: str) -> int:
    """Lines of `source` on which some token stands that is not a comment; docstrings count."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT and token.type != tokenize.ENDMARKER:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines)


def recipe_lines(path: Path) -> int:
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return sum(1 for line in lines if line and not line.startswith("#"))


def axes(classes: set[type]) -> set[ModuleType]:
    """The modules of the package that the parts of all recipes stand in."""
    modules = {importlib.import_module(cls.__module__) for cls in classes}
    return {module for module in modules if module.__name__.startswith("opd.")}


def main() -> None:
    paths = sorted(RECIPES.glob("*.yaml"))
    named: dict[type, set[str]] = defaultdict(set)
    for path in paths:
        for _, part in parts(build(Recipe, load_recipe(str(path)))):
            named[type(part)].add(path.stem)
    print(f"{'recipe':24}{'recipe lines':>13}{'part lines':>12}  parts that no other recipe names")
    for path in paths:
        own = sorted((cls for cls, users in named.items() if users == {path.stem}), key=str)
        own_lines = sum(python_lines(inspect.getsource(cls)) for cls in own)
        names = ", ".join(cls.__name__ for cls in own)
        print(f"{path.stem:24}{recipe_lines(path):13}{own_lines:12}  {names}".rstrip())
    everything = sum(python_lines(inspect.getsource(cls)) for cls in named)
    files = sorted(Path(inspect.getfile(module)) for module in axes(set(named)))
    whole = sum(python_lines(file.read_text(encoding="utf-8")) for file in files)
    print(f"{len(paths)} recipes, {sum(map(recipe_lines, paths)) / len(paths):.1f} lines each")
    print(
        f"{len(named)} parts that they name: {everything} lines, {everything / len(paths):.1f} each"
    )
    listed = ", ".join(str(file.relative_to(ROOT)) for file in files)
    print(f"all of {listed}: {whole} lines, {whole / len(paths):.1f} a recipe")


if __name__ == "__main__":
    main()
