"""The teacher's sweep: a prompt read once gives every response what it would read for itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from opd.learner.batch import Ids, pack
from opd.learner.learner import Learner
from opd.learner.model import Causal, causal_of
from opd.objective.divergence import JSD
from opd.objective.loss import Distill, SampledReverseKL
from opd.objective.term import Term
from opd.objective.weight import Confidence
from opd.privileged import Trajectory
from opd.teacher import sweep as sweeping
from opd.teacher.score import Teacher
from opd.teacher.sweep import prompts_are_separable, sweep
from opd.teacher.view import Plain, View
from opd.teacher.weights import EMA, Frozen, Live, TeacherWeights
from tests.students import distance, draw_trajectories, gradients, open_student

VIEWS = ("solution", "hint")
TERMS = {
    "distil": Term(loss=Distill(target="solution", divergence=JSD())),
    "sampled": Term(loss=SampledReverseKL(view="hint"), weights=(Confidence(view="solution"),)),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums in the same order every time."""
    torch.set_num_threads(1)


def ids(random: Random, count: int) -> Ids:
    return tuple(random.randrange(3, 90) for _ in range(count))


@pytest.fixture
def trajectories() -> list[Trajectory]:
    """Two views. `solution`: three share a prompt, four another, longer one, one has its own and
    one none. `hint`: two share one, six have their own, one has none."""
    random = Random(1)
    long, longer, own, hint = (ids(random, count) for count in (11, 17, 13, 6))
    lengths = (1, 8, 3, 12, 2, 7, 1, 5, 4)
    solutions = (long, long, longer, longer, None, longer, own, long, longer)
    hints = (hint, *(ids(random, n) for n in (4, 5, 6)), None, hint)
    hints = (*hints, *(ids(random, n) for n in (9, 5, 7)))
    made = []
    drawn = [*draw_trajectories(), *draw_trajectories()][: len(lengths)]
    for trajectory, length, solution, shown in zip(drawn, lengths, solutions, hints, strict=True):
        response = ids(random, length)
        views = {"solution": solution, "hint": shown}
        made.append(
            replace(
                trajectory,
                rollout=replace(
                    trajectory.rollout, token_ids=response, logprobs=(-1.0,) * len(response)
                ),
                views={name: prompt for name, prompt in views.items() if prompt is not None},
            )
        )
    return made


def read_alone(model: Causal, prompt: Ids, response: Ids) -> Tensor:
    """`[T, D]` from one row without padding."""
    causal = causal_of(model)
    with torch.no_grad():
        output = getattr(causal, causal.base_model_prefix)(torch.tensor([prompt + response]))
    return output.last_hidden_state[0, len(prompt) - 1 : -1]


def swept(
    model: Causal,
    prompts: Sequence[Ids],
    responses: Sequence[Ids],
    *,
    tokens_per_batch: int = 10_000,
    packing: bool = False,
) -> dict[int, Tensor]:
    with torch.no_grad():
        found = list(
            sweep(model, prompts, responses, tokens_per_batch=tokens_per_batch, packing=packing)
        )
    assert sorted(index for index, _ in found) == list(range(len(prompts)))
    return dict(found)


def solutions(trajectories: Sequence[Trajectory]) -> tuple[list[Ids], list[Ids]]:
    """Prompts and responses of those that have a solution."""
    seeing = [t for t in trajectories if "solution" in t.views]
    return [t.views["solution"] for t in seeing], [t.rollout.token_ids for t in seeing]


def teach(weights: TeacherWeights, tokens_per_batch: int = 32768) -> Teacher:
    views: dict[str, View] = {name: Plain() for name in VIEWS}
    return Teacher(weights=weights, views=views, tokens_per_batch=tokens_per_batch)


def scored(
    teacher: Teacher,
    trajectories: Sequence[Trajectory],
    learner: Learner,
    *,
    packing: bool = False,
    student_tokens: int = 40,
) -> dict[tuple[str, int], Tensor]:
    """(view, index of the trajectory) to its hidden states `[T, D]`."""
    batches = pack(trajectories, tokens_per_batch=student_tokens, packing=packing, pad_id=0)
    found = teacher.score(trajectories, batches, VIEWS, learner)
    return {
        (view, member): scores[view].hidden[batch.sequence == row]
        for batch, scores in zip(batches, found, strict=True)
        for row, member in enumerate(batch.members)
        for view in VIEWS
    }


