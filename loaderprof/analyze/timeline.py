"""Recording -> its loops: for each loader its epochs, and for each batch how long the loop waited and how long it stepped.

Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np

from loaderprof.analyze.loop import Bools, Epoch, Ints, Loop, Seconds
from loaderprof.analyze.making import made_by
from loaderprof.recording import validate
from loaderprof.recording.journal import ANEW
from loaderprof.recording.reader import Process, Recording
from loaderprof.recording.tables import Table

# First batches of a loop, which warm caches and allocators; left out of steady means where four times as many are left.
WARM_UP_BATCHES, ENOUGH_LEFT = 2, 4
# An epoch of more than this many batches a worker can spare the first of each worker.
LONG_EPOCH = 6
# While a background thread waits for a batch, other threads that use this much of a core are the training.
BESIDE = 0.05
# A thread that is on a core for less than this share of its steps, while others are, is not what trains.
RESTS = 0.5


@dataclass(slots=True)
class Timeline:
    """A whole run.

    Attributes:
        recording: of the run.
        origin_ns: the moment from which seconds count.
        duration_s: of the run; None where it was killed.
        loops: the longest first.
    """

    recording: Recording
    origin_ns: int
    duration_s: float | None
    loops: list[Loop]


def build(recording: Recording) -> Timeline:
    """Return the loops of a recording."""
    tables = recording.tables
    origin = origin_of(recording)
    ended = recording.meta.ended_ns
    spans = _spans(tables)
    loops = []
    for process in recording.processes:
        rows = tables["iterator"][tables["iterator"]["process"] == process.number]
        for loader in np.unique(rows["loader"]):
            if loader >= 0:
                loop = _loop(recording, process, int(loader), rows[rows["loader"] == loader], origin, spans)
                if loop is not None:
                    loops.append(loop)
    loops.sort(key=lambda loop: -loop.span_s)
    return Timeline(recording, origin, (ended - origin) / 1e9 if ended else None, loops)


def origin_of(recording: Recording) -> int:
    """Return the moment from which a recording's seconds are counted."""
    return recording.meta.started_ns or _first_time(recording.tables)


def _first_time(tables: dict[str, Table]) -> int:
    times = tables["iterator"]["t_begun"]
    return int(times.min()) if len(times) else 0


def _spans(tables: dict[str, Table]) -> dict[tuple[int, int], list[tuple[int, int, int]]]:
    """Return, by process and thread, each epoch's (begun, last sign of it, iterator) in ns, in order of beginning."""
    spans: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for process in np.unique(tables["iterator"]["process"]):
        rows = np.sort(tables["iterator"][tables["iterator"]["process"] == process], order="t_begun", kind="stable")
        takes, ends = (tables[name][tables[name]["process"] == process] for name in ("take", "end"))
        for row, until in zip(rows, _until(rows), strict=True):
            mine = takes["t_taken"][(takes["iterator"] == row["iterator"]) & (takes["t_asked"] < until)]
            over = _end_of(row, until, ends)
            last = max(int(row["t_ready"]), int(mine.max(initial=0)), int(over["t_done"]) if over is not None else 0)
            spans.setdefault((int(process), int(row["thread"])), []).append(
                (int(row["t_begun"]), last, int(row["iterator"]))
            )
    return spans


def _until(rows: Table) -> Ints:
    """Return when each epoch's iterator began its next one: with persistent workers all epochs have one iterator."""
    until = np.full(len(rows), np.iinfo(np.int64).max)
    for iterator in np.unique(rows["iterator"]):
        numbers = np.flatnonzero(rows["iterator"] == iterator)
        until[numbers[:-1]] = rows["t_begun"][numbers[1:]]
    return until


def _end_of(row: Any, until: int, ends: Table, since: int = 0) -> Any:
    """Return the record of an epoch's end after `since`; None where the loop broke out of it."""
    mine = ends["iterator"] == row["iterator"]
    mine &= (ends["t_asked"] >= max(since, int(row["t_ready"]))) & (ends["t_asked"] < until)
    return ends[mine][0] if mine.any() else None


