"""Causes in the hand-over: what it costs to get a batch from the worker that produced it to the training process."""

from __future__ import annotations

from loaderprof import formatting
from loaderprof.diagnose.causes.cause import GAIN, CauseRule, Guide, StageEvidence, always
from loaderprof.diagnose.causes.prefetch_queue import batch_ready, device_idle
from loaderprof.diagnose.loop_context import MANY_TENSORS, PIPE_BYTES, LoopContext, many_tensors, piped, piped_arrays
from loaderprof.findings import Evidence

# Below this, copying a batch into shared memory costs less than receiving any batch does.
LARGE_BATCH = 1 << 20
NOT_THE_MAKING = ", so making it is not what the loop waits for"


def _facts(context: LoopContext) -> list[Evidence]:
    """Return what a batch holds and how it travels, as far as it was measured."""
    facts = [*batch_ready(context.loop, NOT_THE_MAKING), *device_idle(context)]
    size, tensors, pickled = context.batch_bytes, context.batch_tensors, context.pickled_bytes
    if pickled is not None and piped(context):
        text = f"{formatting.size(pickled)} of every batch pass through a pipe, not through shared memory"
        facts.append(Evidence(text, pickled, "bytes", float(PIPE_BYTES)))
    if size is not None and tensors is not None:
        noun = "tensor or array" if tensors == 1 else "tensors or arrays"
        text = f"a batch holds {formatting.size(size)} in {tensors:.0f} {noun}"
        if not tensors:
            text = f"a batch holds {context.batch_leaves or 0.0:.0f} objects, none of them a tensor or array"
        facts.append(Evidence(text, tensors, "tensors", float(MANY_TENSORS)))
    for seconds, what in ((context.parts.pickle_s, "to pickle"), (context.parts.receive_s, "to receive")):
        if seconds is not None:
            facts.append(Evidence(f"{formatting.duration(seconds)} a batch {what}", seconds, "s", None))
    return facts


def _from_workers(cause: CauseRule, context: LoopContext) -> str:
    return f"{cause.title} from the workers of {context.loop.name} to the training process"


def _to_the_loop(cause: CauseRule, context: LoopContext) -> str:
    return f"{cause.title} of {context.loop.name} from workers to the training process"


HANDOVER = StageEvidence(f"{GAIN}; the time to pickle a batch in the worker and to receive it in the loop", _facts)

CAUSES: tuple[CauseRule, ...] = (
    CauseRule(
        id="pickled-arrays",
        stage="handover",
        title="Arrays pickled through a pipe",
        test=piped_arrays,
        evidence=HANDOVER,
        headline=_from_workers,
        guide=Guide(
            means="The arrays of a batch are pickled, written to a pipe, read and unpickled; tensors would pass through shared memory.",
            identified_by="pickles as large as the batch",
            changes=("shared-memory", "no-workers"),
        ),
    ),
    CauseRule(
        id="pickled-objects",
        stage="handover",
        title="Objects pickled through a pipe",
        test=piped,
        evidence=HANDOVER,
        headline=_from_workers,
        guide=Guide(
            means="A batch holds objects of Python's own, which are pickled through a pipe and built anew in the training thread.",
            identified_by="pickles larger than handles of shared memory are, in batches that hold few arrays",
            changes=("shared-memory", "no-workers"),
            do=("Send columns instead of objects: one array for each field.",),
        ),
    ),
    CauseRule(
        id="many-tensors",
        stage="handover",
        title="Handing many tensors over",
        test=many_tensors,
        evidence=HANDOVER,
        headline=_to_the_loop,
        guide=Guide(
            means="A batch consists of so many pieces that taking it out of the queue holds up the training thread.",
            identified_by="the number of tensors in a batch",
            changes=("fewer-tensors", "no-workers", "pin-memory"),
            do=("Hand over few large tensors instead of lists and dictionaries of small ones.",),
        ),
    ),
    CauseRule(
        id="large-batches",
        stage="handover",
        title="Handing large batches over",
        test=lambda context: (context.batch_bytes or 0) >= LARGE_BATCH,
        evidence=HANDOVER,
        headline=_to_the_loop,
        guide=Guide(
            means="Moving a batch from the worker to the loop takes the time: its bytes are copied into shared memory.",
            identified_by="handing over takes the time, and not for the number of pieces",
            changes=("uint8-batches", "no-workers", "pin-memory"),
            do=("Leave out what the step does not use.",),
        ),
    ),
    CauseRule(
        id="batch-handover",
        stage="handover",
        title="Handing batches over",
        test=always,
        evidence=HANDOVER,
        headline=_to_the_loop,
        guide=Guide(
            means="Making a batch costs so little that handing it from a worker to the loop is what takes the time.",
            identified_by="handing over takes the time, and the batch is neither large nor of many tensors",
            changes=("no-workers", "pin-memory"),
            do=("Larger batches share the cost of one handing over.",),
        ),
    ),
)
