"""How much faster or slower, and how certain: ratios of two speeds or costs with a 95 % interval.

A ratio comes from pairs of alternate runs (`of_pairs`), or from the steps of one run each (`of_steps`). Pure numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

# Student's t, 97.5 %, for 1, 2, ... degrees of freedom; past the table 1.96 + 2.5/df is right to two digits.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_NORMAL = 1.96
DRAWS = 1000
# Successive steps depend on one another, so blocks of them are drawn; fewer blocks than this do not show the spread of the
# mean.
MIN_STEPS = 20
MIN_BLOCKS = 8
# Runs of the same job differ, which the steps of one run cannot show. On a shared virtual machine their coefficient of
# variation was 4.4 % (median of 174 settings); this value lies between that and a quiet machine's. With one run each,
# differences below 8 % are therefore not significant.
RUN_TO_RUN = 0.03


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 1."""
        return not self.low <= 1.0 <= self.high

    def text(self) -> str:
        """Return the ratio as `1.83 ± 0.06`; with both ends where the interval is clearly asymmetric."""
        above, below = self.high - self.value, self.value - self.low
        half = max(above, below)
        digits = 2 if half < 0.095 else 1
        # The interval is symmetric on a logarithmic scale; where it is wide, one number for both sides would mislead.
        if above > 1.5 * below and half > 0.25 * self.value:
            return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"
        return f"{self.value:.{digits}f} ± {max(half, 0.01):.{digits}f}"


def of_pairs(pairs: Sequence[tuple[float, float]]) -> Ratio | None:
    """Return how many times the second of each pair is the first, by Student's t on logarithms.

    Args:
        pairs: two positive speeds each, measured one after the other.

    Returns:
        The geometric mean of the pairs' ratios; None below two pairs, which show no spread.
    """
    if len(pairs) < 2:
        return None
    logs = [math.log(after / before) for before, after in pairs]
    mean = sum(logs) / len(logs)
    spread = math.sqrt(sum((log - mean) ** 2 for log in logs) / (len(logs) - 1))
    return of_log(mean, spread / math.sqrt(len(logs)), len(logs) - 1)


def of_log(log: float, error: float, freedom: int) -> Ratio:
    """Return a ratio from its logarithm, the standard error of that, and the error's degrees of freedom."""
    # Bounded, because JSON has no infinity; an interval this wide is useless anyway.
    half = min(_t(freedom) * error, 20.0)
    return Ratio(math.exp(log), math.exp(log - half), math.exp(log + half))


def is_within(ratio: Ratio | None, precision: float) -> bool:
    """Return whether half of a ratio's interval is at most `precision` times the ratio."""
    return ratio is not None and ratio.high - ratio.low <= 2.0 * precision * ratio.value


def _t(freedom: int) -> float:
    return _T[freedom - 1] if freedom <= len(_T) else _NORMAL + 2.5 / freedom


def of_steps(before: Values, after: Values, *, block: int = 1, part: float = 1.0) -> Ratio | None:
    """Return how many times the mean of `after` is the mean of `before`, each from the steps of one run.

    The interval is a bootstrap over blocks of steps, widened by the variation between runs (`RUN_TO_RUN`).

    Args:
        before: seconds per step, in their order; steps not measured (NaN) are left out.
        after: the same of the other run.
        block: least number of steps that are drawn together: two rounds of the workers.
        part: share of the steps in which the quantity was measured, where the given steps only stand in for it.

    Returns:
        None where either has too few steps, or they take no time.
    """
    before, after = before[np.isfinite(before)], after[np.isfinite(after)]
    if min(len(before), len(after)) < MIN_STEPS or before.sum() <= 0 or after.sum() <= 0:
        return None
    value = float(after.mean() / before.mean())
    logs = np.log(_means(after, block, 1)) - np.log(_means(before, block, 2))
    low, high = (np.percentile(logs, [2.5, 97.5]) - math.log(value)) / math.sqrt(part)
    runs = _NORMAL * RUN_TO_RUN * math.sqrt(2)
    return Ratio(value, value * math.exp(-math.hypot(low, runs)), value * math.exp(math.hypot(high, runs)))


def _means(values: Values, block: int, seed: int) -> Values:
    """Return the means of `DRAWS` resampled runs, each made of random blocks of this one."""
    length = min(max(block, math.ceil(math.sqrt(len(values)))), max(1, len(values) // MIN_BLOCKS))
    sums = np.append(0.0, np.cumsum(np.append(values, values[: length - 1])))
    blocks = sums[length:] - sums[:-length]
    chosen = np.random.default_rng(seed).integers(0, len(blocks), (DRAWS, math.ceil(len(values) / length)))
    means = blocks[chosen].sum(axis=1) / (chosen.shape[1] * length)
    return np.asarray(np.maximum(means, 1e-12))
