"""TRL's SDFTTrainer on the recipe `sdft`: the same demonstrations before the same lagging teacher.

TRL leaves the importance correction out where the trainer that samples is the one that learns.

    python scripts/baselines/trl_sdft.py seed=0 steps=150 evaluation.every=25 output=runs/trl_sdft
"""

from __future__ import annotations

from datasets import Dataset
from measured import (
    Trainer,
    baseline,
    messages_of,
    model_of,
    problems_in_order,
    sampling,
    template_of,
    training,
)
from trl.experimental.sdft import SDFTConfig, SDFTTrainer

from opd.errors import RecipeError
from opd.objective.divergence import JSD, Divergence, ForwardKL, ReverseKL
from opd.objective.loss import Distill, SequenceLoss
from opd.objective.weight import FirstTokens
from opd.recipe import Recipe
from opd.teacher.weights import EMA


def alpha_of(divergence: Divergence) -> float:
    """TRL's name for a divergence: the teacher's share of the mixture."""
    if isinstance(divergence, JSD):
        return divergence.teacher_weight
    ends = {ForwardKL: 0.0, ReverseKL: 1.0}
    if type(divergence) not in ends:
        raise RecipeError("terms: TRL knows ForwardKL, JSD and ReverseKL; choose one of these")
    return ends[type(divergence)]


def open_trainer(recipe: Recipe) -> Trainer:
    (term,) = recipe.terms.values()
    loss = term.loss.inner if isinstance(term.loss, SequenceLoss) else term.loss
    weights = recipe.teacher.weights
    skipped = [weight for weight in term.weights if isinstance(weight, FirstTokens)]
    if not isinstance(loss, Distill) or not isinstance(weights, EMA):
        raise RecipeError("terms, teacher: this baseline is one Distill term under an EMA teacher")
    view = recipe.teacher.views[str(loss.target)]
    settings = SDFTConfig(
        **training(recipe),
        **sampling(recipe),
        distillation_mode="full_logits",
        distillation_alpha=alpha_of(loss.divergence),
        num_loss_tokens_to_skip=sum(weight.skip for weight in skipped),
        teacher_model_kind="ema",
        teacher_update_rate=1 - weights.decay,
        teacher_prompt_template=template_of(view, "prompt", "privileged_context"),
    )
    rows = [
        {"prompt": messages_of(p.prompt), "privileged_context": p.privileged.solution}
        for p in problems_in_order(recipe)
    ]
    return SDFTTrainer(model=model_of(recipe), args=settings, train_dataset=Dataset.from_list(rows))


if __name__ == "__main__":
    baseline("trl_sdft", "sdft", open_trainer)
