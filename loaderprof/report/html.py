"""The report as one offline page: a pure function of findings and page data.

All text and the still pictures are written here, so that the page is whole without JavaScript, in a mail and
in print; the scripts in `assets` only add to it. Nothing on the page may reach the network.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from loaderprof import formatting
from loaderprof.findings import Findings
from loaderprof.recording.reader import Recording
from loaderprof.report import guide, palette, plots, sentences
from loaderprof.report.merge import Merged, array, merge
from loaderprof.report.page import Bar, Host, PageData, Slow, Stack, Steps
from loaderprof.report.pagedata import page_data
from loaderprof.report.stacks import hottest

__all__ = ["Bar", "Host", "PageData", "Slow", "Stack", "Steps", "render"]

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("base.js", "timeline.js", "batches.js", "flame.js", "report.js")
SECTIONS = ("timeline", "ranks", "host", "batches", "flame")
PICTURES = ("anatomy", "speedups", "timeline", "batches", "samples")

LONGEST = 240
"""Letters of a name or path on the page: a path may be thousands long, and its two ends identify it."""

FEW_STEPS = 20
"""Below it a tenth is a step or two, and says nothing."""


def render(findings: Findings, data: PageData, *, folder: str) -> str:
    """Return the page.

    Args:
        findings: what was concluded.
        data: series, bars and stacks to draw; what is empty is left out.
        folder: the recording's folder, as the user would type it in a command.
    """
    merged, script = merge(data), _script()
    return (
        _environment()
        .get_template("page.html")
        .render(
            findings=findings,
            data=data,
            notes=dict.fromkeys(SECTIONS, "") | merged.notes,
            folder=folder,
            lead=sentences.lead(findings),
            title=sentences.title(findings),
            quantiles=_quantiles(data),
            spread=_spread(data),
            hottest=hottest(data.stacks),
            slowest_s=max((rank.step_s or 0.0 for rank in findings.ranks), default=0.0),
            late=sentences.late_rank(findings),
            numbers=sentences.numbering(findings.advice),
            figures=dict.fromkeys(PICTURES, "") | plots.inline(findings, data),
            style=Markup((ASSETS / "report.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=_hash(script),
            page_json=Markup(_json(_values(findings, merged))),
            raw=Markup(escape(findings.to_json())),
        )
    )


def _values(findings: Findings, merged: Merged) -> dict[str, Any]:
    return merged.values | {
        "colours": palette.COLOURS,
        "names": palette.NAMES,
        "bottleneck": findings.verdict.bottleneck,
        "waiter": sentences.waiter(findings),
    }


def _quantiles(data: PageData) -> str:
    """Return how far steps differ, from their own times; empty where there are too few steps to say."""
    lasted = array(data.steps.step_s)
    lasted = lasted[np.isfinite(lasted)]
    if len(lasted) < FEW_STEPS:
        return ""
    low, middle, high = (formatting.duration(float(value)) for value in np.quantile(lasted, (0.1, 0.5, 0.9)))
    spread = f"one in ten is below {low}, half are below {middle}, one in ten above {high}"
    return f"Of all {len(lasted):,} steps, {spread}."


def _spread(data: PageData) -> str:
    """Return how far single samples differ."""
    took = array(data.samples.took_s)
    took = took[np.isfinite(took)]
    if len(took) < FEW_STEPS:
        return ""
    middle, high, most = (float(value) for value in np.quantile(took, (0.5, 0.95, 1.0)))
    times = f", {formatting.number(most / middle)} times the median" if middle > 0 else ""
    return (
        f"{formatting.plural(len(took), 'sample')} of batches that were timed in depth, which costs them a little: half took "
        f"less than {formatting.duration(middle)}, one in twenty more than {formatting.duration(high)}, the dearest "
        f"{formatting.duration(most)}{times}."
    )


def _json(values: dict[str, Any]) -> str:
    """Return JSON that cannot end the element it stands in."""
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@cache
def _script() -> str:
    """Return all scripts as one function, so that they share names with each other and with nothing else."""
    parts = [(ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS]
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {
        "duration": formatting.duration,
        "percent": formatting.percent,
        "ratio": formatting.ratio,
        "size": formatting.size,
        "number": formatting.number,
        "code": _code,
        "short": _short,
        "setting": _setting,
    }
    environment.globals |= {
        "COLOURS": palette.COLOURS,
        "NAMES": palette.NAMES,
        "WORKER_STAGES": palette.WORKER_STAGES,
        "guide_place": guide.place,
        "interval": formatting.interval,
        "quantity": formatting.quantity,
        "plural": formatting.plural,
        "sentences": sentences,
    }
    return environment


def _shown(value: object) -> object:
    """Return what a template puts on the page: text without characters that could turn or break a line."""
    if value is None:
        return formatting.NOT_MEASURED
    return formatting.clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _code(text: str) -> Markup:
    """Return lines of code, kept as lines."""
    return Markup("\n").join(escape(formatting.clean(line)) for line in text.split("\n"))


def _short(text: str) -> str:
    """Return a name or path that leaves room for the rest; the raw findings have all of it."""
    return formatting.short(text, LONGEST)


def _setting(value: object) -> str:
    """Return a setting's value as Python writes it."""
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    return _short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def page(seen: Recording, found: Findings, folder: str) -> str:
    """Return the HTML report."""

    return render(found, page_data(seen), folder=folder)
