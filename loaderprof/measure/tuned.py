"""The result of `tune`, as it is saved in `tune.json` and reported. Imports only `findings` and `recording.files`."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loaderprof.findings import Measured
from loaderprof.recording import files

NAME = "tune.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Tried:
    """Settings that were tried.

    Attributes:
        settings: as `DataLoader` takes them.
        per_s: samples (see `Tuned.unit`) per second; None where they failed.
        low, high: the 95 % interval; None below three windows.
        windows: how often they were measured.
        predicted: the speedup that the replay predicted; None where it has no prediction.
        failed: why there is no result.
    """

    settings: dict[str, Any]
    per_s: float | None
    low: float | None
    high: float | None
    windows: int
    predicted: float | None
    failed: str | None


@dataclass(frozen=True, slots=True)
class Tuned:
    """A finished search.

    Attributes:
        command: the job's command, as typed.
        loader: the variable that holds the loader.
        assigned: the variable that the new loader is assigned to, by which `--set` identifies it; None: not known.
        where: the line of the loop.
        way: how it was measured: in windows of one run, or by one run each.
        unit: what throughput counts: samples, or batches where the batch size is not known.
        seconds: how long the search took.
        starts: how often the job was started.
        present: the script's own settings.
        best: the settings chosen, the present ones where nothing is faster.
        change: what `--set` needs for them; empty where nothing is faster.
        measured: the gain of the chosen over the present settings; None where they are the same.
        tried: fastest first.
        left_out: what was not tried, and why.
        notes: further remarks, as sentences.
    """

    command: str
    loader: str
    assigned: str | None
    where: str | None
    way: Literal["windows", "runs"]
    unit: Literal["samples", "batches"]
    seconds: float
    starts: int
    present: dict[str, Any]
    best: dict[str, Any]
    change: dict[str, Any]
    measured: Measured | None
    tried: tuple[Tried, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def save(folder: Path, tuned: Tuned) -> None:
    """Write `tune.json` atomically.

    Raises:
        OSError: the folder cannot be written.
    """
    data = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(tuned)}
    files.write_whole(folder / NAME, json.dumps(data, indent=1) + "\n")
