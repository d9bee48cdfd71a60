"""What one batch of a loop costs, by stage and by name: timers, kernel counters and stacks brought together.

In the producer of a batch (a worker, or the main process without workers) wall time is thread CPU + run-queue wait +
blocked time; `pieces` divides it by operators. In the loop's own process stacks separate the model's work from the loop's
own Python. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from loaderprof.analyze import loop_side, pools
from loaderprof.analyze.device import STARVED, Copies, copies_of
from loaderprof.analyze.loop import Bools, Loop, Made, Seconds
from loaderprof.analyze.pieces import OperatorCost, pieces_of
from loaderprof.analyze.pools import Pool
from loaderprof.analyze.reads import Reads, reads_of
from loaderprof.analyze.stages import WORK, stage_of_stack
from loaderprof.findings import Stage
from loaderprof.recording.reader import Recording
from loaderprof.recording.stacks import StackSamples

# Fewer stack samples have no shares worth showing: one of 20 is 5 %, the least gain of a bottleneck.
MIN_STACK_SAMPLES = 20
# Below this CPU time a batch, its producer's other threads are those that hand over the batch before.
MIN_THREADED_S = 0.001


@dataclass(frozen=True, slots=True)
class Breakdown:
    """What a batch of one loop costs, in seconds per batch; None where nothing was measured.

    Attributes:
        measured: usual batches that were measured.
        wall_s, cpu_s, runq_s, blocked_s: of its producer: in all, on a CPU, waiting for a core, and blocked.
        collate_s, pickle_s: of that, collating; and pickling in the worker's queue thread.
        receive_s, index_s: of the loop: taking the batch out of the queue, and in the sampler.
        pieces: what making a batch took, by name, most expensive first; they add up to the producer's CPU and blocked time.
        timed_batches: that were timed per operator.
        by_stack: samples of the producers by stage; empty where there were too few stacks.
        stack_samples: how many there were.
        host_share: share of the step that is the loop's own Python, by stacks; None where there were too few.
        host_by: the lines of that, with their shares of the step.
        step_samples: stack samples of the step.
        stall_s: seconds per step beyond the usual step, in steps that stalled.
        stall_every: steps from one stall to the next; None: no stalls.
        threads: CPU of the producer's whole process over its thread's: above 1, libraries run threads of their own. None
            where batches are too short to measure it.
        lock_holder: the line of a Python thread that computes beside the loop and holds the GIL.
        device_bytes, asked_bytes: read: from a disk, and asked of the system.
        pool: the threads or processes that make the batches of a watched iterable; None where none were seen.
        reads: how the bytes of a batch come.
        producers_unseen: threads or processes make them, but too few samples show what these do.
        copies: how a batch gets to the device; None where the step does not run on one.
        copy_s: seconds of the device's step that the copy takes.
    """

    measured: int
    wall_s: float | None
    cpu_s: float | None
    runq_s: float | None
    blocked_s: float | None
    collate_s: float | None
    pickle_s: float | None
    receive_s: float | None
    index_s: float | None
    pieces: tuple[OperatorCost, ...]
    timed_batches: int
    by_stack: dict[Stage, int]
    stack_samples: int
    host_share: float | None
    host_by: tuple[tuple[str, float], ...]
    step_samples: int
    stall_s: float
    stall_every: float | None
    threads: float | None
    lock_holder: str | None
    device_bytes: float | None
    asked_bytes: float | None
    pool: Pool | None = None
    reads: Reads | None = None
    producers_unseen: bool = False
    copies: Copies | None = None
    copy_s: float | None = None

    def takes_turns(self) -> bool:
        """Return whether the producers are threads that take turns at the GIL."""
        return self.pool is not None and self.pool.locked >= pools.LOCKED_SHARE


def break_down(recording: Recording, loop: Loop) -> Breakdown:
    """Return what a batch of `loop` costs."""
    made, sources = loop.made, sources_of(recording)
    usual = usual_batches(loop)
    stacks = _producer_stacks(recording, loop)
    by_stack = _count_stages(stacks, sources)
    threads = _threads(made, usual)
    pieces = pieces_of(recording, loop, usual, stacks, sources, threads)
    pool = pools.pool_of(recording, loop, sources)
    if pool is not None:
        pieces = _pooled(pool, loop, pieces)
        by_stack = {stage: round(pool.share(stage) * pool.samples) for stage in WORK}
        samples, reading = pool.samples, pools.reading_stacks(recording, loop, sources)
    else:
        samples = sum(by_stack.values())
        reading = [sample for sample in stacks if stage_of_stack(sample.frames, sources) == "read"]
    host_share, host_by, step_samples = loop_side.host_share(recording, loop, sources)
    copies = copies_of(recording, loop, sources)
    starved = len(loop.starved) > 0 and float(loop.starved.mean()) > STARVED * (loop.step_s or 0.0)
    holder = _lock_holder(recording, loop, sources, pool)
    # A thread that holds the GIL stalls the loop too, but that is not the loop's own doing.
    stall_s, stall_every = (0.0, None) if holder else loop_side.stalls(loop)

    def mean(values: Seconds, file: str = "") -> float | None:
        """Return the mean of usual batches; None where the job could not read the kernel's `file`."""
        return None if file in loop.process.header.unread else _mean(values[usual])

    return Breakdown(
        measured=int(usual.sum()),
        wall_s=mean(made.wall),
        cpu_s=mean(made.cpu),
        runq_s=mean(made.runq, "schedstat"),
        blocked_s=mean(made.blocked),
        collate_s=mean(made.collate),
        pickle_s=mean(made.pickle_cpu),
        receive_s=loop.mean(loop.receive_cpu),
        index_s=loop.mean(loop.index),
        pieces=pieces,
        timed_batches=int(made.deep.sum()),
        by_stack=by_stack if samples >= MIN_STACK_SAMPLES else {},
        stack_samples=sum(by_stack.values()),
        host_share=host_share,
        host_by=host_by,
        step_samples=step_samples,
        stall_s=stall_s,
        stall_every=stall_every,
        threads=None if pool else threads,
        lock_holder=holder,
        device_bytes=mean(made.device_bytes, "io"),
        asked_bytes=mean(made.asked_bytes, "io"),
        pool=pool,
        reads=reads_of(recording, loop, reading),
        producers_unseen=pools.too_little_seen(recording, loop, pool),
        copies=copies,
        copy_s=copies.seconds(starved) if copies is not None else None,
    )


