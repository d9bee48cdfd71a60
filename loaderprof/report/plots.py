"""The still pictures: where a step's time goes, what each change gains, the run over time, batches by worker.

Pure functions of findings and page data, drawn with matplotlib. The same figures stand in the page and in
files for mails and papers.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from loaderprof import formatting
from loaderprof.errors import OutputError
from loaderprof.findings import Findings
from loaderprof.report import anatomy, sentences
from loaderprof.report.anatomy import Segment, Whole
from loaderprof.report.drawing import (
    INK,
    LINE,
    NARROW,
    PAPER,
    SOFT,
    VERIFIED,
    WIDE,
    WORK,
    for_page,
    new_axes,
    new_figure,
    saved,
    say,
)
from loaderprof.report.merge import array, end_s, focus, thinned
from loaderprof.report.page import Bar, Host, PageData, Steps
from loaderprof.report.palette import COLOURS

KINDS = ("svg", "png", "pdf")

ACTION_WIDE, ACTION_LETTERS = 3.4, 44
"""Inches beside the speedups for what each change is, and letters that fit there."""

STILL_RANKS = 4
"""Of more ranks the page has lanes, and the list of ranks their numbers."""

FEW_SAMPLES, SAMPLE_BINS = 20, 40
"""Fewer samples make no distribution."""

STILL_POINTS = 600
"""A still picture cannot be zoomed, so it shows fewer points than the page's own drawing."""


def write_figures(findings: Findings, data: PageData, folder: Path, *, force: bool = False) -> list[Path]:
    """Write every picture there is data for, as SVG, PNG and PDF, and return the files.

    Raises:
        OutputError: a file of that name is there already and `force` is not given, or the folder cannot be written.
    """
    pictures = _pictures(findings, data)
    if not pictures:
        return []
    files = {name: [folder / f"{name}.{kind}" for kind in KINDS] for name in pictures}
    there = [path for paths in files.values() for path in paths if path.exists()]
    if there and not force:
        raise OutputError(f"{there[0]} exists already", "replace it with --force")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in pictures.items():
            # A file stands alone: it names the changes that the page lists below its picture.
            figure = speedups(findings, WIDE, named=True) if name == "speedups" else draw(WIDE)
            for path in files[name]:
                path.write_bytes(saved(figure, path.suffix[1:]))
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}") from None
    return [path for paths in files.values() for path in paths]


def inline(findings: Findings, data: PageData) -> dict[str, Any]:
    """Return every picture as SVG for the page, by name; those drawn for a telephone end in `-narrow`."""
    found = {}
    for name, draw in _pictures(findings, data).items():
        found[name] = Markup(for_page(saved(draw(WIDE), "svg").decode(), name))
        if name in ("anatomy", "speedups", "samples"):
            found[f"{name}-narrow"] = Markup(for_page(saved(draw(NARROW), "svg").decode(), f"{name}-narrow"))
    return found


def _pictures(findings: Findings, data: PageData) -> dict[str, Callable[[float], Figure]]:
    pictures: dict[str, Callable[[float], Figure]] = {}
    if _wholes(findings):
        pictures["anatomy"] = lambda width: anatomy_bars(findings, width)
    if any(each.expected.speedup is not None for each in findings.advice):
        pictures["speedups"] = lambda width: speedups(findings, width)
    if len(data.steps.t_s) or len(data.host.t_s):
        pictures["timeline"] = lambda width: timeline(findings, data, width)
    if len(_known(data)) >= FEW_SAMPLES:
        pictures["samples"] = lambda width: samples(data, width)
    if data.bars:
        pictures["batches"] = lambda width: batches(data.bars, width)
    return pictures


def _wholes(findings: Findings) -> list[Whole]:
    return [whole for whole in (anatomy.step(findings, phases=True), anatomy.worker(findings)) if whole]


def anatomy_bars(findings: Findings, width: float) -> Figure:
    """Draw a step and a worker's batch as stacked bars; waiting is hatched."""
    rows = _wholes(findings)
    figure = new_figure(width, 0.95 * len(rows) + 0.1)
    axes = new_axes(figure, 0, 0.02, 0, 0.02)
    axes.set(xlim=(0, 1), ylim=(-len(rows), 0), xticks=[], yticks=[])
    for place, row in enumerate(rows):
        say(axes, 0, -place - 0.16, f"{row.name}: {formatting.duration(row.seconds)}", weight="bold", fontsize=10.5)
        _stacked(axes, -place - 0.62, row, width)
    return figure


