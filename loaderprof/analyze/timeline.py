"""Recording -> loops: for each loader its epochs, and for each batch how long the loop waited and how long it stepped.

A loop's time is exactly covered: `start-up of the iterator + sum(wait) + sum(step) + end of the epoch`, where a step
leaves out whatever other loops ran inside it (a validation loop inside a training step is its own loop). Times are
seconds since the run started; what was not seen is NaN. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from loaderprof.recording import validate
from loaderprof.recording.facts import LoaderFacts
from loaderprof.recording.journal import ANEW
from loaderprof.recording.reader import Process, Recording
from loaderprof.recording.tables import Table

Seconds = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

WARM_UP_BATCHES = 2
# Other threads that use this much of a core while a background thread waits are the training.
BESIDE = 0.05
# A thread that runs for less than this of the time between its takes is no training loop where others run then.
RESTS = 0.5
# Batches of one loop that are looked at one by one.
MAX_MADE = 100_000


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over a loader. `ended` is None where the loop left early; `restarted`: on workers that were kept;
    `anew`: the first of its loader object."""

    begun: float
    ready: float
    ended: float | None
    shutdown_s: float
    first_batch_s: float
    batches: int
    restarted: bool
    index_s: float
    anew: bool = False


@dataclass(slots=True)
class Loop:
    """One loader in one process, and the loop that takes its batches.

    Arrays have one entry a batch, in the order taken, all epochs after one another; `count` > 1 stands for that many
    batches of a loop too fast to stamp each. `made` has one row a batch that was measured where it was made. `background`: a
    thread beside the main one takes the batches while others compute, so that its waiting is not the training's.
    """

    process: Process
    facts: LoaderFacts
    iterators: tuple[int, ...]
    epochs: list[Epoch]
    epoch: Ints
    position: Ints
    asked: Seconds
    taken: Seconds
    wait: Seconds
    step: Seconds
    step_cpu: Seconds
    step_process_cpu: Seconds
    step_runq: Seconds
    receive: Seconds
    receive_cpu: Seconds
    index: Seconds
    ready: Ints
    parked: Ints
    count: Ints
    training: bool
    main_thread: bool
    steady: Bools
    made: Made
    nested_s: float = 0.0
    background: bool = False
    starved: Seconds = field(default_factory=lambda: np.zeros(0))
    busy: Seconds = field(default_factory=lambda: np.zeros(0))

    @property
    def name(self) -> str:
        """The variable that holds the loader, as far as it could be found."""
        return "loader" if self.facts.name is None else self.facts.name

    @property
    def num_workers(self) -> int:
        """Worker processes of the loader."""
        return self.facts.num_workers or 0

    @property
    def idle_workers(self) -> int:
        """Workers that made no batch of an iterable dataset, which has fewer shards than there are workers."""
        shards, at_work = self.facts.shards, len(np.unique(self.made.worker))
        if shards is None or not self.facts.iterable or not 0 < at_work <= shards:
            return 0
        return max(0, self.num_workers - shards)

    @property
    def batches(self) -> int:
        """Batches taken in all."""
        return int(self.count.sum())

    @property
    def span_s(self) -> float:
        """Seconds between the first iterator's creation and the last sign of the loop, other loops inside left out."""
        return float(
            np.nansum(self.wait)
            + np.nansum(self.step)
            + sum(e.ready - e.begun for e in self.epochs)
            + sum(e.shutdown_s for e in self.epochs)
        )

    @property
    def pace_s(self) -> float | None:
        """Seconds a batch as the job goes on: whole epochs with their borders, without the first, which warms up.

        Where no later one was seen whole, all epochs count; of a single one, its steady pace. None where neither was seen.
        """
        wait, step = self.mean(self.wait), self.mean(self.step)
        epochs = [epoch for epoch in self.epochs if epoch.batches]
        usual = float(np.median([epoch.batches for epoch in epochs])) if epochs else 0.0
        numbered = list(zip(np.unique(self.epoch), epochs, strict=False))
        # An epoch that the loop left early is whole where it leaves all of them so; the last may still go on.
        whole = [each for each in numbered[:-1] if each[1].ended is not None or each[1].batches >= usual]
        whole += [each for each in numbered[-1:] if each[1].ended is not None]
        later = [each for each in whole if each is not numbered[0]] or (numbered if len(numbered) > 1 else [])
        if not later:
            return wait + step if wait is not None and step is not None else None
        seconds = 0.0
        for number, epoch in later:
            mine = self.epoch == number
            steps = np.where(np.isfinite(self.step[mine]), self.step[mine], step or 0.0)
            seconds += float(np.nansum(self.wait[mine]) + steps.sum()) + epoch.ready - epoch.begun + epoch.shutdown_s
        return float(seconds / sum(epoch.batches for _, epoch in later))

    def mean(self, values: Seconds) -> float | None:
        """Return the steady mean per batch of a per-batch array; None where nothing steady was seen."""
        chosen = self.steady & np.isfinite(values)
        batches = self.count[chosen].sum()
        return float(values[chosen].sum() / batches) if batches else None


