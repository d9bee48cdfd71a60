"""What `verify` measured: saved in the recording folder as `verified.json`, and joined to the advice that it measured.

Starts no process and imports only `findings` and `recording.files`, because every report reads it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loaderprof.findings import Findings, Measured
from loaderprof.recording import files

NAME = "verified.json"
SCHEMA_VERSION = 1
# A recording may come from elsewhere, so what is read is bounded; three pairs take less than 1 kB.
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Verified:
    """The measurement of one change.

    Attributes:
        id: the advice's id; several joined with `+`.
        change: the settings that were applied.
        pairs: samples per second without and with the change, one pair of runs each.
        measured: None below two pairs.
    """

    id: str
    change: dict[str, Any]
    pairs: tuple[tuple[float, float], ...]
    measured: Measured | None


def measured(folder: Path) -> dict[str, Measured]:
    """Return what was measured for a recording, by advice id; empty where nothing was, or it cannot be read."""
    return {each.id: each.measured for each in load(folder) if each.measured is not None}


def joined(found: Findings, folder: Path) -> Findings:
    """Return findings with the measured effect of each advice whose change is still the one that was measured."""
    kept = {each.id: each for each in load(folder) if each.measured is not None}
    advice = tuple(
        dataclasses.replace(each, measured=kept[each.id].measured)
        if each.id in kept and kept[each.id].change == each.change
        else each
        for each in found.advice
    )
    return dataclasses.replace(found, advice=advice)


def load(folder: Path) -> tuple[Verified, ...]:
    """Read `verified.json`; what is damaged in it is left out."""
    try:
        data = json.loads(files.read_bounded(folder / NAME, _MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return ()
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        return ()
    items = data.get("verified")
    read = (_verified(item) for item in items) if isinstance(items, list) else ()
    return tuple(each for each in read if each is not None)


def save(folder: Path, verified: Verified) -> None:
    """Write one change's result atomically, in place of an earlier one of the same id.

    Raises:
        OSError: the folder cannot be written.
    """
    others = [each for each in load(folder) if each.id != verified.id]
    data = {"schema_version": SCHEMA_VERSION, "verified": _plain([*others, verified])}
    files.write_whole(folder / NAME, json.dumps(data, indent=1) + "\n")


def _plain(each: Iterable[Verified]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(one) for one in each]


def _verified(item: Any) -> Verified | None:
    try:
        pairs = tuple((float(before), float(after)) for before, after in item["pairs"])
        found = item["measured"]
        seen = (
            None
            if found is None
            else Measured(float(found["speedup"]), float(found["low"]), float(found["high"]), int(found["runs"]))
        )
        if seen is not None and not all(map(math.isfinite, (seen.speedup, seen.low, seen.high))):
            return None
        return Verified(str(item["id"]), dict(item["change"]), pairs, seen)
    except (KeyError, TypeError, ValueError):
        return None
