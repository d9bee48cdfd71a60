"""What `tune` found, on one screen: the table of settings, what to type, and the code to paste. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from loaderprof import formatting
from loaderprof.measure.tuned import Tried, Tuned
from loaderprof.replay.costs import Settings

WIDTH = 80
ROWS = 12


def render(result: Tuned, folder: str) -> str:
    """Return the result as text, at most `ROWS` rows of settings."""
    shown = [each for each in result.tried if each.per_s is not None]
    rows = shown[:ROWS]
    for must in (result.present, _measured_as(result.best, result.tried)):
        rows += [each for each in shown[ROWS:] if each.settings == must and each not in rows]
    lines = [_head(result), "", *_table(result, rows), ""]
    if len(shown) > len(rows):
        lines[-1:] = [f"  {len(shown) - len(rows)} slower ones are in {folder}/tune.json", ""]
    lines += [
        f"  Failed    {in_words(each.settings)}: {formatting.short(each.failed or '', 100)}"
        for each in result.tried
        if each.failed
    ]
    lines += [f"  Kept off  {reason}" for reason in result.left_out]
    lines += [f"  Note      {note}" for note in result.notes]
    lines += _advice(result)
    return "\n".join(lines) + f"\n  Kept      {folder}/tune.json     the job's output: {folder}/tune.log\n"


def trial_in_words(settings: Settings) -> str:
    """Return the settings of a trial in a few words, for the line of progress."""
    return in_words({key: getattr(settings, key) for key in settings.__dataclass_fields__})


def in_words(settings: Mapping[str, Any]) -> str:
    """Return settings in a few words: `2 workers, prefetch 4, any order`."""
    workers = settings["num_workers"]
    if not workers:
        return "no workers"
    parts = [formatting.plural(workers, "worker"), f"prefetch {settings['prefetch_factor']}"]
    parts += ["any order"] if not settings["in_order"] else []
    parts += ["kept"] if settings["persistent_workers"] else []
    parts += ["pinned"] if settings["pin_memory"] else []
    return ", ".join(parts)


def _head(result: Tuned) -> str:
    where = f" ({formatting.clean(result.where.rsplit('/', 1)[-1])})" if result.where else ""
    runs = formatting.plural(result.starts, "run")
    windows = sum(each.windows for each in result.tried)
    measured = f"{windows} windows in {runs}" if result.way == "windows" else runs
    command = formatting.short(formatting.clean(result.command), 30)
    return f"loaderprof tune  {command}  {formatting.clean(result.loader)}{where}  {measured}  {formatting.duration(result.seconds)}"


def _table(result: Tuned, rows: list[Tried]) -> list[str]:
    lines = [f"  {'settings':38}  {result.unit + '/s':>16}  {'windows' if result.way == 'windows' else 'runs':>7}"]
    best = _measured_as(result.best, result.tried)
    for each in rows:
        mark = "now" if each.settings == result.present else ""
        if each.settings == best:
            mark = "best, now" if mark else "best"
        lines.append(f"  {in_words(each.settings):38}  {_rate(each):>16}  {each.windows:>7}  {mark}".rstrip())
    return lines


def _measured_as(best: Mapping[str, Any], rows: Sequence[Tried]) -> Mapping[str, Any]:
    """Return the settings of the best one's row: persistent workers may have been added to them after the search."""
    if any(each.settings == best for each in rows):
        return best
    return {**best, "persistent_workers": False}


def _rate(each: Tried) -> str:
    if each.per_s is None:
        return formatting.NOT_MEASURED
    value = formatting.number(each.per_s)
    if each.low is None or each.high is None:
        return value
    return f"{value} ± {formatting.number((each.high - each.low) / 2)}"


def _advice(result: Tuned) -> list[str]:
    if not result.change:
        return ["  Best      the present settings: nothing that was measured is surely faster"]
    change = ", ".join(f"{key}={value}" for key, value in result.change.items())
    gain = ""
    if result.measured is not None:
        seen = result.measured
        interval = formatting.interval(seen.speedup, seen.low, seen.high).replace("x", "")
        gain = f": {interval} times as fast as now"
    prefix = f"{result.assigned}." if result.assigned else ""
    sets = " ".join(f"--set {shlex.quote(f'{prefix}{key}={value}')}" for key, value in result.change.items())
    code = ", ".join(f"{key}={value}" for key, value in result.change.items())
    return [
        f"  Best      {change}{gain}",
        f"  Try it    loaderprof run {sets} {formatting.clean(result.command)}",
        f"  Code      {formatting.clean(result.loader)} = DataLoader(..., {code})",
    ]