def _stacked(axes: Axes, y: float, whole: Whole, width: float) -> None:
    left, factor = 0.0, formatting.scale(whole.seconds)[0]
    # Phases measured one by one may miss the whole by a little: the bar keeps its length.
    total = sum(piece.seconds for piece in whole.pieces)
    for piece in whole.pieces:
        share = piece.seconds / total if total else 0.0
        fill = {"color": piece.colour} if not piece.waiting else _hatching(piece.colour)
        axes.barh(y, share, 0.5, left, linewidth=0, **fill)
        axes.plot([left + share] * 2, [y - 0.25, y + 0.25], color=PAPER, linewidth=1.5, solid_capstyle="butt")
        label = f"{piece.name} {formatting.number(piece.seconds * factor)}"
        room = share * width * 72 - 10
        for text in (label, piece.name, formatting.number(piece.seconds * factor)):
            if len(text) * 5.8 < room:
                say(axes, left + share / 2, y, text, ha="center", **_over(piece))
                break
        left += share


def _hatching(colour: str) -> dict[str, Any]:
    return {"facecolor": "none", "edgecolor": colour, "hatch": "////"}


def _over(piece: Segment) -> dict[str, Any]:
    """Return the colour of letters that stand on a piece."""
    if piece.waiting:
        return {"color": INK, "weight": "bold", "bbox": {"facecolor": PAPER, "edgecolor": "none", "pad": 2.5}}
    red, green, blue = (int(piece.colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return {"color": "#ffffff" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.55 else "#16181b"}


def speedups(findings: Findings, width: float, *, named: bool = False) -> Figure:
    """Draw each change's expected speedup with its interval, what was measured of it, and the ceiling.

    Args:
        findings: what was concluded.
        width: of the picture, in inches.
        named: say what each change is, beside its number.
    """
    numbers = sentences.numbering(findings.advice)
    shown = [each for each in findings.advice if each.expected.speedup is not None]
    figure = new_figure(width, 0.36 * len(shown) + 0.62)
    axes = new_axes(figure, 0.5 + (ACTION_WIDE if named else 0), 0.3, 0.62, 0.3)
    ceiling = findings.verdict.ceiling_speedup
    values = [value for each in shown for value in (each.expected.speedup, each.expected.low, each.expected.high)]
    values += [each.measured.high for each in shown if each.measured] + [1.0, ceiling]
    known = [value for value in values if value is not None]
    margin = 0.04 * (max(known) - min(known)) or 0.1
    axes.set(xlim=(min(known) - margin, max(known) + margin), ylim=(-len(shown) + 0.4, 0.6))
    axes.set_yticks([])
    for place, each in enumerate(shown):
        action = textwrap.shorten(formatting.clean(each.action), ACTION_LETTERS, placeholder=" ...") if named else ""
        text = f"{action}   {numbers[each.id]}"
        say(axes, -0.03, -place, text, ha="right", transform=axes.get_yaxis_transform())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.xaxis.set_major_locator(MaxNLocator(5 if width == NARROW else 8, steps=[1, 2, 5, 10]))
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.axvline(1.0, color=SOFT, linewidth=1)
    say(axes, 1.0, 0.75, "as it is", color=SOFT, ha="left", va="bottom", fontsize=9)
    if ceiling is not None:
        axes.axvline(ceiling, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        say(
            axes,
            ceiling,
            0.75,
            f"ceiling {formatting.ratio(ceiling)}",
            color=SOFT,
            ha="right",
            va="bottom",
            fontsize=9,
        )
    for place, each in enumerate(shown):
        _gain(
            axes,
            -place,
            each.expected.speedup or 1.0,
            (each.expected.low, each.expected.high),
        )
        if each.measured:
            axes.plot([each.measured.low, each.measured.high], [-place - 0.27] * 2, color=VERIFIED, linewidth=2)
            axes.plot(each.measured.speedup, -place - 0.27, "D", color=VERIFIED, markersize=5)
    return figure


def _gain(axes: Axes, y: float, value: float, ends: tuple[float | None, float | None]) -> None:
    low, high = ends
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], color=INK, linewidth=8, alpha=0.22, solid_capstyle="round")
    axes.plot(value, y, "o", color=INK, markersize=7)
    side = max(value, high or value)
    axes.annotate(
        formatting.ratio(value),
        (side, y),
        (9, 0),
        textcoords="offset points",
        color=INK,
        va="center",
        weight="bold",
    )


def timeline(findings: Findings, data: PageData, width: float) -> Figure:
    """Draw the run over time: steps and waits, queue, CPU, GPUs, disk, each on a lane of its own."""
    lanes = _lanes(findings, data)
    figure = new_figure(width, 0.95 * len(lanes) + 0.35)
    height = figure.get_size_inches()[1]
    for place, (title, draw) in enumerate(lanes):
        top = 0.95 * place
        axes = new_axes(figure, 0.55, height - top - 0.9, 0.05, top + 0.24)
        axes.set_xlim(0, end_s(data) or 1.0)
        draw(axes)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(2))
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        axes.set_title(title, loc="left", fontsize=9.5, color=INK, pad=3)
        for start in array(data.steps.epoch_starts_s):
            axes.axvline(start, color=SOFT, linewidth=0.8, linestyle=(0, (2, 3)))
        if place < len(lanes) - 1:
            axes.set_xticklabels([])
        else:
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    return figure


