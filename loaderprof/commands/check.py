"""`loaderprof check`: compare a recording with limits, for CI.

Limits come from `[tool.loaderprof]` of ./pyproject.toml and from flags, which take precedence. Exit code 0: all limits are
kept; 1: one is broken; 2: not enough evidence, or a usage error.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from loaderprof import formatting
from loaderprof.analyze import many_ranks
from loaderprof.conclude import findings_of
from loaderprof.diagnose.verdict import MIN_STEPS
from loaderprof.errors import OutputError, UsageError
from loaderprof.findings import STAGES, Findings, Loader
from loaderprof.recording import remote
from loaderprof.report.spinner import sign

Outcome = Literal["ok", "broken", "unknown"]
KEYS = ("max-wait", "min-samples-per-s", "max-step", "bottleneck-not")
EXAMPLE = "loaderprof check DIR --max-wait 10%"
_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Add what `loaderprof check` takes."""
    verb.description = "Exit code 0: within all limits; 1: a limit is broken; 2: not enough evidence, or wrong use."
    verb.epilog = 'Limits may stand in [tool.loaderprof] of ./pyproject.toml, too:  max-wait = "10%%"'
    verb.add_argument("folder", metavar="DIR", help="a recording: a folder or a URL")
    verb.add_argument("--max-wait", metavar="SHARE", help="of a step, waiting for its batch: 10%%")
    verb.add_argument("--min-samples-per-s", metavar="X", help="of the main loader, all ranks together")
    verb.add_argument("--max-step", metavar="TIME", help="waiting and the loop's own work: 200ms")
    verb.add_argument("--bottleneck-not", metavar="STAGE,...", help="stages that must not be the bottleneck")
    verb.add_argument("--junit", metavar="FILE", help="write the results as JUnit XML, over an older FILE")
    verb.add_argument("--github", action="store_true", help="print annotations for GitHub, too")


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    typed = {key: getattr(options, key.replace("-", "_")) for key in KEYS}
    with remote.local(options.folder) as folder:
        return check(folder, typed, junit=options.junit, github=options.github)


