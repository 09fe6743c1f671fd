"""What a recipe resolves to, and what student and teacher would read of one real problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import nan

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from opd.config import RECIPES, locate
from opd.learner.batch import build_context
from opd.learner.model import context_length, parameter_count
from opd.privileged import Group, Problem, Trajectory
from opd.recipe import Recipe
from opd.reward import Judge
from opd.rollout.chat import Chat
from opd.tree import write_yaml
from opd.types import Rollout

SHOWN_TOKENS = 8
"""Response tokens shown from each end."""


def list_recipes(console: Console) -> None:
    """Every recipe with the sentence that it starts with."""
    table = Table("recipe", "what it does", box=None, pad_edge=False)
    for path in sorted(RECIPES.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        table.add_row(path.stem, first.removeprefix("# "))
    console.print(table)


def show(recipe: Recipe, console: Console) -> None:
    """The resolved tree, sizes, and one problem's prompts side by side; no model is loaded."""
    tree = write_yaml(recipe.tree)
    console.print(Panel(Text(tree.rstrip()), title="resolved recipe", title_align="left"))
    problems = recipe.problems.problems()
    length = context_length(recipe.model.path)
    console.print(
        f"{recipe.model.path}: {parameter_count(recipe.model.path):,} parameters, context of "
        f"{length:,} tokens; {len(problems):,} problems, {recipe.problems_per_step} a step, "
        f"{recipe.steps} steps"
    )
    recipe.teacher.open_views(problems)
    chat = Chat.open(locate(recipe.model.path), recipe.model.thinking)
    trajectory = example(recipe, problems[0], chat)
    readers = {name: recipe.teacher.weights_of(name).reads(chat) for name in trajectory.views}
    console.print(modes(recipe))
    show_prompts(trajectory, {"student": chat, **readers}, console)
    for view in filter(recipe.teacher.written, recipe.teacher.views):
        console.print(f"view {view!r}: the teacher writes what it shows, anew in every step")
    same = {name: ids for name, ids in trajectory.views.items() if readers[name] is chat}
    show_alignment(replace(trajectory, views=same), chat, console)
    show_room(recipe, trajectory, length, console)


def example(recipe: Recipe, problem: Problem, chat: Chat) -> Trajectory:
    """The problem with a written response, judged by the recipe's reward.

    The response is the problem's own demonstration or solution; a failed attempt stands before it,
    so that views of feedback and of siblings have something to show.
    """
    privileged = problem.privileged
    written = privileged.demonstration or privileged.solution or privileged.answer or "(no answer)"
    rollouts = tuple(as_rollout(problem, text, chat) for text in ("I do not know.", written))
    verdicts = tuple(Judge(recipe.reward, (problem,))(rollouts))
    group = Group(problem, rollouts, verdicts)
    reveal = recipe.teacher.exposure.at(0, recipe.steps, recipe.seed)
    contexts = recipe.teacher.contexts(group, 0, tuple(recipe.teacher.views), chat, reveal)
    return Trajectory(rollouts[1], verdicts[1], 0.0, group.pass_rate, contexts)


def as_rollout(problem: Problem, text: str, chat: Chat) -> Rollout:
    """`text` as if it had been sampled."""
    token_ids = chat.response_ids(text)
    return Rollout(
        prompt=problem.prompt,
        prompt_ids=chat.prompt_ids(problem.prompt.messages),
        token_ids=token_ids,
        logprobs=(nan,) * len(token_ids),
        policy_step=-1,
        finish="stop",
        text=text,
    )


def modes(recipe: Recipe) -> str:
    """Who thinks: what student and views give to the chat template as `enable_thinking`."""
    teacher, own = recipe.teacher, recipe.model.thinking
    said = {None: "as the template has it", True: "on", False: "off"}
    views = {name: teacher.thinking_of(name) for name in teacher.views}
    of_views = (f"view {n!r} {said[own if m is None else m]}" for n, m in views.items())
    return "thinking: " + ", ".join((f"student {said[own]}", *of_views))


def show_prompts(trajectory: Trajectory, readers: Mapping[str, Chat], console: Console) -> None:
    """The student's prompt beside each teacher view's, as the model reads them."""
    contexts = {"student": trajectory.rollout.prompt_ids, **trajectory.views}
    table = Table(show_lines=True, title=f"problem {trajectory.rollout.prompt.id}")
    for name, ids in contexts.items():
        who = name if name == "student" else f"teacher, view {name!r}"
        table.add_column(f"{who}: {len(ids)} tokens", ratio=1)
    table.add_row(*(Text(readers[name].decoded(ids)) for name, ids in contexts.items()))
    console.print(table)


def show_alignment(trajectory: Trajectory, chat: Chat, console: Console) -> None:
    """The response tokens, and the position in each context that predicts them."""
    response = trajectory.rollout.token_ids
    prompts = {"student": trajectory.rollout.prompt_ids, **trajectory.views}
    places = {
        name: build_context([ids], [response], packing=False, pad_id=chat.pad_id).predict_at
        for name, ids in prompts.items()
    }
    pieces = chat.pieces(response)
    table = Table(title="response tokens: the same in every context, and all that a loss reads")
    table.add_column("token", justify="right")
    table.add_column("text")
    for name in places:
        table.add_column(f"{name} predicts at", justify="right")
    count = len(response)
    near_end = max(SHOWN_TOKENS, count - SHOWN_TOKENS)
    for index in [*range(min(count, SHOWN_TOKENS)), *range(near_end, count)]:
        if index == near_end > SHOWN_TOKENS:
            table.add_row("…", f"({near_end - SHOWN_TOKENS} more)")
        predicting = (str(int(predict_at[index])) for predict_at in places.values())
        table.add_row(str(index), repr(pieces[index]), *predicting)
    console.print(table)


def show_room(recipe: Recipe, trajectory: Trajectory, length: int, console: Console) -> None:
    """What is masked, what is cut, and how much room is left."""
    prompt = len(trajectory.rollout.prompt_ids)
    longest = max([prompt, *map(len, trajectory.views.values())])
    response = recipe.sampling.max_response_tokens
    console.print(
        f"masked: all {prompt} prompt tokens, and padding; the example is "
        f"{len(trajectory.rollout.token_ids)} response tokens long."
    )
    verdict = "fits" if longest + response <= length else "DOES NOT FIT"
    console.print(
        f"cut: nothing. The longest prompt of {longest} and {response} response tokens {verdict} "
        f"into the context of {length}; a teacher prompt that does not fit is dropped and counted."
    )
