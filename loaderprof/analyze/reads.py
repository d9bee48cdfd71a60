"""How a loop's producers read: from the network or a file, from a disk or memory, in which pieces.

Disk counters do not see the network: what comes over a socket is recognised by stacks and timers, what comes over a
network file system by its mount. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from loaderprof.analyze import operators
from loaderprof.analyze.loop import Loop
from loaderprof.analyze.timeline import origin_of
from loaderprof.recording import validate
from loaderprof.recording.reader import Recording
from loaderprof.recording.stacks import StackSamples

# File systems whose bytes come over a network, as the kernel names them; FUSE ones by what follows the dot.
NETWORK = re.compile(
    r"^(nfs4?|cifs|smb3|smbfs|lustre|gpfs|beegfs|9p|ceph|afs|glusterfs|ocfs2|gfs2|virtiofs|wekafs|pvfs2|orangefs|"
    r"fuse\.(s3fs|gcsfuse|goofys|rclone|juicefs|sshfs|glusterfs|ceph|blobfuse2?|mount-s3|geesefs|seaweedfs|alluxio\S*|davfs))$"
)
URL = re.compile(r"^[a-z][a-z0-9+.-]*://")
# Frames that wait for a socket, or are a library that reads over one.
REMOTE = re.compile(
    r"/(socket|ssl|http/\w+|urllib/\w+|ftplib|asyncio/\w+)\.py|"
    r"/(requests|urllib3|httpx|httpcore|aiohttp|botocore|boto3|s3fs|gcsfs|adlfs|s3transfer|minio|google/cloud)/"
)
# Frames that wait for a command (`gsutil cat`, `zcat`) to deliver the data.
COMMAND = re.compile(r"/subprocess\.py")
# Fewer stack samples of reading give no share of what it waits for.
MIN_SAMPLES = 10
_OPENS = re.compile(r"^(builtins|io|_io|os|pathlib\.Path)\.(open|read_bytes|read_text)$")


@dataclass(frozen=True, slots=True)
class Reads:
    """What is known of how a batch's bytes come; None where it was not measured.

    Attributes:
        asked_bytes: bytes per batch asked of the system by its producer; none of them for mapped files and sockets.
        device_bytes: of a batch, bytes that came from a disk: neither from memory nor over a network.
        faults: page faults per batch that waited for a disk.
        opened: files opened per batch, in batches timed per operator.
        remote: share of the producers' reading that was seen in a socket or in a library that reads over one.
        command: share of it that was seen waiting for a command that was started to deliver the data.
        file_system: type of the file system that holds the data.
        path: what lies there.
        largest: the path and the size of the largest data file that producers held open.
        held_open: how many data files they held open.
        written_again: bytes an epoch that worker processes wrote after the first epoch, to files and pipes, at the least.
    """

    asked_bytes: float | None = None
    device_bytes: float | None = None
    faults: float | None = None
    opened: float | None = None
    remote: float | None = None
    command: float | None = None
    file_system: str | None = None
    path: str | None = None
    largest: tuple[str, int] | None = None
    held_open: int = 0
    written_again: float | None = None

    @property
    def over_network(self) -> bool:
        """Whether the data lies on a network file system."""
        return self.file_system is not None and NETWORK.match(self.file_system) is not None

    @property
    def bytes_per_file(self) -> float | None:
        """Bytes asked for per file opened; None where none were: mapped files and sockets are not asked."""
        return self.asked_bytes / self.opened if self.opened and self.asked_bytes else None


def reads_of(recording: Recording, loop: Loop, reading: list[StackSamples]) -> Reads:
    """Return how the bytes of a loop's batches come.

    Args:
        recording: the run.
        loop: the loop.
        reading: stacks of its producers while they read.
    """
    made = loop.made
    usual = made.warm & ~made.deep if (made.warm & ~made.deep).any() else np.ones(len(made.wall), np.bool_)
    known = len(made.wall) > 0
    counted = known and "io" not in loop.process.header.unread
    files = _held_open(recording, loop)
    path, kind = _where(recording, loop, files)
    seen = sum(sample.count for sample in reading)

    def share(kind: re.Pattern[str]) -> float | None:
        mine = sum(sample.count for sample in reading if any(kind.search(frame) for frame in sample.frames))
        return mine / seen if seen >= MIN_SAMPLES else None

    return Reads(
        asked_bytes=float(made.asked_bytes[usual].mean()) if counted else None,
        device_bytes=float(made.device_bytes[usual].mean()) if counted else None,
        faults=float(made.faults[usual].mean()) if known else None,
        opened=_opened(recording, loop),
        remote=share(REMOTE),
        command=share(COMMAND),
        file_system=kind,
        path=path,
        largest=max(files.items(), key=lambda item: item[1], default=None),
        held_open=len(files),
        written_again=_written_again(recording, loop),
    )


def _written_again(recording: Recording, loop: Loop) -> float | None:
    """Return the bytes an epoch that workers wrote after the first epoch; None without workers or a second epoch."""
    batches = sum(epoch.batches for epoch in loop.epochs[1:])
    if not batches or not loop.num_workers:
        return None
    since = origin_of(recording) + loop.epochs[1].begun * 1e9
    pids = set(loop.made.pid.tolist())
    written: dict[int, list[int]] = {}
    for sample in recording.host:
        for process in sample.get("processes", ()) if sample["t"] >= since else ():
            if process["pid"] in pids and isinstance(process.get("written"), int):
                written.setdefault(process["pid"], []).append(process["written"])
    if not written:
        return None
    return sum(each[-1] - each[0] for each in written.values()) * loop.epochs[0].batches / batches


def _opened(recording: Recording, loop: Loop) -> float | None:
    rows = operators.rows_of(recording, loop)
    if not len(rows):
        return None
    calls: Counter[str] = Counter()
    for row in rows:
        name = recording.texts[row["name"]].partition("@")[0]
        if _OPENS.match(name):
            calls[name] += int(row["calls"])
    # One of these functions calls another to open a file; counting only one of them counts each file once.
    return max(calls.values(), default=0) / operators.batches_of(rows)


def _held_open(recording: Recording, loop: Loop) -> dict[str, int]:
    """Return the data files that the loop's producers, or its own process where there are none, held open."""
    pids = set(loop.made.pid.tolist()) or {loop.process.pid}
    own = str(recording.folder)
    return {
        path: size
        for each in recording.open_files
        if each.pid in pids
        for path, size in each.files.items()
        if not path.startswith(own)
    }


def _where(recording: Recording, loop: Loop, files: dict[str, int]) -> tuple[str | None, str | None]:
    """Return a path of the data and the type of its file system: a network one where there is one."""
    kinds = recording.meta.file_systems
    named = loop.facts.path
    paths = [*([named] if named is not None else []), *sorted(files)]
    known = [(path, kinds[path]) for path in paths if path in kinds]
    return next(((path, kind) for path, kind in known if NETWORK.match(kind)), known[0] if known else (None, None))


def paths_named(recording: Recording) -> list[str]:
    """Return the paths that loaders name, URLs left out, and those of data files that producers held open."""
    rows = recording.tables["iterator"]["loader"]
    facts = [validate.facts(recording.texts[number]) for number in np.unique(rows[rows >= 0])]
    named = {each.path for each in facts if each.path and not URL.match(each.path)}
    return sorted(named | {path for each in recording.open_files for path in each.files})
