"""The words that evidence is told in: what speaks for a stage being the limit, each with its number and threshold. Pure."""

from __future__ import annotations

from loaderprof.analyze.loop import Loop
from loaderprof.analyze.pools import HELD, LOCKED_SHARE, MOSTLY_WAITING, Pool
from loaderprof.analyze.reads import Reads
from loaderprof.analyze.stages import LOADER, WORK
from loaderprof.diagnose.loop_context import (
    KEPT_WAITING,
    LAUNCHING,
    MANY_FILES,
    MANY_KERNELS_PERCENT,
    MANY_TENSORS,
    MOSTLY,
    MOSTLY_BLOCKED,
    MOSTLY_FLOATS,
    MOSTLY_PINNED,
    MOSTLY_REMOTE,
    PIPE_BYTES,
    LoopContext,
    blocked_share,
    how_read,
    piped,
    step_s,
    step_share,
    utilisation,
)
from loaderprof.diagnose.verdict import MIN_GAIN
from loaderprof.findings import Evidence, Stage

# Beyond this share of its memory a larger batch does not fit.
MEMORY_FULL = 0.9


def evidence(stage: Stage, context: LoopContext) -> tuple[Evidence, ...]:
    """Return what speaks for a stage being the limit."""
    facts = [
        Evidence(
            f"without it the job would be {context.gains[stage]:.2f}x as fast",
            context.gains[stage],
            "ratio",
            1 + MIN_GAIN,
        )
    ]
    share = context.share(stage)
    parts, loop = context.parts, context.loop
    if share is not None and stage in ("read", "decode", "transform", "collate"):
        made = f"{parts.measured} batches measured, {parts.timed_batches} timed in depth"
        if parts.pool is not None:
            made = f"{parts.pool.samples} stack samples of {parts.pool.words()}"
        facts.append(Evidence(f"{share:.0%} of a batch's making ({made})", share, "share", None))
        if parts.by_stack and parts.pool is None:
            seen = parts.by_stack.get(stage, 0) / max(1, sum(parts.by_stack.values()))
            facts.append(
                Evidence(f"{seen:.0%} of {parts.stack_samples} stack samples of its makers", seen, "share", None)
            )
        if stage == "read" and parts.blocked_s is not None and parts.wall_s and parts.pool is None:
            facts.append(
                Evidence(
                    f"makers are blocked {blocked_share(context):.0%} of their time",
                    blocked_share(context),
                    "share",
                    MOSTLY_BLOCKED,
                )
            )
    if stage == "read":
        facts.extend(_of_reads(how_read(context)))
    if parts.pool is not None and stage in (*WORK, "contention"):
        facts.extend(_of_pool(parts.pool, stage))
    facts.extend(_of_queue(stage, loop))
    if stage in LOADER and len(loop.starved) and step_s(context):
        starved = float(loop.starved.mean())
        text = f"the device has nothing to do {starved * 1e3:.3g} ms of every step, by its own clock"
        facts.append(Evidence(text, starved, "s", None))
    if stage == "copy":
        facts.extend(_of_copies(context))
    if stage == "device" and len(loop.busy):
        facts.extend(_of_device(context))
    if stage == "handover":
        facts.extend(_of_handover(context))
    if stage == "host" and parts.host_share is not None:
        text = f"{parts.host_share:.0%} of {parts.step_samples} stack samples of the step are the loop's own Python"
        facts.append(Evidence(text, parts.host_share, "share", None))
    if stage == "contention" and parts.runq_s is not None and parts.wall_s and parts.pool is None:
        waiting = parts.runq_s / parts.wall_s
        facts.append(Evidence(f"workers wait {waiting:.0%} of their time for a core", waiting, "share", 0.25))
    if stage == "sampler" and parts.index_s is not None:
        facts.append(Evidence(f"{parts.index_s * 1e3:.2g} ms a batch in the sampler", parts.index_s, "s", None))
    return tuple(facts)


def _of_queue(stage: Stage, loop: Loop) -> list[Evidence]:
    """Return what the queue of made batches says, where it speaks for the stage.

    Batches are counted as they are made, before they are pickled: where one lies there and the loop waits all the same,
    handing over or the loop's own thread is what takes long.
    """
    empty = _empty_share(loop)
    if empty is None:
        return []
    if stage in ("device", "host", "none", "handover", "sampler"):
        lay = 1.0 - empty
        text = f"a batch was already made at {lay:.0%} of the steps"
        if stage in ("handover", "sampler"):
            text += ", so making it is not what the loop waits for"
        return [Evidence(text, lay, "share", MOSTLY)] if lay >= MOSTLY else []
    least = 0.0 if stage in ("straggler", "startup") else MOSTLY
    return [Evidence(f"no batch was ready at {empty:.0%} of the steps", empty, "share", None)] if empty > least else []


def _empty_share(loop: Loop) -> float | None:
    known = loop.steady & (loop.ready >= 0) & (loop.count == 1)
    return float((loop.ready[known] == 0).mean()) if known.any() else None


def _of_handover(context: LoopContext) -> list[Evidence]:
    """Return what a batch holds and how it travels, as far as it was measured."""
    facts = []
    size, tensors, pickled = context.batch_bytes, context.batch_tensors, context.pickled_bytes
    if pickled is not None and piped(context):
        text = f"{_size(pickled)} of every batch pass through a pipe, not through shared memory"
        facts.append(Evidence(text, pickled, "bytes", float(PIPE_BYTES)))
    if size is not None and tensors is not None:
        text = (
            f"a batch holds {_size(size)} in {tensors:.0f} {'tensor or array' if tensors == 1 else 'tensors or arrays'}"
        )
        if not tensors:
            text = f"a batch holds {context.batch_leaves or 0.0:.0f} objects, none of them a tensor or array"
        facts.append(Evidence(text, tensors, "tensors", float(MANY_TENSORS)))
    for seconds, what in ((context.parts.pickle_s, "to pickle"), (context.parts.receive_s, "to receive")):
        if seconds is not None:
            facts.append(Evidence(f"{seconds * 1e3:.2g} ms a batch {what}", seconds, "s", None))
    return facts


