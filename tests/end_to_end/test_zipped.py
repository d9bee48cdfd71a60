"""Loops of two loaders that take their batches in turn, for the same steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from real import loaderprof

import loaderprof as package

PROGRAM = Path(__file__).parents[1] / "capture" / "programs" / "zipped.py"


@pytest.mark.slow
def test_the_loader_that_is_waited_for_leads(tmp_path: Path) -> None:
    done = loaderprof("run", "--no-html", "-o", "seen", str(PROGRAM), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = package.read(tmp_path / "seen").findings()
    assert found.verdict.bottleneck == "read"
    # 32 ms of making for every 4 ms of step: the wait of the one is no step of the other's.
    assert (found.verdict.wait_share or 0.0) > 0.6
    assert not any(cause.stage == "device" and cause.status == "found" for cause in found.causes)
    assert found.verdict.ceiling_speedup is not None
