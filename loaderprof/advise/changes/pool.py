"""Changes to a hand-written pipeline: threads or processes or both, requests in flight, batches made ahead.

A change that overlaps more requests promises nothing at its lower end: one run cannot tell latency from a source that
is full. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from loaderprof import formatting
from loaderprof.advise.change import Change, ChangeGuide, RunFacts, rule
from loaderprof.analyze.pools import LOCKED_SHARE, MOSTLY_COMPUTING, MOSTLY_WAITING, Pool
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.findings import Costs
from loaderprof.replay.edits import with_costs
from loaderprof.replay.model import LoopModel
from loaderprof.replay.pooled import unlocked

# More threads than this for requests in flight are not advised.
MAX_REQUESTS = 64
# From this share of waiting on, what producers compute is too little for threads to contend for the GIL.
ONLY_WAITING = 0.95
# What comes this close to the fastest is preferred where it is simpler: fewer requests, or threads alone.
AS_FAST = 1.02
# What processes take and return is pickled, which costs something that this run did not show.
PICKLING_ERROR_PER_LOG = 0.1

PROCESSES = ChangeGuide("processes", "Use processes for the threads: `ProcessPoolExecutor` for `ThreadPoolExecutor`")
THREADS_AND_PROCESSES = ChangeGuide("threads-and-processes", "Threads for what waits, processes for what computes")


@rule(PROCESSES, THREADS_AND_PROCESSES)
def processes(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Compute in processes where threads contend for the GIL with one another or with the loop; threads for waiting."""
    pool, turns = context.parts.pool, context.parts.takes_turns()
    if pool is None or pool.kind != "threads" or not (turns or context.parts.lock_holder):
        return
    cores = min(float(pool.producers), context.cores)
    if turns:
        why = (
            f"{pool.words()} compute on {pool.cores or 1.0:.1f} cores at once, "
            "because one lock lets one of them run Python."
        )
    else:
        why = (
            f"{pool.words()} hold the interpreter's lock while they compute, and the loop waits for it in its own step."
        )
    alone = Change(
        id=PROCESSES.id,
        action="Use processes for the threads: ProcessPoolExecutor in place of ThreadPoolExecutor",
        why=why,
        where=_most_expensive(context, reading=False),
        change={"kind": "code", "makers": "processes"},
        current={"makers": "threads"},
        model=unlocked(base, pool, context.cores),
        costs=Costs(max(0.0, cores - 1.0), None, "one line; what tasks take and return must pickle"),
        code=f"pool = ProcessPoolExecutor({round(cores)})",
        error_per_log=PICKLING_ERROR_PER_LOG,
    )
    if pool.waiting < MOSTLY_COMPUTING:
        yield alone
        return
    yield replace(
        alone,
        id=THREADS_AND_PROCESSES.id,
        action="Keep the threads for what they wait for, and compute in processes",
        why=f"{why} They also wait for reads {formatting.percent(pool.waiting, whole=True)} of their work, which threads do well.",
        change={"kind": "code", "makers": "threads and processes"},
        costs=replace(alone.costs, effort="a few lines; what tasks take and return must pickle"),
        code=f"downloads, compute = ThreadPoolExecutor({pool.producers}), ProcessPoolExecutor({round(cores)})\n"
        "def task(key):  # runs in a thread\n    return compute.submit(process, download(key)).result()",
    )


THREADS = ChangeGuide("threads", "Use threads for the processes: they only wait")
REQUESTS_IN_FLIGHT = ChangeGuide("requests-in-flight", "Keep more requests in flight: more threads that wait")


