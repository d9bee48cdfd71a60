"""Trouble of every kind: the job goes on or ends as it would without us, and what was recorded can be read."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

import loaderprof
from loaderprof import cli
from loaderprof.capture.launch import job_environment

PROGRAMS = Path(__file__).parents[1] / "programs"
FAULTS = str(PROGRAMS / "faults.py")
CALM = {**os.environ, "OMP_NUM_THREADS": "1"}
DEEP = {**CALM, "LOADERPROF_DEPTH_PERIOD_NS": "0"}
# How many lines of ours each fault may put on stderr while the job runs.
LINES = {
    "nothing": 0,
    "no_proc": 0,
    "few_files": 0,
    "no_files": 1,
    "bound": 0,
    "eight": 0,
    "two_hundred": 0,
    "internal": 1,
    "late": 1,
    "counters": 1,
    "discovery": 1,
    "daemons": 0,
    "threads": 0,
}
# Under these a job runs in another place: with /tmp read-only, as another user, without any right of root's.
PLACES = {
    "read_only_tmp": (
        "unshare",
        "-m",
        "sh",
        "-c",
        'mount --bind /tmp /tmp && mount -o remount,ro,bind /tmp && exec "$@"',
        "sh",
    ),
    "another_user": ("unshare", "-U", "--map-user=1000"),
    "no_rights": ("setpriv", "--bounding-set=-all", "--inh-caps=-all"),
}
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


@dataclass(frozen=True)
class Outcome:
    stdout: str
    stderr: str
    code: int
    folder: Path


def run(folder: Path, *arguments: str, place: tuple[str, ...] = (), **environment: str) -> Outcome:
    command = [*place, sys.executable, "-m", "loaderprof", "run", "-o", str(folder), "--no-html", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**DEEP, **environment}, timeout=200)
    return Outcome(done.stdout, done.stderr, done.returncode, folder)


def sections(text: str) -> dict[str, str]:
    parts = [part.partition("\n") for part in ("\n" + text.rstrip("\n")).split("\n# ")[1:]]
    return {name: lines for name, _, lines in parts}


def capture_lines(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("loaderprof: capture")]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Outcome]:
    """The loops alone, and at the same time those with trouble."""
    alone = subprocess.Popen(
        [sys.executable, FAULTS, *LINES, "removed", "hidden", "clock"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=CALM,
    )
    hooked = run(tmp_path_factory.mktemp("faults") / "run", FAULTS, *LINES)
    stdout, stderr = alone.communicate(timeout=100)
    assert alone.returncode == 0, stderr
    assert "loaderprof" not in stderr
    return sections(stdout), hooked


@pytest.fixture(scope="module")
def bare(both: tuple[dict[str, str], Outcome]) -> dict[str, str]:
    return both[0]


@pytest.fixture(scope="module")
def hooked(both: tuple[dict[str, str], Outcome]) -> Outcome:
    return both[1]


@pytest.mark.parametrize("fault", LINES)
def test_job_goes_on(bare: dict[str, str], hooked: Outcome, fault: str) -> None:
    assert sections(hooked.stdout)[fault] == bare[fault]
    message = capture_lines(sections(hooked.stderr)[fault])
    assert len(message) == LINES[fault], message


def test_recording_reads(hooked: Outcome) -> None:
    assert hooked.code == 0, hooked.stderr
    assert "Traceback" not in hooked.stderr
    seen = loaderprof.read(hooked.folder)
    assert (hooked.folder / "findings.json").is_file()
    assert seen.meta.exit_code == 0
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
        capture_output=True,
        text=True,
        timeout=100,
        env=job_environment(Path("/proc/none"), {}, DEEP),
    )
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
    message = [line for line in outcome.stderr.splitlines() if line.startswith("loaderprof:")]
    assert any("No space left" in line for line in message), outcome.stderr
    assert len(message) <= 2, message
    loaderprof.read(outcome.folder)


def assert_as_bare(outcome: Outcome, bare: dict[str, str], fault: str) -> dict[str, Any]:
    """The job is what it was, nothing was said, and there are findings; return these."""
    assert sections(outcome.stdout) == {fault: bare[fault]}, outcome.stderr
    assert outcome.code == 0
    assert "Traceback" not in outcome.stderr
    assert capture_lines(outcome.stderr) == []
    findings: dict[str, Any] = json.loads((outcome.folder / "findings.json").read_text())
    assert findings["run"]["exit_code"] == 0
    return findings


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_another_place(bare: dict[str, str], place: str) -> None:
    if not Path("/dev/shm").is_dir() or subprocess.run([*PLACES[place], "true"], capture_output=True).returncode:
        pytest.skip("such a place cannot be made here: it needs root, namespaces and /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        fault = "hidden" if place == "no_rights" else "nothing"
        assert_as_bare(run(Path(folder, "run"), FAULTS, fault, place=PLACES[place]), bare, fault)


@pytest.mark.slow
@pytest.mark.skipif(not FAKETIME.exists(), reason="needs Debian's faketime, for a clock that can be set")
def test_the_clock_jumps(bare: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "clock").write_text("+0d\n")
    outcome = run(
        tmp_path / "run",
        FAULTS,
        "clock",
        LD_PRELOAD=str(FAKETIME),
        FAKETIME_TIMESTAMP_FILE=str(tmp_path / "clock"),
        FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )
    assert 0 < assert_as_bare(outcome, bare, "clock")["run"]["duration_s"] < 100


@pytest.mark.slow
def test_workers_that_hang_and_a_crowd_of_them(tmp_path: Path) -> None:
    faults = ("hangs", "sixty_four")
    alone = subprocess.run([sys.executable, FAULTS, *faults], capture_output=True, text=True, env=CALM, timeout=200)
    outcome = run(tmp_path / "run", FAULTS, *faults)
    assert "timed out after 1 seconds" in sections(alone.stdout)["hangs"]
    assert (outcome.stdout, outcome.code) == (alone.stdout, 0)
    assert capture_lines(outcome.stderr) == []
    assert "Traceback" not in outcome.stderr


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
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=DEEP,
        )

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
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as message:
            assert cli.main(["report", str(self.folder)]) == 0
        assert message.getvalue() == ""


@pytest.mark.slow
def test_killed_py_spy(tmp_path: Path) -> None:
    victim = Victim(tmp_path / "run", "job", 0)
    victim.start()
    with victim.process as process:
        assert process.stdout is not None
        assert process.stderr is not None
        job, *_ = map(int, process.stdout.readline().split())
        # The job must not wait for its pipe while we look for what is to be killed.
        drain = threading.Thread(target=process.stdout.read)
        drain.start()
        spies: list[psutil.Process] = []
        until = time.monotonic() + 60
        while not spies and time.monotonic() < until:
            spies = [each for each in psutil.Process(process.pid).children() if each.name() == "py-spy"]
        for each in spies:
            each.kill()
        assert psutil.pid_exists(job)
        os.kill(job, signal.SIGTERM)
        message = process.stderr.read()
        drain.join()
    assert spies
    assert process.returncode == -signal.SIGTERM
    # A worker of a job that is killed may just have been handing it a descriptor, and says so itself.
    assert not [line for line in message.splitlines() if line.lstrip().startswith("File ") and "/loaderprof/" in line]
    assert len(loaderprof.read(victim.folder).tables["take"]) > 10
    assert (victim.folder / "findings.json").is_file()


def kill_all(folder: Path, count: int, seed: int, batches: int = 1500) -> None:
    chance = random.Random(seed)
    victims = [
        Victim(folder / f"{seed}-{number}", ("job", "worker", "supervisor")[number % 3], chance.randrange(1, batches))
        for number in range(count)
    ]
    for victim in victims:
        victim.start()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(Victim.kill, victims))
    for victim in victims:
        victim.check()


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    kill_all(tmp_path, 3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_fifty_times(tmp_path: Path) -> None:
    for seed in range(2, 12):
        kill_all(tmp_path, 5, seed)
