"""Findings in a notebook's cell: the lines to act on, a bar of the step, the changes. Self-contained and escaped HTML."""

from __future__ import annotations

from markupsafe import Markup

from loaderprof import formatting
from loaderprof.findings import Findings
from loaderprof.report import anatomy, sentences
from loaderprof.report.anatomy import Whole

MAX_ACTIONS = 4
# Notebooks keep inline styles and remove most other styling; text takes the colours of the notebook's theme.
_CELL = "text-align:left;padding:2px 12px 2px 0"


def render(findings: Findings, folder: str | None = None) -> str:
    """Return a fragment of HTML.

    Args:
        findings: what was concluded.
        folder: the recording's folder, to say where the full report is; None: not said.
    """
    lead = sentences.lead(findings)
    parts = [
        _tag("div", "opacity:0.7", " · ".join(["loaderprof", *lead.run])),
        _tag("div", "font-size:1.25em;font-weight:600;margin:4px 0", f"{lead.label}: {lead.bottleneck}"),
    ]
    verdict = findings.verdict
    if verdict.bottleneck != "unknown":
        parts.append(_tag("div", "", f"{lead.cost} ({lead.confidence})"))
    if verdict.bottleneck not in ("none", "unknown"):
        parts.append(_tag("div", "", f"Ceiling: {lead.ceiling}"))
        wholes = (anatomy.step(findings, phases=False), anatomy.worker(findings))
        parts += [_bar(whole) for whole in wholes if whole]
        parts += _changes(findings)
    if folder is not None:
        report = f"Full report: {formatting.clean(folder)}/report.html"
        parts.append(_tag("div", "opacity:0.7;margin-top:4px", report))
    return str(Markup('<div style="max-width:60em;line-height:1.4">{}</div>').format(Markup("").join(parts)))


def _tag(name: str, style: str, text: str) -> Markup:
    return Markup(f'<{name} style="{{}}">{{}}</{name}>').format(style, formatting.clean(text))


def _bar(whole: Whole) -> Markup:
    total, factor = sum(piece.seconds for piece in whole.pieces) or 1.0, formatting.scale(whole.seconds)[0]
    pieces = []
    for piece in whole.pieces:
        text = f"{piece.name} {formatting.number(piece.seconds * factor)}"
        stripes = f"repeating-linear-gradient(135deg,{piece.colour} 0 5px,{piece.colour}99 5px 10px)"
        look = stripes if piece.waiting else piece.colour
        style = (
            f"width:{100 * piece.seconds / total:.2f}%;background:{look};color:#fff;overflow:hidden;"
            "white-space:nowrap;text-overflow:ellipsis;padding:1px 0;text-indent:4px;text-shadow:0 0 3px #000"
        )
        pieces.append(Markup('<span title="{}" style="{}">{}</span>').format(text, style, text))
    title = _tag("div", "margin-top:6px", f"{whole.name}: {formatting.duration(whole.seconds)}")
    return title + Markup('<div style="display:flex">{}</div>').format(Markup("").join(pieces))


def _changes(findings: Findings) -> list[Markup]:
    rows = []
    numbers = sentences.numbering(findings.advice)
    for each in sentences.shown(findings.advice, MAX_ACTIONS):
        gain = formatting.interval(each.expected.speedup, each.expected.low, each.expected.high)
        cells = (
            numbers[each.id],
            formatting.short(sentences.action(each, findings.advice), 120),
            gain,
            sentences.verified(each),
        )
        row = Markup("").join(_tag("td", _CELL, cell) for cell in cells)
        rows.append(Markup("<tr>{}</tr>").format(row))
    if not rows:
        return []
    more = len(findings.advice) - len(sentences.shown(findings.advice, MAX_ACTIONS))
    table = Markup('<table style="margin-top:6px">{}</table>').format(Markup("").join(rows))
    return [table, *([_tag("div", "opacity:0.7", f"{formatting.plural(more, 'more change')}")] if more > 0 else [])]
