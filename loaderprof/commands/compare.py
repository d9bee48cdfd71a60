"""`loaderprof compare A B`: what differs between two recordings in settings, speed, stages and verdict.

Ratios are B over A. Their intervals come from the recordings' own steps and from the usual variation between runs of one
job, so that a small difference between two single runs is reported as not significant.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
from loaderprof.findings import Findings, StageCost
from loaderprof.measure import ratios
from loaderprof.measure.ratios import Ratio, Values
from loaderprof.recording import remote
from loaderprof.recording.reader import Recording, SummedLoop
from loaderprof.report.comparison import Comparison, Difference, Measure, Unit, render, to_json
from loaderprof.report.spinner import sign

# A stage below this share in both runs is not shown: it does not matter for speed.
MIN_SHARE = 0.01
# Batches timed in depth that are needed for the spread of a stage.
MIN_DEEP = 5
# Facts of a loader that are not settings.
_NO_SETTING = ("number", "name", "where", "dataset_where", "sampler_where", "samples")


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
    """One of the two recordings.

    Attributes:
        folder: what the comparison calls it.
        found: its findings.
        loop: the main loop; None where there is none.
        loops: all loops of ranks that were read in full.
        busy_others: cores that other processes kept busy; None where not measured.
        summed: loops of the other ranks, of which only sums are known.
    """

    folder: str
    found: Findings
    loop: Loop | None
    loops: tuple[Loop, ...]
    busy_others: float | None
    summed: tuple[SummedLoop, ...] = ()


def print_comparison(a: Path, b: Path, *, as_json: bool, shown: tuple[str | None, str | None] = (None, None)) -> int:
    """Compare two recordings, print what differs, and return 0.

    Args:
        a: a recording.
        b: the recording to compare with it.
        as_json: print JSON instead of text.
        shown: what the output calls each; None: its folder.

    Raises:
        LoaderprofError: one of them is not a readable recording.
    """
    comparison = compare(side(a, shown[0]), side(b, shown[1]))
    sys.stdout.write(to_json(comparison) if as_json else render(comparison))
    return 0


def side(folder: Path, shown: str | None = None) -> Side:
    """Read one recording.

    Args:
        folder: the recording.
        shown: what the output calls it; None: its folder.

    Raises:
        LoaderprofError: it is not a recording, or cannot be read.
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
    """Return the loops over loaders of the same variable, after the two main loops, which may differ in name."""
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
    """Return samples per second, summed over ranks; steps per second unless the batch size is known in both."""
    sizes = [_batch_size(each.loop) for each in (a, b)]
    unit: Unit = "samples/s" if None not in sizes else "steps/s"
    before, after = (
        _rate(each, size if size is not None and unit == "samples/s" else 1)
        for each, size in zip((a, b), sizes, strict=True)
    )
    if a.loop is None or b.loop is None or not before or not after:
        return Measure("speed", unit, before, after, None)
    cost = ratios.of_steps(_totals(a.loop), _totals(b.loop), block=_round(a.loop, b.loop))
    return Measure("speed", unit, before, after, cost and _inverted(cost, after / before))


def _inverted(cost: Ratio, value: float) -> Ratio:
    """Return the ratio of speeds `value` with the relative interval of `cost`, a ratio of times per step."""
    return Ratio(value, value * cost.value / cost.high, value * cost.value / cost.low)


def _batch_size(loop: Loop | None) -> int | None:
    size = loop.facts.batch_size if loop is not None else None
    return size if size is not None and size > 0 else None


def _rate(each: Side, per_step: int) -> float | None:
    """Return units per second of the main loader, summed over all processes that use it."""
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
    """Return values per steady step; a record of several steps gives their mean."""
    return np.asarray((values / np.maximum(loop.count, 1))[loop.steady])


def _round(*loops: Loop) -> int:
    """Return the steps in which each worker delivers two batches: batches arrive in such bursts."""
    return max(2 * loop.num_workers for loop in loops)


def _times(a: Side, b: Side) -> Iterator[Measure]:
    """Return the time of a step, of its two parts, and of producing one batch, in seconds."""
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
    """Return the stages that matter in either recording, in seconds per batch."""
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

    Collate is timed in every batch. The other stages of producing a batch are only timed in the batches timed in depth:
    their relative spread is taken to be that of the whole fetch, widened for the smaller number of batches.
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
