"""What the page and the pictures show beyond the findings: plain series and bars taken from a recording.

Everything is optional: a part that is empty is left out of the page. Times are seconds since the run began.
Sequences may be numpy arrays; a value that was not measured is `None` or NaN. Imports numpy for its types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Series: TypeAlias = Sequence[float | None] | Sequence[float] | npt.NDArray[np.floating[Any]]
Process: TypeAlias = Literal["main", "worker"]


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of the loop.

    Step i begins at `t_s[i]`, waits `wait_s[i]` for its batch and lasts `step_s[i]` in all. `ready` counts
    the finished batches that lay in the queue when the step asked for one.
    """

    t_s: Series = ()
    wait_s: Series = ()
    step_s: Series = ()
    ready: Series = ()
    epoch_starts_s: Series = ()


@dataclass(frozen=True, slots=True)
class Host:
    """Samples of the machine: CPU of the job, each GPU by name, and the disk; any of them may be empty."""

    t_s: Series = ()
    cpu_percent: Series = ()
    gpu_percent: Mapping[str, Series] = field(default_factory=dict)
    disk_bytes_per_s: Series = ()


@dataclass(frozen=True, slots=True)
class Bar:
    """A batch: the worker that produced it, when it began and was done, and when the loop took it."""

    worker: int
    start_s: float
    end_s: float
    batch: int
    taken_s: float | None = None


@dataclass(frozen=True, slots=True)
class Stack:
    """`count` samples of one stack between `t0_s` and `t1_s`; root first, frames `function (file:line)`."""

    process: Process
    frames: tuple[str, ...]
    stage: str
    count: int
    t0_s: float | None = None
    t1_s: float | None = None


@dataclass(frozen=True, slots=True)
class Slow:
    """One of the slowest batches, and what it was made of where that is known."""

    batch: int
    worker: int | None
    seconds: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class SlowSample:
    """One of the slowest samples: its index in the dataset, mean seconds, how often it was timed, its file."""

    index: int
    seconds: float
    cpu_s: float
    seen: int
    file: str = ""


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of batches that were timed in depth: how long each took, and the slowest where indices are known."""

    took_s: Series = ()
    slowest: Sequence[SlowSample] = ()


@dataclass(frozen=True, slots=True)
class PageData:
    """All of it. `steps` are the main loop's; `ranks` has those of every rank where there are several."""

    steps: Steps = field(default_factory=Steps)
    host: Host = field(default_factory=Host)
    bars: Sequence[Bar] = ()
    stacks: Sequence[Stack] = ()
    slow: Sequence[Slow] = ()
    samples: Samples = field(default_factory=Samples)
    ranks: Mapping[int, Steps] = field(default_factory=dict)
