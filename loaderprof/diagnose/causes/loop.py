"""Causes in the training loop's own thread: the sampler, and the loop's own Python."""

from __future__ import annotations

from loaderprof import formatting
from loaderprof.diagnose.causes.cause import GAIN, CauseRule, Guide, StageEvidence, always, share_fact
from loaderprof.diagnose.causes.handover import NOT_THE_MAKING
from loaderprof.diagnose.causes.prefetch_queue import batch_ready, device_idle
from loaderprof.diagnose.loop_context import LoopContext, sampler_of, step_s
from loaderprof.findings import Evidence

# Stalls that take this share of the time of all steps are the cause; the guide says it in words.
STALLING = 0.5


def _of_sampler(context: LoopContext) -> list[Evidence]:
    facts = [*batch_ready(context.loop, NOT_THE_MAKING), *device_idle(context)]
    index_s = context.parts.index_s
    if index_s is not None:
        facts.append(Evidence(f"{formatting.duration(index_s)} a batch in the sampler", index_s, "s", None))
    return facts


def _of_host(context: LoopContext) -> list[Evidence]:
    facts, parts = batch_ready(context.loop), context.parts
    if parts.host_share is not None:
        text = f"{{}} of {parts.step_samples} stack samples of the step are the loop's own Python"
        facts.append(share_fact(text, parts.host_share))
    return facts


SAMPLER = StageEvidence(f"{GAIN}; the time a batch spends in the sampler", _of_sampler)
HOST = StageEvidence(f"{GAIN}; stack samples of the step that lie in the loop's own Python", _of_host)


def _drawn_by(_: CauseRule, context: LoopContext) -> str:
    sampler = sampler_of(context.loop).rsplit(".", 1)[-1]
    return f"The sampler of {context.loop.name} ({', '.join(filter(None, (sampler, context.sampler_where)))})"


def _with_line(cause: CauseRule, context: LoopContext) -> str:
    line = f": {context.parts.host_by[0][0]}" if context.parts.host_by else ""
    return f"{cause.title}{line}"


def _stacks_missing(context: LoopContext) -> str | None:
    # Without stacks only the stalls of the step and what lies outside of loops were seen of the host.
    if context.parts.host_share is not None:
        return None
    return context.stacks_missing or f"{context.parts.step_samples} stack samples of the step are too few"


CAUSES: tuple[CauseRule, ...] = (
    CauseRule(
        id="slow-sampler",
        stage="sampler",
        title="The sampler",
        test=always,
        evidence=SAMPLER,
        headline=_drawn_by,
        guide=Guide(
            means="The loop waits for the next indices before it can ask for a batch: the sampler runs in the training thread.",
            identified_by="the time spent in the sampler",
            changes=("cheaper-sampler",),
            do=(
                "Make the order once, as an array, and iterate that; weights and buckets can be drawn for many batches at once.",
            ),
        ),
    ),
    CauseRule(
        id="validation",
        stage="host",
        title="Validation inside the training loop",
        test=lambda context: context.validates,
        evidence=HOST,
        headline=_with_line,
        guide=Guide(
            means="Validation, or another loop inside the training loop, holds up training.",
            identified_by="another loader is iterated between two steps for most of the time that the loop's own Python takes",
            changes=("lighter-loop",),
            do=(
                "Validate less often, on less data, or in another process; keep its workers (`persistent_workers=True`).",
            ),
        ),
    ),
    CauseRule(
        id="periodic-stall",
        stage="host",
        title="The loop stalls now and then",
        test=lambda context: context.parts.stall_s > STALLING * step_s(context),
        evidence=HOST,
        headline=_with_line,
        guide=Guide(
            means="Every so many steps one takes much longer: a checkpoint, a log, an evaluation.",
            identified_by="stalls of the step at a regular distance make up over half of its time",
            changes=("lighter-loop",),
            do=("Write checkpoints in another thread or less often.",),
        ),
    ),
    CauseRule(
        id="host-python",
        stage="host",
        title="The loop's own Python",
        test=always,
        evidence=HOST,
        headline=_with_line,
        unmeasured=_stacks_missing,
        guide=Guide(
            means="The loop's own Python - metrics, logging, moving numbers to the CPU - takes the time, not model or loader.",
            identified_by="the line that most of those samples end in",
            changes=("lighter-loop",),
            do=("Keep metrics on the device and read them every so many steps: `loss.item()` waits for the device.",),
        ),
    ),
)
