"""`loaderprof verify`: run the recorded job alternately without and with a change, and report the speedup.

The job is run as `loaderprof run` ran it, settings applied from outside, with the hooks but without samplers. Its output
goes to `verify.log` in the recording; files that the job writes itself (checkpoints, logs) it writes again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from loaderprof import formatting
from loaderprof.commands.options import settings_of
from loaderprof.conclude import findings_of, predict
from loaderprof.errors import LoaderprofError, UsageError
from loaderprof.findings import Advice, Expected, Findings, Measured
from loaderprof.measure import ratios, rerun, verified
from loaderprof.measure.rerun import LoaderTarget, RecordedJob
from loaderprof.measure.verified import Verified
from loaderprof.recording import files, reader, remote
from loaderprof.report import sentences

LOG = "verify.log"
# The most pairs of runs, and the relative half interval of the ratio at which fewer are enough.
PAIRS, PRECISION = 6, 0.05
# A run is ended after this time: its throughput is known by then, and twelve such runs take twelve minutes.
LIMIT_S = 60.0
# An interval whose upper end is this many times its lower one is too wide to be useful.
WIDE = 2.0


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Add what `loaderprof verify` takes."""
    verb.description = (
        "Runs the recorded job again, alternately as it was and changed. It does what it always does: "
        "checkpoints and logs that it writes, it writes again. Its output goes to DIR/verify.log."
    )
    verb.add_argument("folder", metavar="DIR", help="a recording made by loaderprof run")
    verb.add_argument(
        "--change",
        metavar="ID",
        action="append",
        default=[],
        help="advice to apply, by id or number (default: the best that is a setting); several are applied together",
    )
    verb.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="predict and measure a setting of your own instead: num_workers=4; several are applied together",
    )
    verb.add_argument(
        "--runs",
        metavar="N",
        type=int,
        default=6,
        help="at most so many pairs of runs, without and with the change (6)",
    )
    verb.add_argument(
        "--precision",
        metavar="P",
        type=float,
        default=5.0,
        help="stop as soon as the ratio is known to P %% either way (5); 0: run all pairs",
    )
    verb.add_argument(
        "--seconds", metavar="S", type=float, default=60.0, help="end a run S seconds after its first loader began (60)"
    )


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    if remote.is_url(options.folder):
        raise UsageError(
            "verify keeps what it measures beside the recording: it takes a folder, not a URL", "copy it first"
        )
    return verify(
        Path(options.folder),
        options.change,
        settings=settings_of(options.set),
        pairs=options.runs,
        limit_s=options.seconds,
        precision=options.precision / 100,
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: the advice's id, its settings, its predicted gain, and how often and how long to run."""

    id: str
    change: dict[str, Any]
    expected: Expected | None
    pairs: int
    limit_s: float
    precision: float = PRECISION

    @property
    def label(self) -> str:
        """The settings as `--set` takes them."""
        return _pairs(self.change, ", ")


def _pairs(settings: Mapping[str, Any], between: str) -> str:
    return between.join(f"{key}={value}" for key, value in settings.items())


@dataclass(slots=True)
class VerifyProgress:
    """A progress line on stderr, rewritten with each run; nothing where stderr is not a terminal."""

    plan: Plan
    shown: bool = field(default_factory=lambda: sys.stderr.isatty())
    last: str = ""

    def show(self, pair: int, label: str, elapsed_s: float) -> None:
        """Show which run is in progress."""
        text = f"pair {pair} of {self.plan.pairs}, {label}: {formatting.duration(elapsed_s)} of at most {formatting.duration(self.plan.limit_s)}"
        if self.shown and text != self.last:
            sys.stderr.write(f"\r\x1b[K  {text}")
            sys.stderr.flush()
            self.last = text

    def clear(self) -> None:
        """Erase the line."""
        if self.shown and self.last:
            sys.stderr.write("\r\x1b[K")
            self.last = ""


def verify(
    folder: Path,
    changes: Sequence[str],
    *,
    settings: Mapping[str, Any] | None = None,
    pairs: int = PAIRS,
    limit_s: float = LIMIT_S,
    precision: float = PRECISION,
) -> int:
    """Measure a change on the recorded job, print the speedup, and save it in the recording.

    Args:
        folder: the recording.
        changes: ids of advice; several are applied together. Empty: the best change that is a setting.
        settings: the caller's own in place of advice, as `--set` takes them.
        pairs: the most pairs of runs, one without and one with the change each.
        limit_s: a run is ended this many seconds after its first loader began.
        precision: no further pair is run once half of the ratio's interval is at most this share of the ratio.

    Returns:
        The exit code: 0, or 130 after Ctrl-C.

    Raises:
        LoaderprofError: the change is not a setting, or the job cannot be run again or measured.
    """
    if pairs < 1 or not limit_s > 0 or not precision >= 0:
        raise UsageError(
            "verify needs at least one pair, some seconds, and a precision of 0 or more",
            f"loaderprof verify {folder} --runs 3 --seconds 60",
        )
    folder = folder.absolute()
    seen = reader.read(folder)
    if settings:
        if changes:
            raise UsageError("--change and --set are two ways to say what to measure", f"loaderprof verify {folder}")
        plan = Plan(_pairs(settings, ","), dict(settings), None, pairs, limit_s)
    else:
        plan = plan_of(findings_of(seen), changes, pairs, limit_s, str(folder))
    plan = dataclasses.replace(plan, precision=precision)
    if plan.expected is None:
        plan = dataclasses.replace(plan, expected=predict(seen, [plan.change])[0])
    job, target = rerun.recorded_job(seen), rerun.target_of(seen)
    # A recording may come from elsewhere, so the command is shown before it runs.
    sys.stderr.write(f"{_announced(job, plan)}\n")
    results, interrupted = _measure(job, target, plan, folder)
    if results:
        sys.stdout.write(result_line(plan, results) + "\n")
        sys.stdout.flush()
        sys.stderr.write(_more(results))
        _keep_findings(folder)
    elif interrupted:
        sys.stderr.write("loaderprof: stopped before a pair of runs was complete; nothing was measured\n")
    return 130 if interrupted else 0


def result_line(plan: Plan, pairs: Sequence[tuple[float, float]]) -> str:
    """Return the result in one line, as `num_workers=4: 1.83 ± 0.06 times as fast (predicted 1.9 ± 0.2), 3 pairs`."""
    ratio = ratios.of_pairs(pairs)
    tail = f"{_predicted(plan.expected)}, {formatting.plural(len(pairs), 'pair')}"
    if ratio is None:
        before, after = pairs[0]
        return f"{plan.label}: {after / before:.2f} times as fast{tail}; one pair has no interval"
    lead = "" if ratio.significant else "no significant difference, "
    return f"{plan.label}: {lead}{ratio.text()} times as fast{tail}"


def _announced(job: RecordedJob, plan: Plan) -> str:
    command = formatting.clean(shlex.join(job.command))
    often = "at most " if plan.pairs > 2 else ""
    return f"running {command} in {formatting.clean(str(job.cwd))}, {often}{2 * plan.pairs} times, at most {formatting.duration(plan.limit_s)} each"


def _more(pairs: Sequence[tuple[float, float]]) -> str:
    """Return what to type where the interval is too wide to be useful; else nothing."""
    ratio = ratios.of_pairs(pairs)
    if ratio is None or ratio.high / ratio.low < WIDE:
        return ""
    return f"  The pairs differ by much: is the machine busy? More of them narrow it: --runs {2 * max(len(pairs), 3)}\n"


def _predicted(expected: Expected | None) -> str:
    if expected is None or expected.speedup is None:
        return ""
    return f" (predicted {formatting.interval(expected.speedup, expected.low, expected.high).replace('x', '')})"


def plan_of(found: Findings, ids: Sequence[str], pairs: int, limit_s: float, folder: str) -> Plan:
    """Return what to measure.

    Raises:
        UsageError: there is no such advice, or it is not a setting.
    """
    settings = [advice for advice in found.advice if sentences.is_setting(advice)]
    chosen = [_advice(found, id_, folder) for id_ in _single(found, ids)] if ids else settings[:1]
    if not chosen:
        raise UsageError("this recording has no advice that --set can apply", rerun.instead(folder))
    for advice in chosen:
        if not sentences.is_setting(advice):
            raise UsageError(f"{advice.id} is a change of code, which verify cannot make", rerun.instead(folder))
    change = {key: value for advice in chosen for key, value in advice.change.items()}
    joint = next((advice for advice in found.advice if advice.change == change), None)
    id_ = joint.id if joint is not None else "+".join(advice.id for advice in chosen)
    return Plan(id_, change, joint.expected if joint is not None else None, pairs, limit_s)


def _single(found: Findings, ids: Sequence[str]) -> list[str]:
    """Return single ids, each once: `a+b` is an advice of that id, or two of them; a number is that in the report."""
    places = {place: id_ for id_, place in sentences.numbering(found.advice).items()}
    known = {advice.id for advice in found.advice} | places.keys()
    parts = [part for id_ in ids for part in ([id_] if id_ in known else id_.split("+"))]
    return list(dict.fromkeys(places.get(part, part) for part in parts))


def _advice(found: Findings, id_: str, folder: str) -> Advice:
    for advice in found.advice:
        if advice.id == id_:
            return advice
    known = ", ".join(advice.id for advice in found.advice)
    raise UsageError(
        f"the report advises nothing called {id_!r}", f"it has {known}" if known else f"loaderprof report {folder}"
    )


def _measure(
    job: RecordedJob, target: LoaderTarget, plan: Plan, folder: Path
) -> tuple[list[tuple[float, float]], bool]:
    """Run pair after pair, saving the results after each; also return whether Ctrl-C ended it."""
    results: list[tuple[float, float]] = []
    progress = VerifyProgress(plan)
    try:
        with _log(folder) as log, rerun.terminated_like_interrupted():
            for number in range(1, plan.pairs + 1):
                pair = _scored(job, target, plan, log, number, progress, first=not results)
                if pair is not None:
                    results.append(pair)
                    _keep(folder, plan, results)
                    if ratios.is_within(ratios.of_pairs(results), plan.precision):
                        break
    except KeyboardInterrupt:
        return results, True
    finally:
        progress.clear()
    return results, False


def _scored(
    job: RecordedJob,
    target: LoaderTarget,
    plan: Plan,
    log: IO[bytes],
    number: int,
    progress: VerifyProgress,
    *,
    first: bool,
) -> tuple[float, float] | None:
    """Return a pair's throughputs; None, with a message, where a run fails. In the first pair that is an error."""
    try:
        return _pair(job, target, plan, log, number, progress)
    except rerun.TrialError as error:
        if first:
            raise
        progress.clear()
        sys.stderr.write(f"loaderprof: pair {number} does not count: {error.message}\n")
        return None


def _pair(
    job: RecordedJob, target: LoaderTarget, plan: Plan, log: IO[bytes], number: int, progress: VerifyProgress
) -> tuple[float, float]:
    """Return samples per second without and with the change: both over whole epochs, or both in steady state."""
    paces = []
    for label, change in (("as recorded", {}), (plan.label, plan.change)):
        log.write(f"== pair {number} of {plan.pairs}, {label}\n".encode())
        log.flush()
        paces.append(
            rerun.measured_pace(job, target, change, plan.limit_s, log, label, partial(progress.show, number, label))
        )
    before, after = paces
    if before.epochs is not None and after.epochs is not None:
        return before.epochs, after.epochs
    if before.steady is None or after.steady is None or any(key in rerun.AT_BORDERS for key in plan.change):
        what = "two whole epochs" if any(key in rerun.AT_BORDERS for key in plan.change) else f"{rerun.MIN_STEPS} steps"
        raise rerun.TrialError(
            f"{formatting.duration(plan.limit_s)} of the job, or all of it, do not hold {what}",
            f"give it longer: --seconds {plan.limit_s * 4:g}",
        )
    return before.steady, after.steady


def _keep(folder: Path, plan: Plan, pairs: Sequence[tuple[float, float]]) -> None:
    ratio = ratios.of_pairs(pairs)
    seen = (
        None
        if ratio is None
        else Measured(round(ratio.value, 4), round(ratio.low, 4), round(ratio.high, 4), len(pairs))
    )
    try:
        verified.save(folder, Verified(plan.id, plan.change, tuple(pairs), seen))
    except OSError as error:
        sys.stderr.write(f"loaderprof: {folder / verified.NAME}: {error.strerror}; the result is not kept\n")


def _keep_findings(folder: Path) -> None:
    """Write findings.json again, including the measurement."""
    with contextlib.suppress(OSError):
        files.write_whole(folder / files.FINDINGS, findings_of(reader.read(folder)).to_json())


def _log(folder: Path) -> IO[bytes]:
    try:
        (folder / LOG).unlink(missing_ok=True)
        return open(folder / LOG, "x+b")
    except OSError as error:
        raise LoaderprofError(f"{folder / LOG} cannot be written: {error.strerror}") from None