def _lanes(findings: Findings, data: PageData) -> list[tuple[str, Callable[[Axes], None]]]:
    steps, host = data.steps, data.host
    lanes: list[tuple[str, Callable[[Axes], None]]] = []
    shown = {f"Rank {rank}, step time": each for rank, each in data.ranks.items()} or {"Step time": steps}
    for title, each in list(shown.items())[:STILL_RANKS]:
        if len(each.t_s):
            lanes.append((f"{title}, ms (filled: waiting)", partial(_step_lane, findings=findings, steps=each)))
    if len(steps.ready):
        lanes.append(("Batches ready", lambda axes: _line(axes, steps.t_s, steps.ready, COLOURS["collate"])))
    if len(host.cpu_percent):
        lanes.append(("CPU, %", lambda axes: _line(axes, host.t_s, host.cpu_percent, COLOURS["host"])))
    if host.gpu_percent:
        lanes.append(("GPU, %", lambda axes: _gpu_lane(axes, host)))
    if len(host.disk_bytes_per_s):
        disk = array(host.disk_bytes_per_s) / 1e6
        lanes.append(("Disk, MB/s", lambda axes: _line(axes, host.t_s, disk, COLOURS["read"])))
    return lanes


def _gpu_lane(axes: Axes, host: Host) -> None:
    for values in host.gpu_percent.values():
        _line(axes, host.t_s, values, COLOURS["device"])


def _step_lane(axes: Axes, findings: Findings, steps: Steps) -> None:
    begun, lasted, waited = (array(each) for each in (steps.t_s, steps.step_s, steps.wait_s))
    kept = thinned([lasted, waited], STILL_POINTS)
    colour = COLOURS[findings.verdict.bottleneck]
    axes.fill_between(begun[kept], waited[kept] * 1e3, step="post", color=colour, alpha=0.35, linewidth=0)
    axes.plot(begun[kept], lasted[kept] * 1e3, color=INK, linewidth=0.8, drawstyle="steps-post")


def _line(axes: Axes, times: Any, values: Any, colour: str) -> None:
    column = array(values)
    kept = thinned([column], STILL_POINTS)
    axes.plot(array(times)[kept], column[kept], color=colour, linewidth=1.1, drawstyle="steps-post")


def _known(data: PageData) -> Any:
    took = array(data.samples.took_s)
    return took[np.isfinite(took) & (took > 0)]


def samples(data: PageData, width: float) -> Figure:
    """Draw how many samples took how long; times on a logarithmic scale, for a few may take a hundred times the usual."""
    took = _known(data)
    low, high = float(took.min()), float(took.max())
    figure = new_figure(width, 1.9)
    axes = new_axes(figure, 0.55, 0.35, 0.3, 0.25)
    edges = np.geomspace(low * 0.95, high * 1.05, SAMPLE_BINS + 1)
    axes.set_xscale("log")
    axes.hist(took, edges.tolist(), color=WORK)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0), numticks=8))
    axes.xaxis.set_major_formatter(lambda value, _: formatting.duration(value))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    for share, name in ((0.5, "half"), (0.95, "95 %")):
        at = float(np.quantile(took, share))
        axes.axvline(at, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            name,
            (at, 1),
            (3, 3),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            color=SOFT,
            fontsize=9,
        )
    return figure


def batches(bars: Sequence[Bar], width: float) -> Figure:
    """Draw who fetched which batch, around the slowest: a bar while it is made, a line until it is taken."""
    low, high = focus(bars)
    shown = [bar for bar in bars if bar.end_s > low and bar.start_s < high]
    workers = sorted({bar.worker for bar in shown})
    lane = {worker: -place for place, worker in enumerate(workers)}
    figure = new_figure(width, 0.3 * len(workers) + 0.4)
    axes = new_axes(figure, 0.85, 0.3, 0.1, 0.05)
    for bar in shown:
        y = lane[bar.worker]
        axes.barh(y, bar.end_s - bar.start_s, 0.6, bar.start_s, color=WORK, edgecolor=PAPER, linewidth=0.8)
        if bar.taken_s is not None:
            axes.plot([bar.end_s, bar.taken_s], [y, y], color=COLOURS["handover"], linewidth=1.2)
    axes.set_yticks(list(lane.values()), [f"worker {worker}" for worker in workers])
    axes.set(xlim=(low, high), ylim=(-len(workers) + 0.4, 0.6))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    return figure
