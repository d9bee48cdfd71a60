"""Why a job ended: real jobs that end by the errors of the field, and what is said of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "capture" / "programs" / "endings.py"


EXPLAINED = {
    "missing-guard": 'no `if __name__ == "__main__":`',
    "unpicklable": "cannot be pickled",
    "open-files": "ran out of open files",
    "shared-memory": "/dev/shm was full (",
    "killed-worker": "killed from outside",
    "timed-out": "within the loader's `timeout`",
}


def ended(folder: Path, kind: str, place: tuple[str, ...] = ()) -> tuple[int, str, str | None]:
    """Run a job, and return its exit code, what stood on stderr, and why it ended by the findings."""
    command = [sys.executable, "-m", "loaderprof", "run", "--no-html", "-o", "seen", str(PROGRAM), kind]
    done = subprocess.run(
        [*place, *command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=dict(os.environ, COLUMNS="400"),
    )
    return done.returncode, done.stderr, json.loads((folder / "seen/findings.json").read_text())["run"]["failure"]


# Each takes a job that imports torch, some 2 s: the fast suite runs one that ends before its workers and one after.
FAST = ("unpicklable", "killed-worker")


@pytest.mark.parametrize(
    "kind", [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in EXPLAINED]
)
def test_the_error_that_ended_the_job_is_explained(tmp_path: Path, kind: str) -> None:
    code, said, why = ended(tmp_path, kind)
    assert code == 1
    assert EXPLAINED[kind] in str(why)
    assert f"Ended         {str(why)[:60]}" in said


@pytest.mark.slow
def test_a_full_shared_memory_is_explained(tmp_path: Path) -> None:
    small = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=8m tmpfs /dev/shm && exec "$@"', "sh")
    if shutil.which("unshare") is None or subprocess.run([*small, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a /dev/shm of its own")
    code, said, why = ended(tmp_path, "large-batches", small)
    assert code == 1
    assert "/dev/shm was full (8.4 MB)" in str(why)
    assert "No space left on device" in said


@pytest.fixture
def few_megabytes() -> Iterator[tuple[str, ...]]:
    """Yield the beginning of a command, which the kernel then lets have 800 MiB."""
    group = Path(f"/sys/fs/cgroup/memory/loaderprof-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text("800M")
    except OSError:
        pytest.skip("no right to make a control group of memory")
    yield ("sh", "-c", f'echo $$ > {group}/tasks && exec "$@"', "sh")
    group.rmdir()


@pytest.mark.slow
def test_a_worker_that_the_kernel_killed_is_explained(tmp_path: Path, few_megabytes: tuple[str, ...]) -> None:
    code, said, why = ended(tmp_path, "grows", few_megabytes)
    assert code == 1
    assert "killed from outside, as the kernel does when memory runs out" in str(why)
    assert "exited unexpectedly" in said or "killed by signal: Killed" in said


def test_the_users_own_error_is_left_to_its_traceback(tmp_path: Path) -> None:
    code, said, why = ended(tmp_path, "own")
    assert (code, why) == (1, None)
    assert "ValueError: Can the user explain this?" in said
    assert "Ended" not in said
