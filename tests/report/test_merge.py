"""Large data made small: extremes, sums and counts survive, limits hold, and the page is told."""

from __future__ import annotations

import json
import random

import numpy as np
import page_samples
import pytest

from loaderprof.report import merge, stacks
from loaderprof.report.page import Bar, Host, PageData, Stack, Steps


def test_extremes_survive_thinning() -> None:
    dice = np.random.default_rng(1)
    values = dice.normal(1.0, 0.1, 100_000)
    values[[777, 50_001]] = [9.0, -4.0]
    waits = dice.normal(0.5, 0.1, 100_000)
    waits[99_998] = 7.0
    kept = merge.thinned([values, waits], merge.MAX_POINTS)
    assert len(kept) <= merge.MAX_POINTS
    assert {777, 50_001, 99_998} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()


def test_short_series_are_kept_whole_and_nothing_is_said() -> None:
    merged = merge.merge(page_samples.page())
    assert merged.values["steps"]["count"] == len(merged.values["steps"]["t"]) == 412
    assert merged.notes == {}


def test_sums_over_thinned_steps_count_every_step() -> None:
    count = 50_000
    begun = np.arange(count) * 0.1
    data = PageData(Steps(begun, np.full(count, 0.04), np.full(count, 0.1), (), (0.0,)))
    merged = merge.merge(data)
    steps = merged.values["steps"]
    assert len(steps["t"]) <= merge.MAX_POINTS
    assert steps["step_before"][-1] == pytest.approx(count * 0.1)
    assert steps["wait_before"][-1] == pytest.approx(count * 0.04)
    assert len(steps["step_before"]) == len(steps["t"]) + 1
    assert "50,000 steps" in merged.notes["timeline"]


def test_unmeasured_values_become_null() -> None:
    values = merge.merge(page_samples.hostile()).values
    assert values["steps"]["wait"] == [0.1, None, 0.1]
    assert values["steps"]["ready"] == [None, 1.0, 2.0]
    assert values["host"]["disk"] is None
    json.dumps(values, allow_nan=False)


def test_nothing_measured_is_nothing_drawn() -> None:
    merged = merge.merge(PageData())
    assert merged.values == {"end_s": 0.0, "steps": None, "host": None, "bars": None, "stacks": None, "ranks": []}
    assert merged.notes == {}


def test_bars_are_merged_around_the_slowest() -> None:
    bars = page_samples.bars(20_000, workers=8)
    bars[11_111] = Bar(bars[11_111].worker, bars[11_111].start_s, bars[11_111].start_s + 60, 11_111, None)
    merged = merge.merge(PageData(bars=bars))
    rows = merged.values["bars"]
    assert len(rows["start"]) <= merge.MAX_BARS
    assert sum(rows["count"]) == 20_000
    assert rows["count"][rows["batch"].index(11_111)] == 1
    assert rows["focus"][0] <= bars[11_111].start_s <= rows["focus"][1]
    assert "20,000 batches" in merged.notes["batches"]


def test_bars_without_times_are_left_out() -> None:
    merged = merge.merge(PageData(bars=[Bar(0, float("nan"), 1.0, 0), Bar(0, 1.0, 2.0, 1)]))
    assert merged.values["bars"]["batch"] == [1]


def test_host_series_of_unequal_length() -> None:
    merged = merge.merge(PageData(host=Host((0.0, 1.0, 2.0), (5.0,), {"a": (1, 2, 3, 4)})))
    assert merged.values["host"]["cpu"] == [5.0, None, None]
    assert merged.values["host"]["gpus"] == [["a", [1.0, 2.0, 3.0]]]


def _samples(values: dict[str, object]) -> int:
    return sum(sum(ended[1::2]) for _, tree in values["trees"] for ended in tree["ended"])


def test_every_sample_is_in_the_tree() -> None:
    dice = random.Random(4)
    found = []
    for at in range(30_000):
        frames = tuple(f"f{dice.randrange(40)}" for _ in range(dice.randrange(1, 9)))
        found.append(Stack("worker", frames, "decode", 2, at / 100, at / 100 + 1))
    notes: dict[str, str] = {}
    values = stacks.merged_stacks(found, 300.0, notes)
    assert values is not None
    assert _samples(values) == 60_000
    assert sum(len(tree["name"]) for _, tree in values["trees"]) <= stacks.MAX_FRAMES
    assert "30,000 stacks were merged" in notes["flame"]


def test_callers_stand_before_their_callees() -> None:
    values = stacks.merged_stacks(page_samples.stacks(100.0), 100.0, {})
    assert values is not None
    for _, tree in values["trees"]:
        assert tree["caller"][0] == -1
        assert all(caller < place for place, caller in enumerate(tree["caller"]))


def test_samples_without_a_time_count_always() -> None:
    found = [Stack("main", ("a",), "host", 3), Stack("main", ("a",), "host", 1, 0.0, 1.0)]
    values = stacks.merged_stacks(found, 60.0, {})
    assert values is not None
    assert values["timed"]
    assert values["trees"][0][1]["ended"][1] == [stacks.ALWAYS, 3, 0, 1]


def test_hottest_frames_come_first() -> None:
    hot = stacks.hottest(page_samples.stacks(100.0))
    assert hot[0].name == "convert (Image.py:993)"
    assert sum(each.share for each in hot) == pytest.approx(1.0)
