"""What the transformers engine does on its own: batches, seeds, stop tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from opd.rollout.engine import Request, Sampling
from opd.rollout.hf import HF, SeededDraw, completion, left_padded, uniform_streams


def test_prompts_end_in_the_last_column():
    prompts = [Request(prompt_ids=(7, 8, 9), seed=0), Request(prompt_ids=(5,), seed=0)]
    input_ids, mask = left_padded(prompts, padding=2)
    assert input_ids.tolist() == [[7, 8, 9], [2, 2, 5]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_a_row_is_cut_after_its_first_stop_token():
    cut = completion([4, 9, 6, 9], [-1.0, -2.0, -3.0, -4.0], stop_ids=(2, 9), step=3)
    assert cut.token_ids == (4, 9) and cut.logprobs == (-1.0, -2.0)
    assert cut.finish == "stop" and cut.policy_step == 3
    assert completion([4, 6], [-1.0, -2.0], stop_ids=(2, 9), step=3).finish == "length"


def test_a_stream_depends_on_its_seed_alone_and_short_ones_begin_long_ones():
    first, second = Request(prompt_ids=(1,), seed=5), Request(prompt_ids=(1,), seed=6)
    streams = uniform_streams([first, second], 8)
    assert torch.equal(uniform_streams([second], 8)[0], streams[1])
    assert torch.equal(uniform_streams([first], 3)[0], streams[0, :3])
    assert streams.min() >= 0 and streams.max() < 1


def test_a_draw_inverts_the_cumulative_distribution():
    """Of 0, 0.5, 0.3, 0.2: 0 and 0.49 fall on token 1, 0.51 on 2 and 0.81 on 3; none on 0."""
    draw = SeededDraw(
        [Request(prompt_ids=(1,), seed=row) for row in range(4)],
        Sampling(max_response_tokens=1),
        torch.device("cpu"),
    )
    draw.uniform = torch.tensor([[0.0], [0.49], [0.51], [0.81]], dtype=torch.float64)
    scores = torch.tensor([[0.0, 0.5, 0.3, 0.2]]).log().repeat(4, 1)
    taken = draw(torch.zeros(4, 1, dtype=torch.long), scores)  # pyright: ignore[reportArgumentType]
    assert taken.argmax(-1).tolist() == [1, 1, 2, 3]
    assert torch.allclose(draw.logprobs[0], torch.tensor([0.5, 0.5, 0.3, 0.2]).log())


@pytest.mark.parametrize("requests_per_batch", [1, 7, 64])
def test_the_batch_size_changes_no_completion(tiny_model_dir: Path, requests_per_batch: int):
    asked = [Request(prompt_ids=tuple(range(3, 5 + i)), seed=i) for i in range(20)]
    sampling = Sampling(max_response_tokens=12)
    drawn = []
    for engine in (HF(), HF(requests_per_batch=requests_per_batch)):
        engine.open(str(tiny_model_dir), dtype="float32", max_length=64, seed=0)
        drawn.append(engine.generate(asked, sampling))
    assert [c.token_ids for c in drawn[0]] == [c.token_ids for c in drawn[1]]


def test_the_folders_own_sampling_defaults_are_not_used(tiny_model_dir: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    defaults = {"do_sample": True, "top_k": 1, "repetition_penalty": 5.0, "eos_token_id": [2, 0]}
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    asked = [Request(prompt_ids=(5, 6), seed=i) for i in range(20)]
    drawn = []
    for path in (tiny_model_dir, folder):
        engine = HF()
        engine.open(str(path), dtype="float32", max_length=64, seed=0)
        drawn.append(engine.generate(asked, Sampling(max_response_tokens=12)))
    for plain, stopped in zip(*drawn, strict=True):
        assert stopped.token_ids == plain.token_ids[: len(stopped.token_ids)]
        assert (0 in stopped.token_ids) == (stopped.token_ids[-1] == 0)
