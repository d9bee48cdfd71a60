"""The report on the terminal: one screen, the first lines enough to act on. A pure function of findings.

Lays out what `sentences` and the catalogues say. Width and colour come from the caller.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from loaderprof import formatting
from loaderprof.findings import Advice, Cause, Findings
from loaderprof.report import sentences
from loaderprof.report.bars import rows as bar_rows
from loaderprof.report.palette import NAMES

NARROW, WIDE = 60, 120
"""Below the first the columns fall apart; above the second a line is longer than an eye follows."""

MAX_ACTIONS = 4
MAX_LINES = 2
MAX_MISSING = 6
MAX_PRICE = 24
"""So many changes, lines of each kind of evidence, things not measured, and letters of a price leave the
common case on a screen of 24 lines and 80 columns."""
MAX_ENDED = 6
"""Lines of why a job ended, which is what its user has to know first."""
MAX_NOTE = 3
"""Lines of a note, which is a whole sentence."""

INDENT = 2

_TRAILING = re.compile(r"[ ]+((?:\x1b\[[0-9;]*m)*)$", re.MULTILINE)


def console_of(width: int, *, colour: bool, height: int | None = None) -> Console:
    """Return a console that renders the same whatever terminal and environment it runs in.

    Args:
        width: columns.
        colour: whether it may write ANSI colours.
        height: lines; None: as many as rich takes.
    """
    return Console(
        file=io.StringIO(),
        width=width,
        height=height,
        force_terminal=colour,
        color_system="256" if colour else None,
        no_color=not colour,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
        _environ={},
    )


def render(findings: Findings, *, folder: str, width: int, colour: bool) -> str:
    """Return the report as text.

    Args:
        findings: what was concluded.
        folder: the recording's folder, as the user would type it.
        width: columns of the terminal.
        colour: whether ANSI colours may be used; they say nothing that the words do not.
    """
    console = console_of(max(NARROW, min(width, WIDE)), colour=colour, height=100)
    with console.capture() as capture:
        console.print(Group(*_screen(findings, folder, console)), crop=False)
    return "\n".join(_TRAILING.sub(r"\1", line) for line in capture.get().splitlines()) + "\n"


def _screen(findings: Findings, folder: str, console: Console) -> list[RenderableType]:
    blocks: list[RenderableType | None] = [
        _first_line(findings, console.width),
        _lead(findings, console.width),
    ]
    bottleneck = findings.verdict.bottleneck
    if bottleneck == "unknown":
        blocks.append(_what_is_missing(findings, console))
    elif bottleneck != "none":
        blocks += [bar_rows(findings, console.width), _actions(findings, folder)]
        blocks.append(_evidence(findings, console))
    blocks += [_warnings(findings, console), _last_line(folder)]
    shown = [block for block in blocks if block is not None]
    return [item for block in shown for item in (block, Text(""))][:-1]


def _first_line(findings: Findings, width: int) -> Text:
    name, *rest = sentences.run_line(findings)
    for gap in ("   ", "  "):
        room = width - len("loaderprof") - sum(cell_len(part) for part in rest) - len(gap) * (len(rest) + 1)
        if room >= cell_len(name):
            break
    return Text.assemble(("loaderprof", "bold"), gap, gap.join([shorten(name, max(room, 12)), *rest]))


def _lead(findings: Findings, width: int) -> RenderableType:
    lead, bottleneck = sentences.lead(findings), findings.verdict.bottleneck
    table = _grid(12)
    table.add_column(justify="right", no_wrap=True)
    confidence = "" if bottleneck == "unknown" else lead.confidence
    table.add_row(
        lead.label,
        Text(formatting.short(lead.bottleneck, 120), style="bold"),
        Text(confidence and f"  {confidence}"),
    )
    if bottleneck == "unknown" and findings.verdict.wait_share is None:
        return Padding(table, (0, 0, 0, INDENT))
    lower = _grid(12)
    lower.add_row("", lead.cost)
    if bottleneck not in ("none", "unknown"):
        lower.add_row("Ceiling", _emphasised(lead.ceiling))
    late = sentences.late_rank(findings)
    if late:
        lower.add_row("Ranks", late)
    loaders = sentences.loader_waits(findings)
    if loaders:
        lower.add_row("Loaders", fit(loaders, ", ", width - 14, 1))
    return Padding(Group(table, lower), (0, 0, 0, INDENT))


def _emphasised(sentence: str) -> Text:
    text = Text(sentence)
    text.highlight_regex(r"^[\d.,]+x", "bold")
    return text


def _grid(label_width: int) -> Table:
    table = Table.grid(padding=0, expand=True)
    table.add_column(width=label_width, no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    return table


def _actions(findings: Findings, folder: str) -> RenderableType | None:
    if not findings.advice:
        return None
    numbers = sentences.numbering(findings.advice)
    shown = sentences.shown(findings.advice, MAX_ACTIONS)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    table.add_column("", no_wrap=True, width=max(3, *(len(numbers[each.id]) for each in shown)))
    table.add_column("What to change", min_width=16, overflow="fold")
    table.add_column("expected", no_wrap=True)
    table.add_column("costs", no_wrap=True)
    for each in shown:
        label, expected = numbers[each.id], each.expected
        action = formatting.short(sentences.action(each, findings.advice), 100)
        gain = Text(formatting.interval(expected.speedup, expected.low, expected.high), style="bold")
        table.add_row(label, action, gain, _price(each))
        if each.measured:
            table.add_row("", sentences.verified(each))
    lines = [Padding(table, (0, 0, 0, INDENT)), *_after_actions(findings, folder)]
    return Group(*lines)


def _price(advice: Advice) -> str:
    """Return the price in a few words; what does not fit stands in the full report."""
    parts = sentences.price(advice)
    while len(parts) > 1 and len(", ".join(parts)) > MAX_PRICE:
        parts = [*parts[:-2], "…"] if parts[-1] == "…" else [*parts[:-1], "…"]
    return formatting.short(", ".join(parts), MAX_PRICE)


def _after_actions(findings: Findings, folder: str) -> list[RenderableType]:
    more = len(findings.advice) - len(sentences.shown(findings.advice, MAX_ACTIONS))
    lines: list[RenderableType] = []
    if more > 0:
        lines.append(Text(f"{' ' * 7}{formatting.plural(more, 'more change')} in the full report"))
    command = sentences.check_command(findings, folder)
    if command:
        lines.append(_command(f"{' ' * 7}Check it:  {command}"))
    return lines


def _command(line: str) -> Text:
    """Return a line to be typed, never broken: the terminal wraps it, and a copy of it still works."""
    return Text(line, no_wrap=True, overflow="ignore")


def _evidence(findings: Findings, console: Console) -> RenderableType | None:
    found = [formatting.clean(fact.text) for cause in _primary(findings) for fact in cause.evidence]
    ruled_out = [_reason(cause) for cause in findings.causes if cause.status == "ruled_out"]
    table = _grid(14)
    room = console.width - 16
    for label, items, mark in (
        ("Evidence", found, "; "),
        ("Ruled out", ruled_out, ", "),
        ("Not measured", _missing(findings), ", "),
    ):
        if items:
            table.add_row(label, fit(items, mark, room, MAX_LINES))
    phases = sentences.phases(findings)
    if phases:
        table.add_row("A step", shorten(phases, MAX_LINES * room))
    return Padding(table, (0, 0, 0, INDENT)) if table.row_count else None


def _primary(findings: Findings) -> list[Cause]:
    found = [cause for cause in findings.causes if cause.status == "found"]
    return [cause for cause in found if cause.id == findings.verdict.cause] or found[:1]


def _reason(cause: Cause) -> str:
    name = formatting.clean(cause.title or cause.id)
    return f"{name} ({formatting.clean(cause.evidence[0].text)})" if cause.evidence else name


def _missing(findings: Findings) -> list[str]:
    causes = [_reason(cause) for cause in findings.causes if cause.status == "not_measured"]
    return causes + [NAMES[cost.stage] for cost in findings.stages if cost.s_per_batch is None and cost.share is None]


def _what_is_missing(findings: Findings, console: Console) -> RenderableType:
    table = _grid(14)
    missing = _missing(findings)
    for place, reason in enumerate(missing[:MAX_MISSING]):
        table.add_row("" if place else "Not measured", shorten(reason, 2 * (console.width - 16)))
    if len(missing) > MAX_MISSING:
        table.add_row("", f"{len(missing) - MAX_MISSING} more in the full report")
    lines: list[RenderableType] = [Padding(table, (0, 0, 0, INDENT))] if missing else []
    typed, then = sentences.next_try(findings)
    lines.append(_command(f"  Next          {typed}"))
    lines.append(Text(f"{' ' * 16}{then}"))
    return Group(*lines)


def _warnings(findings: Findings, console: Console) -> RenderableType | None:
    table = _grid(14)
    room = console.width - 16
    ended = [findings.run.failure] if findings.run.failure else []
    for label, items, lines in (
        ("Ended", ended, MAX_ENDED),
        ("Risk", [risk.text for risk in findings.risks], MAX_LINES),
        ("Note", findings.run.notes, MAX_NOTE),
    ):
        for place, item in enumerate(items[:MAX_LINES]):
            table.add_row("" if place else label, shorten(formatting.clean(item), lines * room - 8))
        if len(items) > MAX_LINES:
            table.add_row("", f"{len(items) - MAX_LINES} more in the full report")
    return Padding(table, (0, 0, 0, INDENT)) if table.row_count else None


def _last_line(folder: str) -> RenderableType:
    name = sentences.quoted(folder)
    return _command(f"  Full report   {name}/report.html     again: loaderprof report {name}")


def shorten(text: str, cells: int) -> str:
    """Return text cut in its middle to a number of terminal cells."""
    if cell_len(text) <= cells:
        return text
    half = max((cells - 1) // 2, 1)
    tail = text[-half:]
    while cell_len(tail) > half:
        tail = tail[1:]
    return set_cell_size(text, half).rstrip() + "…" + tail


def fit(items: Sequence[str], mark: str, room: int, lines: int) -> str:
    """Return as many items as fit into some lines, the first one in any case, and how many are left out."""
    shown: list[str] = []
    for item in items:
        left = len(items) - len(shown) - 1
        tail = f"{mark}{left} more" if left else ""
        # A line breaks at a word, so a little of each is lost.
        if shown and cell_len(mark.join([*shown, item]) + tail) > (room - 6) * lines:
            break
        shown.append(shorten(item, (room - 6) * lines))
    rest = len(items) - len(shown)
    return mark.join(shown) + (f"{mark}{rest} more" if rest else "")


def screen(found: Findings, folder: str, tty: bool) -> str:
    """Return the terminal report, as wide as the terminal and coloured where it may be."""

    width = max(60, min(shutil.get_terminal_size((80, 24)).columns, 120))
    colour = tty and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return render(found, folder=folder, width=width, colour=colour)
