"""What kind of reading it is, by what tells each kind apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made import FETCH_FRAME, Fetch, Made, Plan, ns

from loaderprof.conclude import findings_of
from loaderprof.findings import Findings

SOURCES = {"/home/me/train.py:41": "body = self.get(key)"}
LINE = "__getitem__ (/home/me/train.py:41)"
SOCKET = [
    FETCH_FRAME,
    LINE,
    "HTTPResponse.read (/usr/lib/python3.11/http/client.py:471)",
    "readinto (/usr/lib/python3.11/socket.py:706)",
]
PIPE = [FETCH_FRAME, LINE, "Popen.communicate (/lib/python3.11/subprocess.py:1209)", "select (/lib/selectors.py:415)"]
BOTO = [FETCH_FRAME, LINE, "read (/lib/site-packages/botocore/response.py:99)"]
FILE = [FETCH_FRAME, "__getitem__ (/home/me/train.py:42)"]


def concluded(
    folder: Path,
    *,
    cpu: float = 0.005,
    blocked: float = 0.045,
    stack: list[str] | None = None,
    opens: bool = True,
    files: dict[str, int] | None = None,
    kinds: dict[str, str] | None = None,
    facts: dict[str, Any] | None = None,
    **fetch: int,
) -> Findings:
    made = Made(
        folder / "r", sources={**SOURCES, "/home/me/train.py:42": "body = file.read()"}, file_systems=kinds or {}
    )
    process = made.process()
    operators = [("io.open" if opens else "os.pread", cpu + blocked, cpu)]
    plan = Plan(
        wait=cpu + blocked, fetch=Fetch(cpu=cpu, blocked=blocked, operators=operators, **fetch), facts=facts or {}
    )
    made.finish(made.loop(process, plan))
    made.stacks(process.pid, stack or FILE, 60)
    made.stack_lines[-1]["files"] = [[process.pid, 20, [[path, size] for path, size in (files or {}).items()]]]
    return findings_of(made.read())


MIB = 1 << 20


@pytest.mark.parametrize(
    ("more", "cause", "words"),
    [
        ({"stack": SOCKET}, "remote-latency", "100 % of their reading is in sockets"),
        ({"stack": PIPE, "asked_bytes": 16 * 4096}, "piped-command", "100 % of their reading waits for a command"),
        ({"stack": BOTO}, "remote-latency", "100 % of their reading is in sockets"),
        (
            {"kinds": {"/data/a.bin": "nfs4"}, "files": {"/data/a.bin": 5}, "asked_bytes": MIB},
            "network-file-system",
            "nfs4 (/data/a.bin)",
        ),
        (
            {"kinds": {"/bucket/x": "fuse.s3fs"}, "facts": {"path": "/bucket/x"}},
            "network-file-system",
            "fuse.s3fs (/bucket/x)",
        ),
        (
            {"device_bytes": 5 * MIB, "opens": False},
            "mapped-file",
            "0 B a batch are asked for, 5.2 MB come from a disk",
        ),
        ({"asked_bytes": 16 * 4096}, "small-files", "16 files of 4.1 kB are opened a batch"),
        ({"asked_bytes": 16 * MIB, "device_bytes": 16 * MIB}, "disk-read", "come from a disk"),
        ({"asked_bytes": 16 * MIB, "cpu": 0.045, "blocked": 0.005}, "cached-read", "0 B come from a disk"),
        (
            {"files": {"/data/all.bin": 900 * MIB}, "opens": False},
            "single-file",
            "all is read from /data/all.bin, 0.94 GB",
        ),
        (
            {"kinds": {"/data/a.bin": "ext4"}, "facts": {"path": "/data/a.bin"}, "asked_bytes": 16 * MIB},
            "waiting-read",
            "ext4 (/data/a.bin)",
        ),
        ({"facts": {"path": "/data/a.bin"}}, "waiting-read", "makers are blocked"),
    ],
)
def test_each_kind_of_reading_is_told_by_its_own_evidence(
    tmp_path: Path, more: dict[str, Any], cause: str, words: str
) -> None:
    found = concluded(tmp_path, **more)
    assert (found.verdict.bottleneck, found.verdict.cause) == ("read", cause)
    assert any(words in fact.text for fact in found.causes[0].evidence)


def test_a_damaged_list_of_files_is_left_out(tmp_path: Path) -> None:
    made = Made(tmp_path / "r")
    process = made.process()
    made.finish(made.loop(process, Plan(wait=0.05, fetch=Fetch(cpu=0.05))))
    made.stacks(process.pid, FILE, 60)
    for damage in (3, [[1]], [[1, "x", []]], [[1, 2, [["a"]]]], [[1, 2, [["a", "b"]]]]):
        made.stack_lines.append({**made.stack_lines[0], "t": ns(3), "files": damage})
    assert made.read().open_files == []
