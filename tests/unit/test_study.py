"""The study: runs are planned at one budget, read from their own files, judged by tests alone."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from opd.errors import DataError, RecipeError

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
PROBLEMS = 40
STUDY = """
output: {folder}/runs
page: {folder}/page
base: reward
budget: {{unit: generated_tokens, amount: 9000}}
seeds: [0, 1]
levels: [0.5, 0.9]
claims: {folder}/claims.yaml
rows:
  reward: {{recipe: grpo}}
  distilled: {{recipe: opsd, settings: [optimizer.learning_rate=1e-3]}}
  theirs: {{recipe: trl_sft}}
"""
CLAIMS = """
- claim: A
  arxiv: "1"
  rows: &both [distilled, reward]
  metric: held_out
  direction: higher
  effect: .02
- {claim: B, arxiv: "2", rows: *both, metric: held_out, direction: lower, effect: .02}
- claim: C
  arxiv: "3"
  rows: [distilled, reward]
  metric: spent
  direction: lower
  effect: 1.5
  level: .5
- {claim: D, arxiv: "4", rows: *both, metric: untouched, direction: higher, effect: .1}
- {claim: E, arxiv: "5", rows: [theirs, reward], metric: held_out, direction: lower, effect: .02}
- {claim: F, arxiv: "6", rows: [distilled, reward], metric: length, direction: higher, effect: 1}
- claim: G
  arxiv: "7"
  rows: *both
  metric: spent
  unit: seconds
  direction: lower
  effect: 1.5
  level: .5
