"""The user's source lines that stacks passed through, kept with the recording."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterable
from pathlib import Path

from loaderprof.capture.describe import installed

MAX_LINES = 2000
_PLACE = re.compile(r"\((?P<file>/.*):(?P<line>\d+)\)$")


def lines_of(frames: Iterable[str]) -> dict[str, str]:
    """Return `file:line` -> text for the frames `function (file:line)` that lie in the user's own files."""
    found: dict[str, str] = {}
    for frame in sorted(frames):
        match = _PLACE.search(frame)
        if match is None or installed(match["file"]) or len(found) >= MAX_LINES:
            continue
        text = linecache.getline(match["file"], int(match["line"])) if Path(match["file"]).is_file() else ""
        if text:
            found[f"{match['file']}:{match['line']}"] = text.strip()[:300]
    return found
