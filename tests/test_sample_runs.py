"""The sample runs get their right verdict; what is kept beside them is read and rendered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import loaderprof
from benchmarks.sample_runs import SAMPLES, TRUTH, verdict
from loaderprof import run


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", TRUTH)
def test_a_sample_run_gets_its_right_verdict(name: str, tmp_path: Path) -> None:
    assert verdict(name, tmp_path / "recording")["bottleneck"] == TRUTH[name]


@pytest.mark.parametrize("name", TRUTH)
def test_the_kept_recording_reads_and_says_the_same(name: str) -> None:
    folder = SAMPLES / name / "recording"
    kept = json.loads((folder / "findings.json").read_text())
    found = loaderprof.read(folder).findings()
    assert found.verdict.bottleneck == kept["verdict"]["bottleneck"] == TRUTH[name]
    assert found.verdict.headline in run.screen(found, "recording", tty=False).replace("\n              ", " ")
