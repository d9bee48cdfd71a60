"""Joining real running jobs: the share of waiting against the job's own stamps, and a job left as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from loaderprof.capture import attach, running_job
from loaderprof.capture.stack_sampler import find_py_spy
from loaderprof.commands.env import stacks_remedy
from loaderprof.conclude import findings_of
from loaderprof.errors import OutputError, UsageError
from loaderprof.recording import reader

PROGRAM = Path(__file__).parent / "programs" / "timed.py"
PATIENCE_S = 60
# Root without its rights is held to what holds for any user.
NO_RIGHTS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
pytestmark = pytest.mark.skipif(sys.platform != "linux" or find_py_spy() is None, reason="needs /proc and py-spy")


@dataclass
class Job:
    """A training job below a shell, as a launcher starts one."""

    shell: subprocess.Popen[str]
    pid: int
    log: Path

    def wait_share(self, begun_ns: int, ended_ns: int) -> float:
        """The job's own account of its waiting within a span of the common clock."""
        waited = 0
        for line in self.log.read_text().splitlines()[:-1]:
            asked, taken = map(int, line.split())
            waited += max(0, min(taken, ended_ns) - max(asked, begun_ns))
        return waited / (ended_ns - begun_ns)

    def end(self) -> str:
        """Let the job end by itself; return what it printed since it began to train."""
        assert self.shell.stdin is not None
        output, _ = self.shell.communicate("stop\n", timeout=PATIENCE_S)
        return output


