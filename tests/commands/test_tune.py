"""`tune` on real jobs: what it finds, what it keeps off, how it ends the job, and what it says."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import real
from golden_sentences import Check

from loaderprof.capture.cpu_budget import cpu_budget
from loaderprof.findings import Measured
from loaderprof.measure.tuned import Tried, Tuned
from loaderprof.report import tune_table

JOB = """
import sys, time
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

SAMPLE_S, STEP_S = {sample_s}, {step_s}

class Slow(Dataset):
    def __len__(self):
        return {length}

    def __getitem__(self, index):
        time.sleep(SAMPLE_S)
        return torch.zeros(8) + index

class Stream(IterableDataset):
    def __iter__(self):
        info = get_worker_info()
        first, every = (info.id, info.num_workers) if info else (0, 1)
        return map(Slow().__getitem__, range(first, {length}, every))

def main():
    torch.set_num_threads(1)
    train_loader = DataLoader({dataset}(), batch_size=4, num_workers={workers})
    weights = torch.zeros(8, requires_grad=True)
    for epoch in range({epochs}):
        seen = 0.0
        for batch in train_loader:
            seen += float(batch[:, 0].sum())
            time.sleep(STEP_S)
            ((batch * weights).sum() * 1e-6).backward()
        print(epoch, seen, flush=True)

