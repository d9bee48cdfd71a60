"""The record of one iterator, driven by hand: which epoch the batches of a quick loop are counted in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loaderprof.analyze.timeline import build
from loaderprof.capture.hooks import process
from loaderprof.capture.hooks.iteration import Iteration
from loaderprof.capture.hooks.iterators import next_data
from loaderprof.recording import files, reader

# Longer than any test: a sum that has begun stays open until its epoch ends.
OPEN_NS = 3600 * 10**9


class Batches:
    """Stands in for torch's iterator: `_next_data` is hooked, and ends after so many batches."""

    def __init__(self) -> None:
        self.left = 0
        self._loaderprof = Iteration.of_iterable(self, "{}", time.perf_counter_ns(), 0)

    @staticmethod
    def _original(self: Batches) -> int:
        if not self.left:
            raise StopIteration
        self.left -= 1
        return self.left

    def take(self, count: int) -> None:
        self.left += count
        for _ in range(count):
            HOOKED(self)

    def end(self) -> None:
        with pytest.raises(StopIteration):
            HOOKED(self)


HOOKED: Any = next_data(Batches._original)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Batches]:
    monkeypatch.setenv("LOADERPROF_JOURNALS", str(tmp_path / "journals"))
    (tmp_path / "journals").mkdir()
    monkeypatch.setattr(process.process, "__dict__", vars(process.JobProcess()))
    yield Batches()
    assert not process.process.off, "capture stopped"


@pytest.mark.parametrize("summed", [0, 1, 5])
def test_a_sum_ends_with_its_epoch(batches: Batches, tmp_path: Path, summed: int) -> None:
    """Also one that has only begun, because its first request met the end: workers are kept, the iterator goes on."""
    batches.take(1)
    batches._loaderprof.sums = OPEN_NS
    batches.take(summed)
    batches.end()
    batches._loaderprof.restarted(time.perf_counter_ns(), 0, 0)
    batches.take(3)
    batches.end()
    files.write_meta(tmp_path, {})
    (loop,) = build(reader.read(tmp_path)).loops
    assert [epoch.batches for epoch in loop.epochs] == [1 + summed, 3]
    assert (loop.count[loop.epoch == 1] == 1).all()
