"""The loop context of a job that was watched from outside: what stacks and the kernel's accounts say of its loop.

All else that a loop context holds is unknown there. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

import numpy as np

from loaderprof.analyze.breakdown import Breakdown
from loaderprof.analyze.loop import Loop, Made
from loaderprof.analyze.loop_side import shown_place
from loaderprof.analyze.pieces import OperatorCost
from loaderprof.analyze.samples import Seen
from loaderprof.analyze.stages import WORK
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.findings import Stage
from loaderprof.recording.facts import LoaderFacts, ProcessFacts
from loaderprof.recording.reader import Process, Recording


def context_of(
    recording: Recording, seen: Seen, gains: dict[Stage, float], cores: float, busy_others: float | None
) -> LoopContext:
    """Return what is known of the job's loop; what hooks measure in seconds a batch is here in shares of time."""
    missing = recording.meta.missing
    counts = seen.worker if seen.workers else seen.main
    total = max(1, sum(counts.values()))
    pieces = tuple(
        OperatorCost(stage, name, where, count / total, 0.0)
        for (stage, name, where), count in seen.pieces.most_common()
    )
    made = sum(counts[stage] for stage in WORK) / total
    account = seen.account
    # Stacks say whether a worker makes a batch, the kernel whether its thread runs: what is left of the first is blocked.
    blocked = max(0.0, made - account.cpu - account.runq) if account is not None else None
    step = seen.main["device"] + seen.main["host"]
    lines = tuple(
        (shown_place(recording, line) or line, count / max(1, step)) for line, count in seen.host_lines.most_common(5)
    )
    parts = Breakdown(
        measured=0,
        wall_s=made,
        cpu_s=account.cpu if account else None,
        runq_s=account.runq if account else None,
        blocked_s=blocked,
        collate_s=None,
        pickle_s=None,
        receive_s=None,
        index_s=None,
        pieces=pieces,
        timed_batches=0,
        by_stack={stage: counts[stage] for stage in WORK},
        stack_samples=total,
        host_share=seen.main["host"] / step if step else None,
        host_by=lines,
        step_samples=step,
        stall_s=0.0,
        stall_every=None,
        threads=account.threads if account else None,
        lock_holder=None,
        device_bytes=account.device_bytes if account else None,
        asked_bytes=account.asked_bytes if account else None,
    )
    return LoopContext(
        loop=_no_loop(seen),
        parts=parts,
        gains=gains,
        cores=cores,
        busy_others=busy_others,
        gpu_missing=missing.gpu,
        stacks_missing=missing.stacks,
        operators=tuple(sorted(seen.operators)),
        batch_bytes=None,
        batch_tensors=None,
    )


def _no_loop(seen: Seen) -> Loop:
    """Return a loop in which no batch was stamped."""
    # Empty columns of whole numbers, of seconds and of flags.
    i, s, b = np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.bool_)
    made = Made(i, i, i, i, s, s, s, s, s, s, s, s, s, s, s, s, i, i, i, b, b, s, s)
    return Loop(
        process=Process(0, 0, 0, "", None, None, ProcessFacts()),
        facts=LoaderFacts(name="the DataLoader", num_workers=seen.workers),
        iterators=(),
        epochs=(),
        epoch=i,
        position=i,
        asked=s,
        taken=s,
        wait=s,
        step=s,
        step_cpu=s,
        step_process_cpu=s,
        step_runq=s,
        receive=s,
        receive_cpu=s,
        index=s,
        ready=i,
        parked=i,
        count=i,
        training=True,
        main_thread=True,
        steady=b,
        made=made,
    )