def gap(first: dict[tuple[str, int], Tensor], second: dict[tuple[str, int], Tensor]) -> float:
    """The largest difference of hidden states."""
    assert first.keys() == second.keys()
    return max(float((first[key] - second[key]).abs().max()) for key in first)


@contextmanager
def unshared() -> Iterator[None]:
    """Every response is read behind its own copy of its prompt."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeping, "prompts_are_separable", lambda config: False)
        yield


@contextmanager
def embedded(model: Causal) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of all inputs that the model embeds meanwhile."""
    shapes: list[tuple[int, ...]] = []
    embedding = causal_of(model).get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _, given, __: shapes.append(given[0].shape))
    yield shapes
    hook.remove()


@pytest.mark.parametrize("tokens_per_batch", [1, 30, 60, 10_000])
@pytest.mark.parametrize("packing", [False, True])
def test_every_response_gets_what_it_reads_alone(
    tiny_model_dir: Path, trajectories: list[Trajectory], tokens_per_batch: int, packing: bool
) -> None:
    model = open_student(tiny_model_dir).model
    prompts, responses = solutions(trajectories)
    found = swept(model, prompts, responses, tokens_per_batch=tokens_per_batch, packing=packing)
    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        want = read_alone(model, prompt, response)
        assert found[index].shape == want.shape
        assert (found[index] - want).abs().max() < 1e-5


def test_a_shared_prompt_is_read_once(tiny_model_dir: Path) -> None:
    model, random = open_student(tiny_model_dir).model, Random(2)
    shared, own = ids(random, 20), ids(random, 15)
    responses = [ids(random, 6) for _ in range(5)]
    with embedded(model) as shapes:
        swept(model, [shared] * 4 + [own], responses)
    # A response's last token predicts nothing, but a sequence read whole holds it.
    assert shapes == [(1, 15 + 6), (1, 20), (4, 5)]
    with embedded(model) as shapes, unshared():
        swept(model, [shared] * 4 + [own], responses)
    assert shapes == [(5, 26)]


def test_a_response_of_one_token_needs_its_prompt_only(tiny_model_dir: Path) -> None:
    model, random = open_student(tiny_model_dir).model, Random(3)
    shared = ids(random, 9)
    with embedded(model) as shapes:
        found = swept(model, [shared, shared], [(5,), (6,)])
    assert shapes == [(1, 9)]
    assert torch.equal(found[0], found[1])
    assert (found[0] - read_alone(model, shared, (5,))).abs().max() < 1e-5


@pytest.mark.parametrize("budget", [200, 10_000])
def test_passes_stay_within_the_budget_and_pad_little(tiny_model_dir: Path, budget: int) -> None:
    model, random = open_student(tiny_model_dir).model, Random(4)
    prompts = [p for count in (10, 12) for p in [ids(random, count)] * 9]
    responses = [ids(random, 2 + n % 9 * 4) for n in range(18)]
    with embedded(model) as shapes:
        swept(model, prompts, responses, tokens_per_batch=budget)
    reading, following = shapes[:1], shapes[1:]
    assert reading == [(2, 12)] and len(following) > 2
    assert all(rows * (12 + width) <= budget or rows == 1 for rows, width in following)
    real = sum(len(response) - 1 for response in responses)
    assert real <= sum(rows * width for rows, width in following) <= real / 0.75
    with embedded(model) as shapes, unshared():
        swept(model, prompts, responses, tokens_per_batch=budget)
    assert all(rows * width <= budget for rows, width in shapes)
    real = sum(map(len, prompts)) + sum(map(len, responses))
    assert real <= sum(rows * width for rows, width in shapes) <= real / 0.75


def test_a_teacher_may_read_more_at_once_than_the_student(
    tiny_model_dir: Path, trajectories: list[Trajectory]
) -> None:
    learner = open_student(tiny_model_dir)
    teacher = teach(Live())
    batches = pack(trajectories, tokens_per_batch=1, packing=False, pad_id=0)
    with embedded(learner.model) as shapes:
        teacher.score(trajectories, batches, VIEWS, learner)
    assert len(batches) == 9 and max(rows for rows, _ in shapes) >= 3


@pytest.mark.parametrize("packing", [False, True])
def test_a_teacher_packs_as_the_student_does(
    tiny_model_dir: Path, trajectories: list[Trajectory], packing: bool
) -> None:
    learner = open_student(tiny_model_dir)
    with embedded(learner.model) as shapes, unshared():
        scored(teach(Live()), trajectories, learner, packing=packing)
    assert ({rows for rows, _ in shapes} == {1}) is packing


