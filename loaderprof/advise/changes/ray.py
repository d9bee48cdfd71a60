"""Changes to a loop over Ray Data, in Ray's own terms: how many tasks make batches, how many are fetched ahead. Pure.

A Ray process that makes batches is replayed as a worker. What Ray itself does between its processes and the loop (its
object store, its local shuffle) is not measured, and nothing is advised on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from loaderprof import formatting
from loaderprof.advise.change import Change, ChangeGuide, RunFacts, rule
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.findings import Costs
from loaderprof.replay.edits import with_settings
from loaderprof.replay.model import LoopModel

FRAMEWORK = "ray"
# The least number of tasks that comes this close to the best is enough.
AS_FAST = 1.01

RAY_TASKS = ChangeGuide("ray-tasks", "Let more tasks of Ray's `map_batches` run at once")


@rule(RAY_TASKS)
def ray_tasks(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
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
        id=RAY_TASKS.id,
        action=f"Let {count} tasks of map_batches run at once, in place of {pool.producers}",
        why=f"The loop waits for {pool.words()} of Ray, {formatting.percent(pool.busy / pool.producers, whole=True)} of the time at work.",
        where=pool.work[0].where if pool.work else None,
        change={"kind": "code", "tasks": count},
        current={"tasks": pool.producers},
        model=models[count],
        costs=Costs(float(count - pool.producers), None, "one argument"),
        code=f"dataset.map_batches(..., compute=ray.data.TaskPoolStrategy(size={count}))  # and ray.init(num_cpus=...) to match",
    )


RAY_PREFETCH = ChangeGuide("ray-prefetch", "Have Ray fetch batches ahead of the loop: `prefetch_batches`")


@rule(RAY_PREFETCH)
def ray_prefetch(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Fetch batches ahead where the loop fetches each one itself."""
    if context.loop.facts.prefetch_batches != 0 or context.parts.pool is None or base.settings.num_workers:
        return
    yield Change(
        id=RAY_PREFETCH.id,
        action="Fetch batches ahead of the loop: prefetch_batches=2",
        why="With prefetch_batches=0 the loop fetches and formats each batch itself, between its steps.",
        where=context.loop.facts.where,
        change={"kind": "code", "prefetch_batches": 2},
        current={"prefetch_batches": 0},
        model=replace(base, settings=replace(base.settings, num_workers=1, persistent_workers=True)),
        costs=Costs(0.0, None, "one argument"),
        code="dataset.iter_torch_batches(..., prefetch_batches=2)",
    )
