"""What a change will gain, with its interval: its model's pace against that of the loop as it ran. Pure."""

from __future__ import annotations

import math

import numpy as np

from loaderprof.advise.change import Change, RunFacts
from loaderprof.analyze.loop import Loop
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.findings import Expected
from loaderprof.replay.model import LoopModel

# A change that gains less is not offered: the replay's own error is as large.
MIN_SPEEDUP = 1.03
# Half-width of the 90 % interval of a predicted speedup, found on labelled pipelines (docs/how-it-works.md): the
# error grows with how far a change moves the run, up to a flat bound that is wider without workers to learn from.
ERROR_FLOOR = 0.03
ERROR_PER_LOG = 0.35
ERROR_BOUND, ERROR_BOUND_NO_WORKERS = 0.13, 0.19
# The cost of starting workers varies with the machine's load more than a steady pace does: this adds to the half-width for
# each unit of the log of the speedup, beyond the flat bound.
BORDER_ERROR_PER_LOG = 0.07
# Seconds a batch by which the cost of waking threads differs between settings; one run does not show it.
UNSEEN_S = 0.4e-3
# Two measurements of one job differ as stretches of one run do. Stretches are whole epochs, or where a run has fewer than
# this many of them, so many seconds and at least so many batches; their coefficient of variation, times a factor and up to
# a bound, adds to the half-width.
MIN_STRETCHES, STRETCH_S, STRETCH_BATCHES = 3, 1.0, 20
UNEVENNESS, MOST_UNEVEN = 2.0, 0.15
# Largest half-width, as a share of the speedup: the interval stays above zero.
MAX_ERROR = 0.8


def weigh(change: Change, context: LoopContext, base: LoopModel, before_s: float, facts: RunFacts) -> Expected | None:
    """Return the speedup of the job by a change to a loop that took `before_s` a batch; None: within the replay's error."""
    expected = expect(change, context, base, before_s, facts)
    speedup, low, high = expected.speedup or 0.0, expected.low or 0.0, expected.high or 0.0
    floor = _floor(change, context)
    if speedup < MIN_SPEEDUP or high < MIN_SPEEDUP or (low <= 1.0 and floor is None):
        return None
    return expected


def expect(change: Change, context: LoopContext, base: LoopModel, before_s: float, facts: RunFacts) -> Expected:
    """Return the speedup of the job by a change, also where that is no gain."""
    after = change.model.pace_s()
    speedup = _of_job(change.samples * before_s / after if after > 0 else 1.0, facts.job_share)
    low, high = interval(speedup, base.settings.num_workers, change.error_per_log, after, facts.uneven)
    floor = _floor(change, context)
    low = min(low, _of_job(floor, facts.job_share)) if floor is not None else low
    high = max(high, _of_job(change.ceiling, facts.job_share)) if change.ceiling is not None else high
    rate = facts.samples_per_s * speedup if facts.samples_per_s else None
    return Expected(round(speedup, 3), round(low, 3), round(high, 3), rate and round(rate, 1))


def _floor(change: Change, context: LoopContext) -> float | None:
    # Where a background thread takes the batches, training may hide all of what loading gains.
    return 1.0 if context.loop.background else change.floor


def _of_job(speedup: float, share: float) -> float:
    """Return the speedup of a job of whose time the loop takes a share."""
    return 1.0 / (1.0 - share * (1.0 - 1.0 / speedup)) if speedup > 0 else speedup


def unevenness(loop: Loop) -> float:
    """Return the coefficient of variation of the time of a run's epochs, or of stretches of a second; 0: too few."""
    lasted = loop.wait + np.nan_to_num(loop.step)
    epochs = [loop.epoch == number for number in np.unique(loop.epoch)[1:]]
    # The last one may have been cut short.
    sizes = [int(loop.count[mine].sum()) for mine in epochs]
    whole = [float(lasted[mine].sum()) for mine, size in zip(epochs, sizes, strict=True) if size == max(sizes)]
    if len(whole) < MIN_STRETCHES:
        within = lasted[loop.steady]
        length = max(STRETCH_BATCHES, int(STRETCH_S / max(1e-9, float(within.mean()))))
        whole = [float(each.sum()) for each in np.split(within, range(length, len(within), length))[:-1]]
    if len(whole) < MIN_STRETCHES:
        return 0.0
    return float(np.std(whole, ddof=1)) / max(1e-9, float(np.mean(whole)))


def interval(
    speedup: float, workers: int, unbounded_per_log: float, after_s: float, uneven: float
) -> tuple[float, float]:
    """Return the 90 % interval of a speedup.

    Args:
        speedup: as predicted.
        workers: of the run that it was predicted from.
        unbounded_per_log: half-width that is added with the log of the speedup, beyond the bound.
        after_s: predicted seconds a batch, of which what one run does not show is a share.
        uneven: see `unevenness`.
    """
    bound = ERROR_BOUND if workers else ERROR_BOUND_NO_WORKERS
    moved = abs(math.log(max(speedup, 1e-9)))
    width = min(bound, ERROR_FLOOR + ERROR_PER_LOG * moved) + unbounded_per_log * moved
    width = math.hypot(width, min(MOST_UNEVEN, UNEVENNESS * uneven))
    width = min(MAX_ERROR, width + UNSEEN_S / after_s if after_s > 0 else MAX_ERROR)
    return speedup * (1 - width), speedup * (1 + width)
