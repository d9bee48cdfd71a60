"""`loaderprof compare A B`: two recordings side by side: settings, speed, stages, verdict; how much, and how sure.

Ratios are B over A. Their intervals come from the recordings' own steps and from what two runs of one job differ
anyway, so that a small difference between two single runs is told as what it is: not significant.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from loaderprof import formatting
from loaderprof.analyze import many_ranks
from loaderprof.analyze.breakdown import usual_batches
from loaderprof.analyze.loop import Loop
from loaderprof.analyze.machine import DISTURBANCE, busy_others
from loaderprof.analyze.stages import WORK
from loaderprof.analyze.timeline import build
from loaderprof.commands.options import shown_place
from loaderprof.conclude import findings_of
from loaderprof.findings import Findings, StageCost, Verdict
from loaderprof.measure import ratios
from loaderprof.measure.ratios import Ratio, Values
from loaderprof.recording import remote
from loaderprof.recording.reader import Recording, SummedLoop
from loaderprof.report.spinner import sign

SCHEMA_VERSION = 1
# A stage below this share of both runs moves nothing; it would fill the screen.
MIN_SHARE = 0.01
# Batches timed in depth below which a stage's spread is anyone's guess.
MIN_DEEP = 5
# Facts of a loader that differ from run to run without being a setting.
_NO_SETTING = ("number", "name", "where", "dataset_where", "sampler_where", "samples")
Unit = Literal["samples/s", "steps/s", "s"]


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Add what `loaderprof compare` takes."""
    verb.add_argument("a", metavar="A", help="a recording: a folder or a URL")
    verb.add_argument("b", metavar="B", help="the recording held against it")
    verb.add_argument("--json", action="store_true", help="print the comparison as JSON and nothing else")


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    with remote.local(options.a) as a, remote.local(options.b) as b:
        return print_comparison(a, b, as_json=options.json, shown=(shown_place(options.a), shown_place(options.b)))


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two recordings, with what is compared of it. `loop` is the main one; None where there is none.

    `summed`: loops of ranks that were not kept whole.
    """

    folder: str
    found: Findings
    loop: Loop | None
    loops: tuple[Loop, ...]
    busy_others: float | None
    summed: tuple[SummedLoop, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting, or another fact, that is not the same in both."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Measure:
    """One number in both recordings, None where it was not measured, and their ratio where its spread is known."""

    name: str
    unit: Unit
    before: float | None
    after: float | None
    ratio: Ratio | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that is told of two recordings."""

    a: str
    b: str
    settings: tuple[Difference, ...]
    speed: Measure
    times: tuple[Measure, ...]
    stages: tuple[Measure, ...]
    before: Verdict
    after: Verdict
    notes: tuple[str, ...]


def print_comparison(a: Path, b: Path, *, as_json: bool, shown: tuple[str | None, str | None] = (None, None)) -> int:
    """Compare two recordings, print what differs, and return 0.

    Args:
        a: a recording.
        b: the one held against it.
        as_json: print JSON.
        shown: what the comparison calls each; None: its folder.

    Raises:
        LoaderprofError: one of them is no readable recording.
    """
    comparison = compare(side(a, shown[0]), side(b, shown[1]))
    sys.stdout.write(to_json(comparison) if as_json else render(comparison))
    return 0


def side(folder: Path, shown: str | None = None) -> Side:
    """Read one recording.

    Args:
        folder: the recording.
        shown: what the comparison calls it; None: its folder.

    Raises:
        LoaderprofError: it is none, or cannot be read.
    """
    name = shown or str(folder)
    with sign(f"reading {name}"):
        seen: Recording = many_ranks.read(folder)
        loops = tuple(build(seen).loops)
        main = next((loop for loop in loops if loop.training), loops[0] if loops else None)
        summed = tuple(loop for rank in seen.others for loop in rank.loops)
        return Side(name, findings_of(seen), main, loops, busy_others(seen), summed)


def compare(a: Side, b: Side) -> Comparison:
    """Return what differs between two recordings."""
    return Comparison(
        a.folder,
        b.folder,
        tuple(_settings(a, b)),
        _speed(a, b),
        tuple(_times(a, b)),
        tuple(_stages(a, b)),
        a.found.verdict,
        b.found.verdict,
        tuple(_notes(a, b)),
    )


def _settings(a: Side, b: Side) -> Iterator[Difference]:
    for name in ("command", "device", "torch", "python", "world_size", "cpu_budget"):
        before, after = getattr(a.found.run, name), getattr(b.found.run, name)
        if before != after:
            yield Difference(name, before, after)
    for before_loop, after_loop in _pairs(a, b):
        for key in {**before_loop.facts.written, **after_loop.facts.written}:
            before, after = (each.facts.written.get(key) for each in (before_loop, after_loop))
            if key not in _NO_SETTING and before != after:
                yield Difference(f"{after_loop.name}.{key}", before, after)


