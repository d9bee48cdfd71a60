"""Numbers in words, in one place: durations, shares, ratios, sizes; and text that is safe to show.

Every function takes `None`, and numbers that are not finite, for `not measured`: unmeasured is never zero.
"""

from __future__ import annotations

import math
import unicodedata

NOT_MEASURED = "not measured"


def number(value: float) -> str:
    """Return a number with two or three digits that matter: 1,240, 38, 8.2, 0.45."""
    size = abs(value)
    if size >= 9.95:
        return f"{value:,.0f}"
    text = _short(f"{value:.1f}" if size >= 0.995 else f"{value:.2f}")
    return "0" if text == "-0" else text


def _short(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def scale(seconds: float) -> tuple[float, str]:
    """Return the factor and the unit in which a time of this size, and its parts, are shown."""
    if seconds < 0.9995:
        return 1000.0, "ms"
    return 1.0, "s"


def duration(seconds: float | None) -> str:
    """Return a time: 0.45 ms, 210 ms, 3.2 s, 1 min 27 s, 2 h 05 min."""
    if seconds is None or not math.isfinite(seconds):
        return NOT_MEASURED
    if seconds < 59.5:
        factor, unit = scale(seconds)
        return f"{number(seconds * factor)} {unit}"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def part_of(part_s: float | None, whole_s: float | None) -> str:
    """Return a time beside the time it is a part of, in one unit: 128 of 210 ms."""
    if part_s is None or whole_s is None or not (math.isfinite(part_s) and math.isfinite(whole_s)):
        return NOT_MEASURED
    factor, unit = scale(whole_s)
    return f"{number(part_s * factor)} of {number(whole_s * factor)} {unit}"


def percent(share: float | None, *, whole: bool = False) -> str:
    """Return a share of one as a percentage: 61 %, 0.4 %, <0.1 %; `whole`, for estimates in sentences: 0 %."""
    if share is None or not math.isfinite(share):
        return NOT_MEASURED
    points = share * 100
    if whole:
        return f"{points:,.0f} %"
    if 0 < points < 0.05:
        return "<0.1 %"
    return f"{points:,.0f} %" if abs(points) >= 9.95 else f"{_short(f'{points:.1f}')} %"


def ratio(value: float | None) -> str:
    """Return a speedup: 2.6x; with two digits where one would hide it, 1.04x."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    if value >= 9.95:
        return f"{value:,.0f}x"
    return f"{value:.2f}x" if value < 1.095 else f"{value:.1f}x"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """Return a speedup with the larger half of its interval: 2.0x ± 0.1."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ratio(value)
    half = max(high - value, value - low, 0.0)
    if half < 0.005:
        return f"{value:.2f}x ± <0.01"
    digits = 2 if half < 0.095 else 1
    return f"{value:.{digits}f}x ± {half:.{digits}f}"


def size(count: float | None) -> str:
    """Return bytes: 12 kB, 38 MB, 0.6 GB."""
    if count is None or not math.isfinite(count):
        return NOT_MEASURED
    for limit, factor, unit in ((1e11, 1e12, "TB"), (5e8, 1e9, "GB"), (1e5, 1e6, "MB"), (1e3, 1e3, "kB")):
        if abs(count) >= limit:
            return f"{number(count / factor)} {unit}"
    return f"{number(count)} B"


def quantity(value: float | None, unit: str) -> str:
    """Return a number with its unit, in the form that the rest of the report has for it."""
    if value is None or not math.isfinite(value):
        return NOT_MEASURED
    if unit in ("share", "fraction"):
        return percent(value)
    if unit in ("s", "seconds"):
        return duration(value)
    if unit in ("bytes", "B"):
        return size(value)
    if unit in ("bytes/s", "B/s"):
        return f"{size(value)}/s"
    if unit in ("x", "ratio"):
        return ratio(value)
    if unit in ("1", "count"):
        return number(value)
    return f"{number(value)} {short(unit, 12)}".rstrip()


def plural(count: int | None, noun: str) -> str:
    """Return a count and its noun: 1 step, 412 steps, steps not measured."""
    if count is None:
        return f"{plural(0, noun)[2:]} {NOT_MEASURED}"
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun[:-1] + 'ies' if noun.endswith('y') else noun + 's'}"


def short(text: str, limit: int) -> str:
    """Return clean text cut in its middle to a number of characters."""
    text = clean(text)
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return f"{text[: limit - 1 - tail]}…{text[len(text) - tail :]}"


def clean(text: str) -> str:
    """Return text that is safe to show: control, direction and separator characters are spelled out.

    A name in a job may hold escape codes for the terminal, or marks that turn the line's direction round.
    """
    if text.isprintable():
        return text
    return "".join(_shown(char) for char in text)


def _shown(char: str) -> str:
    if char in "\n\t\r ":
        return " "
    if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp", "Cs"):
        return f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}"
    return char
