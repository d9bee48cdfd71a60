"""Why a job ended: real jobs that end by the errors of the field, and what is said of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "capture" / "programs" / "endings.py"


def ended(folder: Path, kind: str) -> tuple[int, str, str | None]:
    """Run a job, and return its exit code, what stood on stderr, and why it ended by the findings."""
    command = [sys.executable, "-m", "loaderprof", "run", "--no-html", "-o", "seen", str(PROGRAM), kind]
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=dict(os.environ, COLUMNS="400"),
    )
    return done.returncode, done.stderr, json.loads((folder / "seen/findings.json").read_text())["run"]["failure"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing-guard", 'no `if __name__ == "__main__":`'),
        ("unpicklable", "cannot be pickled"),
        ("open-files", "ran out of open files"),
        ("shared-memory", "/dev/shm was full ("),
        ("killed-worker", "killed from outside"),
        ("timed-out", "within the loader's `timeout`"),
    ],
)
def test_the_error_that_ended_the_job_is_explained(tmp_path: Path, kind: str, words: str) -> None:
    code, said, why = ended(tmp_path, kind)
    assert code == 1
    assert words in str(why)
    assert f"Ended         {str(why)[:60]}" in said


def test_the_users_own_error_is_left_to_its_traceback(tmp_path: Path) -> None:
    code, said, why = ended(tmp_path, "own")
    assert (code, why) == (1, None)
    assert "ValueError: Can the user explain this?" in said
    assert "Ended" not in said
