"""The recipe: every knob of a run, its unit and its default, and what must fit together."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Annotated, cast, get_type_hints

from pydantic import Field

from opd.config import dump, part
from opd.errors import RecipeError
from opd.evaluation.evaluator import Protocol
from opd.guard import Guard
from opd.learner.extrapolate import Extrapolation, Stay
from opd.learner.influence import InfluenceSource, NoInfluence
from opd.learner.learner import Optimizer
from opd.learner.model import Model
from opd.objective.credit import Credit, GroupMean
from opd.objective.loss import Distill
from opd.objective.schedule import Adaptive, Between, Schedule, Steered
from opd.objective.span_loss import SpanLoss
from opd.objective.target import Target
from opd.objective.term import Term
from opd.objective.weight import Influence, PassRate
from opd.parts import parts, places
from opd.pass_rate import Measured, OfGroup, PassRates
from opd.probe import Probe
from opd.problems import Dataset
from opd.reward import Reward
from opd.rollout.engine import Engine, Sampling
from opd.rollout.hf import HF
from opd.rollout.source import OnPolicy, Source
from opd.selection import Everything, Selection
from opd.teacher.exposure import Fixed
from opd.teacher.score import Teacher
from opd.teacher.view import Sibling, View
from opd.teacher.weights import Cached, Foreign
from opd.tree import joined


@part
class Checkpointing:
    """When the state of a run is written, so that it can go on after a fault."""

    every: Annotated[int, Field(ge=0)] = 0
    """Steps; 0 writes the last step only."""
    keep: Annotated[int, Field(gt=0)] = 2
    """Newest checkpoints that stay on disk."""


@part
class Recipe:
    """One run."""

    model: Model
    problems: Dataset
    reward: Reward
    sampling: Sampling
    terms: dict[str, Term]
    """What is minimised: the sum of these."""
    steps: Annotated[int, Field(gt=0)]
    output: str
    """The run's folder."""
    engine: Engine = field(default_factory=HF)
    source: Source = field(default_factory=OnPolicy)
    credit: Credit = field(default_factory=GroupMean)
    selection: Selection = field(default_factory=Everything)
    """Which rollouts of a group are trained on."""
    influence: InfluenceSource = field(default_factory=NoInfluence)
    """Where the influence of each rollout comes from."""
    pass_rate: PassRates = field(default_factory=OfGroup)
    """Where a problem's pass rate comes from."""
    teacher: Teacher = field(default_factory=Teacher)
    optimizer: Optimizer = field(default_factory=Optimizer)
    extrapolation: Extrapolation = field(default_factory=Stay)
    """What becomes of the weights and the optimizer's moments between updates."""
    problems_per_step: Annotated[int, Field(gt=0)] = 32
    updates_per_step: Annotated[int, Field(gt=0)] = 1
    """Optimizer steps on each step's rollouts, each on a part of them."""
    tokens_per_batch: Annotated[int, Field(gt=0)] = 16384
    """Positions of one of the student's micro-batches, padding included."""
    packing: bool = False
    """Lay sequences end to end instead of padding them."""
    max_length: Annotated[int, Field(gt=0)] | None = None
    """Prompt and response tokens together; None takes the model's whole context."""
    benchmarks: dict[str, Dataset] = field(default_factory=dict)
    """What is measured before and after training."""
    evaluation: Protocol = field(default_factory=Protocol)
    probe: Probe | None = None
    """Answers whose likelihood is measured at every step."""
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    guard: Guard = field(default_factory=Guard)
    """What the run's numbers must not do."""
    sync_tolerance: Annotated[float, Field(gt=0)] = 0.05
    """Nats, on average over tokens, by which log-probs of the engine may differ from the trainer's
    when it has just taken the trainer's weights."""
    rollouts_logged: Annotated[int, Field(ge=0)] = 2
    """Rollouts a logged step whose tokens are kept for the report."""
    log_rollouts_every: Annotated[int, Field(gt=0)] = 25
    """Steps."""
    trackers: tuple[str, ...] = ()
    """Names that accelerate knows, such as tensorboard, wandb or trackio."""
    seed: int = 0

    @property
    def tree(self) -> dict[str, object]:
        """The resolved recipe as plain data."""
        return cast("dict[str, object]", dump(self))

    def __post_init__(self) -> None:
        if not self.terms:
            raise RecipeError("terms: there is none, so nothing would be learned; add one")
        for name, term in self.terms.items():
            self.check_views(name, term)
            self.check_temperature(name, term)
        self.check_sampler()
        self.check_truth()
        self.check_pools()
        self.check_siblings()
        self.check_written()
        self.check_metrics()
        self.check_exposure()
        self.check_schedules()
        self.check_guard()
        for name, term in self.terms.items():
            self.check_pass_rates(name, term)

    def check_views(self, name: str, term: Term) -> None:
        """Every view that a term reads is one that the teacher has."""
        behind = () if term.context == "student" else (term.context,)
        for view in (*term.views, *behind):
            if view not in self.teacher.views:
                known = ", ".join(self.teacher.views) or "none"
                raise RecipeError(
                    f"terms.{name}: it reads the view {view!r}, but teacher.views holds {known}; "
                    "add the view or name one that is there"
                )
        of_spans = isinstance(term.loss, SpanLoss)
        for view in term.loss.views:
            if isinstance(self.teacher.weights_of(view), Foreign) != of_spans:
                raise RecipeError(
                    f"terms.{name}.loss: a teacher with a tokenizer of its own and a loss of spans "
                    f"need each other, and of the view {view!r} only one is there; take Foreign "
                    "weights with SortedDistance or MatchedDistance"
                )

    def check_temperature(self, name: str, term: Term) -> None:
        """A correction compares log-probs, which must be of one temperature."""
        drawn_at = self.sampling.temperature
        for where, found in places(term.loss, f"terms.{name}.loss"):
            if not isinstance(found, Distill) or found.correction is None:
                continue
            if found.temperature != drawn_at:
                raise RecipeError(
                    f"{where}.temperature: {found.temperature:g}, but its correction compares with "
                    f"samples at {drawn_at:g}; set both alike, or correction=null"
                )

    def check_pools(self) -> None:
        """What shares a denominator counts the same things, and there are two of it."""
        pools: dict[str, list[str]] = {}
        for name, term in self.terms.items():
            if term.pool is not None:
                pools.setdefault(term.pool, []).append(name)
        for pool, names in pools.items():
            if len(names) < 2:
                raise RecipeError(
                    f"terms.{names[0]}.pool: no other term names {pool!r}, so nothing is shared; "
                    "name it in another term or set pool=null"
                )
            if len({self.terms[name].average for name in names}) > 1:
                raise RecipeError(
                    f"terms.{names[0]}.average: the terms {', '.join(names)} share the pool "
                    f"{pool!r} but do not count the same things; give them one average"
                )

    def check_sampler(self) -> None:
        """Written responses have no sampling policy to take a ratio to."""
        name = next((name for name, term in self.terms.items() if term.loss.needs_sampler), None)
        if name is not None and not self.source.tells_logprobs:
            raise RecipeError(
                f"source: terms.{name} needs sampled rollouts, but here some are written, and have "
                "no policy that drew them; set source=OnPolicy or drop the term"
            )

    def check_truth(self) -> None:
        """What the student has drawn itself is no truth."""
        for where, found in places(self.terms, "terms"):
            if isinstance(found, Target) and found.trusts_text and self.source.tells_logprobs:
                raise RecipeError(
                    f"{where}: it takes taken tokens for the truth, but no response is written "
                    "here; give it a start, or set source=Demonstrations, or, for what a better "
                    "model drew, source.learned=as_written"
                )

    def check_pass_rates(self, name: str, term: Term) -> None:
        """A weight by pass rate tells problems apart, and what it is divided by stays."""
        is_unknown = isinstance(self.influence, NoInfluence)
        if is_unknown and any(isinstance(weight, Influence) for weight in term.weights):
            raise RecipeError(
                f"terms.{name}.weights: Influence is 1 throughout while nothing measures it; set "
                "influence=GradientCosine"
            )
        for weight in term.weights:
            if not isinstance(weight, PassRate) or not weight.a + weight.b:
                continue
            is_measured = isinstance(self.pass_rate, Measured)
            if isinstance(self.pass_rate, OfGroup) and not self.pass_rate.pseudo_count:
                self.check_groups(name)
            if weight.divide_by != "nothing" and term.divides_by_weights:
                raise RecipeError(
                    f"terms.{name}.weights: PassRate is divided by its {weight.divide_by}, but "
                    f"average={term.average} with denominator={term.denominator} divides by the "
                    "weights again; set average=sequence or token, and denominator=all"
                )
            if weight.divide_by == "mean" and not is_measured:
                raise RecipeError(
                    f"terms.{name}.weights: PassRate is divided by its mean over all problems, "
                    "which pass_rate=OfGroup does not know; set pass_rate=Measured"
                )

    def check_groups(self, name: str) -> None:
        """The pass rate of a single rollout is 0 or 1, where the weight is 0."""
        if self.source.most_per_problem < 2:
            raise RecipeError(
                f"terms.{name}.weights: PassRate of a single rollout is 0; set "
                "source.rollouts_per_problem to 2 or more, or pass_rate=Measured"
            )

    def check_siblings(self) -> None:
        """A sibling needs a group of at least two."""
        shows_sibling = any(isinstance(view, Sibling) for _, view in parts(self.teacher.views))
        if shows_sibling and self.source.most_per_problem < 2:
            raise RecipeError(
                "teacher.views: a Sibling view needs other rollouts of the same problem; set "
                "source.rollouts_per_problem to 2 or more"
            )

    def check_written(self) -> None:
        """What the teacher writes is drawn in the student's engine."""
        for name in self.teacher.views:
            weights = self.teacher.weights_of(name)
            if self.teacher.written(name) and not weights.can_write:
                raise RecipeError(
                    f"teacher.views.{name}: the teacher writes what it shows in the student's "
                    f"engine, which cannot hold {type(weights).__name__} weights; choose others "
                    "for this view"
                )

    def check_metrics(self) -> None:
        """A number that follows a term's metric would rest if there were no such term."""
        for where, found in parts(self):
            if not isinstance(found, Adaptive | Steered) or "/" not in found.metric:
                continue
            term = found.metric.rpartition("/")[2]
            if term not in self.terms:
                raise RecipeError(
                    f"{where}.metric: {found.metric!r} is of the term {term!r}, and terms holds "
                    f"{', '.join(self.terms)}; name one of these"
                )

    def check_exposure(self) -> None:
        """A share that changes nothing, or that learns from nothing, is a slip."""
        exposure = self.teacher.exposure
        views = (view for _, view in parts(self.teacher.views) if isinstance(view, View))
        if exposure != Fixed() and not any(view.shows_share for view in views):
            raise RecipeError(
                "teacher.exposure: no view shows a part of its reference, so it changes nothing; "
                "add a Solution view or drop it"
            )
        if exposure.reads_probe and self.probe is None:
            raise RecipeError(
                f"teacher.exposure: {type(exposure).__name__} learns from what a probe measures, "
                "but there is none; set probe={}"
            )
        self.check_recorded()

    def check_recorded(self) -> None:
        """What was scored once was scored with whole references."""
        for name, view in self.teacher.views.items():
            is_recorded = isinstance(self.teacher.weights_of(name), Cached)
            shares = any(isinstance(v, View) and v.shows_share for _, v in parts(view))
            if is_recorded and shares and self.teacher.exposure != Fixed():
                raise RecipeError(
                    f"teacher.exposure: the view {name!r} was scored with whole references, and "
                    "Cached weights score nothing anew; leave it at 1 or take other weights"
                )

    def check_guard(self) -> None:
        """The state that a run goes back to is one that was measured."""
        goes_back = any(limit.then == "roll_back" for limit in self.guard.limits.values())
        if goes_back and not self.evaluation.every:
            raise RecipeError(
                "guard.limits: one rolls back, but evaluation.every=0 measures no state to go back "
                "to; set evaluation.every"
            )

    def check_schedules(self) -> None:
        """No schedule leaves what its part can use."""
        for where, found in parts(self):
            for key, hint in get_type_hints(type(found), include_extras=True).items():
                for bound in getattr(hint, "__metadata__", ()):
                    if isinstance(bound, Between):
                        self.check_schedule(joined(where, key), getattr(found, key), bound)

    def check_schedule(self, where: str, schedule: Schedule, bound: Between) -> None:
        values = [schedule.at(step, self.steps) for step in range(self.steps)]
        outside = [value for value in values if not bound.low <= value <= bound.high]
        if outside:
            most = "" if bound.high == math.inf else f" and {bound.high:g} or below"
            raise RecipeError(
                f"{where}: it reaches {outside[0]:g}; keep it at {bound.low:g} or above{most}"
            )
