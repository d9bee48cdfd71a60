"""`loaderprof verify`: run the recorded job without and with a change, in turn, and say what the change brought.

The job is run as `loaderprof run` ran it, settings applied from outside, with the hooks and nothing else. Its output
goes to `verify.log` in the recording; what it writes itself (checkpoints, logs) it writes again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import numpy as np

from loaderprof import files, ratios, recording, verified
from loaderprof.conclude import predict
from loaderprof.errors import LoaderprofError, UsageError
from loaderprof.findings import Advice, Expected, Findings, Measured
from loaderprof.report import sentences, words
from loaderprof.verified import Verified

if TYPE_CHECKING:
    from loaderprof.diagnose.timeline import Loop
    from loaderprof.recording import Recording

LOG = "verify.log"
# At most so many pairs of runs, and fewer where the ratio is known this well before: half of its interval, over it.
PAIRS, PRECISION = 6, 0.05
# A run that lasts longer is ended: its pace is known by then, and twelve runs are still a coffee.
LIMIT_S = 60.0
# As for a verdict: fewer steps are no pace.
MIN_STEPS = 20
# An interval whose ends are this far apart answers no question.
WIDE = 2.0
# Settings that act at the borders of epochs, which the steady pace leaves out.
AT_BORDERS = ("persistent_workers",)
# What a loader's facts call a setting, where it is not called as DataLoader calls it.
_FACTS = {"multiprocessing_context": "start_method"}
_LOG_TAIL_BYTES = 4096


class TrialError(LoaderprofError):
    """A run that was to be measured did not come to its end, or shows nothing."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Job:
    """A recorded job: how to start it, from where, with which settings, and the code it left with."""

    command: tuple[str, ...]
    cwd: Path
    settings: dict[str, Any]
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class Target:
    """The loader that is watched, by its variable and the line that uses it."""

    name: str
    where: str | None


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


@dataclass(frozen=True, slots=True)
class Pace:
    """Samples per second of one run: at its steady pace, and over whole epochs; None where there were too few."""

    steady: float | None
    epochs: float | None


@dataclass(slots=True)
class Progress:
    """One line on stderr, rewritten as runs go by; nothing where stderr is no terminal."""

    plan: Plan
    shown: bool = field(default_factory=lambda: sys.stderr.isatty())
    last: str = ""

    def show(self, pair: int, label: str, elapsed_s: float) -> None:
        """Say which run is under way."""
        text = f"pair {pair} of {self.plan.pairs}, {label}: {elapsed_s:.0f} s of at most {self.plan.limit_s:g} s"
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
    seen = recording.read(folder)
    if settings:
        if changes:
            raise UsageError("--change and --set are two ways to say what to measure", f"loaderprof verify {folder}")
        plan = Plan(_pairs(settings, ","), dict(settings), None, pairs, limit_s)
    else:
        plan = plan_of(seen.findings(), changes, pairs, limit_s, str(folder))
    plan = dataclasses.replace(plan, precision=precision)
    if plan.expected is None:
        plan = dataclasses.replace(plan, expected=predict(seen, [plan.change])[0])
    job, target = recorded_job(seen), _target(seen)
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
    tail = f"{_predicted(plan.expected)}, {words.plural(len(pairs), 'pair')}"
    if ratio is None:
        before, after = pairs[0]
        return f"{plan.label}: {after / before:.2f} times as fast{tail}; one pair has no interval"
    lead = "" if ratio.significant else "no significant difference, "
    return f"{plan.label}: {lead}{ratio.told()} times as fast{tail}"


def _announced(job: Job, plan: Plan) -> str:
    command = words.clean(shlex.join(job.command))
    often = "at most " if plan.pairs > 2 else ""
    return f"running {command} in {words.clean(str(job.cwd))}, {often}{2 * plan.pairs} times, at most {plan.limit_s:g} s each"


def _more(pairs: Sequence[tuple[float, float]]) -> str:
    """Return what to type where the pairs disagree too much to say anything; else nothing."""
    ratio = ratios.of_pairs(pairs)
    if ratio is None or ratio.high / ratio.low < WIDE:
        return ""
    return f"  The pairs differ by much: is the machine busy? More of them narrow it: --runs {2 * max(len(pairs), 3)}\n"


def _predicted(expected: Expected | None) -> str:
    if expected is None or expected.speedup is None:
        return ""
    return f" (predicted {words.interval(expected.speedup, expected.low, expected.high).replace('x', '')})"


