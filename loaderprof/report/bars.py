"""The terminal's two bars: a step split into waiting and working, a worker's batch split into its stages."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from loaderprof.findings import Findings, Stage
from loaderprof.report import sentences, words
from loaderprof.report.palette import COLOURS, NAMES, WORKER_STAGES

INDENT, LABEL = 2, 15
_SHORTEST = 4
"""A stage's name is cut to this many letters before it is left out."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a bar. `fill` is the letter that makes up its length."""

    name: str
    value_s: float
    fill: str
    colour: str


def rows(findings: Findings, width: int) -> RenderableType | None:
    """Return the bars that can be drawn; `None` if neither the step nor the worker was measured."""
    lines = [line for line in (_step(findings, width), _worker(findings, width)) if line is not None]
    return Group(*lines) if lines else None


def _step(findings: Findings, width: int) -> Text | None:
    verdict, who = findings.verdict, sentences.waiter(findings)
    if verdict.step_s is None or verdict.wait_s is None or verdict.step_s <= 0:
        return None
    segments = [
        Segment(f"{who} waits", verdict.wait_s, "/", COLOURS[verdict.bottleneck]),
        Segment(f"{who} works", max(verdict.step_s - verdict.wait_s, 0.0), "=", COLOURS["device"]),
    ]
    return _line("step", verdict.step_s, segments, width)


def _worker(findings: Findings, width: int) -> Text | None:
    by_stage: dict[Stage, float] = {
        cost.stage: cost.s_per_batch for cost in findings.stages if cost.s_per_batch is not None
    }
    segments = [
        Segment(NAMES[stage], by_stage[stage], "#", COLOURS[stage])
        for stage in WORKER_STAGES
        if by_stage.get(stage)
    ]
    total = sum(segment.value_s for segment in segments)
    return _line("worker", total, segments, width) if total > 0 else None


def _line(name: str, total_s: float, segments: list[Segment], width: int) -> Text:
    line = Text(" " * INDENT + f"{name:<6} {words.duration(total_s)}".ljust(LABEL) + " ")
    for segment, inner in layout(segments, total_s, width - INDENT - LABEL - 1):
        line.append("[").append(inner, style=segment.colour).append("]")
    return line


def layout(segments: list[Segment], total_s: float, room: int) -> list[tuple[Segment, str]]:
    """Return each segment with its text, sized by its part of the total; all together fill `room` columns."""
    factor, _ = words.scale(total_s)
    labels = [f"{segment.name} {words.number(segment.value_s * factor)}" for segment in segments]
    if sum(len(label) + 4 for label in labels) > room:
        labels = [
            f"{segment.name[:_SHORTEST]} {words.number(segment.value_s * factor)}"
            if segment.value_s < total_s / 4
            else label
            for segment, label in zip(segments, labels, strict=True)
        ]
    while len(segments) > 1 and sum(len(label) + 4 for label in labels) > room:
        least = min(range(len(segments)), key=lambda place: segments[place].value_s)
        segments = segments[:least] + segments[least + 1 :]
        labels = labels[:least] + labels[least + 1 :]
    widths = _widths([segment.value_s for segment in segments], [len(label) + 4 for label in labels], room)
    return [
        (segment, _filled(label, segment.fill, columns - 2))
        for segment, label, columns in zip(segments, labels, widths, strict=True)
    ]


def _widths(values: list[float], least: list[int], room: int) -> list[int]:
    """Share out the room by value, none below its least."""
    total = sum(values) or 1.0
    widths = [max(low, round(room * value / total)) for value, low in zip(values, least, strict=True)]
    while sum(widths) != room:
        # The widest segment that may still change takes up what rounding and the least widths left over.
        step = 1 if sum(widths) < room else -1
        able = [place for place in range(len(widths)) if step > 0 or widths[place] > least[place]]
        if not able:
            break
        widths[max(able, key=lambda place: widths[place] - least[place])] += step
    return widths


def _filled(label: str, fill: str, columns: int) -> str:
    rest = columns - len(label) - 3
    return f" {label} {fill * rest} " if rest > 0 else f" {label} ".ljust(columns)
