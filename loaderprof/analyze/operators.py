"""Operators of the batches that were timed one by one, by the name and the line that the user wrote.

What a library does inside one of its transforms counts as that transform's. Where no line of the user's leads to an
operator, it gets the line that created the operator, or the dataset. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from loaderprof.analyze.loop import Loop
from loaderprof.analyze.loop_side import shown_place
from loaderprof.analyze.making import of_producers
from loaderprof.analyze.stages import BY_HAND, stage_of_operator
from loaderprof.findings import Stage
from loaderprof.recording import validate
from loaderprof.recording.facts import LoaderFacts
from loaderprof.recording.reader import Recording

# The place of what timers leave of a batch, which belongs to no timed function.
REST = "(rest)"
# What the timers leave includes their own calls, each of which takes about this long.
CALL_COST_S = 2e-6
TENSORS = "torch.utils.data.dataset.TensorDataset"
# Operators that enclose one another: no user nests them deeper.
MAX_NESTING = 12
# The line that creates one of these is not the line of what runs inside it.
_CONTAINERS = re.compile(
    r"^(Compose|Sequential|BaseCompose|ReplayCompose|OneOf|SomeOf|OneOrOther|Sometimes|Random(Apply|Choice|Order)|"
    r"\w*Dataset|\w*Pipeline|\w*Subset|\w*Loader)$"
)
_ENTRIES = ("__call__", "forward", "apply", "__getitem__", "__getitems__", "__next__", "__iter__")
_SAMPLES = ("__getitem__", "__getitems__", "__next__", "__iter__")


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator's self time per batch that was timed per operator.

    `stage` is None where its name does not show it; `place` is `file:line` where the user defines it, `REST` for what
    no operator took.
    """

    stage: Stage | None
    name: str
    where: str | None
    cpu_s: float
    blocked_s: float
    place: str = ""


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the journal: `name[@place][@in owner@place]`, and the user's line that called it."""

    name: str
    place: str
    owner: str
    caller: str

    @classmethod
    def of(cls, text: str, caller: str) -> _Row:
        head, _, owner = text.partition("@in ")
        name, _, place = head.partition("@")
        return cls(name, place, owner, caller)

    @property
    def users_own(self) -> bool:
        return bool(self.place) and not installed(self.place)


def rows_of(recording: Recording, loop: Loop) -> np.ndarray:
    """Return the operator rows of a loop's producers."""
    rows = of_producers(recording, loop, recording.tables["operator"])
    return rows[rows["name"] >= 0]


def of_fetching(recording: Recording, loop: Loop) -> list[Operator]:
    """Return the operators that samples pass through, and what they leave of a batch."""
    rows = rows_of(recording, loop)
    batches = batches_of(rows)
    found = _operators(recording, rows[(rows["flags"] & 1) == 0], batches, _dataset_line(recording, loop))
    made, dataset = loop.made, shown_name(str(loop.facts.dataset or "dataset"))
    where = shown_place(recording, _dataset_line(recording, loop))
    # Rows of tensors in memory: fetching them is all that it does.
    stage: Stage | None = "read" if loop.facts.dataset == TENSORS else None
    if made.deep.any():
        cpu = float((made.cpu - made.collate_cpu)[made.deep].mean()) - sum(each.cpu_s for each in found)
        wall = float((made.wall - made.collate)[made.deep].mean()) - sum(each.cpu_s + each.blocked_s for each in found)
        calls = float(rows["calls"].sum()) / batches * CALL_COST_S
        wall = max(0.0, wall - calls)
        # Installing the timers is in the batch's CPU time, but not in its wall time.
        cpu = min(max(0.0, cpu - calls), wall)
        if wall > 0:
            found.append(Operator(stage, dataset, where, cpu, wall - cpu, REST))
    return found or [Operator(stage, dataset, where, 1.0, 1.0, REST)]