- {claim: H, arxiv: "8", rows: [distilled, elsewhere], metric: length, direction: lower, effect: 1}
"""


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of scripts/study."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return lambda name: import_module(f"study.{name}")


@pytest.fixture
def opened(study: Any, tmp_path: Path) -> Any:
    (tmp_path / "claims.yaml").write_text(CLAIMS)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(folder=tmp_path))
    return study("plan").open_study(path)


def leave_run(run: Any, accuracies: Sequence[float], tokens: Sequence[int]) -> None:
    """What a finished run leaves: per evaluation an accuracy, and tokens generated before it."""
    run.folder.mkdir(parents=True)
    random = Random(f"{run.row} {run.seed}")
    rows: list[dict[str, Any]] = [{"kind": "warning", "step": 0, "text": "a sign of harm"}]
    for step, (accuracy, spent) in enumerate(zip(accuracies, tokens, strict=True)):
        taken = {"step": step, "generated_tokens": spent, "learner_tokens": spent}
        if step:
            rows.append({"kind": "update", **taken, "seconds": 20.0 * step - 5, "metrics": {}})
        for name, share in (("held_out", accuracy), ("untouched", 1.0)):
            passed = [(sum(random.random() < share for _ in range(4)), 4) for _ in range(PROBLEMS)]
            rows.append(
                {
                    "kind": "evaluation",
                    **taken,
                    "seconds": 20.0 * step,
                    "benchmark": name,
                    "sampled": sum(count for count, _ in passed) / (4 * PROBLEMS),
                    "ci95": [share - 0.1, share],
                    "greedy": share,
                    "mean_length": 30.0,
                    "truncated": 0.0,
                    "entropy": 0.5,
                    "by_problem": passed,
                }
            )
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"seconds": 20.0 * len(accuracies), "versions": {"opd": "1"}}
    (run.folder / "summary.json").write_text(json.dumps(summary))


def leave_both(study: Any, opened: Any) -> dict[str, list[Any]]:
    plan, found = study("plan"), study("found")
    tokens = [0, 3000, 6000, 9200, 12000]
    curves = {"reward": [0.2, 0.25, 0.3, 0.7, 0.9], "distilled": [0.2, 0.6, 0.9, 0.95, 0.95]}
    findings: dict[str, list[Any]] = {}
    for run in plan.runs(opened, {}):
        if run.row in curves:
            leave_run(run, curves[run.row], tokens)
            findings.setdefault(run.row, []).append(found.read_run(run))
    return findings


def test_runs_are_planned_at_one_budget(study: Any, opened: Any) -> None:
    runs = list(study("plan").runs(opened, {}))
    assert [(run.row, run.seed) for run in runs[:4]] == [
        *(("reward", 0), ("distilled", 0), ("theirs", 0)),
        ("reward", 1),
    ]
    reward, distilled, theirs = runs[:3]
    # 9,000 tokens are 300 responses: 128 a step, and 32 a step.
    assert (reward.tree["steps"], distilled.tree["steps"], theirs.tree["steps"]) == (2, 9, 9)
    assert reward.tree["evaluation"]["every"] == 4 and distilled.tree["evaluation"]["every"] == 15
    assert (
        distilled.command[1:5] == ("-m", "opd", "train", "opsd") and "seed=0" in distilled.command
    )
    assert theirs.command[1].endswith("baselines/trl_sft.py")
    assert theirs.tree["trainer"] == "trl_sft" and "trainer" not in distilled.tree
    fixed = replace(opened, settings=("steps=7",))
    assert study("plan").planned(fixed, "reward", 0).tree["steps"] == 7
    with pytest.raises(RecipeError, match="no row of this study"):
        replace(opened, base="other")


def test_a_run_is_read_at_its_budget(study: Any, opened: Any) -> None:
    (reward, _), (distilled, _) = leave_both(study, opened).values()
    budget = opened.budget
    # 9,200 is within 5 % of 9,000; 12,000 is not.
    assert reward.at(budget).step == distilled.at(budget, "untouched").step == 3
    assert reward.at(replace(budget, amount=6000)).step == 2
    assert reward.at(replace(budget, unit="seconds", amount=31)).step == 2
    # A step of 20 s holds 5 s of evaluation.
    assert [point.seconds for point in reward.curves["held_out"]] == [0, 15, 30, 45, 60]
    assert distilled.spent_to(0.5) == 3000 and math.isinf(distilled.spent_to(0.99))
    assert reward.spent_to(0.7) == 9200 and reward.spent_to(0.7, "seconds") == 45


def test_crossed_intervals_hold_both_seeds_and_problems(study: Any) -> None:
    crossed, by_seed = study("paired").crossed, study("paired").by_seed
    # By hand: S = 2, P = 2, differences [[.1, .3], [.2, .6]], mean .3; seeds .2 and .4, problems
    # .15 and .45: MSs = 2 (.01 + .01) / 1 = .04, MSp = 2 (.0225 + .0225) / 1 = .09, residuals
    # .05 each: MSe = .01. Variance (.04 + .09 - .01) / 4 = .03.
    found = crossed([[0.1, 0.3], [0.2, 0.6]], [[0.0, 0.0], [0.0, 0.0]])
    assert found.value == pytest.approx(0.3)
    freedom = 0.12**2 / (0.04**2 + 0.09**2 + 0.01**2)
    assert found.freedom == pytest.approx(freedom)
    assert found.high - found.value == pytest.approx(study("paired").quantile(freedom) * 0.03**0.5)
    # One seed: Student's t over problems. 2.776445 is its 97.5 % quantile at 4 degrees of freedom.
    alone = crossed([[0.1, 0.2, 0.3, 0.4, 0.5, math.nan]], [[0.0] * 6])
    error = math.sqrt(0.025 / 5)
    assert alone.high - alone.value == pytest.approx(2.776445 * error, rel=1e-6)
    assert by_seed([0.1, 0.2, 0.3, 0.4, 0.5]).high == pytest.approx(alone.high)
    # Bounds that agree on the side: the wider ones' ends, the higher chance.
    lows, values, highs = [-3.0, -3.2], [-2.0, -2.1], [-1.0, -1.1]
    found = study("paired").bounded(lows, values, highs)
    assert found.low == by_seed(lows).low and found.high == by_seed(highs).high
    assert found.value == pytest.approx(-2.05) and found.p == by_seed(highs).p > by_seed(values).p
    assert study("paired").bounded(lows, values, [1.0, 1.1]).p == 1.0
    assert study("paired").bounded([-math.inf] * 2, values, highs).low == -math.inf
    # t = 2 at 10 degrees of freedom: p = .07338803.
    assert study("paired").two_sided(2.0, 10) == pytest.approx(0.07338803, abs=1e-8)
    assert math.isinf(by_seed([0.3]).high) and by_seed([0.0, 0.0]).p == 1.0


def test_a_difference_of_nothing_is_found_as_often_as_it_should(study: Any) -> None:
    """Seeds and problems that differ by themselves, and no effect: about 5 % of tests find one."""
    random = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        effects = random.normal(0, 0.1, (4, 1)) + random.normal(0, 0.2, (1, 30))
        table = effects + random.normal(0, 0.2, (4, 30))
        found += study("paired").crossed(table, np.zeros((4, 30))).p < 0.05
    assert found <= 20


def test_claims_are_decided_by_intervals_alone(study: Any, opened: Any, tmp_path: Path) -> None:
    claims = study("claims")
    findings = leave_both(study, opened)
    verdicts = [
        claims.judged(claim, findings, opened.budget)
        for claim in claims.read_claims(tmp_path / "claims.yaml")
    ]
    untestable = "not testable at this size"
    decisions = [verdict.decision for verdict in verdicts]
    decided = ["seen", "not seen", "seen", untestable, untestable, "not seen", "seen", untestable]
    assert decisions == decided
    reasons = [verdict.reason for verdict in verdicts]
    assert "the opposite" in reasons[1] and "no room" in reasons[3] and "theirs" in reasons[4]
    # Both seeds reach 50 % after 3,000 and after 9,200 tokens: a ratio without spread.
    assert verdicts[2].difference.value == pytest.approx(3000 / 9200)
    # Somewhere between 0 and 3,000, and between 6,000 and 9,200.
    assert verdicts[2].difference.low == 0.0
    assert verdicts[2].difference.high == pytest.approx(3000 / 6000)
    assert verdicts[6].difference.value == pytest.approx(15 / 45)
    # Early, while both know as little; and where 30 seconds have been spent.
    start = replace(verdicts[0].claim, amount=2000.0)
    assert claims.judged(start, findings, opened.budget).difference.value == pytest.approx(
        0, abs=0.1
    )
    pairs = claims.paired_runs(findings["distilled"], findings["reward"])
    assert claims.read_at(start, pairs, opened.budget).amount == 2000
    timed = replace(verdicts[0].claim, unit="seconds")
    assert claims.read_at(timed, pairs, opened.budget).amount == 60
    assert claims.read_at(verdicts[0].claim, pairs, opened.budget) is opened.budget
    # Evaluations that lie too far apart tell no effect from none.
    same = {"distilled": findings["distilled"], "reward": findings["distilled"]}
    close = claims.judged(verdicts[2].claim, same, opened.budget)
    assert close.decision == untestable and close.difference.p == 1.0
    # A claim on a row of another study is that study's.
    pages = study("page").verdicts(opened, findings)
    assert [verdict.claim.claim for verdict in pages] == ["A", "B", "C", "D", "E", "F", "G"]
    alone = {row: found[:1] for row, found in findings.items()}
    assert claims.judged(verdicts[0].claim, alone, opened.budget).decision == untestable
    wide = study("paired").Difference(0.01, -0.03, 0.05, 0.5, 3)
    assert claims.decided(verdicts[0].claim, wide, 0.02, "").decision == untestable
    narrow = replace(wide, low=-0.005, high=0.015)
    assert claims.decided(verdicts[0].claim, narrow, 0.02, "").decision == "not seen"


def test_one_page_tells_what_was_found(study: Any, opened: Any, tmp_path: Path) -> None:
    leave_both(study, opened)
    log = study("execute").log_of(study("plan").planned(opened, "theirs", 0))
    log.write_text("first\nno such trainer\n")
    path = study("page").write_page(opened, {}, Path("s.yaml"))
    text = path.read_text()
    table = [line for line in text.splitlines() if line.startswith("| `")]
    assert [re.match(r"\| `(\w+)`", line)[1] for line in table[:2]] == ["distilled", "reward"]  # type: ignore[index]
    assert "theirs-seed0: no such trainer" in text and "not run: theirs (1)" in text
    assert "| `distilled` | 3k, 3.1x |" in text and "| `reward` | 9k |" in text
    assert "`reward`: seconds to 50 % |" in text
    assert text.count("**seen**") == 3 and "{{" not in text
    html = (tmp_path / "page" / "study.html").read_text()
    assert html.count("<svg") >= 4 and "http-equiv" in html and "<script" not in html
    for figure in ("accuracy", "curves"):
        assert f"({figure}.png)" in text and (tmp_path / "page" / f"{figure}.svg").exists()
    assert "not be run" not in html and "&lt;" not in html


def test_figures_become_pictures(study: Any, tmp_path: Path) -> None:
    """By a real browser: twice as wide, of the figure's own shape and colour."""
    figure = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1040 52">{}</svg>'
    panel = '<svg><rect width="1040" height="52" fill="red"/></svg>'
    (tmp_path / "red.svg").write_text(figure.format(panel))
    try:
        (picture,) = study("picture").draw_pictures(tmp_path)
    except DataError as error:
        pytest.skip(str(error))
    assert [path.name for path in tmp_path.iterdir()] == ["red.png"]
    image = Image.open(picture)
    assert image.size == (2080, 104) and image.getpixel((1000, 50)) == (255, 0, 0)