@pytest.mark.parametrize("weights", [Live, Frozen, partial(EMA, decay=0.7)])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_sharing_changes_no_score(
    tiny_model_dir: Path,
    trajectories: list[Trajectory],
    weights: Callable[[], TeacherWeights],
    lora: bool,
    checkpointing: bool,
) -> None:
    learner = open_student(tiny_model_dir, TERMS, lora=lora, gradient_checkpointing=checkpointing)
    teacher = teach(weights())
    teacher.weights.setup(learner)
    batches = pack(trajectories, tokens_per_batch=40, packing=False, pad_id=0)
    learner.update(batches, teacher.score(trajectories, batches, VIEWS, learner), 0)
    teacher.weights.follow(learner)
    shared = scored(teacher, trajectories, learner)
    with unshared():
        plain = scored(teacher, trajectories, learner)
    assert gap(shared, plain) < 1e-5


@pytest.mark.parametrize("lora", [False, True])
def test_sharing_changes_no_update(
    tiny_model_dir: Path, trajectories: list[Trajectory], lora: bool
) -> None:
    found = []
    for sharing in (True, False):
        learner = open_student(tiny_model_dir, TERMS, lora=lora)
        teacher = teach(Frozen())
        teacher.weights.setup(learner)
        batches = pack(trajectories, tokens_per_batch=50, packing=False, pad_id=0)
        if sharing:
            scores = teacher.score(trajectories, batches, VIEWS, learner)
        else:
            with unshared():
                scores = teacher.score(trajectories, batches, VIEWS, learner)
        update = learner.update(batches, scores, 0)
        found.append((gradients(learner), update))
    assert distance(found[0][0], found[1][0]) < 1e-5
    first, second = (update.metrics for _, update in found)
    assert first == pytest.approx(second, rel=1e-4, abs=1e-6) and first["loss/distil"] > 1e-3


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("tokens", [1, 25, 70])
def test_neither_sides_budget_changes_a_score(
    tiny_model_dir: Path, trajectories: list[Trajectory], packing: bool, tokens: int
) -> None:
    learner = open_student(tiny_model_dir)
    whole = scored(teach(Live()), trajectories, learner)
    split = teach(Live(), tokens_per_batch=tokens)
    assert gap(whole, scored(split, trajectories, learner, packing=packing)) < 1e-5
    apart = scored(teach(Live()), trajectories, learner, packing=packing, student_tokens=tokens)
    assert gap(whole, apart) < 1e-5


def test_an_absent_view_is_zero(tiny_model_dir: Path, trajectories: list[Trajectory]) -> None:
    learner = open_student(tiny_model_dir)
    batches = pack(trajectories, tokens_per_batch=40, packing=False, pad_id=0)
    scores = teach(Live()).score(trajectories, batches, VIEWS, learner)
    for view in VIEWS:
        for batch, found in zip(batches, scores, strict=True):
            has = [view in trajectories[member].views for member in batch.members]
            present = torch.tensor(has)[batch.sequence]
            seen = found[view]
            assert torch.equal(seen.present, present)
            for values in (seen.hidden.abs().sum(-1), seen.logprob, seen.entropy):
                assert (values[~present] == 0).all() and (values[present] != 0).all()
    assert not all(bool(found["solution"].present.all()) for found in scores)
    nobody = [replace(t, views={}) for t in trajectories]
    for found in teach(Live()).score(nobody, batches, VIEWS, learner):
        assert not found["hint"].present.any() and not found["hint"].logprob.any()


def test_log_probs_and_entropy_are_those_of_the_model(
    tiny_model_dir: Path, trajectories: list[Trajectory]
) -> None:
    learner = open_student(tiny_model_dir)
    learner.temperature = 0.7
    chosen = trajectories[:2]
    batches = pack(chosen, tokens_per_batch=1, packing=False, pad_id=0)
    for batch, found in zip(
        batches, teach(Live()).score(chosen, batches, ("solution",), learner), strict=True
    ):
        (member,) = batch.members
        prompt, response = chosen[member].views["solution"], chosen[member].rollout.token_ids
        with torch.no_grad():
            logits = learner.model(torch.tensor([prompt + response])).logits[0]
        table = torch.log_softmax(logits[len(prompt) - 1 : -1] / 0.7, dim=-1)
        seen = found["solution"]
        # Nobody has asked yet, and no logits were made.
        assert not {"logprob", "entropy"} & set(vars(seen))
        taken = table.gather(1, torch.tensor(response)[:, None]).squeeze(1)
        assert torch.allclose(seen.logprob, taken, atol=1e-4)
        assert torch.allclose(seen.entropy, -(table.exp() * table).sum(-1), atol=1e-4)


