"""loaderprof from code: `profile()` around a loop, `watch()` around any iterable, `stage()` to name a stage by hand.

`profile()` arms the same hooks in this process that `loaderprof run` injects, and starts the same samplers beside it.
Nothing here raises into the user's loop: what fails says so once on stderr, and the loop goes on.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from loaderprof.findings import Findings
from loaderprof.recording import reader

if TYPE_CHECKING:
    from loaderprof.analyze.glance import Journals

READY_S = 20.0


class Profile:
    """A profiling session around a block of code; made by `profile`."""

    def __init__(self, folder: str | None, force: bool, html: bool) -> None:
        self._wanted, self._force, self._html = folder, force, html
        self._beside: subprocess.Popen[str] | None = None
        self._environment: dict[str, str | None] = {}
        self.folder: Path | None = None
        self._journals: Journals | None = None
        self._findings: Findings | None = None
        self._url: str | None = None

    def __enter__(self) -> Profile:
        try:
            self._begin()
        except Exception as error:  # noqa: BLE001 - the user's loop must run
            _say(f"not profiling: {error}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._end()
        except Exception as failure:  # noqa: BLE001 - the user's loop has run, and must end as it would have
            _say(f"no report: {failure}")

    def step(self) -> None:
        """Say that a training step ended. Steps are seen without it; it is here for loops written around it."""

    def metrics(self) -> dict[str, float]:
        """Return how the loop is doing now, for a logger; what is not known yet is left out, all of it at first.

        `steps` taken so far; of the last ten seconds `steps_per_s`, `wait_share`, and `wait_time_s`, which the loop waits
        for a batch; `load_time_s`, which making a batch took whoever made it; `ready` batches
        in the queue when the last one was asked for. Cheap enough for every logged step: it reads what is new.
        """
        try:
            return self._look()
        except Exception as error:  # noqa: BLE001 - the user's loop must run
            _say(f"no metrics: {error}")
            return {}

    def _look(self) -> dict[str, float]:
        from loaderprof.analyze.glance import Journals

        if self.folder is None:
            return {}
        if self._journals is None:
            from loaderprof.recording import files

            self._journals = Journals(self.folder / files.JOURNALS)
        return self._journals.look(time.perf_counter_ns()).metrics()

    @property
    def findings(self) -> Findings | None:
        """What was concluded; None inside the block, and where nothing could be recorded."""
        return self._findings

    def _repr_html_(self) -> str:
        """Return what a notebook shows of a cell that ends with the profile: its findings."""
        if self._findings is None or self.folder is None:
            return "<div>loaderprof: no findings yet; they are made when the <code>with</code> block ends</div>"
        from loaderprof.report import notebook

        return notebook.render(self._findings, str(self.folder))

    def _begin(self) -> None:
        from loaderprof.capture.hooks import describe, install
        from loaderprof.capture.session import make_folder
        from loaderprof.recording import files, remote

        wanted = self._wanted
        if wanted is not None and remote.is_url(wanted):
            remote.check(wanted, force=self._force)
            self._url, wanted = wanted, str(remote.on_its_way("profile"))
        self.folder = make_folder(wanted, "profile", self._force)
        files.write_meta(
            self.folder,
            {
                "command": describe.redacted(list(sys.argv)),
                "cwd": str(Path.cwd()),
                "started_ns": time.perf_counter_ns(),
                "started_unix_ns": time.time_ns(),
            },
        )
        # Workers that are spawned find the recording through the environment, as under `loaderprof run`.
        journals = str(self.folder / files.JOURNALS)
        self._environment = {"LOADERPROF_JOURNALS": os.environ.get("LOADERPROF_JOURNALS")}
        os.environ["LOADERPROF_JOURNALS"] = journals
        install.begin(journals)
        describe.allow_tracing()
        command = [sys.executable, "-m", "loaderprof.capture.session", str(os.getpid()), str(self.folder)]
        self._beside = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def _end(self) -> None:
        from loaderprof.capture.hooks import install

        install.end()
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self._beside is not None:
            with suppress(subprocess.TimeoutExpired, OSError):
                self._beside.communicate(timeout=READY_S)
        if self.folder is not None:
            from loaderprof.finish import finish
            from loaderprof.recording import remote

            self._findings = finish(self.folder, html=self._html, shown=self._url and remote.shown(self._url))
            if self._url is not None:
                remote.hand_over(self.folder, self._url, force=self._force)


def profile(folder: str | os.PathLike[str] | None = None, *, force: bool = False, html: bool = True) -> Profile:
    """Profile the loaders used inside a `with` block.

    Args:
        folder: where to keep the recording, or a URL; None: `profile-MMDD-HHMM` in the current folder.
        force: replace a recording in `folder`.
        html: write report.html too.

    Example:
        with loaderprof.profile("out") as prof:
            train()
        print(prof.findings.verdict.headline)
    """
    return Profile(os.fspath(folder) if folder is not None else None, force, html)


class Recording(reader.Recording):
    """A recording in memory: its numpy tables, and what can be concluded from them."""

    __slots__ = ()

    def findings(self) -> Findings:
        """Conclude from this recording, and join what `verify` measured of the advice."""
        from loaderprof.conclude import findings_of

        return findings_of(self)


def read(folder: str | os.PathLike[str]) -> Recording:
    """Read a recording folder.

    Raises:
        RecordingError: it is no recording, its `recording.json` is damaged, or it is from a newer loaderprof.
    """
    seen = reader.read(folder)
    return Recording(**{each.name: getattr(seen, each.name) for each in dataclasses.fields(seen)})


def _cell(found: Findings) -> str:
    """Return what a notebook shows of a cell that ends with findings."""
    from loaderprof.report import notebook

    return notebook.render(found)


# Here, because findings know nothing of reports.
setattr(Findings, "_repr_html_", _cell)  # noqa: B010 - the class has no such attribute to assign to


def _say(text: str) -> None:
    with suppress(Exception):
        sys.stderr.write(f"loaderprof: {text}\n")
