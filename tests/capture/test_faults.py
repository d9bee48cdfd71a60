"""Trouble of every kind: the job goes on or ends as it would without us, and what was recorded can be read."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

import loaderprof
from loaderprof.capture.launch import job_environment

PROGRAMS = Path(__file__).parent / "programs"
FAULTS = str(PROGRAMS / "faults.py")
CALM = {**os.environ, "OMP_NUM_THREADS": "1"}
DEEP = {**CALM, "LOADERPROF_DEPTH_PERIOD_NS": "0"}
# How many lines of ours each fault may put on stderr while the job runs.
LINES = {
    "nothing": 0, "no_proc": 0, "few_files": 0, "no_files": 1, "bound": 0, "eight": 0, "two_hundred": 0, "internal": 1,
    "late": 1, "counters": 1, "discovery": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    stdout: str
    stderr: str
    code: int
    folder: Path


def run(folder: Path, *arguments: str) -> Outcome:
    command = [sys.executable, "-m", "loaderprof", "run", "-o", str(folder), "--no-html", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=DEEP, timeout=200)
    return Outcome(done.stdout, done.stderr, done.returncode, folder)


def sections(text: str) -> dict[str, str]:
    parts = [part.partition("\n") for part in ("\n" + text.rstrip("\n")).split("\n# ")[1:]]
    return {name: lines for name, _, lines in parts}


def capture_lines(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("loaderprof: capture")]


@pytest.fixture(scope="module")
def bare() -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, FAULTS, *LINES, "removed"], capture_output=True, text=True, env=CALM, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert "loaderprof" not in done.stderr
    return sections(done.stdout)


@pytest.fixture(scope="module")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run(tmp_path_factory.mktemp("faults") / "run", FAULTS, *LINES)


@pytest.mark.parametrize("fault", LINES)
def test_job_goes_on(bare: dict[str, str], hooked: Outcome, fault: str) -> None:
    assert sections(hooked.stdout)[fault] == bare[fault]
    told = capture_lines(sections(hooked.stderr)[fault])
    assert len(told) == LINES[fault], told


def test_recording_reads(hooked: Outcome) -> None:
    assert hooked.code == 0, hooked.stderr
    assert "Traceback" not in hooked.stderr
    seen = loaderprof.read(hooked.folder)
    assert (hooked.folder / "findings.json").is_file()
    assert seen.meta["exit_code"] == 0
    assert len(seen.tables["take"]) > 500
    # 200 loaders that took each other's place are one in the report; so is a loader of each other fault.
    assert len({text for text in seen.texts if '"num_workers"' in text}) < 40


def test_removed_recording(bare: dict[str, str], tmp_path: Path) -> None:
    outcome = run(tmp_path / "run", FAULTS, "removed")
    assert sections(outcome.stdout) == {"removed": bare["removed"]}
    assert outcome.code == 0
    assert "Traceback" not in outcome.stderr
    assert len(capture_lines(outcome.stderr)) == 1
    ours = [line for line in outcome.stderr.splitlines() if line.startswith("loaderprof:")]
    assert len(ours) <= 3, ours  # capture's line, and that there is no report


def test_journals_nowhere(bare: dict[str, str], tmp_path: Path) -> None:
    """A read-only place, as seen by the job: no folder can be made in /proc."""
    done = subprocess.run(
        [sys.executable, FAULTS, "nothing"],
        capture_output=True, text=True, timeout=100, env=job_environment(Path("/proc/none"), {}, DEEP),
    )  # fmt: skip
    assert sections(done.stdout) == {"nothing": bare["nothing"]}
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 2, done.stderr  # and the program's own
    assert len(capture_lines(done.stderr)) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk on which the recording of one process fits, and not that of its worker."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=84k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system can be mounted by root only")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_full_disk(bare: dict[str, str], small_disk: Path) -> None:
    outcome = run(small_disk / "run", FAULTS, "bound")
    assert sections(outcome.stdout) == {"bound": bare["bound"]}
    assert outcome.code == 0
    assert "Traceback" not in outcome.stderr
    told = [line for line in outcome.stderr.splitlines() if line.startswith("loaderprof:")]
    assert any("No space left" in line for line in told), outcome.stderr
    assert len(told) <= 2, told
    loaderprof.read(outcome.folder)


@dataclass
class Victim:
    """A hooked job that says each batch it has taken."""

    folder: Path
    who: str
    after: int

    def start(self) -> None:
        command = [sys.executable, "-m", "loaderprof", "run", "-o", str(self.folder), "--no-html"]
        self.process = subprocess.Popen(
            [*command, str(PROGRAMS / "victim.py")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=DEEP,
        )  # fmt: skip

    def kill(self) -> None:
        assert self.process.stdout is not None
        job, *workers = map(int, self.process.stdout.readline().split())
        for _ in range(self.after):
            self.process.stdout.readline()
        os.kill({"job": job, "worker": workers[0], "supervisor": self.process.pid}[self.who], signal.SIGKILL)
        self.stdout, self.stderr = self.process.communicate(timeout=60)
        self.job = job

    def check(self) -> None:
        expected = {"job": -signal.SIGKILL, "worker": 1, "supervisor": -signal.SIGKILL}
        assert self.process.returncode == expected[self.who], self.stderr
        if self.who == "worker":
            # Or torch was just fetching a tensor's descriptor from that worker.
            assert any(word in self.stderr for word in ("killed by signal: Killed", "ConnectionRe", "EOFError"))
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.job, 0)
            pytest.fail("the job outlived its supervisor")
        seen = loaderprof.read(self.folder)
        # What the loop had said it took is in the recording, but for the batches that a fast loop sums up.
        assert seen.tables["take"]["count"].sum() >= self.after - 64
        done = subprocess.run(
            [sys.executable, "-m", "loaderprof", "report", str(self.folder)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""


def kill_all(folder: Path, count: int, seed: int) -> None:
    chance = random.Random(seed)
    victims = [
        Victim(folder / f"{seed}-{number}", ("job", "worker", "supervisor")[number % 3], chance.randrange(1, 1500))
        for number in range(count)
    ]
    for victim in victims:
        victim.start()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(Victim.kill, victims))
    for victim in victims:
        victim.check()


def test_killed_at_random_moments(tmp_path: Path) -> None:
    kill_all(tmp_path, 5, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_fifty_times(tmp_path: Path) -> None:
    for seed in range(2, 12):
        kill_all(tmp_path, 5, seed)
