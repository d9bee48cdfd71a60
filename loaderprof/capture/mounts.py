"""Which file system a path lies on, by the kernel's table of mounts.

Runs in the supervisor. The path itself is not touched: a network file system that hangs must not take us with it.
"""

from __future__ import annotations

import os
from pathlib import Path

# What the kernel writes in place of characters that separate its fields.
_ESCAPES = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


def table(pid: int | None = None) -> str:
    """Return the mounts that a process sees, this one by default; empty where there is no such table."""
    try:
        return Path(f"/proc/{pid or 'self'}/mountinfo").read_text("utf-8", "replace")
    except OSError:
        return ""


def kind(path: str, mounts: str) -> str:
    """Return the type of the file system that holds an absolute path, as the kernel names it; empty where unknown.

    Args:
        path: an absolute path; a link in it is not followed.
        mounts: the text of `/proc/PID/mountinfo`; of two mounts on one place the later one counts.
    """
    best, found = "", ""
    target = os.path.normpath(path)
    for line in mounts.splitlines():
        fields = line.split(" ")
        if "-" not in fields[6:] or len(fields) < fields.index("-", 6) + 2:
            continue
        mount = _plain(fields[4])
        inside = target == mount or target.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, found = mount, fields[fields.index("-", 6) + 1]
    return found


def _plain(text: str) -> str:
    for escape, character in _ESCAPES.items():
        text = text.replace(escape, character)
    return text
