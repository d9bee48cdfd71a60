"""`loaderprof tune`: find the best loader settings of a job by measuring, and report how to set them.

The job runs as in `verify`: with the hooks, its output in a log. Its training loader changes settings between windows
of one stream of batches (`measure/windows.py`); where that is not possible, each measurement is a short run
(`measure/runs.py`). Once the settings are found the job is ended, unless `--finish` lets it go on with them.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from loaderprof import formatting
from loaderprof.capture import launch
from loaderprof.errors import OutputError, UsageError
from loaderprof.findings import Measured
from loaderprof.measure import rerun, search, tuned
from loaderprof.measure.bench import Base, Bench
from loaderprof.measure.runs import Runs
from loaderprof.measure.search import Board
from loaderprof.measure.tuned import Tried, Tuned
from loaderprof.measure.tuned_job import NoWindowError, RefusedError, Steered
from loaderprof.measure.windows import Windows
from loaderprof.replay.costs import Settings
from loaderprof.report import tune_table

LOG = "tune.log"
# A search usually ends well before. Runs have more time because each of them starts the job.
LIMIT_S = {"windows": 180.0, "runs": 900.0}
# Starting the workers is not worth a note below this share of an epoch.
BORDER_SHARE = 0.02


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Add what `loaderprof tune` takes."""
    verb.usage = "loaderprof tune [options] train.py [args]\n       loaderprof tune [options] -m package [args]"
    verb.description = (
        "Runs the job and changes the settings of its training loader between windows of the same stream of batches, "
        "within the CPU budget, memory, /dev/shm and open files. Its output goes to DIR/tune.log; once the settings "
        "are found it is ended. An iterable dataset and jobs of several ranks are run anew for each measurement."
    )
    verb.add_argument("-o", "--output", metavar="DIR", help="folder of the result (default: named after the script)")
    verb.add_argument("--loader", metavar="NAME", help="variable of the loader (default: the first that is trained on)")
    verb.add_argument(
        "--seconds",
        metavar="S",
        type=float,
        help="begin nothing new S seconds after the first measurement (180; 900 across runs)",
    )
    verb.add_argument("--keep-order", action="store_true", help="do not try in_order=False")
    verb.add_argument(
        "--finish", action="store_true", help="let the job go on with the settings found, in order, to its own end"
    )
    verb.add_argument("-m", dest="module", action="store_true", help="run a module, like python -m")


@dataclass(slots=True)
class TuneProgress:
    """A progress line on stderr, rewritten with each window; nothing where stderr is not a terminal."""

    began: float = field(default_factory=time.monotonic)
    shown: bool = field(default_factory=lambda: sys.stderr.isatty())
    stage: str = "starting the job"
    last: str = ""

    def tick(self) -> None:
        """Show the elapsed time and the stage of the search."""
        text = f"{formatting.duration(time.monotonic() - self.began)}: {self.stage}"
        if self.shown and text != self.last:
            sys.stderr.write(f"\r\x1b[K  {text}"[: tune_table.WIDTH + 8])
            sys.stderr.flush()
            self.last = text

    def clear(self) -> None:
        """Erase the line."""
        if self.shown and self.last:
            sys.stderr.write("\r\x1b[K")
            self.last = ""


