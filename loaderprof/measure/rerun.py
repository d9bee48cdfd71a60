"""Run a recorded job again and measure its throughput: what `verify` and `tune` share."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from loaderprof import formatting
from loaderprof.analyze.loop import Loop
from loaderprof.analyze.timeline import build
from loaderprof.capture import launch
from loaderprof.errors import LoaderprofError, UsageError
from loaderprof.measure import trial
from loaderprof.recording import reader
from loaderprof.recording.reader import Recording

# Fewer steps do not give a throughput; a verdict needs as many.
MIN_STEPS = 20
# Settings that act between epochs, which the steady state leaves out.
AT_BORDERS = ("persistent_workers",)
# Names of settings in a loader's facts that differ from DataLoader's.
_FACTS = {"multiprocessing_context": "start_method"}
_LOG_TAIL_BYTES = 4096


class TrialError(LoaderprofError):
    """A run that was to be measured failed, or took too few batches."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class RecordedJob:
    """A recorded job: how to start it, from where, with which settings, and the code it left with."""

    command: tuple[str, ...]
    cwd: Path
    settings: dict[str, Any]
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class LoaderTarget:
    """The loader that is watched, by its variable and the line that uses it."""

    name: str
    where: str | None


@dataclass(frozen=True, slots=True)
class Pace:
    """Samples per second of one run: in steady state, and over whole epochs; None where there were too few steps."""

    steady: float | None
    epochs: float | None


def instead(folder: str) -> str:
    """Return the commands for a change that cannot be applied from outside."""
    return f"make the change, loaderprof run -o CHANGED ..., then loaderprof compare {shlex.quote(folder)} CHANGED"


def recorded_job(seen: Recording) -> RecordedJob:
    """Return how to run a recorded job again.

    Raises:
        LoaderprofError: it was not started by `loaderprof run`, its command holds a secret, or its files are gone.
    """
    meta, again = seen.meta, "loaderprof run -o NEW_FOLDER train.py makes a recording that can be verified"
    how, command_, cwd = meta.job, meta.command, meta.cwd
    if how is None or not command_ or cwd is None:
        raise UsageError(f"{seen.folder} was not made by loaderprof run, so its job cannot be started again", again)
    typed = [str(word) for word in command_]
    if any("***" in word for word in typed):
        raise UsageError(
            "the job's command holds a secret, which the recording did not keep", instead(str(seen.folder))
        )
    launcher, settings = bool(how.launcher), how.settings
    module = not launcher and typed[0] == "-m"
    with _within(Path(cwd)):
        command = launch.job_command(typed[1:] if module else typed, module, launcher)
    code = meta.exit_code
    return RecordedJob(
        tuple(command),
        Path(cwd),
        dict(settings),
        code if isinstance(code, int) else None,
    )


@contextlib.contextmanager
def _within(folder: Path) -> Iterator[None]:
    """Change to a folder for the length of the block: a command is checked where it runs."""
    before = Path.cwd()
    try:
        os.chdir(folder)
    except OSError as error:
        raise LoaderprofError(f"the job ran in {folder}, which is not there now: {error.strerror}") from None
    try:
        yield
    finally:
        os.chdir(before)


def target_of(seen: Recording) -> LoaderTarget:
    """Return the loader that the advice is about: that of the longest training loop, else of the longest loop."""
    loops = build(seen).loops
    if not loops:
        raise UsageError("the recording has no loader to measure", "loaderprof run train.py")
    main = next((loop for loop in loops if loop.training), loops[0])
    return LoaderTarget(main.name, main.facts.where)


def measured_pace(
    job: RecordedJob,
    target: LoaderTarget,
    change: Mapping[str, Any],
    limit_s: float,
    log: IO[bytes],
    label: str,
    tick: Callable[[float], None],
) -> Pace:
    """Run the job once and return its throughput.

    Args:
        job: what to run.
        target: the loader to measure.
        change: settings to apply besides the job's own.
        limit_s: the run is ended this many seconds after its first loader began.
        log: takes the job's output.
        label: what error messages call this run.
        tick: called repeatedly with the seconds since the first loader began.
    """
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
        return pace(reader.read(folder), target, change)


def pace(seen: Recording, target: LoaderTarget, change: Mapping[str, Any]) -> Pace:
    """Return the samples per second that a run took from a loader, summed over ranks.

    Raises:
        TrialError: the run did not use the loader, or the change did not reach it.
    """
    loops = _matching(build(seen).loops, target)
    if not loops:
        raise TrialError(f"the job took no batch from {target.name}")
    for key, value in change.items():
        name = key.rsplit(".", 1)[-1]
        if loops[0].facts.written.get(_FACTS.get(name, name)) != value:
            raise TrialError(
                f"{key}={value} did not reach the loader {target.name}", "is it made by code that sets it later?"
            )
    steady = [_steady(loop) for loop in loops]
    epochs = [_whole_epochs(loop) for loop in loops]
    return Pace(_sum(steady), _sum(epochs))


def _matching(loops: Sequence[Loop], target: LoaderTarget) -> list[Loop]:
    """Return the loops over one loader, one per rank; identified by its variable alone where its line has moved."""
    named = [loop for loop in loops if loop.name == target.name]
    return [loop for loop in named if loop.facts.where == target.where] or named


def _sum(rates: Sequence[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    return sum(known) if known and len(known) == len(rates) else None


def _per_batch(loop: Loop) -> int:
    size = loop.facts.batch_size
    return size if size is not None and size > 0 else 1


def _steady(loop: Loop) -> float | None:
    wait, step = loop.mean(loop.wait), loop.mean(loop.step)
    if wait is None or step is None or wait + step <= 0 or int(loop.count[loop.steady].sum()) < MIN_STEPS:
        return None
    return _per_batch(loop) / (wait + step)


def _whole_epochs(loop: Loop) -> float | None:
    """Return samples per second over whole epochs, including starts and ends, without the first, which warms up."""
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


def last_line(log: IO[bytes]) -> str:
    """Return the last line that the job wrote, which in Python names the error."""
    with open(log.name, "rb") as written:
        written.seek(max(0, written.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
        lines = written.read().decode("utf-8", "replace").strip().splitlines()
    return f": {formatting.short(lines[-1], 160)}" if lines and not lines[-1].startswith("== ") else ""


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Handle SIGTERM and a closed terminal like Ctrl-C, so that the running job is ended with this process."""

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
