"""What each stage costs the whole job: every loop studied, its stages removed in the replay, the savings added up.

A job is its loops and what lies between them; a saving counts for the share of the job that its loop takes. Pure.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from loaderprof.analyze.breakdown import Breakdown, break_down, usual_wait_s
from loaderprof.analyze.loop import Loop
from loaderprof.analyze.loop_side import helpers_waited
from loaderprof.analyze.machine import busy_helpers
from loaderprof.analyze.making import of_producers
from loaderprof.analyze.pieces import MANY_THREADS
from loaderprof.analyze.stages import LOADER, WORK
from loaderprof.analyze.timeline import Timeline
from loaderprof.findings import Stage
from loaderprof.recording.reader import Recording
from loaderprof.replay.fit import fit_model
from loaderprof.replay.model import LoopModel
from loaderprof.replay.pooled import pooled, unlocked
from loaderprof.replay.removal import in_bursts, remove_stage, unloaded

# Bootstrap replays behind a confidence: enough to see whether four in five of them name the same stage.
DRAWS = 12
# A job's very first start is no bottleneck of a longer run, unless it is this much of what was seen.
FIRST_START_SHARE = 0.2
# Producers that fight for cores wait for one at least this share of their time.
QUEUING = 0.25
# Threads of workers that compute crowd the cores where they are this many times as many; a few more are no fight.
CROWDED = 1.2
# Reading and decoding are less than this share of a producer's work where its threads compute rather than decode.
MOSTLY_DECODING = 0.5
# Cores that the job's own helpers keep busy: below this they take too little to be seen in a loop's pace.
HELPING = 0.3
# A loop of which a stage of its own loader explains so much is reported as that stage, not as validation.
EXPLAINED = 0.8
# More than half: of the host's seconds in validation, of a loop's batches within the epochs of another.
MOSTLY = 0.5
# A loop with nothing left to do has no rate; a thousandfold says as much.
MOST_GAIN = 1000.0
_STAGES: tuple[Stage, ...] = (*WORK, "handover", "sampler", "straggler", "device", "host", "copy")


@dataclass(frozen=True, slots=True)
class CoreUse:
    """Cores that a loop and its workers may use, and who else wants them.

    Attributes:
        budget: cores of the job on this host, shared evenly among its ranks.
        others: that processes outside the job kept busy.
        helpers: that the job's processes besides this loop and its workers kept busy.
        cpus: on how many CPUs the loop's workers may run together; None: not recorded.
    """

    budget: float = 1.0
    others: float = 0.0
    helpers: float = 0.0
    cpus: int | None = None


@dataclass(frozen=True, slots=True)
class LoopStudy:
    """One loop with all that was worked out about it.

    Attributes:
        loop: the loop.
        parts: what its batches cost.
        base: the replay's model of it; None where too little was measured. All below is then empty.
        gains: by stage, the speedup of the loop with the stage's work removed.
        draws: the same from bootstrap replays.
        model_error: how far the replay of the loop as it was is from the run, as a share.
        ceiling: the speedup with all of the loader's work removed.
        cores: that it may use, and who else wants them.
        contention: share of its pace lost to a fight for cores or for the GIL; None where nothing fights.
    """

    loop: Loop
    parts: Breakdown
    base: LoopModel | None = None
    gains: dict[Stage, float] = field(default_factory=dict)
    draws: tuple[dict[Stage, float], ...] = ()
    model_error: float | None = None
    ceiling: float | None = None
    cores: CoreUse = CoreUse()
    contention: float | None = None


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
    """Return what a loop costs and what removing each of its stages gains.

    Args:
        recording: the run.
        loop: one of its loops.
        budget: cores that the loop and its workers may use.
        others: cores that processes outside the job kept busy; None: not measured.
        loops: all loops of the run.
    """
    parts = break_down(recording, loop)
    helpers = busy_helpers(recording, parts.pool.pids if parts.pool else frozenset()) or 0.0
    sizes = of_producers(recording, loop, recording.tables["size"])
    size = (float(np.median(sizes["bytes"])), float(np.median(sizes["tensors"]))) if len(sizes) else None
    # What a step waits because libraries in workers run too many threads is their doing, and reported as contention.
    team = helpers_waited(recording, loop) if (parts.threads or 1.0) <= MANY_THREADS else 0.0
    base = pooled(fit_model(loop, parts, budget, (others or 0.0) + helpers, loops, size, team), loop, parts)
    if base is None:
        return LoopStudy(loop, parts)
    bursts = in_bursts(loop)
    variants = {stage: each for stage in _STAGES if (each := remove_stage(base, stage, parts, bursts)) is not None}
    before = base.run().steady_step_s
    measured = usual_wait_s(loop, parts) + (loop.mean(loop.step) or 0.0)
    cores = CoreUse(budget, others or 0.0, helpers, _cpus(recording, loop))
    return LoopStudy(
        loop,
        parts,
        base,
        gains={stage: _ratio(before, variant.run().steady_step_s) for stage, variant in variants.items()},
        draws=tuple(_draw(base, variants, seed) for seed in range(1, DRAWS + 1)),
        model_error=before / measured - 1 if measured > 0 else None,
        ceiling=_ratio(before, unloaded(base, parts).run().steady_step_s),
        cores=cores,
        contention=_contention_share(loop, parts, base, cores),
    )


def _cpus(recording: Recording, loop: Loop) -> int | None:
    """Return on how many CPUs the loop's workers may run together; None where it was not recorded."""
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
    return float(min(MOST_GAIN, before / after)) if after > 0 else MOST_GAIN