def plan_of(found: Findings, ids: Sequence[str], pairs: int, limit_s: float, folder: str) -> Plan:
    """Return what to measure.

    Raises:
        UsageError: there is no such advice, or it is no setting.
    """
    settings = [advice for advice in found.advice if sentences.is_setting(advice)]
    chosen = [_advice(found, id_, folder) for id_ in _single(found, ids)] if ids else settings[:1]
    if not chosen:
        raise UsageError("this recording has no advice that --set can apply", _instead(folder))
    for advice in chosen:
        if not sentences.is_setting(advice):
            raise UsageError(f"{advice.id} is a change of code, which verify cannot make", _instead(folder))
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


def _instead(folder: str) -> str:
    return f"make the change, loaderprof run -o CHANGED ..., then loaderprof compare {shlex.quote(folder)} CHANGED"


def recorded_job(seen: Recording) -> Job:
    """Return how to run a recorded job again.

    Raises:
        LoaderprofError: it was not started by `loaderprof run`, keeps a secret, or its files have gone.
    """
    from loaderprof.capture import launch

    meta, again = seen.meta, "loaderprof run -o NEW_FOLDER train.py makes a recording that can be verified"
    how, command_, cwd = meta.get("job"), meta.get("command"), meta.get("cwd")
    if not isinstance(how, dict) or not isinstance(command_, list) or not command_ or not isinstance(cwd, str):
        raise UsageError(f"{seen.folder} was not made by loaderprof run, so its job cannot be started again", again)
    typed = [str(word) for word in command_]
    if any("***" in word for word in typed):
        raise UsageError(
            "the job's command holds a secret, which the recording did not keep", _instead(str(seen.folder))
        )
    launcher, settings = bool(how.get("launcher")), how.get("settings")
    module = not launcher and typed[0] == "-m"
    with _within(Path(cwd)):
        command = launch.job_command(typed[1:] if module else typed, module, launcher)
    code = meta.get("exit_code")
    return Job(
        tuple(command),
        Path(cwd),
        dict(settings) if isinstance(settings, dict) else {},
        code if isinstance(code, int) else None,
    )


@contextlib.contextmanager
def _within(folder: Path) -> Iterator[None]:
    """Be in a folder for a while: a command is checked where it runs."""
    before = Path.cwd()
    try:
        os.chdir(folder)
    except OSError as error:
        raise LoaderprofError(f"the job ran in {folder}, which is not there now: {error.strerror}") from None
    try:
        yield
    finally:
        os.chdir(before)


def _target(seen: Recording) -> Target:
    """Return the loader that the advice is about: of the longest training loop, else the longest."""
    from loaderprof.diagnose.timeline import build

    loops = build(seen).loops
    if not loops:
        raise UsageError("the recording has no loader to measure", "loaderprof run train.py")
    main = next((loop for loop in loops if loop.training), loops[0])
    return Target(main.name, main.facts.get("where"))


def _measure(job: Job, target: Target, plan: Plan, folder: Path) -> tuple[list[tuple[float, float]], bool]:
    """Run pair after pair, keeping the result after each; tell whether Ctrl-C ended it."""
    results: list[tuple[float, float]] = []
    progress = Progress(plan)
    try:
        with _log(folder) as log, terminated_like_interrupted():
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
    job: Job, target: Target, plan: Plan, log: IO[bytes], number: int, progress: Progress, *, first: bool
) -> tuple[float, float] | None:
    """Return a pair's speeds. A run that fails is told and leaves its pair unscored; the first pair's ends it all."""
    try:
        return _pair(job, target, plan, log, number, progress)
    except TrialError as error:
        if first:
            raise
        progress.clear()
        sys.stderr.write(f"loaderprof: pair {number} does not count: {error.message}\n")
        return None


def _pair(job: Job, target: Target, plan: Plan, log: IO[bytes], number: int, progress: Progress) -> tuple[float, float]:
    """Return samples per second without and with the change, over the same kind of stretch."""
    paces = []
    for label, change in (("as recorded", {}), (plan.label, plan.change)):
        log.write(f"== pair {number} of {plan.pairs}, {label}\n".encode())
        log.flush()
        paces.append(_arm(job, target, change, plan.limit_s, log, label, partial(progress.show, number, label)))
    before, after = paces
    if before.epochs is not None and after.epochs is not None:
        return before.epochs, after.epochs
    if before.steady is None or after.steady is None or any(key in AT_BORDERS for key in plan.change):
        what = "two whole epochs" if any(key in AT_BORDERS for key in plan.change) else f"{MIN_STEPS} steps"
        raise TrialError(
            f"{plan.limit_s:g} s of the job, or all of it, do not hold {what}",
            f"give it longer: --seconds {plan.limit_s * 4:g}",
        )
    return before.steady, after.steady


