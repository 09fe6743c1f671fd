"""Which rollouts of a group are trained on; credit, pass rates and views see all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from opd.config import part
from opd.privileged import Group


class Selection(ABC):
    """Picks some of a problem's rollouts."""

    @abstractmethod
    def __call__(self, group: Group) -> frozenset[int]:
        """Indices into `group.rollouts`; one without a verdict is left out whatever is said."""


@part
class Everything(Selection):
    """All of them."""

    def __call__(self, group: Group) -> frozenset[int]:
        return frozenset(range(len(group.rollouts)))


@part
class Contested(Selection):
    """All of a group in which some succeed and some do not; none of another, which has no
    difference to learn from. arXiv 2503.14476."""

    def __call__(self, group: Group) -> frozenset[int]:
        return Everything()(group) if 0 < group.pass_rate < 1 else frozenset()


@part
class ShortestSuccess(Selection):
    """The success of fewest tokens, the first of several; none of a group that failed.

    arXiv 2609.37915.
    """

    def __call__(self, group: Group) -> frozenset[int]:
        successes = (index for index, verdict in enumerate(group.verdicts) if verdict.success)
        lengths = {index: len(group.rollouts[index].token_ids) for index in successes}
        return frozenset([min(lengths, key=lengths.__getitem__)] if lengths else [])
