"""`loaderprof report`: render a recording again, without a new run."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from pathlib import Path

from loaderprof.analyze import many_ranks
from loaderprof.commands.options import shown_place
from loaderprof.conclude import findings_of
from loaderprof.errors import OutputError, UsageError
from loaderprof.findings import Findings
from loaderprof.recording import files, remote
from loaderprof.recording.reader import Recording
from loaderprof.report.pagedata import page_data
from loaderprof.report.spinner import sign
from loaderprof.report.terminal import screen


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Add what `loaderprof report` takes."""
    verb.add_argument("folder", metavar="DIR", help="a recording: a folder or a URL")
    verb.add_argument("--json", action="store_true", help="print the findings and nothing else")
    verb.add_argument("--html", metavar="FILE", help="write the page to FILE")
    verb.add_argument("--figures", metavar="OUT", help="write the pictures to folder OUT, as SVG, PNG and PDF")
    verb.add_argument("--rank", metavar="R", type=int, help="report on one rank")
    verb.add_argument("--force", action="store_true", help="replace FILE, and pictures in OUT")


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    with remote.local(options.folder) as folder:
        return report(
            folder,
            as_json=options.json,
            html=options.html,
            figures=options.figures,
            rank=options.rank,
            force=options.force,
            shown=shown_place(options.folder),
        )


def report(
    folder: Path,
    *,
    as_json: bool,
    html: str | None,
    figures: str | None,
    rank: int | None,
    force: bool,
    shown: str | None = None,
) -> int:
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

    shown = shown or files.as_typed(folder)
    with sign(f"reading {shown}"):
        seen = many_ranks.read(folder, rank)
        if rank is not None:
            seen = _of_rank(seen, rank)
        found = findings_of(seen)
    if rank is None:
        with suppress(OSError):
            files.write_whole(folder / files.FINDINGS, found.to_json())
    if html is not None:
        from loaderprof.report.html import page  # imports matplotlib, half a second

        _write_page(Path(html), page(seen, found, shown), force)
    if figures is not None:
        _write_figures(Path(figures), seen, found, force)
    if as_json:
        sys.stdout.write(found.to_json())
    elif html is None and figures is None:
        sys.stdout.write(screen(found, shown, sys.stdout.isatty()))
    return 0


def _write_page(path: Path, text: str, force: bool) -> None:
    try:
        if path.exists() and not force:
            raise OutputError(f"{path} exists already", "replace it with --force")
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None


def _write_figures(folder: Path, seen: Recording, found: Findings, force: bool) -> None:
    from loaderprof.report import plots

    if not plots.write_figures(found, page_data(seen), folder, force=force):
        sys.stderr.write("loaderprof: no pictures: nothing was measured that could be drawn\n")


def _of_rank(seen: Recording, rank: int) -> Recording:
    import numpy as np

    numbers = [process.number for process in seen.processes if (process.rank or 0) == rank]
    if not numbers:
        ranks = sorted({process.rank or 0 for process in seen.processes})
        known = ", ".join(map(str, ranks)) if len(ranks) < 20 else f"{len(ranks):,}, {ranks[0]} to {ranks[-1]}"
        raise UsageError(f"the recording has no rank {rank}", f"it has {known or 'none'}")
    seen.others = ()
    seen.tables = {name: table[np.isin(table["process"], numbers)] for name, table in seen.tables.items()}
    return seen
