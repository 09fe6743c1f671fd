"""TRL's GRPOTrainer on the recipe `grpo`: the same problems, reward, clipping and evaluation.

python scripts/baselines/trl_grpo.py seed=0 steps=150 evaluation.every=10 output=runs/trl_grpo
"""

from __future__ import annotations

from measured import (
    Trainer,
    asked,
    baseline,
    model_of,
    reward_of,
    sampling,
    training,
)
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from opd.errors import RecipeError
from opd.objective.credit import GroupMean
from opd.objective.loss import PolicyGradient
from opd.recipe import Recipe

LOSS_TYPES = {"token": "dapo", "sequence": "grpo", "budget": "dr_grpo"}
"""What TRL calls a term's average."""


def open_trainer(recipe: Recipe) -> Trainer:
    (term,) = recipe.terms.values()
    loss, credit = term.loss, recipe.credit
    if not isinstance(loss, PolicyGradient) or not isinstance(credit, GroupMean):
        raise RecipeError("terms, credit: this baseline is one PolicyGradient term over GroupMean")
    settings = GRPOConfig(
        **training(recipe),
        **sampling(recipe),
        epsilon=loss.clip_low,
        epsilon_high=loss.clip_high,
        beta=0.0,
        loss_type=LOSS_TYPES[term.average],
        scale_rewards="group" if credit.scale else "none",
    )
    return GRPOTrainer(
        model=model_of(recipe),
        args=settings,
        reward_funcs=[reward_of(recipe)],
        train_dataset=asked(recipe),
    )


if __name__ == "__main__":
    baseline("trl_grpo", "grpo", open_trainer)
