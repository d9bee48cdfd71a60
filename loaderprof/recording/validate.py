"""What is taken in of a recording that may come from elsewhere: a value of another type or size than capture writes
is left out, so that nothing behind this has to doubt it.

Imports numpy and the standard library.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from loaderprof.recording import declared
from loaderprof.recording import journal as layout
from loaderprof.recording.declared import MAX_COUNT, MAX_NS, Check, is_moment, is_number
from loaderprof.recording.facts import LoaderFacts, ProcessFacts
from loaderprof.recording.meta import Meta, of_values

_META, _FACTS = declared.checks(Meta), declared.checks(LoaderFacts)
# A counter that could not be read once goes back to 0; -1 is a time that was not taken.
_LOWEST = {"runq_ns": -MAX_NS, "threads_cpu_ns": -1}
_AMOUNTS = ("rchar", "majflt", "calls", "samples", "tensors", "leaves", "parked")
# Host samples: what each group of counters must hold to be of use.
_COUNTERS = {
    "cpu": (),
    "memory": (),
    "shm": ("total",),
    "disk": ("read_bytes",),
    "network": ("received_bytes",),
}
_ENTRIES = {
    "processes": ("pid", "user", "system"),
    "gpu": ("index",),
    "accounts": ("pid", "cpu_ns", "runq_ns", "process_cpu_s"),
}


def meta(values: dict[str, Any]) -> tuple[Meta, list[str]]:
    """Return what can be used of `recording.json`, and the names of what was left out."""
    kept = _known(values, _META)
    if isinstance(kept.get("started_ns"), int) and (kept.get("ended_ns") or MAX_NS) < kept["started_ns"]:
        del kept["ended_ns"]
    return of_values(kept), sorted(values.keys() - kept.keys())


def header(raw: bytes) -> ProcessFacts | None:
    """Return the facts that head a journal, None where they are damaged."""
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    kept = declared.built(ProcessFacts, values if isinstance(values, dict) else {})
    return kept if kept.pid is not None and kept.ppid is not None else None


def facts(text: str) -> LoaderFacts:
    """Return a loader's facts; what is not understood is left out."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return LoaderFacts()
    kept = _known(values, _FACTS) if isinstance(values, dict) else {}
    kept = {key: value for key, value in kept.items() if value is None or declared.is_scalar(value)}
    return declared.built(LoaderFacts, kept, written=kept)


def host_line(line: dict[str, Any]) -> dict[str, Any] | None:
    """Return one host sample with what can be used of it, None where it has no time."""
    if not is_moment(line.get("t")):
        return None
    kept: dict[str, Any] = {"t": line["t"]}
    for name, needed in _COUNTERS.items():
        counters = line.get(name)
        if isinstance(counters, dict):
            numbers = {str(key): value for key, value in counters.items() if is_number(value)}
            if all(key in numbers for key in needed):
                kept[name] = numbers
    for name, needed in _ENTRIES.items():
        if isinstance(line.get(name), list):
            kept[name] = [
                _without_nonsense(entry)
                for entry in line[name]
                if isinstance(entry, dict) and all(is_number(entry.get(key)) for key in needed)
            ]
    return kept


def is_stack(t_begun: int, t_done: int, rate_hz: float, count: int) -> bool:
    """Return whether a window of stack samples has possible moments, rate and count."""
    return 0 <= t_begun <= t_done < MAX_NS and 0 < rate_hz < 1e6 and 0 < count < MAX_COUNT


def possible(kind: int, values: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which rows of one kind capture can have written: moments in order, counts within their bounds."""
    columns = {name: values[:, place] for place, name in enumerate(layout.FIELDS[kind])}
    good = np.ones(len(values), np.bool_)
    for name, column in columns.items():
        if name == "count":
            good &= (column >= 1) & (column < MAX_COUNT)
        elif name.startswith("t_") or name.endswith(("_ns", "bytes")) or name in _AMOUNTS:
            good &= (column >= _LOWEST.get(name, 0)) & (column < MAX_NS)
    moments = [name for name in columns if name.startswith("t_")][:2]
    if len(moments) == 2:
        good &= columns[moments[0]] <= columns[moments[1]]
    if "wait_ns" in columns:
        good &= columns["wait_ns"] <= columns["t_taken"] - columns["t_asked"]
    return good


def printable(value: Any) -> Any:
    """Return texts as any output can show them: a file's name may hold bytes that are not valid UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [printable(item) for item in value]
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    return value


def _known(values: dict[str, Any], checks: dict[str, Check]) -> dict[str, Any]:
    return {
        key: printable(value)
        for key, value in values.items()
        if value is None or key not in checks or checks[key](value)
    }


def _without_nonsense(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        str(key): value for key, value in entry.items() if value is None or isinstance(value, str) or is_number(value)
    }
