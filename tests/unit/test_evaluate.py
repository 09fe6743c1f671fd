"""`opd eval`: any model on a suite, what its folder keeps, and what it refuses in one sentence."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from opd.cli import main
from opd.config import part
from opd.evaluation.candidate import Serving, Weights, candidate
from opd.privileged import Problem
from opd.reward import Reward
from opd.rollout.chat import Chat
from opd.rollout.endpoint import Endpoint
from opd.rollout.engine import Request, Sampling
from opd.rollout.hf import HF
from opd.suite import load_suite
from opd.types import Message, Rollout, Verdict
from rewards.code import PassesTests
from rewards.math import Boxed
from tests.runs import ROWS, run

FILES = ("protocol.json", "samples.jsonl", "summary.json")


@part
class Parity(Reward):
    """Passes a response of even length; names its length, in quarters, as the answer."""

    note: str = "a"

    def __call__(self, problem: Problem, rollouts: Sequence[Rollout]) -> list[Verdict]:
        return [judged(rollout.text) for rollout in rollouts]

    def provenance(self) -> dict[str, str]:
        return {"sandbox": "UNSANDBOXED", "verifier": "9.9"}


def judged(text: str) -> Verdict:
    status = "fail" if len(text) % 2 else "pass"
    return Verdict(status, float(status == "pass"), answer=str(len(text) % 4))


def tree(**changes: object) -> dict[str, Any]:
    return {
        "reward": f"{__name__}:Parity",
        "sampling": {"max_response_tokens": 8},
        "samples": 4,
        "greedy": True,
        "chunk": 8,
        "engine": "hf",
        "benchmarks": {"sums": {"dataset": ROWS, "adapter": "data.gsm8k:problem", "limit": 5}},
        **changes,
    }


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return written(tree(), tmp_path)


def written(content: dict[str, Any], folder: Path) -> Path:
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def outcome(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The exit code, what was printed, and the last line on stderr."""
    code = main(["eval", *map(str, arguments)])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return code, printed.out, (printed.err.strip().splitlines() or [""])[-1]


