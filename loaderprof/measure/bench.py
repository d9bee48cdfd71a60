"""Two ways to measure a job at some loader settings: windows of one running job, and a short run for each.

A bench gives samples per second and knows nothing of what they are compared with.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np

from loaderprof import formatting
from loaderprof.advise.changes.settings import version
from loaderprof.analyze.breakdown import break_down
from loaderprof.analyze.loop import Loop
from loaderprof.analyze.timeline import build
from loaderprof.capture.cpu_budget import cpu_budget
from loaderprof.measure import free_memory, rerun, trial
from loaderprof.measure.search import PREFETCH, Needs, SearchLimits, change, normal, worker_counts
from loaderprof.measure.tuned_job import EndedError, FailedError, NoWindowError, RefusedError, Span, Steered
from loaderprof.recording import reader
from loaderprof.recording.facts import LoaderFacts
from loaderprof.recording.reader import Recording
from loaderprof.replay.costs import Settings
from loaderprof.replay.edits import with_settings
from loaderprof.replay.fit import fit_model
from loaderprof.replay.job import ranks_a_host
from loaderprof.replay.model import LoopModel

# What a window holds: enough for a rate that is known to some 5 %. The first is longer: the replay is made from it.
BASE, WINDOW = Span(48, 1.2, 12.0), Span(16, 0.6, 8.0)
# Shorter epochs than this are measured whole: starting workers, and waiting for their first batch, is some percent of
# what the best settings leave of them.
SHORT_EPOCH_S = 6.0
# What an epoch's end leaves of a window counts from so many batches on.
MIN_BATCHES = 8
# A loop may validate or write a checkpoint within a window.
PATIENCE_S = 120.0
# How often in a row a job may end before its window is complete.
ENDINGS = 3
# A step this many times the usual one that takes this share of a window is the loop's business, not the loader's.
STALL_RATIO, STALL_SHARE = 10.0, 0.1
RUN_S = 10.0
# A replay further from the run that it was made of is not trusted.
MODEL_ERROR = 0.15


@dataclass(frozen=True, slots=True)
class Base:
    """The present settings as they were measured, and what is known from that.

    Attributes:
        settings: the script's own.
        rate: samples per second.
        loader: the variable that holds the loader.
        assigned: the variable that its making is assigned to, by which `--set` can tell it; None: not known.
        where: the line that goes over it.
        batch_size: samples in a batch; None where it is not known.
        limits: what there is for the loader.
        needs: what a batch takes.
        predicted: the replay's batches per second by settings; empty where it cannot be trusted.
        by_epoch: epochs are short and were measured whole.
        any_order: this torch can hand batches out as they are ready, and batches have an order.
        pin: there is a device to pin memory for.
        iterable: the dataset gives a stream of its own.
    """

    settings: Settings
    rate: float
    loader: str
    assigned: str | None
    where: str | None
    batch_size: int | None
    limits: SearchLimits
    needs: Needs
    predicted: Mapping[Settings, float]
    by_epoch: bool
    any_order: bool
    pin: bool
    iterable: bool = False


class Bench(Protocol):
    """Measures a job at settings."""

    way: Literal["windows", "runs"]

    @property
    def starts(self) -> int:
        """How often the job was started."""

    def base(self) -> Base:
        """Measure the present settings.

        Raises:
            LoaderprofError: the job fails, or shows nothing.
            RefusedError: this bench cannot measure this job.
        """

    def measure(self, settings: Settings, length: float) -> float:
        """Return samples per second.

        Args:
            settings: what to measure.
            length: how long, as a multiple of the usual.

        Raises:
            NoWindowError: the job fails with these settings, or shows nothing.
        """

    def needs(self) -> Needs:
        """Return what a batch and a worker were seen to take."""

    def border_s(self, settings: Settings) -> tuple[float, float] | None:
        """Return seconds to start and stop the workers of settings, and of an epoch; None where not measured."""


class Windows:
    """Windows of one running job."""

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
            rate=_rate(event) * per_batch,
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
                # A whole run without one window: the epochs that it has are what there is to measure.
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
        """Whether the epochs of the loader are too short for windows within them."""
        if event["cut"] and event["batches"] < MIN_BATCHES:
            return True
        length = self._job.facts["length"]
        return length is not None and length / _rate(event) < SHORT_EPOCH_S

    def measure(self, settings: Settings, length: float) -> float:
        """Return samples per second of one window."""
        assert self._base is not None, "base() comes first"
        span = replace(
            WINDOW,
            min_batches=math.ceil(max(WINDOW.min_batches, 3 * settings.num_workers) * length),
            min_s=WINDOW.min_s * length,
            by_epoch=self._by_epoch,
        )
        wanted = {key: getattr(settings, key) for key in settings.__dataclass_fields__}
        event = self._complete(wanted, span)
        rate = _rate(event)
        self._note(settings, event, rate)
        return rate * (self._base.batch_size or 1)

    def _complete(self, wanted: Mapping[str, Any], span: Span) -> dict[str, Any]:
        """Return a window that no epoch's or job's end has cut short."""
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

    def _note(self, settings: Settings, event: Mapping[str, Any], rate: float) -> None:
        self._rates[settings] = rate
        self._size = event["size"] or self._size
        if settings.num_workers and not settings.persistent_workers and event["open_ns"]:
            self._borders.setdefault(settings, []).append(event["open_ns"] / 1e9)
        pid = self._job.pid
        if settings.num_workers and pid is not None:
            seen = free_memory.worker_bytes(pid)
            self._worker_bytes = max(filter(None, (seen, self._worker_bytes)), default=None)

    def needs(self) -> Needs:
        """Return what a batch and a worker were seen to take; before any was, a worker as much as its parent."""
        pid = self._job.pid
        worker = self._worker_bytes or (free_memory.process_bytes(pid) if pid is not None else None)
        if self._size is None:
            return Needs(worker_bytes=worker)
        return Needs(float(self._size[0]), float(self._size[1]), worker)

    def border_s(self, settings: Settings) -> tuple[float, float] | None:
        """Return seconds to start the workers of settings, and of an epoch."""
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


class Runs:
    """A short run of the job for each measurement, the settings applied from outside."""

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
        """Run the job as it is."""
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
        """Return samples per second of one run."""
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
        """Return what a batch was seen to take."""
        return self._needs

    def border_s(self, settings: Settings) -> tuple[float, float] | None:  # noqa: ARG002 - the protocol's signature
        """Return None: a run's borders are in its pace where it has whole epochs."""
        return None


