"""Page data made small enough for a page: long series thinned, extremes kept; bars and stacks merged.

Whatever is merged is said in a sentence that the page shows beside the picture. Returns plain JSON values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from loaderprof.report.page import Bar, Host, PageData, Series, Steps
from loaderprof.report.stacks import merged_stacks

Array = npt.NDArray[np.float64]

MAX_POINTS = 2_000
"""A page is at most some 1,000 pixels wide: two points a pixel show every extreme."""

MAX_RANKS = 8
"""Lanes on the page; the ranks of a host, and of more the slowest."""

MAX_BARS = 2_000
"""More rectangles than this make a browser slow to draw, and no screen shows them apart."""


@dataclass(slots=True)
class Merged:
    """The JSON values of a page, and what was merged to make them, by section."""

    values: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def merge(data: PageData) -> Merged:
    """Return everything the page draws, and what was left out of it."""
    merged = Merged()
    merged.values["end_s"] = _seconds(end_s(data))
    merged.values["steps"] = _steps(data.steps, merged.notes)
    merged.values["ranks"] = _ranks(data, merged.notes)
    merged.values["host"] = _host(data.host, merged.notes)
    merged.values["bars"] = _bars(data.bars, merged.notes)
    merged.values["stacks"] = merged_stacks(data.stacks, end_s(data), merged.notes)
    return merged


def array(series: Series) -> Array:
    """Return a series as floats, NaN where there is no value."""
    return np.asarray([math.nan if value is None else value for value in series], dtype=np.float64)


def end_s(data: PageData) -> float:
    """Return the time of the last thing seen."""
    begun, lasted = array(data.steps.t_s), array(data.steps.step_s)
    last = [0.0]
    if len(begun) and len(begun) == len(lasted):
        last.append(float(np.nanmax(begun + np.nan_to_num(lasted), initial=0.0)))
    if len(data.host.t_s):
        last.append(float(np.nanmax(array(data.host.t_s), initial=0.0)))
    last += [float(np.nanmax(array(steps.t_s), initial=0.0)) for steps in data.ranks.values()]
    last += [max(bar.end_s, bar.taken_s or 0.0) for bar in data.bars]
    last += [stack.t1_s for stack in data.stacks if stack.t1_s is not None]
    return max(value for value in last if math.isfinite(value))


def thinned(columns: Sequence[Array], limit: int) -> npt.NDArray[np.intp]:
    """Return the indices to keep so that each bucket's least and greatest value of every column stays."""
    count = len(columns[0])
    if count <= limit:
        return np.arange(count)
    buckets = max(limit // (2 * len(columns)), 1)
    edges = np.linspace(0, count, buckets + 1).astype(int)
    kept: set[int] = set()
    for low, high in itertools.pairwise(edges.tolist()):
        for column in columns:
            piece = column[low:high]
            if len(piece) and not np.isnan(piece).all():
                kept.update((low + int(np.nanargmin(piece)), low + int(np.nanargmax(piece))))
    return np.asarray(sorted(kept), dtype=np.intp)


def plain(values: Array, digits: int) -> list[float | None]:
    """Return rounded numbers, `None` for those that are not finite."""
    return [round(value, digits) if math.isfinite(value) else None for value in values.tolist()]


def _seconds(value: float) -> float:
    return round(value, 4)


def _steps(steps: Steps, notes: dict[str, str]) -> dict[str, Any] | None:
    begun = array(steps.t_s)
    count = len(begun)
    if not count:
        return None
    lasted, waited = (_fitting(series, count) for series in (steps.step_s, steps.wait_s))
    kept = thinned([lasted, waited], MAX_POINTS)
    if len(kept) < count:
        notes["timeline"] = (
            f"{count:,} steps are drawn as {len(kept):,} points; the least and the greatest of each stretch "
            "are among them, and sums over a selection count every step."
        )
    return {
        "count": count,
        "place": kept.tolist(),
        "t": plain(begun[kept], 4),
        "step": plain(lasted[kept], 5),
        "wait": plain(waited[kept], 5),
        "ready": plain(_fitting(steps.ready, count)[kept], 1) if len(steps.ready) else None,
        "step_before": _sums_before(lasted, kept),
        "wait_before": _sums_before(waited, kept),
        "epochs": plain(array(steps.epoch_starts_s), 4),
    }


def _ranks(data: PageData, notes: dict[str, str]) -> list[dict[str, Any]]:
    """Return a lane for each rank, fewer points the more there are; of many ranks those that are slowest."""

    def slowness(rank: int) -> float:
        lasted = array(data.ranks[rank].step_s)
        return float(np.nansum(lasted)) if len(lasted) else 0.0

    chosen = sorted(sorted(data.ranks, key=slowness)[-MAX_RANKS:])
    if len(chosen) < len(data.ranks):
        notes["ranks"] = f"Of {len(data.ranks)} ranks the {len(chosen)} slowest have a lane."
    lanes = []
    for rank in chosen:
        steps = data.ranks[rank]
        begun = array(steps.t_s)
        lasted, waited = (_fitting(series, len(begun)) for series in (steps.step_s, steps.wait_s))
        kept = thinned([lasted, waited], MAX_POINTS // len(chosen))
        points = {"t": plain(begun[kept], 4), "step": plain(lasted[kept], 5), "wait": plain(waited[kept], 5)}
        lanes.append({"rank": rank, **points})
    return lanes


def _fitting(series: Series, count: int) -> Array:
    """Return a series of exactly `count` values; one that is shorter was not measured to its end."""
    values = array(series)[:count]
    return np.concatenate([values, np.full(count - len(values), np.nan)])


def _sums_before(values: Array, kept: npt.NDArray[np.intp]) -> list[float | None]:
    """Return the sum of all values before each kept one, and at the end the sum of all."""
    sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(values))])
    return plain(np.append(sums[kept], sums[-1]), 4)


