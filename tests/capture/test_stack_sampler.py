"""Stacks of a real Python that waits for us, and what py-spy writes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from golden_sentences import Check
from real import started

from loaderprof.capture import stack_sampler
from loaderprof.capture.samplers import WatchedJob
from loaderprof.capture.stack_sampler import RayTasks, StackSampler, StackWindow, find_py_spy
from loaderprof.commands import env

# Says "ready", then spins in `busy` below a worker loop until its standard input closes.
CHILD = """
import sys, threading
stop = threading.Event()
def busy():
    while not stop.is_set():
        sum(range(1000))
def _worker_loop():
    busy()
threading.Thread(target=stop.wait, name="queue;feeder", daemon=True).start()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), name="reader", daemon=True).start()
print("ready", flush=True)
_worker_loop()
"""


@pytest.mark.parametrize(
    ("line", "thread", "frames", "count"),
    [
        (
            "thread (10): MainThread;<module> (/t.py:1);f (/t.py:2) 24",
            "MainThread",
            ["<module> (/t.py:1)", "f (/t.py:2)"],
            24,
        ),
        ("thread (0x7F): MainThread;f (/t.py:2) 1", "MainThread", ["f (/t.py:2)"], 1),
        ("thread (0x7F);f (/t.py:2) 1", "MainThread", ["f (/t.py:2)"], 1),
        ("thread (11);f (/t.py:2) 3", "Thread 11", ["f (/t.py:2)"], 3),
        ("thread (10);f (/t.py:2) 3", "MainThread", ["f (/t.py:2)"], 3),
        ("thread (11): a;b;c;f (/t.py:2) 3", "a;b;c", ["f (/t.py:2)"], 3),
        ("thread (11): Thread-1 (work);f (/t.py:2) 3", "Thread-1 (work)", ["f (/t.py:2)"], 3),
        (
            "thread (10): MainThread;f (/we;ird dir/t.py:2);g (/t.py:3) 5",
            "MainThread",
            ["f (/we;ird dir/t.py:2)", "g (/t.py:3)"],
            5,
        ),
        ('process 10:"python -c "a";b"";thread (10): MainThread;f (/t.py:2) 5', "MainThread", ["f (/t.py:2)"], 5),
        (
            'process 9:"torchrun";process 10:"python t.py";thread (10): MainThread;f (/t.py:2) 5',
            "MainThread",
            ["f (/t.py:2)"],
            5,
        ),
        ("f (/t.py:2);<lambda> (/t.py:3) 2", "MainThread", ["f (/t.py:2)", "<lambda> (/t.py:3)"], 2),
        ("thread (10): MainThread;f (<string>:1);g (/t.py) 2", "MainThread", ["f (<string>:1)", "g (/t.py)"], 2),
        ("thread (10): MainThread;f (/a\u2028b.py:1) 2", "MainThread", ["f (/a\u2028b.py:1)"], 2),
    ],
)
def test_a_line_of_py_spy_is_taken_apart(line: str, thread: str, frames: list[str], count: int) -> None:
    window = StackWindow()
    window.add(10, line + "\n")
    ((pid, name, numbers, samples),) = window.stacks
    assert (pid, name, samples) == (10, thread, count)
    assert [list(window.frames)[number] for number in numbers] == frames


@pytest.mark.parametrize("line", ["", "nonsense", "thread (10): MainThread 5", "f (/t.py:2)"])
def test_lines_that_hold_no_stack_are_passed_over(line: str) -> None:
    window = StackWindow()
    window.add(10, line)
    assert window.stacks == []


def test_what_a_forked_worker_inherited_and_what_is_ours_is_dropped() -> None:
    window = StackWindow()
    ours = "fetch (/x/loaderprof/capture/hooks/install.py:1)"
    window.add(
        10, f"thread (10): MainThread;<module> (/t.py:1);_worker_loop (/torch/worker.py:1);{ours};get (/t.py:9) 4\n"
    )
    window.add(10, f"thread (10): MainThread;{ours} 4\n")
    assert [list(window.frames)[number] for number in window.stacks[0][2]] == [
        "_worker_loop (/torch/worker.py:1)",
        "get (/t.py:9)",
    ]
    assert len(window.stacks) == 1


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Iterator[StackSampler]:
    if env.stack_access() != "py-spy may read stacks":
        pytest.skip("py-spy may not read stacks here")
    monkeypatch.setattr(stack_sampler, "FIRST_WINDOW_AFTER_S", 0)
    sampler = StackSampler()
    sampler.window_s = 1
    yield sampler
    sampler.close()


def window_of(spy: StackSampler, job: WatchedJob) -> dict[str, Any]:
    """Let the sampler run until its first window has ended."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        sample = spy.sample(job)
        if sample is not None:
            return sample
        time.sleep(0.02)
    raise AssertionError(f"no window: {spy.missing}")


