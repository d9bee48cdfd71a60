"""What one batch of a loop costs, by stage and by name: timers, kernel counters and stacks brought together.

In the maker of a batch (a worker, or the main process without workers) wall time is thread CPU + run-queue wait +
blocked time. Timers say which operator used the CPU and which was blocked; what they leave is told by stacks. In the
loop's own process stacks tell the model's work from the loop's own Python. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np

from loaderprof.analyze import loop_side, operators, pools
from loaderprof.analyze.device import STARVED, Copies, copies_of
from loaderprof.analyze.loop import Bools, Loop
from loaderprof.analyze.operators import REST, Operator
from loaderprof.analyze.pools import Pool
from loaderprof.analyze.reads import Reads, reads_of
from loaderprof.analyze.stages import WORK, never_reads, split_frame, stage_of_stack
from loaderprof.findings import Stage
from loaderprof.recording.reader import Recording
from loaderprof.recording.stacks import StackSamples

MIN_STACK_SAMPLES = 20
# So few samples still tell more of a function than its name does.
MIN_TOLD = 5
# Below this a batch's other threads are those that hand over the one before.
MIN_THREADED_S = 0.001
# A maker with more threads than this at work has some of its own, and waits for them where they compute for so much of
# the time that it is blocked.
MANY_THREADS, BUSY_THREADS = 1.4, 0.5


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """One named piece of a batch's making: seconds of CPU and seconds blocked, per batch.

    `guessed`: nothing told its stage; it is what an unknown piece most often is.
    """

    stage: Stage
    name: str
    where: str | None
    cpu_s: float
    blocked_s: float
    guessed: bool = False

    @property
    def total_s(self) -> float:
        """CPU and blocked seconds together."""
        return self.cpu_s + self.blocked_s


@dataclass(frozen=True, slots=True)
class Breakdown:
    """What a batch of one loop costs, in seconds per batch; None where nothing was measured.

    Attributes:
        pieces: what making a batch took, by name, dearest first; their CPU and blocked seconds add up to the maker's.
        by_stack: samples of the makers by stage; empty where there were too few stacks.
        host_share: share of the step that is the loop's own Python, by stacks; None where there were too few.
        stall_s: seconds per step beyond the usual step, in steps that stalled.
        threads: CPU of the maker's whole process over its thread's: above 1, libraries run threads of their own. None
            where batches are too short to tell.
        lock_holder: the line of a Python thread that computes beside the loop and holds the interpreter's lock.
        reads: how the bytes of a batch come.
        pool: the threads or processes that make the batches of a watched iterable; None where none were seen.
        makers_unseen: such make them, but too few samples show what they do.
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
        """Return whether the makers are threads that take turns at the interpreter's lock."""
        return self.pool is not None and self.pool.locked >= pools.LOCKED_SHARE


def break_down(recording: Recording, loop: Loop) -> Breakdown:
    """Return what a batch of `loop` costs."""
    made, sources = loop.made, sources_of(recording)
    usual = usual_batches(loop)
    stacks = _producer_stacks(recording, loop)
    by_stack = _count_stages(stacks, sources)
    enough = sum(by_stack.values()) >= MIN_STACK_SAMPLES

    unread = loop.process.header.get("unread", ())

    def mean(values: np.ndarray, file: str = "") -> float | None:
        if file in unread:
            return None
        chosen = values[usual]
        chosen = chosen[np.isfinite(chosen)]
        return float(chosen.mean()) if len(chosen) else None

    told = usual & np.isfinite(made.threads_cpu)
    own = float(made.cpu[told].mean()) if told.any() else 0.0
    threads = 1.0 + float(made.threads_cpu[told].mean()) / own if own > MIN_THREADED_S else None
    pieces = _pieces(recording, loop, usual, stacks, sources, threads)
    pool = pools.pool_of(recording, loop, sources)
    if pool is not None:
        pieces = _pooled(pool, loop, pieces)
        by_stack = {stage: round(pool.share(stage) * pool.samples) for stage in WORK}
        enough = pool.samples >= MIN_STACK_SAMPLES
    reading = [sample for sample in stacks if stage_of_stack(sample.frames, sources) == "read"]
    reads = reads_of(recording, loop, pools.reading_stacks(recording, loop, sources) if pool else reading)
    host_share, host_by, step_samples = loop_side.host_share(recording, loop, sources)
    copies = copies_of(recording, loop, sources)
    starved = len(loop.starved) > 0 and float(loop.starved.mean()) > STARVED * (loop.mean(loop.step) or 0.0)
    holder = _lock_holder(recording, loop, sources, pool)
    # A thread that holds the lock stalls the loop too; it is not the loop's own doing.
    stall_s, stall_every = (0.0, None) if holder else loop_side.stalls(loop)
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
        by_stack=by_stack if enough else {},
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
        reads=reads,
        producers_unseen=pools.too_little_seen(recording, loop, pool),
        copies=copies,
        copy_s=copies.seconds(starved) if copies is not None else None,
    )