def _host(host: Host, notes: dict[str, str]) -> dict[str, Any] | None:
    begun = array(host.t_s)
    count = len(begun)
    if not count:
        return None
    columns = {"cpu": host.cpu_percent, "disk": host.disk_bytes_per_s}
    columns |= {f"gpu {name}": values for name, values in host.gpu_percent.items()}
    filled = {name: _fitting(values, count) for name, values in columns.items() if len(values)}
    kept = thinned(list(filled.values()), MAX_POINTS) if filled else np.arange(0)
    if len(kept) < count:
        notes["host"] = f"{count:,} samples of the machine are drawn as {len(kept):,}, extremes kept."
    gpus = [[name, plain(filled[f"gpu {name}"][kept], 1)] for name in host.gpu_percent if f"gpu {name}" in filled]
    return {
        "t": plain(begun[kept], 3),
        "cpu": plain(filled["cpu"][kept], 1) if "cpu" in filled else None,
        "disk": plain(filled["disk"][kept], 0) if "disk" in filled else None,
        "gpus": gpus,
    }


def _bars(bars: Sequence[Bar], notes: dict[str, str]) -> dict[str, Any] | None:
    bars = [bar for bar in bars if math.isfinite(bar.start_s) and math.isfinite(bar.end_s)]
    if not bars:
        return None
    ordered = sorted(bars, key=lambda bar: bar.start_s)
    detail, rest = _detail(ordered)
    rows = [[bar.worker, bar.start_s, bar.end_s, bar.taken_s, bar.batch, 1, bar.end_s - bar.start_s] for bar in detail]
    joined = _joined(rest, MAX_BARS - len(detail))
    rows = sorted(rows + joined, key=lambda row: row[1] or 0.0)
    if rest:
        notes["batches"] = (
            f"{len(bars):,} batches: {len(detail):,} around the slowest are drawn one by one, the others are "
            f"merged into {len(joined):,} bars."
        )
    columns = list(zip(*rows, strict=True))
    names = ("worker", "start", "end", "taken", "batch", "count", "busy")
    values: dict[str, Any] = {
        name: [_rounded(item) for item in column] for name, column in zip(names, columns, strict=True)
    }
    values["focus"] = focus(detail)
    return values


def _rounded(value: float | None) -> float | int | None:
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value


def _detail(ordered: list[Bar]) -> tuple[list[Bar], list[Bar]]:
    """Split bars into a stretch around the slowest one, to be drawn one by one, and all others."""
    if len(ordered) <= MAX_BARS:
        return ordered, []
    slowest = max(range(len(ordered)), key=lambda place: ordered[place].end_s - ordered[place].start_s)
    size = MAX_BARS // 2
    low = max(0, min(slowest - size // 2, len(ordered) - size))
    return ordered[low : low + size], ordered[:low] + ordered[low + size :]


def _joined(bars: list[Bar], limit: int) -> list[list[Any]]:
    """Merge neighbours of one worker into bars of equal counts; at most `limit` of them."""
    workers: dict[int, list[Bar]] = {}
    for bar in bars:
        workers.setdefault(bar.worker, []).append(bar)
    room = max(limit - 2 * len(workers), 1)
    size = math.ceil(len(bars) / room)
    rows: list[list[Any]] = []
    for worker, own in workers.items():
        for low in range(0, len(own), size):
            group = own[low : low + size]
            busy = sum(bar.end_s - bar.start_s for bar in group)
            last = max(bar.end_s for bar in group)
            rows.append([worker, group[0].start_s, last, None, group[0].batch, len(group), busy])
    return rows[: max(limit, 0)]


def focus(detail: Sequence[Bar]) -> list[float]:
    """Return the stretch of time to look at first: some rounds of all workers around the slowest batch."""
    slowest = max(detail, key=lambda bar: bar.end_s - bar.start_s)
    spans = sorted(bar.end_s - bar.start_s for bar in detail)
    half = max(6 * spans[len(spans) // 2], (slowest.end_s - slowest.start_s))
    middle = (slowest.start_s + slowest.end_s) / 2
    first, last = (
        min(bar.start_s for bar in detail),
        max(max(bar.end_s, bar.taken_s or 0.0) for bar in detail),
    )
    return [_seconds(max(middle - half, first)), _seconds(min(middle + half, last))]
