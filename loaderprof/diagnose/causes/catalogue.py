"""All causes in the order in which they are tried, and what of them holds for one loop: found, ruled out, or not measured.

A cause refines the stage that limits the job. What belongs to a single cause stands in the module of its stage.
"""

from __future__ import annotations

from loaderprof import formatting
from loaderprof.analyze.stages import LOADER
from loaderprof.diagnose.causes import (
    contention,
    counters,
    decode,
    device,
    handover,
    late_batches,
    loop,
    making,
    no_cause,
    read,
)
from loaderprof.diagnose.causes.cause import CauseRule
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.diagnose.verdict import MIN_GAIN
from loaderprof.findings import Cause, Evidence, Stage

# Of the causes of a stage, the first whose test holds is taken; each stage ends with one that always holds.
CATALOGUE: tuple[CauseRule, ...] = (
    *read.CAUSES,
    *decode.CAUSES,
    *making.CAUSES,
    *handover.CAUSES,
    *late_batches.CAUSES,
    *contention.CAUSES,
    *loop.CAUSES,
    *device.CAUSES,
)
# With the verdicts that stand for no cause: everything that the guide explains.
BY_ID = {cause.id: cause for cause in (*CATALOGUE, *no_cause.NO_CAUSES)}
# What comes after a step that is the limit is named where it gains so much.
WORTH_NAMING = 0.1


def cause_of(stage: Stage, context: LoopContext) -> CauseRule:
    """Return the cause of the catalogue that a bottleneck of this stage is."""
    for cause in CATALOGUE:
        if cause.stage == stage and cause.test(context):
            return cause
    return BY_ID["balanced" if stage == "none" else "not-enough-evidence"]


def headline(cause: CauseRule, context: LoopContext) -> str:
    """Return the verdict in one sentence."""
    after = max(LOADER, key=context.gain)
    if cause.before and context.gain(after) >= WORTH_NAMING:
        return cause.before + cause_of(after, context).title
    return cause.headline(cause, context)


def examine(context: LoopContext, cause: CauseRule, others: tuple[Stage, ...]) -> tuple[Cause, ...]:
    """Return the causes of one loop: the found ones first, then ruled out, then not measured.

    Args:
        context: the loop.
        cause: what limits it.
        others: further stages that are worth a change.
    """
    named = [cause, *(cause_of(stage, context) for stage in others)]
    found = [_found(each, context) for each in named if each.stage not in ("none", "unknown")]
    # From the device back to the readers, as reports list them.
    unmeasured = {each: reason for each in reversed(CATALOGUE) if (reason := each.unmeasured(context)) is not None}
    settled = {"device", *(each.stage for each in (*named, *unmeasured))}
    ruled_out = [
        cause_of(stage, context).ruled_out(gain)
        for stage, gain in sorted(context.gains.items(), key=lambda item: item[1])
        if stage not in settled
    ]
    limits = {each.stage for each in named}
    missing = [
        each.not_measured(reason.removeprefix("not measured: "))
        for each, reason in unmeasured.items()
        if each.stage not in limits
    ]
    return (*found, *ruled_out, *missing, *counters.unread(context))


def _found(cause: CauseRule, context: LoopContext) -> Cause:
    gain = context.gains[cause.stage]
    faster = Evidence(f"without it the job would be {formatting.ratio(gain)} as fast", gain, "ratio", 1 + MIN_GAIN)
    return cause.found(gain, (faster, *cause.evidence.facts(context)))