def _lock_holder(recording: Recording, loop: Loop, sources: dict[str, str], pool: Pool | None) -> str | None:
    """Return the line that holds the interpreter's lock: of the pool's makers where there is one."""
    if pool is not None and pool.locked >= pools.LOCKED_SHARE:
        return next((each.where for each in pool.work if each.where), None) or pool.words()
    # Where the lock is free at times nobody holds up the loop with it, however long it waits for its device.
    if pool is not None and pool.kind == "threads" and not pool.holds_lock():
        return None
    return loop_side.lock_holder(recording, loop, sources)


def _pooled(pool: Pool, loop: Loop, own: tuple[OperatorCost, ...]) -> tuple[OperatorCost, ...]:
    """Return what making a batch takes where a pool makes it.

    Makers that work beside the loop: their own CPU and blocked seconds. Makers that work only while the loop waits for
    them: the loop's waiting told by what they did, beside what the loop's own thread does for a batch.
    """
    if pool.overlapped:
        period = (loop.mean(loop.wait) or 0.0) + (loop.mean(loop.step) or 0.0)
        cpu, blocked = pool.seconds(period)
        return _told_by_pool(pool, cpu, blocked)
    waited = max(0.0, (loop.mean(loop.wait) or 0.0) - sum(piece.cpu_s for piece in own))
    kept = tuple(replace(piece, blocked_s=0.0) for piece in own if piece.cpu_s > 0)
    mine = _told_by_pool(pool, 0.0, waited)
    return tuple(sorted((*kept, *mine), key=lambda piece: -piece.total_s))


def _told_by_pool(pool: Pool, cpu_s: float, blocked_s: float) -> tuple[OperatorCost, ...]:
    """Return a pool's work as pieces whose CPU and blocked seconds add up to those given; reads are blocked first."""
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
    """Return which made batches stand for the others: past a process's first one and not timed in depth."""
    made = loop.made
    usual = made.warm & ~made.deep
    return usual if usual.any() else made.warm if made.warm.any() else np.ones(len(made.wall), np.bool_)


def usual_wait_s(loop: Loop, parts: Breakdown) -> float:
    """Return seconds a batch that the loop waits at its steady pace, without what starting workers adds to a first one."""
    wait = loop.mean(loop.wait) or 0.0
    if loop.num_workers and not loop.position.any():
        # `next(iter(loader))`: every batch is a first one.
        return min(wait, (parts.wall_s or 0.0) / loop.num_workers)
    return wait


def sources_of(recording: Recording) -> dict[str, str]:
    """Return the user's source lines that came with a recording, by `file:line`."""
    sources = recording.meta.get("sources")
    return {str(key): str(value) for key, value in sources.items()} if isinstance(sources, dict) else {}


def _pieces(
    recording: Recording,
    loop: Loop,
    usual: Bools,
    stacks: list[StackSamples],
    sources: dict[str, str],
    threads: float | None,
) -> tuple[OperatorCost, ...]:
    """Return the named pieces of making a batch, scaled from batches timed in depth to the usual ones."""
    made = loop.made
    if not len(made.wall):
        return ()
    fetch_cpu = float(np.maximum(made.cpu - made.collate_cpu, 0)[usual].mean())
    collate_blocked = np.maximum(made.collate - made.collate_cpu - made.runq * _ratio(made.collate, made.wall), 0)
    fetch_blocked = float(np.maximum(made.blocked - collate_blocked, 0)[usual].mean())
    # A maker that merely waits for threads of its own, which compute all the while, is not reading.
    beside = (threads or 1.0) - 1.0
    threaded = beside > max(MANY_THREADS - 1.0, BUSY_THREADS * fetch_blocked / max(fetch_cpu, 1e-9))
    fetching = operators.of_fetching(recording, loop)
    pieces = _scaled(recording, fetching, fetch_cpu, fetch_blocked, stacks, sources, threaded)
    collating = operators.of_collating(recording, loop)
    cpu, blocked = float(made.collate_cpu[usual].mean()), float(collate_blocked[usual].mean())
    pieces += [replace(piece, stage="collate") for piece in _plainly_scaled(collating, cpu, blocked)]
    kept = [piece for piece in pieces if piece.total_s > 0]
    return tuple(sorted(kept, key=lambda piece: -piece.total_s))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.asarray(part / np.maximum(whole, 1e-12))


def _plainly_scaled(found: list[Operator], cpu_s: float, blocked_s: float) -> list[OperatorCost]:
    """Return operators as pieces whose CPU and blocked seconds add up to the usual batch's."""
    all_cpu = sum(each.cpu_s for each in found) or 1.0
    all_blocked = sum(each.blocked_s for each in found) or 1.0
    return [
        OperatorCost(
            each.stage or "transform",
            each.name,
            each.where,
            each.cpu_s / all_cpu * cpu_s,
            each.blocked_s / all_blocked * blocked_s,
            guessed=each.stage is None,
        )
        for each in found
    ]