def _of_copies(context: LoopContext) -> list[Evidence]:
    """Return how a batch gets to the device, as far as it was measured."""
    facts, copies = [], context.parts.copies
    if context.parts.copy_s is not None:
        facts.append(Evidence(f"{context.parts.copy_s * 1e3:.3g} ms of a step", context.parts.copy_s, "s", None))
    if copies is None or copies.bytes_ is None:
        return facts
    if context.parts.copy_s:
        speed = copies.bytes_ / context.parts.copy_s
        text = f"{_size(copies.bytes_)} a batch at {speed / 1e9:.3g} GB/s"
        facts.append(Evidence(text, speed, "bytes/s", copies.bytes_ / copies.least_s if copies.least_s else None))
    if copies.least_s is not None:
        facts.append(Evidence(f"the link would take {copies.least_s * 1e3:.3g} ms", copies.least_s, "s", None))
    if copies.pinned is not None:
        facts.append(
            Evidence(f"{copies.pinned:.0%} of its bytes are in pinned memory", copies.pinned, "share", MOSTLY_PINNED)
        )
    if context.float_share is not None:
        facts.append(
            Evidence(f"{context.float_share:.0%} of them are floats", context.float_share, "share", MOSTLY_FLOATS)
        )
    return facts


def _of_device(context: LoopContext) -> list[Evidence]:
    """Return what the device and NVML say of a step that is the limit."""
    facts = []
    used, launching = utilisation(context), step_share(context, context.loop.step_cpu)
    waits = step_share(context, context.loop.step_runq)
    if used is not None:
        facts.append(Evidence(f"a kernel runs {used:.0f} % of the time", used, "percent", MANY_KERNELS_PERCENT))
        if used < MANY_KERNELS_PERCENT:
            text = f"the thread that launches kernels is at work {launching:.0%} of the step"
            facts.append(Evidence(text, launching, "share", LAUNCHING))
    if waits >= KEPT_WAITING:
        facts.append(Evidence(f"it waits {waits:.0%} of the step for a core", waits, "share", KEPT_WAITING))
    for gpu in context.gpus:
        if gpu.memory_used_bytes is not None and gpu.memory_total_bytes:
            full = gpu.memory_used_bytes / gpu.memory_total_bytes
            then = "no larger batch fits" if full >= MEMORY_FULL else "a larger batch may fit"
            facts.append(
                Evidence(f"GPU {gpu.index} has {full:.0%} of its memory in use: {then}", full, "share", MEMORY_FULL)
            )
        if gpu.throttled:
            facts.append(Evidence(f"GPU {gpu.index} is kept slow by {', '.join(gpu.throttled)}", None, "", None))
    return facts


def _of_reads(reads: Reads) -> list[Evidence]:
    """Return how the bytes come, as far as it was measured."""
    facts = []
    if reads.command:
        facts.append(
            Evidence(f"{reads.command:.0%} of their reading waits for a command", reads.command, "share", MOSTLY_REMOTE)
        )
    if reads.remote:
        facts.append(
            Evidence(f"{reads.remote:.0%} of their reading is in sockets", reads.remote, "share", MOSTLY_REMOTE)
        )
    if reads.file_system is not None:
        facts.append(Evidence(f"the data lies on {reads.file_system} ({reads.path})", None, reads.file_system, None))
    if reads.opened:
        size = reads.bytes_per_file
        each = f" of {size / 1024:.3g} KiB" if size is not None else ""
        facts.append(Evidence(f"{reads.opened:.0f} files{each} are opened a batch", reads.opened, "files", MANY_FILES))
    if reads.asked_bytes is not None and reads.device_bytes is not None:
        asked, device = reads.asked_bytes / 1024, reads.device_bytes / 1024
        text = f"{asked:.3g} KiB a batch are asked for, {device:.3g} KiB come from a disk"
        facts.append(Evidence(text, reads.device_bytes, "bytes", None))
    if reads.faults:
        facts.append(Evidence(f"{reads.faults:.3g} page faults a batch wait for a disk", reads.faults, "faults", None))
    if reads.held_open == 1 and reads.largest is not None and not reads.opened:
        path, size = reads.largest
        facts.append(Evidence(f"all is read from {path}, {size / (1 << 20):.0f} MiB", float(size), "bytes", None))
    return facts


def _of_pool(pool: Pool, stage: Stage) -> list[Evidence]:
    """Return what is known of the threads or processes that make a watched loop's batches."""
    used = f"{pool.words()}, {pool.busy:.1f} at work at once"
    facts = [
        Evidence(f"{used} on {pool.cores:.1f} cores" if pool.cores is not None else used, pool.busy, pool.kind, None)
    ]
    if stage == "contention" and pool.held is not None:
        facts.append(Evidence(f"the interpreter's lock is held {pool.held:.0%} of the time", pool.held, "share", HELD))
    if stage == "contention":
        text = f"they wait for it {pool.locked:.0%} of their work"
        facts.append(Evidence(text, pool.locked, "share", LOCKED_SHARE))
    if stage == "read":
        facts.append(
            Evidence(f"they wait for reads {pool.waiting:.0%} of their work", pool.waiting, "share", MOSTLY_WAITING)
        )
    return facts


def _size(bytes_: float) -> str:
    return f"{bytes_ / (1 << 20):.3g} MiB" if bytes_ >= 1 << 20 else f"{bytes_ / 1024:.3g} KiB"
