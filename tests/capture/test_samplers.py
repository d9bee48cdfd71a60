"""Samplers of the host and of a job over real processes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import psutil
import pytest
from real import started

from loaderprof.capture import samplers
from loaderprof.capture.samplers import HostSampler, WatchedJob

# Each process works for some ticks of the kernel's clock, which counts CPU time in hundredths of a second.
TREE = """
import subprocess, sys, time
while time.process_time() < 0.05: pass
child = subprocess.Popen([sys.executable, "-c",
                          "import sys, time\\nwhile time.process_time() < 0.05: pass\\nprint('ready', flush=True); sys.stdin.read()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
child.communicate()
"""


def test_a_jobs_processes_are_its_whole_tree() -> None:
    with started(TREE) as (child, said):
        job = WatchedJob(child.pid, None)
        assert [process.pid for process in job.processes()] == [child.pid, int(said)]
        sample = HostSampler().sample(job)
        assert sample is not None
        entries = {entry["pid"]: entry for entry in sample["processes"]}
        assert set(entries) == {child.pid, int(said)}
        assert entries[int(said)]["ppid"] == child.pid
        for entry in entries.values():
            assert entry["rss"] > 1_000_000
            assert entry["user"] + entry["system"] > 0
            assert entry["threads"] >= 1
            assert abs(entry["created"] - time.time()) < 300
        assert job.cpu_s == pytest.approx(sum(entry["user"] + entry["system"] for entry in entries.values()))
    assert job.processes() == []


def test_a_job_that_is_gone_is_sampled_as_nothing() -> None:
    with started("print('ready')") as (child, _):
        child.wait()
        pid = child.pid
    sample = HostSampler().sample(WatchedJob(pid, None))
    assert sample is not None
    assert sample["processes"] == []


def test_a_host_sample_can_be_written_and_tells_of_the_host() -> None:
    sampler = HostSampler()
    sample = sampler.sample(WatchedJob(os.getpid(), None))
    assert sample is not None
    assert json.loads(json.dumps(sample)) == sample
    assert sample["cpu"]["cores"] == psutil.cpu_count()
    assert {"user", "system", "idle"} <= set(sample["cpu"])
    assert 0 < sample["memory"]["available"] <= sample["memory"]["total"]
    assert sampler.missing is None
    assert sampler.period_s >= 1.0


def test_an_expensive_sample_is_taken_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5])
    monkeypatch.setattr(samplers.time, "thread_time", lambda: next(clock))
    sampler = HostSampler()
    sampler.sample(WatchedJob(os.getpid(), None))
    assert sampler.period_s == pytest.approx(0.5 / samplers.HOST_BUDGET)


def test_writers_are_the_processes_that_opened_a_journal(tmp_path: Path) -> None:
    job = WatchedJob(1, tmp_path)
    assert (job.writers(), job.first_batch_at) == ([], None)
    for name in ("host-123-456.lpj", "my-host.example-7-8.lpj", "odd.lpj", "a-b-c.lpj", "host-9-1.txt"):
        (tmp_path / name).touch()
    assert sorted(job.writers()) == [7, 123]
    assert job.first_batch_at is not None
    assert WatchedJob(1, None).writers() == [1]
    assert WatchedJob(1, tmp_path / "nowhere").writers() == []
