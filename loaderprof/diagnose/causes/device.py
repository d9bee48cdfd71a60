"""Causes at the device: copies to it, the thread that launches its kernels, and the model's own work."""

from __future__ import annotations

import numpy as np

from loaderprof import formatting
from loaderprof.analyze.loop import Seconds
from loaderprof.diagnose.causes.cause import GAIN, CauseRule, Guide, StageEvidence, always, share_fact
from loaderprof.diagnose.causes.prefetch_queue import batch_ready, none_ready
from loaderprof.diagnose.loop_context import MOSTLY_PINNED, LoopContext, pageable, step_s
from loaderprof.diagnose.verdict import STEP_BOUND
from loaderprof.findings import Evidence

KEEPS_UP = "The step itself is the limit; the loader keeps up"
# A batch is mostly floats from this share of its bytes on.
MOSTLY_FLOATS = 0.9
# A thread that works this much of the step, beside a GPU that runs a kernel less than this of the time, cannot feed it.
# A busy thread alone proves nothing: one that waits for its device spins.
LAUNCHING, MANY_KERNELS_PERCENT = 0.85, 70.0
# A thread that waits for a core this share of its step is kept from launching kernels.
KEPT_WAITING = 0.15
# Beyond this share of its memory a larger batch does not fit.
MEMORY_FULL = 0.9


def _of_copies(context: LoopContext) -> list[Evidence]:
    """Return how a batch gets to the device, as far as it was measured."""
    facts, copies, copy_s = none_ready(context.loop), context.parts.copies, context.parts.copy_s
    if copy_s is not None:
        facts.append(Evidence(f"{formatting.duration(copy_s)} of a step", copy_s, "s", None))
    if copies is None or copies.bytes_ is None:
        return facts
    if copy_s:
        speed = copies.bytes_ / copy_s
        text = f"{formatting.size(copies.bytes_)} a batch at {formatting.size(speed)}/s"
        facts.append(Evidence(text, speed, "bytes/s", copies.bytes_ / copies.least_s if copies.least_s else None))
    if copies.least_s is not None:
        facts.append(Evidence(f"the link would take {formatting.duration(copies.least_s)}", copies.least_s, "s", None))
    if copies.pinned is not None:
        facts.append(share_fact("{} of its bytes are in pinned memory", copies.pinned, MOSTLY_PINNED))
    if context.float_share is not None:
        facts.append(share_fact("{} of them are floats", context.float_share, MOSTLY_FLOATS))
    return facts


def _of_device(context: LoopContext) -> list[Evidence]:
    """Return what the device and NVML say of a step that is the limit."""
    facts = batch_ready(context.loop)
    if not len(context.loop.busy):
        return facts
    used, launching = _utilisation(context), _step_share(context, context.loop.step_cpu)
    waits = _step_share(context, context.loop.step_runq)
    if used is not None:
        text = f"a kernel runs {formatting.percent(used / 100, whole=True)} of the time"
        facts.append(Evidence(text, used, "percent", MANY_KERNELS_PERCENT))
        if used < MANY_KERNELS_PERCENT:
            facts.append(share_fact("the thread that launches kernels is at work {} of the step", launching, LAUNCHING))
    if waits >= KEPT_WAITING:
        facts.append(share_fact("it waits {} of the step for a core", waits, KEPT_WAITING))
    for gpu in context.gpus:
        if gpu.memory_used_bytes is not None and gpu.memory_total_bytes:
            full = gpu.memory_used_bytes / gpu.memory_total_bytes
            then = "no larger batch fits" if full >= MEMORY_FULL else "a larger batch may fit"
            facts.append(share_fact(f"GPU {gpu.index} has {{}} of its memory in use: {then}", full, MEMORY_FULL))
        if gpu.throttled:
            facts.append(Evidence(f"GPU {gpu.index} is kept slow by {', '.join(gpu.throttled)}", None, "", None))
    return facts


COPIES = StageEvidence(f"{GAIN}; without a GPU it is not measured", _of_copies)
DEVICE = StageEvidence(f"the loader alone could go at least {STEP_BOUND:g} times as fast as the job", _of_device)


def _utilisation(context: LoopContext) -> float | None:
    """Return the percentage of the time in which any kernel ran, of the GPU that ran the fewest."""
    known = (each.utilisation_percent for each in context.gpus if each.utilisation_percent is not None)
    return min(known, default=None)


def _step_share(context: LoopContext, seconds: Seconds) -> float:
    """Return which part of a loop's steps some of their seconds are; 0 where the step did not run on a device."""
    mean, step = context.loop.mean(np.clip(seconds, 0.0, None)), step_s(context)
    return mean / step if len(context.loop.busy) and mean is not None and step else 0.0


