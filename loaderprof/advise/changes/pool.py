"""Changes to a hand-written pipeline: threads or processes or both, requests in flight, batches made ahead.

A change that overlaps more requests promises nothing at its lower end: one run cannot tell latency from a source that
is full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from loaderprof.advise.change import Change, RunFacts
from loaderprof.analyze.pools import LOCKED_SHARE, MOSTLY_COMPUTING, MOSTLY_WAITING, Pool
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.findings import Costs
from loaderprof.replay.model import LoopModel
from loaderprof.replay.pooled import unlocked

MAX_REQUESTS = 64
ONLY_WAITING = 0.95
# As fast as the fastest: fewer requests, or threads alone, are then simpler.
AS_FAST = 1.02
# What goes to processes and comes back is pickled, which this run did not.
PICKLING_ERROR_PER_LOG = 0.1


def _processes(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Threads at the interpreter's lock, one another's or the loop's: processes for what computes, threads for waiting."""
    pool, turns = context.parts.pool, context.parts.takes_turns()
    if pool is None or pool.kind != "threads" or not (turns or context.parts.lock_holder):
        return
    model = unlocked(base, pool, context.cores)
    cores = min(float(pool.producers), context.cores)
    computing = _most_expensive(context, reading=False)
    why = f"{pool.words()} compute on {pool.cores or 1.0:.1f} cores at once, because one lock lets one of them run Python."
    if not turns:
        why = (
            f"{pool.words()} hold the interpreter's lock while they compute, and the loop waits for it in its own step."
        )
    if pool.waiting < MOSTLY_COMPUTING:
        yield Change(
            "processes",
            "Use processes for the threads: ProcessPoolExecutor in place of ThreadPoolExecutor",
            why,
            computing,
            {"kind": "code", "makers": "processes"},
            {"makers": "threads"},
            model,
            Costs(max(0.0, cores - 1.0), None, "one line; what tasks take and return must pickle"),
            f"pool = ProcessPoolExecutor({round(cores)})",
            error_per_log=PICKLING_ERROR_PER_LOG,
        )
        return
    yield Change(
        "threads-and-processes",
        "Keep the threads for what they wait for, and compute in processes",
        f"{why} They also wait for reads {pool.waiting:.0%} of their work, which threads do well.",
        computing,
        {"kind": "code", "makers": "threads and processes"},
        {"makers": "threads"},
        model,
        Costs(max(0.0, cores - 1.0), None, "a few lines; what tasks take and return must pickle"),
        f"downloads, compute = ThreadPoolExecutor({pool.producers}), ProcessPoolExecutor({round(cores)})\n"
        "def task(key):  # runs in a thread\n    return compute.submit(process, download(key)).result()",
        error_per_log=PICKLING_ERROR_PER_LOG,
    )


def _requests(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Makers that only wait: as many requests in flight as help, in threads, which cost no process each."""
    pool = context.parts.pool
    if pool is None or pool.waiting < MOSTLY_WAITING or pool.locked >= LOCKED_SHARE:
        return
    processes = pool.kind == "processes"
    # Threads that compute share one interpreter's lock.
    lone = replace(base, cores=min(1.0, base.cores)) if processes and pool.waiting < ONLY_WAITING else base
    count = _count(lone, pool)
    if count is None:
        return
    model = _in_flight(lone, count / pool.producers)
    if processes and model.pace_s() > AS_FAST * _in_flight(base, count / pool.producers).pace_s():
        return
    yield Change(
        "threads" if processes else "requests-in-flight",
        f"Read in {count} threads in place of {pool.words()}"
        if processes
        else f"Raise the requests in flight from {pool.producers} to {count}",
        f"{pool.words()} wait for reads {pool.waiting:.0%} of their work"
        + ("; threads wait as well, and cost no process each." if processes else "; waiting overlaps freely."),
        _most_expensive(context, reading=True),
        {"kind": "code", "makers": "threads", "requests": count},
        {"makers": pool.kind, "requests": pool.producers},
        model,
        Costs(0.0, 0, "one line, until the source is full"),
        f"pool = ThreadPoolExecutor({count})",
        1.0,
    )


def _count(base: LoopModel, pool: Pool) -> int | None:
    """Return how many requests in flight are as fast as any more; None where there are as many already."""
    counts = [n for n in (2 * pool.producers, 4 * pool.producers, 8 * pool.producers) if n <= MAX_REQUESTS]
    paces = {count: _in_flight(base, count / pool.producers).pace_s() for count in counts}
    return min((n for n, pace in paces.items() if pace <= AS_FAST * min(paces.values())), default=None)


def _in_flight(base: LoopModel, times: float) -> LoopModel:
    """Return the model with so many times the requests in flight."""
    costs = base.costs
    return replace(base, costs=replace(costs, fetch_blocked_s=costs.fetch_blocked_s / times))


def _hybrid(context: LoopContext, base: LoopModel, facts: RunFacts) -> Iterator[Change]:
    """Processes that both wait and compute: threads beside them for the waiting."""
    pool = context.parts.pool
    if pool is None or pool.kind != "processes" or pool.waiting < MOSTLY_COMPUTING:
        return
    if any(each.id == "threads" for each in _requests(context, base, facts)) or not (count := _count(base, pool)):
        return
    yield Change(
        "threads-and-processes",
        f"Download in {count} threads, and compute in the processes",
        f"{pool.words()} wait for reads {pool.waiting:.0%} of their work; in that time they could compute.",
        _most_expensive(context, reading=True),
        {"kind": "code", "makers": "threads and processes"},
        {"makers": "processes"},
        _in_flight(base, count / pool.producers),
        Costs(0.0, 0, "a few lines, until the source is full"),
        f"downloads = ThreadPoolExecutor({count})\n"
        "def task(key):  # runs in a thread\n    return compute.submit(process, download(key)).result()",
        1.0,
    )


def _ahead(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Makers that rest while the loop steps: the next batch submitted before the step."""
    pool = context.parts.pool
    if pool is None or pool.overlapped or base.settings.num_workers:
        return
    yield Change(
        "batches-ahead",
        "Submit the next batch before the step, so that it is made meanwhile",
        f"{pool.words()} work only while the loop waits for them.",
        context.loop.facts.where,
        {"kind": "code", "batches_ahead": 1},
        {"batches_ahead": 0},
        replace(base, settings=replace(base.settings, num_workers=1, persistent_workers=True)),
        Costs(0.0, None, "a few lines"),
        "ahead = pool.submit(make, 0)\nfor number in range(1, batches + 1):\n"
        "    batch, ahead = ahead.result(), pool.submit(make, number)\n    step(batch)",
    )


def _most_expensive(context: LoopContext, *, reading: bool) -> str | None:
    """Return the user's line at which most of the makers' waiting, or most of their computing, was seen."""
    work = context.parts.pool.work if context.parts.pool is not None else ()
    return next((each.where for each in work if each.where and (each.stage == "read") == reading), None)


POOL_RULES: tuple[Callable[[LoopContext, LoopModel, RunFacts], Iterator[Change]], ...] = (
    _processes,
    _requests,
    _hybrid,
    _ahead,
)