@dataclass(slots=True)
class Search:
    """One search in progress."""

    bench: Bench
    progress: TuneProgress
    keep_order: bool
    deadline: float
    base: Base
    board: Board
    left_out: list[str] = field(default_factory=list)

    def run(self) -> Settings:
        """Search as `measure/search.py` describes, and return the settings to take."""
        base, board = self.base, self.board
        board.rounds.append({board.present: base.rate})
        self._fill(self._allowed(search.ladder(board.present, base.limits.cores, base.predicted, base.by_epoch)), 1.0)
        leader = None
        while leader != (leader := board.best()) and self._is_time():
            self._neighbours()
        racing = search.entrants(board)
        for number in range(1, search.MAX_ROUNDS + 1):
            if search.settled(board, racing) or not self._is_time():
                break
            self.progress.stage = (
                f"round {number} of at most {search.MAX_ROUNDS}, {formatting.plural(len(racing), 'candidate')}"
            )
            self._round(racing, search.length(board))
            racing = search.still_in(board, racing)
        chosen = search.choice(board, racing)
        for _ in range(search.MAX_PROOFS):
            if search.proved(board, chosen) or not self._is_time():
                break
            self.progress.stage = "what the best gain"
            self._round([board.present, chosen], search.length(board))
        return search.taken(board, chosen)

    def _neighbours(self) -> None:
        board, any_order = self.board, self.base.any_order and not self.keep_order
        leaders = search.leaders(board)
        others = [
            each
            for leader in leaders
            for each in search.neighbours(
                leader, board, self.base.predicted, by_epoch=self.base.by_epoch, any_order=any_order, pin=self.base.pin
            )
        ]
        if others := self._allowed(others):
            self._round([*leaders, *others], 1.0)

    def _round(self, chosen: Sequence[Settings], length: float) -> None:
        """Measure settings as a new round; every second round in reverse order, so that a drifting speed favours none."""
        self.board.rounds.append({})
        self._fill(chosen if len(self.board.rounds) % 2 else chosen[::-1], length)

    def _fill(self, chosen: Sequence[Settings], length: float) -> None:
        """Measure settings as part of the current round."""
        for settings in chosen:
            if not self._is_time():
                return
            if settings in self.board.failed:
                continue
            before = self.progress.stage
            self.progress.stage = f"{before}: {tune_table.trial_in_words(settings)}"
            try:
                self.board.rounds[-1][settings] = self.bench.measure(settings, length)
            except RefusedError:
                raise
            except NoWindowError as failure:
                if settings == self.board.present:
                    # They worked before, so the job itself has failed: end the search with what is known.
                    self.deadline = 0.0
                    return
                self.board.failed[settings] = failure.reason
            finally:
                self.progress.stage = before

    def _allowed(self, settings: Sequence[Settings]) -> list[Settings]:
        """Return the settings within the limits; add the reasons for the others to `left_out`."""
        needs, allowed = self.bench.needs(), []
        for each in settings:
            reason = search.obstacle(each, self.base.limits, needs)
            if reason is None:
                allowed.append(each)
            elif reason not in self.left_out:
                self.left_out.append(reason)
        return allowed

    def _is_time(self) -> bool:
        return time.monotonic() < self.deadline


def run(options: argparse.Namespace) -> int:
    """Find the best settings of a job's training loader, print them, and keep what was measured in a folder.

    Returns:
        The exit code: 0, 130 after Ctrl-C; with `--finish`, the job's own.

    Raises:
        LoaderprofError: the job cannot be started or measured.
    """
    job, module, launcher = options.job, options.module, options.launcher
    if options.seconds is not None and not options.seconds > 0:
        raise UsageError("tune needs some seconds", "loaderprof tune --seconds 180 train.py")
    if not job:
        raise UsageError("there is nothing to tune", "loaderprof tune train.py")
    command = tuple(launch.job_command(job, module, launcher))
    typed = shlex.join(["-m", *job] if module else [*(["--"] if launcher else []), *job])
    folder = _folder(options.output, job, launcher)
    progress = TuneProgress()
    task = _Task(
        command,
        typed,
        Path.cwd(),
        folder,
        loader=options.loader,
        limit_s=options.seconds,
        keep_order=options.keep_order or options.finish,
        finish=options.finish,
        progress=progress,
    )
    with _log(folder) as log, rerun.terminated_like_interrupted():
        try:
            return task.run(log, launcher)
        except KeyboardInterrupt:
            progress.clear()
            sys.stderr.write(f"loaderprof: stopped before the settings were found; {LOG} is in {folder}\n")
            return 130
        finally:
            progress.clear()


@dataclass(slots=True)
class _Task:
    """One call of `tune`, with its job and options resolved.

    Attributes:
        command: what starts the job, `typed` as the user typed it, in `cwd`.
        folder: of the result.
        loader: the variable of the loader to tune; None: the first one that a training loop goes over.
        limit_s: nothing new is begun so many seconds after the first measurement; None: as `LIMIT_S`.
        keep_order: do not try `in_order=False`, under which batches come as they are ready.
        finish: when the settings are found, let the job go on with them to its end.
    """

    command: tuple[str, ...]
    typed: str
    cwd: Path
    folder: Path
    loader: str | None
    limit_s: float | None
    keep_order: bool
    finish: bool
    progress: TuneProgress

    def run(self, log: IO[bytes], launcher: bool) -> int:
        """Tune within one run of the job; with a run for each measurement where that is not possible."""
        reason = "a launcher may start several ranks" if launcher else ""
        if not reason:
            with Steered(self.command, self.cwd, log, self.loader, self.progress.tick) as steered:
                try:
                    result = self._search(Windows(steered, log))
                    self._show(result)
                    return self._left(steered, result) if self.finish else 0
                except RefusedError as refused:
                    reason = refused.reason
        self.progress.clear()
        sys.stderr.write(f"loaderprof: {reason}: each measurement is a run of its own\n")
        runs = Runs(self.command, self.cwd, log, self.loader, self.progress.tick)
        self._show(self._search(runs))
        return 0

    def _left(self, steered: Steered, result: Tuned) -> int:
        self.progress.stage = "the job goes on"
        return steered.leave(result.best)

    def _search(self, bench: Bench) -> Tuned:
        began = time.monotonic()
        self.progress.stage = "measuring the present settings"
        base = bench.base()
        self.progress.stage = "searching"
        deadline = time.monotonic() + (self.limit_s or LIMIT_S[bench.way])
        under_way = Search(bench, self.progress, self.keep_order, deadline, base, Board(base.settings))
        chosen = under_way.run()
        return _result(self.typed, under_way, chosen, time.monotonic() - began)

    def _show(self, result: Tuned) -> None:
        self.progress.clear()
        try:
            tuned.save(self.folder, result)
        except OSError as error:
            sys.stderr.write(f"loaderprof: {self.folder / tuned.NAME}: {error.strerror}; the result is not kept\n")
        sys.stdout.write(tune_table.render(result, str(self.folder)))
        sys.stdout.flush()


