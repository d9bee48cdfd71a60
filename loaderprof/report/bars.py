"""The terminal's two bars: a step split into waiting and working, a worker's batch split into its stages."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from loaderprof import formatting
from loaderprof.findings import Findings
from loaderprof.report import anatomy
from loaderprof.report.anatomy import Segment, Whole

INDENT, LABEL = 2, 15
_SHORTEST = 4
"""A stage's name is cut to this many letters before it is left out."""


def rows(findings: Findings, width: int) -> RenderableType | None:
    """Return the bars that can be drawn; `None` if neither the step nor the worker was measured."""
    step, worker = anatomy.step(findings, phases=False), anatomy.worker(findings)
    lines = [_line("step", step, "=", width)] if step else []
    lines += [_line("worker", worker, "#", width)] if worker else []
    return Group(*lines) if lines else None


def _line(name: str, whole: Whole, fill: str, width: int) -> Text:
    line = Text(" " * INDENT + f"{name:<6} {formatting.duration(whole.seconds)}".ljust(LABEL) + " ")
    for piece, label, columns in layout(whole, width - INDENT - LABEL - 1):
        inner = _filled(label, "/" if piece.waiting else fill, columns - 2)
        line.append("[").append(inner, style=piece.colour).append("]")
    return line


def layout(whole: Whole, room: int) -> list[tuple[Segment, str, int]]:
    """Return each piece with its label and columns, by its part of the whole; together they fill `room`."""
    pieces = list(whole.pieces)
    labels = _labels(whole, room)
    while len(pieces) > 1 and sum(map(_least, labels)) > room:
        smallest = min(range(len(pieces)), key=lambda place: pieces[place].seconds)
        del pieces[smallest], labels[smallest]
    widths = _widths([piece.seconds for piece in pieces], [_least(label) for label in labels], room)
    return list(zip(pieces, labels, widths, strict=True))


def _labels(whole: Whole, room: int) -> list[str]:
    """Return the name and number of each piece; small pieces lose letters where not all names fit."""
    factor, _ = formatting.scale(whole.seconds)
    numbers = [formatting.number(piece.seconds * factor) for piece in whole.pieces]
    labels = [f"{piece.name} {number}" for piece, number in zip(whole.pieces, numbers, strict=True)]
    if sum(map(_least, labels)) <= room:
        return labels
    return [
        f"{piece.name[:_SHORTEST]} {number}" if piece.seconds < whole.seconds / 4 else label
        for piece, number, label in zip(whole.pieces, numbers, labels, strict=True)
    ]


def _least(label: str) -> int:
    return len(label) + len("[  ]")


def _widths(values: list[float], least: list[int], room: int) -> list[int]:
    """Share out the room by value, none below its least."""
    total = sum(values) or 1.0
    widths = [max(low, round(room * value / total)) for value, low in zip(values, least, strict=True)]
    while sum(widths) != room:
        # The widest piece that may still change takes up what rounding and the least widths left over.
        step = 1 if sum(widths) < room else -1
        able = [place for place in range(len(widths)) if step > 0 or widths[place] > least[place]]
        if not able:
            break
        widths[max(able, key=lambda place: widths[place] - least[place])] += step
    return widths


def _filled(label: str, fill: str, columns: int) -> str:
    rest = columns - len(label) - 3
    return f" {label} {fill * rest} " if rest > 0 else f" {label} ".ljust(columns)
