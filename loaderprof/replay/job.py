"""What each stage costs the whole job: every loop studied, its stages removed in the replay, the savings added up.

A job is its loops and what lies between them; a saving counts for the share of the job that its loop takes. Pure.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loaderprof.analyze.breakdown import MANY_THREADS, WORK, Breakdown, break_down, usual_wait_s
from loaderprof.analyze.loop import Loop
from loaderprof.analyze.loop_side import helpers_waited
from loaderprof.analyze.machine import busy_helpers
from loaderprof.analyze.making import of_producers
from loaderprof.analyze.stages import LOADER
from loaderprof.analyze.timeline import Timeline
from loaderprof.findings import Stage
from loaderprof.recording.reader import Recording
from loaderprof.replay.fit import fit_model
from loaderprof.replay.model import LoopModel
from loaderprof.replay.pooled import pooled, unlocked
from loaderprof.replay.removal import in_bursts, remove_stage, unloaded

DRAWS = 12
# A job's very first start is no bottleneck of a longer run, unless it is this much of what was seen.
FIRST_START_SHARE = 0.2
# Makers that fight for cores wait for one at least this share of their time.
QUEUING = 0.25
# A loop of which a stage of its own loader explains so much is told as that stage, not as validation.
EXPLAINED = 0.8


@dataclass(slots=True)
class LoopStudy:
    """One loop with all that was worked out about it.

    `others` and `helpers` are cores that processes outside the job, and the job's processes besides this loop and its
    workers, kept busy; `cpus` how many CPUs the workers may run on together; `contention` the share of the pace lost.
    """

    loop: Loop
    parts: Breakdown
    base: LoopModel | None
    gains: dict[Stage, float]
    draws: list[dict[Stage, float]]
    model_error: float | None
    ceiling: float | None
    others: float = 0.0
    helpers: float = 0.0
    cpus: int | None = None
    contention: float | None = None
    budget: float = 1.0


def ranks_a_host(timeline: Timeline) -> int:
    """Return how many processes with a training loop of their own share a host's cores."""
    hosts: dict[str, set[int]] = {}
    for loop in timeline.loops:
        if loop.process.rank is not None:
            hosts.setdefault(loop.process.host, set()).add(loop.process.pid)
    for other in timeline.recording.others:
        if other.loops:
            hosts.setdefault(other.process.host, set()).add(other.process.pid)
    return max([1, *map(len, hosts.values())])


def slowest_rank(everyone: Sequence[LoopStudy]) -> Sequence[LoopStudy]:
    """Return the loops of the process whose training waits the most: the ranks of a job wait for their slowest."""
    processes = {each.loop.process.number for each in everyone if each.loop.process.rank is not None}
    if len(processes) < 2:
        return everyone
    ranks = [[each for each in everyone if each.loop.process.number == number] for number in sorted(processes)]
    return max(ranks, key=lambda loops: main(loops).loop.mean(main(loops).loop.wait) or 0.0)


def study(
    recording: Recording, loop: Loop, budget: float, others: float | None, loops: Sequence[Loop] = ()
) -> LoopStudy:
    parts = break_down(recording, loop)
    helpers = busy_helpers(recording, parts.pool.pids if parts.pool else frozenset()) or 0.0
    sizes = of_producers(recording, loop, recording.tables["size"])
    size = (float(np.median(sizes["bytes"])), float(np.median(sizes["tensors"]))) if len(sizes) else None
    # What a step waits because libraries in workers run too many threads is theirs, and told as contention.
    team = helpers_waited(recording, loop) if (parts.threads or 1.0) <= MANY_THREADS else 0.0
    base = pooled(fit_model(loop, parts, budget, (others or 0.0) + helpers, loops, size, team), loop, parts)
    if base is None:
        return LoopStudy(loop, parts, None, {}, [], None, None)
    bursts = in_bursts(loop)
    variants = {stage: each for stage in _STAGES if (each := remove_stage(base, stage, parts, bursts)) is not None}
    before = base.run().steady_step_s
    gains = {stage: _ratio(before, variant.run().steady_step_s) for stage, variant in variants.items()}
    draws = [_draw(base, variants, seed) for seed in range(1, DRAWS + 1)]
    measured = usual_wait_s(loop, parts) + (loop.mean(loop.step) or 0.0)
    error = before / measured - 1 if measured > 0 else None
    ceiling = _ratio(before, unloaded(base, parts).run().steady_step_s)
    studied = LoopStudy(loop, parts, base, gains, draws, error, ceiling, others or 0.0, helpers, _cpus(recording, loop))
    studied.budget = budget
    studied.contention = _contention_share(studied)
    return studied