def _result(typed: str, done: Search, chosen: Settings, seconds: float) -> Tuned:
    base, board = done.base, done.board
    present = board.present
    best, notes = chosen, []
    border = done.bench.border_s(chosen)
    if border is not None and not chosen.persistent_workers and border[0] > BORDER_SHARE * border[1]:
        best = dataclasses.replace(chosen, persistent_workers=True)
        notes.append(
            f"persistent_workers=True: starting the workers takes {formatting.duration(border[0])} of an epoch of "
            f"{formatting.duration(border[1])}"
        )
    if done.bench.way == "windows" and base.by_epoch:
        notes.append("epochs are short: measured as wholes, with their borders")
    if not chosen.in_order and present.in_order:
        notes.append("in_order=False: batches come as they are ready, so their order is no longer fixed")
    if base.iterable and chosen.num_workers > max(1, present.num_workers):
        notes.append("each worker must take its own share of an iterable dataset (get_worker_info), or all give all")
    ratio = board.ratio(chosen, present) if chosen != present else None
    measured = (
        None
        if ratio is None
        else Measured(round(ratio.value, 4), round(ratio.low, 4), round(ratio.high, 4), board.windows(chosen))
    )
    tried = sorted(board.measured, key=board.gain, reverse=True)
    return Tuned(
        command=typed,
        loader=base.loader,
        assigned=base.assigned,
        where=base.where,
        way=done.bench.way,
        unit="samples" if base.batch_size or done.bench.way == "runs" else "batches",
        seconds=round(seconds, 1),
        starts=done.bench.starts,
        present=dataclasses.asdict(present),
        best=dataclasses.asdict(best),
        change=search.change(best, present),
        measured=measured,
        tried=(
            *(_tried(base, board, each) for each in tried),
            *(_failed(each, why) for each, why in board.failed.items() if each not in tried),
        ),
        left_out=tuple(done.left_out),
        notes=tuple(notes),
    )


def _tried(base: Base, board: Board, settings: Settings) -> Tried:
    rate, windows = board.rate(settings), board.windows(settings)
    usual = base.predicted.get(board.present)
    predicted = base.predicted[settings] / usual if usual and settings in base.predicted else None
    # The interval of one or two windows is too wide to be useful.
    low, high = (round(rate.low, 3), round(rate.high, 3)) if windows > 2 else (None, None)
    return Tried(
        dataclasses.asdict(settings),
        round(rate.value, 3),
        low,
        high,
        windows,
        predicted and round(predicted, 3),
        None,
    )


def _failed(settings: Settings, reason: str) -> Tried:
    return Tried(dataclasses.asdict(settings), None, None, None, 0, None, reason)


def _folder(output: str | None, job: Sequence[str], launcher: bool) -> Path:
    """Make the folder for the result."""
    if output is not None and "://" in output:
        raise OutputError(f"{output} is a URL, and tune keeps its result in a folder", "name a folder with -o")
    if output is None:
        names = [word for word in job if word.endswith(".py")] if launcher else []
        stem = Path((names or list(job))[0]).name.removesuffix(".py").rsplit(".", 1)[-1][:64] or "job"
        first = f"{stem}-tune-{time.strftime('%m%d-%H%M')}"
        names = [first, *(f"{first}-{number}" for number in range(2, 100))]
        output = next((name for name in names if not Path(name).exists()), first)
    folder = Path(output)
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise OutputError(f"{folder} is not empty", "name another folder with -o")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}", "name another folder with -o") from None
    return folder


def _log(folder: Path) -> IO[bytes]:
    try:
        return open(folder / LOG, "w+b")
    except OSError as error:
        raise OutputError(
            f"{folder / LOG} cannot be written: {error.strerror}", "name another folder with -o"
        ) from None
