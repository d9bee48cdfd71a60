"""`loaderprof run` and `loaderprof report`: one run from command line to report, and rendering a recording again."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from loaderprof import files
from loaderprof.errors import LoaderprofError, OutputError

if TYPE_CHECKING:
    from loaderprof.capture.launch import Exit
    from loaderprof.capture.ranks import Place
    from loaderprof.capture.session import Session
    from loaderprof.findings import Findings
    from loaderprof.recording import Recording
    from loaderprof.view import View


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
    from loaderprof import remote
    from loaderprof.capture import allowance, launch, ranks
    from loaderprof.capture.session import Session, free_name, make_folder
    from loaderprof.endpoint import Endpoint
    from loaderprof.status import StatusLine, wanted
    from loaderprof.view import check_terminal

    command = launch.job_command(job, module, launcher)
    os.environ.update(allowance.environment(max_overhead, keep))
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
            command, environment, started=lambda pid: session.start(os.getppid() if mine else pid),
            finished=lambda _: session.stop(),
        )  # fmt: skip
    if mine:
        ranks.wait_for_members(folder)
    name = signal.Signals(exit_.signal).name if exit_.signal is not None else None
    whole = session.finish(exit_.code, name)
    where = remote.shown(url) if url else _shown(folder)
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
    from loaderprof.capture import launch
    from loaderprof.live import Journals
    from loaderprof.view import Output, View

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
    from loaderprof.live import Stacks
    from loaderprof.view import View, check_terminal

    check_terminal()
    return lambda name, folder: View(name, Stacks(folder).look)


def finish(folder: Path, *, html: bool, shown: str | None = None, whole: bool = True) -> Findings:
    """Conclude from a recording that was just made, write findings and page, and print the report on stderr.

    Args:
        folder: the recording.
        html: write report.html too.
        shown: where the report says that the recording is; None: in its folder.
        whole: False where it was told already that there is no room for all.
    """
    from loaderprof.diagnose import many_ranks
    from loaderprof.report.busy import sign

    shown, failure = shown or _shown(folder), None
    with sign("loaderprof: making the report"):
        seen = many_ranks.read(folder)
        _keep_sources(seen)
        found = seen.findings()
        if any(each.id == "faster-decoder" for each in found.advice) and _try_decoders(seen):
            found = seen.findings()
        try:
            files.write_whole(folder / files.FINDINGS, found.to_json())
            if html:
                files.write_whole(folder / files.PAGE, page(seen, found, shown))
        except OSError as error:
            failure = error.strerror
    if failure is not None and whole:
        sys.stderr.write(f"loaderprof: {shown}: {failure}; not all of the report could be written\n")
    with suppress(OSError):
        sys.stderr.write("\n" + screen(found, shown, sys.stderr.isatty()))
    return found


def report(
    folder: Path, *, as_json: bool, html: str | None, figures: str | None, rank: int | None, force: bool,
    shown: str | None = None,
) -> int:  # fmt: skip
    """Render a recording again; returns the exit code.

    Args:
        folder: the recording.
        as_json: print the findings instead of the screen.
        html: file for the page.
        figures: folder for the pictures.
        rank: report on this one only.
        force: replace files.
        shown: where the report says that the recording is; None: in its folder.

    Raises:
        LoaderprofError: the folder is no readable recording, the rank is not in it, or the page or a picture cannot
            be written.
    """
    from loaderprof.diagnose import many_ranks
    from loaderprof.report.busy import sign

    shown = shown or _shown(folder)
    with sign(f"reading {shown}"):
        seen = many_ranks.read(folder, rank)
        if rank is not None:
            seen = _of_rank(seen, rank)
        found = seen.findings()
    if rank is None:
        with suppress(OSError):
            files.write_whole(folder / files.FINDINGS, found.to_json())
    if html is not None:
        _write_page(Path(html), page(seen, found, shown), force)
    if figures is not None:
        _write_figures(Path(figures), seen, found, force)
    if as_json:
        sys.stdout.write(found.to_json())
    elif html is None and figures is None:
        sys.stdout.write(screen(found, shown, sys.stdout.isatty()))
    return 0


def screen(found: Findings, folder: str, tty: bool) -> str:
    """Return the terminal report, as wide as the terminal and coloured where it may be."""
    from loaderprof.report import terminal

    width = max(60, min(shutil.get_terminal_size((80, 24)).columns, 120))
    colour = tty and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return terminal.render(found, folder=folder, width=width, colour=colour)


def page(seen: Recording, found: Findings, folder: str) -> str:
    """Return the HTML report."""
    from loaderprof.report import html
    from loaderprof.report.pagedata import page_data

    return html.render(found, page_data(seen), folder=folder)


def _write_page(path: Path, text: str, force: bool) -> None:
    try:
        if path.exists() and not force:
            raise OutputError(f"{path} exists already", "replace it with --force")
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None


def _write_figures(folder: Path, seen: Recording, found: Findings, force: bool) -> None:
    from loaderprof.report import plots
    from loaderprof.report.pagedata import page_data

    if not plots.write_figures(found, page_data(seen), folder, force=force):
        sys.stderr.write("loaderprof: no pictures: nothing was measured that could be drawn\n")


def _of_rank(seen: Recording, rank: int) -> Recording:
    import numpy as np

    from loaderprof.errors import UsageError

    numbers = [process.number for process in seen.processes if (process.rank or 0) == rank]
    if not numbers:
        ranks = sorted({process.rank or 0 for process in seen.processes})
        known = ", ".join(map(str, ranks)) if len(ranks) < 20 else f"{len(ranks):,}, {ranks[0]} to {ranks[-1]}"
        raise UsageError(f"the recording has no rank {rank}", f"it has {known or 'none'}")
    seen.others = ()
    seen.tables = {name: table[np.isin(table["process"], numbers)] for name, table in seen.tables.items()}
    return seen


def _keep_sources(seen: Recording) -> None:
    """Keep the user's lines that stacks passed through, make operators or train, so that no sources are needed later."""
    from loaderprof.capture.sources import lines_of, lines_that_make, lines_with
    from loaderprof.diagnose.loop_side import TRAINING
    from loaderprof.diagnose.operators import names_made, users_files

    frames = {frame for sample in seen.stacks for frame in sample.frames}
    seen.meta["sources"] = lines_of(frames)
    seen.meta["sources"].update(lines_with(TRAINING, users_files(seen)))
    seen.meta["file_systems"] = _file_systems(seen)
    seen.meta["made_at"] = lines_that_make(names_made(seen), users_files(seen))
    with suppress(OSError):
        files.write_meta(seen.folder, seen.meta)


