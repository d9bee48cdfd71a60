"""One change before it is weighed, and what weighing it needs beyond the scene. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loaderprof.findings import Costs
from loaderprof.predict.removal import Model


@dataclass(frozen=True, slots=True)
class Facts:
    """What advice needs beyond the scene: the job's measured rate, memory, and which device the step ran on.

    `job_share`: the share of the job's time that the loop takes, as far as its gain is less than the job's.
    """

    samples_per_s: float | None
    available_memory: int | None
    bytes_per_sample: float | None
    cuda: bool
    torch: str | None
    job_share: float = 1.0


@dataclass(frozen=True, slots=True)
class Change:
    """One change before it is weighed: its words, its `--set` keys or kind, and the replay it leads to."""

    id: str
    action: str
    why: str
    where: str | None
    change: dict[str, Any]
    current: dict[str, Any]
    model: Model
    costs: Costs
    code: str = ""
    # The lowest speedup that one run can promise; None where the replay's own error is all there is to doubt.
    floor: float | None = None
    ceiling: float | None = None
    # Half-width that the interval gains with the log of the speedup, beyond the bound of others.
    error_per_log: float = 0.0