main()
"""
USUAL = {"sample_s": 0.004, "step_s": 0.0, "length": 4000, "dataset": "Slow", "workers": 0, "epochs": 200}


def tune(tmp_path: Path, *words: str, **knobs: Any) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Tune a job, and return what was said and kept."""
    (tmp_path / "train.py").write_text(JOB.format(**{**USUAL, **knobs}))
    command = [sys.executable, "-m", "loaderprof", "tune", "-o", "found", *words, "train.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1000, check=False)
    kept = tmp_path / "found" / "tune.json"
    return done, json.loads(kept.read_text()) if kept.exists() else {}


def rates(kept: dict[str, Any]) -> dict[tuple[int, int], float]:
    return {
        (each["settings"]["num_workers"], each["settings"]["prefetch_factor"]): each["per_s"]
        for each in kept["tried"]
        if each["per_s"] is not None
    }


@pytest.mark.slow
def test_a_search_measures_tells_and_keeps(tmp_path: Path) -> None:
    done, kept = tune(tmp_path, "--seconds", "6")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("loaderprof tune  train.py  train_loader (train.py:28)  ")
    assert re.search(r"\n  no workers +\d.* now\n", done.stdout)
    assert "\n  Best      " in done.stdout
    assert kept["schema_version"] == 1
    assert (kept["way"], kept["unit"], kept["starts"], kept["loader"]) == ("windows", "samples", 1, "train_loader")
    assert kept["present"]["num_workers"] == 0
    assert max(workers for workers, _ in rates(kept)) <= cpu_budget().cores
    # Four samples of 4 ms, one after another, and up to twice that on a machine that is busy.
    assert 100 < rates(kept)[0, 2] < 250
    assert not [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(tmp_path) and "train.py" in (process.info["cmdline"] or [])
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_that_help_are_found_and_their_settings_work(tmp_path: Path) -> None:
    done, kept = tune(tmp_path)
    # Waiting overlaps, so that any worker count up to the budget helps as much as it can.
    assert kept["best"]["num_workers"] >= 2, done.stdout
    assert kept["change"]["num_workers"] == kept["best"]["num_workers"]
    assert kept["measured"]["low"] > 1.2
    sets = re.search(r"loaderprof run ((?:--set \S+ )+)train.py", done.stdout)
    assert sets is not None
    (tmp_path / "train.py").write_text(JOB.format(**{**USUAL, "epochs": 1, "length": 400}))
    again = real.loaderprof("run", "--no-html", "-o", "seen", *sets[1].split(), "train.py", cwd=tmp_path)
    loaders = json.loads((tmp_path / "seen" / "findings.json").read_text())["loaders"]
    assert loaders[0]["settings"]["num_workers"] == kept["best"]["num_workers"], again.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_where_nothing_helps_the_script_is_left_as_it_is(tmp_path: Path) -> None:
    done, kept = tune(tmp_path, sample_s=0.0, step_s=0.01)
    assert kept["change"] == {}, done.stdout
    assert "Best      the present settings" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_short_epochs_are_better_with_workers_that_are_kept(tmp_path: Path) -> None:
    _, kept = tune(tmp_path, length=48, sample_s=0.002, workers=2, epochs=4000)
    assert kept["best"]["persistent_workers"]
    assert any("short" in note for note in kept["notes"])


@pytest.mark.slow
def test_a_job_that_ends_is_started_again(tmp_path: Path) -> None:
    _, kept = tune(tmp_path, "--seconds", "15", epochs=1, length=1000)
    assert kept["starts"] > 1
    assert len(kept["tried"]) > 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_iterable_dataset_is_tuned_across_runs(tmp_path: Path) -> None:
    done, kept = tune(tmp_path, "--seconds", "60", dataset="Stream", epochs=40)
    assert done.returncode == 0
    assert done.stderr.startswith(
        "loaderprof: an iterable dataset is split over its workers: each measurement is a run"
    )
    assert kept["way"] == "runs"
    assert kept["starts"] >= 3
    assert rates(kept)[2, 2] > rates(kept)[0, 2]


@pytest.mark.slow
def test_the_job_may_go_on_with_what_was_found(tmp_path: Path) -> None:
    done, kept = tune(tmp_path, "--seconds", "3", "--finish", epochs=2, length=1000)
    assert done.returncode == 0
    lines = (tmp_path / "found" / "tune.log").read_text().splitlines()
    assert lines[-2:] == ["0 499500.0", "1 499500.0"]
    assert all(each["settings"]["in_order"] for each in kept["tried"])


def test_a_job_that_fails_is_told(tmp_path: Path) -> None:
    done, kept = tune(tmp_path, workers='"many"')
    assert (done.returncode, done.stdout, kept) == (1, "", {})
    assert re.match(r"loaderprof: the job ended with exit code 1: TypeError.*\n  see found/tune.log\n", done.stderr)


def test_ctrl_c_ends_the_job_too(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(JOB.format(**USUAL))
    command = [sys.executable, "-m", "loaderprof", "tune", "-o", "found", "train.py"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        while not (jobs := psutil.Process(process.pid).children()) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert jobs
    assert (process.returncode, out) == (130, ""), err
    assert "stopped before the settings were found" in err
    assert not any(job.is_running() and job.status() != psutil.STATUS_ZOMBIE for job in jobs)


def settings(workers: int, **others: Any) -> dict[str, Any]:
    usual = {"prefetch_factor": 2, "in_order": True, "persistent_workers": False, "pin_memory": False}
    return {"num_workers": workers, **usual, **others}


RESULT = Tuned(
    command="train.py --lr 1",
    loader="loader",
    assigned="loader",
    where="/home/me/train.py:12",
    way="windows",
    unit="samples",
    seconds=31.2,
    starts=1,
    present=settings(0),
    best=settings(2, prefetch_factor=4, persistent_workers=True),
    change={"num_workers": 2, "prefetch_factor": 4, "persistent_workers": True},
    measured=Measured(1.83, 1.77, 1.89, 5),
    tried=(
        Tried(settings(2, prefetch_factor=4), 1830.0, 1800.0, 1860.0, 5, 1.9, None),
        Tried(settings(0), 1000.0, 980.0, 1020.0, 6, None, None),
        Tried(settings(1), None, None, None, 0, None, "the job ended with exit code 1"),
    ),
    left_out=("more than 2 workers: the CPU budget is 2 cores",),
    notes=("epochs are short",),
)


def test_the_screen(said: Check) -> None:
    said("screen", tune_table.render(RESULT, "found"))


def test_a_screen_where_nothing_helps(said: Check) -> None:
    text = tune_table.render(dataclasses.replace(RESULT, best=RESULT.present, change={}, measured=None), "found")
    said("screen where nothing helps", text)
    assert "best, now" in text
    assert "--set" not in text


def test_slower_settings_are_left_to_the_file(said: Check) -> None:
    many = tuple(Tried(settings(2, prefetch_factor=at), 100.0 - at, None, None, 1, None, None) for at in range(1, 20))
    text = tune_table.render(dataclasses.replace(RESULT, tried=(*many, RESULT.tried[1])), "found")
    said("screen of many settings", text)
    assert f"{20 - tune_table.ROWS - 1} slower ones" in text
    assert text.count("  now\n") == 1


def test_a_loader_that_set_cannot_tell_is_set_with_all() -> None:
    assert " --set num_workers=2 " in tune_table.render(dataclasses.replace(RESULT, assigned=None), "found")


def test_progress_is_shown_on_a_terminal_only(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    (tmp_path / "train.py").write_text(JOB.format(**{**USUAL, "workers": '"many"'}))
    main, side = pty.openpty()
    command = [sys.executable, "-m", "loaderprof", "tune", "-o", "found", "train.py"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=side, text=True)
    out, _ = process.communicate(timeout=100)
    os.close(side)
    shown = os.read(main, 1 << 16).decode()
    os.close(main)
    assert out == ""
    assert "measuring the present settings" in shown
