"""The replay of a watched pipeline whose batches threads or processes of its own make.

A pool is replayed as workers. Producers that share a GIL share one core with the loop's own thread. Producers that work
only while the loop waits for them remain a wait. Pure.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from loaderprof.analyze.breakdown import Breakdown
from loaderprof.analyze.loop import Loop
from loaderprof.analyze.pools import LOCKED_SHARE, Pool
from loaderprof.replay.costs import Seconds
from loaderprof.replay.model import LoopModel

# Where the loop waits more than this share of its time the producers limit it, and as many work at once as were seen.
HELD_UP = 0.1
# At least this share of the steps gets the GIL at once, so that their quantile shows a step without the wait.
LET_THROUGH = 0.1


def pooled(base: LoopModel | None, loop: Loop, parts: Breakdown) -> LoopModel | None:
    """Return the model of a watched loop with its producers as workers; `base` where no pool works beside the loop."""
    pool = parts.pool
    if base is None or pool is None:
        return base
    # The CPU of the process's other threads is that of the producers, not of threads of the step.
    costs = replace(base.costs, step_threads=1.0)
    if not pool.overlapped:
        own = float(costs.fetch_cpu_s.mean())
        waited = max(0.0, (loop.mean(loop.wait) or 0.0) - own)
        fetched = np.ones(len(costs.fetch_cpu_s))
        return replace(base, costs=replace(costs, fetch_cpu_s=fetched * own, fetch_blocked_s=fetched * waited))
    wait, step = loop.mean(loop.wait) or 0.0, loop.mean(loop.step) or 0.0
    cpu, blocked = pool.seconds(wait + step)
    producers = round(pool.busy) if wait > HELD_UP * (wait + step) else pool.producers
    fetched = np.ones(len(costs.fetch_cpu_s))
    costs = replace(
        costs,
        fetch_cpu_s=fetched * cpu,
        fetch_blocked_s=fetched * blocked,
        receive_cpu_s=float(costs.fetch_cpu_s.mean()),
    )
    settings = replace(base.settings, num_workers=max(1, producers), in_order=True, persistent_workers=True)
    return replace(base, costs=costs, settings=settings, cores=1.0 if pool.locked >= LOCKED_SHARE else base.cores)


def unlocked(base: LoopModel, pool: Pool, budget: float) -> LoopModel:
    """Return the model without the GIL between producers and loop: as many processes instead, on `budget` cores."""
    costs = base.costs
    costs = replace(costs, step_blocked_s=_own_blocking(costs.step_blocked_s, pool))
    if pool.overlapped:
        return replace(base, costs=costs, cores=budget)
    # One at a time they compute for as long as the loop waits. As processes they compute on all cores at once, or, where they
    # also read, as many as there are of them. Of more cores others take as much as they took of the one.
    serial = min(1.0, max(pool.cores or 0.0, pool.held or 0.0)) or 1.0
    together = min(float(pool.producers), max(1.0, budget))
    reading = pool.waiting * pool.busy
    kept = min(1.0, max(serial / together, (serial + reading) / pool.producers) / serial)
    return replace(base, costs=replace(costs, fetch_blocked_s=costs.fetch_blocked_s * kept), cores=budget)


def _own_blocking(blocked: Seconds, pool: Pool) -> Seconds:
    """Return the blocked seconds of steps without their waits for the GIL.

    Where it was not measured whether the loop's thread slept on a lock, the shortest steps show what is not that wait.
    """
    if not blocked.any():
        return blocked
    if pool.step_locked_s is not None:
        return blocked * max(0.0, 1 - pool.step_locked_s / float(blocked.mean()))
    return np.minimum(blocked, float(np.quantile(blocked, LET_THROUGH)))
