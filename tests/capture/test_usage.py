"""The kernel's account of threads, the files a process holds, and the lock of one whose threads compute in Python."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from real import started

from loaderprof.capture import usage
from loaderprof.capture.samplers import WatchedJob
from loaderprof.capture.stack_sampler import StackSampler, find_py_spy
from loaderprof.recording import journal as layout
from loaderprof.recording.journal import Journal, watches

# Three threads that compute in Python until the standard input closes; a line for every fifth of a second they used.
THREADS = """
import sys, threading, time
stop = threading.Event()
def spin():
    while not stop.is_set():
        sum(range(1000))
for number in range(3):
    threading.Thread(target=spin, name="maker_%d" % number).start()
def tell():
    said = time.process_time()
    while not stop.is_set():
        if time.process_time() - said > 0.2:
            said = time.process_time()
            print("more", flush=True)
        time.sleep(0.01)
threading.Thread(target=tell, daemon=True).start()
sys.stdin.read()
stop.set()
"""


# Two threads of torch that compute, of which Python knows one, until the standard input closes.
TEAM = """
import os, threading
import torch
torch.set_num_threads(2)
stop = threading.Event()
def compute():
    matrix = torch.ones(256, 256)
    print("computing", flush=True)
    while not stop.is_set():
        matrix @ matrix
maker = threading.Thread(target=compute, name="maker")
maker.start()
os.read(0, 1)
stop.set()
"""


def journal(folder: Path, pid: int, flags: int) -> Path:
    path = folder / f"here-{pid}-1.lpj"
    made = Journal(str(path), {"pid": pid})
    made.text("x" * 500)
    made.write(layout.ITERATOR, flags, 0, 1, 5, 6, 1, 0, 0)
    return path


def window_over(job: WatchedJob) -> dict[str, Any]:
    """Return one window of stack samples of a job."""
    sampler = StackSampler()
    sampler.window_s = 1
    job.first_batch_at = 0.0
    sample, until = None, time.monotonic() + 30
    while sample is None and time.monotonic() < until:
        sample = sampler.sample(job)
        time.sleep(0.02)
    sampler.close()
    if sampler.missing:
        pytest.skip(sampler.missing)
    assert sample is not None
    return sample


def test_the_account_of_a_processs_threads() -> None:
    with started(THREADS) as (child, _):
        assert child.stdout is not None
        before = usage.account([child.pid, 2**30])
        begun = time.perf_counter()
        child.stdout.readline()
        used = usage.between(before, usage.account([child.pid]))
        wall = time.perf_counter() - begun
        assert {pid for pid, _ in used} == {child.pid}
        assert len(used) == 5
        cpu = sum(cpu for cpu, _ in used.values()) / 1e9
        assert 0.1 < cpu <= 1.3 * wall + 0.02  # one lock: about one core
        assert all(runq >= 0 for _, runq in used.values())


def test_a_thread_that_ended_is_left_out() -> None:
    assert usage.between({(1, 2): (5, 5), (1, 3): (1, 1)}, {(1, 3): (4, 2), (1, 4): (9, 9)}) == {(1, 3): (3, 1)}


def test_the_data_files_that_a_process_holds_open(tmp_path: Path) -> None:
    for name in ("data.bin", "code.py", "a.lpj", "empty.bin"):
        (tmp_path / name).write_bytes(b"" if name == "empty.bin" else b"12345")
    kept = [open(tmp_path / name) for name in ("data.bin", "code.py", "a.lpj", "empty.bin")]  # noqa: SIM115
    try:
        ((pid, count, files),) = usage.open_files([os.getpid(), 2**30])
    finally:
        for file in kept:
            file.close()
    assert pid == os.getpid()
    assert count >= 4 + 3
    assert [size for path, size in files if path == str(tmp_path / "data.bin")] == [5]
    assert not [path for path, _ in files if path.endswith((".py", ".lpj", "empty.bin"))]


def test_a_journal_tells_whether_its_loop_is_watched(tmp_path: Path) -> None:
    assert watches(str(journal(tmp_path, 1, layout.WATCHED)))
    assert not watches(str(journal(tmp_path, 2, 0)))
    assert not watches(str(tmp_path / "nowhere"))
    assert [WatchedJob(1, tmp_path).watches(pid) for pid in (1, 2, 3)] == [True, False, False]
    assert not WatchedJob(1, None).watches(1)


@pytest.mark.skipif(find_py_spy() is None, reason="needs py-spy")
def test_a_window_over_a_watched_loop_tells_how_long_its_lock_is_held(tmp_path: Path) -> None:
    with started(THREADS) as (child, _):
        journal(tmp_path, child.pid, layout.WATCHED)
        job = WatchedJob(child.pid, tmp_path)
        sample = window_over(job)
        ((pid, held),) = sample["gil"]
        taken = sum(count for _, thread, _, count in sample["stacks"] if thread == "MainThread")
        assert pid == child.pid
        assert held > 0.5 * taken > 2
        accounts = {thread: cpu for of, thread, cpu, _ in sample["threads"] if of == pid}
        producers = {"maker_0", "maker_1", "maker_2"}
        assert {"MainThread", *producers} <= set(accounts)
        looks = {thread: (taken, asleep) for of, thread, taken, asleep in sample["locks"] if of == pid}
        assert producers <= set(looks)
        assert min(taken for taken, _ in looks.values()) > 5
        if not any(asleep for _, asleep in looks.values()):
            pytest.skip("the kernel does not tell where threads sleep")
        # One of the three runs at a time, the others sleep on the lock.
        assert sum(looks[producer][1] for producer in producers) > sum(looks[producer][0] for producer in producers) / 3
        assert accounts["maker_0"] > accounts["MainThread"]


@pytest.mark.skipif(find_py_spy() is None, reason="needs py-spy")
def test_a_window_tells_what_a_librarys_own_threads_used(tmp_path: Path) -> None:
    with started(TEAM) as (child, said):
        assert said == "computing"
        journal(tmp_path, child.pid, 0)
        job = WatchedJob(child.pid, tmp_path)
        sample = window_over(job)
        used = [(thread, cpu + runq) for pid, thread, cpu, runq in sample["threads"] if pid == child.pid]
        assert {thread for thread, _ in used} >= {"MainThread", "maker", ""}
        # It works beside the one that Python knows.
        assert max(busy for thread, busy in used if not thread) > 0.3e9
