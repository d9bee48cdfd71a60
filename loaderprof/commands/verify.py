"""`loaderprof verify`: run the recorded job without and with a change, in turn, and say what the change brought.

The job is run as `loaderprof run` ran it, settings applied from outside, with the hooks and nothing else. Its output
goes to `verify.log` in the recording; what it writes itself (checkpoints, logs) it writes again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from loaderprof import formatting
from loaderprof.conclude import findings_of, predict
from loaderprof.errors import LoaderprofError, UsageError
from loaderprof.findings import Advice, Expected, Findings, Measured
from loaderprof.measure import ratios, rerun, verified
from loaderprof.measure.rerun import LoaderTarget, RecordedJob
from loaderprof.measure.verified import Verified
from loaderprof.recording import files, reader
from loaderprof.report import sentences

if TYPE_CHECKING:
    pass

LOG = "verify.log"
# At most so many pairs of runs, and fewer where the ratio is known this well before: half of its interval, over it.
PAIRS, PRECISION = 6, 0.05
# A run that lasts longer is ended: its pace is known by then, and twelve runs are still a coffee.
LIMIT_S = 60.0
# An interval whose ends are this far apart answers no question.
WIDE = 2.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: the advice's id, its settings, what is expected of it, and how often and long to run."""

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
    """One line on stderr, rewritten as runs go by; nothing where stderr is no terminal."""

    plan: Plan
    shown: bool = field(default_factory=lambda: sys.stderr.isatty())
    last: str = ""

    def show(self, pair: int, label: str, elapsed_s: float) -> None:
        """Say which run is under way."""
        text = f"pair {pair} of {self.plan.pairs}, {label}: {formatting.duration(elapsed_s)} of at most {formatting.duration(self.plan.limit_s)}"
        if self.shown and text != self.last:
            sys.stderr.write(f"\r\x1b[K  {text}")
            sys.stderr.flush()
            self.last = text

    def clear(self) -> None:
        """Take the line away."""
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
    """Measure a change on the recorded job, print what it brought, and keep it in the recording.

    Args:
        folder: the recording.
        changes: ids of advice; several are applied together. Empty: the best change that is a setting.
        settings: the caller's own in place of advice, as `--set` takes them.
        pairs: how many runs without and with the change, at most.
        limit_s: a run is ended so many seconds after its first loader began.
        precision: no further pair is run once half of the ratio's interval is no wider than this share of it.

    Returns:
        The exit code: 0, or 130 after Ctrl-C.

    Raises:
        LoaderprofError: the change is no setting, or the job cannot be run again or measured.
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
    # A recording may come from elsewhere: whoever verifies it sees what is about to run.
    sys.stderr.write(f"{_announced(job, plan)}\n")
    results, interrupted = _measure(job, target, plan, folder)
    if results:
        sys.stdout.write(told(plan, results) + "\n")
        sys.stdout.flush()
        sys.stderr.write(_more(results))
        _keep_findings(folder)
    elif interrupted:
        sys.stderr.write("loaderprof: stopped before a pair of runs was complete; nothing was measured\n")
    return 130 if interrupted else 0


def told(plan: Plan, pairs: Sequence[tuple[float, float]]) -> str:
    """Return the result in one line, as `num_workers=4: 1.83 ± 0.06 times as fast (predicted 1.9 ± 0.2), 3 pairs`."""
    ratio = ratios.of_pairs(pairs)
    tail = f"{_predicted(plan.expected)}, {formatting.plural(len(pairs), 'pair')}"
    if ratio is None:
        before, after = pairs[0]
        return f"{plan.label}: {after / before:.2f} times as fast{tail}; one pair has no interval"
    lead = "" if ratio.significant else "no significant difference, "
    return f"{plan.label}: {lead}{ratio.told()} times as fast{tail}"


def _announced(job: RecordedJob, plan: Plan) -> str:
    command = formatting.clean(shlex.join(job.command))
    often = "at most " if plan.pairs > 2 else ""
    return f"running {command} in {formatting.clean(str(job.cwd))}, {often}{2 * plan.pairs} times, at most {formatting.duration(plan.limit_s)} each"


def _more(pairs: Sequence[tuple[float, float]]) -> str:
    """Return what to type where the pairs disagree too much to say anything; else nothing."""
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
        UsageError: there is no such advice, or it is no setting.
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
    """Return ids one by one, each once: `a+b` is advice of its own or both of them; a number is the report's."""
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
    """Run pair after pair, keeping the result after each; tell whether Ctrl-C ended it."""
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
    """Return a pair's speeds. A run that fails is told and leaves its pair unscored; the first pair's ends it all."""
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
    """Return samples per second without and with the change, over the same kind of stretch."""
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
    """Write findings.json again, with what was measured."""
    with contextlib.suppress(OSError):
        files.write_whole(folder / files.FINDINGS, findings_of(reader.read(folder)).to_json())


def _log(folder: Path) -> IO[bytes]:
    try:
        (folder / LOG).unlink(missing_ok=True)
        return open(folder / LOG, "x+b")
    except OSError as error:
        raise LoaderprofError(f"{folder / LOG} cannot be written: {error.strerror}") from None
