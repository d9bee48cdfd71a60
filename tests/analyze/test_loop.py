"""A loop's own figures: its pace, over the epochs that were seen whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made import Made, Plan, one_loop

from loaderprof.analyze.loop import Loop
from loaderprof.analyze.timeline import build

TRAIN: dict[str, Any] = {"name": "train", "num_workers": 0}
VALID: dict[str, Any] = {"name": "valid", "num_workers": 0}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "r")


def loops(made: Made) -> dict[str, Loop]:
    return {loop.name: loop for loop in build(made.read()).loops}


@pytest.mark.parametrize(
    ("passes", "pace_s"),
    [
        # A second of starting, batches of 0.1 s of waiting and 0.1 of stepping, half a second of stopping.
        ([(10, False), (10, False), (10, False)], (1 + 10 * 0.2 + 0.5) / 10),
        # The last may still go on, and one that was left early in between is not whole.
        ([(10, False), (10, False), (3, True)], (1 + 10 * 0.2 + 0.5) / 10),
        ([(10, False), (2, True), (10, False)], (1 + 10 * 0.2 + 0.5) / 10),
        ([(10, False), (9, True), (6, False), (10, True)], (1 + 6 * 0.2 + 0.5) / 6),
        # Where all of them are left early they are whole so, but for the stopping.
        ([(10, True), (10, True), (10, True)], (1 + 10 * 0.2) / 10),
        ([(10, True), (12, True), (10, True)], (1 + 12 * 0.2) / 12),
        ([(10, False), (5, True)], (2 + 15 * 0.2 + 0.5) / 15),
        ([(10, True)], 0.2),
        ([(1, True)], None),
    ],
)
def test_the_pace_is_that_of_later_epochs_that_were_seen_whole(
    made: Made, passes: list[tuple[int, bool]], pace_s: float | None
) -> None:
    process, now = made.process(), 0.0
    for batches, left in passes:
        number = process.iterator(TRAIN, now, now + 1)
        now += 1
        for _ in range(batches):
            process.take(number, now, now + 0.1)
            now += 0.2
        if not left:
            process.end(number, now, now + 0.5)
            now += 0.5
    assert loops(made)["train"].pace_s == (None if pace_s is None else pytest.approx(pace_s))


@pytest.mark.parametrize(("epochs", "pace_s"), [(1, 0.02), (5, (1.0 + 0.5 + 10 * 0.02) / 10)])
def test_the_pace_holds_the_borders_of_later_epochs(tmp_path: Path, epochs: int, pace_s: float) -> None:
    plan = Plan(epochs=epochs, batches=10, wait=0.01, step=0.01, startup=1.0, shutdown=0.5)
    (loop,) = build(one_loop(tmp_path / "r", plan)).loops
    assert loop.pace_s == pytest.approx(pace_s)


def test_the_pace_of_a_run_that_ends_in_its_second_epoch_holds_both_starts(made: Made) -> None:
    process = made.process()
    for begun, batches in ((0.0, 10), (3.0, 4)):
        number = process.iterator(TRAIN, begun, begun + 1.0)
        for batch in range(batches):
            process.take(number, begun + 1 + batch * 0.1, begun + 1.05 + batch * 0.1)
        if batches == 10:
            process.end(number, begun + 2.0, begun + 2.0)
    # 2 s, then 1 s of starting and four steps of 0.1 s.
    assert loops(made)["train"].pace_s == pytest.approx(3.4 / 14)
