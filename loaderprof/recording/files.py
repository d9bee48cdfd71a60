"""The files of a recording folder, and writing into one.

Standard library only: the supervisor imports this before it starts the job, and must have no second thread by then.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

FORMAT = 1
META = "recording.json"
JOURNALS = "journals"
# Recordings of further nodes; a file that the ranks of one node hold locked while they are there.
NODES = "nodes"
MEMBERS = "members.lock"
HOST = "host.jsonl"
STACKS = "stacks.jsonl"
FINDINGS = "findings.json"
PAGE = "report.html"
# Where `export` writes to, by format, where no file is named.
EXPORTS = {
    "chrome": "chrome.json",
    "speedscope": "speedscope.json",
    "collapsed": "collapsed.txt",
    "openmetrics": "openmetrics.txt",
    "parquet": "steps.parquet",
}
# What a recording folder may hold; `--force` removes these and nothing else.
OWN = (
    META,
    META + ".new",
    HOST,
    STACKS,
    FINDINGS,
    PAGE,
    *EXPORTS.values(),
    "verified.json",
    "verify.log",
    MEMBERS,
    JOURNALS,
    NODES,
)
# The name in stacks for our own frame around a watched iterable.
WATCHED_FRAME = "next (<watched>)"


def read_bounded(path: Path, most: int) -> bytes:
    """Return a file, of a larger one its beginning.

    Raises:
        OSError: it cannot be read, or is none: a pipe would keep whoever opens it waiting for ever.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is no file", str(path))
    with open(path, "rb") as file:
        return file.read(most)


def read_lines(path: Path, most: int) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file that holds one a line; of a larger one than `most` bytes those of its beginning.

    Lines that are no objects are passed over, as is a file that cannot be read.
    """
    try:
        raw = read_bounded(path, most)
    except OSError:
        return
    for line in raw.split(b"\n"):
        try:
            value = json.loads(line) if line else None
        except (ValueError, RecursionError):
            continue  # the last line of a supervisor that was killed while writing it
        if isinstance(value, dict):
            yield value


def write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
    """Write `recording.json` whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    write_whole(folder / META, json.dumps({**meta, "format": FORMAT}, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, in the place of what is there.

    A recording may come from elsewhere: where one of its files is a link, the link is replaced, not what it points to.

    Raises:
        OSError: the folder cannot be written.
    """
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def as_typed(folder: Path) -> str:
    """Return a folder as the user would type it from here."""
    with suppress(ValueError):
        return str(folder.absolute().relative_to(Path.cwd()))
    return str(folder)
