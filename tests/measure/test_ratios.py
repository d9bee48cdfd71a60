"""Ratios: their intervals are as wide as the spread says, cover the truth as often as they claim, and read well."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from loaderprof.measure import ratios
from loaderprof.measure.ratios import Ratio


def test_pairs_give_the_geometric_mean_and_students_interval() -> None:
    ratio = ratios.of_pairs([(100, 180), (100, 190), (100, 200)])
    logs = [math.log(each) for each in (1.8, 1.9, 2.0)]
    half = 4.303 * statistics.stdev(logs) / math.sqrt(3)
    assert ratio is not None
    assert ratio.value == pytest.approx(math.exp(statistics.mean(logs)))
    assert (ratio.low, ratio.high) == pytest.approx((ratio.value / math.exp(half), ratio.value * math.exp(half)))
    assert ratio.significant


@pytest.mark.parametrize("runs", [2, 3, 8, 15])
def test_the_interval_of_pairs_covers_the_truth_in_95_of_100(runs: int) -> None:
    draws = np.random.default_rng(0).normal(math.log(1.5), 0.05, (2000, runs))
    found = [ratios.of_pairs([(1.0, math.exp(log)) for log in row]) for row in draws]
    assert np.mean([each.low <= 1.5 <= each.high for each in found if each]) == pytest.approx(0.95, abs=0.015)


def test_one_pair_shows_no_spread() -> None:
    assert ratios.of_pairs([(1.0, 2.0)]) is None


def test_two_pairs_that_disagree_stay_finite() -> None:
    ratio = ratios.of_pairs([(1.0, 100.0), (100.0, 1.0)])
    assert ratio is not None
    assert math.isfinite(ratio.high)
    assert not ratio.significant


def test_steps_of_the_same_kind_do_not_differ() -> None:
    rng = np.random.default_rng(1)
    ratio = ratios.of_steps(rng.gamma(4, 0.01, 300), rng.gamma(4, 0.01, 300))
    assert ratio is not None
    assert not ratio.significant


def test_steps_half_as_long_are_told_as_such() -> None:
    rng = np.random.default_rng(1)
    ratio = ratios.of_steps(rng.gamma(4, 0.02, 300), rng.gamma(4, 0.01, 300))
    assert ratio is not None
    assert ratio.value == pytest.approx(0.5, rel=0.15)
    assert ratio.significant


def test_steps_without_any_spread_still_leave_the_runs_own() -> None:
    ratio = ratios.of_steps(np.full(100, 0.01), np.full(100, 0.0105))
    assert ratio is not None
    assert ratio.value == pytest.approx(1.05)
    assert not ratio.significant


def test_long_spells_widen_the_interval_more_than_single_steps() -> None:
    rng = np.random.default_rng(2)
    single = rng.choice([0.01, 0.03], 400)
    spells = np.repeat(rng.choice([0.01, 0.03], 8), 50)
    steady = np.full(400, 0.02)
    narrow, wide = ratios.of_steps(steady, single), ratios.of_steps(steady, spells)
    assert narrow is not None
    assert wide is not None
    assert math.log(wide.high / wide.low) > 1.5 * math.log(narrow.high / narrow.low)


def test_few_batches_that_stand_for_many_widen_it_too() -> None:
    rng = np.random.default_rng(3)
    before, after = rng.gamma(4, 0.02, 300), rng.gamma(4, 0.02, 300)
    whole, part = ratios.of_steps(before, after), ratios.of_steps(before, after, part=0.1)
    assert whole is not None
    assert part is not None
    assert part.high - part.low > 1.5 * (whole.high - whole.low)


def test_too_few_steps_or_no_time_at_all_give_no_ratio() -> None:
    many, few = np.full(100, 0.01), np.full(ratios.MIN_STEPS - 1, 0.01)
    assert ratios.of_steps(many, few) is None
    assert ratios.of_steps(many, np.zeros(100)) is None
    assert ratios.of_steps(many, np.append(few, [np.nan] * 50)) is None


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (Ratio(1.83, 1.77, 1.89), "1.83 ± 0.06"),
        (Ratio(1.9, 1.7, 2.1), "1.9 ± 0.2"),
        (Ratio(2.0, 1.9999, 2.0001), "2.00 ± 0.01"),
        (Ratio(2.0, 1.0, 4.0), "2.0 (1.0 to 4.0)"),
    ],
)
def test_words(ratio: Ratio, text: str) -> None:
    assert ratio.text() == text
