"""What is taken in of a recording that may come from elsewhere: a value of another type or size than capture writes
is left out, so that nothing behind this has to doubt it.

Imports numpy and the standard library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from loaderprof.recording import journal as layout

# 36 years in nanoseconds: no monotonic clock shows more.
MAX_NS = 1 << 60
MAX_COUNT = 1 << 31
MAX_WORKERS = 1024


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18 and math.isfinite(value)


def _is_cost(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


def _all_texts(value: Any) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [0]
    return all(isinstance(item, str | None) for item in items)


_MOMENT, _COUNT, _PID = _whole(0, MAX_NS), _whole(0, MAX_COUNT), _whole(0, MAX_COUNT - 1)
_META: dict[str, Callable[[Any], bool]] = {
    "started_ns": _MOMENT,
    "ended_ns": _MOMENT,
    "started_unix_ns": _whole(0, 1 << 62),
    "exit_code": _whole(-512, 1 << 32),
    "signal": _is(str),
    "command": lambda value: isinstance(value, list) and _all_texts(value),
    "cwd": _is(str),
    "script_folder": _is(str),
    "loaderprof": _is(str),
    "mode": _is(str),
    "host": _is(str),
    "job": _is(dict),
    "attach": _is(dict),
    "gpus": lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    "cpu_budget": _is(dict),
    "missing": lambda value: isinstance(value, dict) and _all_texts(value),
    "sources": lambda value: isinstance(value, dict) and all(isinstance(item, str) for item in value.values()),
    "made_at": lambda value: isinstance(value, dict) and all(isinstance(item, str) for item in value.values()),
    "file_systems": lambda value: isinstance(value, dict) and all(isinstance(item, str) for item in value.values()),
    "sampler_cpu_s": _is_cost,
    "stacks_cpu_s": _is_cost,
    "open_files_limit": _is_number,
    "max_overhead": _is_cost,
    "keep": _is(bool),
}
_HEADER: dict[str, Callable[[Any], bool]] = {
    "pid": _PID,
    "ppid": _PID,
    "worker": _whole(0, MAX_WORKERS),
    "host": _is(str),
    "torch": _is(str),
    "python": _is(str),
    "argv": lambda value: isinstance(value, list) and _all_texts(value),
    "threads": _is_number,
    "unread": lambda value: isinstance(value, list) and _all_texts(value),
    "environment": lambda value: isinstance(value, dict) and _all_texts(value),
    "perf_ns": _MOMENT,
    "unix_ns": _whole(0, 1 << 62),
}
_FACTS: dict[str, Callable[[Any], bool]] = {
    "number": _COUNT,
    "num_workers": _whole(0, MAX_WORKERS),
    "batch_size": _COUNT,
    "prefetch_factor": _whole(1, MAX_WORKERS),
    "samples": _COUNT,
    "shards": _COUNT,
    "cache_bytes": _MOMENT,
    "stored_bytes": _MOMENT,
    "prefetch_batches": _COUNT,
    "local_shuffle_buffer_size": _COUNT,
    "canonical_nodes": _is_number,
    **dict.fromkeys(
        ("persistent_workers", "pin_memory", "in_order", "drop_last", "iterable", "watched", "splits", "guarded"),
        _is(bool),
    ),
    **dict.fromkeys(
        (
            "name",
            "where",
            "type",
            "start_method",
            "sampler",
            "batch_sampler",
            "collate_fn",
            "worker_init_fn",
            "dataset",
            "dataset_where",
            "sampler_where",
            "path",
            "handle",
            "transforms",
            "framework",
            "cache_knob",
        ),
        _is(str),
    ),
}
# A counter that could not be read once goes back to 0; -1 stands for unknown.
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


def meta(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return what can be used of `recording.json`, and the names of what was left out."""
    kept = _known(values, _META)
    if isinstance(kept.get("started_ns"), int) and (kept.get("ended_ns") or MAX_NS) < kept["started_ns"]:
        del kept["ended_ns"]
    return kept, sorted(values.keys() - kept.keys())


def header(raw: bytes) -> dict[str, Any] | None:
    """Return the facts that head a journal, None where they are damaged."""
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    kept = _known(values, _HEADER) if isinstance(values, dict) else {}
    return kept if kept.get("pid") is not None and kept.get("ppid") is not None else None


def facts(text: str) -> dict[str, Any]:
    """Return a loader's facts; what is not understood is left out."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    kept = _known(values, _FACTS) if isinstance(values, dict) else {}
    return {
        key: value for key, value in kept.items() if value is None or isinstance(value, str | bool) or _is_number(value)
    }


def host_line(line: dict[str, Any]) -> dict[str, Any] | None:
    """Return one host sample with what can be used of it, None where it has no time."""
    if not _MOMENT(line.get("t")):
        return None
    kept: dict[str, Any] = {"t": line["t"]}
    for name, needed in _COUNTERS.items():
        counters = line.get(name)
        if isinstance(counters, dict):
            numbers = {str(key): value for key, value in counters.items() if _is_number(value)}
            if all(key in numbers for key in needed):
                kept[name] = numbers
    for name, needed in _ENTRIES.items():
        if isinstance(line.get(name), list):
            kept[name] = [
                _without_nonsense(entry)
                for entry in line[name]
                if isinstance(entry, dict) and all(_is_number(entry.get(key)) for key in needed)
            ]
    return kept


def is_stack(t_begun: int, t_done: int, rate_hz: float, count: int) -> bool:
    """Return whether a window of stack samples can be one."""
    return 0 <= t_begun <= t_done < MAX_NS and 0 < rate_hz < 1e6 and 0 < count < MAX_COUNT


def possible(kind: int, values: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which rows of one kind hold what capture can have written: moments in order, counts that count."""
    columns = {name: values[:, place] for place, name in enumerate(layout.FIELDS[kind])}
    good = np.ones(len(values), np.bool_)
    for name, column in columns.items():
        if name == "count":
            good &= (column >= 1) & (column < MAX_COUNT)
        elif name.startswith("t_") or name.endswith(("_ns", "bytes")) or name in _AMOUNTS:
            # A counter that could not be read once goes back to 0; -1 is a time that was not taken.
            least = {"runq_ns": -MAX_NS, "threads_cpu_ns": -1}.get(name, 0)
            good &= (column >= least) & (column < MAX_NS)
    moments = [name for name in columns if name.startswith("t_")][:2]
    if len(moments) == 2:
        good &= columns[moments[0]] <= columns[moments[1]]
    if "wait_ns" in columns:
        good &= columns["wait_ns"] <= columns["t_taken"] - columns["t_asked"]
    return good


def printable(value: Any) -> Any:
    """Return texts as any output can show them: a file's name may hold bytes that are no characters."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [printable(item) for item in value]
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    return value


def _known(values: dict[str, Any], types: dict[str, Callable[[Any], bool]]) -> dict[str, Any]:
    return {
        key: printable(value) for key, value in values.items() if value is None or key not in types or types[key](value)
    }


def _without_nonsense(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        str(key): value for key, value in entry.items() if value is None or isinstance(value, str) or _is_number(value)
    }
