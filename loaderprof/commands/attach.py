"""`loaderprof attach`: watch a job that is already running, and report on it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from loaderprof.commands.options import shown_place

if TYPE_CHECKING:
    from loaderprof.live.view import View


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Add what `loaderprof attach` takes."""
    verb.add_argument("pid", metavar="PID", type=int, help="the training process, or the launcher above it")
    verb.add_argument(
        "--duration", metavar="S", type=float, default=30.0, help="seconds to watch (default 30); Ctrl-C ends it early"
    )
    verb.add_argument("-o", "--output", metavar="DIR", help="folder of the recording (default: named after the script)")
    verb.add_argument("--no-html", action="store_true", help="write no report.html")
    verb.add_argument("--live", action="store_true", help="watch it on the whole terminal; q leaves, ? helps")


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    from loaderprof.capture import attach
    from loaderprof.finish import finish
    from loaderprof.recording import remote

    view = view_of_stacks() if options.live else None
    url = options.output if remote.is_url(options.output) else None
    if url:
        remote.check(url, force=False)
    output = str(remote.on_its_way(f"attach-{options.pid}")) if url else options.output
    folder = attach.attach(options.pid, duration_s=options.duration, output=output, view=view)
    finish(folder, html=not options.no_html, shown=shown_place(url or ""))
    if url:
        remote.hand_over(folder, url)
    return 0


def view_of_stacks() -> Callable[[str, Path], View]:
    """Return what makes the live view of a job that is watched from outside.

    Raises:
        UsageError: there is no terminal for it.
    """
    from loaderprof.live.stacks import Stacks
    from loaderprof.live.view import View, check_terminal

    check_terminal()
    return lambda name, folder: View(name, Stacks(folder).look)