_STAGES: tuple[Stage, ...] = (*WORK, "handover", "sampler", "straggler", "device", "host", "copy")


def _cpus(recording: Recording, loop: Loop) -> int | None:
    """Return how many CPUs the loop's workers may run on together; None where it was not told."""
    table = recording.tables["setup"]
    pids = set(loop.made.pid.tolist())
    numbers = [process.number for process in recording.processes if process.pid in pids]
    rows = table[np.isin(table["process"], numbers) & (table["worker"] >= 0)]
    if not len(rows) or (rows["cpus"] > 63).any():
        return None
    return int(np.bitwise_or.reduce(rows["cpu_mask"])).bit_count() or None


def _draw(base: LoopModel, variants: dict[Stage, LoopModel], seed: int) -> dict[Stage, float]:
    before = base.run(seed).steady_step_s
    return {stage: _ratio(before, variant.run(seed).steady_step_s) for stage, variant in variants.items()}


def _ratio(before: float, after: float) -> float:
    # A loop with nothing left to do has no rate; a thousandfold says as much.
    return float(min(1000.0, before / after)) if after > 0 else 1000.0


def main(studied: Sequence[LoopStudy]) -> LoopStudy:
    """Return the loop that the job is about: the longest training loop, else the longest.

    Of loops that step together it is the one that is waited for.
    """
    training = [each for each in studied if each.loop.training and each.base is not None]
    first = next(iter(training or [each for each in studied if each.base is not None]), studied[0])
    beside = [first, *(each for each in studied if each is not first and _zipped(each.loop, first.loop))]
    return max(beside, key=lambda each: float(np.nansum(each.loop.wait)))


def _zipped(loop: Loop, other: Loop) -> bool:
    """Return whether two loops of one thread take their batches in turn, for the same steps: `zip(labelled, unlabelled)`."""
    if (loop.process.number, loop.iterators) == (other.process.number, other.iterators):
        return False
    return loop.process.number == other.process.number and _among(loop, other) and _among(other, loop)


def _among(loop: Loop, other: Loop) -> bool:
    """Return whether most of a loop's batches were asked for within epochs of another, and not all within one of its steps."""
    first = np.flatnonzero(np.diff(other.epoch, prepend=other.epoch[0] - 1))
    last = np.append(first[1:], len(other.epoch)) - 1
    epoch = np.clip(np.searchsorted(other.asked[first], loop.asked, side="right") - 1, 0, None)
    within = loop.asked[(loop.asked >= other.asked[first][epoch]) & (loop.asked <= other.taken[last][epoch])]
    steps = len(np.unique(np.searchsorted(other.asked, within)))
    return len(within) > 0.5 * len(loop.asked) and steps > 0.5 * len(within)


def _active_s(studied: Sequence[LoopStudy]) -> float:
    """Return seconds from the first loop's beginning to the last one's end."""
    begun = min(each.loop.epochs[0].begun for each in studied if each.loop.epochs)
    last = max(float(np.nanmax(each.loop.taken)) for each in studied)
    ends = [epoch.ended for each in studied for epoch in each.loop.epochs if epoch.ended is not None]
    return max([last, *ends]) - begun


def share_of(each: LoopStudy, studied: Sequence[LoopStudy]) -> float:
    """Return the share of the job that a loop's gain counts for: all where the job is about it, else its own time's."""
    active = _active_s(studied)
    return 1.0 if each is main(studied) or active <= 0 else float(min(1.0, each.loop.span_s / active))


