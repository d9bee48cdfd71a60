"""Loaders whose batches a background thread takes: their waiting is not the training's."""

from __future__ import annotations

from pathlib import Path

from real import loaderprof

import loaderprof as package

PROGRAM = Path(__file__).parents[1] / "capture" / "programs" / "prefetcher.py"


def test_a_background_threads_waiting_is_not_the_trainings(tmp_path: Path) -> None:
    done = loaderprof("run", "--no-html", "-o", "seen", str(PROGRAM), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = package.read(tmp_path / "seen").findings()
    assert found.verdict.bottleneck == "transform"
    assert found.verdict.confidence != "high"
    assert (found.verdict.wait_s, found.verdict.wait_share, found.verdict.ceiling_speedup) == (None, None, None)
    assert any(note.startswith("a background thread takes the batches") for note in found.run.notes)
    assert found.advice
    assert all((each.expected.low or 0.0) <= 1.0 for each in found.advice)
