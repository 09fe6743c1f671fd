"""The same 200 transcripts judged by `rewards.math` and by lm-eval 0.4.13's graders.

Half are made of GSM8K's worked answers and half of MATH-500's solutions, each changed in one of
ten ways that models do. lm-eval needs an environment of its own, whose Python is named:

    python scripts/parity/lm_eval_graders.py --benchmarks FOLDER --python OTHER/bin/python

Prints for every grader how often it agrees, and every disagreement under the rule it comes from.
Exits 1 when one comes from no rule that is known here, 0 where there is no lm-eval.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[2]
EACH = 100
VERSION = "0.4.13"
Scores = dict[str, bool]


@dataclass(frozen=True)
class Transcript:
    """A response, how it was made and what it answers."""

    source: str
    kind: str
    response: str
    gold: str
    reference: str
    """The dataset's own worked answer, from which lm-eval takes the gold one."""


@dataclass(frozen=True)
class Final:
    """How a kind of transcript ends, and whether a careful reader would call it right."""

    box: Callable[[str, str], str]
    """Of the right and a wrong answer."""
    line: Callable[[str, str], str]
    is_right: bool


def plain(right: str, wrong: str) -> str:
    return right


def other(right: str, wrong: str) -> str:
    return wrong


def none(right: str, wrong: str) -> str:
    return ""


def notation(right: str, wrong: str) -> str:
    if right.isdigit():
        return f"{int(right):,}" if len(right) > 3 else f"{right}.0"
    return right.replace(r"\frac", r"\dfrac").replace("(", r"\left(").replace(")", r"\right)")


def equal(right: str, wrong: str) -> str:
    return rf"\frac{{{2 * int(right)}}}{{2}}" if right.lstrip("-").isdigit() else rf"{right}\cdot 1"


KINDS: dict[str, Final] = {
    "right": Final(plain, plain, True),
    "wrong": Final(other, other, False),
    "other notation": Final(notation, notation, True),
    "equal value": Final(equal, equal, True),
    "with a unit": Final(lambda a, b: rf"{a}\text{{ units}}", lambda a, b: f"{a} units", True),
    "box only": Final(plain, none, True),
    "final line only": Final(none, plain, True),
    "named": Final(lambda a, b: f"x = {a}", lambda a, b: f"x = {a}", True),
    "corrected": Final(lambda a, b: rf"{b}}}. Wait, no: \boxed{{{a}", plain, True),
    "hedged": Final(lambda a, b: rf"{a} \text{{ or }} {b}", lambda a, b: f"{a} or {b}", False),
}

TEXTS = "it compares texts, ours values"
AFTER_MARK = "it reads only digits that follow '#### ' at once, ours the box"
SENTENCE = (
    "it reads only 'Final Answer: The final answer is ... I hope it is correct.', ours the box"
)
DOLLARS = "it reads from the first dollar sign to the last, ours the box"
RULES = {
    ("gsm8k strict-match", "other notation"): TEXTS,
    ("gsm8k strict-match", "equal value"): AFTER_MARK,
    ("gsm8k strict-match", "box only"): AFTER_MARK,
    ("gsm8k strict-match", "named"): AFTER_MARK,
    ("gsm8k strict-match", "hedged"): "it takes the first of two numbers, ours refuses both",
    ("gsm8k flexible-extract", "other notation"): TEXTS,
    ("gsm8k flexible-extract", "equal value"): "it takes the last number, here a denominator",
    ("minerva_math exact_match", "box only"): SENTENCE,
    ("minerva_math exact_match", "other notation"): r"it knows no \left( and subtracts no pairs",
    ("minerva_math math_verify", "hedged"): "it takes one of two formulas, ours refuses both",
    ("hendrycks_math exact_match", "other notation"): TEXTS,
    ("hendrycks_math exact_match", "equal value"): TEXTS,
    ("hendrycks_math exact_match", "with a unit"): TEXTS,
    ("hendrycks_math exact_match", "box only"): DOLLARS,
    ("hendrycks_math exact_match", "corrected"): DOLLARS,
}
"""Why a grader may disagree on a kind of transcript."""