def of_collating(recording: Recording, loop: Loop) -> list[Operator]:
    """Return the operators inside the collate function, and what they leave of it."""
    rows = rows_of(recording, loop)
    # What torch's or a library's own collate function does is that function's.
    timed = _operators(recording, rows[(rows["flags"] & 1) == 1], batches_of(rows), "")
    made, name = loop.made, str(loop.facts.collate_fn or "collate")
    own = next((each for each in timed if each.place and shown_name(name) in each.name), None)
    found = [each for each in timed if each.where and each is not own]
    cpu = wall = 1.0
    if made.deep.any():
        wall = max(0.0, float(made.collate[made.deep].mean()) - sum(each.cpu_s + each.blocked_s for each in found))
        cpu = min(wall, max(0.0, float(made.collate_cpu[made.deep].mean()) - sum(each.cpu_s for each in found)))
    # Never 0, so that where nothing else was timed all of collating is scaled to this function.
    where = own.where if own else shown_place(recording, made_at(recording).get(name.rpartition(".")[2], ""))
    left = Operator("collate", shown_name(name), where, max(1e-9, cpu), max(1e-9, wall - cpu))
    return [*found, left]


def batches_of(rows: np.ndarray) -> int:
    """Return how many batches timed in depth some operator rows are of, at least 1."""
    return max(1, len(np.unique(rows[["process", "iterator", "batch"]]))) if len(rows) else 1


def _operators(recording: Recording, rows: np.ndarray, batches: int, fallback: str) -> list[Operator]:
    cpu: dict[_Row, float] = defaultdict(float)
    wall: dict[_Row, float] = defaultdict(float)
    for row in rows:
        caller = recording.texts[row["caller"]] if row["caller"] >= 0 else ""
        key = _Row.of(recording.texts[row["name"]], caller)
        cpu[key] += float(row["cpu_ns"]) / 1e9 / batches
        wall[key] += float(row["wall_ns"]) / 1e9 / batches
    names = _Names(recording, wall, fallback)
    found: dict[tuple[str, str], Operator] = {}
    for row, seconds in wall.items():
        spent = min(cpu[row], seconds)
        each = names.operator(row, spent, max(0.0, seconds - spent))
        before = found.get((each.name, each.where or ""))
        if before is not None:
            each = Operator(
                each.stage,
                each.name,
                each.where,
                each.cpu_s + before.cpu_s,
                each.blocked_s + before.blocked_s,
                each.place or before.place,
            )
        found[each.name, each.where or ""] = each
    return list(found.values())


class _Names:
    """Finds the name and the line by which the user knows an operator."""

    def __init__(self, recording: Recording, rows: Iterable[_Row], fallback: str) -> None:
        self._recording, self._fallback = recording, fallback
        self._lines = made_at(recording)
        # Who calls whom, of a library's operators: `name@place` -> the same of its caller.
        self._owners: dict[str, str] = {}
        for row in rows:
            if row.place and row.owner:
                self._owners.setdefault(f"{row.name}@{row.place}", row.owner)

    def operator(self, row: _Row, cpu_s: float, blocked_s: float) -> Operator:
        stage = stage_of_operator(row.name)
        if row.users_own or row.name.startswith(BY_HAND):
            where = shown_place(self._recording, row.place or row.caller)
            return Operator(stage, shown_name(row.name), where, cpu_s, blocked_s, row.place)
        enclosing = [name.partition("@")[0] for name in self._enclosing(row.owner)]
        known = [row.name, *enclosing] if row.place else enclosing
        name = row.name
        # What is called inside a container is an operator of its own.
        outside = next((at for at, each in enumerate(known) if at and _holds_operators(each)), len(known))
        transforms = [each for each in known[:outside] if not _holds_operators(each)]
        made = next((each for each in transforms if made_as(each) in self._lines), None)
        if made is not None and (stage == "transform" or made == row.name):
            # The user knows the transform, not the library's functions inside it.
            name, stage = made_as(made, dotted=True), stage_of_operator(made)
        elif stage == "transform" and transforms:
            name, stage = transforms[-1], stage_of_operator(transforms[-1])
        line = self._lines.get(made_as(made)) if made is not None and (name != row.name or not row.caller) else None
        line = line or row.caller or self._first_line(enclosing) or self._fallback
        return Operator(stage, shown_name(name), shown_place(self._recording, line), cpu_s, blocked_s)

    def _first_line(self, names: list[str]) -> str:
        return next((self._lines[made_as(name)] for name in names if made_as(name) in self._lines), "")

    def _enclosing(self, owner: str) -> list[str]:
        found: list[str] = []
        while owner and owner not in found and len(found) < MAX_NESTING:
            found.append(owner)
            owner = self._owners.get(owner, "")
        return found


