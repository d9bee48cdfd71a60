"""The kinds of reading, made for real on this machine: the cause that each is told as."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).parents[1] / "cases"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "case", "causes"),
    [
        ("read", "http_latency", {"remote-latency"}),
        ("read", "small_files", {"small-files"}),
        ("read", "cold_files", {"disk-read"}),
        ("read", "mmap_faults", {"mapped-file"}),
        ("pools", "queue_threads", {"remote-latency"}),
        ("pools", "processes_that_wait", {"remote-latency"}),
    ],
)
def test_the_cause_of_a_real_read(tmp_path: Path, module: str, case: str, causes: set[str]) -> None:
    command = [sys.executable, "-m", "loaderprof", "run", "--no-html", "-o", "out", str(CASES / f"{module}.py"), case]
    subprocess.run(
        [*command, "--seconds", "8"], cwd=tmp_path, check=True, capture_output=True, timeout=170, env=dict(os.environ)
    )
    verdict = json.loads((tmp_path / "out/findings.json").read_text())["verdict"]
    if verdict["bottleneck"] == "unknown":
        pytest.skip("the machine was too busy for twenty steps")
    assert verdict["cause"] in causes
