"""One loader and the loop that takes its batches: its epochs, what each batch cost, who produced it.

A loop's time is covered exactly: `starting the iterator + sum(wait) + sum(step) + end of the epoch`, where a step
leaves out whatever other loops ran inside it (a validation loop inside a training step is a loop of its own). Times are
seconds since the run started; what was not measured is NaN. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from loaderprof.recording.facts import LoaderFacts
from loaderprof.recording.reader import Process

Seconds = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


# Steps timed by the device from which on its own clock says how long it had nothing to do.
MIN_DEVICE_STEPS = 10


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over a loader; seconds, moments since the run started.

    Attributes:
        begun: when the loop asked for an iterator.
        ready: when it had one.
        ended: when the loop had left it, its workers shut down; None where the loop broke out of it.
        shutdown_s: of that, ending the epoch.
        first_batch_s: from `begun` until the first batch was taken; NaN: not measured.
        batches: that were taken.
        restarted: on persistent workers that an earlier epoch had started.
        index_s: in the sampler while the iterator was created.
        anew: the first epoch of its loader object.
    """

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
    """Batches as their producers measured them, one row each; seconds, of the producer's thread where nothing else is said.

    `wall = cpu + runq + blocked`; collating is within all of them.

    Attributes:
        worker: number of the worker; -1: the main process.
        pid, task, epoch: of its process, of the batch in it, of its epoch there.
        begun, done, put: when making it began and ended, and when it was put into the queue.
        wall, cpu, runq, blocked: making it: in all, on a CPU, waiting for a core, and blocked.
        collate, collate_cpu: in the collate function: in all, and on a CPU.
        threads_cpu: CPU of the process's other threads meanwhile; NaN: not measured.
        asked_bytes, device_bytes: read: asked of the system, and come from a disk.
        faults: page faults that waited for a disk.
        samples: in the batch.
        count: batches that share its record.
        deep: whether it was timed per operator, which makes it slower than others.
        warm: whether its process had recorded another one before.
        pickle_cpu, pickle_wall: pickling it in the worker's queue thread; NaN: not measured.
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


@dataclass(frozen=True, slots=True)
class Loop:
    """One loader in one process, and the loop that takes its batches.

    Arrays have one entry a record, in the order taken, all epochs after one another. A record is of one batch, or, in a
    loop too fast to stamp each, of `count` batches whose waits and steps it sums up.

    Attributes:
        process: that the loop runs in.
        facts: of the loader.
        iterators: numbers of its iterators in the recording.
        epochs: passes over it.
        epoch, position: number of each batch's epoch, and its own within it.
        asked, taken: moments at which the loop asked for the batch, and had it.
        wait, step: seconds between these two, and until the loop asked again; other loops inside the step left out.
        step_cpu, step_process_cpu, step_runq: seconds of the step on a CPU, of the whole process, and waiting for a core.
        receive, receive_cpu: seconds of taking the batch out of the queue.
        index: seconds in the sampler.
        ready: finished batches in the queue when the loop asked; -1: unknown.
        parked: later batches that lay ready while the loop waited for this one (head-of-line blocking).
        training: whether most batches were taken with gradients enabled.
        main_thread: whether its thread is the process's first that iterated a loader.
        steady: which batches lie past the warm-up and the starts of epochs.
        made: batches that were measured where they were made, one row each.
        nested_s: seconds of other loops inside its steps.
        background: a thread beside the main one takes the batches while others compute, so that its waiting is not the
            training's.
        starved, busy: by measured step, seconds in which the device had nothing to do, and in which it worked.
    """

    process: Process
    facts: LoaderFacts
    iterators: tuple[int, ...]
    epochs: tuple[Epoch, ...]
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
        return "loader" if self.facts.name is None else self.facts.name

    @property
    def num_workers(self) -> int:
        """Worker processes of the loader."""
        return self.facts.num_workers or 0

    @property
    def idle_workers(self) -> int:
        """Workers without a share of an iterable dataset, which has fewer shards than there are workers."""
        shards, at_work = self.facts.shards, len(np.unique(self.made.worker))
        if shards is None or not self.facts.iterable or not 0 < at_work <= shards:
            return 0
        return max(0, self.num_workers - shards)

    @property
    def batches(self) -> int:
        """Batches taken in all."""
        return int(self.count.sum())

    @property
    def span_s(self) -> float:
        """Seconds of the loop in all: starts and ends of its epochs, waits, steps; other loops inside left out."""
        return float(
            np.nansum(self.wait)
            + np.nansum(self.step)
            + sum(e.ready - e.begun for e in self.epochs)
            + sum(e.shutdown_s for e in self.epochs)
        )

    @property
    def wait_s(self) -> float | None:
        """Steady seconds a batch that the loop waits for it."""
        return self.mean(self.wait)

    @property
    def step_s(self) -> float | None:
        """Steady seconds a batch of the loop's step."""
        return self.mean(self.step)

    @property
    def batch_s(self) -> float | None:
        """Steady seconds from one batch to the next."""
        return total_of(self.wait_s, self.step_s)

    @property
    def idle_s(self) -> float | None:
        """Seconds a step in which whoever computes it had nothing to do: a wait that the device did not feel is no cost."""
        return float(self.starved.mean()) if len(self.starved) >= MIN_DEVICE_STEPS else self.wait_s

    @property
    def pace_s(self) -> float | None:
        """Seconds a batch over whole epochs, the gaps between them included, without the first epoch, which warms up.

        Where no later epoch was recorded whole, all epochs count; of a single one, its steady pace. None where neither was
        measured.
        """
        epochs = [epoch for epoch in self.epochs if epoch.batches]
        usual = float(np.median([epoch.batches for epoch in epochs])) if epochs else 0.0
        numbered = list(zip(np.unique(self.epoch), epochs, strict=False))
        # An epoch that the loop broke out of is whole if it is as long as the others: the loop ends all of them so. The last
        # one may still have been going on.
        whole = [each for each in numbered[:-1] if each[1].ended is not None or each[1].batches >= usual]
        whole += [each for each in numbered[-1:] if each[1].ended is not None]
        later = [each for each in whole if each is not numbered[0]] or (numbered if len(numbered) > 1 else [])
        if not later:
            return self.batch_s
        seconds = 0.0
        for number, epoch in later:
            mine = self.epoch == number
            steps = np.where(np.isfinite(self.step[mine]), self.step[mine], self.step_s or 0.0)
            seconds += float(np.nansum(self.wait[mine]) + steps.sum()) + epoch.ready - epoch.begun + epoch.shutdown_s
        return float(seconds / sum(epoch.batches for _, epoch in later))

    def mean(self, values: Seconds) -> float | None:
        """Return the steady mean per batch of a per-record array; None where nothing steady was measured."""
        chosen = self.steady & np.isfinite(values)
        batches = self.count[chosen].sum()
        return float(values[chosen].sum() / batches) if batches else None


def total_of(wait_s: float | None, step_s: float | None) -> float | None:
    """Return a wait and a step together; None where one of them was not measured."""
    return wait_s + step_s if wait_s is not None and step_s is not None else None
