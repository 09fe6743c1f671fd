"""TRL's SDPOTrainer on the recipe `sdpo`: the same siblings before the same lagging teacher.

TRL averages over all responses, those without a sibling too; the recipe over the tokens of those
that have one.

    python scripts/baselines/trl_sdpo.py seed=0 steps=150 evaluation.every=25 output=runs/trl_sdpo
"""

from __future__ import annotations

from measured import (
    Trainer,
    asked,
    baseline,
    model_of,
    reward_of,
    sampling,
    template_of,
    training,
)
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer
from trl_sdft import alpha_of

from opd.errors import RecipeError
from opd.objective.loss import Distill
from opd.objective.support import TopK
from opd.recipe import Recipe
from opd.teacher.weights import EMA


def open_trainer(recipe: Recipe) -> Trainer:
    (term,) = recipe.terms.values()
    loss, weights = term.loss, recipe.teacher.weights
    if not isinstance(loss, Distill) or not isinstance(weights, EMA):
        raise RecipeError("terms, teacher: this baseline is one Distill term under an EMA teacher")
    if not isinstance(loss.support, TopK):
        raise RecipeError("terms: this baseline compares the student's most probable entries, TopK")
    view = recipe.teacher.views[str(loss.target)]
    shown = template_of(view, "prompt", "solution").removeprefix("{prompt}")
    settings = SDPOConfig(
        **training(recipe),
        **sampling(recipe),
        distillation_mode="topk_logits",
        distillation_topk=loss.support.size,
        distillation_add_tail=loss.support.rest == "tail",
        distillation_alpha=alpha_of(loss.divergence),
        teacher_model_kind="ema",
        teacher_update_rate=1 - weights.decay,
        reprompt_template="{prompt}{solution}",
        solution_template=shown.replace("{solution}", "{successful_previous_attempt}"),
        remove_thinking_from_demonstration=True,
    )
    return SDPOTrainer(
        model=model_of(recipe),
        args=settings,
        reward_funcs=[reward_of(recipe)],
        train_dataset=asked(recipe),
    )


if __name__ == "__main__":
    baseline("trl_sdpo", "sdpo", open_trainer)