def samples_per_s(each: LoopStudy, studied: Sequence[LoopStudy]) -> float | None:
    """Return the samples per second that advice on a loop speeds up: its own, or the job's where it is about another."""
    loop = main(studied).loop
    size, pace = loop.facts.get("batch_size"), loop.pace_s
    if each.loop is not loop:
        pace = _active_s(studied) / loop.batches if loop.batches else None
    return float(size / pace) if pace and isinstance(size, int) else None


def _steady_s(each: LoopStudy) -> float:
    """Return the seconds that a loop spends at its steady pace: all of its batches' waits and steps."""
    step = usual_wait_s(each.loop, each.parts) + (each.loop.mean(each.loop.step) or 0.0)
    return step * each.loop.batches


def _borders_s(each: LoopStudy, active_s: float) -> float:
    """Return seconds lost at the borders of epochs: starting workers, the first batch, stopping workers."""
    usual = usual_wait_s(each.loop, each.parts)
    lost = []
    firsts = each.loop.index[each.loop.position == 0]
    for epoch, index in zip(each.loop.epochs, _padded(firsts, len(each.loop.epochs)), strict=True):
        first = epoch.first_batch_s if np.isfinite(epoch.first_batch_s) else epoch.ready - epoch.begun
        lost.append(max(0.0, first - epoch.index_s - index - usual) + epoch.shutdown_s)
    if lost and lost[0] < FIRST_START_SHARE * active_s:
        # The very first start is no more than each later one costs.
        lost[0] = min(lost[0], statistics.median(lost[1:])) if len(lost) > 1 else 0.0
    return sum(lost)


def _padded(values: Any, length: int) -> list[float]:
    return [float(value) for value in values[:length]] + [0.0] * (length - len(values[:length]))


def _index_s(each: LoopStudy) -> float:
    """Return seconds in the sampler at the beginning of epochs: in making the iterator, and in its first batch."""
    return sum(epoch.index_s for epoch in each.loop.epochs) + float(each.loop.index[each.loop.position == 0].sum())


def host_s(studied: Sequence[LoopStudy]) -> float:
    """Return seconds of the job outside any loop, and in loops that do not train while another does."""
    active = _active_s(studied)
    covered = sum(each.loop.span_s for each in studied if each.loop.main_thread)
    return max(0.0, active - covered) + validation_s(studied)


def saved_s(studied: Sequence[LoopStudy], gain: float) -> float:
    """Return the seconds of the job that a gain of it stands for."""
    return _active_s(studied) * (1.0 - 1.0 / gain)


def validation_s(studied: Sequence[LoopStudy]) -> float:
    """Return the seconds in loops that do not train while another does, unless their own loader explains them."""
    return sum(each.loop.span_s for each in studied if _validates(each, studied))


def _validates(each: LoopStudy, studied: Sequence[LoopStudy]) -> bool:
    """Return whether a loop does not train while another does, and no stage of its own loader explains it."""
    trained = not each.loop.training and any(other.loop.training for other in studied)
    return trained and _loader_s(each) < EXPLAINED * each.loop.span_s


def _loader_s(each: LoopStudy) -> float:
    """Return seconds of a loop that its loader's dearest stage, or starting and stopping it, costs."""
    most_expensive = max((gain for stage, gain in each.gains.items() if stage in LOADER), default=1.0)
    return max(_steady_s(each) * (1 - 1 / most_expensive), _borders_s(each, np.inf))


def job_gains(studied: Sequence[LoopStudy], draw: int | None = None) -> dict[Stage, float]:
    """Return what removing each stage, from every loop that has it, would gain the whole job."""
    active = _active_s(studied)
    saved: dict[Stage, float] = {}
    lead = main(studied)
    for each in studied:
        gains = each.gains if draw is None or draw >= len(each.draws) else each.draws[draw]
        # All of a validation loop is the host's, so its steps are not the training step's too.
        own: set[Stage] = {"device", "host", "copy"} if _validates(each, studied) else set()
        if each is not lead and _zipped(each.loop, lead.loop):
            # They share their steps, and each one's wait is in the other's.
            own = {"device", "host", "contention", "copy"}
        for stage, gain in gains.items():
            if stage not in own:
                saved[stage] = saved.get(stage, 0.0) + _steady_s(each) * (1 - 1 / gain)
        if each.loop.epochs:
            saved["startup"] = saved.get("startup", 0.0) + _borders_s(each, active)
            saved["sampler"] = saved.get("sampler", 0.0) + _index_s(each)
            if each.contention is not None and "contention" not in own:
                saved["contention"] = saved.get("contention", 0.0) + _steady_s(each) * each.contention
    if any(each.base is not None for each in studied) and any(len(each.loop.epochs) > 1 for each in studied):
        saved["host"] = saved.get("host", 0.0) + host_s(studied)
    return {
        stage: _ratio(active, max(active - seconds, active / 1000)) for stage, seconds in saved.items() if active > 0
    }


