"""What the producers of batches recorded: the fetch records of workers, or of the main process without workers. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from loaderprof.analyze.loop import Ints, Loop, Made, Seconds
from loaderprof.recording.reader import Process, Recording
from loaderprof.recording.tables import Table

# Rows of one loop: records of many short batches are spread over no more than this, which keeps memory and time small.
MAX_MADE = 100_000


def made_by(recording: Recording, process: Process, iterators: tuple[int, ...], takes: Table, origin: int) -> Made:
    """Return the batches of a loop that their producers recorded.

    Args:
        recording: the run.
        process: that the loop runs in.
        iterators: of the loop.
        takes: its batches as it took them, to identify those that the main process produced for it.
        origin: the moment in ns from which seconds count.
    """
    tables = recording.tables
    fetches = tables["fetch"]
    workers = _workers(recording, process, iterators)
    if workers:
        rows = fetches[np.isin(fetches["process"], workers)]
    else:
        rows = fetches[(fetches["process"] == process.number) & (fetches["worker"] < 0)]
        at = np.clip(np.searchsorted(takes["t_asked"], rows["t_begun"], side="right") - 1, 0, None)
        rows = rows[(rows["t_begun"] >= takes["t_asked"][at]) & (rows["t_begun"] <= takes["t_taken"][at])]
    rows = np.sort(rows, order="t_begun", kind="stable")
    pickle_cpu, pickle_wall = _pickles(tables["pickle"], rows)
    row, weight = _spread(rows)
    first = np.zeros(len(rows), np.bool_)
    first[np.unique(rows["process"], return_index=True)[1]] = True

    def each(values: npt.NDArray[Any]) -> Seconds:
        return np.asarray(values[row] * weight / 1e9)

    wall = np.maximum(each(rows["wall_ns"]), 1e-9)
    cpu, runq = np.minimum(each(rows["cpu_ns"]), wall), each(rows["runq_ns"])
    return Made(
        worker=rows["worker"][row],
        pid=np.array([recording.processes[n].pid for n in rows["process"]], np.int64)[row],
        task=rows["task"][row],
        epoch=_epoch_of_tasks(rows)[row],
        begun=(rows["t_begun"][row] - origin) / 1e9,
        done=(rows["t_done"][row] - origin) / 1e9,
        put=(rows["t_put"][row] - origin) / 1e9,
        wall=wall,
        cpu=cpu,
        runq=runq,
        blocked=np.maximum(wall - cpu - runq, 0.0),
        collate=np.minimum(each(rows["collate_ns"]), wall),
        collate_cpu=np.minimum(each(rows["collate_cpu_ns"]), cpu),
        threads_cpu=_threads_cpu(rows, row),
        asked_bytes=each(rows["rchar"]) * 1e9,
        device_bytes=each(rows["read_bytes"]) * 1e9,
        faults=rows["majflt"][row],
        samples=rows["extra"][row].astype(np.int64),
        count=rows["count"][row],
        deep=(rows["flags"][row] & 1).astype(np.bool_),
        warm=~first[row],
        pickle_cpu=pickle_cpu[row],
        pickle_wall=pickle_wall[row],
    )


def of_producers(recording: Recording, loop: Loop, table: Table) -> Table:
    """Return the rows of a table (operators, samples, sizes) that the producers of a loop's batches wrote."""
    pids = set(loop.made.pid.tolist())
    numbers = [process.number for process in recording.processes if process.pid in pids]
    rows: Table = table[np.isin(table["process"], numbers)]
    if loop.num_workers:
        return rows[rows["worker"] >= 0]
    return rows[(rows["worker"] < 0) & np.isin(rows["iterator"], (0, *loop.iterators))]


def _threads_cpu(rows: Table, row: Ints) -> Seconds:
    """Return the CPU of the producer's other threads during each batch; NaN where it was not measured."""
    is_last = np.append(row[1:] != row[:-1], True) if len(row) else np.zeros(0, np.bool_)
    known = is_last & (rows["threads_cpu_ns"][row] >= 0)
    return np.where(known, rows["threads_cpu_ns"][row] / 1e9, np.nan)


def _spread(rows: Table) -> tuple[Ints, Seconds]:
    """Return, for each row, the number of its record and its share of that record's counters.

    A record stands for `count` batches: the last one, whose own wall time is recorded, and shorter ones before it.
    """
    counts = np.clip(rows["count"], 1, None)
    # Batches too short for a record each are alike; a few of each record represent all.
    shown = np.minimum(counts, max(1, MAX_MADE // max(1, len(rows))))
    row = np.repeat(np.arange(len(rows)), shown)
    wall = np.maximum(rows["wall_ns"], 1).astype(float)
    last = np.clip((rows["t_done"] - rows["t_begun"]) / wall, 0.0, 1.0)
    before = np.where(counts > 1, (1.0 - last) / np.maximum(counts - 1, 1), 0.0)
    is_last = np.append(row[1:] != row[:-1], True) if len(row) else np.zeros(0, np.bool_)
    return row, np.where(is_last, last[row], before[row])


def _workers(recording: Recording, process: Process, iterators: tuple[int, ...]) -> list[int]:
    """Return the process numbers of the workers that these iterators started."""
    table = recording.tables["worker"]
    started = table[
        (table["process"] == process.number) & (table["flags"] == 0) & np.isin(table["iterator"], iterators)
    ]
    pids = set(started["pid"].tolist())
    return [
        other.number
        for other in recording.processes
        if other.worker is not None and other.pid in pids and other.host == process.host
    ]


def _epoch_of_tasks(rows: Table) -> Ints:
    """Return each batch's epoch within its worker: task numbers start again at every epoch."""
    epoch = np.zeros(len(rows), np.int64)
    for process in np.unique(rows["process"]):
        mine = np.flatnonzero(rows["process"] == process)
        tasks = rows["task"][mine]
        epoch[mine] = np.cumsum(np.append(False, tasks[1:] <= tasks[:-1]))
    return epoch


def _pickles(table: Table, rows: Table) -> tuple[Seconds, Seconds]:
    """Return CPU and wall seconds of the worker's queue thread for pickling each batch; NaN where not recorded."""
    cpu, wall = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    for process in np.unique(rows["process"]) if len(table) else ():
        mine = np.sort(table[table["process"] == process], order="t_begun")
        if not len(mine):
            continue
        for number in np.flatnonzero(rows["process"] == process):
            at = np.searchsorted(mine["t_begun"], rows["t_done"][number])
            if at < len(mine) and mine["task"][at] == rows["task"][number]:
                cpu[number] = mine["cpu_ns"][at] / 1e9
                wall[number] = (mine["t_done"][at] - mine["t_begun"][at]) / 1e9
    return cpu, wall
