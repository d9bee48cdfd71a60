"""Causes of batches that come late: the first of an epoch, and single ones that take far longer than the others."""

from __future__ import annotations

import numpy as np

from loaderprof import formatting
from loaderprof.analyze.breakdown import usual_wait_s
from loaderprof.diagnose.causes.cause import GAIN, CauseRule, Guide, StageEvidence, always
from loaderprof.diagnose.causes.prefetch_queue import device_idle, none_ready
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.findings import Evidence
from loaderprof.replay.removal import STRAGGLER_RATIO


def _facts(context: LoopContext) -> list[Evidence]:
    return [*none_ready(context.loop, 0.0), *device_idle(context)]


STARTUP = StageEvidence(
    f"{GAIN}; the time until an epoch's first batch and to shut its workers down, over a usual wait", _facts
)
STRAGGLERS = StageEvidence(f"{GAIN}; batches that took over {STRAGGLER_RATIO:g} times the median", _facts)


def _restarts(context: LoopContext) -> bool:
    """Return whether more than one epoch began with new workers."""
    return context.loop.num_workers > 0 and len([epoch for epoch in context.loop.epochs if not epoch.restarted]) > 1


def _over_epochs(cause: CauseRule, context: LoopContext) -> str:
    epochs = context.loop.epochs
    lost = sum(_border_s(context, number) for number in range(len(epochs)))
    return f"{cause.title} of {context.loop.name}: {formatting.duration(lost)} over {len(epochs)} epochs"


def _border_s(context: LoopContext, number: int) -> float:
    """Return the seconds that an epoch's begin and end cost beyond a usual wait."""
    epoch = context.loop.epochs[number]
    usual = usual_wait_s(context.loop, context.parts)
    first = epoch.first_batch_s if epoch.first_batch_s == epoch.first_batch_s else 0.0
    return max(0.0, first - usual) + epoch.shutdown_s


def _first_batch(cause: CauseRule, context: LoopContext) -> str:
    return f"{cause.title} of {context.loop.name} takes {formatting.duration(context.loop.epochs[0].first_batch_s)}"


def _slow_batches(_: CauseRule, context: LoopContext) -> str:
    loop, wall = context.loop, context.loop.made.wall
    usual = float(np.median(wall))
    slow = wall[wall > STRAGGLER_RATIO * usual]
    slow_s = float(slow.mean()) if len(slow) else usual
    order = " and the loader keeps order" if loop.facts.in_order is not False and loop.num_workers else ""
    return f"A few batches of {loop.name} take {formatting.duration(slow_s)} where most take {formatting.duration(usual)}{order}"


CAUSES: tuple[CauseRule, ...] = (
    CauseRule(
        id="worker-restart",
        stage="startup",
        title="Workers start again at every epoch",
        test=_restarts,
        evidence=STARTUP,
        headline=_over_epochs,
        guide=Guide(
            means="Workers are started anew for each epoch: imports, the copy of the dataset, and the first batches are waited for.",
            identified_by="more than one epoch began with new workers",
            changes=("persistent-workers", "one-loader", "start-method"),
            do=("Make epochs longer, or the dataset cheap to hand to a new process.",),
        ),
    ),
    CauseRule(
        id="slow-first-batch",
        stage="startup",
        title="The first batch",
        test=always,
        evidence=STARTUP,
        headline=_first_batch,
        guide=Guide(
            means="The wait for the first batch is a good part of what was seen.",
            identified_by="workers were not started again; the first batch alone is late",
            changes=("start-method",),
            do=(
                "Do less before the first sample: index files once and store the list, import less in workers.",
                "Watch a longer run: beside hours of training a slow start may not matter.",
            ),
            commands=("python -X importtime train.py",),
        ),
    ),
    CauseRule(
        id="slow-samples",
        stage="straggler",
        title="A few slow samples",
        test=always,
        evidence=STRAGGLERS,
        headline=_slow_batches,
        guide=Guide(
            means="A few batches take much longer than the others, and the batches behind them wait in line.",
            identified_by="the replay without the slow batches recovers most of what a perfect loader would gain",
            changes=("out-of-order", "prefetch-factor"),
            do=(
                "Look at the slowest batches and samples in the report's page; store what is special about them differently.",
            ),
        ),
    ),
)
