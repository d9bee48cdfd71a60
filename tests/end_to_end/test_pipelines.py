"""Hand-written pipelines run for real: what holds them up, and threads or processes as the advice."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

CASES = Path(__file__).parents[1] / "cases"
# Cores that other programs kept busy, beyond which what holds up a pipeline is another matter than the label says.
BUSY_CORES = 0.3


@dataclass
class Ran:
    findings: dict[str, Any]
    others_cores: float


def busy_s() -> float:
    """Return seconds of CPU that the machine spent so far, also for others than those it is lent to."""
    spent = psutil.cpu_times()
    return float(spent.user + spent.system + getattr(spent, "steal", 0.0))


def own_s() -> float:
    """Return seconds of CPU of the children of this process that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def run(folder: Path, case: str) -> Ran:
    command = [sys.executable, "-m", "loaderprof", "run", "--no-html", "-o", "out", str(CASES / "pools.py"), case]
    begun, busy, own = time.perf_counter(), busy_s(), own_s()
    subprocess.run(
        [*command, "--seconds", "8"], cwd=folder, check=True, capture_output=True, timeout=170, env=dict(os.environ)
    )
    others = (busy_s() - busy - (own_s() - own)) / (time.perf_counter() - begun)
    return Ran(json.loads((folder / "out/findings.json").read_text()), others)


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
    ran = run(tmp_path, case)
    verdict = ran.findings["verdict"]
    causes = [each["id"] for each in ran.findings["causes"] if each["status"] == "found"]
    message, advised = (verdict["bottleneck"], verdict["cause"]), [each["id"] for each in ran.findings["advice"]]
    right, advised_so = message == (bottleneck, cause), advice is None or advice in advised
    # What other programs disturb may be told otherwise, but never with confidence.
    excused = ran.others_cores > BUSY_CORES and (right or verdict["confidence"] != "high")
    if excused and not (right and advised_so):
        pytest.skip(f"other programs kept {ran.others_cores:.1f} cores busy: {message}, {advised}")
    # Taking the parsing away gains as much as taking the lock away: the label in tests/cases/pools.py allows both.
    if case == "threads_that_parse" and message[0] == "decode":
        assert verdict["cause"] == "record-parsing"
        assert cause in causes
    else:
        assert message == (bottleneck, cause)
        assert who in verdict["headline"]
    assert advice is None or advice in advised
    assert "num-workers" not in advised
