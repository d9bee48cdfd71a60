"""Hand-written pipelines run for real: what holds them up, and threads or processes as the advice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CASES = Path(__file__).parent / "cases"


def run(folder: Path, case: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "loaderprof", "run", "--no-html", "-o", "out", str(CASES / "pools.py"), case]
    subprocess.run(
        [*command, "--seconds", "8"], cwd=folder, check=True, capture_output=True, timeout=170, env=dict(os.environ)
    )
    found: dict[str, Any] = json.loads((folder / "out/findings.json").read_text())
    if found["verdict"]["bottleneck"] == "unknown":
        pytest.skip("the machine was too busy for twenty steps")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "bottleneck", "cause", "who", "advice"),
    [
        ("threads_that_parse", "contention", "interpreter-lock", "4 threads", "processes"),
        ("processes_that_wait", "read", "remote-latency", "processes", "threads"),
        ("queue_threads", "read", "remote-latency", "2 threads", "requests-in-flight"),
        ("threads_that_unpack_jpeg", "decode", "jpeg-decode", "3 threads", None),
        ("pool_map", "transform", "slow-transform", "2 processes", None),
    ],
)
def test_what_holds_up_a_pipeline_and_what_to_change(
    tmp_path: Path, case: str, bottleneck: str, cause: str, who: str, advice: str | None
) -> None:
    found = run(tmp_path, case)
    verdict = found["verdict"]
    # Taking the parsing away gains as much as taking the lock away (the label in tests/cases/pools.py allows both), and
    # more on a busy machine, where threads wait for a core as often as for the lock, which may then not be told at all.
    if case == "threads_that_parse" and verdict["bottleneck"] == "decode":
        assert verdict["cause"] == "record-parsing"
        if cause not in [each["id"] for each in found["causes"] if each["status"] == "found"]:
            return
    else:
        assert (verdict["bottleneck"], verdict["cause"]) == (bottleneck, cause)
        assert who in verdict["headline"]
    assert advice is None or advice in [each["id"] for each in found["advice"]]
    assert "num-workers" not in [each["id"] for each in found["advice"]]
