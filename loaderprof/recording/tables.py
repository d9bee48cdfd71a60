"""A journal's records as numpy tables.

Imports numpy and the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from loaderprof.recording import journal as layout
from loaderprof.recording import validate

_RECORD = np.dtype(
    [("kind", "u1"), ("flags", "u1"), ("extra", "<u2"), ("thread", "<u4"), ("v", "<i8", 15)], align=False
)
Table = np.ndarray[Any, np.dtype[Any]]
Parts = dict[str, list[Table]]
KINDS = {
    name.lower(): getattr(layout, name)
    for name in (
        "ITERATOR",
        "TAKE",
        "END",
        "FETCH",
        "PICKLE",
        "RECEIVE",
        "PIN",
        "OPERATOR",
        "SAMPLE",
        "SIZE",
        "WORKER",
        "DEVICE",
        "PAUSE",
        "SETUP",
        "PHASES",
        "NODE",
        "CALL",
    )
}


@dataclass(frozen=True, slots=True)
class Clock:
    """What makes a further node's records those of one recording: added to its process ids and to its moments."""

    pids: int
    ns: int


def no_parts() -> Parts:
    """Return tables to which nothing was added yet."""
    return {name: [] for name in KINDS}


def add(parts: Parts, body: bytes, process: int, texts: list[str], clock: Clock) -> int:
    """Add a journal's records to the parts of tables, and its texts to the recording's; return how many were damaged.

    Args:
        parts: by kind, an entry a journal.
        body: what follows the journal's header; a torn record at its end does not count.
        process: the number of its process in the recording.
        texts: of the whole recording.
        clock: of its node.
    """
    records = np.frombuffer(body[: len(body) // _RECORD.itemsize * _RECORD.itemsize], _RECORD)
    numbers = _number(_texts(records[records["kind"] == layout.TEXT]), texts)
    damaged = 0
    for name, kind in KINDS.items():
        rows = records[records["kind"] == kind]
        if len(rows):
            good = validate.possible(kind, rows["v"])
            damaged += len(rows) - int(good.sum())
            parts[name].append(_table(kind, rows[good], process, numbers, clock))
    return damaged


def joined(parts: Parts) -> dict[str, Table]:
    """Return the tables that the parts make, an empty one for each kind without any; the parts are used up."""
    made = {}
    for name, kind in KINDS.items():
        # The parts of each kind are released before those of the next are joined, to bound the memory used.
        pieces = parts.pop(name)
        made[name] = np.concatenate(pieces) if pieces else np.zeros(0, _dtype(kind))
    return made


def _dtype(kind: int) -> np.dtype[Any]:
    fields = [("process", "i4"), ("flags", "u1"), ("extra", "u2"), ("thread", "u4")]
    return np.dtype(fields + [(name, "i8") for name in layout.FIELDS[kind]])


def _texts(rows: Table) -> dict[int, str]:
    """Reassemble the texts of one journal; a text cut off when its process was killed is left out."""
    # By position: two threads that came upon a text at the same moment both wrote it.
    chunks: dict[int, dict[int, bytes]] = {}
    lengths: dict[int, int] = {}
    for row in rows:
        number, place = int(row["v"][0]), int(row["v"][1])
        chunks.setdefault(number, {})[place >> 32] = row["v"][2:].tobytes()
        lengths[number] = place & 0xFFFFFFFF
    whole = {}
    for number, pieces in chunks.items():
        raw = b"".join(piece for _, piece in sorted(pieces.items()))
        if len(raw) >= lengths[number]:
            whole[number] = raw[: lengths[number]].decode("utf-8", "replace")
    return whole


def _number(texts: dict[int, str], whole: list[str]) -> dict[int, int]:
    """Give one journal's texts their numbers in the whole recording."""
    known = {text: number for number, text in enumerate(whole)}
    numbers = {}
    for number, text in texts.items():
        if text not in known:
            known[text] = len(whole)
            whole.append(text)
        numbers[number] = known[text]
    return numbers


def _table(kind: int, rows: Table, process: int, texts: dict[int, int], clock: Clock) -> Table:
    table = np.zeros(len(rows), _dtype(kind))
    table["process"] = process
    for name in ("flags", "extra", "thread"):
        table[name] = rows[name]
    for column, name in enumerate(layout.FIELDS[kind]):
        values = rows["v"][:, column]
        if name in ("loader", "name", "caller", "file", "error"):
            values = np.array([texts.get(int(value), -1) for value in values], np.int64)
        elif name == "runq_ns":
            values = np.maximum(values, 0)
        elif name == "pid":
            values = values + clock.pids
        elif name.startswith("t_"):
            # 0 stands for a moment that was not taken.
            values = np.where(values > 0, values + clock.ns, values)
        table[name] = values
    return table
