"""What measures a job at some loader settings, and what the search is to know of the present ones.

There are two kinds of bench: windows of one running job (`windows.py`) and one short run per measurement (`runs.py`).
A bench returns samples per second and does not compare them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from loaderprof.analyze.breakdown import break_down
from loaderprof.analyze.loop import Loop
from loaderprof.measure.search import PREFETCH, Needs, SearchLimits, normal, worker_counts
from loaderprof.recording.facts import LoaderFacts
from loaderprof.recording.reader import Recording
from loaderprof.replay.costs import Settings
from loaderprof.replay.edits import with_settings
from loaderprof.replay.fit import fit_model
from loaderprof.replay.model import LoopModel

# A replay further from the run that it was fitted to is not used.
MODEL_ERROR = 0.15


@dataclass(frozen=True, slots=True)
class Base:
    """The present settings, their measured throughput, and what the search needs to know about the job.

    Attributes:
        settings: the script's own.
        rate: samples per second.
        loader: the variable that holds the loader.
        assigned: the variable that the new loader is assigned to, by which `--set` identifies it; None: not known.
        where: the line of the loop.
        batch_size: samples in a batch; None where it is not known.
        limits: the cores, memory and open files that the loader may use.
        needs: the memory and files that a batch and a worker take.
        predicted: the replay's batches per second by settings; empty where its error is too large.
        by_epoch: epochs are short and were measured whole.
        any_order: `in_order` may be changed: this torch has it, and the dataset is not iterable.
        pin: there is a device to pin memory for.
        iterable: the dataset is an IterableDataset.
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
            LoaderprofError: the job fails, or takes too few batches.
            RefusedError: this bench cannot measure this job.
        """

    def measure(self, settings: Settings, length: float) -> float:
        """Return samples per second.

        Args:
            settings: what to measure.
            length: how long to measure, as a multiple of the usual duration.

        Raises:
            NoWindowError: the job fails with these settings, or takes too few batches.
        """

    def needs(self) -> Needs:
        """Return the memory and files that a batch and a worker took so far."""

    def border_s(self, settings: Settings) -> tuple[float, float] | None:
        """Return the seconds that starting the workers takes, and those of an epoch; None where not measured."""


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
    """Return the replay's batches per second for all settings that a search may try.

    Args:
        seen: the recording of the present settings.
        loop: the loop over the loader to tune.
        present: the present settings.
        cores: the CPU budget.
        size: bytes and tensors of a batch; None: not measured.
        by_epoch: include starting and stopping workers at each epoch; else the steady state only.

    Returns:
        Empty where no model can be fitted, or its replay is off by more than `MODEL_ERROR`.
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
