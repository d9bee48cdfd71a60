"""Controls a job whose training loader changes its settings on request; `capture/hooks/tuned_loader.py` is the job's side.

Orders and events go through two files of JSON lines. The job runs as in `trial`: in a session of its own, its output in a
log. When it ends before all windows were measured it is started again. Must not import torch.
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

from loaderprof import formatting
from loaderprof.capture import launch
from loaderprof.capture.hooks import tuned_loader
from loaderprof.measure import trial
from loaderprof.recording import files

POLL_S = 0.02
# Seconds from the first loader's beginning within which the one to tune must begin: a validation check may come first.
WAIT_S = 60.0


class NoWindowError(Exception):
    """A window could not be measured; `reason` in words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RefusedError(NoWindowError):
    """The job's loader cannot be tuned within one run."""


class FailedError(NoWindowError):
    """The job failed, or made no progress, in a window."""


class EndedError(NoWindowError):
    """The job came to its end before the window did."""


@dataclass(frozen=True, slots=True)
class Span:
    """The length of a window.

    Attributes:
        min_batches: it has at least this many batches,
        min_s: and lasts at least this long,
        max_s: but ends after this time in any case.
        by_epoch: it consists of whole epochs.
    """

    min_batches: int
    min_s: float
    max_s: float
    by_epoch: bool = False


class Steered:
    """The job: started for its first window, ended when the block is left."""

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
        # What the job reported about the loader: facts, present settings, batches per epoch, limits.
        self.facts: dict[str, Any] = {}
        self.folder = Path()
        self._windows = 0
        self._run: contextlib.ExitStack | None = None
        self._job: subprocess.Popen[bytes] | None = None
        self._read_to = 0
        self._loader_known = False

    def __enter__(self) -> Steered:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int | None:
        """The process whose loader is tuned; None while there is none."""
        return self.facts.get("pid") if self._job is not None else None

    def measure(self, settings: Mapping[str, Any], span: Span, patience_s: float) -> dict[str, Any]:
        """Return the record of one window (see `Tuner` in `capture/hooks/tuned_loader.py`).

        Args:
            settings: those that differ from the loader's own settings.
            span: the length of the window.
            patience_s: a window that takes longer, in seconds, counts as a failure of the job.

        Raises:
            RefusedError: the loader cannot be tuned within one run.
            FailedError: the job failed or made no progress with these settings.
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
            # Polled before the events are read, so that the events of a job that has ended are complete.
            code = None if self._job is None else self._job.poll()
            for event in self._events():
                if event["event"] in ("refused", "failed"):
                    raise RefusedError(str(event["reason"]))
                if event["event"] == "loader":
                    self.facts, self._loader_known = event, True
                if event["event"] == "window" and event["window"] == self._windows:
                    return event
            if code is not None:
                if code == 0 and not self._loader_known:
                    raise RefusedError("no loop with gradients went over a torch DataLoader")
                raise (EndedError if code == 0 else FailedError)(f"the job ended with exit code {code}")
            if self._loader_known:
                began = began or time.monotonic()
                if time.monotonic() - began > patience_s:
                    self.end()
                    raise FailedError(f"no window within {formatting.duration(patience_s)}")
            elif opened is not None and time.monotonic() - opened > WAIT_S:
                raise RefusedError(
                    f"no loop with gradients went over a torch DataLoader within {formatting.duration(WAIT_S)}"
                )
            elif opened is None and any((self.folder / files.JOURNALS).iterdir()):
                # A process opens its journal when its first loader begins.
                opened = time.monotonic()
            if self.tick is not None:
                self.tick()
            time.sleep(POLL_S)

    def leave(self, settings: Mapping[str, Any]) -> int:
        """Apply settings, let the job run to its end without further windows, and return its exit code."""
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
        """End the job and all its processes, by SIGTERM first."""
        run, self._run, self._job = self._run, None, None
        if run is not None:
            run.close()
            self.facts = dict(self.facts, pid=None)

    def _start(self) -> None:
        self.starts += 1
        self._read_to = 0
        self._loader_known = False
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
