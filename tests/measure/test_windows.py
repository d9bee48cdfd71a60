"""The throughput of a window, from a record as the job writes it."""

from __future__ import annotations

from typing import Any

import pytest

from loaderprof.measure.windows import batches_per_s


def window(steps: list[float], waits: list[float], **others: Any) -> dict[str, Any]:
    """Return a window's record, times in seconds."""
    usual = {"epochs": [], "group": 1, "batches": len(steps)}
    return {**usual, "step_ns": [step * 1e9 for step in steps], "wait_ns": [wait * 1e9 for wait in waits], **others}


def test_a_rate_is_of_waits_and_steps() -> None:
    assert batches_per_s(window([0.01] * 20, [0.03] * 20)) == pytest.approx(25)
    assert batches_per_s(window([0.1] * 20, [0.3] * 20, group=10, batches=200)) == pytest.approx(25)


def test_what_the_loop_does_besides_is_left_out() -> None:
    assert batches_per_s(window([0.01] * 19 + [3.0], [0.03] * 20)) == pytest.approx(19 / (19 * 0.04 + 0.03), rel=0.05)


def test_slow_batches_are_not_left_out() -> None:
    assert batches_per_s(window([0.01] * 20, [0.0] * 19 + [3.0])) == pytest.approx(20 / 3.2)


def test_a_rate_may_be_of_whole_epochs() -> None:
    assert batches_per_s(window([], [], epochs=[[1e9, 10], [3e9, 10]])) == pytest.approx(5)