@dataclass(frozen=True, slots=True)
class Made:
    """Batches as their makers saw them, one row each. `wall = cpu + runq + blocked`, without collate's share apart.

    `deep` rows were timed operator by operator and are dearer; `worker` is -1 in the main process.
    """

    worker: Ints
    pid: Ints
    task: Ints
    epoch: Ints
    begun: Seconds
    done: Seconds
    put: Seconds
    wall: Seconds
    cpu: Seconds
    runq: Seconds
    blocked: Seconds
    collate: Seconds
    collate_cpu: Seconds
    threads_cpu: Seconds
    asked_bytes: Seconds
    device_bytes: Seconds
    faults: Ints
    samples: Ints
    count: Ints
    deep: Bools
    warm: Bools
    pickle_cpu: Seconds
    pickle_wall: Seconds


@dataclass(slots=True)
class Timeline:
    """A whole run: its loops, longest first."""

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
    """Return, by process and thread, every epoch's (begun, last seen, iterator), in order of beginning."""
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
    """Return when each epoch's iterator began its next one: workers that are kept have one iterator for all epochs."""
    until = np.full(len(rows), np.iinfo(np.int64).max)
    for iterator in np.unique(rows["iterator"]):
        numbers = np.flatnonzero(rows["iterator"] == iterator)
        until[numbers[:-1]] = rows["t_begun"][numbers[1:]]
    return until


def _end_of(row: Any, until: int, ends: Table, since: int = 0) -> Any:
    """Return the record of an epoch's end after `since`; None where the loop left early."""
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
    # A record of many batches: what is not waiting between its first asking and the next record's is stepping.
    step = np.where(single, step, (next_asked - takes["t_asked"] - takes["wait_ns"]) / 1e9 - nested)
    step_cpu = np.where(single, (next_cpu - takes["cpu_taken_ns"]) / 1e9, np.nan)
    step_process_cpu = np.where(single, (next_process_cpu - takes["process_cpu_taken_ns"]) / 1e9, np.nan)
    return Loop(
        process=process,
        facts=facts,
        iterators=iterators,
        epochs=_epochs(rows, takes, ends, epoch, origin),
        epoch=epoch,
        position=position,
        asked=(takes["t_asked"] - origin) / 1e9,
        taken=(takes["t_taken"] - origin) / 1e9,
        wait=takes["wait_ns"] / 1e9,
        step=np.maximum(step, 0.0),
        step_cpu=step_cpu,
        step_process_cpu=step_process_cpu,
        step_runq=np.append(np.diff(takes["runq_ns"]) / 1e9, np.nan),
        receive=_told(takes, "receive_ns"),
        receive_cpu=_told(takes, "receive_cpu_ns"),
        index=_told(takes, "index_ns"),
        ready=takes["extra"].astype(np.int64) - 1,
        parked=takes["parked"].astype(np.int64),
        count=takes["count"],
        training=bool(np.mean(takes["flags"] & 1) > 0.5),
        main_thread=_is_main(tables, process, thread),
        background=_in_background(process, thread, takes[single], step, step_cpu, step_process_cpu),
        steady=_steady(epoch, position, int(facts.num_workers or 0)),
        made=_made(recording, process, iterators, takes, origin),
        nested_s=float(np.nansum(nested)),
        **_device(tables["device"], process.number, iterators),
    )


def _told(takes: Table, field_: str) -> Seconds:
    """Return seconds of each record; one of many batches, which does not tell them, gets the mean of those that do."""
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
    """Return each batch's number within its epoch; a loader that is iterated twice at once has two epochs under way."""
    order = np.argsort(epoch, kind="stable")
    position = np.empty(len(epoch), np.int64)
    position[order] = np.arange(len(epoch)) - np.searchsorted(epoch[order], epoch[order], side="left")
    return position