def _kept_waiting(context: LoopContext) -> bool:
    """Return whether the thread that launches kernels waits long for a core."""
    return _step_share(context, context.loop.step_runq) >= KEPT_WAITING


def _launches(context: LoopContext) -> bool:
    """Return whether the device waits for the thread that launches its kernels."""
    used = _utilisation(context)
    busy = _step_share(context, context.loop.step_cpu)
    return used is not None and used < MANY_KERNELS_PERCENT and busy >= LAUNCHING


def _copies_to_device(cause: CauseRule, _: LoopContext) -> str:
    return f"{cause.title} to the device hold it up"


def _copies(cause: CauseRule, _: LoopContext) -> str:
    return f"{cause.title} hold it up"


def _waits_for_host(cause: CauseRule, _: LoopContext) -> str:
    return f"{cause.title}: the device waits for the host within the step"


def _copies_unseen(context: LoopContext) -> str | None:
    if "copy" in context.gains:
        return None
    if len(context.loop.starved):
        return "nothing marks them; put `with loaderprof.stage('copy'):` around the batch's move"
    return context.gpu_missing or "the step did not run on a GPU"


CAUSES: tuple[CauseRule, ...] = (
    CauseRule(
        id="pageable-copy",
        stage="copy",
        title="Copies from pageable memory",
        test=pageable,
        evidence=COPIES,
        headline=_copies_to_device,
        guide=Guide(
            means="Batches are copied to the device from memory that is not pinned: the host takes part in every copy, and waits.",
            identified_by="the share of a batch's bytes in pinned memory, and what the copy takes of a step",
            changes=("pin-memory",),
            do=("Copy with `non_blocking=True`, so that the host goes on meanwhile.",),
        ),
    ),
    CauseRule(
        id="float-copy",
        stage="copy",
        title="Copies of floats",
        test=lambda context: (context.float_share or 0.0) >= MOSTLY_FLOATS,
        evidence=COPIES,
        headline=_copies_to_device,
        guide=Guide(
            means="Batches of floats are copied to the device; where they were made from bytes, that is four times as much.",
            identified_by="the share of a batch's bytes that are floats, and how fast the link is",
            changes=("uint8-batches", "overlapped-copy"),
            do=("Send half precision where the model computes in it anyhow.",),
        ),
    ),
    CauseRule(
        id="copy-bound",
        stage="copy",
        title="Copies to the device",
        test=always,
        evidence=COPIES,
        headline=_copies,
        unmeasured=_copies_unseen,
        guide=Guide(
            means="Copies of batches to the device are not hidden behind its work.",
            identified_by="what the copy takes of a step, as marked by `loaderprof.stage('copy')` or a library's function that moves batches",
            changes=("overlapped-copy",),
            do=("Copy the next batch on a stream of its own while the step goes on.",),
        ),
    ),
    CauseRule(
        id="stolen-core",
        stage="device",
        title="Workers take the core that launches kernels",
        test=_kept_waiting,
        evidence=DEVICE,
        headline=_waits_for_host,
        guide=Guide(
            means="The thread that launches kernels waits for a core that workers hold, and the device waits for it.",
            identified_by="how much of the step that thread waited for a core",
            changes=("num-workers",),
            do=("Leave a core free: fewer workers, or `os.sched_setaffinity` in `worker_init_fn`.",),
        ),
    ),
    CauseRule(
        id="launch-bound",
        stage="device",
        title="The CPU cannot launch kernels fast enough",
        test=_launches,
        evidence=DEVICE,
        headline=_waits_for_host,
        guide=Guide(
            means="The host launches kernels more slowly than the device runs them: many small kernels, or much Python around them.",
            identified_by="a GPU that runs a kernel less than so much of the time, beside a thread that is at work nearly all of the step",
            do=("A larger batch, `torch.compile`, or CUDA graphs: fewer launches for the same work.",),
        ),
    ),
    CauseRule(
        id="compute-bound",
        stage="device",
        title="The model's own work",
        test=always,
        evidence=DEVICE,
        headline=lambda *_: KEEPS_UP,
        before="The step itself is the limit; after it, ",
        guide=Guide(
            means="The step itself is the limit. The loader keeps up; a change to it gains nothing.",
            identified_by="finished batches wait to be taken",
            do=("Profile the model: `torch.profiler`. Fewer workers may do as well and free cores.",),
            commands=("loaderprof run --set num_workers=1 train.py",),
        ),
    ),
)
