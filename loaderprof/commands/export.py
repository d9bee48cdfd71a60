"""`loaderprof export`: write a recording in a format that another tool reads.

Each format is rendered by a module of `report`. This module lists them and writes the file, without replacing an existing
one unless asked.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loaderprof.analyze import many_ranks
from loaderprof.conclude import findings_of
from loaderprof.errors import OutputError, UsageError
from loaderprof.recording import files, reader, remote
from loaderprof.recording.reader import Recording
from loaderprof.report import chrome, collapsed, metrics, parquet, speedscope
from loaderprof.report.spinner import sign


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Add what `loaderprof export` takes."""
    verb.add_argument("folder", metavar="DIR", help="a recording: a folder or a URL")
    verb.add_argument("--format", metavar="FORMAT", required=True, choices=FORMATS, help=", ".join(FORMATS))
    verb.add_argument("-o", "--output", metavar="FILE", help="where to write (default: in DIR; - for standard output)")
    verb.add_argument("--force", action="store_true", help="replace FILE")


def run(options: argparse.Namespace) -> int:
    """Run the verb and return its exit code."""
    # Of a recording that lies elsewhere the file comes into the current folder.
    output = options.output or (files.EXPORTS[options.format] if remote.is_url(options.folder) else None)
    with remote.local(options.folder) as folder:
        return export(folder, options.format, output=output, force=options.force)


@dataclass(frozen=True, slots=True)
class Format:
    """An export format: its renderer, and whether it only needs sums of most ranks."""

    make: Callable[[Recording], bytes]
    summed: bool = False


# By name; the default file of each is in `files.EXPORTS`.
FORMATS: dict[str, Format] = {
    "chrome": Format(lambda seen: chrome.render(seen).encode()),
    "speedscope": Format(speedscope.render),
    "collapsed": Format(collapsed.render),
    "openmetrics": Format(lambda seen: metrics.render(findings_of(seen)).encode(), summed=True),
    "parquet": Format(parquet.render),
}


def export(folder: Path, name: str, *, output: str | None, force: bool) -> int:
    """Write a recording in another tool's format; returns the exit code.

    Args:
        folder: the recording.
        name: one of `FORMATS`.
        output: the file; None: in the folder, named by the format; `-`: standard output.
        force: replace an existing file.

    Raises:
        LoaderprofError: there is nothing to export, the file exists or cannot be written.
    """
    form = FORMATS.get(name)
    if form is None:
        raise UsageError(f"--format does not know {name!r}", f"it takes {', '.join(FORMATS)}")
    path = None if output == "-" else Path(output) if output else folder / files.EXPORTS[name]
    if path is not None and path.exists() and not force:
        raise OutputError(f"{path} exists already", "replace it with --force, or name another file with -o")
    with sign(f"reading {folder}"):
        content = form.make(many_ranks.read(folder) if form.summed else reader.read(folder))
    if path is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return 0
    # The same recording gives the same bytes: no time stamp in the header.
    _write(path, gzip.compress(content, mtime=0) if path.name.endswith(".gz") else content, force)
    sys.stdout.write(f"{path}\n")
    return 0


def _write(path: Path, content: bytes, force: bool) -> None:
    try:
        # "x" also refuses a file that was created since the check above.
        with open(path, "wb" if force else "xb") as file:
            file.write(content)
    except FileExistsError:
        raise OutputError(f"{path} exists already", "replace it with --force, or name another file with -o") from None
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}", "name another file with -o") from None
