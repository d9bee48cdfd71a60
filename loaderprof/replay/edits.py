"""Edits of a loop's model: other settings of its loader, batches of another size, a stage made faster. Pure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from loaderprof.analyze.breakdown import Breakdown
from loaderprof.analyze.loop import Seconds
from loaderprof.findings import Stage
from loaderprof.replay.model import Batch, LoopModel
from loaderprof.replay.removal import remove_stage

# What a run cannot show before a change, measured on a 2-core machine: starting a forked worker, receiving a batch and
# each of its tensors, and writing a batch into fresh shared memory: by the byte, and by the tensor (120 tensors of 16 x 4:
# default_collate takes 6.3 ms in a worker, 0.6 ms in the training process).
WORKER_START_S, RECEIVE_S, RECEIVE_PER_TENSOR_S, SHARE_PER_BYTE_S = 0.02, 0.4e-3, 0.07e-3, 0.55e-9
SHARE_PER_TENSOR_S = 47e-6
# What the step spends on letting go of a received tensor, whose shared memory is unmapped: by the tensor, and by the byte
# (12.6 MB: 1.4 ms); measured likewise.
UNMAP_PER_TENSOR_S, UNMAP_PER_BYTE_S = 8e-6, 0.11e-9
# Of collating into shared memory, what sharing may be at most.
MOSTLY_SHARING = 0.9


def with_settings(base: LoopModel, **settings: Any) -> LoopModel:
    """Return the model with other settings; what handing over costs is assumed where the run had no workers.

    Args:
        base: the loop as it ran.
        settings: of `replay.Settings`, those that change.
    """
    workers, now = settings.get("num_workers", base.settings.num_workers), base.settings.num_workers
    if now and not workers:
        base = _in_process(base)
    elif workers and not now:
        base = _in_workers(base)
    return replace(base, settings=replace(base.settings, **settings))


def with_costs(base: LoopModel, **costs: Any) -> LoopModel:
    """Return the model with other costs: those of `replay.RunCosts` that change, in seconds."""
    return replace(base, costs=replace(base.costs, **costs))


def with_batch_size(base: LoopModel, ratio: float, growth: float, cpu_growth: float) -> LoopModel:
    """Return the model with batches of `ratio` times as many samples.

    Args:
        base: the loop as it ran.
        ratio: new samples in a batch over those it had.
        growth: how what of a step needs no core, and a device's, grows with its samples: 0 not at all, 1 in proportion.
        cpu_growth: the same of what needs a core.
    """
    costs, batch = base.costs, base.batch
    # A tensor is pickled and received whole, whatever it holds.
    fixed = min(batch.pickle_s, SHARE_PER_TENSOR_S * (batch.tensors or 0.0))
    index_s = min(batch.index_s, costs.receive_cpu_s)
    step = ratio**growth
    return replace(
        base,
        costs=replace(
            costs,
            fetch_cpu_s=_regrouped(np.maximum(costs.fetch_cpu_s - fixed, 0.0), ratio) + fixed,
            fetch_blocked_s=_regrouped(costs.fetch_blocked_s, ratio),
            step_cpu_s=costs.step_cpu_s * ratio**cpu_growth,
            step_blocked_s=costs.step_blocked_s * step,
            device_step_s=None if costs.device_step_s is None else costs.device_step_s * step,
            receive_cpu_s=costs.receive_cpu_s + (ratio - 1.0) * index_s,
        ),
        batches_per_epoch=max(1, round(base.batches_per_epoch / ratio)),
        epoch_batches=max(1, round(base.epoch_batches / ratio)),
        batch=replace(
            batch,
            bytes_=batch.bytes_ and batch.bytes_ * ratio,
            index_s=batch.index_s * ratio,
            pickle_s=(batch.pickle_s - fixed) * ratio + fixed,
            collate_s=batch.collate_s and batch.collate_s * ratio,
        ),
    )


def faster(base: LoopModel, parts: Breakdown, stage: Stage, ratio: float) -> LoopModel:
    """Return the model with one stage `ratio` times as fast."""
    bare = remove_stage(base, stage, parts)
    if bare is None:
        return base
    mix = 1.0 / ratio

    def blend(now: Seconds, gone: Seconds) -> Seconds:
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


def _in_workers(base: LoopModel) -> LoopModel:
    """Return the model of a loop that made its own batches with what handing them over adds."""
    costs, batch = base.costs, base.batch
    tensors = batch.tensors or 1.0
    pickle_s = SHARE_PER_BYTE_S * (batch.bytes_ or 0.0) + SHARE_PER_TENSOR_S * tensors
    costs = replace(
        costs,
        worker_start_s=WORKER_START_S,
        receive_cpu_s=costs.receive_cpu_s + RECEIVE_S + RECEIVE_PER_TENSOR_S * tensors,
        fetch_cpu_s=costs.fetch_cpu_s + pickle_s,
    )
    return replace(base, costs=costs, batch=replace(batch, pickle_s=pickle_s))


def _in_process(base: LoopModel) -> LoopModel:
    """Return the model with batches made by the loop itself: nothing is pickled or received, no shared memory written."""
    costs, batch = base.costs, base.batch
    tensors = batch.tensors or 0.0
    unmap_s = UNMAP_PER_TENSOR_S * tensors + UNMAP_PER_BYTE_S * (batch.bytes_ or 0.0)
    making = np.maximum(costs.fetch_cpu_s - batch.pickle_s - _sharing_s(batch), 0.0)
    costs = replace(
        costs,
        fetch_cpu_s=making,
        receive_cpu_s=batch.index_s,
        answer_cpu_s=0.0,
        held_s=0.0,
        worker_start_s=0.0,
        worker_boot_s=0.0,
        step_cpu_s=np.maximum(costs.step_cpu_s - unmap_s, 0.0),
    )
    settings = replace(base.settings, num_workers=0, persistent_workers=False)
    return replace(base, costs=costs, settings=settings, batch=replace(batch, pickle_s=0.0))


def _sharing_s(batch: Batch) -> float:
    """Return what of collating is writing into shared memory: that of a batch which was shared before it was pickled."""
    tensors = batch.tensors or 0.0
    # One that is not shared yet takes longer to be pickled.
    if not batch.shared and not 0.0 < batch.pickle_s < SHARE_PER_TENSOR_S * tensors:
        return 0.0
    sharing = SHARE_PER_BYTE_S * (batch.bytes_ or 0.0) + SHARE_PER_TENSOR_S * tensors
    return min(MOSTLY_SHARING * (batch.collate_s or 0.0), sharing)


def _regrouped(cost: Seconds, ratio: float) -> Seconds:
    """Return costs of batches of `ratio` times as many samples: means of batches as they came, in proportion."""
    together = max(1, math.floor(ratio))
    around = np.resize(cost, len(cost) + together - 1)
    return np.asarray(np.convolve(around, np.ones(together) / together, mode="valid") * ratio)
