"""A tf.data pipeline as it ran: each operation's stage, and what a batch costs it, from readings of TensorFlow's own model.

The model counts, for each node of the running pipeline, the elements that it gave and the seconds that its function took
(wall time of kernels, of all threads together). TensorFlow rewrites pipelines (a map and a batch become one node, a
stateless map is made parallel), so nodes are matched with the operations that the user wrote in their order. Pure: no
torch, no clock, no processes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from loaderprof.analyze.loop import Loop
from loaderprof.analyze.loop_side import shown_place
from loaderprof.findings import Stage
from loaderprof.recording.reader import Recording
from loaderprof.recording.tables import Table

# A function that is blocked for more than this share of its time is waiting for what it reads.
MOSTLY_BLOCKED = 0.5
# What the nodes of a pipeline are called, by what they do; the first that fits.
_FAMILIES = (
    ("map", r"^(Parallel)?Map(V\d)?$|^MapAndBatch"),
    ("interleave", r"Interleave"),
    ("batch", r"Batch"),
    ("prefetch", r"^Prefetch"),
    ("cache", r"Cache|Snapshot"),
    ("shuffle", r"Shuffle"),
    ("repeat", r"Repeat"),
    ("filter", r"^Filter|^(Parallel)?Filter"),
    ("generator", r"Generator"),
    ("flat_map", r"^FlatMap"),
    ("file", r"TFRecord|TextLine|FixedLength|SSTable|RecordIO|Csv"),
    ("source", r"TensorSlice|Range|^Tensor"),
)
# Stages of a pipeline; the loop's step beside it is the `device`.
STAGES: tuple[Stage, ...] = ("read", "decode", "transform", "collate", "sampler", "handover")
_BY_FAMILY: dict[str, Stage] = {
    "interleave": "read",
    "batch": "collate",
    "prefetch": "handover",
    "cache": "read",
    "shuffle": "sampler",
    "filter": "transform",
    "generator": "transform",
    "flat_map": "transform",
    "file": "read",
    "source": "read",
}
# Nodes that work ahead of demand, in threads of their own; the others work when their consumer asks for an element.
_AHEAD = re.compile(r"^Parallel|^MapAndBatch|^Prefetch")
_DECODES = re.compile(r"Decode(?!Raw|Base64|Padded)|^Parse|ParseExample|Tokenize")
_DECODES_IN_PYTHON = re.compile(r"(?i)decode|imread|parse|loads")
# Fewer timed calls of Python functions do not show how much of them is blocked.
MIN_CALLS = 10


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of the user's pipeline.

    `kind` and `name`: what TensorFlow and a report call it; `where`: its line; `ops`, `words`: TensorFlow operations in its
    function, and names that its Python code uses; `random`: whether it draws random numbers.
    """

    kind: str
    name: str
    where: str | None
    ops: tuple[str, ...]
    words: tuple[str, ...]
    random: bool

    @property
    def family(self) -> str:
        """What it does."""
        return family(self.kind)


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the running pipeline.

    Attributes:
        name: TensorFlow's.
        stage: that of most of its time.
        operation: the user's; None where none could be matched.
        work_s: seconds of its function a batch, all its threads together; of its changing children too, where it has some.
        parallelism: calls at once; 0: it has no such setting.
        tunable: whether AUTOTUNE decides how many.
        ahead: whether it works before it is asked.
        elements: that it gave a batch.
        bytes_s: bytes that it gave a batch.
    """

    name: str
    stage: Stage
    operation: Operation | None
    work_s: float
    parallelism: int
    tunable: bool
    ahead: bool
    elements: float
    bytes_: float

    @property
    def label(self) -> str:
        """What it is called in a report: `map(load)`."""
        return self.operation.name if self.operation is not None else self.name

    @property
    def where(self) -> str | None:
        """The line of the user's that it stands for."""
        return self.operation.where if self.operation is not None else None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline as it ran: its nodes from the output to the source, and the process's CPU and run-queue seconds a batch.

    `operations`: as the user wrote them, from the output to the source. `batches`: that were measured. `blocked`: share of
    the functions' time in which they were blocked, their waiting for a core left out; None: not known.
    """

    nodes: tuple[Node, ...]
    operations: tuple[Operation, ...]
    batches: int
    cpu_s: float
    runq_s: float
    blocked: float | None


@dataclass(slots=True)
class _Sum:
    """What is summed of one node over all stretches between two readings."""

    elements: float = 0.0
    work_ns: float = 0.0
    bytes_: float = 0.0
    parallelism: int = 0
    tunable: bool = False


def family(name: str) -> str:
    """Return what a node or an operation does, by its name."""
    return next((kind for kind, pattern in _FAMILIES if re.search(pattern, name)), "other")


def operations_of(recording: Recording, loop: Loop) -> tuple[Operation, ...]:
    """Return the operations of a loop's pipeline as the user wrote them, from the output on."""
    try:
        entries = json.loads(str(loop.facts.pipeline or "[]"))
    except (ValueError, RecursionError):
        return ()
    return tuple(_operation(recording, each) for each in entries if isinstance(each, dict))


