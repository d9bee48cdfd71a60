"""Changes to what the DataLoader is given: how many workers, how they start, how long they live, how far they work ahead.

No setting asks for more workers than the CPU budget has cores. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from loaderprof.advise.change import Change, ChangeGuide, RunFacts, may_be_full, rule
from loaderprof.advise.weigh import BORDER_ERROR_PER_LOG
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.diagnose.verdict import MIN_GAIN
from loaderprof.findings import Costs
from loaderprof.replay.edits import WORKER_START_S, with_costs, with_settings
from loaderprof.replay.model import LoopModel

# The least number of workers that comes this close to the best number is enough.
AS_FAST = 1.01
# What a forked worker keeps of setting itself up, which is what its dataset opens: at worst, likely, and at best.
FORKED_KEPT = (0.5, 0.15, 0.0)
# 2.6, the first release with in_order, dealt work badly out of order; pytorch pull request 142324 fixed that in 2.7.
IN_ORDER_TORCH = (2, 7)

NUM_WORKERS = ChangeGuide(
    "num-workers",
    "Set `num_workers` to the least number that is within 1 % of the best; never more than the CPU budget has cores",
    setting=True,
)


@rule(NUM_WORKERS)
def num_workers(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Raise or lower num_workers to the least number that is about as fast as the best that the budget allows."""
    now, cap = base.settings.num_workers, max(1, int(base.cores))
    candidates = sorted({*range(1, min(cap, 8) + 1), *(n for n in (12, 16, 24, 32) if n <= cap), cap})
    paces = {number: with_settings(base, num_workers=number).pace_s() for number in candidates if number != now}
    # Of more workers than shards the rest would be idle; where there are fewer shards than workers, see `more-shards`.
    if not paces or context.loop.idle_workers:
        return
    best = min(paces.values())
    number = min(n for n, pace in paces.items() if pace <= AS_FAST * best)
    if now == 0:
        made_by = "Batches are made in the training process"
    else:
        made_by = "One worker makes the batches" if now == 1 else f"{now} workers make the batches"
    yield Change(
        id=NUM_WORKERS.id,
        action=f"{'Raise' if number > now else 'Lower'} num_workers from {now} to {number}",
        why=f"{made_by}; the CPU budget is {base.cores:g} cores.",
        where=context.loop.facts.where,
        change={"num_workers": number},
        current={"num_workers": now},
        model=with_settings(base, num_workers=number),
        costs=Costs(float(number - now), None, "one argument"),
        code=f"{context.loop.name} = DataLoader(..., num_workers={number})",
        # More requests at once gain nothing from a source that is full.
        floor=1.0 if number > now and may_be_full(context) else None,
    )


PERSISTENT_WORKERS = ChangeGuide(
    "persistent-workers", "Keep the workers between epochs: `persistent_workers=True`", setting=True
)
ONE_LOADER = ChangeGuide(
    "one-loader", "Make the DataLoader once, before the loop over epochs, with `persistent_workers=True`"
)


