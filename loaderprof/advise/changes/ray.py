"""Changes to a loop over Ray Data, in Ray's own terms: how many tasks make batches, how many are fetched ahead. Pure.

A Ray process that makes batches is replayed as a worker. What Ray itself does between its processes and the loop (its
object store, its local shuffle) is not measured, and nothing is advised on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from loaderprof.advise.change import Change, RunFacts
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.findings import Costs
from loaderprof.replay.edits import with_settings
from loaderprof.replay.model import LoopModel

FRAMEWORK = "ray"
# The least number of tasks that comes this close to the best is enough.
AS_FAST = 1.01


def _tasks(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Run as many tasks of the dataset's map at once as help, within the cores of the budget."""
    pool = context.parts.pool
    if pool is None or pool.kind != "processes" or not pool.overlapped:
        return
    counts = range(pool.producers + 1, int(context.cores) + 1)
    models = {count: with_settings(base, num_workers=count) for count in counts}
    if not models:
        return
    best = min(model.pace_s() for model in models.values())
    count = min(count for count, model in models.items() if model.pace_s() <= AS_FAST * best)
    yield Change(
        "ray-tasks",
        f"Let {count} tasks of map_batches run at once, in place of {pool.producers}",
        f"The loop waits for {pool.words()} of Ray, {pool.busy / pool.producers:.0%} of the time at work.",
        pool.work[0].where if pool.work else None,
        {"kind": "code", "tasks": count},
        {"tasks": pool.producers},
        models[count],
        Costs(float(count - pool.producers), None, "one argument"),
        f"dataset.map_batches(..., compute=ray.data.TaskPoolStrategy(size={count}))  # and ray.init(num_cpus=...) to match",
    )


def _prefetch(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Fetch batches ahead where the loop fetches each one itself."""
    if context.loop.facts.prefetch_batches != 0 or context.parts.pool is None or base.settings.num_workers:
        return
    yield Change(
        "ray-prefetch",
        "Fetch batches ahead of the loop: prefetch_batches=2",
        "With prefetch_batches=0 the loop fetches and formats each batch itself, between its steps.",
        context.loop.facts.where,
        {"kind": "code", "prefetch_batches": 2},
        {"prefetch_batches": 0},
        replace(base, settings=replace(base.settings, num_workers=1, persistent_workers=True)),
        Costs(0.0, None, "one argument"),
        "dataset.iter_torch_batches(..., prefetch_batches=2)",
    )


RAY_RULES: tuple[Callable[[LoopContext, LoopModel, RunFacts], Iterator[Change]], ...] = (_tasks, _prefetch)