def _next(rows: Table, takes: Table, ends: Table, epoch: Ints) -> tuple[Seconds, Seconds, Seconds]:
    """Return when each batch's loop came back to its loader, and the thread's and process's CPU by then; else NaN."""
    asked = np.append(takes["t_asked"][1:].astype(float), np.nan)
    cpu = np.append(takes["cpu_asked_ns"][1:].astype(float), np.nan)
    process_cpu = np.append(takes["process_cpu_asked_ns"][1:].astype(float), np.nan)
    # Of an earlier version a record of many batches does not tell the CPU at its beginning.
    untold = np.append((takes["count"][1:] > 1) & (takes["cpu_asked_ns"][1:] == 0), False)
    cpu[untold] = process_cpu[untold] = np.nan
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
    """Return seconds within each step that other loops of the thread took."""
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
    main = process.header.main_thread
    if main is None or main == thread or not len(waits):
        return False
    wait = (waits["t_taken"] - waits["t_asked"]).sum()
    wait_own = (waits["cpu_taken_ns"] - waits["cpu_asked_ns"]).sum()
    wait_whole = (waits["process_cpu_taken_ns"] - waits["process_cpu_asked_ns"]).sum()
    if wait_whole - wait_own > BESIDE * wait:
        return True
    # Two threads of Python that share one interpreter lock take turns: while the training runs, this thread rests.
    turns = np.isfinite(step) & np.isfinite(own) & np.isfinite(whole)
    lasted, own_s, whole_s = (float(values[turns].sum()) for values in (step, own, whole))
    return own_s < RESTS * lasted and whole_s - own_s > BESIDE * lasted


def _is_main(tables: dict[str, Table], process: Process, thread: int) -> bool:
    # The thread that made the first iterator of a process is where its training loop runs.
    rows = tables["iterator"][tables["iterator"]["process"] == process.number]
    return bool(len(rows) and int(rows["thread"][0]) == thread)


def _steady(epoch: Ints, position: Ints, workers: int) -> Bools:
    """Return which batches lie past the warm-up and the start of their epoch, as far as there are enough of them."""
    lengths = np.bincount(epoch)[epoch] if len(epoch) else np.zeros(0)
    skip = np.where(lengths > 6 * max(1, workers), max(1, workers), 1)
    steady = position >= skip
    if steady.sum() > 4 * WARM_UP_BATCHES:
        steady &= np.arange(len(epoch)) >= WARM_UP_BATCHES
    return steady if steady.any() else np.ones(len(epoch), np.bool_)


def _device(table: Table, process: int, iterators: tuple[int, ...]) -> dict[str, Seconds]:
    mine = table[(table["process"] == process) & np.isin(table["iterator"], iterators)]
    return {"starved": mine["starved_ns"] / 1e9, "busy": mine["busy_ns"] / 1e9}


def _made(recording: Recording, process: Process, iterators: tuple[int, ...], takes: Table, origin: int) -> Made:
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


def _threads_cpu(rows: Table, row: Ints) -> Seconds:
    """Return the CPU of the maker's other threads during each batch; NaN where it was not measured."""
    is_last = np.append(row[1:] != row[:-1], True) if len(row) else np.zeros(0, np.bool_)
    known = is_last & (rows["threads_cpu_ns"][row] >= 0)
    return np.where(known, rows["threads_cpu_ns"][row] / 1e9, np.nan)


def _spread(rows: Table) -> tuple[Ints, Seconds]:
    """Return, for each batch, its record and its share of that record's counters.

    A record stands for `count` batches: the last one, whose own wall time is known, and shorter ones before it.
    """
    counts = np.clip(rows["count"], 1, None)
    # Batches too short to carry a record are alike; a few of each record stand for all.
    shown = np.minimum(counts, max(1, MAX_MADE // max(1, len(rows))))
    row = np.repeat(np.arange(len(rows)), shown)
    wall = np.maximum(rows["wall_ns"], 1).astype(float)
    last = np.clip((rows["t_done"] - rows["t_begun"]) / wall, 0.0, 1.0)
    before = np.where(counts > 1, (1.0 - last) / np.maximum(counts - 1, 1), 0.0)
    is_last = np.append(row[1:] != row[:-1], True) if len(row) else np.zeros(0, np.bool_)
    return row, np.where(is_last, last[row], before[row])


def of_producers(recording: Recording, loop: Loop, table: Table) -> Table:
    """Return the rows of a table (operators, samples, sizes) that the makers of a loop's batches wrote."""
    pids = set(loop.made.pid.tolist())
    numbers = [process.number for process in recording.processes if process.pid in pids]
    rows: Table = table[np.isin(table["process"], numbers)]
    if loop.num_workers:
        return rows[rows["worker"] >= 0]
    return rows[(rows["worker"] < 0) & np.isin(rows["iterator"], (0, *loop.iterators))]


def _workers(recording: Recording, process: Process, iterators: tuple[int, ...]) -> list[int]:
    """Return the process numbers of the workers that these iterators started."""
    table = recording.tables["worker"]
    told = table[(table["process"] == process.number) & (table["flags"] == 0) & np.isin(table["iterator"], iterators)]
    pids = set(told["pid"].tolist())
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
    """Return what the worker's feeder thread spent on pickling each batch; NaN where it was not seen."""
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