def _mean(values: Seconds) -> float | None:
    measured = values[np.isfinite(values)]
    return float(measured.mean()) if len(measured) else None


def _threads(made: Made, usual: Bools) -> float | None:
    """Return how many cores a producer keeps busy; None where its batches are too short to measure it."""
    measured = usual & np.isfinite(made.threads_cpu)
    own = float(made.cpu[measured].mean()) if measured.any() else 0.0
    return 1.0 + float(made.threads_cpu[measured].mean()) / own if own > MIN_THREADED_S else None


def _lock_holder(recording: Recording, loop: Loop, sources: dict[str, str], pool: Pool | None) -> str | None:
    """Return the line that holds the GIL: of the pool's threads where there is a pool."""
    if pool is not None and pool.locked >= pools.LOCKED_SHARE:
        return next((each.where for each in pool.work if each.where), None) or pool.words()
    # Where the GIL is free at times it is not what the loop waits for.
    if pool is not None and pool.kind == "threads" and not pool.holds_lock():
        return None
    return loop_side.lock_holder(recording, loop, sources)


def _pooled(pool: Pool, loop: Loop, own: tuple[OperatorCost, ...]) -> tuple[OperatorCost, ...]:
    """Return the pieces of making a batch where a pool makes it.

    Of producers that work beside the loop: their own CPU and blocked seconds. Of producers that work only while the loop
    waits for them: the loop's wait, divided by what they did, beside what the loop's own thread does for a batch.
    """
    if pool.overlapped:
        period = (loop.mean(loop.wait) or 0.0) + (loop.mean(loop.step) or 0.0)
        cpu, blocked = pool.seconds(period)
        return _pool_pieces(pool, cpu, blocked)
    waited = max(0.0, (loop.mean(loop.wait) or 0.0) - sum(piece.cpu_s for piece in own))
    kept = tuple(replace(piece, blocked_s=0.0) for piece in own if piece.cpu_s > 0)
    mine = _pool_pieces(pool, 0.0, waited)
    return tuple(sorted((*kept, *mine), key=lambda piece: -piece.total_s))


def _pool_pieces(pool: Pool, cpu_s: float, blocked_s: float) -> tuple[OperatorCost, ...]:
    """Return a pool's work as pieces that add up to the given CPU and blocked seconds; reads get blocked time first."""
    total = cpu_s + blocked_s
    reading = min(blocked_s, pool.share("read") * total)
    elsewhere = max(1e-12, total - pool.share("read") * total)
    pieces = []
    for work in pool.work:
        whole = work.share * total
        share = (
            reading / max(1e-12, pool.share("read") * total)
            if work.stage == "read"
            else (blocked_s - reading) / elsewhere
        )
        blocked = whole * min(1.0, share)
        stage = work.stage if work.stage in (*WORK, "handover") else "transform"
        pieces.append(OperatorCost(stage, work.name or stage, work.where, whole - blocked, blocked))
    return tuple(pieces)


def usual_batches(loop: Loop) -> Bools:
    """Return which made batches represent the others: not the first of a process, and not timed per operator."""
    made = loop.made
    usual = made.warm & ~made.deep
    return usual if usual.any() else made.warm if made.warm.any() else np.ones(len(made.wall), np.bool_)


def usual_wait_s(loop: Loop, parts: Breakdown) -> float:
    """Return steady seconds a batch that the loop waits, without what starting workers adds to a first batch."""
    wait = loop.mean(loop.wait) or 0.0
    if loop.num_workers and not loop.position.any():
        # `next(iter(loader))`: every batch is a first one.
        return min(wait, (parts.wall_s or 0.0) / loop.num_workers)
    return wait


def sources_of(recording: Recording) -> dict[str, str]:
    """Return the text of the user's source lines that came with a recording, by `file:line`."""
    return dict(recording.meta.sources)


def _producer_stacks(recording: Recording, loop: Loop) -> list[StackSamples]:
    """Return the stacks of this loop's producers while they made batches, from torch's fetcher on."""
    pids = set(loop.made.pid.tolist())
    found = []
    for sample in recording.stacks:
        if sample.pid not in pids or (sample.thread != "MainThread" and loop.num_workers):
            continue
        at = fetch_frame(sample.frames)
        if at is not None:
            found.append(replace(sample, frames=sample.frames[at:]))
    return found


def fetch_frame(frames: tuple[str, ...]) -> int | None:
    """Return where in a root-first stack the making of a batch begins: the innermost frame of torch's fetchers."""
    for number in range(len(frames) - 1, -1, -1):
        if "utils/data/_utils/fetch.py" in frames[number]:
            return number
    return None


def _count_stages(stacks: list[StackSamples], sources: dict[str, str]) -> dict[Stage, int]:
    counts: Counter[Stage] = Counter()
    for sample in stacks:
        stage = stage_of_stack(sample.frames, sources) or "transform"
        counts[stage if stage in WORK else "transform"] += sample.count
    return dict(counts)
