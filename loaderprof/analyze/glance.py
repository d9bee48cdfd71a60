"""A job at a glance while it runs, from its recording as it grows: steps, steps a second, waiting, likely stage.

A guess from little data, for whoever watches; the report at the end uses all of it, and the replay. Reads a bounded
piece of a bounded number of journals at each look, and keeps sums only. For journals the standard library is enough; never writes.
"""

from __future__ import annotations

import json
import struct
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loaderprof.analyze.stages import never_reads, stage_of_operator
from loaderprof.findings import Stage
from loaderprof.recording import journal as layout

WINDOW_S = 10.0
"""Rates are of the last seconds: long enough for slow steps, short enough to show a change."""

FEW_WAITS = 0.05
"""Below this share of waiting the step itself is the likely limit, as a verdict has it for gains."""

# A loop faster than 0.4 ms a batch writes one record for many: 2,500 records a second are the most there can be.
CHUNK_RECORDS, MAX_CHUNKS, MAX_TAKES = 128, 32, 32_768
# Workers are alike, so that a few represent all. A host has no more ranks than GPUs.
MAX_MAINS, MAX_WORKERS = 16, 8

_READ = (layout.TAKE, layout.OPERATOR, layout.FETCH, layout.PICKLE, layout.ITERATOR)
_RECORD = struct.Struct("<BBHI15q")


@dataclass(frozen=True, slots=True)
class Glance:
    """What can be said of a job now; None: not known yet.

    Attributes:
        steps: batches taken by the training loop; of several ranks, by the one that took the most.
        steps_per_s: of the last `WINDOW_S` seconds.
        wait_share: of the time from batch to batch, spent waiting for batches, in the last `WINDOW_S` seconds.
        idle_s: since the last batch was taken.
        ready: finished batches that lay in the queue when the last one was asked for.
        workers: of the loader that was iterated last.
        costs: by stage, what making a batch costs as far as it was seen, most expensive first: seconds, or shares where
            only shares are known.
        samples: of stacks, where those are all there is.
        load_s: making a batch took, whoever made it; the mean of all that were measured.
    """

    steps: int = 0
    steps_per_s: float | None = None
    wait_share: float | None = None
    idle_s: float | None = None
    ready: int | None = None
    workers: int | None = None
    costs: dict[Stage, float] = field(default_factory=dict)
    samples: int | None = None
    load_s: float | None = None

    def likely(self) -> Stage | None:
        """Return the stage that is likely to be the limit; None where too little was seen."""
        if self.wait_share is None:
            return None
        if self.wait_share < FEW_WAITS:
            return "device"
        return max(self.costs, key=lambda stage: self.costs[stage], default=None)

    def metrics(self) -> dict[str, float]:
        """Return it by name, for a logger; what is not known is left out."""
        wait = self.wait_share / self.steps_per_s if self.wait_share is not None and self.steps_per_s else None
        found = {
            "steps": self.steps or None,
            "steps_per_s": self.steps_per_s,
            "wait_share": self.wait_share,
            "wait_time_s": wait,
            "load_time_s": self.load_s,
            "ready": self.ready,
        }
        return {name: float(value) for name, value in found.items() if value is not None}