@dataclass(frozen=True, slots=True)
class CheckLimits:
    """Limits of a run: wait as a share of the step (0 to 1), samples per second, seconds, stages; None and (): no limit."""

    max_wait: float | None = None
    min_samples_per_s: float | None = None
    max_step_s: float | None = None
    bottleneck_not: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one limit, and the sentence for it."""

    limit: str
    outcome: Outcome
    text: str


def check(folder: Path, typed: Mapping[str, str | None], *, junit: str | None = None, github: bool = False) -> int:
    """Check a recording, print one line per limit, and return the exit code.

    Args:
        folder: the recording.
        typed: the values of the flags, by `KEYS`; None where a flag was not given.
        junit: write JUnit XML to this file, replacing an older one.
        github: also print GitHub's annotations.

    Raises:
        LoaderprofError: a limit cannot be read, there is none, or the folder is not a recording.
    """
    given = {key: value for key, value in typed.items() if value is not None}
    limits = limits_of({**from_project(Path("pyproject.toml"), wanted=not given), **given})
    with sign(f"reading {folder}"):
        results = examine(findings_of(many_ranks.read(folder)), limits)
    if junit is not None:
        _write(Path(junit), junit_xml(results))
    sys.stdout.write(render(results))
    if github:
        sys.stdout.write(github_lines(results))
    return exit_code(results)


def examine(found: Findings, limits: CheckLimits) -> tuple[Result, ...]:
    """Return the outcome of each limit that is set."""
    return tuple(_results(found, limits))


def _results(found: Findings, limits: CheckLimits) -> Iterable[Result]:
    verdict, few = found.verdict, _too_few(found)
    if limits.max_wait is not None:
        said = f"the loop waits {formatting.percent(verdict.wait_share)} of every step"
        yield _held("max-wait", verdict.wait_share, limits.max_wait, said, formatting.percent(limits.max_wait), few)
    if limits.min_samples_per_s is not None:
        rate, wanted = samples_per_s(found), limits.min_samples_per_s
        said = "samples per second were not measured" if rate is None else f"{formatting.number(rate)} samples/s"
        yield _held("min-samples-per-s", rate, wanted, said, f"{formatting.number(wanted)} samples/s", few, least=True)
    if limits.max_step_s is not None:
        said = f"a step takes {formatting.duration(verdict.step_s)}"
        yield _held("max-step", verdict.step_s, limits.max_step_s, said, formatting.duration(limits.max_step_s), few)
    if limits.bottleneck_not:
        yield _bottleneck(found, limits.bottleneck_not)


def _held(
    limit: str, value: float | None, bound: float, said: str, bound_said: str, few: str, *, least: bool = False
) -> Result:
    tail = f"at least {bound_said} wanted" if least else f"at most {bound_said} allowed"
    if value is None or few:
        return Result(limit, "unknown", f"not enough evidence: {few or said}; {tail}")
    within = value >= bound if least else value <= bound
    return Result(limit, "ok" if within else "broken", f"{said}; {tail}")


def _bottleneck(found: Findings, unwanted: Sequence[str]) -> Result:
    verdict = found.verdict
    if verdict.bottleneck == "unknown":
        return Result(
            "bottleneck-not", "unknown", f"{formatting.clean(verdict.headline)}; not {', '.join(unwanted)} wanted"
        )
    outcome: Outcome = "broken" if verdict.bottleneck in unwanted else "ok"
    said = f"the bottleneck is {verdict.bottleneck} (confidence {verdict.confidence})"
    return Result("bottleneck-not", outcome, f"{said}; not {', '.join(unwanted)} wanted")


def _too_few(found: Findings) -> str:
    """Return why a run is too short to be judged; empty where it is not."""
    steps = found.run.steps
    if steps is None or steps >= MIN_STEPS:
        return ""
    return f"only {formatting.plural(steps, 'step')} were seen, {MIN_STEPS} are needed"


def samples_per_s(found: Findings) -> float | None:
    """Return the main loader's samples per second, all ranks together; None where one was not measured."""
    main = _main(found)
    if main is None:
        return None
    rates = [one.samples_per_s for one in found.loaders if (one.name, one.where) == (main.name, main.where)]
    known = [rate for rate in rates if rate is not None]
    return sum(known) if len(known) == len(rates) else None


def _main(found: Findings) -> Loader | None:
    """Return the loader that the verdict is about, recognised by its wait, which the verdict repeats."""
    for loader in found.loaders:
        if loader.wait_s is not None and loader.wait_s == found.verdict.wait_s:
            return loader
    return next(iter(found.loaders), None)


def exit_code(results: Sequence[Result]) -> int:
    """Return 1 where a limit is broken, else 2 where there is not enough evidence for one, else 0."""
    outcomes = {result.outcome for result in results}
    return 1 if "broken" in outcomes else 2 if "unknown" in outcomes else 0


def render(results: Sequence[Result]) -> str:
    """Return one line per limit."""
    return "".join(f"{result.outcome:8} {result.limit:18} {result.text}\n" for result in results)


def github_lines(results: Sequence[Result]) -> str:
    """Return GitHub workflow commands for limits that are broken or could not be judged."""
    kinds = {"broken": "error", "unknown": "warning"}
    return "".join(
        f"::{kinds[result.outcome]} title=loaderprof {result.limit}::{_escaped(result.text)}\n"
        for result in results
        if result.outcome in kinds
    )


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def junit_xml(results: Sequence[Result]) -> str:
    """Return JUnit XML with a test case per limit; broken is a failure, not enough evidence an error."""
    tags = {"broken": "failure", "unknown": "error"}
    count = {tag: str(sum(tags.get(result.outcome) == tag for result in results)) for tag in tags.values()}
    numbers = {"tests": str(len(results)), "failures": count["failure"], "errors": count["error"]}
    root = ElementTree.Element("testsuites", numbers)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "loaderprof", **numbers})
    for result in results:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": "loaderprof.commands.check", "name": result.limit}
        )
        if result.outcome in tags:
            ElementTree.SubElement(case, tags[result.outcome], {"message": result.text}).text = result.text
        else:
            ElementTree.SubElement(case, "system-out").text = result.text
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}", "name another file with --junit") from None


