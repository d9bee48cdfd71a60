"""Memory that is free for a loader: of control groups laid out by hand, and of this process."""

from __future__ import annotations

import os
from pathlib import Path

from real import started

from loaderprof.measure import free_memory


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
    with started("print('ready')") as (child, _):
        assert free_memory.worker_bytes(child.pid) is None
    assert free_memory.process_bytes(1 << 30) is None