def _arm(
    job: Job, target: Target, change: Mapping[str, Any], limit_s: float, log: IO[bytes], label: str,
    tick: Callable[[float], None],
) -> Pace:  # fmt: skip
    """Run the job once and return its pace."""
    from loaderprof.capture import trial

    with tempfile.TemporaryDirectory(prefix="loaderprof-") as name:
        folder = Path(name)
        ended = trial.run(
            job.command,
            cwd=job.cwd,
            settings={**job.settings, **change},
            folder=folder,
            log=log,
            limit_s=limit_s,
            tick=tick,
        )
        if not ended.stopped and ended.code not in (0, job.exit_code):
            raise TrialError(f"the job failed with exit code {ended.code} ({label}){last_line(log)}", f"see {log.name}")
        return pace(recording.read(folder), target, change)


def pace(seen: Recording, target: Target, change: Mapping[str, Any]) -> Pace:
    """Return how fast a run took batches from a loader, all ranks together.

    Raises:
        TrialError: the run did not use the loader, or the change did not reach it.
    """
    from loaderprof.diagnose.timeline import build

    loops = _matching(build(seen).loops, target)
    if not loops:
        raise TrialError(f"the job took no batch from {target.name}")
    for key, value in change.items():
        name = key.rsplit(".", 1)[-1]
        if loops[0].facts.get(_FACTS.get(name, name)) != value:
            raise TrialError(
                f"{key}={value} did not reach the loader {target.name}", "is it made by code that sets it later?"
            )
    steady = [_steady(loop) for loop in loops]
    epochs = [_whole_epochs(loop) for loop in loops]
    return Pace(_sum(steady), _sum(epochs))


def _matching(loops: Sequence[Loop], target: Target) -> list[Loop]:
    """Return the loops over one loader, one a rank; by its variable alone where its line has moved."""
    named = [loop for loop in loops if loop.name == target.name]
    return [loop for loop in named if loop.facts.get("where") == target.where] or named


def _sum(rates: Sequence[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known and len(known) == len(rates) else None


def _per_batch(loop: Loop) -> int:
    size = loop.facts.get("batch_size")
    return size if isinstance(size, int) and size > 0 else 1


def _steady(loop: Loop) -> float | None:
    wait, step = loop.mean(loop.wait), loop.mean(loop.step)
    if wait is None or step is None or wait + step <= 0 or int(loop.count[loop.steady].sum()) < MIN_STEPS:
        return None
    return _per_batch(loop) / (wait + step)


def _whole_epochs(loop: Loop) -> float | None:
    """Return samples per second over whole epochs with their borders, the first one left out: it warms up."""
    numbers = np.unique(loop.epoch)
    epochs = [epoch for epoch in loop.epochs if epoch.batches]
    seconds, batches = 0.0, 0
    for number, epoch in list(zip(numbers, epochs, strict=False))[1:]:
        if epoch.ended is not None:
            mine = loop.epoch == number
            seconds += float(np.nansum(loop.wait[mine]) + np.nansum(loop.step[mine]))
            seconds += epoch.ready - epoch.begun + epoch.shutdown_s
            batches += epoch.batches
    return _per_batch(loop) * batches / seconds if batches >= MIN_STEPS and seconds > 0 else None


def _keep(folder: Path, plan: Plan, pairs: Sequence[tuple[float, float]]) -> None:
    ratio = ratios.of_pairs(pairs)
    seen = None if ratio is None else Measured(
        round(ratio.value, 4), round(ratio.low, 4), round(ratio.high, 4), len(pairs)
    )  # fmt: skip
    try:
        verified.save(folder, Verified(plan.id, plan.change, tuple(pairs), seen))
    except OSError as error:
        sys.stderr.write(f"loaderprof: {folder / verified.NAME}: {error.strerror}; the result is not kept\n")


def _keep_findings(folder: Path) -> None:
    """Write findings.json again, with what was measured."""
    with contextlib.suppress(OSError):
        files.write_whole(folder / files.FINDINGS, recording.read(folder).findings().to_json())


def _log(folder: Path) -> IO[bytes]:
    try:
        (folder / LOG).unlink(missing_ok=True)
        return open(folder / LOG, "x+b")
    except OSError as error:
        raise LoaderprofError(f"{folder / LOG} cannot be written: {error.strerror}") from None


def last_line(log: IO[bytes]) -> str:
    """Return the last line that the job wrote, which in Python names the error."""
    with open(log.name, "rb") as written:
        written.seek(max(0, written.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
        lines = written.read().decode("utf-8", "replace").strip().splitlines()
    return f": {words.short(lines[-1], 160)}" if lines and not lines[-1].startswith("== ") else ""


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Take SIGTERM and a closed terminal as Ctrl-C, so that the run under way is ended with us."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    both = (signal.SIGTERM, signal.SIGHUP)
    ignored = [number for number in both if signal.getsignal(number) == signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, interrupt) for number in both if number not in ignored}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
