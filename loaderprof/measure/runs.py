"""A bench that measures settings by one short run of the job each, for jobs that cannot be measured in windows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from loaderprof import formatting
from loaderprof.advise.changes.settings import version
from loaderprof.analyze.loop import Loop
from loaderprof.analyze.timeline import build
from loaderprof.capture.cpu_budget import cpu_budget
from loaderprof.measure import free_memory, rerun, trial
from loaderprof.measure.bench import Base, predictions, present_settings
from loaderprof.measure.search import Needs, SearchLimits, change
from loaderprof.measure.tuned_job import FailedError
from loaderprof.recording import reader
from loaderprof.recording.reader import Recording
from loaderprof.replay.costs import Settings
from loaderprof.replay.job import ranks_a_host

# Seconds of a usual run, from its first loader's beginning: 20 steps (`rerun.MIN_STEPS`) where one takes half a second.
RUN_S = 10.0


class Runs:
    """Measures settings by one short run each, the settings applied from outside (see `bench.Bench`)."""

    way: Literal["windows", "runs"] = "runs"

    def __init__(
        self, command: tuple[str, ...], cwd: Path, log: IO[bytes], loader: str | None, tick: Callable[[], None]
    ) -> None:
        self._command, self._cwd, self._log, self._loader, self._tick = command, cwd, log, loader, tick
        self.starts = 0
        self._target: rerun.LoaderTarget | None = None
        self._present = Settings(0)
        self._pace: Literal["epochs", "steady"] = "steady"
        self._needs = Needs()

    def base(self) -> Base:
        """Run the job with its present settings."""
        with tempfile.TemporaryDirectory(prefix="loaderprof-") as name:
            try:
                seen = self._run(Path(name), {}, RUN_S)
            except FailedError as failure:
                raise rerun.TrialError(failure.reason, f"see {self._log.name}") from None
            timeline = build(seen)
            loops = [loop for loop in timeline.loops if self._loader in (None, loop.name)]
            if not loops:
                what = "a torch DataLoader" if self._loader is None else f"a loader called {self._loader}"
                raise rerun.TrialError(f"the job took no batch from {what}", "loaderprof run shows its loaders")
            loop = next((each for each in loops if each.training), loops[0])
            return self._based_on(seen, loop, ranks_a_host(timeline))

    def _based_on(self, seen: Recording, loop: Loop, ranks: int) -> Base:
        self._target = rerun.LoaderTarget(loop.name, loop.facts.where)
        self._present = present_settings(loop.facts)
        pace = rerun.pace(seen, self._target, {})
        by_epoch = pace.epochs is not None
        self._pace = "epochs" if by_epoch else "steady"
        rate = getattr(pace, self._pace)
        if rate is None:
            raise rerun.TrialError(
                f"{formatting.duration(RUN_S)} of the job do not hold {rerun.MIN_STEPS} steps",
                "loaderprof run, then loaderprof verify --seconds 60",
            )
        sizes = seen.tables["size"]
        if len(sizes):
            self._needs = Needs(float(np.median(sizes["bytes"])), float(np.median(sizes["tensors"])))
        limits = SearchLimits(cpu_budget().cores / ranks, free_memory.free_memory(), free_memory.free_shm())
        size, iterable = loop.facts.batch_size, bool(loop.facts.iterable)
        in_batch = (int(self._needs.batch_bytes or 0), int(self._needs.batch_tensors or 0))
        return Base(
            settings=self._present,
            rate=rate,
            loader=loop.name,
            assigned=None,
            where=self._target.where,
            batch_size=size if isinstance(size, int) else None,
            limits=limits,
            needs=self._needs,
            predicted=predictions(seen, loop, self._present, limits.cores, in_batch, by_epoch=by_epoch),
            by_epoch=by_epoch,
            any_order=not iterable and version(loop.process.header.torch) >= (2, 7),
            pin=len(seen.tables["device"]) > 0,
            iterable=iterable,
        )

    def measure(self, settings: Settings, length: float) -> float:
        """Return samples per second in one run."""
        assert self._target is not None, "base() comes first"
        wanted = change(settings, self._present)
        with tempfile.TemporaryDirectory(prefix="loaderprof-") as name:
            seen = self._run(Path(name), wanted, RUN_S * length)
            try:
                pace = rerun.pace(seen, self._target, wanted)
            except rerun.TrialError as error:
                raise FailedError(error.message) from None
        rate: float | None = getattr(pace, self._pace)
        if rate is None:
            raise FailedError(f"a run of {formatting.duration(RUN_S * length)} shows no pace")
        return rate

    def _run(self, folder: Path, settings: Mapping[str, Any], limit_s: float) -> Recording:
        self.starts += 1
        ended = trial.run(
            self._command,
            cwd=self._cwd,
            settings=settings,
            folder=folder,
            log=self._log,
            limit_s=limit_s,
            tick=lambda _: self._tick(),
        )
        if not ended.stopped and ended.code != 0:
            raise FailedError(f"the job ended with exit code {ended.code}{rerun.last_line(self._log)}")
        return reader.read(folder)

    def needs(self) -> Needs:
        """Return the memory and files that a batch took; workers are not measured."""
        return self._needs

    def border_s(self, settings: Settings) -> tuple[float, float] | None:  # noqa: ARG002 - the protocol's signature
        """Return None: where epochs are short, a run's throughput already includes starting the workers."""
        return None
