"""The report: all that a run wrote is on the page, nothing on it acts, and bad files are named."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from opd.errors import DataError
from opd.report import Sample, level, spread, write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = '<script>alert(1)</script><img src="http://127.0.0.1:9/x" onerror="alert(2)">&amp;\'"'
STEPS = 150

RECIPE = """\
model:
  path: data/tiny/model
  dtype: float32
steps: 150
teacher:
  weights:
    name: Frozen
  views:
    reference:
      name: Solution
terms:
  distill:
    loss:
      name: Distill
      target: reference
      divergence: {name: JSD, teacher_weight: 0.5}
seed: 0
output: runs/quickstart
"""


def update_row(step: int, draw: random.Random) -> dict[str, object]:
    """One optimizer step of a run that learns and then settles."""
    done = 1 - math.exp(-step / 40)
    return {
        "kind": "update",
        "step": step,
        "seconds": 3 + 0.3 * step,
        "generated_tokens": 1100 * step,
        "metrics": {
            "loss/distill": 0.31 * (1 - done) + 0.012 + draw.gauss(0, 0.012) * (1.1 - done),
            "entropy": 0.46 * (1 - done) + 0.08 + draw.gauss(0, 0.01),
            "teacher_entropy/reference": 0.05 + draw.gauss(0, 0.006),
            "response_tokens": 31 + 4 * done + draw.gauss(0, 0.8),
            "success": min(1.0, max(0.0, 0.27 + 0.64 * done + draw.gauss(0, 0.05))),
            "no_answer": max(0.0, 0.1 * (1 - done) + draw.gauss(0, 0.015)),
            "truncated": max(0.0, 0.05 * (1 - done) + draw.gauss(0, 0.01)),
            "no_verdict": 0.0,
            "mismatch/mean": abs(draw.gauss(2e-6, 4e-7)),
            "mismatch/max": abs(draw.gauss(1.1e-5, 3e-6)),
            "grad_norm": 1.4 * (1 - done) + 0.2 + abs(draw.gauss(0, 0.1)),
            "learning_rate": 3e-4 * min(1.0, step / 10),
            "teacher_gap/reference": 0.42 * (1 - done) + 0.02 + draw.gauss(0, 0.02),
            "generated_tokens_per_second": 5200 + draw.gauss(0, 240),
            "learner_tokens_per_second": 9100 + draw.gauss(0, 300),
            "clipped/distill": 0.02 * (1 - done),
        },
    }


def evaluation_row(step: int, benchmark: str, sampled: float, greedy: float) -> dict[str, object]:
    def around(value: float, reach: float) -> list[float]:
        return [max(0.0, value - reach), min(1.0, value + reach)]

    return {
        "kind": "evaluation",
        "step": step,
        "seconds": 3 + 0.3 * step,
        "generated_tokens": 1100 * step,
        "benchmark": benchmark,
        "problems": 200,
        "samples": 8,
        "sampled": sampled,
        "ci95": around(sampled, 0.035),
        "greedy": greedy,
        "greedy_ci95": around(greedy, 0.05),
        "mean_length": 33.0,
        "truncated": 0.01,
        "no_answer": 0.02,
        "no_verdict": 0.0,
        "entropy": 0.5,
        "signs": {"pass@1": sampled, "pass@8": 0.9, "response_tokens/p90": 41.0, "distinct_3": 0.8},
    }


def rollout_row(step: int, number: int, draw: random.Random) -> dict[str, object]:
    """A response in characters, on which teachers and student differ less as training goes on."""
    text = f"k=17;f=3;b=5;17+3=20;20-5=15;#{15 if step > 40 else 14}"
    tokens = [*text, "<|im_end|>"]
    wide = 2.4 * math.exp(-step / 60)
    student = [-abs(draw.gauss(0, 0.5)) for _ in tokens]
    return {
        "step": step,
        "prompt_id": f"facts/{step}-{number}",
        "question": "k+f-b",
        "text": text,
        "finish": "stop",
        "status": "pass" if step > 40 else ("fail", "no_answer")[number],
        "reward": float(step > 40),
        "tokens": tokens,
        "student_logprob": student,
        "teacher_logprob": {
            "reference": [min(-1e-4, s + draw.gauss(0, 1) ** 3 * wide) for s in student],
            "answer": [min(-1e-4, s + draw.gauss(0, 0.5) * wide) for s in student],
        },
        "teacher_entropy": {"reference": [0.1] * len(tokens), "answer": [0.1] * len(tokens)},
        "views": {
            "reference": "<|im_start|>user\nk+f-b\nReference: b5f3k17<|im_end|>\n",
            "answer": "<|im_start|>user\nk+f-b\nAnswer: 15<|im_end|>\n",
        },
    }


def accuracy(before: float, after: float, greedy: tuple[float, float]) -> dict[str, object]:
    return {
        "before": before,
        "after": after,
        "ci95_before": [before - 0.035, min(1.0, before + 0.035)],
        "ci95_after": [after - 0.02, min(1.0, after + 0.02)],
        "greedy_before": greedy[0],
        "greedy_after": greedy[1],
        "greedy_ci95_before": [greedy[0] - 0.06, min(1.0, greedy[0] + 0.06)],
        "greedy_ci95_after": [greedy[1] - 0.02, min(1.0, greedy[1] + 0.02)],
        "problems": 200,
        "samples": 8,
    }


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(folder: Path) -> Path:
    """A run folder such as a 150-step run leaves, with one hostile rollout."""
    draw = random.Random(0)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    metrics: list[dict[str, object]] = []
    for step in range(STEPS + 1):
        if step:
            metrics.append(update_row(step, draw))
        if step % 25 == 0:
            done = 1 - math.exp(-step / 40)
            metrics.append(evaluation_row(step, "held_out", 0.28 + 0.63 * done, 0.27 + 0.72 * done))
            metrics.append(evaluation_row(step, "untouched", 0.988 - 0.004 * done, 0.99))
    write_lines(folder / "metrics.jsonl", metrics)
    rollouts = [rollout_row(s, n, draw) for s in [*range(0, STEPS, 25), 149] for n in range(2)]
    hostile: dict[str, object] = {
        **rollout_row(50, 0, draw),
        "prompt_id": HOSTILE,
        "question": HOSTILE,
        "status": "no_verdict",
        "tokens": [HOSTILE, "a\nb", "\u202e", "</script>"],
        "student_logprob": [-1.0, None, -0.5, -0.5],
        "teacher_logprob": {HOSTILE: [-1.0, -1.0, None, -9.0]},
        "views": {HOSTILE: HOSTILE},
    }
    write_lines(folder / "rollouts.jsonl", [*rollouts, hostile])
    summary = {
        "name": folder.name,
        "held_out": accuracy(0.283, 0.904, (0.27, 0.98)),
        "untouched": accuracy(0.988, 0.984, (0.99, 0.985)),
        "generated_tokens": 164_301,
        "learner_tokens": 164_301,
        "seconds": 58.7,
        "steps": STEPS,
        "seed": 0,
        "versions": {"opd": "0.1.0", "torch": "2.13.0", "transformers": "5.19.0"},
        "verdicts": {"sandbox": "UNSANDBOXED"},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "quickstart")


def test_the_page_is_whole_and_asks_for_nothing(run: Path) -> None:
    page = write_report(run)
    assert page == run / "report.html"
    text = page.read_text()
    assert not re.search(r"(src|href)=(?!\"data:,\")", re.sub(r"&lt;.*?&gt;", "", text))
    assert "default-src 'none'" in text and "unsafe-inline" not in text
    assert not re.search(r"\sstyle=|\son\w+=\"", re.sub(r"&lt;.*?&gt;", "", text))
    for shown in ("+62.1 points", "28.3", "90.4", "164,301", "Reference: b5f3k17", "torch 2.13.0"):
        assert shown in text, shown
    assert "verdicts: sandbox UNSANDBOXED" in text
    assert text.count('class="chart"') == 19
    for title in (
        "Some of k passes, held out",
        "Response ends, untouched",
        "Sampled entropy, held out",
    ):
        assert title in text, title
    assert len(text) < 2_000_000


def test_hostile_text_is_inert(run: Path) -> None:
    text = write_report(run).read_text()
    assert text.count("<script>") == 1 and "<img" not in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4


def test_a_run_that_is_not_over_is_reported_as_far_as_it_got(run: Path) -> None:
    (run / "summary.json").unlink()
    (run / "rollouts.jsonl").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:40]) + '{"kind": "upd')
    text = write_report(run).read_text()
    assert "not over yet" in text and "step 36" in text and "Rollouts <span>" not in text


def broken(
    name: str, line: int, change: Callable[[dict[str, object]], object]
) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        lines = (run / name).read_text().splitlines()
        row = json.loads(lines[line - 1])
        change(row)
        lines[line - 1] = json.dumps(row)
        (run / name).write_text("\n".join(lines) + "\n")

    return damage


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (lambda run: (run / "metrics.jsonl").unlink(), r"quickstart: holds no metrics\.jsonl"),
    (lambda run: (run / "recipe.yaml").unlink(), r"recipe\.yaml: cannot be read"),
    (lambda run: (run / "summary.json").write_text("{"), r"summary\.json: is no JSON"),
    (lambda run: (run / "summary.json").write_text("[]"), r"summary\.json: is no JSON object"),
    (
        lambda run: (run / "summary.json").write_text("{}"),
        r"summary\.json: generated_tokens: Field",
    ),
    (lambda run: (run / "metrics.jsonl").write_text("x\n"), r"metrics\.jsonl, line 1: is no JSON"),
    (
        broken("metrics.jsonl", 3, lambda row: row.update(kind="other")),
        r"metrics\.jsonl, line 3: its `kind` is neither",
    ),
    (
        broken("metrics.jsonl", 3, lambda row: row.update(metrics={"loss/a": "high"})),
        r"metrics\.jsonl, line 3: metrics\.loss/a: Input should be a valid number",
    ),
    (
        broken("metrics.jsonl", 1, lambda row: row.pop("ci95")),
        r"metrics\.jsonl, line 1: ci95: Field required",
    ),
    (
        broken("rollouts.jsonl", 2, lambda row: row.update(student_logprob=[-1.0])),
        r"rollouts\.jsonl, line 2: student_logprob has 1 values for \d+ tokens",
    ),
    (
        broken("rollouts.jsonl", 2, lambda row: row.update(teacher_logprob={"a": []})),
        r"rollouts\.jsonl, line 2: a has 0 values for \d+ tokens",
    ),
]


@pytest.mark.parametrize(("damage", "message"), FAULTS)
def test_a_bad_file_is_named(run: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(run)
    with pytest.raises(DataError, match=message):
        write_report(run)
    assert not (run / "report.html").exists()


def test_colours_grow_with_the_gap_and_show_its_sign() -> None:
    assert [level(-1.0, -1.0 - gap) for gap in (0.0, 0.04, 0.06, 0.3, 0.7, 1.5, 9.0)] == [
        *("z", "z", "p1", "p2", "p3", "p4", "p5")
    ]
    assert [level(-1.0 - gap, -1.0) for gap in (0.06, 9.0)] == ["n1", "n5"]
    assert level(None, -1.0) == level(-1.0, None) == "none"


def test_samples_beyond_the_budget_are_spread_over_the_run() -> None:
    def sample(step: int, length: int) -> Sample:
        return Sample(step, "", "", "stop", "pass", 1.0, ["x"] * length, [None] * length, {}, {})

    few = [sample(step, 100) for step in range(10)]
    assert spread(few) == few and spread([]) == []
    many = spread([sample(step, 10_000) for step in range(9)])
    assert [s.step for s in many] == [0, 4, 8]
    assert len(spread([sample(0, 90_000)])) == 1


# The page in a real browser.

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser, run: Path) -> Iterator[tuple[Page, list[str], list[str]]]:
    """The report of the synthetic run, what its console said and what it asked for."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
    page.on("request", lambda request: asked.append(request.url))
    report = write_report(run)
    page.goto(report.as_uri())
    yield page, said, [url for url in asked if url not in (report.as_uri(), "data:,")]
    page.close()


