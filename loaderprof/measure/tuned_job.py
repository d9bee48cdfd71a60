"""A job whose training loader changes its settings at our word: the supervisor's side of `capture.hooks.tuned_loader`.

The job runs as in `trial`: in a session of its own, its output in a log. When it ends before all windows were
measured it is started again. Must not import torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from loaderprof.capture import launch
from loaderprof.capture.hooks import tuned_loader
from loaderprof.measure import trial
from loaderprof.recording import files

POLL_S = 0.02
# From the first loader's beginning until the one to tune must have begun: a check of the validation may come first.
WAIT_S = 60.0


class NoWindowError(Exception):
    """A window could not be measured; `reason` in words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RefusedError(NoWindowError):
    """The job's loader cannot be tuned within one run."""


class FailedError(NoWindowError):
    """The job failed, or stood still, in a window."""


class EndedError(NoWindowError):
    """The job came to its end before the window did."""


@dataclass(frozen=True, slots=True)
class Span:
    """How much a window is to hold.

    Attributes:
        min_batches: at least so many batches,
        min_s: and so many seconds,
        max_s: but no more batches after so many seconds.
        by_epoch: whole epochs, not a stretch within one.
    """

    min_batches: int
    min_s: float
    max_s: float
    by_epoch: bool = False


class Steered:
    """The job, started when its first window is wanted and ended when the block is left."""

    def __init__(
        self,
        command: Sequence[str],
        cwd: Path,
        log: IO[bytes],
        loader: str | None,
        tick: Callable[[], None] | None = None,
    ) -> None:
        self.command, self.cwd, self.log, self.loader, self.tick = command, cwd, log, loader, tick
        self.starts = 0
        # Of the loader, as the job told them: its facts, its settings now, batches an epoch, what bounds them.
        self.facts: dict[str, Any] = {}
        self.folder = Path()
        self._windows = 0
        self._run: contextlib.ExitStack | None = None
        self._job: subprocess.Popen[bytes] | None = None
        self._read_to = 0
        self._told = False

    def __enter__(self) -> Steered:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int | None:
        """The process whose loader is tuned; None while there is none."""
        return self.facts.get("pid") if self._job is not None else None

    def measure(self, settings: Mapping[str, Any], span: Span, patience_s: float) -> dict[str, Any]:
        """Return the record of one window (see `windows.Tuner`).

        Args:
            settings: what is to differ from the loader's own settings.
            span: how much to measure.
            patience_s: seconds of the loop after which the job counts as standing still.

        Raises:
            RefusedError: the loader is none that can be tuned this way.
            FailedError: the job failed or stood still with these settings.
            EndedError: the job ended before the window was complete.
            LoaderprofError: the job cannot be started.
        """
        if self._job is None or self._job.poll() is not None:
            self.end()
            self._start()
        self._windows += 1
        self._order(settings, span)
        began: float | None = None
        opened: float | None = None
        while True:
            # Whether it had ended is asked first: what it wrote before that is read after.
            code = None if self._job is None else self._job.poll()
            for event in self._events():
                if event["event"] in ("refused", "failed"):
                    raise RefusedError(str(event["reason"]))
                if event["event"] == "loader":
                    self.facts, self._told = event, True
                if event["event"] == "window" and event["window"] == self._windows:
                    return event
            if code is not None:
                if code == 0 and not self._told:
                    raise RefusedError("no loop with gradients went over a torch DataLoader")
                raise (EndedError if code == 0 else FailedError)(f"the job ended with exit code {code}")
            if self._told:
                began = began or time.monotonic()
                if time.monotonic() - began > patience_s:
                    self.end()
                    raise FailedError(f"no window within {patience_s:.0f} s")
            elif opened is not None and time.monotonic() - opened > WAIT_S:
                raise RefusedError(f"no loop with gradients went over a torch DataLoader within {WAIT_S:.0f} s")
            elif opened is None and any((self.folder / files.JOURNALS).iterdir()):
                # A process opens its journal when its first loader begins.
                opened = time.monotonic()
            if self.tick is not None:
                self.tick()
            time.sleep(POLL_S)

    def leave(self, settings: Mapping[str, Any]) -> int:
        """Give the loader its settings, let the job go on to its own end, and return its exit code."""
        if self._job is None:
            return 0
        self._windows += 1
        self._order(settings, Span(1 << 62, 0.0, 1e9))
        while self._job.poll() is None:
            if self.tick is not None:
                self.tick()
            time.sleep(0.1)
        return 128 - self._job.returncode if self._job.returncode < 0 else self._job.returncode

    def end(self) -> None:
        """End the job, politely first; nothing of it runs any more."""
        run, self._run, self._job = self._run, None, None
        if run is not None:
            run.close()
            self.facts = dict(self.facts, pid=None)

    def _start(self) -> None:
        self.starts += 1
        self._read_to = 0
        self._told = False
        run = self._run = contextlib.ExitStack()
        self.folder = Path(run.enter_context(tempfile.TemporaryDirectory(prefix="loaderprof-")))
        journals = self.folder / files.JOURNALS
        journals.mkdir()
        now = time.perf_counter_ns(), time.time_ns()
        meta = {"command": list(self.command), "cwd": str(self.cwd), "started_ns": now[0], "started_unix_ns": now[1]}
        files.write_meta(self.folder, meta)
        (self.folder / tuned_loader.ORDERS).touch()
        (self.folder / tuned_loader.EVENTS).touch()
        environment = launch.job_environment(journals, {}, os.environ)
        environment[tuned_loader.FOLDER] = str(self.folder)
        if self.loader is not None:
            environment[tuned_loader.LOADER] = self.loader
        self._job = run.enter_context(trial.started(self.command, self.cwd, environment, self.log))

    def _order(self, settings: Mapping[str, Any], span: Span) -> None:
        order = {
            "window": self._windows,
            "settings": dict(settings),
            "min_batches": span.min_batches,
            "min_s": span.min_s,
            "max_s": span.max_s,
            "by_epoch": span.by_epoch,
        }
        with open(self.folder / tuned_loader.ORDERS, "a", encoding="utf-8") as file:
            file.write(json.dumps(order) + "\n")

    def _events(self) -> list[dict[str, Any]]:
        with open(self.folder / tuned_loader.EVENTS, "rb") as file:
            file.seek(self._read_to)
            text = file.read()
        whole, newline, _ = text.rpartition(b"\n")
        self._read_to += len(whole) + len(newline)
        return [json.loads(line) for line in whole.splitlines()]
