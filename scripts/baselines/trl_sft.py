"""TRL's SFTTrainer on the recipe `sft`: the same written answers, token by token, and evaluation.

python scripts/baselines/trl_sft.py seed=0 steps=150 evaluation.every=25 output=runs/trl_sft
"""

from __future__ import annotations

from datasets import Dataset
from measured import Trainer, baseline, model_of, problems_in_order, training
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from opd.errors import RecipeError
from opd.objective.loss import Likelihood
from opd.recipe import Recipe
from opd.rollout.chat import Chat
from opd.rollout.source import Demonstrations


def open_trainer(recipe: Recipe) -> Trainer:
    (term,) = recipe.terms.values()
    source = recipe.source
    if not isinstance(term.loss, Likelihood) or not isinstance(source, Demonstrations):
        raise RecipeError("terms, source: this baseline is one Likelihood term on Demonstrations")
    settings = SFTConfig(
        **training(recipe),
        completion_only_loss=True,
        max_length=None,
        packing=False,
        train_sampling_strategy="sequential",
    )
    chat, rows = Chat.open(model_of(recipe)), []
    for problem in problems_in_order(recipe):
        prompt = chat.prompt_ids(problem.prompt.messages)
        response = chat.response_ids(str(getattr(problem.privileged, source.read)))
        mask = [0] * len(prompt) + [1] * len(response)
        rows.append({"input_ids": [*prompt, *response], "completion_mask": mask})
    return SFTTrainer(model=model_of(recipe), args=settings, train_dataset=Dataset.from_list(rows))


if __name__ == "__main__":
    baseline("trl_sft", "sft", open_trainer)