def samples(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def texts(folder: Path, kind: str) -> dict[tuple[str, int], str]:
    found = (row for row in samples(folder) if row["kind"] == kind)
    return {(row["problem"], row["sample"]): row["text"] for row in found}


def test_what_an_evaluation_leaves(
    tiny_model_dir: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    code, printed, _ = outcome(capsys, tiny_model_dir, "--suite", suite, "--to", to)
    assert code == 0 and "sums" in printed
    assert "verdicts of sums: sandbox UNSANDBOXED, verifier 9.9" in printed
    rows = samples(to)
    assert len(rows) == 5 * (4 + 1)
    for row in rows:
        assert row["status"] == judged(row["text"]).status and row["tokens"] <= 8
        assert row["sampling"]["temperature"] == (0.0 if row["kind"] == "greedy" else 1.0)
        assert re.fullmatch("[0-9a-f]{64}", row["prompt_sha256"])
    sampled = [row for row in rows if row["kind"] == "sampled"]
    assert len({row["seed"] for row in sampled}) == 20
    summary = json.loads((to / "summary.json").read_text())
    found, protocol = summary["benchmarks"]["sums"], summary["protocol"]
    share = sum(row["status"] == "pass" for row in sampled) / 20
    assert found["avg@4"]["value"] == pytest.approx(share) and 0 < share < 1
    assert found["pass@1"] == found["avg@4"]
    assert found["pass@4"]["value"] >= share
    assert found["maj@4"] is not None and found["greedy"] is not None
    assert found["provenance"] == {"sandbox": "UNSANDBOXED", "verifier": "9.9"}
    assert protocol == json.loads((to / "protocol.json").read_text())
    weights = (tiny_model_dir / "model.safetensors").read_bytes()
    assert protocol["model"]["sha256"] == hashlib.sha256(weights).hexdigest()
    about = protocol["benchmarks"]["sums"]
    assert about["sha256"] == hashlib.sha256(Path(ROWS).read_bytes()).hexdigest()
    assert about["sampling"]["max_response_tokens"] == 8 and protocol["thinking"] is None
    assert protocol["versions"]["torch"] and protocol["model"]["chat_template_sha256"]


def test_a_finished_evaluation_is_read_and_not_repeated(
    tiny_model_dir: Path,
    suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    to = tmp_path / "out"
    _, printed, _ = outcome(capsys, tiny_model_dir, "--suite", suite, "--to", to)
    before = {name: ((to / name).read_bytes(), (to / name).stat().st_mtime_ns) for name in FILES}
    monkeypatch.setattr(HF, "open", None)  # not even the model is opened
    code, again, _ = outcome(capsys, tiny_model_dir, "--suite", suite, "--to", to)
    assert code == 0 and again == printed.replace("sums: 25 samples\n", "")
    assert before == {n: ((to / n).read_bytes(), (to / n).stat().st_mtime_ns) for n in FILES}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("seed=1", "seed=0, and this one has seed=1"),
        ("sampling.temperature=0.5", "benchmarks.sums.sampling.temperature=1.0"),
        ("model.thinking=false", "thinking=None"),
        ("reward.note=b", "benchmarks.sums.reward.note=a"),
        ("benchmarks.sums.limit=4", "benchmarks.sums.problems=5"),
        ("samples=5", "benchmarks.sums.samples=4"),
        ("model.dtype=bfloat16", "model.dtype=float32"),
    ],
)
def test_another_protocol_is_refused_by_its_key(
    tiny_model_dir: Path,
    suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: str,
    key: str,
) -> None:
    to = tmp_path / "out"
    command = (tiny_model_dir, "--suite", suite, "--to", to, "samples=4")
    assert outcome(capsys, *command)[0] == 0
    before = [(to / name).read_bytes() for name in FILES]
    code, _, said = outcome(capsys, *command[:-1], change)
    assert code == 2 and key in said and "give another --to" in said
    assert before == [(to / name).read_bytes() for name in FILES]


def test_other_weights_are_refused(
    tiny_model_dir: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, to = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_model_dir, folder)
    assert outcome(capsys, folder, "--suite", suite, "--to", to)[0] == 0
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight += 0.01
    model.save_pretrained(str(folder))
    code, _, said = outcome(capsys, folder, "--suite", suite, "--to", to)
    assert code == 2 and "model.sha256=" in said


def test_a_torn_line_is_drawn_again_and_nothing_else(
    tiny_model_dir: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    command = (tiny_model_dir, "--suite", suite, "--to", to)
    outcome(capsys, *command)
    whole = [(to / name).read_bytes() for name in FILES]
    (to / "summary.json").unlink()
    for kept in (len(whole[1]) - 1, len(whole[1]) // 2, 3, 0):
        (to / "samples.jsonl").write_bytes(whole[1][:kept])
        (to / "summary.json").unlink(missing_ok=True)
        assert outcome(capsys, *command)[0] == 0
        assert whole == [(to / name).read_bytes() for name in FILES]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: [*lines, lines[3]], "line 26: this sample stands there twice"),
        (lambda lines: [lines[0], "{", *lines[1:]], "line 2: is no sample"),
        (lambda lines: ['{"a": 1}', *lines], "line 1: is no sample"),
        (lambda lines: [lines[0].replace('"sums"', '"other"'), *lines], "holds the sample other/"),
    ],
)
def test_damaged_samples_are_refused(
    tiny_model_dir: Path,
    suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Any,
    said: str,
) -> None:
    to = tmp_path / "out"
    outcome(capsys, tiny_model_dir, "--suite", suite, "--to", to)
    path = to / "samples.jsonl"
    path.write_text("".join(f"{line}\n" for line in damage(path.read_text().splitlines())))
    code, _, sentence = outcome(capsys, tiny_model_dir, "--suite", suite, "--to", to)
    assert code == 4 and said in sentence


