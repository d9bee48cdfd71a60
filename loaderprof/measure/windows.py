"""A bench that measures settings in windows of one running job, whose loader changes its settings between them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import IO, Any, Literal

import numpy as np

from loaderprof.advise.changes.settings import version
from loaderprof.analyze.timeline import build
from loaderprof.capture.cpu_budget import cpu_budget
from loaderprof.measure import free_memory, rerun
from loaderprof.measure.bench import Base, predictions, present_settings
from loaderprof.measure.search import Needs, SearchLimits
from loaderprof.measure.tuned_job import EndedError, FailedError, Span, Steered
from loaderprof.recording import reader
from loaderprof.recording.facts import LoaderFacts
from loaderprof.replay.costs import Settings

# The size of a window: its throughput is then known to some 5 %. The first is longer: the replay is fitted to it.
BASE, WINDOW = Span(48, 1.2, 12.0), Span(16, 0.6, 8.0)
# Shorter epochs than this are measured whole: starting workers, and waiting for their first batch, is then some percent
# of an epoch even with the best settings.
SHORT_EPOCH_S = 6.0
# A window that the end of its epoch cuts short counts if it has so many batches.
MIN_BATCHES = 8
# How long a window may last: a loop may validate or write a checkpoint meanwhile.
PATIENCE_S = 120.0
# How often in a row a job may end before its window is complete.
ENDINGS = 3
# A step that takes this many times the median, and this share of its window, is a validation or a checkpoint, not the
# loader's doing.
STALL_RATIO, STALL_SHARE = 10.0, 0.1


class Windows:
    """Measures settings in windows of one running job (see `bench.Bench`)."""

    way: Literal["windows", "runs"] = "windows"

    def __init__(self, job: Steered, log: IO[bytes]) -> None:
        self._job, self._log = job, log
        self._base: Base | None = None
        self._by_epoch = False
        self._borders: dict[Settings, list[float]] = {}
        self._rates: dict[Settings, float] = {}
        self._worker_bytes: float | None = None
        self._size: tuple[int, int] | None = None

    @property
    def starts(self) -> int:
        """How often the job was started."""
        return self._job.starts

    def base(self) -> Base:
        """Measure the present settings."""
        event = self._present_window()
        facts = self._job.facts
        loader, settings = facts["facts"], present_settings(LoaderFacts(**facts["present"]))
        size = loader.get("batch_size")
        self._size = event["size"]
        per_batch = size if isinstance(size, int) else 1
        limits = SearchLimits(cpu_budget().cores, free_memory.free_memory(), free_memory.free_shm(), _open_files(facts))
        self._base = Base(
            settings=settings,
            rate=batches_per_s(event) * per_batch,
            loader=str(loader.get("name") or "loader"),
            assigned=loader.get("assigned"),
            where=loader.get("where"),
            batch_size=size if isinstance(size, int) else None,
            limits=limits,
            needs=self.needs(),
            predicted=self._predictions(event, settings, limits),
            by_epoch=self._by_epoch,
            any_order=version(facts["torch"]) >= (2, 7),
            pin=bool(facts["cuda"]),
        )
        return self._base

    def _present_window(self) -> dict[str, Any]:
        """Return the first window, of whole epochs where they are short."""
        event: dict[str, Any] = {}
        for _ in range(ENDINGS):
            span = replace(BASE, by_epoch=self._by_epoch)
            try:
                event = self._job.measure({}, span, PATIENCE_S)
            except EndedError:
                # The whole run is shorter than one window: measure its epochs instead.
                self._by_epoch = True
                continue
            except FailedError as failure:
                raise rerun.TrialError(
                    f"{failure.reason}{rerun.last_line(self._log)}", f"see {self._log.name}"
                ) from None
            if self._by_epoch or not self._is_short(event):
                return event
            self._by_epoch = True
        raise rerun.TrialError("the job ends before its loader has shown its pace", "give it more epochs, or more data")

    def _is_short(self, event: Mapping[str, Any]) -> bool:
        """Return whether the epochs of the loader are too short for windows within them."""
        if event["cut"] and event["batches"] < MIN_BATCHES:
            return True
        length = self._job.facts["length"]
        return length is not None and length / batches_per_s(event) < SHORT_EPOCH_S

    def measure(self, settings: Settings, length: float) -> float:
        """Return samples per second in one window."""
        assert self._base is not None, "base() comes first"
        span = replace(
            WINDOW,
            min_batches=math.ceil(max(WINDOW.min_batches, 3 * settings.num_workers) * length),
            min_s=WINDOW.min_s * length,
            by_epoch=self._by_epoch,
        )
        wanted = {key: getattr(settings, key) for key in settings.__dataclass_fields__}
        event = self._complete(wanted, span)
        rate = batches_per_s(event)
        self._keep_costs(settings, event, rate)
        return rate * (self._base.batch_size or 1)

    def _complete(self, wanted: Mapping[str, Any], span: Span) -> dict[str, Any]:
        """Return a window that has enough batches, trying again where the epoch or the job ended first."""
        for _ in range(ENDINGS):
            try:
                event = self._job.measure(wanted, span, PATIENCE_S)
            except EndedError:
                continue
            except FailedError as failure:
                raise FailedError(f"{failure.reason}{rerun.last_line(self._log)}") from None
            if not event["cut"] or event["batches"] >= MIN_BATCHES:
                return event
        raise EndedError("the job or its epochs ended before the window was complete")

    def _keep_costs(self, settings: Settings, event: Mapping[str, Any], rate: float) -> None:
        self._rates[settings] = rate
        self._size = event["size"] or self._size
        if settings.num_workers and not settings.persistent_workers and event["open_ns"]:
            self._borders.setdefault(settings, []).append(event["open_ns"] / 1e9)
        pid = self._job.pid
        if settings.num_workers and pid is not None:
            seen = free_memory.worker_bytes(pid)
            self._worker_bytes = max(filter(None, (seen, self._worker_bytes)), default=None)

    def needs(self) -> Needs:
        """Return what a batch and a worker took; a worker is assumed to take as much as the job before one was measured."""
        pid = self._job.pid
        worker = self._worker_bytes or (free_memory.process_bytes(pid) if pid is not None else None)
        if self._size is None:
            return Needs(worker_bytes=worker)
        return Needs(float(self._size[0]), float(self._size[1]), worker)

    def border_s(self, settings: Settings) -> tuple[float, float] | None:
        """Return the seconds that starting the workers takes, and those of an epoch; None where not measured."""
        length, starts = self._job.facts["length"], self._borders.get(settings)
        if self._by_epoch or not starts or length is None:
            return None
        return statistics.median(starts), length / self._rates[settings]

    def _predictions(self, event: Mapping[str, Any], settings: Settings, limits: SearchLimits) -> dict[Settings, float]:
        seen = reader.read(self._job.folder)
        loops = [loop for loop in build(seen).loops if event["iterator"] in loop.iterators]
        if not loops:
            return {}
        return predictions(seen, loops[0], settings, limits.cores, self._size, by_epoch=self._by_epoch)


def batches_per_s(window: Mapping[str, Any]) -> float:
    """Return batches per second in a window, without steps in which the loop validated or wrote a checkpoint.

    Args:
        window: the record of a window, as `Steered.measure` returns it.
    """
    if window["epochs"]:
        return float(sum(count for _, count in window["epochs"]) / sum(ns for ns, _ in window["epochs"]) * 1e9)
    steps, waits = (np.array(window[key], dtype=float) for key in ("step_ns", "wait_ns"))
    stalls = (steps > STALL_RATIO * np.median(steps)) & (steps > STALL_SHARE * (steps.sum() + waits.sum()))
    batches = window["batches"] - int(stalls.sum()) * window["group"]
    return float(batches / (steps[~stalls].sum() + waits[~stalls].sum()) * 1e9)


def _open_files(facts: Mapping[str, Any]) -> int | None:
    # Tensors handed over by name are unlinked files, not open ones.
    limit = facts["open_files"]
    return int(limit) if isinstance(limit, int) and limit > 0 else None