def test_pictures_need_a_browser(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="need Chromium"):
        study("picture").draw_pictures(tmp_path)


def test_a_page_needs_its_base_and_a_run_its_settings(study: Any, opened: Any) -> None:
    with pytest.raises(DataError, match="no run of the base"):
        study("page").write_page(opened, {}, Path("s.yaml"))
    leave_both(study, opened)
    run = study("plan").planned(opened, "distilled", 0)
    stored = {key: value for key, value in run.tree.items() if key != "updates_per_step"}
    (run.folder / "recipe.yaml").write_text(json.dumps(stored))
    study("execute").start(run)  # written before there was such a key: it had its default
    (run.folder / "recipe.yaml").write_text(json.dumps({**stored, "steps": 8}))
    with pytest.raises(RecipeError, match="steps=8, and the study has steps=9"):
        study("execute").start(run)


def test_the_best_trial_gives_the_learning_rate(study: Any, opened: Any) -> None:
    rows = dict(opened.rows)
    rows["reward"] = replace(rows["reward"], learning_rates=("1e-4", "1e-3"))
    tuned = replace(opened, rows=rows)
    for trial, top in zip(study("plan").trials(tuned, "reward"), (0.4, 0.8), strict=True):
        assert trial.folder.name == f"reward-lr{trial.learning_rate}-seed0"
        leave_run(trial, [0.2, top, 0.3], [0, 1000, 2000])
    rates = study("execute").chosen_rates(tuned)
    assert rates == {"reward": "1e-3"}
    first = next(iter(study("plan").runs(tuned, rates)))
    assert first.tree["optimizer"]["learning_rate"] == {"name": "Constant", "value": 1e-3}