def _operation(recording: Recording, facts: dict[str, Any]) -> Operation:
    kind, function = str(facts.get("op")), facts.get("function")
    short = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.removeprefix("Parallel")).lower()
    ops = tuple(str(each) for each in facts.get("told") or ())
    return Operation(
        kind,
        f"{short}({function})" if function else short,
        shown_place(recording, str(facts.get("where") or "")),
        ops,
        tuple(str(each) for each in facts.get("words") or ()),
        bool(facts.get("random")),
    )


def pipeline_of(
    recording: Recording, loop: Loop, step_s: float, draw: np.random.Generator | None = None
) -> Pipeline | None:
    """Return the pipeline behind a loop; None where its model was not read, or not twice.

    Args:
        recording: the run.
        loop: one of its loops.
        step_s: seconds a batch that the loop was away, for telling whose the process's CPU is.
        draw: draws the stretches to sum anew, for a bootstrap.
    """
    stretches = _stretches(recording.tables["node"], loop)
    if not stretches:
        return None
    if draw is not None:
        stretches = [stretches[number] for number in draw.integers(0, len(stretches), len(stretches))]
    sums, batches, cpu, runq, names = _summed(recording, stretches)
    if not batches:
        return None
    operations = operations_of(recording, loop)
    work_s = sum(each.work_ns for each in sums.values()) / 1e9 / batches
    cpu_s, runq_s = cpu / 1e9 / batches, runq / 1e9 / batches
    blocked, in_python = _blocked(work_s, step_s, cpu_s, runq_s), blocked_in_python(recording, loop)
    if in_python is not None and any("PyFunc" in op for each in operations for op in each.ops):
        blocked = max(blocked or 0.0, in_python)
    nodes, rest = [], list(operations)
    for place, name in enumerate(names):
        found, each = _matching(name, rest), sums[place]
        stage = _stage(name, found, blocked, in_python)
        nodes.append(
            Node(
                name,
                stage,
                found,
                each.work_ns / 1e9 / batches,
                each.parallelism,
                each.tunable,
                bool(_AHEAD.search(name)),
                each.elements / batches,
                each.bytes_ / batches,
            )
        )
    return Pipeline(tuple(nodes), operations, round(batches), cpu_s, runq_s, blocked)


def _stretches(table: Table, loop: Loop) -> list[tuple[Table, Table]]:
    """Return the pairs of readings that follow one another, of one iterator."""
    mine = table[(table["process"] == loop.process.number) & np.isin(table["iterator"], loop.iterators)]
    found = []
    for iterator in np.unique(mine["iterator"]):
        rows = mine[mine["iterator"] == iterator]
        readings = [rows[rows["t_read"] == moment] for moment in np.unique(rows["t_read"])]
        found += list(pairwise(readings))
    return found


def _summed(
    recording: Recording, stretches: list[tuple[Table, Table]]
) -> tuple[dict[int, _Sum], float, float, float, list[str]]:
    """Return sums by place on the way from output to source, batches, CPU, run-queue time, and that way's node names."""
    ways = [_way(recording, after) for _, after in stretches]
    # Nodes whose data are used up are gone from the last reading of an epoch.
    names = [name for _, name in max(ways, key=len)]
    sums = {place: _Sum() for place in range(len(names))}
    batches = cpu = runq = 0.0
    for (before, after), way in zip(stretches, ways, strict=True):
        if [name for _, name in way] != names[: len(way)]:
            continue
        by_node = {int(row["node"]): row for row in before}
        rows = {int(row["position"]): row for row in after}
        gave = _since(rows[way[0][0]], by_node, "elements")
        if gave <= 0:
            continue
        batches += gave
        cpu += max(0, int(after["cpu_ns"][0]) - int(before["cpu_ns"][0]))
        runq += max(0, int(after["runq_ns"][0]) - int(before["runq_ns"][0]))
        for place, (position, _) in enumerate(way):
            row, each = rows[position], sums[place]
            each.elements += _since(row, by_node, "elements")
            each.work_ns += _since(row, by_node, "processing_ns")
            each.bytes_ += _since(row, by_node, "bytes_produced")
            each.parallelism, each.tunable = int(row["parallelism"]), bool(row["flags"] & 1)
            each.work_ns += _of_children(row, after, by_node, {position for position, _ in way})
    return sums, batches, cpu, runq, names