def test_stacks_of_a_real_process_are_seen(spy: StackSampler, tmp_path: Path) -> None:
    with started(CHILD) as (child, said):
        assert said == "ready"
        (tmp_path / f"host-{child.pid}-1.lpj").touch()
        job = WatchedJob(child.pid, tmp_path)
        job.writers()
        sample = window_of(spy, job)
    assert json.loads(json.dumps(sample)) == sample
    assert sample["t0"] < sample["t1"]
    seen: dict[str, int] = {}
    for pid, thread, numbers, count in sample["stacks"]:
        assert pid == child.pid
        frames = [sample["frames"][number].split(" (")[0] for number in numbers]
        if thread == "MainThread":
            assert frames[0] == "_worker_loop"
        seen[f"{thread}:{'busy' in frames}"] = seen.get(f"{thread}:{'busy' in frames}", 0) + count
    assert seen["MainThread:True"] >= 5
    assert seen["queue;feeder:False"] >= 5
    assert seen["MainThread:True"] <= 2 * sample["rate"] * spy.window_s
    assert spy.cpu_s > 0
    assert spy.missing is None
    # The next window has to wait until the job has used enough CPU to pay for it.
    assert spy.due(job) == []
    job.cpu_s = 1e6
    assert spy.due(job) == []  # and now it is gone
    assert child.returncode == 0


def py_spies() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if each.name() == "py-spy"]


def test_a_window_under_way_ends_with_the_sampler(
    spy: StackSampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack_sampler.tempfile, "tempdir", str(tmp_path))
    sampler = StackSampler()
    with started(CHILD) as (child, _):
        (tmp_path / f"host-{child.pid}-1.lpj").touch()
        job = WatchedJob(child.pid, tmp_path)
        job.writers()
        assert sampler.sample(job) is None
        assert len(py_spies()) == len(list(tmp_path.glob("loaderprof-*"))) == 1
        sampler.close()
        assert not py_spies()
        assert not list(tmp_path.glob("loaderprof-*"))
        assert child.poll() is None


class FakeSpy:
    """A py-spy that was started, and is all that a sampler sees of it."""

    stderr = None

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def kill(self) -> None: ...

    def wait(self) -> None: ...


def test_a_main_process_and_a_few_of_its_workers_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, pid: int, parent: int) -> None:
            self.pid, self.parent = pid, parent

        def ppid(self) -> int:
            return self.parent

    job = WatchedJob(1, None)
    fakes = [Fake(1, 0), Fake(10, 1), Fake(20, 1), *(Fake(pid, 10) for pid in range(11, 20)), Fake(21, 20)]
    monkeypatch.setattr(job, "processes", lambda: fakes)
    monkeypatch.setattr(stack_sampler.subprocess, "Popen", FakeSpy)
    job.first_batch_at, job.cpu_s = 0.0, 1e6  # a window is always due
    sampler, writers = StackSampler(), [10, 20, 11, 12, 21, 999]
    monkeypatch.setattr(job, "writers", lambda: writers)
    monkeypatch.setattr(job, "has_batches", lambda _: True)
    assert sampler.due(job) == [10, 11, 12, 13, 14]
    sampler.start([10])
    assert sampler.due(job) == [20, 21]
    writers.clear()
    assert sampler.due(job) == [1, 10, 20]
    sampler.close()