def test_every_shipped_study_can_be_planned(study: Any) -> None:
    plan, claims = study("plan"), study("claims")
    shipped = [path for path in (SCRIPTS / "study").glob("*.yaml") if path.stem != "claims"]
    pairs: set[tuple[str, str]] = set()
    for path in shipped:
        opened = plan.open_study(path)
        assert list(plan.runs(opened, {}))
        pairs |= {(a, b) for a in opened.rows for b in opened.rows}
    # A claim of which no study has both rows would never be judged.
    known = claims.read_claims(SCRIPTS / "study" / "claims.yaml")
    assert len(shipped) >= 4 and [claim.rows for claim in known if claim.rows not in pairs] == []


def test_a_study_runs_what_is_missing_and_goes_on(study: Any, opened: Any, tmp_path: Path) -> None:
    """One short real run, and one that fails."""
    made = {"{output}/made": "show opsd seed=3", "{output}/known": "no such command"}
    small = ("steps=1", "problems_per_step=2", "evaluation.samples=1", "evaluation.every=0")
    few = ("benchmarks.held_out.limit=2", "benchmarks.untouched.limit=2")
    rows = {
        "distilled": replace(opened.rows["distilled"], settings=(*small, *few), made=made),
        "lost": replace(opened.rows["distilled"], settings=(*small, "problems.dataset=none.jsonl")),
    }
    short = replace(opened, rows=rows, base="distilled", seeds=(0,), claims=None)
    (Path(short.output) / "known").mkdir(parents=True)
    study("execute").execute(short)
    done, lost = study("plan").runs(short, {})
    assert study("found").is_finished(done) and not study("found").is_finished(lost)
    assert "there is no such file" in study("execute").fault(lost)
    # What a row stands on is made before it, unless it is there.
    assert "resolved recipe" in study("execute").log_of(done).read_text()
    costs = study("found").costs(done.folder.parent)
    assert costs.keys() == {"made", done.folder.name, lost.folder.name}
    assert all(row["core_seconds"] > 0 and row["commit"] for row in costs.values())
    before = (done.folder / "metrics.jsonl").read_bytes()
    study("execute").start(done)
    assert (done.folder / "metrics.jsonl").read_bytes() == before
    assert study("found").read_run(done).curves["held_out"][-1].step == 1
    text = study("page").write_page(short, {}, tmp_path / "s.yaml").read_text()
    assert f"commit {costs[done.folder.name]['commit']}" in text
    assert f"`made` {costs['made']['core_seconds']:.0f}." in text