def _pairs(a: Side, b: Side) -> Iterator[tuple[Loop, Loop]]:
    """Return the loaders that both have, by their variables, the main ones first; those under whatever name."""
    done = set()
    if a.loop is not None and b.loop is not None:
        done = {a.loop.name, b.loop.name}
        yield a.loop, b.loop
    firsts: dict[str, Loop] = {}
    for loop in b.loops:
        firsts.setdefault(loop.name, loop)
    for loop in a.loops:
        if loop.name not in done and loop.name in firsts:
            done.add(loop.name)
            yield loop, firsts[loop.name]


def _speed(a: Side, b: Side) -> Measure:
    """Return samples per second, all ranks together; steps per second where a batch's size is not known in both."""
    sizes = [_batch_size(each.loop) for each in (a, b)]
    unit: Unit = "samples/s" if None not in sizes else "steps/s"
    before, after = (
        _rate(each, size if size is not None and unit == "samples/s" else 1)
        for each, size in zip((a, b), sizes, strict=True)
    )
    if a.loop is None or b.loop is None or not before or not after:
        return Measure("speed", unit, before, after, None)
    cost = ratios.of_steps(_totals(a.loop), _totals(b.loop), block=_round(a.loop, b.loop))
    return Measure("speed", unit, before, after, cost and _turned(cost, after / before))


def _turned(cost: Ratio, value: float) -> Ratio:
    """Return the ratio of speeds that a ratio of times per step says, about its own value."""
    return Ratio(value, value * cost.value / cost.high, value * cost.value / cost.low)


def _batch_size(loop: Loop | None) -> int | None:
    size = loop.facts.batch_size if loop is not None else None
    return size if size is not None and size > 0 else None


def _rate(each: Side, per_step: int) -> float | None:
    """Return units per second of the main loader over all processes that run it."""
    if each.loop is None:
        return None
    total = 0.0
    for loop in each.loops:
        if (loop.name, loop.facts.where) == (each.loop.name, each.loop.facts.where):
            wait, step = loop.mean(loop.wait), loop.mean(loop.step)
            total += per_step / (wait + step) if wait is not None and step is not None and wait + step > 0 else 0.0
    for other in each.summed:
        if (other.name, other.where) == (each.loop.name, each.loop.facts.where):
            seconds = (other.wait_s or 0.0) + (other.step_s or 0.0)
            total += per_step / seconds if seconds > 0 else 0.0
    return total or None


def _totals(loop: Loop) -> Values:
    return _steady(loop, loop.wait + loop.step)


def _steady(loop: Loop, values: Values) -> Values:
    """Return the steady steps' values, each record of many steps as their mean."""
    return np.asarray((values / np.maximum(loop.count, 1))[loop.steady])


def _round(*loops: Loop) -> int:
    """Return the steps in which every worker had its turn twice: they come in such bursts."""
    return max(2 * loop.num_workers for loop in loops)


def _times(a: Side, b: Side) -> Iterator[Measure]:
    """Return a step and its two parts, and making one batch, in seconds."""
    if a.loop is None or b.loop is None:
        return
    block = _round(a.loop, b.loop)
    names = ("a step", "waiting for its batch", "the loop's own work")
    for name, values in zip(names, zip(_parts(a.loop), _parts(b.loop), strict=True), strict=True):
        yield _time(name, values[0], values[1], block)
    yield _time("making a batch", _making(a.loop), _making(b.loop), block)


def _parts(loop: Loop) -> tuple[Values, Values, Values]:
    return _totals(loop), _steady(loop, loop.wait), _steady(loop, loop.step)


def _making(loop: Loop) -> Values:
    return np.asarray(loop.made.wall[usual_batches(loop)])


def _time(name: str, before: Values, after: Values, block: int) -> Measure:
    return Measure(name, "s", _mean(before), _mean(after), ratios.of_steps(before, after, block=block))


def _mean(values: Values) -> float | None:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def _stages(a: Side, b: Side) -> Iterator[Measure]:
    """Return the stages that cost something in either, per batch."""
    if a.loop is None or b.loop is None:
        return
    after = {cost.stage: cost for cost in b.found.stages}
    for cost in a.found.stages:
        other = after.get(cost.stage)
        if other is not None and max(cost.share or 0.0, other.share or 0.0) >= MIN_SHARE:
            ratio = _stage_ratio(cost, other, a.loop, b.loop)
            yield Measure(cost.stage, "s", cost.s_per_batch, other.s_per_batch, ratio)


def _stage_ratio(before: StageCost, after: StageCost, a: Loop, b: Loop) -> Ratio | None:
    """Return a stage's ratio; None where nothing shows its spread.

    Collate is timed in every batch. The other stages of making one are seen in the batches that were timed in depth:
    their spread is taken to be that of all the making, as far as so few batches tell it.
    """
    if not before.s_per_batch or not after.s_per_batch or before.stage not in WORK:
        return None
    values, part = [_making(loop) for loop in (a, b)], 1.0
    if before.stage == "collate":
        values = [loop.made.collate[usual_batches(loop)] for loop in (a, b)]
    else:
        deep = [int(loop.made.deep.sum()) for loop in (a, b)]
        if min(deep) < MIN_DEEP:
            return None
        part = min(min(1.0, count / len(seen)) for count, seen in zip(deep, values, strict=True) if len(seen))
    like = ratios.of_steps(values[0], values[1], block=_round(a, b), part=part)
    if like is None:
        return None
    value = after.s_per_batch / before.s_per_batch
    return Ratio(value, value * like.low / like.value, value * like.high / like.value)


