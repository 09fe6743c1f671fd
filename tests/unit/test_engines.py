"""The contract of every engine, kept by the real libraries on the CPU."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from opd.errors import DataError, EngineError
from opd.rollout.engine import Completion, Engine, Request, Sampling

MAX_LENGTH = 512
STOP = 2


@dataclass(frozen=True)
class Opened:
    engine: Engine
    path: Path

    def model(self) -> nn.Module:
        """The folder's model, as a trainer would hold it."""
        return AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32)


@pytest.fixture(scope="module", params=["hf-untied", "hf-tied", "vllm-untied", "vllm-tied"])
def opened(
    request: pytest.FixtureRequest, tiny_model_dir: Path, tied_model_dir: Path
) -> Iterator[Opened]:
    name, head = request.param.split("-")
    if name == "vllm":
        pytest.importorskip("vllm")
    module, _, part = Engine.choices[name].partition(":")
    engine = getattr(importlib.import_module(module), part)()
    path = tied_model_dir if head == "tied" else tiny_model_dir
    engine.open(str(path), dtype="float32", max_length=MAX_LENGTH, seed=0)
    yield Opened(engine, path)
    engine.close()


@pytest.fixture
def subject(opened: Opened) -> Opened:
    """An engine with the folder's own weights, whatever the test before loaded."""
    opened.engine.load(opened.model().named_parameters(), 0)
    return opened


def requests(count: int, first_seed: int = 0) -> list[Request]:
    """Prompts of mixed lengths, so that batches hold padding."""
    prompts = [tuple(3 + (7 * i + j) % 90 for j in range(4 + i % 9)) for i in range(count)]
    return [Request(prompt_ids=p, seed=first_seed + i) for i, p in enumerate(prompts)]


@torch.no_grad()
def log_softmax(model: nn.Module, request: Request, drawn: Completion, temperature: float = 1.0):
    """`[T, V]` nats at the positions that predict the drawn tokens."""
    ids = torch.tensor([request.prompt_ids + drawn.token_ids])
    logits = model(ids).logits[0, len(request.prompt_ids) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


def largest_gap(
    model: nn.Module, asked: list[Request], drawn: list[Completion], temperature: float = 1.0
) -> float:
    """The largest difference in nats between an engine's log-probs and the trainer's."""
    gaps: list[Tensor] = []
    for request, completion in zip(asked, drawn, strict=True):
        expected = log_softmax(model, request, completion, temperature)
        taken = expected.gather(1, torch.tensor(completion.token_ids)[:, None]).squeeze(1)
        gaps.append((taken - torch.tensor(completion.logprobs)).abs().max())
    return torch.stack(gaps).max().item()


def perturbed(subject: Opened) -> nn.Module:
    """The folder's model after an update that moves log-probs by far more than a rounding."""
    model = subject.model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_response_tokens=24),
        Sampling(max_response_tokens=24, temperature=0.7),
        Sampling(max_response_tokens=24, temperature=1.1, top_k=5, top_p=0.8),
        Sampling(max_response_tokens=24, temperature=0),
    ],
    ids=["plain", "cold", "truncated", "greedy"],
)
def test_logprobs_are_the_trainers(subject: Opened, sampling: Sampling):
    asked = requests(32)
    drawn = subject.engine.generate(asked, sampling)
    assert largest_gap(subject.model(), asked, drawn, sampling.temperature or 1) < 1e-4


def test_loaded_weights_are_served(subject: Opened):
    asked, sampling = requests(16), Sampling(max_response_tokens=24)
    model = perturbed(subject)
    subject.engine.load(model.named_parameters(), 7)
    drawn = subject.engine.generate(asked, sampling)
    assert {completion.policy_step for completion in drawn} == {7}
    assert largest_gap(model, asked, drawn) < 1e-4
    assert largest_gap(subject.model(), asked, drawn) > 0.1


def test_a_loaded_engine_forgets_the_weights_object(subject: Opened):
    asked, sampling = requests(4), Sampling(max_response_tokens=8)
    model = subject.model()
    subject.engine.load(model.named_parameters(), 1)
    before = subject.engine.generate(asked, sampling)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert subject.engine.generate(asked, sampling) == before


def test_nothing_cached_survives_a_load(subject: Opened):
    """The prompt is long enough to fill whole blocks of a prefix cache."""
    asked = [Request(prompt_ids=tuple(3 + j % 90 for j in range(400)), seed=0)]
    sampling = Sampling(max_response_tokens=8)
    subject.engine.generate(asked, sampling)
    model = perturbed(subject)
    subject.engine.load(model.named_parameters(), 1)
    assert largest_gap(model, asked, subject.engine.generate(asked, sampling)) < 1e-4


def test_a_seed_decides_the_draw_whatever_shares_the_batch(subject: Opened):
    asked, sampling = requests(40), Sampling(max_response_tokens=16)
    together = subject.engine.generate(asked, sampling)
    apart = subject.engine.generate(asked[30:], sampling)
    backwards = subject.engine.generate(asked[::-1], sampling)
    tokens = [completion.token_ids for completion in together]
    assert [completion.token_ids for completion in apart] == tokens[30:]
    assert [completion.token_ids for completion in backwards] == tokens[::-1]