def test_nobody_else_may_write_there(
    tiny_model_dir: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    to.mkdir()
    with FileLock(to / ".lock"):
        code, _, said = outcome(capsys, tiny_model_dir, "--suite", suite, "--to", to)
    assert code == 2 and "another evaluation writes here" in said
    (to / "notes.txt").write_text("mine")
    code, _, said = outcome(capsys, tiny_model_dir, "--suite", suite, "--to", to)
    assert code == 2 and "holds files that are no evaluation (notes.txt)" in said


def test_what_does_not_fit_is_counted_and_never_cut(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    questions = ["short?", "long " * 200, "what is <|im_end|>?", "where is \N{SNOWMAN}?"]
    rows.write_text(
        "".join(json.dumps({"question": q, "answer": "#### 1"}) + "\n" for q in questions)
    )
    entry = {"dataset": str(rows), "adapter": "data.gsm8k:problem"}
    to, path = tmp_path / "out", written(tree(benchmarks={"b": entry}, samples=2), tmp_path)
    code, printed, _ = outcome(capsys, tiny_model_dir, "--suite", path, "--to", to)
    assert code == 0 and re.search("b: 1 of 4 problems do not fit .*count as missed", printed)
    found = json.loads((to / "summary.json").read_text())["benchmarks"]["b"]
    by_text = {row["text"]: row for row in samples(to) if row["status"] is None}
    assert len(found["does_not_fit"]) == 1 and len(found["unreadable"]) == 2
    assert any("exceed the context of 512" in text for text in by_text)
    assert any("control token '<|im_end|>'" in text for text in by_text)
    assert any("has no token" in text for text in by_text)
    assert found["avg@2"]["value"] <= 1 / 4 and found["problems"] == 4


def test_a_budget_beyond_the_context_is_halved_aloud(
    tiny_model_dir: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    wide = "sampling.max_response_tokens=4096"
    change = ("model.max_length=300", wide, "benchmarks.sums.limit=1", "samples=1")
    code, printed, _ = outcome(capsys, tiny_model_dir, "--suite", suite, "--to", to, *change)
    assert code == 0 and "sums: responses get 150 tokens, not 4,096: half of" in printed
    about = json.loads((to / "protocol.json").read_text())["benchmarks"]["sums"]
    assert about["sampling"]["max_response_tokens"] == 150


def test_a_recipe_is_measured_with_the_draws_of_its_training(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(tiny_model_dir, tmp_path / "run", steps=1)
    name = tmp_path / "run" / "recipe.yaml"
    to = tmp_path / "out"
    assert outcome(capsys, name, "--to", to)[0] == 0
    found = json.loads((to / "summary.json").read_text())["benchmarks"]["held_out"]
    before = summary["held_out"]
    assert found["avg@2"] == {"value": before["before"], "ci95": before["ci95_before"]}
    assert found["greedy"]["value"] == before["greedy_before"]
    after = tmp_path / "after"
    assert outcome(capsys, tmp_path / "run", "--suite", name, "--to", after)[0] == 0
    trained = json.loads((after / "summary.json").read_text())
    assert trained["benchmarks"]["held_out"]["mean_length"] == before["length_after"]
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert trained["protocol"]["model"]["sha256"] == hashlib.sha256(weights).hexdigest()


@pytest.fixture
def adapter(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """Random low-rank updates that change what the model says."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "o_proj"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


def test_an_adapter_is_measured_on_its_base(
    tiny_model_dir: Path,
    adapter: Path,
    suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    to = tmp_path / "out"
    code, printed, _ = outcome(
        capsys, adapter, "--against", tiny_model_dir, "--suite", suite, "--to", to
    )
    assert code == 0 and "A - B [95 %]" in printed and "avg@4" in printed
    (beside,) = (path for path in to.iterdir() if path.is_dir())
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32),
        LoraConfig(r=2, target_modules=["q_proj", "o_proj"]),
    )
    model.load_adapter(str(adapter), "default")
    chat = Chat.open(str(tiny_model_dir))
    for row in samples(to)[-2:]:
        assert row["kind"] == "greedy"
        prompt = next(p for p in prompts() if p.id == row["problem"])
        ids = torch.tensor([chat.prompt_ids(prompt.messages)])
        said = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
        assert chat.text(said[0, ids.shape[1] :].tolist()) == row["text"]
    assert texts(to, "greedy") != texts(beside, "greedy")
    identity = json.loads((to / "protocol.json").read_text())["model"]
    assert (
        identity["sha256"] == json.loads((beside / "protocol.json").read_text())["model"]["sha256"]
    )
    stored = (adapter / "adapter_model.safetensors").read_bytes()
    assert identity["adapter_sha256"] == hashlib.sha256(stored).hexdigest()
    (compared,) = to.glob("against-*.json")
    rows = json.loads(compared.read_text())["benchmarks"]["sums"]
    assert set(rows) == {"avg@4", "greedy"}
    a, b = (json.loads((f / "summary.json").read_text()) for f in (to, beside))
    value = [found["benchmarks"]["sums"]["avg@4"]["value"] for found in (a, b)]
    assert rows["avg@4"]["difference"] == pytest.approx(value[0] - value[1])


def prompts() -> list[Any]:
    from opd.problems import Dataset

    rows = Dataset(dataset=ROWS, adapter="data.gsm8k:problem", limit=5)
    return [problem.prompt for problem in rows.problems()]


def test_the_same_model_twice_differs_by_nothing(
    tiny_model_dir: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    command = (tiny_model_dir, "--against", tiny_model_dir, "--suite", suite, "--to", to)
    assert outcome(capsys, *command)[0] == 0
    (compared,) = to.glob("against-*.json")
    row = json.loads(compared.read_text())["benchmarks"]["sums"]["avg@4"]
    assert (row["difference"], row["ci95"], row["p"]) == (0.0, [0.0, 0.0], 1.0)


def test_models_are_compared_under_one_budget(
    tiny_model_dir: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short"
    shutil.copytree(tiny_model_dir, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 400}))
    code, _, said = outcome(
        capsys,
        *(tiny_model_dir, "--against", short, "--suite", suite, "--to", tmp_path / "out"),
        *("sampling.max_response_tokens=220", "samples=1", "benchmarks.sums.limit=1"),
    )
    assert code == 2 and "sampling.max_response_tokens=220" in said and "=200" in said


@pytest.fixture
def server(tiny_model_dir: Path) -> Iterator[str]:
    """The model behind HTTP, drawing with the engine itself."""
    engine, chat = HF(), Chat.open(str(tiny_model_dir))
    engine.open(str(tiny_model_dir), dtype="float32", max_length=512, seed=0)
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer({"data": [{"id": "tiny", "max_model_len": 512}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            ids = chat.prompt_ids(tuple(Message(**turn) for turn in body["messages"]))
            names = ("temperature", "top_p")
            sampling = Sampling(
                max_response_tokens=body["max_tokens"], **{name: body[name] for name in names}
            )
            with one_at_a_time:
                (done,) = engine.generate([Request(ids, body["seed"])], sampling)
            message = {"content": chat.text(done.token_ids)}
            choice = {"message": message, "finish_reason": done.finish}
            usage = {"completion_tokens": len(done.token_ids)}
            self.answer({"choices": [choice], "usage": usage})

        def answer(self, content: object) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_address[1]}/v1"
    listening.shutdown()
    listening.server_close()
    engine.close()


def test_an_endpoint_says_what_its_model_says_here(
    server: str,
    tiny_model_dir: Path,
    suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    to = tmp_path / "out"
    code, printed, _ = outcome(
        capsys, f"{server}#tiny", "--against", tiny_model_dir, "--suite", suite, "--to", to
    )
    assert code == 0 and "unlike in engine" in printed
    (beside,) = (path for path in to.iterdir() if path.is_dir())
    for kind in ("greedy", "sampled"):
        assert texts(to, kind) == texts(beside, kind)
    there, here = ({row["problem"]: row["tokens"] for row in samples(f)} for f in (to, beside))
    assert there == here
    protocol = json.loads((to / "protocol.json").read_text())
    assert protocol["engine"] == "endpoint" and protocol["model"]["served"] == "tiny"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("no/such/model",), 5, "no/such/model: is no folder here, and the hub"),
        (("quickstrat",), 2, "did you mean 'quickstart'"),
        (("quickstart", "--suite", "benchmarks"), 2, "is read as a recipe"),
        (("BROKEN", "--suite", "SUITE"), 4, "its config.json tells no context length"),
        (("recipes/base", "--suite", "SUITE"), 4, "is no model folder (config.json), adapter"),
        (("http://127.0.0.1:9/v1", "--suite", "SUITE"), 5, "its list of models failed"),
        (("MODEL", "--suite", "benchmark"), 2, "did you mean"),
        (("MODEL", "--files", "no/such"), 4, "--files no/such: is no folder"),
        (("MODEL", "--files", "recipes"), 4, "holds no file of the suite"),
        (("MODEL", "--suite", "SUITE", "samplez=3"), 2, "did you mean 'samples'"),
        (("MODEL", "--suite", "SUITE", "sampling.temperature=0"), 2, "are all the same"),
        (("MODEL", "--suite", "SUITE", "reward=null"), 2, "benchmarks.sums.reward"),
        (("MODEL", "--suite", "SUITE", "benchmarks.sums=null"), 2, "nothing can be measured"),
        (
            ("MODEL", "--suite", "SUITE", "benchmarks.sums.sampling.heat=1"),
            2,
            "benchmarks.sums.sampling.heat: Sampling has no such key",
        ),
        (
            ("MODEL", "--suite", "SUITE", "benchmarks.sums.dataset=no.jsonl"),
            4,
            "leave it out with benchmarks.sums=null",
        ),
        (("MODEL", "--suite", "SUITE", f"benchmarks.sums.sha256={'0' * 64}"), 4, "sha256"),
    ],
)
def test_a_fault_is_one_sentence(
    tiny_model_dir: Path,
    suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    places = {"MODEL": str(tiny_model_dir), "SUITE": str(suite), "BROKEN": f"{tmp_path}/broken"}
    given = [places.get(word, word) for word in arguments]
    quick = ["endpoint.attempts=1"] if "SUITE" in arguments else []
    found, _, sentence = outcome(capsys, *given, "--to", tmp_path / "out", *quick)
    assert (found, said in sentence) == (code, True), sentence
    assert not (tmp_path / "out").exists()


def test_a_wrong_model_is_told_before_rows_are_read(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    change = "benchmarks.sums.dataset=no.jsonl"
    code, _, said = outcome(capsys, tmp_path / "empty", "--suite", suite, change)
    assert code == 4 and "is no model folder" in said


def test_rewards_say_what_verdicts_depend_on() -> None:
    pytest.importorskip("math_verify")
    assert Boxed().provenance() == {"math-verify": version("math-verify")}
    if shutil.which("bwrap"):
        assert PassesTests().provenance() == {"sandbox": "bwrap"}


def test_an_adapter_without_a_base_is_named(adapter: Path) -> None:
    config = adapter / "adapter_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "base_model_name_or_path": None}))
    with pytest.raises(Exception, match="names no base model"):
        candidate(str(adapter), Endpoint())


def test_a_run_that_has_not_ended_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("steps: 1\n")
    with pytest.raises(Exception, match=r"has not ended.*opd train"):
        candidate(str(tmp_path), Endpoint())


def test_a_model_is_told_by_its_settings_too(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    before = Weights("m", folder).identity(Serving())
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    after = Weights("m", folder).identity(Serving())
    assert {key for key in before if before[key] != after[key]} == {"settings_sha256"}


def test_the_shipped_suite_and_its_files(tmp_path: Path) -> None:
    suite = load_suite("benchmarks")
    assert set(suite.benchmarks) == {
        *("gsm8k", "math500", "aime24", "aime25", "hmmt25"),
        *("humaneval", "humaneval_plus", "mbpp", "mbpp_plus", "livecodebench"),
    }
    assert all(entry.filename for entry in suite.benchmarks.values())
    row = {"problem": "1+1?", "answer": "2"}
    (tmp_path / "hmmt25.jsonl").write_text(json.dumps(row))
    found = suite.read_from(tmp_path)
    assert list(found.benchmarks) == ["hmmt25"]
    assert found.benchmarks["hmmt25"].dataset == str(tmp_path / "hmmt25.jsonl")
    hub = suite.read_from_the_hub().benchmarks["gsm8k"]
    assert hub.sha256 is None and hub.dataset == "openai/gsm8k"
    assert suite.sampling_of("aime24").temperature == 0.6


def test_help_on_overrides_after_options(
    tiny_model_dir: Path, suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    command = (tiny_model_dir, "greedy=false", "--suite", suite, "samples=2", "--to", to)
    assert outcome(capsys, *command, "benchmarks.sums.limit=2")[0] == 0
    assert len(samples(to)) == 4
    for wrong in (("nonsense",), ("--nonsense=1",)):
        with pytest.raises(SystemExit) as left:
            main(["eval", *map(str, command), *wrong])
        assert left.value.code == 2 and wrong[0] in capsys.readouterr().err