def present_settings(facts: LoaderFacts) -> Settings:
    """Return a loader's own settings."""
    return normal(
        Settings(
            int(facts.num_workers or 0),
            int(facts.prefetch_factor or 2),
            facts.in_order is not False,
            bool(facts.persistent_workers),
            bool(facts.pin_memory),
        )
    )


def predictions(
    seen: Recording, loop: Loop, present: Settings, cores: float, size: tuple[int, int] | None, *, by_epoch: bool
) -> dict[Settings, float]:
    """Return batches per second by the replay for what a search may try; empty where it errs too much.

    Args:
        seen: the recording of the present settings.
        loop: its loop.
        present: these settings.
        cores: the CPU budget.
        size: bytes and tensors of a batch; None: not measured.
        by_epoch: with the borders of epochs; else the steady pace.
    """
    base = fit_model(loop, break_down(seen, loop), cores, None, size=size)
    wait, step = loop.mean(loop.wait), loop.mean(loop.step)
    if base is None or wait is None or step is None or wait + step <= 0:
        return {}
    if abs(base.run().steady_step_s / (wait + step) - 1) > MODEL_ERROR:
        return {}
    grid = [
        normal(
            replace(present, num_workers=workers, prefetch_factor=factor, in_order=in_order, persistent_workers=kept)
        )
        for workers in worker_counts(cores, present.num_workers)
        for factor in PREFETCH
        for in_order in (True, False)
        for kept in ((False, True) if by_epoch else (present.persistent_workers,))
    ]
    return {each: _pace(base, each, by_epoch) for each in dict.fromkeys(grid)}


def _pace(base: LoopModel, settings: Settings, by_epoch: bool) -> float:
    wanted = {key: getattr(settings, key) for key in settings.__dataclass_fields__}
    changed = with_settings(base, **wanted)
    step_s = changed.pace_s() if by_epoch else changed.run().steady_step_s
    return 1.0 / step_s if step_s > 0 else 0.0


def _rate(event: Mapping[str, Any]) -> float:
    """Return batches per second of a window, steps in which the loop did something else left out."""
    if event["epochs"]:
        return float(sum(count for _, count in event["epochs"]) / sum(ns for ns, _ in event["epochs"]) * 1e9)
    steps, waits = (np.array(event[key], dtype=float) for key in ("step_ns", "wait_ns"))
    stalls = (steps > STALL_RATIO * np.median(steps)) & (steps > STALL_SHARE * (steps.sum() + waits.sum()))
    batches = event["batches"] - int(stalls.sum()) * event["group"]
    return float(batches / (steps[~stalls].sum() + waits[~stalls].sum()) * 1e9)


def _open_files(facts: Mapping[str, Any]) -> int | None:
    # Tensors handed over by name are unlinked files, not open ones.
    limit = facts["open_files"]
    return int(limit) if isinstance(limit, int) and limit > 0 else None


__all__ = ["Base", "Bench", "NoWindowError", "RefusedError", "Runs", "Windows"]
