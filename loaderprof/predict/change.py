"""One change before it is weighed, and what weighing it needs beyond the scene. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loaderprof.diagnose.causes import Scene
from loaderprof.findings import Advice, Costs, Expected
from loaderprof.predict.removal import Model, without

# What a run cannot show before a change, measured on a 2-core machine (tests/benchmarks/replay_accuracy.py): starting
# a forked worker, receiving a batch and each of its tensors, and writing a batch into fresh shared memory: by the byte,
# and by the tensor (120 tensors of 16 x 4: default_collate takes 6.3 ms in a worker, 0.6 ms in the training process).
WORKER_START_S, RECEIVE_S, RECEIVE_PER_TENSOR_S, SHARE_PER_BYTE_S = 0.02, 0.4e-3, 0.07e-3, 0.55e-9
SHARE_PER_TENSOR_S = 47e-6


@dataclass(frozen=True, slots=True)
class Decoders:
    """Image decoders tried on some of the job's own files: how many, their mean pixels, CPU seconds an image by decoder."""

    files: int
    pixels: float
    cpu_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class Facts:
    """What advice needs beyond the scene: the job's measured rate, memory, and which device the step ran on.

    `job_share`: the share of the job's time that the loop takes, as far as its gain is less than the job's. `decoders`: None
    where they were not tried on the job's files.
    """

    samples_per_s: float | None
    available_memory: int | None
    bytes_per_sample: float | None
    cuda: bool
    torch: str | None
    job_share: float = 1.0
    decoders: Decoders | None = None


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
    # What a change of code makes cheaper: two that mend the same thing are not added up.
    cheaper: frozenset[str] = frozenset()

    def advice(self, expected: Expected) -> Advice:
        """Return the change as it is told, once it has been weighed."""
        return Advice(
            self.id, self.action, self.why, self.where, self.change, self.current, expected, self.costs, None, self.code
        )


# Offers a change, or none, to a loop and its replay.
Rule = Callable[[Scene, Model, Facts], Iterator[Change]]


def with_settings(base: Model, tensors: float | None, bytes_: float | None, **settings: Any) -> Model:
    """Return the model with other settings; what handing over costs is assumed where the run had no workers.

    Args:
        base: the loop as it ran.
        tensors: tensors in a batch; None: not measured.
        bytes_: bytes of a batch; None: not measured.
        settings: of `replay.Settings`, those that change.
    """
    costs = base.costs
    if settings.get("num_workers", base.settings.num_workers) and not base.settings.num_workers:
        costs = replace(
            costs,
            worker_start_s=WORKER_START_S,
            receive_cpu_s=RECEIVE_S + RECEIVE_PER_TENSOR_S * (tensors or 1.0),
            fetch_cpu_s=costs.fetch_cpu_s + SHARE_PER_BYTE_S * (bytes_ or 0.0) + SHARE_PER_TENSOR_S * (tensors or 1.0),
        )
    return replace(base, costs=costs, settings=replace(base.settings, **settings))


def faster(base: Model, scene: Scene, stage: str, ratio: float) -> Model:
    """Return the model with one stage `ratio` times as fast."""
    bare = without(base, stage, scene.parts)  # type: ignore[arg-type]
    if bare is None:
        return base
    mix = 1.0 / ratio

    def blend(now: np.ndarray, gone: np.ndarray) -> np.ndarray:
        return np.asarray(gone + (now - gone) * mix)

    costs, less = base.costs, bare.costs
    return replace(
        base,
        costs=replace(
            costs,
            fetch_cpu_s=blend(costs.fetch_cpu_s, less.fetch_cpu_s),
            fetch_blocked_s=blend(costs.fetch_blocked_s, less.fetch_blocked_s),
            answer_cpu_s=less.answer_cpu_s + (costs.answer_cpu_s - less.answer_cpu_s) * mix,
            held_s=less.held_s + (costs.held_s - less.held_s) * mix,
        ),
    )