def _notes(a: Side, b: Side) -> Iterator[str]:
    for letter, each in (("A", a), ("B", b)):
        if each.loop is None:
            yield f"{letter} took no batch from a loader"
        elif int(each.loop.count[each.loop.steady].sum()) < ratios.MIN_STEPS:
            yield f"{letter} has too few steps for an interval: {ratios.MIN_STEPS} are needed"
        if each.busy_others and each.busy_others > DISTURBANCE * (each.found.run.cpu_budget or 1.0):
            yield f"other processes kept {formatting.number(each.busy_others)} cores busy during {letter}"
        if each.found.run.exit_code:
            yield f"{letter} ended with exit code {each.found.run.exit_code}"
    if a.loop is not None and b.loop is not None and a.loop.name != b.loop.name:
        yield f"{formatting.short(a.loop.name, 40)} of A is held against {formatting.short(b.loop.name, 40)} of B"


def render(comparison: Comparison) -> str:
    """Return the comparison as text."""
    lines = [f"A  {formatting.clean(comparison.a)}", f"B  {formatting.clean(comparison.b)}", ""]
    lines += _setting_lines(comparison.settings)
    lines += ["", f"  {'':22}  {'A':>14}  {'B':>14}  B against A"]
    lines += [_line(comparison.speed, "times as fast")]
    lines += [_line(each, "times as long") for each in comparison.times]
    if comparison.stages:
        lines += ["", "  Stages, for one batch"]
        lines += [_line(each, "times as long") for each in comparison.stages]
    lines += ["", f"  Verdict A   {_verdict(comparison.before)}", f"  Verdict B   {_verdict(comparison.after)}"]
    if comparison.notes:
        lines += ["", *(f"  Note   {formatting.clean(note)}" for note in comparison.notes)]
    return "\n".join(lines) + "\n"


def _setting_lines(settings: Sequence[Difference]) -> list[str]:
    if not settings:
        return ["  The settings are the same."]
    width = max(len(formatting.short(each.name, 40)) for each in settings)
    return [
        f"  {formatting.short(each.name, 40):{width}}   {formatting.short(str(each.before), 60)} -> {formatting.short(str(each.after), 60)}"
        for each in settings
    ]


def _line(measure: Measure, unit: str) -> str:
    before, after = _number(measure.before, measure.unit), _number(measure.after, measure.unit)
    return f"  {measure.name:22}  {before:>14}  {after:>14}  {_told(measure, unit)}".rstrip()


def _number(value: float | None, unit: Unit) -> str:
    return formatting.quantity(value, unit)


def _told(measure: Measure, unit: str) -> str:
    """Return the ratio in words; `~` where it may as well be 1, nothing where it is not known."""
    ratio = measure.ratio
    if ratio is None:
        return "~  not enough steps" if measure.before and measure.after and measure.name == "speed" else ""
    return f"{ratio.told()} {unit}" if ratio.significant else f"~  not significant ({ratio.told()})"


def _verdict(verdict: Verdict) -> str:
    if verdict.bottleneck in ("none", "unknown"):
        return f"{verdict.bottleneck}: {formatting.short(verdict.headline, 100)}"
    wait = f", waits {formatting.percent(verdict.wait_share)}" if verdict.wait_share is not None else ""
    return f"{verdict.bottleneck}: {formatting.short(verdict.headline, 100)} (confidence {verdict.confidence}{wait})"


def to_json(comparison: Comparison) -> str:
    """Return the comparison as JSON; what was not measured is null."""
    return json.dumps(_plain(comparison), indent=1) + "\n"


def _plain(comparison: Comparison) -> dict[str, Any]:
    measures = [comparison.speed, *comparison.times]
    return {
        "schema_version": SCHEMA_VERSION,
        "a": comparison.a,
        "b": comparison.b,
        "settings": [dataclasses.asdict(each) for each in comparison.settings],
        "measures": [_measure(each) for each in measures],
        "stages": [_measure(each) for each in comparison.stages],
        "verdict": {"before": dataclasses.asdict(comparison.before), "after": dataclasses.asdict(comparison.after)},
        "notes": list(comparison.notes),
    }


def _measure(measure: Measure) -> dict[str, Any]:
    numbers = {"before": measure.before, "after": measure.after}
    known = {key: value if value is not None and math.isfinite(value) else None for key, value in numbers.items()}
    ratio = None if measure.ratio is None else dataclasses.asdict(measure.ratio)
    significant = None if measure.ratio is None else measure.ratio.significant
    return {"name": measure.name, "unit": measure.unit, **known, "ratio": ratio, "significant": significant}
