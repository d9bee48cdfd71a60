"""A loop's model with the work of one stage taken away.

The gain is causal: it says how fast the run would have been without the stage, not how many seconds the stage used. Pure.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from loaderprof.analyze.breakdown import Breakdown, usual_batches
from loaderprof.analyze.loop import Loop
from loaderprof.analyze.stages import WORK
from loaderprof.findings import Stage
from loaderprof.replay.costs import RunCosts
from loaderprof.replay.model import LoopModel

# A batch that takes this many times the median is a straggler. Where more than this share of the batches do, the pipeline
# is simply uneven.
STRAGGLER_RATIO, MOST_STRAGGLERS = 3.0, 0.25
# A stream unpacks several batches at once where its slow ones hold this much of the work.
BURST_SHARE = 0.95
# What of a device's step stays when its work is removed: a replay needs steps that take some time.
NEARLY_NOTHING = 1e-3


def in_bursts(loop: Loop) -> bool:
    """Return whether an iterable-style dataset makes several batches at once, as a stream that unpacks shards does.

    Its slow batches then hold the work of those after them, and are no stragglers.
    """
    made, usual = loop.made, usual_batches(loop)
    if not loop.facts.iterable or not usual.any():
        return False
    total = made.cpu + made.blocked
    slow = total > STRAGGLER_RATIO * np.median(total[usual])
    return bool(total[usual & slow].sum() > BURST_SHARE * total[usual].sum())


def unloaded(base: LoopModel, parts: Breakdown) -> LoopModel:
    """Return the model with all of the loader's work taken away."""
    for stage in (*WORK, "handover", "sampler"):
        base = remove_stage(base, stage, parts) or base
    return base


def remove_stage(base: LoopModel, stage: Stage, parts: Breakdown, bursts: bool = False) -> LoopModel | None:
    """Return the model with one stage's work taken away; None where the stage has none in this loop.

    Args:
        base: the loop as it ran.
        stage: any but `contention`, which is no work.
        parts: what the loop's batches cost.
        bursts: the loader makes several batches at once, see `in_bursts`.
    """
    if stage == "straggler":
        return None if bursts else _without_stragglers(base)
    costs = _without_making(base, stage, parts) if stage in WORK else _without(base, stage, parts)
    return None if costs is None else replace(base, costs=costs)


def _without_making(base: LoopModel, stage: Stage, parts: Breakdown) -> RunCosts | None:
    """Return costs without a stage of making batches. What waits for the GIL that it holds goes in proportion."""
    costs = base.costs
    cpu = sum(piece.cpu_s for piece in parts.pieces if piece.stage == stage)
    blocked = sum(piece.blocked_s for piece in parts.pieces if piece.stage == stage)
    if cpu + blocked <= 0:
        return None
    kept = _kept(cpu, float(costs.fetch_cpu_s.mean()))
    work_s = costs.answer_cpu_s if base.answer_work_s is None else base.answer_work_s
    return replace(
        costs,
        fetch_cpu_s=costs.fetch_cpu_s * kept,
        answer_cpu_s=work_s + (costs.answer_cpu_s - work_s) * kept,
        held_s=costs.held_s * kept,
        fetch_blocked_s=costs.fetch_blocked_s * _kept(blocked, float(costs.fetch_blocked_s.mean())),
    )


def _without(base: LoopModel, stage: Stage, parts: Breakdown) -> RunCosts | None:
    """Return costs without a stage that is not part of making batches."""
    costs, index = base.costs, parts.index_s or 0.0
    if stage == "handover" and base.settings.num_workers:
        return replace(
            costs,
            receive_cpu_s=min(index, costs.receive_cpu_s),
            answer_cpu_s=0.0,
            held_s=0.0,
            fetch_cpu_s=np.maximum(costs.fetch_cpu_s - (parts.pickle_s or 0.0), 0),
        )
    if stage == "sampler":
        return replace(costs, receive_cpu_s=max(0.0, costs.receive_cpu_s - index), epoch_gap_s=0.0)
    if stage in ("device", "host"):
        kept = _step_kept(stage, parts, float((costs.step_cpu_s + costs.step_blocked_s).mean()))
        own = costs.device_step_s
        if own is not None and stage == "device":
            own = own * NEARLY_NOTHING
        return replace(
            costs, step_cpu_s=costs.step_cpu_s * kept, step_blocked_s=costs.step_blocked_s * kept, device_step_s=own
        )
    if stage == "copy" and parts.copy_s is not None and costs.device_step_s is not None:
        kept = _kept(parts.copy_s, float(costs.device_step_s.mean()))
        return replace(costs, device_step_s=costs.device_step_s * kept)
    if stage == "startup":
        return replace(costs, worker_start_s=0.0, worker_boot_s=0.0, worker_stop_s=0.0)
    return None


def _kept(part: float, whole: float) -> float:
    return max(0.0, 1.0 - part / whole) if whole > 0 else 1.0


def _step_kept(stage: Stage, parts: Breakdown, step_s: float) -> float:
    """Return the share of the step that stays when the device's or the host's part of it is gone."""
    stalls = min(1.0, parts.stall_s / step_s) if step_s > 0 else 0.0
    host = stalls + (1.0 - stalls) * (parts.host_share or 0.0)
    return 1.0 - host if stage == "host" else host


def _without_stragglers(base: LoopModel) -> LoopModel | None:
    """Return the model with slow batches brought down to the median; None where none stands out."""
    costs = base.costs
    total = costs.fetch_cpu_s + costs.fetch_blocked_s
    median = float(np.median(total))
    slow = total > STRAGGLER_RATIO * median
    if not slow.any() or slow.mean() > MOST_STRAGGLERS:
        return None
    factor = np.where(slow, median / total, 1.0)
    return replace(
        base,
        costs=replace(costs, fetch_cpu_s=costs.fetch_cpu_s * factor, fetch_blocked_s=costs.fetch_blocked_s * factor),
    )