@rule(PERSISTENT_WORKERS, ONE_LOADER)
def persistent_workers(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Keep the workers between epochs, which takes a loader that lives as long."""
    if not base.settings.num_workers or base.settings.persistent_workers or base.epochs < 2:
        return
    kept = with_settings(base, persistent_workers=True)
    floor = ceiling = None
    if base.all_first:
        # Each batch was the first of its worker, so that any part of making it may have been set-up.
        costs = base.costs
        free = with_costs(kept, fetch_cpu_s=costs.fetch_cpu_s * 0.0, fetch_blocked_s=costs.fetch_blocked_s * 0.0)
        floor, ceiling = 1.0, base.pace_s() / free.pace_s()
    epochs = context.loop.epochs
    # Workers end with their loader: one that is made anew for each epoch keeps none, whatever its setting.
    anew = sum(epoch.anew for epoch in epochs) > len(epochs) / 2
    keep = "Keep the workers between epochs (persistent_workers=True)"
    yield Change(
        id=ONE_LOADER.id if anew else PERSISTENT_WORKERS.id,
        action="Make the DataLoader once, before the loop, with persistent_workers=True" if anew else keep,
        why=f"Workers were started {len(epochs)} times.",
        where=context.loop.facts.where,
        change={"kind": "code"} if anew else {"persistent_workers": True},
        current={"persistent_workers": False},
        model=kept,
        costs=Costs(0.0, None, "a line moved" if anew else "one argument"),
        code=f"{context.loop.name} = DataLoader(..., persistent_workers=True)"
        + ("  # before the loop" if anew else ""),
        floor=floor,
        ceiling=ceiling,
        error_per_log=BORDER_ERROR_PER_LOG,
    )


START_METHOD = ChangeGuide(
    "start-method",
    "Start workers with `multiprocessing_context='fork'`, where they leave CUDA alone: a forked worker imports nothing",
    setting=True,
)


@rule(START_METHOD)
def start_method(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Fork workers: a forked one has the job's modules and its dataset, any other imports and unpickles them anew."""
    method = context.loop.facts.start_method
    if not base.settings.num_workers or method not in ("spawn", "forkserver") or context.gain("startup") < MIN_GAIN:
        return
    start_s = min(base.costs.worker_start_s, WORKER_START_S)
    worst, likely, best = (
        with_costs(base, worker_boot_s=base.costs.worker_boot_s * kept, worker_start_s=start_s) for kept in FORKED_KEPT
    )
    yield Change(
        id=START_METHOD.id,
        action=f"Start workers with fork, not {method} (multiprocessing_context='fork')",
        why="Each worker starts a Python of its own, imports the job's modules and unpickles the dataset; a forked one has them. "
        "Only where workers leave CUDA alone and no thread of the job holds a lock when they start.",
        where=context.loop.facts.where,
        change={"multiprocessing_context": "fork"},
        current={"multiprocessing_context": method},
        model=likely,
        costs=Costs(0.0, None, "one argument"),
        code=f"{context.loop.name} = DataLoader(..., multiprocessing_context='fork')",
        error_per_log=BORDER_ERROR_PER_LOG,
    ).between(base, worst, best)


PREFETCH_FACTOR = ChangeGuide(
    "prefetch-factor",
    "Raise `prefetch_factor`: a deeper queue rides over slow batches, at the price of memory",
    setting=True,
)


@rule(PREFETCH_FACTOR)
def prefetch_factor(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Deepen the prefetch queue, which then absorbs batches that take longer."""
    now, workers = base.settings.prefetch_factor, base.settings.num_workers
    factor = next((each for each in (4, 8) if each > now), None)
    if not workers or factor is None:
        return
    size = context.batch_bytes
    yield Change(
        id=PREFETCH_FACTOR.id,
        action=f"Raise prefetch_factor from {now} to {factor}",
        why="Batches take uneven times; a deeper queue rides over the slow ones.",
        where=context.loop.facts.where,
        change={"prefetch_factor": factor},
        current={"prefetch_factor": now},
        model=with_settings(base, prefetch_factor=factor),
        costs=Costs(0.0, int(size * ((factor - now) * workers)) if size else None, "one argument"),
        code=f"{context.loop.name} = DataLoader(..., prefetch_factor={factor})",
    )


OUT_OF_ORDER = ChangeGuide(
    "out-of-order",
    "Take batches as they are ready: `in_order=False` (torch 2.7 or newer); their order changes",
    setting=True,
)


@rule(OUT_OF_ORDER)
def out_of_order(context: LoopContext, base: LoopModel, facts: RunFacts) -> Iterator[Change]:
    """Hand batches out as they become ready, where slow ones hold up others."""
    if version(facts.torch) < IN_ORDER_TORCH or base.settings.num_workers < 2:
        return
    if not base.settings.in_order or "straggler" not in context.gains:
        return
    yield Change(
        id=OUT_OF_ORDER.id,
        action="Take batches as they are ready (in_order=False)",
        why="A slow batch holds up later ones that are ready; the order of batches will change.",
        where=context.loop.facts.where,
        change={"in_order": False},
        current={"in_order": True},
        model=with_settings(base, in_order=False),
        costs=Costs(0.0, 0, "one argument; the order of batches is no longer fixed"),
        code=f"{context.loop.name} = DataLoader(..., in_order=False)",
    )


def version(text: str | None) -> tuple[int, int]:
    """Return a version's first two numbers; (0, 0) where it has none."""
    parts = (text or "0.0").split("+")[0].split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (ValueError, IndexError):
        return 0, 0
