"""What a change will gain, with its interval: the replay after it against the replay before. Pure."""

from __future__ import annotations

import math

import numpy as np

from loaderprof.advise.change import Change, RunFacts
from loaderprof.analyze.loop import Loop
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.findings import Expected
from loaderprof.replay.model import LoopModel

MIN_SPEEDUP = 1.03
# Half-width of the 90 % interval of a predicted speedup, found on labelled pipelines (docs/how-it-works.md): the
# error grows with how far a change moves the run, up to a flat bound that is wider without workers to learn from.
ERROR_FLOOR = 0.03
ERROR_PER_LOG = 0.35
ERROR_BOUND, ERROR_BOUND_NO_WORKERS = 0.13, 0.19
# What starting workers costs follows the machine's load of the moment more than a steady pace does, without a bound.
BORDER_ERROR_PER_LOG = 0.07
# What waking threads up costs a batch differs from setting to setting by about this much, which one run does not show.
UNSEEN_S = 0.4e-3
# What is measured differs from one time to the next by what stretches of this run differ: of so many whole epochs, or of
# stretches of so many seconds and batches. Half of the interval is as many times their coefficient of variation.
MIN_STRETCHES, STRETCH_S, STRETCH_BATCHES = 3, 1.0, 20
UNEVENNESS, MOST_UNEVEN = 2.0, 0.15
MAX_ERROR = 0.8


def weigh(change: Change, context: LoopContext, base: LoopModel, before_s: float, facts: RunFacts) -> Expected | None:
    """Return what a change gains the job, whose loop ran at a pace of `before_s`; None for nothing beyond the replay's error."""
    expected = expect(change, context, base, before_s, facts)
    speedup, low, high = expected.speedup or 0.0, expected.low or 0.0, expected.high or 0.0
    floor = _floor(change, context)
    if speedup < MIN_SPEEDUP or high < MIN_SPEEDUP or (low <= 1.0 and floor is None):
        return None
    return expected


def expect(change: Change, context: LoopContext, base: LoopModel, before_s: float, facts: RunFacts) -> Expected:
    """Return how fast the job is with a change, also where that is no gain."""
    after = change.model.pace_s()
    speedup = _of_job(change.samples * before_s / after if after > 0 else 1.0, facts.job_share)
    low, high = interval(speedup, base.settings.num_workers, change.error_per_log, after, facts.uneven)
    floor = _floor(change, context)
    low = min(low, _of_job(floor, facts.job_share)) if floor is not None else low
    high = max(high, _of_job(change.ceiling, facts.job_share)) if change.ceiling is not None else high
    rate = facts.samples_per_s * speedup if facts.samples_per_s else None
    return Expected(round(speedup, 3), round(low, 3), round(high, 3), rate and round(rate, 1))


def _floor(change: Change, context: LoopContext) -> float | None:
    # Behind a background thread the training may hide all of it.
    return 1.0 if context.loop.background else change.floor


def _of_job(speedup: float, share: float) -> float:
    """Return what a loop's speedup is for a job of which it takes a share."""
    return 1.0 / (1.0 - share * (1.0 - 1.0 / speedup)) if speedup > 0 else speedup


def unevenness(loop: Loop) -> float:
    """Return the coefficient of variation of a run's stretches of about a second or of its epochs; 0: too few were seen."""
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
    """Return the interval of a speedup from a run with so many workers, which leads to batches of `after_s`."""
    bound = ERROR_BOUND if workers else ERROR_BOUND_NO_WORKERS
    moved = abs(math.log(max(speedup, 1e-9)))
    width = min(bound, ERROR_FLOOR + ERROR_PER_LOG * moved) + unbounded_per_log * moved
    width = math.hypot(width, min(MOST_UNEVEN, UNEVENNESS * uneven))
    width = min(MAX_ERROR, width + UNSEEN_S / after_s if after_s > 0 else MAX_ERROR)
    return speedup * (1 - width), speedup * (1 + width)
