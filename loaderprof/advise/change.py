"""A change before it is weighed, the rule that offers it, and what weighing it needs beyond the loop's context. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.findings import Advice, Costs, Expected
from loaderprof.replay.model import LoopModel

# Reading that takes more of making a batch than this may be at the limit of its source.
MOSTLY_READING = 0.5


@dataclass(frozen=True, slots=True)
class Decoders:
    """Image decoders tried on some of the job's own files: how many, their mean pixels, CPU seconds an image by decoder."""

    files: int
    pixels: float
    cpu_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What advice needs beyond the loop's context: the job's measured rate, memory, and which device the step ran on.

    `job_share`: the share of the job's time that the loop takes, as far as its gain is less than the job's. `decoders`: None
    where they were not tried on the job's files. `uneven`: see `weigh.unevenness`.
    """

    samples_per_s: float | None
    available_memory: int | None
    bytes_per_sample: float | None
    cuda: bool
    torch: str | None
    job_share: float = 1.0
    decoders: Decoders | None = None
    uneven: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change to one loop, before it is weighed: its words, its `--set` keys or kind, and the model it leads to."""

    id: str
    action: str
    why: str
    # The line to edit, as `file:line`.
    where: str | None = None
    # Keys that `--set` takes, or `{"kind": ...}` for a change of code; and what these are now.
    change: dict[str, Any]
    current: dict[str, Any] = field(default_factory=dict)
    model: LoopModel
    costs: Costs
    code: str = ""
    # Bounds of the speedup where one run leaves more open than the replay's own error; None: that error alone counts.
    floor: float | None = None
    ceiling: float | None = None
    # Half-width that the interval gains with the log of the speedup, beyond the bound of other changes.
    error_per_log: float = 0.0
    # Samples in a batch over those it had.
    samples: float = 1.0
    # Stages whose work a change of code reduces: the gains of two changes that reduce the same work do not add up.
    cheaper: frozenset[str] = frozenset()

    def between(self, base: LoopModel, worst: LoopModel, best: LoopModel) -> Change:
        """Return the change with the speedups of two models over `base` as its bounds."""
        before_s = base.pace_s()
        return replace(self, floor=before_s / worst.pace_s(), ceiling=before_s / best.pace_s())

    def advice(self, expected: Expected) -> Advice:
        """Return the change as the findings hold it, with what it is expected to gain."""
        return Advice(
            id=self.id,
            action=self.action,
            why=self.why,
            where=self.where,
            change=self.change,
            current=self.current,
            expected=expected,
            costs=self.costs,
            code=self.code,
        )


@dataclass(frozen=True, slots=True)
class ChangeGuide:
    """A change in general words, for any job, as the guide to the causes (docs/causes.md) prints it.

    `action` is Markdown, `code` is Python. `setting`: `--set` makes the change, so that `loaderprof verify` can measure it.
    """

    id: str
    action: str
    code: str = ""
    setting: bool = False


# Yields the changes, or none, that a rule offers to a loop and the model of it.
Offers = Callable[[LoopContext, LoopModel, RunFacts], Iterator[Change]]


@dataclass(frozen=True, slots=True)
class ChangeRule:
    """When and how changes are offered, beside what the guide says of each of them.

    `predicted`: False where one run shows that the change is due, but not what it gains.
    """

    guides: tuple[ChangeGuide, ...]
    offers: Offers
    predicted: bool = True

    def __call__(self, context: LoopContext, base: LoopModel, facts: RunFacts) -> Iterator[Change]:
        """Yield the changes that apply to one loop, none of them weighed yet."""
        return self.offers(context, base, facts)


def rule(*guides: ChangeGuide, predicted: bool = True) -> Callable[[Offers], ChangeRule]:
    """Make a rule of the function below it, which offers the changes that `guides` describe."""
    return lambda offers: ChangeRule(guides, offers, predicted)


def may_be_full(context: LoopContext) -> bool:
    """Return whether reading dominates: one run cannot tell latency from a server or disk that is full."""
    return (context.share("read") or 0.0) > MOSTLY_READING