class Journals:
    """The journals of a running job, read on from where the last look ended.

    Args:
        folder: where the job's processes write them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: set[str] = set()
        self._mains: list[_Process] = []
        self._workers: list[_Process] = []
        self._sums = _Sums()

    def look(self, now_ns: int) -> Glance:
        """Return the job as it is at `now_ns`, of `time.perf_counter_ns`."""
        self._find()
        for each in (*self._mains, *self._workers):
            each.read_on(self._sums)
        main = max(self._mains, key=lambda each: each.steps, default=None)
        if main is None:
            return Glance()
        steps_per_s, wait_share = main.rates(now_ns)
        idle_s = (now_ns - main.last_ns) / 1e9 if main.last_ns else None
        return Glance(
            main.steps,
            steps_per_s,
            wait_share,
            idle_s,
            main.ready,
            main.workers,
            self._sums.costs(),
            load_s=self._sums.load_s(),
        )

    def _find(self) -> None:
        """Take up journals that are new; of workers the latest few, so that those of this epoch are among them."""
        try:
            paths = sorted(self._folder.glob("*.lpj"))
        except OSError:
            return
        for path in paths:
            header = _header(path) if path.name not in self._known else None
            if header is not None:  # else it is known, or its process is about to write it
                self._known.add(path.name)
                of = self._mains if header.get("worker") is None else self._workers
                of.append(_Process(len(self._known), path))
        del self._mains[MAX_MAINS:], self._workers[:-MAX_WORKERS]


def _header(path: Path) -> dict[str, object] | None:
    try:
        with open(path, "rb") as file:
            head = file.read(layout.HEADER_BYTES)
        header = json.loads(head[len(layout.MAGIC) :].rstrip(b"\0")) if head.startswith(layout.MAGIC) else None
    except (OSError, ValueError):
        return None
    return header if isinstance(header, dict) else None


class _Sums:
    """What batches cost, by stage: sums over all processes that were read."""

    def __init__(self) -> None:
        self._timed: set[tuple[int, int]] = set()
        # Of batches timed per operator: on a CPU, and off it (blocked, or waiting for a core).
        self._cpu_s: defaultdict[Stage, float] = defaultdict(float)
        self._off_s: defaultdict[Stage, float] = defaultdict(float)
        # Of all batches: off the CPU, and of that blocked.
        self._all_off_s = self._all_blocked_s = 0.0
        self._batches, self._made_s = 0, 0.0
        # By stage and what was clocked of it.
        self._clocked: Counter[tuple[Stage, str]] = Counter()
        self._clocked_s: defaultdict[tuple[Stage, str], float] = defaultdict(float)

    def operator(self, batch: tuple[int, int], name: str, collating: bool, wall_s: float, cpu_s: float) -> None:
        """Add an operator's own time within a batch that was timed per operator."""
        stage = stage_of_operator(name)
        self._timed.add(batch)
        if stage is None or collating:  # all of collating is clocked at every batch
            return
        self._cpu_s[stage] += cpu_s
        # As the report has it: what blocks a decoder that opens its file itself is the reading.
        reads = stage == "decode" and not never_reads(name)
        self._off_s["read" if reads else stage] += max(0.0, wall_s - cpu_s)

    def batch(self, count: int, wall_s: float, cpu_s: float, runq_s: float) -> None:
        """Add the making of one batch, or of several that share a record."""
        self._batches += count
        self._made_s += wall_s
        off_s = max(0.0, wall_s - cpu_s)
        self._all_off_s += off_s
        self._all_blocked_s += max(0.0, off_s - max(0.0, runq_s))

    def clock(self, stage: Stage, what: str, batches: int, seconds: float) -> None:
        """Add what was clocked at every batch."""
        self._clocked[stage, what] += batches
        self._clocked_s[stage, what] += seconds

    def load_s(self) -> float | None:
        """Return seconds that making a batch took; None where none was measured."""
        return self._made_s / self._batches if self._batches else None

    def costs(self) -> dict[Stage, float]:
        """Return seconds a batch by stage, of what was measured; most expensive first."""
        # Timers cannot distinguish being blocked from waiting for a core; the kernel can, for whole batches.
        blocked = self._all_blocked_s / self._all_off_s if self._all_off_s else 1.0
        found: defaultdict[Stage, float] = defaultdict(float)
        for stage in {*self._cpu_s, *self._off_s}:
            found[stage] += (self._cpu_s[stage] + blocked * self._off_s[stage]) / len(self._timed)
        for (stage, what), total in self._clocked_s.items():
            found[stage] += total / self._clocked[stage, what]
        return slowest_first(found)


def slowest_first(costs: Mapping[Stage, float]) -> dict[Stage, float]:
    """Return the costs above 0, the largest first."""
    return {stage: cost for stage, cost in sorted(costs.items(), key=lambda item: -item[1]) if cost > 0}


