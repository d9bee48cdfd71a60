"""A loop under loaderprof against the bare one: every byte it trains on, draws and prints must be the same."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from loaderprof.recording import reader

PROGRAMS = Path(__file__).parents[1] / "programs"
LOOPS = str(PROGRAMS / "loops.py")
GENERATED = str(PROGRAMS / "generated.py")
FAST = (
    "map_style",
    "iterable",
    "iterable_workers",
    "getitems",
    "persistent",
    "prefetch_generator",
    "no_batching",
    "batch_sampler",
    "subclass",
    "early_break",
    "nested_validation",
    "zipped",
    "iterator_reuse",
    "alternating",
    "raising",
    "warning",
    "augmented",
    "thread_pool",
    "inner_loader",
    "forking",
    "copies",
    "curious",
    "lifetimes",
    "odd_objects",
    "own_functions",
)
SLOW = ("map_workers", "spawn", "forkserver", "fork", "weighted", "stateful", "compositions")
# Every batch but the first of a process is timed in depth: as hard on the job as it gets.
DEEP = {"LOADERPROF_DEPTH_PERIOD_NS": "0"}
# Two jobs at once on few cores: threads that wait for each other by spinning would take most of the time.
CALM = {"OMP_NUM_THREADS": "1"}
QUICK = {**CALM, "STEP_BY_HAND": "1"}
GIVEN_UP = re.compile(
    r"Exception ignored in: <function _MultiProcessingDataLoaderIter.__del__ at \w+>\nTraceback \(most recent call last\):\n"
    r"(?: .*\n)+AssertionError: can only test a child process\n"
)


@dataclass(frozen=True)
class Outcome:
    sections: dict[str, str]
    stdout: str
    stderr: str
    code: int
    folder: Path


def start(folder: Path, *arguments: str, hooked: bool, **environment: str) -> subprocess.Popen[str]:
    ours = ["-m", "loaderprof", "run", "-o", str(folder), "--no-html"] if hooked else []
    return subprocess.Popen(
        [sys.executable, *ours, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def ended(process: subprocess.Popen[str], folder: Path) -> Outcome:
    stdout, stderr = process.communicate(timeout=300)
    sections = {}
    for part in stdout.split("# ")[1:]:
        name, _, lines = part.partition("\n")
        sections[name] = lines
    return Outcome(sections, stdout, stderr, process.returncode, folder)


def pair(folder: Path, *arguments: str, **environment: str) -> tuple[Outcome, Outcome]:
    """The bare and the hooked outcome, run at the same time."""
    both = [start(folder / "run", *arguments, hooked=hooked, **environment) for hooked in (False, True)]
    bare, hooked = (ended(process, folder / "run") for process in both)
    return bare, hooked


def assert_seen(outcome: Outcome, least: int = 100) -> None:
    """Capture was there all along: else the comparison proves nothing."""
    assert "capture stopped" not in outcome.stderr
    assert "capture is off" not in outcome.stderr
    seen = reader.read(outcome.folder)
    assert len(seen.tables["take"]) > least
    assert len(seen.tables["operator"]) > least


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Outcome]:
    return pair(tmp_path_factory.mktemp("fast"), LOOPS, *FAST, **DEEP, **QUICK)


@pytest.mark.parametrize("name", FAST)
def test_same(fast: tuple[Outcome, Outcome], name: str) -> None:
    bare, hooked = fast
    assert "after" in bare.sections[name]
    assert hooked.sections[name] == bare.sections[name]


def test_same_end(fast: tuple[Outcome, Outcome]) -> None:
    bare, hooked = fast
    assert (bare.code, hooked.code) == (0, 0)
    assert hooked.stdout == bare.stdout
    # In a forked process torch before 2.6 now and then gives up an iterator of its parent's, and says so.
    assert "Traceback" not in GIVEN_UP.sub("", bare.stderr + hooked.stderr)
    assert_seen(hooked)


def test_difference_is_caught(fast: tuple[Outcome, Outcome], tmp_path: Path) -> None:
    """The negative control: one number drawn too many."""
    disturbed = ended(start(tmp_path, LOOPS, "map_style", hooked=False, DISTURB="map_style", **QUICK), tmp_path)
    assert disturbed.code == 0
    assert disturbed.sections["map_style"] != fast[0].sections["map_style"]
    assert disturbed.sections["map_style"].splitlines()[:-1] == fast[0].sections["map_style"].splitlines()[:-1]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("deep", [True, False])
def test_all_same(tmp_path: Path, deep: bool) -> None:
    bare, hooked = pair(tmp_path, LOOPS, *SLOW, *FAST, **(DEEP if deep else {}))
    for name in (*SLOW, *FAST):
        assert hooked.sections[name] == bare.sections[name], name
    assert (bare.code, hooked.code) == (0, 0)
    assert hooked.stdout == bare.stdout


def assert_same(bare: Outcome, hooked: Outcome, least: int) -> None:
    assert list(hooked.sections) == list(bare.sections)
    for settings, lines in bare.sections.items():
        assert hooked.sections[settings] == lines, settings
    assert (bare.code, hooked.code) == (0, 0), bare.stderr
    assert hooked.stdout == bare.stdout
    # Warnings of workers of several jobs come in any order.
    warned = [sorted(line for line in each.stderr.splitlines() if "Warning" in line) for each in (bare, hooked)]
    assert warned[0] == warned[1]
    assert_seen(hooked, least)


@pytest.mark.slow
def test_generated_loaders(tmp_path: Path) -> None:
    bare, hooked = pair(tmp_path, GENERATED, "1", "6", **DEEP, **QUICK)
    assert len(bare.sections) == 6
    assert_same(bare, hooked, least=25)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("seed", "count", "method"),
    [
        ("1", "12", ""),
        ("2", "100", ""),
        ("3", "100", ""),
        ("4", "100", ""),
        ("5", "6", "spawn"),
        ("6", "12", "forkserver"),
    ],
)
def test_many_generated_loaders(tmp_path: Path, seed: str, count: str, method: str) -> None:
    bare, hooked = pair(tmp_path, GENERATED, seed, count, *filter(None, [method]), **DEEP, **CALM)
    assert len(bare.sections) == int(count)
    assert_same(bare, hooked, least=3 * int(count))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_generated_loaders_of_two_ranks(tmp_path: Path) -> None:
    """Losses and batches of both ranks of one training."""
    lines = {}
    for hooked in (False, True):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        address = ["--master-addr=127.0.0.1", f"--master-port={port}"]
        command = ["-m", "torch.distributed.run", "--nproc-per-node=2", *address, GENERATED, "7", "20"]
        folder = tmp_path / str(hooked)
        folder.mkdir()
        ours = ["-m", "loaderprof", "run", "-o", "run", "--no-html", "--", sys.executable] if hooked else []
        done = subprocess.run(
            [sys.executable, *ours, *command],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=250,
            env={**os.environ, **DEEP, **CALM},
        )
        assert done.returncode == 0, done.stderr
        lines[hooked] = [(folder / f"rank-{rank}").read_text() for rank in (0, 1)]
    assert lines[True] == lines[False]
    assert lines[True][0] != lines[True][1]
    assert len(reader.read(tmp_path / "True" / "run").tables["take"]) > 100


ENDS = {"0": 0, "7": 7, "exception": 1, "term": -signal.SIGTERM, "kill": -signal.SIGKILL, "exit": 5}


@pytest.mark.parametrize(
    "ways", [("7", "exception", "kill"), pytest.param(("0", "term", "exit"), marks=pytest.mark.slow)], ids="-".join
)
def test_exit_codes(tmp_path: Path, ways: tuple[str, ...]) -> None:
    """The job's own status, and a report all the same. All at once: most of it is waiting for torch to be imported."""
    ends = str(PROGRAMS / "ends.py")
    jobs = {how: start(tmp_path / how, ends, how, hooked=True) for how in ways}
    outcomes = {how: ended(job, tmp_path / how) for how, job in jobs.items()}
    assert {how: each.code for how, each in outcomes.items()} == {how: ENDS[how] for how in ways}
    for how, each in outcomes.items():
        assert each.stdout.splitlines()[-1] == "10 batches", how
        assert (each.folder / "findings.json").is_file(), how
        assert reader.read(each.folder).tables["take"]["count"].sum() == 10, how
        assert ("ValueError: as planned" in each.stderr) == (how == "exception")


@pytest.mark.slow
@pytest.mark.parametrize("how", ENDS)
def test_exit_codes_bare(tmp_path: Path, how: str) -> None:
    assert ended(start(tmp_path, str(PROGRAMS / "ends.py"), how, hooked=False), tmp_path).code == ENDS[how]
