"""What goes into a replay and what comes out: how a DataLoader is set, what its loop costs, what the run then did. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a DataLoader is set; names and meaning are torch's."""

    num_workers: int
    prefetch_factor: int = 2
    in_order: bool = True
    persistent_workers: bool = False
    pin_memory: bool = False

    @property
    def outstanding(self) -> int:
        """Batches that workers are dealt ahead of the loop."""
        return self.prefetch_factor * self.num_workers


@dataclass(frozen=True, slots=True)
class RunCosts:
    """What one loader and its loop cost, in seconds; arrays hold one entry per batch or step, as seen.

    Costs are what an actor needs when nothing else wants the same resources: time spent waiting for a core (run queue),
    for a batch, or at a queue is an outcome of the replay and must not be in them.

    Attributes:
        fetch_cpu_s: CPU to make one batch: read, decode, transform, collate; pickling too unless it is given
            as `send_cpu_s`.
        fetch_blocked_s: time the producer of the batch was blocked (I/O, sleep); same length.
        step_cpu_s: part of the loop's step that keeps the main thread on a core.
        step_blocked_s: part of the step that needs no core: a sleep, a synchronous device. Waits for an
            asynchronous device do not belong here: its time is `device_step_s`.
        receive_cpu_s: CPU to take one batch from a worker (unpickle, file descriptors, mapping), and to draw the indices
            of the next; spent on the pin thread where there is one. Without workers only indices are drawn.
        step_threads: cores the step's CPU part keeps busy at once (intra-op threads).
        worker_start_s: main-thread time to start one worker.
        worker_boot_s: CPU inside a worker between its start and its first fetch.
        epoch_gap_s: the loop's own work between two epochs.
        pin_cpu_s: CPU of the pin thread to pin one batch.
        io_slots: how many blocked reads are served at once, first come first served; None: any number.
        device_step_s: an asynchronous device's own time per step; the loop runs ahead of it until it syncs.
        sync_every: the loop waits for the device every so many steps; None: never.
        sync_at: whether that wait ends a step (`loss.item()`) or begins it (a copy from pageable memory).
        worker_stop_s: for each worker, the end of an epoch whose workers are not persistent: they are joined one by one.
        send_cpu_s: CPU of a worker's queue thread to pickle and send a batch, beside the making of the next;
            not at all without workers.
        answer_cpu_s: CPU of the worker while the receiver waits for it in the midst of receiving (it hands
            over file descriptors, a round trip a tensor): the receive's time less its CPU and run-queue wait.
        held_s: how long an answer waits at most for the GIL of a worker that is computing its next batch; never longer than
            until that batch is made.
        imbalance: how badly the system spreads threads over cores: 0, a core is idle only where nobody wants it; 1, the
            threads beyond all cores but two stay on one of these at random.
        favour: who gets more while producers and a step of several threads want the same cores: 0, all threads get an even
            share; 1, the producers stay on cores that fewer threads share, and the step has what is left; -1, the step's
            threads come first.
        lockstep: how far a step of several threads stands still while one of them has no core: 1, it advances only while
            all of them are on one; 0, they may as well take turns.
        wake_s: how long the loop waits for a core after it was blocked, where as many threads as cores are at work; where
            there are more, longer by as much.
    """

    fetch_cpu_s: Seconds
    fetch_blocked_s: Seconds
    step_cpu_s: Seconds
    step_blocked_s: Seconds
    receive_cpu_s: float
    step_threads: float = 1.0
    worker_start_s: float = 0.0
    worker_boot_s: float = 0.0
    epoch_gap_s: float = 0.0
    pin_cpu_s: float = 0.0
    io_slots: int | None = None
    device_step_s: Seconds | None = None
    sync_every: int | None = None
    sync_at: Literal["end", "start"] = "end"
    worker_stop_s: float = 0.0
    send_cpu_s: float = 0.0
    answer_cpu_s: float = 0.0
    held_s: float = 0.0
    imbalance: float = 0.0
    favour: float = 0.0
    lockstep: float = 1.0
    wake_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the replayed run did, in seconds.

    Steady state leaves out each epoch's first `prefetch_factor * num_workers` batches, at most half an epoch, and where an
    epoch is long enough as many last ones, which are made while no more are dealt. It is whole rounds of the workers.

    Attributes:
        total_s: the whole run, starting and stopping workers and the device's last step included.
        steady_step_s: mean time from one step's end to the next in steady state.
        wait_s: mean time per steady batch in which the loop had nothing to take; without workers, the fetch.
        first_batch_s: from asking for the first batch, workers not yet started, until it is in hand.
        first_round_s: from asking for the first batch until each worker's first one has been stepped on.
        later_epoch_s: mean time of an epoch after the first, the gap before it included; None for one epoch.
        batches: batches taken by the loop.
        worker_busy_share: share of the workers' time spent making batches, while there were batches to make.
        parked: share of the loop's waiting time in which a later batch lay ready (head-of-line blocking).
        held_s: mean time that receiving a batch waited for its worker's GIL.
        device_idle_s: mean time per steady batch in which the device had nothing to do; None without one.
        core_wait_share: of the time in which workers wanted a core to make a batch, the share that they waited for one.
        step_wait_s: mean time of a step that the loop waited for a core.
    """

    total_s: float
    steady_step_s: float
    wait_s: float
    first_batch_s: float
    batches: int
    worker_busy_share: float
    parked: float
    device_idle_s: float | None = None
    first_round_s: float = 0.0
    later_epoch_s: float | None = None
    held_s: float = 0.0
    core_wait_share: float = 0.0
    step_wait_s: float = 0.0