def _since(row: Any, before: dict[int, Any], field: str) -> float:
    earlier = before.get(int(row["node"]))
    return max(0.0, float(row[field]) - (float(earlier[field]) if earlier is not None else 0.0))


def _way(recording: Recording, reading: Table) -> list[tuple[int, str]]:
    """Return position and name of the nodes from the output on, each time the first input; interleaved files are not on it."""
    first: dict[int, int] = {}
    for row in reading:
        first.setdefault(int(row["parent"]), int(row["position"]))
    names = {int(row["position"]): recording.texts[int(row["name"])] for row in reading if row["name"] >= 0}
    way: list[tuple[int, str]] = []
    position = first.get(-1)
    while position is not None and len(way) < 200:
        way.append((position, names.get(position, "")))
        position = first.get(position)
    return way


def _of_children(row: Any, reading: Table, before: dict[int, Any], way: set[int]) -> float:
    """Return nanoseconds of the nodes that feed this one beside the way: the files of an interleave, which come and go.

    Of those that have gone the cost is estimated from the cost per element of those that are there.
    """
    mine = [each for each in reading if each["parent"] == row["position"] and int(each["position"]) not in way]
    if not mine:
        return 0.0
    gave = sum(int(each["elements"]) for each in mine)
    cost = sum(int(each["processing_ns"]) for each in mine)
    return _since(row, before, "elements") * cost / gave if gave else 0.0


def _matching(name: str, rest: list[Operation]) -> Operation | None:
    """Return the user's next operation that a node stands for, and drop it and those before it."""
    wanted = family(name)
    if wanted == "other":
        return None
    at = next((number for number, each in enumerate(rest) if each.family == wanted), None)
    if at is None:
        return None
    found = rest[at]
    del rest[: at + 1]
    return found


def _blocked(work_s: float, step_s: float, cpu_s: float, runq_s: float) -> float | None:
    """Return the share of the functions' time in which they were blocked.

    The process's CPU and its waiting for cores are theirs by their share of what was under way.
    """
    if work_s <= 0 or cpu_s <= 0:
        return None
    mine = work_s / (work_s + step_s)
    return _share_blocked(work_s - (cpu_s + runq_s) * mine, cpu_s * mine)


def _share_blocked(blocked: float, cpu: float) -> float:
    """Return blocked time over that and CPU: what a thread waits for a core is the machine's doing, not the function's."""
    return blocked / (blocked + cpu) if blocked > 0 else 0.0


def blocked_in_python(recording: Recording, loop: Loop) -> float | None:
    """Return the share of their time in which the pipeline's Python functions were blocked; None for too few calls."""
    calls = recording.tables["call"]
    calls = calls[calls["process"] == loop.process.number]
    cpu = float(calls["cpu_ns"].sum())
    if len(calls) < MIN_CALLS:
        return None
    return _share_blocked(float((calls["t_done"] - calls["t_begun"]).sum() - calls["runq_ns"].sum()) - cpu, cpu)


def _stage(name: str, operation: Operation | None, blocked: float | None, in_python: float | None) -> Stage:
    kind, ops = family(name), operation.ops if operation is not None else ()
    by_python = kind == "generator" or any("PyFunc" in each for each in ops)
    waits = (in_python if by_python and in_python is not None else blocked or 0.0) > MOSTLY_BLOCKED
    if waits and (by_python or "ReadFile" in ops):
        return "read"
    if kind not in ("map", "generator"):
        return _BY_FAMILY.get(kind, "handover")
    if any(_DECODES.search(each) for each in ops):
        return "decode"
    if by_python and operation is not None:
        return "decode" if any(_DECODES_IN_PYTHON.search(each) for each in operation.words) else "transform"
    return "read" if "ReadFile" in ops else "transform"
