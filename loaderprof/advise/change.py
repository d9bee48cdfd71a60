"""One change before it is weighed, and what weighing it needs beyond the scene. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    """What advice needs beyond the scene: the job's measured rate, memory, and which device the step ran on.

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


@dataclass(frozen=True, slots=True)
class Change:
    """One change before it is weighed: its words, its `--set` keys or kind, and the replay it leads to."""

    id: str
    action: str
    why: str
    where: str | None
    change: dict[str, Any]
    current: dict[str, Any]
    model: LoopModel
    costs: Costs
    code: str = ""
    # The lowest speedup that one run can promise; None where the replay's own error is all there is to doubt.
    floor: float | None = None
    ceiling: float | None = None
    # Half-width that the interval gains with the log of the speedup, beyond the bound of others.
    error_per_log: float = 0.0
    # Samples in a batch over those it had.
    samples: float = 1.0
    # What a change of code makes cheaper: two that mend the same thing are not added up.
    cheaper: frozenset[str] = frozenset()

    def advice(self, expected: Expected) -> Advice:
        """Return the change as it is told, once it has been weighed."""
        return Advice(
            self.id, self.action, self.why, self.where, self.change, self.current, expected, self.costs, None, self.code
        )


def may_be_full(context: LoopContext) -> bool:
    """Return whether reading dominates: one run cannot tell latency from a server or disk that is full."""
    return (context.share("read") or 0.0) > MOSTLY_READING


# Offers a change, or none, to a loop and its replay.
Rule = Callable[[LoopContext, LoopModel, RunFacts], Iterator[Change]]