def _loop(
    recording: Recording, process: Process, loader: int, rows: Table, origin: int, spans: dict[Any, Any]
) -> Loop | None:
    tables = recording.tables
    rows = np.sort(rows, order="t_begun")
    iterators = tuple(int(number) for number in np.unique(rows["iterator"]))
    takes = _own(tables["take"], process.number, iterators, "t_asked")
    if not len(takes):
        return None
    ends = _own(tables["end"], process.number, iterators, "t_asked")
    facts = validate.facts(recording.texts[loader])
    epoch = _epoch_of(rows, takes)
    position = _position(epoch)
    next_asked, next_cpu, next_process_cpu = _next(rows, takes, ends, epoch)
    thread = int(takes["thread"][0])
    nested = _nested(takes, next_asked, spans.get((process.number, thread), []), set(iterators))
    step = (next_asked - takes["t_taken"]) / 1e9 - nested
    single = takes["count"] == 1
    # Of a record of many batches, all is stepping that is not waiting, from its first request to that of the next record.
    step = np.where(single, step, (next_asked - takes["t_asked"] - takes["wait_ns"]) / 1e9 - nested)
    step_cpu = np.where(single, (next_cpu - takes["cpu_taken_ns"]) / 1e9, np.nan)
    step_process_cpu = np.where(single, (next_process_cpu - takes["process_cpu_taken_ns"]) / 1e9, np.nan)
    return Loop(
        process=process,
        facts=facts,
        iterators=iterators,
        epochs=tuple(_epochs(rows, takes, ends, epoch, origin)),
        epoch=epoch,
        position=position,
        asked=(takes["t_asked"] - origin) / 1e9,
        taken=(takes["t_taken"] - origin) / 1e9,
        wait=takes["wait_ns"] / 1e9,
        step=np.maximum(step, 0.0),
        step_cpu=step_cpu,
        step_process_cpu=step_process_cpu,
        step_runq=np.append(np.diff(takes["runq_ns"]) / 1e9, np.nan),
        receive=_seconds(takes, "receive_ns"),
        receive_cpu=_seconds(takes, "receive_cpu_ns"),
        index=_seconds(takes, "index_ns"),
        ready=takes["extra"].astype(np.int64) - 1,
        parked=takes["parked"].astype(np.int64),
        count=takes["count"],
        training=bool(np.mean(takes["flags"] & 1) > 0.5),
        main_thread=_is_main(tables, process, thread),
        background=_in_background(process, thread, takes[single], step, step_cpu, step_process_cpu),
        steady=_steady(epoch, position, int(facts.num_workers or 0)),
        made=made_by(recording, process, iterators, takes, origin),
        nested_s=float(np.nansum(nested)),
        **_device(tables["device"], process.number, iterators),
    )


def _seconds(takes: Table, field_: str) -> Seconds:
    """Return a field of each record in seconds; records of many batches lack it and get the mean of the others."""
    single = takes["count"] == 1
    mean = float(takes[field_][single].mean()) if single.any() else 0.0
    return np.asarray(np.where(single, takes[field_], mean * takes["count"]) / 1e9)


def _own(table: Table, process: int, iterators: tuple[int, ...], order: str) -> Table:
    mine: Table = table[(table["process"] == process) & np.isin(table["iterator"], iterators)]
    return np.sort(mine, order=order, kind="stable")


def _epoch_of(rows: Table, takes: Table) -> Ints:
    """Return each take's epoch: the last beginning of its own iterator before it."""
    epoch = np.zeros(len(takes), np.int64)
    for iterator in np.unique(rows["iterator"]):
        numbers = np.flatnonzero(rows["iterator"] == iterator)
        mine = takes["iterator"] == iterator
        at = np.searchsorted(rows["t_begun"][numbers], takes["t_asked"][mine], side="right") - 1
        epoch[mine] = numbers[np.maximum(at, 0)]
    return epoch


def _position(epoch: Ints) -> Ints:
    """Return each batch's number within its epoch; epochs may alternate: a loader can be iterated twice at once."""
    order = np.argsort(epoch, kind="stable")
    position = np.empty(len(epoch), np.int64)
    position[order] = np.arange(len(epoch)) - np.searchsorted(epoch[order], epoch[order], side="left")
    return position


def _next(rows: Table, takes: Table, ends: Table, epoch: Ints) -> tuple[Seconds, Seconds, Seconds]:
    """Return when the loop came back after each batch, and CPU of its thread and process by then; NaN: unknown. All in ns."""
    asked = np.append(takes["t_asked"][1:].astype(float), np.nan)
    cpu = np.append(takes["cpu_asked_ns"][1:].astype(float), np.nan)
    process_cpu = np.append(takes["process_cpu_asked_ns"][1:].astype(float), np.nan)
    # In recordings of earlier versions a record of many batches lacks the CPU at its beginning.
    missing = np.append((takes["count"][1:] > 1) & (takes["cpu_asked_ns"][1:] == 0), False)
    cpu[missing] = process_cpu[missing] = np.nan
    until = _until(rows)
    one_each = len(epoch) == len(np.unique(epoch))
    for number in len(epoch) - 1 - np.unique(epoch[::-1], return_index=True)[1]:
        over = _end_of(rows[epoch[number]], until[epoch[number]], ends, int(takes["t_taken"][number]))
        if over is None:
            asked[number] = cpu[number] = process_cpu[number] = np.nan
            if one_each and epoch[number] + 1 < len(rows):
                # `next(iter(loader))` in a loop: the step ends where the next iterator is made.
                asked[number] = rows["t_begun"][epoch[number] + 1]
        elif not asked[number] < over["t_asked"]:
            asked[number], cpu[number], process_cpu[number] = over["t_asked"], over["cpu_ns"], over["process_cpu_ns"]
    return asked, cpu, process_cpu


