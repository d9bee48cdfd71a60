"""The files of a recording folder, and writing the one that makes it a recording.

Standard library only: the supervisor imports this before it starts the job, and must have no second thread by then.
"""

from __future__ import annotations

import json
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
# What a recording folder may hold; `--force` removes these and nothing else.
OWN = (
    META, META + ".new", HOST, STACKS, FINDINGS, PAGE, "chrome.json", "speedscope.json", "collapsed.txt",
    "openmetrics.txt", "steps.parquet", "verified.json", "verify.log", MEMBERS, JOURNALS, NODES,
)  # fmt: skip
# Stands in the stacks for our own frame around an iterable that is watched.
WATCHED_FRAME = "next (<watched>)"


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Write `recording.json` whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    temporary = folder / (META + ".new")
    temporary.write_text(json.dumps({**meta, "format": FORMAT}, indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / META)