def made_as(name: str | None, dotted: bool = False) -> str:
    """Return the class or function that a user's line calls to make the operator of a dotted name."""
    parts = (name or "").split(".")
    method = len(parts) > 1 and (parts[-1] in _ENTRIES or parts[-2].lstrip("_")[:1].isupper())
    parts = parts[:-1] if method else parts
    return ".".join(parts) if dotted else parts[-1]


def made_at(recording: Recording) -> dict[str, str]:
    """Return the user's lines that make operators, datasets and loaders: name -> `file:line`."""
    return dict(recording.meta.made_at)


def names_made(recording: Recording) -> set[str]:
    """Return the names of what the user's lines may have made: operators, datasets, loaders, collate functions."""
    heads = (part.partition("@")[0] for text in _texts(recording) for part in text.split("@in ") if "@" in part)
    facts = (name for each in _facts(recording) for name in (each.dataset, each.type, each.collate_fn))
    return {made_as(head) for head in heads} | {name.rpartition(".")[2] for name in facts if name}


def users_files(recording: Recording) -> set[str]:
    """Return the user's own files that a recording names."""
    table = recording.tables["operator"]
    callers = [recording.texts[number] for number in np.unique(table["caller"]) if number >= 0]
    places = [part.partition("@")[2] for text in _texts(recording) for part in text.split("@in ")]
    facts = [place or "" for each in _facts(recording) for place in (each.where, each.dataset_where)]
    lines = [*callers, *places, *facts, *recording.meta.sources]
    started = [str(word) for word in recording.meta.command or () if str(word).endswith(".py")]
    scripts = {str(PurePath(str(recording.meta.cwd or "."), word)) for word in started}
    return {line.rpartition(":")[0] for line in lines if line and not installed(line)} - {""} | scripts


def _texts(recording: Recording) -> list[str]:
    return [recording.texts[number] for number in np.unique(recording.tables["operator"]["name"]) if number >= 0]


def _facts(recording: Recording) -> list[LoaderFacts]:
    numbers = np.unique(recording.tables["iterator"]["loader"])
    return [validate.facts(recording.texts[number]) for number in numbers if number >= 0]


def _holds_operators(name: str) -> bool:
    return name.rpartition(".")[2] in _SAMPLES or _CONTAINERS.match(made_as(name)) is not None


def _dataset_line(recording: Recording, loop: Loop) -> str:
    """Return the line of the dataset: the user's own code, or the line that makes it, or its loader, or iterates that."""
    place = loop.facts.dataset_where or ""
    if place and not installed(place):
        return place
    lines = made_at(recording)
    found = (lines.get((name or "").rpartition(".")[2]) for name in (loop.facts.dataset, loop.facts.type))
    return next(filter(None, found), "") or str(loop.facts.where or "")


def installed(place: str) -> bool:
    """Whether `file:line` lies in an installed package or the standard library."""
    return "site-packages" in place or "dist-packages" in place or "/lib/python3" in place


def shown_name(name: str) -> str:
    """Return a dotted name without the parts that mean nothing to the user."""
    return name.removeprefix("__main__.").removeprefix("__mp_main__.").replace(".<locals>", "")
