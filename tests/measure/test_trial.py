"""A trial: the job recorded, ended at its limit with all that it started, its output in the log."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from loaderprof.errors import LoaderprofError
from loaderprof.measure import trial
from loaderprof.recording import reader

ENDLESS = """
import os, subprocess, sys, time
from torch.utils.data import DataLoader
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
print(os.getpid(), helper.pid, flush=True)
while True:
    for batch in DataLoader(list(range(64)), batch_size=4):
        time.sleep(0.01)
"""


@pytest.mark.slow
def test_a_job_past_its_limit_is_ended_with_what_it_started(tmp_path: Path) -> None:
    folder, log = tmp_path / "seen", tmp_path / "log"
    folder.mkdir()
    ticks: list[float] = []
    with open(log, "wb") as file:
        command = [sys.executable, "-c", ENDLESS]
        ended = trial.run(
            command, cwd=tmp_path, settings={"batch_size": 2}, folder=folder, log=file, limit_s=1.0, tick=ticks.append
        )
    assert ended.stopped
    assert ticks[0] == 0.0
    assert 0.0 < ticks[-1] < 1.0
    seen = reader.read(folder)
    assert len(seen.tables["take"]) > 5
    assert '"batch_size": 2' in "".join(seen.texts)
    pids = [int(word) for word in log.read_text().split()]
    until = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize(("code", "shown"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_the_jobs_own_code_is_told(tmp_path: Path, code: str, shown: int) -> None:
    with open(tmp_path / "log", "wb") as file:
        folder = tmp_path / "seen"
        folder.mkdir()
        ended = trial.run(
            [sys.executable, "-c", code], cwd=tmp_path, settings={}, folder=folder, log=file, limit_s=60.0
        )
    assert ended == trial.Ended(shown, stopped=False)


def test_a_command_that_cannot_start_is_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "seen"
    folder.mkdir()
    with open(tmp_path / "log", "wb") as file, pytest.raises(LoaderprofError, match="cannot be started"):
        trial.run(["/no/such/program"], cwd=tmp_path, settings={}, folder=folder, log=file, limit_s=1.0)
