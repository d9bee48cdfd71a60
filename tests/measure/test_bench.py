"""What a window's record says, what the replay makes of the first one, and what is free."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from made import Fetch, Plan, one_loop

from loaderprof.analyze.timeline import build
from loaderprof.measure import free_memory
from loaderprof.measure.bench import _rate as rate
from loaderprof.measure.bench import predictions, present_settings
from loaderprof.recording.facts import LoaderFacts
from loaderprof.replay.costs import Settings


def event(steps: list[float], waits: list[float], **others: Any) -> dict[str, Any]:
    """Return a window's record, times in seconds."""
    usual = {"epochs": [], "group": 1, "batches": len(steps)}
    return {**usual, "step_ns": [step * 1e9 for step in steps], "wait_ns": [wait * 1e9 for wait in waits], **others}


def test_a_rate_is_of_waits_and_steps() -> None:
    assert rate(event([0.01] * 20, [0.03] * 20)) == pytest.approx(25)
    assert rate(event([0.1] * 20, [0.3] * 20, group=10, batches=200)) == pytest.approx(25)


def test_what_the_loop_does_besides_is_left_out() -> None:
    assert rate(event([0.01] * 19 + [3.0], [0.03] * 20)) == pytest.approx(19 / (19 * 0.04 + 0.03), rel=0.05)


def test_slow_batches_are_not_left_out() -> None:
    assert rate(event([0.01] * 20, [0.0] * 19 + [3.0])) == pytest.approx(20 / 3.2)


def test_a_rate_may_be_of_whole_epochs() -> None:
    assert rate(event([], [], epochs=[[1e9, 10], [3e9, 10]])) == pytest.approx(5)


def test_the_replay_tells_what_workers_would_bring(tmp_path: Path) -> None:
    seen = one_loop(tmp_path / "seen", Plan(wait=0.04, step=0.01, fetch=Fetch(blocked=0.04)))
    loop = build(seen).loops[0]
    pace = predictions(seen, loop, Settings(0), 4, (1000, 1), by_epoch=False)
    assert set(pace) >= {Settings(0), Settings(1), Settings(2), Settings(4, 8, in_order=False)}
    assert pace[Settings(0)] == pytest.approx(20, rel=0.1)
    assert pace[Settings(4)] > 1.8 * pace[Settings(1)]


def test_a_replay_that_errs_is_not_used(tmp_path: Path) -> None:
    # Waits of which the batches' making explains a tenth.
    seen = one_loop(tmp_path / "seen", Plan(wait=0.1, step=0.01, fetch=Fetch(blocked=0.01)))
    assert predictions(seen, build(seen).loops[0], Settings(0), 4, None, by_epoch=False) == {}


def test_settings_as_a_loader_tells_them() -> None:
    assert present_settings(LoaderFacts(num_workers=0, in_order=False)) == Settings(0)
    facts = LoaderFacts(num_workers=2, prefetch_factor=4, in_order=True, persistent_workers=True)
    assert present_settings(facts) == Settings(2, 4, persistent_workers=True)


def test_memory_that_control_groups_leave(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/job/step"
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/job/step\n")
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("600\n")
    (group.parent / "memory.max").write_text("1000\n")
    (group.parent / "memory.current").write_text("700\n")
    assert free_memory.free_memory(tmp_path) == 300
    assert free_memory.free_memory(tmp_path / "nothing") > 1e6


def test_room_of_a_process() -> None:
    assert (free_memory.process_bytes(os.getpid()) or 0) > 1e6
    assert free_memory.worker_bytes(os.getpid()) is None
    assert free_memory.process_bytes(1 << 30) is None