def test_more_prompts_than_one_pass_takes_are_served(subject: Opened):
    asked = [Request(prompt_ids=(5 + i % 90,) * 60, seed=i) for i in range(300)]
    drawn = subject.engine.generate(asked, Sampling(max_response_tokens=2))
    assert [completion.policy_step for completion in drawn] == [0] * 300


def test_seeds_differ(subject: Opened):
    prompt = requests(1)[0].prompt_ids
    asked = [Request(prompt_ids=prompt, seed=seed) for seed in range(20)]
    drawn = subject.engine.generate(asked, Sampling(max_response_tokens=16))
    assert len({completion.token_ids for completion in drawn}) == 20


def test_draws_follow_the_distribution(subject: Opened):
    """Total variation of 2,000 first tokens; 99 tokens' counting noise alone is about 0.07."""
    prompt = requests(1)[0].prompt_ids
    asked = [Request(prompt_ids=prompt, seed=seed) for seed in range(2000)]
    sampling = Sampling(max_response_tokens=1, temperature=0.7)
    drawn = subject.engine.generate(asked, sampling)
    expected = log_softmax(subject.model(), asked[0], drawn[0], 0.7)[0].exp()
    counts = Counter(completion.token_ids[0] for completion in drawn)
    drawn_share = torch.tensor([counts[token] / 2000 for token in range(len(expected))])
    assert (drawn_share - expected).abs().sum().item() / 2 < 0.12


def test_a_response_ends_at_its_first_stop_token(subject: Opened):
    drawn = subject.engine.generate(requests(64), Sampling(max_response_tokens=48))
    assert {completion.finish for completion in drawn} == {"stop", "length"}
    for completion in drawn:
        assert len(completion.logprobs) == len(completion.token_ids)
        assert STOP not in completion.token_ids[:-1]
        if completion.finish == "stop":
            assert completion.token_ids[-1] == STOP
        else:
            assert len(completion.token_ids) == 48 and completion.token_ids[-1] != STOP


def test_temperature_zero_takes_the_most_probable_token(subject: Opened):
    asked = requests(8)
    drawn = subject.engine.generate(asked, Sampling(max_response_tokens=12, temperature=0))
    model = subject.model()
    for request, completion in zip(asked, drawn, strict=True):
        best = log_softmax(model, request, completion).argmax(-1)
        assert best.tolist() == list(completion.token_ids)


def test_top_k_cuts(subject: Opened):
    asked, sampling = requests(16), Sampling(max_response_tokens=12, top_k=3)
    model = subject.model()
    for request, completion in zip(asked, subject.engine.generate(asked, sampling), strict=True):
        best = log_softmax(model, request, completion).topk(3).indices
        assert (best == torch.tensor(completion.token_ids)[:, None]).any(1).all()


def test_top_p_cuts(subject: Opened):
    """A token is kept while the more probable ones hold less than `top_p` together."""
    asked, sampling = requests(16), Sampling(max_response_tokens=12, top_p=0.5)
    model = subject.model()
    for request, completion in zip(asked, subject.engine.generate(asked, sampling), strict=True):
        probability = log_softmax(model, request, completion).exp()
        taken = probability.gather(1, torch.tensor(completion.token_ids)[:, None])
        more_probable = probability.where(probability > taken, 0).sum(1)
        assert more_probable.max().item() < 0.5 + 1e-4


def test_no_requests_give_no_completions(subject: Opened):
    assert subject.engine.generate([], Sampling(max_response_tokens=4)) == []


def test_sleep_and_wake_change_nothing(subject: Opened):
    asked, sampling = requests(4), Sampling(max_response_tokens=8)
    before = subject.engine.generate(asked, sampling)
    subject.engine.sleep()
    subject.engine.wake()
    assert subject.engine.generate(asked, sampling) == before


def test_a_sequence_that_just_fits_is_served_and_one_token_more_is_refused(subject: Opened):
    sampling = Sampling(max_response_tokens=12)
    fits = Request(prompt_ids=(5,) * (MAX_LENGTH - 12), seed=0)
    assert len(subject.engine.generate([fits], sampling)[0].token_ids) <= 12
    over = Request(prompt_ids=(5,) * (MAX_LENGTH - 11), seed=0)
    with pytest.raises(DataError, match="prompt 1 has 501 tokens") as raised:
        subject.engine.generate([fits, over], sampling)
    assert "max_response_tokens=12" in str(raised.value)


def test_an_empty_prompt_is_refused(subject: Opened):
    with pytest.raises(DataError, match="prompt 0 has no tokens"):
        subject.engine.generate([Request(prompt_ids=(), seed=0)], Sampling(max_response_tokens=4))


def test_unknown_missing_and_misshapen_weights_are_refused(subject: Opened):
    weights = dict(subject.model().named_parameters())
    norm = "model.norm.weight"
    rest = {name: tensor for name, tensor in weights.items() if name != norm}
    with pytest.raises(EngineError, match=r"no parameter base\.norm"):
        subject.engine.load({**weights, "base.norm": weights[norm]}.items(), 1)
    with pytest.raises(EngineError, match=r"1 parameters did not come, model\.norm\.weight"):
        subject.engine.load(rest.items(), 1)
    with pytest.raises(EngineError, match=r"shape \(63,\) where the engine serves \(64,\)"):
        subject.engine.load({**rest, norm: weights[norm][1:]}.items(), 1)