def test_a_browser_draws_every_curve_and_stays_silent(
    opened: tuple[Page, list[str], list[str]],
) -> None:
    page, said, asked = opened
    sizes = page.eval_on_selector_all(
        ".chart .line:not(.legend .line)",
        "lines => lines.map(line => [line.getBBox().width, line.getBBox().height])",
    )
    assert len(sizes) >= 15
    assert all(width > 300 for width, _ in sizes)
    assert sum(height > 10 for _, height in sizes) >= 12
    bands = page.eval_on_selector_all(".band", "bands => bands.map(band => band.getBBox().height)")
    assert len(bands) == 2 and all(height > 5 for height in bands)
    assert said == [] and asked == []
    assert page.evaluate("document.scripts.length") == 1
    assert page.evaluate("document.querySelectorAll('img, iframe, object, form').length") == 0
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_person_can_read_tokens_charts_and_the_folded_side(
    opened: tuple[Page, list[str], list[str]],
) -> None:
    page, said, _ = opened
    tip = page.locator("#tip")
    token = page.locator(".tokens:visible .t[data-t]").first
    token.hover()
    assert re.search(r"teacher .*nats.*\nstudent .*nats.*\nteacher minus", tip.inner_text())
    page.locator(".chart > svg").first.hover()
    assert tip.inner_text() == "step 75"

    secret = page.locator(".privileged pre").first
    assert not secret.is_visible()
    page.locator(".privileged summary").first.click()
    assert secret.is_visible() and "Reference: b5f3k17" in secret.inner_text()

    page.locator("button[data-show=answer]").first.click()
    shown = page.locator(".rollout").first.locator(".tokens:visible")
    assert shown.count() == 1 and shown.get_attribute("data-view") == "answer"

    page.locator("button[data-filter=fail]").click()
    statuses = page.eval_on_selector_all(
        ".rollout:not([hidden])", "rows => rows.map(row => row.dataset.status)"
    )
    assert statuses and set(statuses) == {"fail"}
    assert said == []
