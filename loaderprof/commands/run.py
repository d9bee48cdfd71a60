"""`loaderprof run`: one run from command line to report."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from loaderprof.errors import LoaderprofError
from loaderprof.recording import files

if TYPE_CHECKING:
    from loaderprof.capture.launch import Exit
    from loaderprof.capture.ranks import Place
    from loaderprof.capture.session import Session
    from loaderprof.live.view import View


def run(
    job: Sequence[str],
    *,
    module: bool,
    launcher: bool,
    output: str | None,
    settings: Mapping[str, object],
    html: bool,
    force: bool,
    status: bool,
    live: bool,
    metrics_at: tuple[str, int] | None = None,
    max_overhead: float | None = None,
    keep: bool = False,
) -> int:
    """Run a job with the hooks in place, report on it, and leave as it left.

    Args:
        job: what to run, as typed.
        module: `-m` was given.
        launcher: `--` was given.
        output: folder or URL of the recording; None: a folder named after the script.
        settings: what `--set` asked for.
        html: write report.html too.
        force: replace a recording in `output`.
        status: show a status line while it runs, where stderr is a terminal.
        live: show the live view instead.
        metrics_at: host and port of `--metrics-port`.
        max_overhead: share of the job that all of capture may cost; None: the usual.
        keep: give every batch a record of its own, whatever that costs.

    Raises:
        LoaderprofError: a mistake that shows before the job starts.
    """
    from loaderprof.capture import launch, ranks
    from loaderprof.capture.hooks import overhead
    from loaderprof.capture.session import Session, free_name, make_folder
    from loaderprof.finish import finish
    from loaderprof.live.endpoint import Endpoint
    from loaderprof.live.status import StatusLine, wanted
    from loaderprof.live.view import check_terminal
    from loaderprof.recording import remote

    command = launch.job_command(job, module, launcher)
    os.environ.update(overhead.environment(max_overhead, keep))
    if live:
        check_terminal()
    stem, mine = _stem(job, launcher), ranks.place(os.environ)
    agreed, number = ranks.agreed(stem) if mine else None, ranks.node(os.environ, command if launcher else ())
    wanted_folder, url = ranks.folder(output or agreed, stem, number), None
    if remote.is_url(wanted_folder):
        url, wanted_folder = wanted_folder, str(remote.on_its_way(agreed or stem, mine is None))
    if mine and mine.local_rank:
        _run_beside(command, settings, Path(wanted_folder or stem), mine)
    endpoint = Endpoint(metrics_at) if metrics_at else None
    if url is not None:
        remote.check(url, force=force)
    if mine and wanted_folder is not None and (url or output is None):
        wanted_folder = str(free_name(wanted_folder))
    folder = make_folder(wanted_folder, stem, force)
    session = Session(folder, _typed(job, module))
    session.meta["job"] = {"launcher": launcher, "settings": dict(settings)}  # for `verify` to run it again
    if mine:
        session.meta["group"] = mine.group
        files.write_meta(folder, session.meta)
    if endpoint is not None:
        endpoint.folder = session.journals
        session.add(endpoint)
    environment = launch.job_environment(session.journals, settings, os.environ)
    if live:
        exit_ = _run_in_view(command, environment, session, _stem(job, launcher))
    else:
        if status and wanted(sys.stderr):
            session.add(StatusLine(session.journals, sys.stderr.fileno()))
        # Ranks that were launched beside this one are sampled with it, from their common parent.
        exit_ = launch.supervise(
            command,
            environment,
            started=lambda pid: session.start(os.getppid() if mine else pid),
            finished=lambda _: session.stop(),
        )
    if mine:
        ranks.wait_for_members(folder)
    name = signal.Signals(exit_.signal).name if exit_.signal is not None else None
    whole = session.finish(exit_.code, name)
    where = remote.shown(url) if url else files.as_typed(folder)
    try:
        finish(folder, html=html, shown=where, whole=whole)
    except LoaderprofError as error:
        sys.stderr.write(f"loaderprof: {error.message}\n")
    except KeyboardInterrupt:
        sys.stderr.write(f"loaderprof: interrupted; loaderprof report {where} makes the report\n")
    except Exception as error:  # noqa: BLE001 - the job's own end must not be hidden by ours
        sys.stderr.write(f"loaderprof: no report: {type(error).__name__}: {error}; the recording is in {where}\n")
    if url is not None:
        remote.hand_over(folder, url, force=force)
    launch.leave_as(exit_)


def _run_beside(command: Sequence[str], settings: Mapping[str, object], folder: Path, mine: Place) -> NoReturn:
    """Run one of several ranks whose first records them all: with the hooks, without samplers and report."""
    from loaderprof.capture import launch, ranks

    joined = ranks.join(folder, mine)
    if joined is None:
        sys.stderr.write(f"loaderprof: rank {mine.rank} found no recording of its node and is not recorded\n")
        launch.leave_as(launch.supervise(command, os.environ))
    environment = launch.job_environment(joined[0], settings, os.environ)
    launch.leave_as(launch.supervise(command, environment))


def _run_in_view(command: Sequence[str], environment: Mapping[str, str], session: Session, name: str) -> Exit:
    """Run the job with its output going through the view; the terminal is as it was before, however this ends."""
    from loaderprof.analyze.glance import Journals
    from loaderprof.capture import launch
    from loaderprof.live.view import Output, View

    output = Output()
    view = View(name, Journals(session.journals).look, output)

    def started(pid: int) -> None:
        output.started()
        session.start(pid)
        view.start()

    try:
        return launch.supervise(
            command, environment, started=started, finished=lambda _: session.stop(), terminal=output.job_end
        )
    finally:
        view.close()


def view_of_stacks() -> Callable[[str, Path], View]:
    """Return what makes the live view of a job that is watched from outside.

    Raises:
        UsageError: there is no terminal for it.
    """
    from loaderprof.live.stacks import Stacks
    from loaderprof.live.view import View, check_terminal

    check_terminal()
    return lambda name, folder: View(name, Stacks(folder).look)


def _stem(job: Sequence[str], launcher: bool) -> str:
    """Return the recording's default name: the script's, the module's last part, or the launcher's."""
    scripts = [part for part in job if part.endswith(".py")] if launcher else []
    name = Path((scripts or list(job))[0]).name
    return (name.removesuffix(".py").rsplit(".", 1)[-1] or "run")[:64]


def _typed(job: Sequence[str], module: bool) -> list[str]:
    return ["-m", *job] if module else list(job)
