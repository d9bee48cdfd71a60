"""Causes of contention: threads, workers or other processes that compete for cores, and threads that wait for the GIL."""

from __future__ import annotations

from loaderprof.analyze.pieces import MANY_THREADS
from loaderprof.analyze.pools import HELD, LOCKED_SHARE
from loaderprof.diagnose.causes.cause import GAIN, CauseRule, Guide, StageEvidence, always, share_fact
from loaderprof.diagnose.causes.making import pool_at_work
from loaderprof.diagnose.causes.prefetch_queue import device_idle, none_ready
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.findings import Evidence

# Workers that wait this share of their time for a core compete for it; shown beside the evidence, it decides nothing.
CORE_WAIT = 0.25


def _facts(context: LoopContext) -> list[Evidence]:
    parts, pool = context.parts, context.parts.pool
    facts = pool_at_work(context)
    if pool is not None and pool.held is not None:
        facts.append(share_fact("the interpreter's lock is held {} of the time", pool.held, HELD))
    if pool is not None:
        facts.append(share_fact("they wait for it {} of their work", pool.locked, LOCKED_SHARE))
    facts += [*none_ready(context.loop), *device_idle(context)]
    if parts.runq_s is not None and parts.wall_s and pool is None:
        waiting = parts.runq_s / parts.wall_s
        facts.append(share_fact("workers wait {} of their time for a core", waiting, CORE_WAIT))
    return facts


CONTENTION = StageEvidence(f"{GAIN}; the workers' wait for a core, as the kernel counts it", _facts)


def _busy_threads(_: CauseRule, context: LoopContext) -> str:
    workers = max(1, context.loop.num_workers)
    return f"Each of {workers} workers keeps {context.parts.threads or 0:.1f} threads busy on {context.cores:g} cores"


def _lock_holder(cause: CauseRule, context: LoopContext) -> str:
    pool, line = context.parts.pool, context.parts.lock_holder
    if pool is None or pool.producers <= 1:
        return f"{cause.title} ({line})"
    if context.parts.takes_turns():
        return f"{context.producer()} take turns at the interpreter's lock ({line})"
    return f"{context.producer()} hold the interpreter's lock while the loop steps ({line})"


def _bound(_: CauseRule, context: LoopContext) -> str:
    return f"{context.loop.num_workers} workers of {context.loop.name} are bound to too few of {context.cores:g} cores"


def _helpers_busy(cause: CauseRule, context: LoopContext) -> str:
    return f"{cause.title}: {context.helpers:.1f} of {context.cores:g}"


CAUSES: tuple[CauseRule, ...] = (
    CauseRule(
        id="thread-oversubscription",
        stage="contention",
        title="Too many threads in the workers",
        test=lambda context: (context.parts.threads or 0) > MANY_THREADS,
        evidence=CONTENTION,
        headline=_busy_threads,
        guide=Guide(
            means="Each worker runs several threads of a library (OpenMP, MKL, OpenCV), and all of them fight for the same cores.",
            identified_by=f"a worker's process burns over {MANY_THREADS:g} times the CPU time of its own thread",
            changes=("single-threaded-workers", "num-workers"),
            commands=("OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 loaderprof run train.py",),
        ),
    ),
    CauseRule(
        id="interpreter-lock",
        stage="contention",
        title="A Python thread holds the interpreter's lock",
        test=lambda context: bool(context.parts.lock_holder),
        evidence=CONTENTION,
        headline=_lock_holder,
        guide=Guide(
            means="Python threads compute at once - makers of batches, or one beside the training - and take turns at the "
            "interpreter's lock.",
            identified_by="stack samples of threads that run Python while batches are made or taken, and how long the lock is held",
            changes=("processes", "threads-and-processes"),
            do=("Move that thread's work into a process, or into a library call that gives the lock back.",),
        ),
    ),
    CauseRule(
        id="bound-workers",
        stage="contention",
        title="Workers bound to too few CPUs",
        test=lambda context: context.bound,
        evidence=CONTENTION,
        headline=_bound,
        guide=Guide(
            means="Workers may use fewer CPUs than the job has: an affinity was inherited, or set in `worker_init_fn`.",
            identified_by="the mask of CPUs that each maker of batches reported",
            do=(
                "Give the workers all CPUs of the budget again; look for KMP_AFFINITY, GOMP_CPU_AFFINITY, taskset, numactl.",
            ),
            commands=("grep Cpus_allowed_list /proc/PID/status",),
        ),
    ),
    CauseRule(
        id="busy-helpers",
        stage="contention",
        title="Other processes of the job take its cores",
        test=always,
        evidence=CONTENTION,
        headline=_helpers_busy,
        guide=Guide(
            means="Other processes of the same job take cores that loop and workers want.",
            identified_by="the CPU time of the job's processes that are neither loop nor workers",
            do=("Stop them, move them to another time, or give the job more cores.",),
            commands=("ps --ppid PID -o pid,pcpu,args",),
        ),
    ),
)