def transcripts(folder: Path) -> list[Transcript]:
    """Every kind as often as any other, of rows drawn once and for all."""
    made: list[Transcript] = []
    for source, file in (("gsm8k", "gsm8k_test"), ("math", "math500")):
        lines = (folder / f"{file}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in Random(0).sample(lines, EACH + 1)]
        answers = [
            row["answer"].rpartition("####")[2].strip().replace(",", "")
            if source == "gsm8k"
            else row["answer"]
            for row in rows
        ]
        for index, row in enumerate(rows[:EACH]):
            kind = list(KINDS)[index % len(KINDS)]
            wrong = answers[index + 1] if answers[index + 1] != answers[index] else "12345"
            reference = row["answer"] if source == "gsm8k" else row["solution"]
            response = written(source, KINDS[kind], reference, answers[index], wrong)
            made.append(Transcript(source, kind, response, answers[index], reference))
    return made


def written(source: str, final: Final, reference: str, right: str, wrong: str) -> str:
    """The worked answer without its end, and the end that `final` asks for. Dollar signs stand
    round the last formula alone: hendrycks_math reads from the first to the last of them."""
    work = reference.rpartition("####")[0] if source == "gsm8k" else without_boxes(reference)
    work = work.replace("$", "")
    box, line = final.box(right, wrong), final.line(right, wrong)
    ends = [work.strip()]
    if box:
        ends.append(rf"So it is \boxed{{{box}}}.")
    if line and source == "gsm8k":
        ends.append(f"#### {line}")
    elif line:
        ends.append(f"Final Answer: The final answer is ${line}$. I hope it is correct.")
    return "\n".join(ends)


def without_boxes(text: str) -> str:
    return text.replace(r"\boxed", "").replace(r"\fbox", "")


def ours(made: Sequence[Transcript]) -> list[Scores]:
    sys.path.insert(0, str(ROOT))
    from rewards.math import grade

    return [
        {
            "boxed": grade(one.response, one.gold).success,
            "unboxed too": grade(one.response, one.gold, takes_unboxed=True).success,
        }
        for one in made
    ]


def theirs(made: Sequence[Mapping[str, str]]) -> list[Scores]:
    """Run under lm-eval's Python: its own task files, filters and metrics."""
    import yaml
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter
    from lm_eval.tasks.hendrycks_math import utils as hendrycks
    from lm_eval.tasks.minerva_math import utils as minerva

    task = yaml.safe_load((files("lm_eval.tasks") / "gsm8k" / "gsm8k.yaml").read_text())
    (metric,) = task["metric_list"]
    settings = {
        key: metric[key] for key in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")
    }

    def gsm8k(one: Mapping[str, str]) -> Scores:
        scores: Scores = {}
        for chain in task["filter_list"]:
            chosen = {k: v for k, v in chain["filter"][0].items() if k != "function"}
            ((first, *_),) = RegexFilter(**chosen).apply([[one["response"]]], [{}])
            score = exact_match_hf_evaluate([first], [one["reference"]], **settings)
            scores[f"gsm8k {chain['name']}"] = bool(score["exact_match"] == 1)
        return scores

    def math(one: Mapping[str, str]) -> Scores:
        boxed = minerva.remove_boxed(minerva.last_boxed_only_string(one["reference"]))
        answer = minerva.normalize_final_answer(boxed)
        found = minerva.process_results(
            {"solution": one["reference"], "answer": answer}, [one["response"]]
        )
        plain = hendrycks.process_results({"solution": one["reference"]}, [one["response"]])
        return {
            "minerva_math exact_match": found["exact_match"] == 1,
            "minerva_math math_verify": found["math_verify"] == 1,
            "hendrycks_math exact_match": plain["exact_match"] == 1,
        }

    return [gsm8k(one) if one["source"] == "gsm8k" else math(one) for one in made]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--benchmarks", type=Path, default=ROOT.parent / "shared" / "benchmarks")
    parser.add_argument("--python", default=sys.executable, help="the Python that has lm-eval")
    parser.add_argument("--judge", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.judge:
        print(json.dumps(theirs(json.load(sys.stdin))))
        return 0
    probe = "from importlib.metadata import version; print(version('lm_eval'))"
    found = subprocess.run([options.python, "-c", probe], capture_output=True, text=True)
    if found.stdout.strip() != VERSION:
        print(
            f"{options.python} has no lm-eval {VERSION}; install it in an environment of its own, "
            f"pip install 'lm-eval[math]=={VERSION}', and name that with --python"
        )
        return 0
    made = transcripts(options.benchmarks)
    judged = subprocess.run(
        [options.python, "-P", __file__, "--judge"],
        input=json.dumps([asdict(one) for one in made]),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    return report(made, ours(made), json.loads(judged.stdout.splitlines()[-1]))


def report(made: Sequence[Transcript], mine: Sequence[Scores], others: Sequence[Scores]) -> int:
    rows: list[tuple[Transcript, Scores]] = [
        (one, {**a, **b}) for one, a, b in zip(made, mine, others, strict=True)
    ]
    print_table(rows)
    unexplained = 0
    for grader in dict.fromkeys(name for score in others for name in score):
        differing: defaultdict[str, list[Transcript]] = defaultdict(list)
        judged = [(one, score) for one, score in rows if grader in score]
        for one, score in judged:
            if score[grader] != score["unboxed too"]:
                rule = RULES.get((grader, one.kind), "UNEXPLAINED")
                differing[rule].append(one)
        count = sum(map(len, differing.values()))
        print(f"\n{grader}: agrees on {len(judged) - count} of {len(judged)}")
        for rule, ones in differing.items():
            print(f"  {len(ones)} x {rule}")
            for one in ones:
                last = one.response.rpartition("\n")[2]
                print(f"      {one.kind}: gold {one.gold}: {last[:70]}")
        unexplained += len(differing["UNEXPLAINED"])
    right = sum(score["unboxed too"] == KINDS[one.kind].is_right for one, score in rows)
    print(f"\nours calls {right} of {len(rows)} what they were made to be")
    print(f"{unexplained} disagreements without a rule")
    return int(unexplained > 0)


def print_table(rows: Sequence[tuple[Transcript, Scores]]) -> None:
    """How many of each kind every grader calls right."""
    for source in ("gsm8k", "math"):
        here = [(one, score) for one, score in rows if one.source == source]
        names = list(here[0][1])
        print(f"\n{source}, called right of {EACH // len(KINDS)} each: {', '.join(names)}")
        for kind, final in KINDS.items():
            counts = Counter[str]()
            for one, score in here:
                counts.update(name for name in names if one.kind == kind and score[name])
            cells = " ".join(f"{counts[name]:>3}" for name in names)
            print(f"  {kind:<16} ({'right' if final.is_right else 'wrong'}) {cells}")


if __name__ == "__main__":
    sys.exit(main())