def start(log: Path, *numbers: str, place: tuple[str, ...] = ()) -> Job:
    shell = subprocess.Popen(
        [*place, "/bin/sh", "-c", '"$@"; exit $?', "sh", sys.executable, str(PROGRAM), *numbers, str(log)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert shell.stdout is not None
    assert shell.stdout.readline() == "training\n"
    pid = next(child.pid for child in psutil.Process(shell.pid).children())
    return Job(shell, pid, log)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Workers that decode 2 ms and wait 2 ms a sample, two of them, for a step of 2 ms: most of it is waiting."""
    started = start(tmp_path_factory.mktemp("job") / "log", "2", "2", "2", "2")
    yield started
    if started.shell.poll() is None:
        started.end()


def loaderprof(*words: str, place: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*place, sys.executable, "-m", "loaderprof", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@dataclass
class Visit:
    """What `loaderprof attach` left: its exit code and words, its recording and findings."""

    code: int
    stdout: str
    stderr: str
    folder: Path
    findings: dict[str, Any]


@pytest.fixture(scope="module")
def visit(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    return visited(job, tmp_path_factory.mktemp("visit") / "recording", duration_s=3)


def visited(job: Job, folder: Path, duration_s: int) -> Visit:
    process = loaderprof("attach", str(job.pid), "--duration", str(duration_s), "-o", str(folder))
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    findings = json.loads((folder / "findings.json").read_text()) if process.returncode == 0 else {}
    return Visit(process.returncode, stdout, stderr, folder, findings)


def assert_wait_share(job: Job, visit: Visit, within: float) -> None:
    assert visit.code == 0, visit.stderr
    seen = reader.read(visit.folder)
    truth = job.wait_share(min(one.t_begun for one in seen.stacks), max(one.t_done for one in seen.stacks))
    assert 0.2 < truth < 0.95  # a job that never waits, or only, would show nothing
    assert visit.findings["verdict"]["wait_share"] == pytest.approx(truth, abs=within)


def test_the_wait_share_is_that_of_the_jobs_own_stamps(job: Job, visit: Visit) -> None:
    assert_wait_share(job, visit, within=0.1)  # three eighths of the samples of a long visit


@pytest.mark.slow
def test_the_wait_share_of_a_long_visit(job: Job, tmp_path: Path) -> None:
    assert_wait_share(job, visited(job, tmp_path / "recording", duration_s=8), within=0.06)


def test_a_loader_bound_job_is_named_so_with_its_error(visit: Visit) -> None:
    verdict = visit.findings["verdict"]
    assert verdict["bottleneck"] in ("read", "decode")
    assert verdict["ceiling_speedup"] == pytest.approx(1 / (1 - verdict["wait_share"]), rel=0.02)
    found = [cause for cause in visit.findings["causes"] if cause["status"] == "found"]
    assert " points of its time (" in found[0]["evidence"][0]["text"]
    assert "timed.py" in verdict["headline"]


def test_what_needs_stamps_is_null(visit: Visit) -> None:
    verdict, run = visit.findings["verdict"], visit.findings["run"]
    assert (verdict["step_s"], verdict["wait_s"], run["steps"], run["exit_code"]) == (None, None, None, None)
    assert {stage["s_per_batch"] for stage in visit.findings["stages"]} == {None}
    assert visit.findings["loaders"] == []
    assert run["mode"] == "attach"


def test_the_recording_has_stacks_of_main_and_workers_and_no_journal(job: Job, visit: Visit) -> None:
    seen = reader.read(visit.folder)
    workers = {process.pid for process in psutil.Process(job.pid).children()}
    assert {sample.pid for sample in seen.stacks} == {job.pid, *workers}
    assert list((visit.folder / "journals").iterdir()) == []
    assert (seen.meta.attach.torch or "").split("+")[0].count(".") == 2
    assert (visit.folder / "report.html").stat().st_size > 10_000
    assert visit.stdout == ""
    assert "timed.py" in visit.stderr


def test_launcher_worker_and_main_stand_for_the_same_job(job: Job) -> None:
    worker = psutil.Process(job.pid).children()[0].pid
    assert [running_job.find(pid).mains for pid in (job.shell.pid, job.pid, worker)] == [(job.pid,)] * 3


def test_ctrl_c_ends_the_visit_early_and_still_reports(job: Job, tmp_path: Path) -> None:
    process = loaderprof("attach", str(job.shell.pid), "--duration", "500", "-o", str(tmp_path / "early"), "--no-html")
    end = time.monotonic() + PATIENCE_S
    while not any(child.name() == "py-spy" for child in psutil.Process(process.pid).children()):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    seen = reader.read(tmp_path / "early")
    assert sum(sample.count for sample in seen.stacks if sample.pid == job.pid) > 40
    assert findings_of(seen).verdict.wait_share is not None
    assert not (tmp_path / "early" / "report.html").exists()


def test_a_folder_that_holds_something_is_left_alone(job: Job, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years")
    with pytest.raises(OutputError):
        attach.attach(job.pid, duration_s=1, output=str(tmp_path / "full"))
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["thesis.txt"]


needs_rights = pytest.mark.skipif(
    subprocess.run([*NO_RIGHTS, "true"], capture_output=True, check=False).returncode != 0
    if shutil.which("setpriv")
    else True,
    reason="needs root and setpriv, to give up root's rights",
)


@needs_rights
def test_a_job_with_more_rights_than_ours_is_refused(job: Job, tmp_path: Path) -> None:
    process = loaderprof("attach", str(job.pid), "--duration", "2", "-o", str(tmp_path / "none"), place=NO_RIGHTS)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (2, "")
    sentence, hint = stderr.splitlines()
    assert sentence == f"loaderprof: py-spy is not allowed to look into process {job.pid}"
    assert hint == f"  {stacks_remedy()}"
    assert not (tmp_path / "none").exists()


# Last of those on the shared job: it ends it.
def test_the_job_goes_on_and_ends_as_if_nobody_had_been_there(job: Job, visit: Visit) -> None:
    assert visit.code == 0
    before = len(job.log.read_text().splitlines())
    end = time.monotonic() + PATIENCE_S
    while len(job.log.read_text().splitlines()) < before + 10:
        assert time.monotonic() < end
        time.sleep(0.05)
    output = job.end()
    assert output == f"{len(job.log.read_text().splitlines())} batches, True\n"
    assert job.shell.returncode == 0


@pytest.mark.slow
def test_a_job_without_workers_waits_while_it_makes_its_batches(tmp_path: Path) -> None:
    job = start(tmp_path / "log", "0", "2", "0", "8")
    try:
        folder = attach.attach(job.pid, duration_s=5, output=str(tmp_path / "recording"))
    finally:
        output = job.end()
    assert output.endswith(" batches, True\n")
    seen = reader.read(folder)
    found = findings_of(seen)
    truth = job.wait_share(min(one.t_begun for one in seen.stacks), max(one.t_done for one in seen.stacks))
    assert found.verdict.wait_share == pytest.approx(truth, abs=0.09)  # five seconds: 250 samples at most
    assert found.verdict.bottleneck in ("decode", "transform")


@pytest.mark.slow
@needs_rights
def test_no_right_is_needed_for_a_job_of_ones_own(tmp_path: Path) -> None:
    job = start(tmp_path / "log", "1", "2", "0", "2", place=NO_RIGHTS)
    process = loaderprof(
        "attach", str(job.pid), "--duration", "2", "-o", str(tmp_path / "seen"), "--no-html", place=NO_RIGHTS
    )
    try:
        _, stderr = process.communicate(timeout=PATIENCE_S)
    finally:
        output = job.end()
    assert process.returncode == 0, stderr
    assert output.endswith(" batches, True\n")
    assert findings_of(reader.read(tmp_path / "seen")).verdict.wait_share is not None


def test_the_command_line_says_the_same_as_one_sentence() -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    process = loaderprof("attach", str(done.pid))
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (2, "")
    assert stderr.splitlines() == [
        f"loaderprof: there is no process {done.pid}",
        "  find the training process:  pgrep -af python",
    ]


def test_a_visit_shorter_than_a_second_is_refused(tmp_path: Path) -> None:
    for seconds in (0.0, -3.0, float("nan")):
        with pytest.raises(UsageError):
            attach.attach(os.getpid(), duration_s=seconds, output=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["python3", "train.py", "--lr", "1"], ["train.py", "--lr", "1"]),
        (["python", "-u", "-X", "dev", "-W", "error", "train.py"], ["train.py"]),
        (["python", "-m", "package.train", "-v"], ["-m", "package.train", "-v"]),
        (["python", "-c", "print()"], ["python", "-c", "print()"]),
        (["python"], ["python"]),
    ],
)
def test_the_interpreter_is_no_part_of_the_jobs_command(words: list[str], command: list[str]) -> None:
    assert attach.job_command(words) == command