def main(studied: Sequence[LoopStudy]) -> LoopStudy:
    """Return the loop that the job is about: the longest training loop, else the longest.

    Of loops that take their batches for the same steps it is the one that waits the most.
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
    return len(within) > MOSTLY * len(loop.asked) and steps > MOSTLY * len(within)


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
    size, pace = loop.facts.batch_size, loop.pace_s
    if each.loop is not loop:
        pace = _active_s(studied) / loop.batches if loop.batches else None
    return float(size / pace) if pace and size is not None else None


def _steady_s(each: LoopStudy) -> float:
    return _at_steady_pace_s(each.loop, each.parts)


def _at_steady_pace_s(loop: Loop, parts: Breakdown) -> float:
    """Return the seconds that a loop spends at its steady pace: the waits and steps of all its batches."""
    return (usual_wait_s(loop, parts) + (loop.mean(loop.step) or 0.0)) * loop.batches


def _borders_s(each: LoopStudy, active_s: float) -> float:
    """Return seconds lost between epochs: starting workers, waiting for the first batch, stopping workers."""
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
    """Return seconds in the sampler at the start of epochs: while the iterator is created, and for its first batch."""
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


def mostly_validation(studied: Sequence[LoopStudy], gains: dict[Stage, float], stage: Stage) -> bool:
    """Return whether a job limited by `stage`, its host, spends most of the host's seconds in loops that do not train.

    Args:
        studied: the job's loops.
        gains: by stage, what removing it would gain the job.
        stage: what limits the job.
    """
    return stage == "host" and validation_s(studied) > MOSTLY * saved_s(studied, gains["host"])


def _validates(each: LoopStudy, studied: Sequence[LoopStudy]) -> bool:
    """Return whether a loop does not train while another does, and no stage of its own loader explains it."""
    trained = not each.loop.training and any(other.loop.training for other in studied)
    return trained and _loader_s(each) < EXPLAINED * each.loop.span_s


def _loader_s(each: LoopStudy) -> float:
    """Return seconds of a loop that the most expensive stage of its loader, or starting and stopping it, costs."""
    most_expensive = max((gain for stage, gain in each.gains.items() if stage in LOADER), default=1.0)
    return max(_steady_s(each) * (1 - 1 / most_expensive), _borders_s(each, np.inf))


def job_gains(studied: Sequence[LoopStudy], draw: int | None = None) -> dict[Stage, float]:
    """Return what removing each stage, from every loop that has it, would gain the whole job."""
    active = _active_s(studied)
    saved: dict[Stage, float] = {}
    lead = main(studied)
    for each in studied:
        gains = each.gains if draw is None or draw >= len(each.draws) else each.draws[draw]
        # All of a validation loop counts as the host's, so that its steps must not count as the training step's as well.
        own: set[Stage] = {"device", "host", "copy"} if _validates(each, studied) else set()
        if each is not lead and _zipped(each.loop, lead.loop):
            # The two loops share their steps, and the wait of each lies in a step of the other.
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
        stage: _ratio(active, max(active - seconds, active / MOST_GAIN))
        for stage, seconds in saved.items()
        if active > 0
    }


def _contention_share(loop: Loop, parts: Breakdown, base: LoopModel, cores: CoreUse) -> float | None:
    """Return the share of the steady pace lost to a fight for cores or for the GIL; None where nothing fights.

    The replay knows what the work needs and which cores there are. It knows nothing of threads that libraries start, of
    workers bound to a few CPUs, or of helpers of the job: what the run took beyond the replay is theirs. Plain lack of
    cores is no contention; it is the price of the work, and reported as the stage that does it.
    """
    workers = max(1, loop.num_workers)
    crowded = _crowded(parts, workers, base.cores)
    bound = loop.num_workers > 0 and (cores.cpus or workers) < min(workers, int(base.cores))
    helped = cores.helpers > HELPING and base.neighbours > 0
    if not (crowded or bound or helped or parts.lock_holder):
        return None
    measured = _at_steady_pace_s(loop, parts) / max(1, loop.batches)
    if parts.pool is not None and parts.lock_holder:
        needed = unlocked(base, parts.pool, cores.budget).run().steady_step_s
        return max(0.0, 1 - needed / measured) if measured > 0 else None
    costs, neighbours = base.costs, base.neighbours
    if crowded or parts.lock_holder:
        # Threads that meet at barriers, or want the GIL, block each other.
        costs = replace(costs, fetch_blocked_s=costs.fetch_blocked_s * 0.0)
    if parts.lock_holder:
        costs = replace(costs, step_blocked_s=costs.step_blocked_s * 0.0)
    if bound:
        # What workers bound together wait for is each other; it says nothing of other programs.
        neighbours = min(neighbours, cores.others)
    if helped:
        neighbours *= cores.others / (cores.helpers + cores.others)
    needed = replace(base, costs=costs, neighbours=neighbours).run().steady_step_s
    return max(0.0, 1 - needed / measured) if measured > 0 else None


def _crowded(parts: Breakdown, workers: int, cores: float) -> bool:
    """Return whether threads that libraries start in the producers fight for cores.

    A producer that merely waits for a pool of threads is blocked; one whose threads fight waits for a core. Threads of a
    decoder (FFmpeg, blosc, Arrow) share its work; those that compute meet at barriers, and spin there.
    """
    threads = parts.threads or 1.0
    waits = (parts.runq_s or 0.0) >= QUEUING * (parts.wall_s or np.inf)
    decoding = sum(piece.total_s for piece in parts.pieces if piece.stage in ("read", "decode"))
    computes = decoding < MOSTLY_DECODING * sum(piece.total_s for piece in parts.pieces)
    return waits and computes and threads > MANY_THREADS and workers * threads > CROWDED * cores


def job_ceiling(studied: Sequence[LoopStudy]) -> float | None:
    """Return the speedup of the job with all of its loaders' work removed; None where no loop has a model."""
    active = _active_s(studied)
    saved = sum(
        _steady_s(each) * (1 - (1 - (each.contention or 0.0)) / each.ceiling) for each in studied if each.ceiling
    )
    saved += sum(_borders_s(each, active) + _index_s(each) for each in studied if each.base is not None)
    known = any(each.ceiling for each in studied)
    return round(_ratio(active, max(active - saved, active / MOST_GAIN)), 3) if known and active > 0 else None


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