def _nested(takes: Table, next_asked: Seconds, spans: list[tuple[int, int, int]], own: set[int]) -> Seconds:
    """Return seconds of each step that other loops of the same thread took, nested ones counted once."""
    nested = np.zeros(len(takes))
    others = [(begun, last) for begun, last, iterator in spans if iterator not in own]
    if not others:
        return nested
    starts = [begun for begun, _ in others]
    for number, (taken, following) in enumerate(zip(takes["t_taken"], next_asked, strict=True)):
        if not np.isfinite(following):
            continue
        covered = int(taken)
        for begun, last in others[bisect_left(starts, int(taken)) :]:
            if begun >= following:
                break
            nested[number] += max(0, min(last, int(following)) - max(begun, covered)) / 1e9
            covered = max(covered, last)
    return nested


def _epochs(rows: Table, takes: Table, ends: Table, epoch: Ints, origin: int) -> list[Epoch]:
    epochs = []
    for number, (row, until) in enumerate(zip(rows, _until(rows), strict=True)):
        mine = takes[epoch == number]
        over = _end_of(row, until, ends)
        if not len(mine) and over is None:
            continue
        first = (mine["t_taken"][0] - row["t_begun"]) / 1e9 if len(mine) and mine["count"][0] == 1 else np.nan
        epochs.append(
            Epoch(
                begun=(row["t_begun"] - origin) / 1e9,
                ready=(row["t_ready"] - origin) / 1e9,
                ended=(over["t_done"] - origin) / 1e9 if over is not None else None,
                shutdown_s=(over["t_done"] - over["t_asked"]) / 1e9 if over is not None else 0.0,
                first_batch_s=float(first),
                batches=int(mine["count"].sum()),
                restarted=bool(row["flags"] & 1),
                index_s=row["index_ns"] / 1e9,
                anew=bool(row["flags"] & ANEW),
            )
        )
    return epochs


def _in_background(process: Process, thread: int, waits: Table, step: Seconds, own: Seconds, whole: Seconds) -> bool:
    """Return whether a thread beside the main one takes the batches while others train.

    Args:
        process: of the loop.
        thread: of the loop.
        waits: records of single batches.
        step, own, whole: of each step, seconds, CPU of the thread, and CPU of the process.
    """
    main = process.header.main_thread
    if main is None or main == thread or not len(waits):
        return False
    wait = (waits["t_taken"] - waits["t_asked"]).sum()
    wait_own = (waits["cpu_taken_ns"] - waits["cpu_asked_ns"]).sum()
    wait_whole = (waits["process_cpu_taken_ns"] - waits["process_cpu_asked_ns"]).sum()
    if wait_whole - wait_own > BESIDE * wait:
        return True
    # Two Python threads take turns at the GIL: while the training runs, this thread is off the CPU.
    turns = np.isfinite(step) & np.isfinite(own) & np.isfinite(whole)
    lasted, own_s, whole_s = (float(values[turns].sum()) for values in (step, own, whole))
    return own_s < RESTS * lasted and whole_s - own_s > BESIDE * lasted


def _is_main(tables: dict[str, Table], process: Process, thread: int) -> bool:
    # The thread that created the first iterator of a process is where its training loop runs.
    rows = tables["iterator"][tables["iterator"]["process"] == process.number]
    return bool(len(rows) and int(rows["thread"][0]) == thread)


def _steady(epoch: Ints, position: Ints, workers: int) -> Bools:
    """Return which batches lie past the warm-up and the start of their epoch; all where none would be left."""
    lengths = np.bincount(epoch)[epoch] if len(epoch) else np.zeros(0)
    skip = np.where(lengths > LONG_EPOCH * max(1, workers), max(1, workers), 1)
    steady = position >= skip
    if steady.sum() > ENOUGH_LEFT * WARM_UP_BATCHES:
        steady &= np.arange(len(epoch)) >= WARM_UP_BATCHES
    return steady if steady.any() else np.ones(len(epoch), np.bool_)


def _device(table: Table, process: int, iterators: tuple[int, ...]) -> dict[str, Seconds]:
    mine = table[(table["process"] == process) & np.isin(table["iterator"], iterators)]
    return {"starved": mine["starved_ns"] / 1e9, "busy": mine["busy_ns"] / 1e9}
