"""The sample runs get their right verdict; what is kept beside them is read and rendered."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from benchmarks.sample_runs import SAMPLES, TRUTH, verdict
from gpu.keep import CASES

import loaderprof
from loaderprof.report.terminal import screen


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
    # The headline may be wrapped, with the confidence beside its first line.
    assert found.verdict.headline[:25] in screen(found, "recording", tty=False)


KEPT_OF_GPUS = sorted(path.parent.name for path in SAMPLES.glob("gpu_*/recording"))


@pytest.mark.skipif(not KEPT_OF_GPUS, reason="no recording of a GPU is kept yet: python tests/gpu/keep.py makes them")
@pytest.mark.parametrize("name", KEPT_OF_GPUS)
def test_a_kept_recording_of_a_gpu_reads_and_says_the_same(name: str) -> None:
    folder = SAMPLES / name / "recording"
    kept = json.loads((folder / "findings.json").read_text())
    found = loaderprof.read(folder).findings()
    assert found.run.device == "cuda"
    assert found.verdict.bottleneck == kept["verdict"]["bottleneck"]
    assert found.verdict.bottleneck in CASES[name][1]
    assert found.phases is not None
    assert found.phases.clock == "device"
    assert found.gpus


def test_each_screenshot_is_in_the_documentation_and_all_are_small() -> None:
    folder = SAMPLES.parent / "docs" / "screenshots"
    shown = re.findall(r"\(../screenshots/([\w.-]+\.png)\)", (folder.parent / "reports" / "page.md").read_text())
    assert sorted(shown) == sorted(path.name for path in folder.iterdir())
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_500_000
