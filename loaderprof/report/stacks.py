"""Stacks merged into one tree a process, small enough for a page, with the samples of each stretch of time.

A frame holds the samples that ended in it, by stretch, so that the page can add up any selection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from loaderprof import formatting
from loaderprof.findings import Stage
from loaderprof.report.page import Stack
from loaderprof.report.palette import stage

MAX_FRAMES = 3_000
"""Frames a page holds: the rarest beyond it are added to their callers."""

MAX_STACKS = 20_000
"""How many different stacks are kept; the rarest beyond it are merged into one frame."""

STRETCHES = 60
"""Most stretches of time into which samples are sorted: a selection is that exact."""

MAX_NAME = 300
"""Letters of a frame's name; a path may be thousands long."""

ALWAYS = -1
"""The stretch of samples that carry no time."""

Key = tuple[tuple[str, ...], str]


@dataclass(slots=True)
class StackFrame:
    """A node of the tree: samples that ended here by stretch of time, and all samples below it by stage."""

    name: str
    ended: Counter[int] = field(default_factory=Counter)
    stages: Counter[str] = field(default_factory=Counter)
    callees: dict[str, StackFrame] = field(default_factory=dict)
    total: int = 0


@dataclass(frozen=True, slots=True)
class Hot:
    """A frame in which samples ended, and its share of all samples."""

    name: str
    stage: Stage
    share: float


def hottest(stacks: Sequence[Stack], limit: int = 15) -> list[Hot]:
    """Return the frames in which most samples ended."""
    ended: Counter[tuple[str, str]] = Counter()
    for stack in stacks:
        if stack.frames:
            ended[stack.frames[-1], stack.stage] += stack.count
    total = sum(ended.values())
    return [
        Hot(formatting.short(name, MAX_NAME), stage(of), count / total)
        for (name, of), count in ended.most_common(limit)
    ]


def merged_stacks(stacks: Sequence[Stack], end_s: float, notes: dict[str, str]) -> dict[str, Any] | None:
    """Return the trees as JSON values; `None` where no stack was taken."""
    if not stacks:
        return None
    stretches = _stretches(stacks, end_s)
    counts = _counted(stacks, end_s, stretches)
    trees = {process: _tree(found) for process, found in counts.items()}
    kept = _kept(trees)
    dropped = _size(trees) - len(kept)
    notes |= _said(len(stacks), len(kept), dropped)
    stages: list[str] = []
    return {
        "stretches": stretches,
        "timed": any(key != ALWAYS for found in counts.values() for ended in found.values() for key in ended),
        "trees": [[process, _plain(tree, kept, stages)] for process, tree in trees.items()],
        "stages": stages,
    }


def _said(stacks: int, kept: int, dropped: int) -> dict[str, str]:
    """Return what the page says of the merging, where it is more than laying equal stacks together."""
    if stacks <= MAX_FRAMES and not dropped:
        return {}
    rest = f"; the {dropped:,} rarest frames are counted in their callers" if dropped else ""
    return {"flame": f"{stacks:,} stacks were merged into {kept:,} frames{rest}."}


def _stretches(stacks: Sequence[Stack], end_s: float) -> int:
    """Return into how many stretches to sort: none is shorter than the time a stack was usually watched."""
    spans = sorted(each.t1_s - each.t0_s for each in stacks if each.t0_s is not None and each.t1_s is not None)
    usual = spans[len(spans) // 2] if spans else 0.0
    return STRETCHES if usual <= 0 else max(1, min(STRETCHES, round(end_s / usual)))


def _counted(stacks: Sequence[Stack], end_s: float, stretches: int) -> dict[str, dict[Key, Counter[int]]]:
    counts: dict[str, dict[Key, Counter[int]]] = {}
    for stack in stacks:
        found = counts.setdefault(stack.process, {})
        found.setdefault((stack.frames, stack.stage), Counter())[_stretch(stack, end_s, stretches)] += stack.count
    return counts


def _stretch(stack: Stack, end_s: float, stretches: int) -> int:
    if stack.t0_s is None or stack.t1_s is None or end_s <= 0 or stack.t1_s - stack.t0_s > end_s / 4:
        return ALWAYS
    middle = (stack.t0_s + stack.t1_s) / 2
    return max(0, min(int(middle / end_s * stretches), stretches - 1))


def _tree(found: dict[Key, Counter[int]]) -> StackFrame:
    """Hang every stack into one tree; the rarest beyond the limit go into a frame of their own."""
    root = StackFrame("all")
    often = sorted(found.items(), key=lambda item: -sum(item[1].values()))
    for place, ((frames, stage_name), ended) in enumerate(often):
        _hang(root, frames if place < MAX_STACKS else ("(rare stacks)",), stage(stage_name), ended)
    return root


def _hang(root: StackFrame, frames: tuple[str, ...], stage_name: str, ended: Counter[int]) -> None:
    count, frame = sum(ended.values()), root
    for name in (None, *frames):
        if name is not None:
            frame = frame.callees.setdefault(name, StackFrame(name))
        frame.total += count
        frame.stages[stage_name] += count
    frame.ended.update(ended)


def _walk(frame: StackFrame) -> list[StackFrame]:
    """Return a frame and all below it, callers first."""
    found, waiting = [], [frame]
    while waiting:
        each = waiting.pop()
        found.append(each)
        waiting.extend(each.callees.values())
    return found


def _size(trees: dict[str, StackFrame]) -> int:
    return sum(len(_walk(tree)) for tree in trees.values())


def _kept(trees: dict[str, StackFrame]) -> set[int]:
    """Return the ids of the frames to keep: the most seen, so that no frame is kept without its caller."""
    frames = [frame for tree in trees.values() for frame in _walk(tree)]
    frames.sort(key=lambda frame: -frame.total)
    return {id(frame) for frame in frames[:MAX_FRAMES]}


def _plain(root: StackFrame, kept: set[int], stages: list[str]) -> dict[str, list[Any]]:
    """Return a tree as columns, callers before callees: caller's place, name, stage, samples by stretch."""
    columns: dict[str, list[Any]] = {"caller": [], "name": [], "stage": [], "ended": []}
    waiting = [(root, -1)]
    while waiting:
        frame, caller = waiting.pop()
        place = len(columns["name"])
        ended = Counter(frame.ended)
        for callee in sorted(frame.callees.values(), key=lambda each: each.total):
            if id(callee) in kept:
                waiting.append((callee, place))
            else:
                for below in _walk(callee):
                    ended.update(below.ended)
        columns["caller"].append(caller)
        columns["name"].append(formatting.short(frame.name, MAX_NAME))
        columns["stage"].append(_place(frame.stages.most_common(1)[0][0], stages))
        columns["ended"].append([number for item in sorted(ended.items()) for number in item])
    return columns


def _place(stage_name: str, stages: list[str]) -> int:
    if stage_name not in stages:
        stages.append(stage_name)
    return stages.index(stage_name)
