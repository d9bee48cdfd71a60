"""Waits that no clock shows, found by replaying: the value with which the replay waits as long as the run did.

How badly threads were spread over cores, how long a wake-up took, how long the GIL of a worker was held, what setting up
a worker costs. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from loaderprof.analyze.loop import Loop, Seconds
from loaderprof.replay.model import LoopModel

# Relative error of the replay's first round of batches.
BOOT_ERROR = 0.01
# CPU of a worker to answer its receiver, by tensor; measured 0.05 to 0.1 ms on a 2-core machine.
ANSWER_PER_TENSOR_S = 0.15e-3
# A fitted value is off by at most this share of its range. A single wake-up takes at most this many times the mean wait of
# a step for a core, because not every step has one.
FIT_ERROR, MOST_WAKES = 0.03, 4.0
# A step that keeps this many cores busy runs on several threads. Not 1: other threads of the process (samplers, queue
# feeders) use a little CPU too.
SEVERAL = 1.1


def scheduled(base: LoopModel, loop: Loop, step_runq: Seconds) -> LoopModel:
    """Return the model whose workers and loop wait for cores as long as the run's did.

    Args:
        base: the loop as it ran.
        loop: the loop.
        step_runq: seconds of each step that it waited for a core.
    """
    cpu, waited = float(loop.made.cpu.sum()), float(loop.made.runq.sum())
    share = waited / (cpu + waited) if cpu > 0 else 0.0

    def spread(imbalance: float) -> LoopModel:
        return replace(base, costs=replace(base.costs, imbalance=imbalance))

    fitted = spread(_least(lambda imbalance: spread(imbalance).run().core_wait_share >= share, 1.0))
    step_s = float(step_runq.mean())
    # Where nobody waited for a core at all, the kernel may not report such waits.
    if base.costs.step_threads > SEVERAL and waited + step_s > 0.0:
        fitted = _stepping(base, fitted, share, step_s)

    def waking(seconds: float) -> LoopModel:
        return replace(fitted, costs=replace(fitted.costs, wake_s=seconds))

    return waking(_least(lambda seconds: waking(seconds).run().step_wait_s >= step_s, MOST_WAKES * step_s))


def _stepping(base: LoopModel, spread: LoopModel, share: float, step_s: float) -> LoopModel:
    """Return the model of a step of several threads in which these and the workers wait for cores as long as in the run.

    The kernel need not share cores evenly: of three threads on two cores one may keep a core to itself. That is a worker
    that never sleeps, or the step, whose threads spin while workers sleep.

    Args:
        base: the loop as it ran, all threads getting an even share.
        spread: the same, its threads spread over the cores as badly as its workers' waits show.
        share: of the time in which workers wanted a core, the part in which they waited for one.
        step_s: seconds of a step that it waited for a core.
    """

    def favouring(favour: float) -> LoopModel:
        return replace(base, costs=replace(base.costs, favour=favour))

    def loosened(fitted: LoopModel) -> LoopModel:
        def loose(free: float) -> LoopModel:
            return replace(fitted, costs=replace(fitted.costs, lockstep=1.0 - free))

        return loose(_least(lambda free: loose(free).run().step_wait_s <= step_s, 1.0))

    if base.run().core_wait_share > share:
        return loosened(favouring(_least(lambda favour: favouring(favour).run().core_wait_share <= share, 1.0)))
    first = favouring(-_least(lambda favour: favouring(-favour).run().core_wait_share >= share, 1.0))
    return min((loosened(spread), loosened(first)), key=lambda fitted: abs(fitted.run().step_wait_s - step_s))


def with_lock(base: LoopModel) -> LoopModel:
    """Return the model in which answers wait for the GIL of their worker as long as they did in the run.

    A worker answers its receiver, tensor by tensor, from a thread beside the one that makes its next batch. Python code
    there keeps the GIL for up to 5 ms at a time (`sys.getswitchinterval`). Where tensors were not counted, all of an
    answer counts as work.
    """
    costs, tensors = base.costs, base.batch.tensors
    work_s = ANSWER_PER_TENSOR_S * max(1.0, tensors or 1.0)
    waited_s = costs.answer_cpu_s - work_s
    if tensors is None or waited_s <= 0.0:
        return base

    def holding(held_s: float) -> LoopModel:
        return replace(base, answer_work_s=work_s, costs=replace(costs, answer_cpu_s=work_s, held_s=held_s))

    fitted = holding(_least(lambda held_s: holding(held_s).run().held_s >= waited_s, float(costs.fetch_cpu_s.max())))
    # The replay has one wait a batch; the run may have had several, one after the other.
    rest_s = max(0.0, waited_s - fitted.run().held_s)
    return replace(fitted, costs=replace(fitted.costs, answer_cpu_s=work_s + rest_s))


def booted(base: LoopModel, loop: Loop) -> LoopModel:
    """Return the model whose workers take as long to set up as they did in the run.

    Imports, worker_init_fn and what the dataset builds at its first sample are partly CPU, partly waiting for cores that
    other workers hold, and no single clock covers them. What they cost the loop was measured: the set-up is fitted so
    that the replay's first round of batches takes as long as the run's.
    """
    measured = _first_round_s(loop)
    if measured is None:
        return base

    def booting(seconds: float) -> LoopModel:
        return replace(base, costs=replace(base.costs, worker_boot_s=seconds))

    def late(seconds: float) -> bool:
        return replace(booting(seconds), epochs=1).run().first_round_s >= measured

    return booting(_least(late, measured, BOOT_ERROR))


def _first_round_s(loop: Loop) -> float | None:
    """Return seconds from an epoch's start on new workers until the first batch of each was stepped on; None: not seen.

    The mean over epochs, without the first of all, which also warms caches, where there are others.
    """
    numbers = np.unique(loop.epoch)
    epochs = [epoch for epoch in loop.epochs if epoch.batches]
    rounds = []
    for number, epoch in zip(numbers, epochs, strict=False):
        mine = (loop.epoch == number) & (loop.position < loop.num_workers)
        if not epoch.restarted and (loop.count[mine] == 1).all():
            steps = loop.step[mine]
            # The last step of an epoch that was left early has no end.
            stepped = np.where(np.isfinite(steps), steps, loop.mean(loop.step) or 0.0).sum()
            rounds.append(epoch.ready - epoch.begun - epoch.index_s + float(loop.wait[mine].sum() + stepped))
    return float(np.mean(rounds[1:] or rounds)) if rounds else None


def _least(enough: Callable[[float], bool], most: float, error: float = FIT_ERROR) -> float:
    """Return the least number from 0 to `most` that is enough, by bisection; `most` where none is.

    Args:
        enough: true from some number on.
        most: the largest number that is tried.
        error: of the result, as a share of `most`.
    """
    if most <= 0.0 or enough(0.0):
        return 0.0
    low, high = 0.0, most
    while high - low > error * most:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
