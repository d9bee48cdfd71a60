"""One loader and the loop that takes its batches: its epochs, what each batch cost, who produced it.

A loop's time is covered exactly: `starting the iterator + sum(wait) + sum(step) + end of the epoch`, where a step
leaves out whatever other loops ran inside it (a validation loop inside a training step is a loop of its own). Times are
seconds since the run started; what was not measured is NaN. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from loaderprof.recording.reader import Process

Seconds = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over a loader. `ended` is None where the loop left early; `restarted`: on workers that were kept;
    `anew`: the first of its loader object."""

    begun: float
    ready: float
    ended: float | None
    shutdown_s: float
    first_batch_s: float
    batches: int
    restarted: bool
    index_s: float
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """Batches as their makers saw them, one row each. `wall = cpu + runq + blocked`, without collate's share apart.

    `deep` rows were timed operator by operator and are dearer; `worker` is -1 in the main process.
    """

    worker: Ints
    pid: Ints
    task: Ints
    epoch: Ints
    begun: Seconds
    done: Seconds
    put: Seconds
    wall: Seconds
    cpu: Seconds
    runq: Seconds
    blocked: Seconds
    collate: Seconds
    collate_cpu: Seconds
    threads_cpu: Seconds
    asked_bytes: Seconds
    device_bytes: Seconds
    faults: Ints
    samples: Ints
    count: Ints
    deep: Bools
    warm: Bools
    pickle_cpu: Seconds
    pickle_wall: Seconds


@dataclass(slots=True)
class Loop:
    """One loader in one process, and the loop that takes its batches.

    Arrays have one entry a batch, in the order taken, all epochs after one another; `count` > 1 stands for that many
    batches of a loop too fast to stamp each. `made` has one row a batch that was measured where it was made. `background`: a
    thread beside the main one takes the batches while others compute, so that its waiting is not the training's.
    """

    process: Process
    facts: dict[str, Any]
    iterators: tuple[int, ...]
    epochs: list[Epoch]
    epoch: Ints
    position: Ints
    asked: Seconds
    taken: Seconds
    wait: Seconds
    step: Seconds
    step_cpu: Seconds
    step_process_cpu: Seconds
    step_runq: Seconds
    receive: Seconds
    receive_cpu: Seconds
    index: Seconds
    ready: Ints
    parked: Ints
    count: Ints
    training: bool
    main_thread: bool
    steady: Bools
    made: Made
    nested_s: float = 0.0
    background: bool = False
    starved: Seconds = field(default_factory=lambda: np.zeros(0))
    busy: Seconds = field(default_factory=lambda: np.zeros(0))

    @property
    def name(self) -> str:
        """The variable that holds the loader, as far as it could be found."""
        return str(self.facts.get("name", "loader"))

    @property
    def num_workers(self) -> int:
        """Worker processes of the loader."""
        return int(self.facts.get("num_workers") or 0)

    @property
    def idle_workers(self) -> int:
        """Workers that made no batch of an iterable dataset, which has fewer shards than there are workers."""
        shards, at_work = self.facts.get("shards"), len(np.unique(self.made.worker))
        if not isinstance(shards, int) or not self.facts.get("iterable") or not 0 < at_work <= shards:
            return 0
        return max(0, self.num_workers - shards)

    @property
    def batches(self) -> int:
        """Batches taken in all."""
        return int(self.count.sum())

    @property
    def span_s(self) -> float:
        """Seconds between the first iterator's creation and the last sign of the loop, other loops inside left out."""
        return float(
            np.nansum(self.wait)
            + np.nansum(self.step)
            + sum(e.ready - e.begun for e in self.epochs)
            + sum(e.shutdown_s for e in self.epochs)
        )

    @property
    def pace_s(self) -> float | None:
        """Seconds a batch as the job goes on: whole epochs with their borders, without the first, which warms up.

        Where no later one was seen whole, all epochs count; of a single one, its steady pace. None where neither was seen.
        """
        wait, step = self.mean(self.wait), self.mean(self.step)
        epochs = [epoch for epoch in self.epochs if epoch.batches]
        usual = float(np.median([epoch.batches for epoch in epochs])) if epochs else 0.0
        numbered = list(zip(np.unique(self.epoch), epochs, strict=False))
        # An epoch that the loop left early is whole where it leaves all of them so; the last may still go on.
        whole = [each for each in numbered[:-1] if each[1].ended is not None or each[1].batches >= usual]
        whole += [each for each in numbered[-1:] if each[1].ended is not None]
        later = [each for each in whole if each is not numbered[0]] or (numbered if len(numbered) > 1 else [])
        if not later:
            return wait + step if wait is not None and step is not None else None
        seconds = 0.0
        for number, epoch in later:
            mine = self.epoch == number
            steps = np.where(np.isfinite(self.step[mine]), self.step[mine], step or 0.0)
            seconds += float(np.nansum(self.wait[mine]) + steps.sum()) + epoch.ready - epoch.begun + epoch.shutdown_s
        return float(seconds / sum(epoch.batches for _, epoch in later))

    def mean(self, values: Seconds) -> float | None:
        """Return the steady mean per batch of a per-batch array; None where nothing steady was seen."""
        chosen = self.steady & np.isfinite(values)
        batches = self.count[chosen].sum()
        return float(values[chosen].sum() / batches) if batches else None
