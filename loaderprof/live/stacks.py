"""A job that is watched from outside at a glance: shares of the stack samples in its recording so far."""

from __future__ import annotations

from pathlib import Path

from loaderprof.analyze import samples
from loaderprof.analyze.glance import Glance, slowest_first
from loaderprof.analyze.stages import WORK
from loaderprof.capture.sources import lines_of
from loaderprof.diagnose.outside import MIN_SAMPLES
from loaderprof.findings import Stage
from loaderprof.recording import files, reader
from loaderprof.recording.meta import updated


class Stacks:
    """Looks at a job that is attached to, by the shares of the stack samples in its recording so far.

    Args:
        folder: the recording that is being made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read_bytes = 0
        self._glance = Glance(samples=0)

    def look(self, now_ns: int) -> Glance:  # noqa: ARG002 - as `Journals`
        """Return the job as it was in the windows that have ended."""
        stacks = self._folder / files.STACKS
        size = stacks.stat().st_size if stacks.exists() else 0
        if size > self._read_bytes:
            self._read_bytes = size
            self._glance = _of_stacks(self._folder)
        return self._glance


def _of_stacks(folder: Path) -> Glance:
    seen = reader.read(folder)
    seen.meta = updated(seen.meta, sources=lines_of({frame for sample in seen.stacks for frame in sample.frames}))
    counted = samples.look(seen)
    producers = counted.worker if counted.workers else counted.main
    costs: dict[Stage, float] = {stage: float(producers[stage]) for stage in (*WORK, "handover")}
    share = samples.waiting(counted).value if counted.main_samples >= MIN_SAMPLES else None
    return Glance(
        wait_share=share,
        workers=counted.workers,
        costs=slowest_first(costs),
        samples=counted.main_samples + counted.worker_samples,
    )
