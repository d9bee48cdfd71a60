"""One frame of the live view: a glance at a running job, as many lines as the terminal has. A pure function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import set_cell_size
from rich.text import Text

from loaderprof import formatting
from loaderprof.report.palette import COLOURS, NAMES
from loaderprof.report.terminal import console_of

if TYPE_CHECKING:
    from loaderprof.analyze.glance import Glance

KEYS = (
    ("q", "leave the view; the job goes on, and is reported on when it ends"),
    ("p", "pause the view, or let it go on"),
    ("?", "show or hide this help"),
    ("Ctrl-C", "what it always does: interrupts the job, or ends the visit to one"),
)
LABEL = 11
MAX_STAGES = 6
_LEVELS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class ScreenFrame:
    """What a frame shows.

    Attributes:
        name: of the job.
        seconds: since the view was opened.
        glance: the job now.
        waits: the share of waiting at each look so far, oldest first.
        output: the job's last lines, safe to show; empty where its output does not come through us.
        paused: whether the view stands still.
        help: whether the keys are explained.
    """

    name: str
    seconds: float
    glance: Glance
    waits: Sequence[float | None]
    output: Sequence[str] = ()
    paused: bool = False
    help: bool = False


def render(frame: ScreenFrame, *, width: int, height: int, colour: bool) -> list[str]:
    """Return the lines of a frame, exactly `height` of them, none wider than the terminal."""
    body = _help() if frame.help else [*_measured(frame.glance, width), *_history(frame.waits, width)]
    lines = [_head(frame, width), Text(""), *body]
    room = height - len(lines) - 2
    if frame.output and not frame.help and room >= 3:
        lines += [Text(""), Text("  Output of the job, written to the terminal when you leave")]
        lines += [Text(f"  {line}") for line in frame.output[-(room - 2) :]]
    lines = lines[: height - 1]
    lines += [Text("")] * (height - 1 - len(lines))
    lines.append(Text("  q leave   p go on   ? help" if frame.paused else "  q leave   p pause   ? help", style="bold"))
    return _plain(lines, width, colour)


def _plain(lines: Sequence[Text], width: int, colour: bool) -> list[str]:
    console = console_of(width, colour=colour)
    with console.capture() as capture:
        for line in lines:
            line.truncate(width - 1)
            console.print(line, no_wrap=True, crop=True)
    return capture.get().split("\n")[: len(lines)]


def _head(frame: ScreenFrame, width: int) -> Text:
    rest = ("   paused" if frame.paused else "") + f"   {formatting.duration(frame.seconds)}"
    room = max(8, width - len("loaderprof   ") - len(rest) - 2)
    return Text.assemble(("loaderprof", "bold"), "   ", formatting.short(frame.name, room), rest)


def _measured(glance: Glance, width: int) -> list[Text]:
    lines = [_row("Job", _progress(glance))]
    if glance.wait_share is None:
        return lines
    share = glance.wait_share
    lines.append(_row("Waits", f"{formatting.percent(share)} of its time for the next batch"))
    room = max(10, width - LABEL - 5)
    waits = round(share * room)
    lines.append(Text.assemble(" " * (LABEL + 2), ("/" * waits, "bold"), ("=" * (room - waits), COLOURS["device"])))
    stage = glance.likely()
    if stage is not None:
        likely = "the step itself" if stage == "device" else NAMES[stage]
        lines.append(_row("Likely", f"{likely} (a guess; the report comes at the end)"))
    if glance.costs:
        lines += [Text(""), _row("A batch", _producers(glance)), *_stages(glance, room)]
    return lines


def _progress(glance: Glance) -> str:
    if glance.samples is not None:
        return f"{formatting.plural(glance.samples, 'stack sample')} so far"
    if not glance.steps:
        return "waiting for the first batch"
    parts = [formatting.plural(glance.steps, "step")]
    if glance.steps_per_s is not None:
        parts.append(f"{formatting.number(glance.steps_per_s)} steps/s")
    elif glance.idle_s is not None:
        parts.append(f"no batch for {formatting.duration(glance.idle_s)}")
    if glance.ready is not None:
        parts.append(f"{glance.ready} ready")
    return "   ".join(parts)


def _producers(glance: Glance) -> str:
    where = formatting.plural(glance.workers, "worker") if glance.workers else "the training process"
    total = sum(glance.costs.values())
    takes = "" if glance.samples is not None else f" in {formatting.duration(total)}"
    return f"is made by {where}{takes}"


def _stages(glance: Glance, room: int) -> list[Text]:
    total = sum(glance.costs.values())
    rows = []
    for stage, cost in list(glance.costs.items())[:MAX_STAGES]:
        label = f"{NAMES[stage]:<{LABEL - 1}} {formatting.percent(cost / total):>6}  "
        bar = "#" * round((room - len(label)) * cost / total)
        rows.append(Text.assemble(" " * (LABEL + 2), label, (bar, COLOURS[stage])))
    return rows


def _history(waits: Sequence[float | None], width: int) -> list[Text]:
    shown = waits[-(width - LABEL - 5) :]
    if len([each for each in shown if each is not None]) < 2:
        return []
    marks = ["·" if each is None else _LEVELS[min(7, int(8 * each))] for each in shown]
    return [Text(""), _row("Waiting", "".join(marks)), _row("", "second by second, 0 to 100 %")]


def _help() -> list[Text]:
    return [_row(key, what) for key, what in KEYS]


def _row(label: str, text: str) -> Text:
    return Text.assemble("  ", (set_cell_size(label, LABEL), "bold"), text)