def _contention_share(each: LoopStudy) -> float | None:
    """Return the share of the steady pace lost to a fight for cores; None where nothing fights.

    The replay knows what the work needs and which cores there are, but not of threads that libraries start, of
    workers bound to a few CPUs, or of helpers of the job: what the run took beyond the replay is theirs. Plain lack
    of cores is no contention; it is the price of the work, and told as the stage that does it.
    """
    base, parts = each.base, each.parts
    if base is None:
        return None
    workers = max(1, each.loop.num_workers)
    threads = parts.threads or 1.0
    # A maker that merely waits for a pool of threads is blocked; one whose threads fight waits for a core.
    waits = (parts.runq_s or 0.0) >= QUEUING * (parts.wall_s or np.inf)
    # Threads of a decoder (FFmpeg, blosc, Arrow) share its work; those that compute meet at barriers, and spin.
    decoding = sum(piece.total_s for piece in parts.pieces if piece.stage in ("read", "decode"))
    computes = decoding < 0.5 * sum(piece.total_s for piece in parts.pieces)
    crowded = waits and computes and threads > MANY_THREADS and workers * threads > 1.2 * base.cores
    bound = each.loop.num_workers > 0 and (each.cpus or workers) < min(workers, int(base.cores))
    helped = each.helpers > 0.3 and base.neighbours > 0
    if not (crowded or bound or helped or parts.lock_holder):
        return None
    costs = base.costs
    measured = _steady_s(each) / max(1, each.loop.batches)
    if parts.pool is not None and parts.lock_holder:
        needed = unlocked(base, parts.pool, each.budget).run().steady_step_s
        return max(0.0, 1 - needed / measured) if measured > 0 else None
    if crowded or parts.lock_holder:
        # Threads that meet at barriers, or at the interpreter's lock, block each other.
        costs = replace(costs, fetch_blocked_s=costs.fetch_blocked_s * 0.0)
    if parts.lock_holder:
        costs = replace(costs, step_blocked_s=costs.step_blocked_s * 0.0)
    neighbours = base.neighbours
    if bound:
        # What workers bound together wait for is each other; it says nothing of other programs.
        neighbours = min(neighbours, each.others)
    if helped:
        neighbours *= each.others / (each.helpers + each.others)
    needed = replace(base, costs=costs, neighbours=neighbours).run().steady_step_s
    return max(0.0, 1 - needed / measured) if measured > 0 else None


def job_ceiling(studied: Sequence[LoopStudy]) -> float | None:
    active = _active_s(studied)
    saved = sum(
        _steady_s(each) * (1 - (1 - (each.contention or 0.0)) / each.ceiling) for each in studied if each.ceiling
    )
    saved += sum(_borders_s(each, active) + _index_s(each) for each in studied if each.base is not None)
    known = any(each.ceiling for each in studied)
    return round(_ratio(active, max(active - saved, active / 1000)), 3) if known and active > 0 else None


def holder(studied: Sequence[LoopStudy], stage: Stage, main: LoopStudy) -> LoopStudy:
    """Return the loop in which a stage costs the job the most."""
    if stage not in LOADER:
        return main
    return max(
        (each for each in studied if each.base is not None),
        key=lambda each: (
            _steady_s(each) * (1 - 1 / each.gains.get(stage, 1.0))
            + (_borders_s(each, np.inf) if stage == "startup" else 0.0)
        ),
        default=main,
    )
