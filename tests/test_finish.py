"""Completing a recording that was just made: it is concluded from once, whatever is tried on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made import Fetch, Plan, one_loop
from truths import LOAD, RESIZE

from loaderprof import conclude
from loaderprof.capture import decoders
from loaderprof.finish import finish
from loaderprof.recording import reader

MEASURED = {"files": 12, "pixels": 1e9, "format": "JPEG", "cpu_s": {"PIL": 0.012, "opencv": 0.004}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fetch = Fetch(cpu=0.08, operators=[(LOAD, 0.06, 0.06), (RESIZE, 0.02, 0.02)])
    return one_loop(tmp_path / "r", Plan(workers=2, wait=0.035, step=0.005, step_cpu=0.0, fetch=fetch), 2).folder


@pytest.mark.parametrize(("measured", "to"), [(MEASURED, "opencv"), (None, None)])
def test_decoders_are_tried_and_the_run_is_studied_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, measured: dict[str, Any] | None, to: str | None
) -> None:
    studied, tried = [], []

    def build(recording: reader.Recording, build: Any = conclude.build) -> Any:
        studied.append(recording)
        return build(recording)

    def measure(paths: object) -> dict[str, Any] | None:
        tried.append(paths)
        return measured

    monkeypatch.setattr(conclude, "build", build)
    monkeypatch.setattr(decoders, "measure", measure)
    found = finish(folder, html=False)
    assert (len(studied), len(tried)) == (1, 1)
    (advice,) = (each for each in found.advice if each.id == "faster-decoder")
    assert advice.change.get("to") == to
    # What was kept leads to the same findings when the recording is read again.
    assert conclude.findings_of(reader.read(folder)) == found