class _Process:
    """One journal, read on in bounded pieces; what its process took, and where it makes batches, what they cost."""

    def __init__(self, number: int, path: Path) -> None:
        self._number, self._path, self._at = number, path, layout.HEADER_BYTES
        self._texts: dict[int, dict[int, bytes]] = {}
        self._training = False
        # (asked, taken, batches, waited) of the last takes; nanoseconds.
        self._takes: deque[tuple[int, int, int, int]] = deque(maxlen=MAX_TAKES)
        self.steps = self.last_ns = 0
        self.ready: int | None = None
        self.workers: int | None = None

    def read_on(self, sums: _Sums) -> None:
        """Take in what was written since the last look, up to a bound."""
        for kind, flags, extra, _, *values in self._records():
            if kind == layout.TEXT:
                self._texts.setdefault(values[0], {})[values[1] >> 32] = struct.pack("<13q", *values[2:])
            elif kind in _READ:
                row = dict(zip(layout.FIELDS[kind], values, strict=False))
                if kind == layout.TAKE:
                    self._take(row, bool(flags & 1), extra, sums)
                elif kind == layout.OPERATOR:
                    batch, name = (self._number, row["batch"]), self._text(row["name"])
                    sums.operator(batch, name, bool(flags & 1), row["wall_ns"] / 1e9, row["cpu_ns"] / 1e9)
                elif kind == layout.FETCH:
                    count = max(1, row["count"])
                    sums.batch(count, row["wall_ns"] / 1e9, row["cpu_ns"] / 1e9, row["runq_ns"] / 1e9)
                    sums.clock("collate", "collate", count, row["collate_ns"] / 1e9)
                elif kind == layout.PICKLE:
                    sums.clock("handover", "pickle", 1, (row["t_done"] - row["t_begun"]) / 1e9)
                elif not flags & 1:  # else a new epoch of the same workers
                    self.workers = extra

    def _records(self) -> list[tuple[int, ...]]:
        """Return (kind, flags, extra, thread, 15 values) of each new record."""
        found: list[tuple[int, ...]] = []
        try:
            with open(self._path, "rb") as file:
                file.seek(self._at)
                for _ in range(MAX_CHUNKS):
                    chunk = file.read(CHUNK_RECORDS * layout.RECORD_BYTES)
                    records = list(_RECORD.iter_unpack(chunk[: len(chunk) - len(chunk) % layout.RECORD_BYTES]))
                    # Room that is not written yet, and a record that is being written, are for the next look.
                    while records and not records[-1][0]:
                        records.pop()
                    self._at += len(records) * layout.RECORD_BYTES
                    found += [record for record in records if record[0]]
                    if len(records) < CHUNK_RECORDS:
                        break
        except OSError:
            return found
        return found

    def _text(self, number: int) -> str:
        """Return the name in a text `name[@place][@in owner@place]`."""
        raw = b"".join(piece for _, piece in sorted(self._texts.get(number, {}).items()))
        return raw.rstrip(b"\0").decode("utf-8", "replace").split("@")[0]

    def _take(self, row: dict[str, int], training: bool, extra: int, sums: _Sums) -> None:
        if training and not self._training:  # what came before was no training: a look at the data, a validation
            self._training, self.steps = True, 0
            self._takes.clear()
        if training != self._training:
            return
        self.steps += row["count"]
        self.last_ns = row["t_taken"]
        self.ready = extra - 1 if extra else self.ready
        self._takes.append((row["t_asked"], row["t_taken"], row["count"], row["wait_ns"]))
        if row["count"] == 1:  # a record of many batches lacks these
            sums.clock("handover", "receive", 1, row["receive_ns"] / 1e9)
            sums.clock("sampler", "index", 1, row["index_ns"] / 1e9)

    def rates(self, now_ns: int) -> tuple[float | None, float | None]:
        """Return steps a second and the share of waiting, of the last seconds; None where none was taken in them."""
        recent = [take for take in self._takes if take[1] > now_ns - WINDOW_S * 1e9]
        if len(recent) < 2:
            return None, None
        # From one batch taken to the last one taken: whole steps.
        first, last = recent[0][1], recent[-1][1]
        seconds = max(1, last - first) / 1e9
        steps = sum(count for *_, count, _ in recent[1:])
        return steps / seconds, min(1.0, sum(waited for *_, waited in recent[1:]) / 1e9 / seconds)