def _scaled(
    recording: Recording,
    found: list[Operator],
    fetch_cpu: float,
    fetch_blocked: float,
    stacks: list[StackSamples],
    sources: dict[str, str],
    threaded: bool,
) -> list[OperatorCost]:
    """Scale operators to the usual batch, and give each its stage: the CPU part and the blocked part may differ."""
    pieces: list[OperatorCost] = []
    owned = _by_owner(stacks, found)
    for each, piece in zip(found, _plainly_scaled(found, fetch_cpu, fetch_blocked), strict=True):
        mine = owned[""] if each.place == REST else owned[each.name]
        # A function of the user's may be called `read_clip` and decode: its lines tell.
        named = each.stage == "read" and each.place != "" and sum(sample.count for sample in mine) >= MIN_TOLD
        if each.stage is None or named:
            # What blocks where nothing else tells is reading.
            reads = not (threaded or named)
            told = _told_by_stacks(replace(piece, blocked_s=0.0) if reads else piece, mine, sources, each.place == REST)
            pieces.extend(replace(part, where=loop_side.shown_place(recording, part.where or "")) for part in told)
            if reads:
                pieces.append(replace(piece, stage="read", cpu_s=0.0, guessed=True))
        elif each.stage == "decode" and not each.place and not never_reads(each.name):
            # A library that decodes also reads: what blocked it was the reading.
            pieces += [replace(piece, blocked_s=0.0), replace(piece, stage="read", cpu_s=0.0)]
        else:
            line = _slowest_line(each, owned[each.name], sources) if each.place else ""
            pieces.append(replace(piece, where=loop_side.shown_place(recording, line) or piece.where))
    return pieces


def _slowest_line(own: Operator, stacks: list[StackSamples], sources: dict[str, str]) -> str:
    """Return the line inside a function of the user's in which it was seen the most; empty for too few stacks."""
    file = own.place.rpartition(":")[0]
    seen: Counter[str] = Counter()
    for sample in stacks:
        lines = (_line(frame) for frame in reversed(sample.frames))
        seen[next((line for line in lines if line in sources and line.startswith(file)), "")] += sample.count
    line, count = seen.most_common(1)[0] if seen else ("", 0)
    return line if count >= MIN_TOLD else ""


def _told_by_stacks(
    whole: OperatorCost, stacks: list[StackSamples], sources: dict[str, str], rest: bool
) -> list[OperatorCost]:
    """Split what timers see no further into by the lines and library frames in which it was seen.

    Args:
        rest: it is no one function's, so that the user's function in which it was seen names each part.
    """
    seen: Counter[tuple[Stage | None, str, str]] = Counter()
    for sample in stacks:
        stage = stage_of_stack(sample.frames, sources)
        # What is called reading and decodes is told apart; copying what was read is part of reading it.
        stage = whole.stage if whole.stage == "read" and stage != "decode" else stage
        own = next((frame for frame in reversed(sample.frames) if _line(frame) in sources), "")
        name = split_frame(own)[0] if own and rest else whole.name
        seen[stage if stage in WORK else None, name, _line(own) if own else whole.where or ""] += sample.count
    total = sum(seen.values())
    if total < MIN_TOLD:
        return [replace(whole, guessed=True)]
    return [
        OperatorCost(
            stage or whole.stage,
            name,
            place,
            whole.cpu_s * count / total,
            whole.blocked_s * count / total,
            guessed=stage is None and whole.guessed,
        )
        for (stage, name, place), count in seen.items()
    ]


def _line(frame: str) -> str:
    _, file, line = split_frame(frame)
    return f"{file}:{line}"


def _by_owner(stacks: list[StackSamples], found: list[Operator]) -> dict[str, list[StackSamples]]:
    """Return stacks by the innermost timed function that they are in, cut to what lies inside it; "" for none."""
    timed = {(each.name.rsplit(".", 1)[-1], each.place.rsplit(":", 1)[0]): each.name for each in found if each.place}
    owned: dict[str, list[StackSamples]] = defaultdict(list)
    for sample in stacks:
        owner, at = "", 0
        for number in range(len(sample.frames) - 1, -1, -1):
            function, file, _ = split_frame(sample.frames[number])
            name = timed.get((function.rsplit(".", 1)[-1], file))
            if name is not None:
                owner, at = name, number
                break
        owned[owner].append(replace(sample, frames=sample.frames[at:]))
    return owned


def _producer_stacks(recording: Recording, loop: Loop) -> list[StackSamples]:
    """Return the stacks of this loop's makers while they made batches."""
    pids = set(loop.made.pid.tolist())
    found = []
    for sample in recording.stacks:
        if sample.pid not in pids or (sample.thread != "MainThread" and loop.num_workers):
            continue
        at = fetch_frame(sample.frames)
        if at is not None:
            found.append(
                StackSamples(
                    sample.t_begun,
                    sample.t_done,
                    sample.rate_hz,
                    sample.pid,
                    sample.thread,
                    sample.frames[at:],
                    sample.count,
                )
            )
    return found


def fetch_frame(frames: tuple[str, ...]) -> int | None:
    """Return where in a stack the making of a batch begins: the leaf-most frame of torch's fetchers."""
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