def test_a_window_before_the_first_batch_is_followed_by_one_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, job, now, batches = StackSampler(), WatchedJob(1, None), [10.0], [False]
    job.first_batch_at = 0.0
    monkeypatch.setattr(stack_sampler.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(job, "has_batches", lambda _: batches[0])
    monkeypatch.setattr(job, "processes", lambda: [psutil.Process(1)])
    monkeypatch.setattr(stack_sampler.subprocess, "Popen", FakeSpy)
    sampler.cpu_s = 1.0  # the budget allows nothing more
    due = []
    for second in range(8):
        now[0], batches[0] = 10.0 + second, second >= 3
        due.append(sampler.due(job))
        sampler.start(due[-1])
    # One at once, and one two seconds after the first batch.
    assert due == [[1], [], [], [], [], [1], [], []]
    sampler.close()


def test_processes_of_ray_are_looked_at_once_one_is_at_its_second_task(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = RayTasks()
    titles = {10: "ray::IDLE", 11: "ray::IDLE", 12: "ray::_StatsActor", 13: "raylet"}
    monkeypatch.setattr(stack_sampler, "_title", lambda pid: titles[pid])
    alive: Any = {pid: pid for pid in titles}
    assert tasks.processes(alive) == []
    titles[11] = "ray::ReadRange"
    assert tasks.processes(alive) == []
    # It imports what the next kind of task needs.
    titles[11] = "ray::MapBatches(parse)"
    assert tasks.processes(alive) == []
    titles[11] = "ray::IDLE"
    assert tasks.processes(alive) == []
    titles[11] = "ray::MapBatches(parse)"
    assert tasks.processes(alive) == [11, 10]


def test_one_long_task_of_ray_is_looked_at_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks, now = RayTasks(), [100.0]
    monkeypatch.setattr(stack_sampler, "_title", lambda _: "ray::MapBatches(parse)")
    monkeypatch.setattr(stack_sampler.time, "monotonic", lambda: now[0])
    alive: Any = {10: 10}
    assert tasks.processes(alive) == []
    now[0] += stack_sampler.RAY_SET_UP_S
    assert tasks.processes(alive) == [10]


def test_without_py_spy_stacks_are_not_measured(monkeypatch: pytest.MonkeyPatch, said: Check) -> None:
    monkeypatch.setattr(stack_sampler, "find_py_spy", lambda: None)
    sampler = StackSampler()
    said("no py-spy", str(sampler.missing))
    assert sampler.sample(WatchedJob(os.getpid(), None)) is None
    sampler.close()


def test_a_refusal_is_reported_with_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: Check) -> None:
    fake = tmp_path / "py-spy"
    fake.write_text(
        "#!/bin/sh\necho 'Error: Permission Denied: Try running again with elevated permissions' >&2\nexit 1\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(stack_sampler, "find_py_spy", lambda: str(fake))
    sampler = StackSampler()
    job = WatchedJob(os.getpid(), tmp_path)
    job.first_batch_at = 0.0
    until = time.monotonic() + 30
    while sampler.missing is None and time.monotonic() < until:
        assert sampler.sample(job) is None
    said("py-spy is refused", str(sampler.missing))
    sampler.close()


def test_a_py_spy_that_cannot_be_started_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: Check
) -> None:
    monkeypatch.setattr(stack_sampler, "find_py_spy", lambda: str(tmp_path / "nowhere"))
    sampler = StackSampler()
    sampler.start([os.getpid()])
    said("py-spy cannot be started", str(sampler.missing))
    assert not py_spies()
    sampler.close()


def test_py_spy_is_the_one_beside_this_python() -> None:
    program = find_py_spy()
    assert program is None or Path(program).name == "py-spy"
