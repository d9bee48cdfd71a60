"""What differs between two recordings, as text and as JSON. Pure; `commands/compare.py` calculates it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from loaderprof import formatting
from loaderprof.findings import Verdict
from loaderprof.measure.ratios import Ratio

SCHEMA_VERSION = 1
Unit = Literal["samples/s", "steps/s", "s"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting, or another fact, that differs between the two."""

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
    """The comparison of two recordings, A (`before`) and B (`after`)."""

    a: str
    b: str
    settings: tuple[Difference, ...]
    speed: Measure
    times: tuple[Measure, ...]
    stages: tuple[Measure, ...]
    before: Verdict
    after: Verdict
    notes: tuple[str, ...]


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
    return f"  {measure.name:22}  {before:>14}  {after:>14}  {_ratio(measure, unit)}".rstrip()


def _number(value: float | None, unit: Unit) -> str:
    return formatting.quantity(value, unit)


def _ratio(measure: Measure, unit: str) -> str:
    """Return the ratio as text; `~` where it may as well be 1, nothing where it is not known."""
    ratio = measure.ratio
    if ratio is None:
        return "~  not enough steps" if measure.before and measure.after and measure.name == "speed" else ""
    return f"{ratio.text()} {unit}" if ratio.significant else f"~  not significant ({ratio.text()})"


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