def limits_of(given: Mapping[str, Any]) -> CheckLimits:
    """Parse limits as they are typed or written in pyproject.toml.

    Raises:
        UsageError: one cannot be read, or there is none.
    """
    if not given:
        raise UsageError("there is no limit to check", f"{EXAMPLE}, or [tool.loaderprof] in ./pyproject.toml")
    rate = given.get("min-samples-per-s")
    return CheckLimits(
        None if given.get("max-wait") is None else _share(given["max-wait"]),
        None if rate is None else _number("min-samples-per-s", rate),
        None if given.get("max-step") is None else _seconds(given["max-step"]),
        _stages(given.get("bottleneck-not", ())),
    )


def _number(key: str, value: Any) -> float:
    if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value) and value >= 0:
        return float(value)
    if isinstance(value, str) and re.fullmatch(_NUMBER, value.strip()):
        return float(value)
    raise UsageError(f"{key} takes a number, not {value!r}", EXAMPLE)


def _share(value: Any) -> float:
    """Parse a share: `10%`, `10 %` or 0.1."""
    match = re.fullmatch(_NUMBER + r"\s*%", value.strip()) if isinstance(value, str) else None
    share = float(match[1]) / 100 if match else _number("max-wait", value)
    if share > 1:
        raise UsageError(f"max-wait is a share of the step, and {value} is more than all of it", EXAMPLE)
    return share


def _seconds(value: Any) -> float:
    """Parse a time: `200ms`, `1.5 s`; a plain number is seconds."""
    match = re.fullmatch(_NUMBER + r"\s*(us|ms|s|min)", value.strip()) if isinstance(value, str) else None
    return float(match[1]) * _UNITS_S[match[2]] if match else _number("max-step", value)


def _stages(value: Any) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UsageError("bottleneck-not takes names of stages", "loaderprof check DIR --bottleneck-not decode,read")
    stages = tuple(name.strip() for name in names if name.strip())
    for name in stages:
        if name not in STAGES or name == "unknown":
            known = ", ".join(stage for stage in STAGES if stage != "unknown")
            raise UsageError(f"there is no stage called {name!r}", f"the stages are {known}")
    if value != () and not stages:
        raise UsageError("bottleneck-not names no stage", "loaderprof check DIR --bottleneck-not decode,read")
    return stages


def from_project(path: Path, *, wanted: bool) -> dict[str, Any]:
    """Return the limits in `[tool.loaderprof]` of a pyproject.toml; none where it has no such table.

    Args:
        path: the file.
        wanted: no flag gave a limit, so the table is needed.

    Raises:
        UsageError: the table has a key that is not a limit, or the file is not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    if not re.search(r"^\s*\[\s*tool\s*\.\s*[\"']?loaderprof", text, re.MULTILINE):
        return {}
    return _table(path, text, wanted)


def _table(path: Path, text: str, wanted: bool) -> dict[str, Any]:
    if sys.version_info < (3, 11):
        if wanted:
            raise UsageError(
                f"[tool.loaderprof] of {path} needs Python 3.11 or later to be read", f"give flags: {EXAMPLE}"
            )
        sys.stderr.write(f"loaderprof: [tool.loaderprof] of {path} is left out: reading it needs Python 3.11\n")
        return {}
    import tomllib

    try:
        table = tomllib.loads(text).get("tool", {}).get("loaderprof", {})
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is no TOML: {error}") from None
    # Tables below it belong to other commands.
    limits = {key: value for key, value in table.items() if not isinstance(value, dict)}
    for key in limits:
        if key not in KEYS:
            raise UsageError(
                f"[tool.loaderprof] of {path} has {key!r}, which is no limit", f"limits are {', '.join(KEYS)}"
            )
    return limits
