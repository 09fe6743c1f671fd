"""The command line: verbs, exit codes, and errors in one sentence."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from opd.errors import DataError, OpdError

if TYPE_CHECKING:
    from opd.recipe import Recipe

OVERRIDES = "changes to the recipe, such as steps=20 or teacher.weights=EMA"

DATASET_KEYS = "other keys of a recipe's dataset, such as split=test or where.domain=math"
AGAINST = "evaluation sets, which should share no question with it"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code says which side was at fault (see opd.errors)."""
    options = parsed(arguments)
    reach_own_parts()
    quieten()
    try:
        return options.run(options)
    except OpdError as error:
        print(f"opd: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "opd: interrupted; the same command goes on from the last checkpoint", file=sys.stderr
        )
        return 130


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, whose overrides may also stand after options."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    strays = [word for word in rest if word.startswith("-") or "=" not in word]
    if rest and (strays or not hasattr(options, "overrides")):
        top.error(f"unrecognized arguments: {' '.join(strays or rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def parser() -> argparse.ArgumentParser:
    """The verbs. Nothing here imports torch, so that help is instant."""
    top = argparse.ArgumentParser(
        prog="opd", description="A language model teaches itself on its own answers."
    )
    verbs = top.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, run: Callable[[argparse.Namespace], int], text: str):
        command = verbs.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    def with_recipe(command: argparse.ArgumentParser, nargs: str | None = None) -> None:
        command.add_argument("recipe", nargs=nargs, help="a file, or a name from `opd show`")
        command.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)

    with_recipe(verb("train", run_train, "run a recipe, or take its run up again"))
    measure = verb("eval", run_eval, "measure a model on benchmarks, or beside another model")
    measure.add_argument(
        "model",
        help="a folder (model, adapter or run), a hub id, http://host:port/v1#name, or a recipe",
    )
    measure.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    measure.add_argument("--against", metavar="MODEL", help="a second model, on the same samples")
    measure.add_argument(
        "--suite", help="a file, or a name: of a suite (benchmarks, unless told) or a recipe"
    )
    measure.add_argument("--files", type=Path, help="a folder with the benchmarks' files")
    measure.add_argument("--to", type=Path, help="the evaluation's folder; it is gone on with")
    sample = verb("sample", run_sample, "draw and judge rollouts, written to a file")
    with_recipe(sample)
    sample.add_argument("--to", type=Path, required=True, help="a new .jsonl file")
    sample.add_argument("--problems", type=int, default=16, help="how many problems")
    score = verb("score", run_score, "score stored rollouts with a recipe's teacher")
    with_recipe(score)
    score.add_argument("--rollouts", type=Path, required=True, help="what `opd sample` wrote")
    score.add_argument("--to", type=Path, required=True, help="a new folder; it is gone on with")
    score.add_argument(
        "--form",
        choices=["token", "top", "hidden"],
        default="token",
        help="what is kept: the taken token's log-prob and the entropy, the highest entries too, "
        "or hidden states, from which whole rows are rebuilt",
    )
    score.add_argument("--size", type=int, default=64, help="how many highest entries")
    with_recipe(
        verb("show", run_show, "list recipes, or one resolved with both prompts of a problem"), "?"
    )
    report = verb("report", run_report, "one HTML page from a run's own files")
    report.add_argument("folder", type=Path, help="the run's folder")
    data = verb("data", run_data_check, "what may be wrong with a dataset")
    check = data.add_subparsers(required=True, metavar="VERB").add_parser(
        "check", help="rows, lengths, answers, repeats, and overlap with evaluation sets"
    )
    check.add_argument("dataset", help="a file of rows, or the name of a hub dataset")
    check.add_argument("overrides", nargs="*", metavar="key=value", help=DATASET_KEYS)
    check.add_argument("--adapter", help="module:function, or {name: module:Class, key: value}")
    check.add_argument("--reward", help="a reward that must be able to use every answer")
    check.add_argument("--model", help="whose tokens lengths are counted in")
    check.add_argument("--against", nargs="+", default=[], metavar="[ADAPTER=]FILE", help=AGAINST)
    check.add_argument("--words", type=int, default=13, help="in a row that make an overlap")
    doctor = verb("doctor", run_doctor, "what this machine can do")
    doctor.add_argument("model", nargs="?", help="a model folder or hub id to check")
    return top


def reach_own_parts() -> None:
    """Let a recipe name classes of modules in the working directory."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def quieten() -> None:
    """Keep the libraries' own progress bars and advice off the screen."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("transformers").setLevel(logging.ERROR)


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The recipe that the command line asks for."""
    from transformers.utils.logging import disable_progress_bar

    from opd.config import build, load_recipe
    from opd.recipe import Recipe

    disable_progress_bar()

    return build(Recipe, load_recipe(options.recipe, options.overrides))


def run_train(options: argparse.Namespace) -> int:
    from opd.loop import train

    train(recipe_of(options))
    return 0


def run_eval(options: argparse.Namespace) -> int:
    from transformers.utils.logging import disable_progress_bar

    from opd.evaluate import measure

    disable_progress_bar()
    measure(
        options.model,
        options.against,
        suite=options.suite,
        overrides=options.overrides,
        files=options.files,
        to=options.to,
    )
    return 0


def run_sample(options: argparse.Namespace) -> int:
    from opd.stored import sample

    written = sample(recipe_of(options), options.problems, options.to)
    print(f"{written} judged rollouts in {options.to}")
    return 0


def run_score(options: argparse.Namespace) -> int:
    from opd.stored import score
    from opd.teacher.recording import Recording

    recipe = recipe_of(options)
    written = score(recipe, options.rollouts, options.to, options.form, options.size)
    print(f"{written} scored rollouts in {options.to}")
    for view, weights in Recording.open(options.to).heading.teachers.items():
        print(f"{view}: scored by {weights}")
    return 0


def run_show(options: argparse.Namespace) -> int:
    from rich.console import Console

    from opd.show import list_recipes, show

    if options.recipe is None:
        list_recipes(Console())
    else:
        show(recipe_of(options), Console())
    return 0


def run_report(options: argparse.Namespace) -> int:
    from opd.report import write_report

    print(f"report: {write_report(options.folder)}")
    return 0


def run_data_check(options: argparse.Namespace) -> int:
    from rich.console import Console

    from opd.audit import check_data

    could_begin = check_data(
        Console(),
        options.dataset,
        adapter=options.adapter,
        overrides=options.overrides,
        reward=options.reward,
        model=options.model,
        against=options.against,
        words=options.words,
    )
    return 0 if could_begin else DataError.exit_code


def run_doctor(options: argparse.Namespace) -> int:
    from opd.doctor import doctor

    return doctor(options.model)
