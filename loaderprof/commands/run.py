"""`loaderprof run`: one run from command line to report."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from loaderprof.commands.options import settings_of, share_of
from loaderprof.errors import LoaderprofError
from loaderprof.recording import files

if TYPE_CHECKING:
    from loaderprof.capture.launch import Exit
    from loaderprof.capture.ranks import Place
    from loaderprof.capture.session import Session


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What to run and how to record it.

    Attributes:
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
    """

    job: Sequence[str]
    module: bool = False
    launcher: bool = False
    output: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    html: bool = True
    force: bool = False
    status: bool = True
    live: bool = False
    metrics_at: tuple[str, int] | None = None
    max_overhead: float | None = None
    keep: bool = False

    @property
    def stem(self) -> str:
        """The recording's default name: the script's, the module's last part, or the launcher's."""
        scripts = [part for part in self.job if part.endswith(".py")] if self.launcher else []
        name = Path((scripts or list(self.job))[0]).name
        return (name.removesuffix(".py").rsplit(".", 1)[-1] or "run")[:64]


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Add what `loaderprof run` takes."""
    verb.usage = (
        "loaderprof run [options] train.py [args]\n"
        "       loaderprof run [options] -m package [args]\n"
        "       loaderprof run [options] -- torchrun --nproc-per-node=2 train.py [args]"
    )
    verb.add_argument(
        "-o", "--output", metavar="DIR", help="folder or URL of the recording (default: named after the script)"
    )
    verb.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="apply a setting: num_workers=4, tf.prefetch=2"
    )
    verb.add_argument("--no-html", action="store_true", help="write no report.html")
    verb.add_argument("--force", action="store_true", help="replace the recording in DIR")
    verb.add_argument("--live", action="store_true", help="watch the run on the whole terminal; q leaves, ? helps")
    verb.add_argument("--no-status", action="store_true", help="no status line on the terminal while the job runs")
    verb.add_argument(
        "--metrics-port",
        metavar="[HOST:]PORT",
        help="while it runs, answer Prometheus on this port of this machine: http://127.0.0.1:PORT/metrics",
    )
    verb.add_argument(
        "--max-overhead",
        metavar="PERCENT",
        help="of the job, what all of capture may cost (default 1%%): less is seen for less",
    )
    verb.add_argument(
        "--keep", action="store_true", help="a record of every batch, whatever it costs and however long it runs"
    )
    verb.add_argument("-m", dest="module", action="store_true", help="run a module, like python -m")


def run(options: argparse.Namespace) -> int:
    """Run the verb; it leaves as the job left."""
    from loaderprof.live import endpoint

    return run_job(
        RunOptions(
            options.job,
            module=options.module,
            launcher=options.launcher,
            output=options.output,
            settings=settings_of(options.set),
            html=not options.no_html,
            force=options.force,
            status=not options.no_status,
            live=options.live,
            metrics_at=endpoint.address(options.metrics_port) if options.metrics_port else None,
            max_overhead=share_of(options.max_overhead) if options.max_overhead else None,
            keep=options.keep,
        )
    )


def run_job(wanted: RunOptions) -> NoReturn:
    """Run a job with the hooks in place, report on it, and leave as it left.

    Raises:
        LoaderprofError: a mistake that shows before the job starts.
    """
    from loaderprof.capture import launch, ranks
    from loaderprof.capture.hooks import overhead
    from loaderprof.live.view import check_terminal
    from loaderprof.recording import remote

    command = launch.job_command(wanted.job, wanted.module, wanted.launcher)
    os.environ.update(overhead.environment(wanted.max_overhead, wanted.keep))
    if wanted.live:
        check_terminal()
    mine = ranks.place(os.environ)
    wanted_folder, url = _where_to(wanted, command, mine)
    if mine and mine.local_rank:
        _run_beside(command, wanted.settings, Path(wanted_folder or wanted.stem), mine)
    session = _session(wanted, wanted_folder, url, mine)
    exit_ = _run_recorded(wanted, command, session, mine)
    if mine:
        ranks.wait_for_members(session.folder)
    name = signal.Signals(exit_.signal).name if exit_.signal is not None else None
    whole = session.finish(exit_.code, name)
    _report(session.folder, remote.shown(url) if url else files.as_typed(session.folder), wanted.html, whole)
    if url is not None:
        remote.hand_over(session.folder, url, force=wanted.force)
    launch.leave_as(exit_)


def _where_to(wanted: RunOptions, command: Sequence[str], mine: Place | None) -> tuple[str | None, str | None]:
    """Return the folder of the recording, None where it is named after the script, and the URL that it goes to."""
    from loaderprof.capture import ranks
    from loaderprof.recording import remote

    agreed = ranks.agreed(wanted.stem) if mine else None
    number = ranks.node(os.environ, command if wanted.launcher else ())
    folder = ranks.folder(wanted.output or agreed, wanted.stem, number)
    if remote.is_url(folder):
        return str(remote.on_its_way(agreed or wanted.stem, mine is None)), folder
    return folder, None


def _session(wanted: RunOptions, folder: str | None, url: str | None, mine: Place | None) -> Session:
    """Make the recording folder and the session that records into it.

    Raises:
        LoaderprofError: the port is taken, the URL cannot be written to, or the folder cannot be made.
    """
    from loaderprof.capture.session import Session, free_name, make_folder
    from loaderprof.live.endpoint import Endpoint
    from loaderprof.recording import remote

    endpoint = Endpoint(wanted.metrics_at) if wanted.metrics_at else None
    if url is not None:
        remote.check(url, force=wanted.force)
    if mine and folder is not None and (url or wanted.output is None):
        folder = str(free_name(folder))
    made = make_folder(folder, wanted.stem, wanted.force)
    session = Session(made, ["-m", *wanted.job] if wanted.module else list(wanted.job))
    # For `verify` to run it again.
    session.meta["job"] = {"launcher": wanted.launcher, "settings": dict(wanted.settings)}
    if mine:
        session.meta["group"] = mine.group
        files.write_meta(made, session.meta)
    if endpoint is not None:
        endpoint.folder = session.journals
        session.add(endpoint)
    return session


def _run_recorded(wanted: RunOptions, command: Sequence[str], session: Session, mine: Place | None) -> Exit:
    """Run the job to its end, with the samplers beside it."""
    from loaderprof.capture import launch
    from loaderprof.live import status

    environment = launch.job_environment(session.journals, wanted.settings, os.environ)
    if wanted.live:
        return _run_in_view(command, environment, session, wanted.stem)
    if wanted.status and status.wanted(sys.stderr):
        session.add(status.StatusLine(session.journals, sys.stderr.fileno()))
    # Ranks that were launched beside this one are sampled with it, from their common parent.
    return launch.supervise(
        command,
        environment,
        started=lambda pid: session.start(os.getppid() if mine else pid),
        finished=lambda _: session.stop(),
    )


def _report(folder: Path, shown: str, html: bool, whole: bool) -> None:
    """Conclude and report; whatever fails here must not hide the job's own end."""
    try:
        from loaderprof.finish import finish

        finish(folder, html=html, shown=shown, whole=whole)
    except LoaderprofError as error:
        sys.stderr.write(f"loaderprof: {error.message}\n")
    except KeyboardInterrupt:
        sys.stderr.write(f"loaderprof: interrupted; loaderprof report {shown} makes the report\n")
    except Exception as error:  # noqa: BLE001 - see above
        sys.stderr.write(f"loaderprof: no report: {type(error).__name__}: {error}; the recording is in {shown}\n")


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
