"""Causes in producing batches: transforms and collating; and the evidence of all work that producers do."""

from __future__ import annotations

from loaderprof.diagnose.causes.cause import GAIN, CauseRule, Guide, StageEvidence, always, share_fact, uses
from loaderprof.diagnose.causes.prefetch_queue import device_idle, none_ready
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.findings import Evidence, Stage

PRODUCING = f"{GAIN}; its share of the making of batches, by timers and by stack samples of the makers"
_WORK = ("num-workers", "more-shards")


def producing(stage: Stage) -> StageEvidence:
    """Return the evidence for a stage that is work of the producers and nothing more is known of."""

    def facts(context: LoopContext) -> list[Evidence]:
        return [
            *production_share(stage, context),
            *pool_at_work(context),
            *none_ready(context.loop),
            *device_idle(context),
        ]

    return StageEvidence(PRODUCING, facts)


def production_share(stage: Stage, context: LoopContext) -> list[Evidence]:
    """Return which part of producing a batch a stage takes, by timers and by stacks; empty where it is not known."""
    share, parts = context.share(stage), context.parts
    if share is None:
        return []
    if parts.pool is not None:
        made = f"{parts.pool.samples} stack samples of {parts.pool.words()}"
        return [share_fact(f"{{}} of a batch's making ({made})", share)]
    made = f"{parts.measured} batches measured, {parts.timed_batches} timed in depth"
    facts = [share_fact(f"{{}} of a batch's making ({made})", share)]
    if parts.by_stack:
        seen = parts.by_stack.get(stage, 0) / max(1, sum(parts.by_stack.values()))
        facts.append(share_fact(f"{{}} of {parts.stack_samples} stack samples of its makers", seen))
    return facts


def pool_at_work(context: LoopContext) -> list[Evidence]:
    """Return how many of the threads or processes that produce a watched loop's batches are at work at once."""
    pool = context.parts.pool
    if pool is None:
        return []
    used = f"{pool.words()}, {pool.busy:.1f} at work at once"
    on_cores = f"{used} on {pool.cores:.1f} cores" if pool.cores is not None else used
    return [Evidence(on_cores, pool.busy, pool.kind, None)]


def in_producers(cause: CauseRule, context: LoopContext) -> str:
    """Return the headline of a cause in the producers' work: where it runs, and its most expensive operator."""
    named = context.named(cause.stage)
    return f"{cause.title} in {context.producer()}" + (f" ({named})" if named else "")


TRANSFORMING, COLLATING = producing("transform"), producing("collate")

CAUSES: tuple[CauseRule, ...] = (
    CauseRule(
        id="slow-transform",
        stage="transform",
        title="Transforms",
        test=always,
        evidence=TRANSFORMING,
        headline=in_producers,
        guide=Guide(
            means="What is done to a decoded sample - augmentation, resizing, conversion - takes most of making a batch.",
            identified_by="the operators that the user's pipeline calls, each by name and line",
            changes=(*_WORK, "crop-first", "uint8-batches", "cheaper-transform"),
            do=(
                "Work on uint8 and convert to float last; drop what does nothing; let the library do whole batches.",
                "Move what is not random before the cache.",
            ),
        ),
    ),
    CauseRule(
        id="padding",
        stage="collate",
        title="Collating with padding",
        test=uses(r"\bpad|_pad|pad_", "collate"),
        evidence=COLLATING,
        headline=in_producers,
        guide=Guide(
            means="Joining samples of unequal length into a batch, and filling the rest, takes most of making a batch.",
            identified_by="a padding function among the dearest parts of collate",
            changes=(*_WORK, "cheaper-collate"),
            do=("Batch samples of like length together; allocate the batch once and copy into it.",),
        ),
    ),
    CauseRule(
        id="slow-collate",
        stage="collate",
        title="Collating",
        test=always,
        evidence=COLLATING,
        headline=in_producers,
        guide=Guide(
            means="Joining samples into a batch takes most of making it: Python loops, conversions, many small tensors.",
            identified_by="the collate function and what it calls",
            changes=(*_WORK, "cheaper-collate"),
            do=("Stack arrays in one call; fetch whole batches with `__getitems__`.",),
        ),
    ),
)