@rule(THREADS, REQUESTS_IN_FLIGHT)
def more_requests(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Keep as many requests in flight as help, where producers only wait: in threads, which cost no process each."""
    pool = context.parts.pool
    if pool is None or pool.waiting < MOSTLY_WAITING or pool.locked >= LOCKED_SHARE:
        return
    from_processes = pool.kind == "processes"
    # Threads that compute share the GIL: all of them together have one core.
    threaded = base
    if from_processes and pool.waiting < ONLY_WAITING:
        threaded = replace(base, cores=min(1.0, base.cores))
    count = _count(threaded, pool)
    if count is None:
        return
    model = _in_flight(threaded, count / pool.producers)
    if from_processes and model.pace_s() > AS_FAST * _in_flight(base, count / pool.producers).pace_s():
        return
    if from_processes:
        guide, action = THREADS, f"Read in {count} threads in place of {pool.words()}"
        so = "threads wait as well, and cost no process each."
    else:
        guide, action = REQUESTS_IN_FLIGHT, f"Raise the requests in flight from {pool.producers} to {count}"
        so = "waiting overlaps freely."
    yield Change(
        id=guide.id,
        action=action,
        why=f"{pool.words()} wait for reads {formatting.percent(pool.waiting, whole=True)} of their work; {so}",
        where=_most_expensive(context, reading=True),
        change={"kind": "code", "makers": "threads", "requests": count},
        current={"makers": pool.kind, "requests": pool.producers},
        model=model,
        costs=Costs(0.0, 0, "one line, until the source is full"),
        code=f"pool = ThreadPoolExecutor({count})",
        floor=1.0,
    )


@rule(THREADS_AND_PROCESSES)
def threads_beside_processes(context: LoopContext, base: LoopModel, facts: RunFacts) -> Iterator[Change]:
    """Wait in threads beside processes that both wait and compute."""
    pool = context.parts.pool
    if pool is None or pool.kind != "processes" or pool.waiting < MOSTLY_COMPUTING:
        return
    if any(each.id == THREADS.id for each in more_requests(context, base, facts)) or not (count := _count(base, pool)):
        return
    yield Change(
        id=THREADS_AND_PROCESSES.id,
        action=f"Download in {count} threads, and compute in the processes",
        why=f"{pool.words()} wait for reads {formatting.percent(pool.waiting, whole=True)} of their work; in that time they could compute.",
        where=_most_expensive(context, reading=True),
        change={"kind": "code", "makers": "threads and processes"},
        current={"makers": "processes"},
        model=_in_flight(base, count / pool.producers),
        costs=Costs(0.0, 0, "a few lines, until the source is full"),
        code=f"downloads = ThreadPoolExecutor({count})\n"
        "def task(key):  # runs in a thread\n    return compute.submit(process, download(key)).result()",
        floor=1.0,
    )


BATCHES_AHEAD = ChangeGuide("batches-ahead", "Submit the next batch before the step, so that it is made meanwhile")


@rule(BATCHES_AHEAD)
def batches_ahead(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Submit the next batch before the step, where producers rest while the loop steps."""
    pool = context.parts.pool
    if pool is None or pool.overlapped or base.settings.num_workers:
        return
    yield Change(
        id=BATCHES_AHEAD.id,
        action=BATCHES_AHEAD.action,
        why=f"{pool.words()} work only while the loop waits for them.",
        where=context.loop.facts.where,
        change={"kind": "code", "batches_ahead": 1},
        current={"batches_ahead": 0},
        model=replace(base, settings=replace(base.settings, num_workers=1, persistent_workers=True)),
        costs=Costs(0.0, None, "a few lines"),
        code="ahead = pool.submit(make, 0)\nfor number in range(1, batches + 1):\n"
        "    batch, ahead = ahead.result(), pool.submit(make, number)\n    step(batch)",
    )


def _count(base: LoopModel, pool: Pool) -> int | None:
    """Return how many requests in flight are as fast as any more; None where there are as many already."""
    counts = [n for n in (2 * pool.producers, 4 * pool.producers, 8 * pool.producers) if n <= MAX_REQUESTS]
    paces = {count: _in_flight(base, count / pool.producers).pace_s() for count in counts}
    return min((n for n, pace in paces.items() if pace <= AS_FAST * min(paces.values())), default=None)


def _in_flight(base: LoopModel, times: float) -> LoopModel:
    """Return the model with `times` as many requests in flight."""
    return with_costs(base, fetch_blocked_s=base.costs.fetch_blocked_s / times)


def _most_expensive(context: LoopContext, *, reading: bool) -> str | None:
    """Return the user's line at which most of the producers' waiting, or most of their computing, was seen."""
    work = context.parts.pool.work if context.parts.pool is not None else ()
    return next((each.where for each in work if each.where and (each.stage == "read") == reading), None)