def test_bfloat16_is_as_close_shared_as_plain(
    tiny_model_dir: Path, trajectories: list[Trajectory]
) -> None:
    learner = open_student(tiny_model_dir)
    exact = scored(teach(Live()), trajectories, learner)
    learner.recipe = replace(learner.recipe, dtype="bfloat16")
    shared = scored(teach(Live()), trajectories, learner)
    with unshared():
        plain = scored(teach(Live()), trajectories, learner)
    assert 0 < gap(shared, exact) < 1.5 * gap(plain, exact)


def test_what_was_set_for_sharing_is_put_back(
    tiny_model_dir: Path, trajectories: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flash kernels take no mask: responses behind a shared prompt are read without them."""
    model = open_student(tiny_model_dir).model
    causal = causal_of(model)
    causal.config._attn_implementation = "flash_attention_2"
    prompts, responses = solutions(trajectories)
    shared = [index for index, prompt in enumerate(prompts) if prompts.count(prompt) > 1]
    found = swept(model, [prompts[i] for i in shared], [responses[i] for i in shared])
    assert causal.config._attn_implementation == "flash_attention_2" and causal.training
    causal.config._attn_implementation = "sdpa"
    for index, states in found.items():
        want = read_alone(model, prompts[shared[index]], responses[shared[index]])
        assert (states - want).abs().max() < 1e-5
    monkeypatch.setattr(sweeping, "read_responses", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        swept(model, prompts, responses)
    assert causal.training


def test_compiled_layers_are_not_compiled_for_a_cache(tiny_model_dir: Path) -> None:
    """The place of a layer in a cache is a constant to the compiler: each would be one more."""
    model, random, compiled = open_student(tiny_model_dir).model, Random(7), []
    prompt, responses = ids(random, 6), [ids(random, 4), ids(random, 5)]
    want = swept(model, [prompt, prompt], responses)

    def compiler(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(backend=compiler)
    found = swept(model, [prompt, prompt], responses)
    assert not compiled and all(torch.equal(found[index], want[index]) for index in want)
    swept(model, [prompt], responses[:1])
    assert compiled
    torch.compiler.reset()


STRETCHED = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
"""Rotations whose angles depend on the length of the whole input."""


def test_a_model_with_a_sliding_window_reads_whole_sequences(
    trajectories: list[Trajectory],
) -> None:
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=100,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            sliding_window=4,
            initializer_range=0.5,
        )
    ).eval()
    prompts, responses = solutions(trajectories)
    with embedded(model) as shapes:
        found = swept(model, prompts, responses)
    real = sum(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    assert sum(rows * width for rows, width in shapes) >= real
    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        assert (found[index] - read_alone(model, prompt, response)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("config", "separable"),
    [
        (Qwen3Config(), True),
        (LlamaConfig(), True),
        (MistralConfig(sliding_window=None), True),
        (LlamaConfig(rope_parameters=STRETCHED | {"rope_type": "linear"}), True),
        (Qwen3Config(use_sliding_window=True, max_window_layers=0), False),
        (MistralConfig(sliding_window=4), False),
        (Gemma2Config(), False),
        (Qwen3NextConfig(), False),
        (GPT2Config(), False),
        (LlamaConfig(rope_parameters=STRETCHED), False),
    ],
)
def test_which_prompts_are_separable(config, separable: bool) -> None:
    assert prompts_are_separable(config) is separable


def test_a_stretching_rotation_really_differs(trajectories: list[Trajectory]) -> None:
    """Why such models read whole sequences: a prompt alone has other keys."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=100,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=16,
            initializer_range=0.5,
            rope_parameters=STRETCHED,
        )
    ).eval()
    prompt, response = ids(Random(5), 12), ids(Random(6), 12)
    want = read_alone(model, prompt, response)
    found = swept(model, [prompt, prompt], [response, response])
    assert (found[0] - want).abs().max() < 1e-5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeping, "prompts_are_separable", lambda config: True)
        assert (swept(model, [prompt, prompt], [response, response])[0] - want).abs().max() > 1e-2