def _try_decoders(seen: Recording) -> bool:
    """Try the image decoders that are installed here on the job's own files; return whether they could be tried."""
    from loaderprof.capture import decoders

    cwd = Path(str(seen.meta.get("cwd") or "/"))
    numbers = set(seen.tables["sample"]["file"].tolist())
    tried = decoders.measure([cwd / seen.texts[number] for number in sorted(numbers) if number >= 0])
    if tried is None:
        return False
    seen.meta["decoders"] = tried
    with suppress(OSError):
        files.write_meta(seen.folder, seen.meta)
    return True


def _file_systems(seen: Recording) -> dict[str, str]:
    """Return the type of the file system of each path that the loaders name or their makers held open."""
    from loaderprof.capture import mounts
    from loaderprof.diagnose.reads import paths_named

    table, cwd = mounts.table(), Path(str(seen.meta.get("cwd") or "/"))
    return {path: found for path in paths_named(seen) if (found := mounts.kind(str(cwd / path), table))}


def _stem(job: Sequence[str], launcher: bool) -> str:
    """Return the recording's default name: the script's, the module's last part, or the launcher's."""
    scripts = [part for part in job if part.endswith(".py")] if launcher else []
    name = Path((scripts or list(job))[0]).name
    return (name.removesuffix(".py").rsplit(".", 1)[-1] or "run")[:64]


def _typed(job: Sequence[str], module: bool) -> list[str]:
    return ["-m", *job] if module else list(job)


def _shown(folder: Path) -> str:
    """Return a folder as the user would type it from here."""
    with suppress(ValueError):
        return str(folder.absolute().relative_to(Path.cwd()))
    return str(folder)
