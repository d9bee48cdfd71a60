"""Where this process stands among the ranks of a job that something else launched: torchrun, srun, mpirun.

`loaderprof run -- torchrun train.py` watches all ranks of a node from above. In `torchrun --no-python loaderprof run
train.py` each rank has a `loaderprof run` of its own: the first of a node leads and records, the others only put their
hooks into its recording. Further nodes record into the folder `nodes` of the first one's, where that is shared.

Must not import torch, nor start a thread: the supervisor imports this before it starts the job.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from loaderprof.capture.hooks import describe
from loaderprof.recording import files

try:
    import fcntl
except ImportError:  # Windows: each rank under a `loaderprof run` of its own then keeps a recording of its own
    fcntl = None  # type: ignore[assignment]

# How long the other ranks of a node wait for the leader's recording, and it for their ends.
PATIENCE_S = 20.0
_POLL_S = 0.05
# By launcher: rank, number of ranks, rank on this node, and the job's own name where it has one.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", ("SLURM_JOB_ID", "SLURM_STEP_ID")),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", ("OMPI_MCA_ess_base_jobid",)),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", ("PMI_JOBID",)),
)
# Numbers of this node among several.
_NODES = ("GROUP_RANK", "SLURM_NODEID", "NODE_RANK")
_NODE_OPTIONS = ("--node-rank", "--node_rank", "--machine_rank")


@dataclass(frozen=True, slots=True)
class Place:
    """One rank: its number, its number on this node, and what the ranks of the job have in common."""

    rank: int
    local_rank: int
    group: str


def place(environment: Mapping[str, str]) -> Place | None:
    """Return where this process stands; None where it is not one of several."""
    for rank, size, local, names in _LAUNCHERS:
        numbers = [environment.get(name, "") for name in (rank, size, local)]
        if all(number.isdecimal() for number in numbers) and int(numbers[1]) > 1:
            group = "/".join(environment.get(name, "") for name in names)
            return Place(int(numbers[0]), int(numbers[2]), f"{group}/{os.getppid()}")
    return None


def node(environment: Mapping[str, str], command: Sequence[str]) -> int:
    """Return the number of this node among those that a job was started on, 0 where there is but one."""
    for name in _NODES:
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    words = [part for word in command for part in word.split("=", 1)]
    for option, number in itertools.pairwise(words):
        if option in _NODE_OPTIONS and number.isdecimal():
            return int(number)
    return 0


def folder(wanted: str | None, stem: str, number: int) -> str | None:
    """Return the recording folder of a node: of the first what was asked for, of others one inside it.

    Args:
        wanted: the folder or URL the user named; None: by name and time, a folder for each node.
        stem: the job's short name.
        number: of this node.
    """
    if not number:
        return wanted
    if wanted is None:
        return f"{stem}-{time.strftime('%m%d-%H%M')}-{describe.host()}"
    # A URL is no path: its two slashes stay.
    return f"{wanted.rstrip('/')}/{files.NODES}/{number}-{describe.host()}"


def agreed(stem: str) -> str:
    """Return a folder's name that all ranks of a node come to by themselves: by when what launched them began.

    A shell that launches one job after another gives all of them the same name; the leader takes the first that is free
    (`session.free_name`), and the others find it by its group (`join`).
    """
    try:
        began = psutil.Process(os.getppid()).create_time()
    except psutil.Error:  # it has ended, or is outside of this container
        began = time.time()
    return f"{stem}-{time.strftime('%m%d-%H%M%S', time.localtime(began))}"


def join(folder: Path, mine: Place) -> tuple[Path, IO[str]] | None:
    """Wait for the recording of this node's leader, and return where its journals are and what marks us as there.

    None where no recording of this job appears.
    """
    until = time.monotonic() + PATIENCE_S
    while fcntl is not None and time.monotonic() < until:
        for place in (folder, *folder.parent.glob(f"{folder.name}-*")):
            with suppress(OSError, ValueError, AttributeError):
                meta = json.loads((place / files.META).read_text(encoding="utf-8"))
                if meta.get("group") == mine.group and not meta.get("ended_ns"):
                    mark = open(place / files.MEMBERS, "a", encoding="utf-8")  # noqa: SIM115 - held to this process's end
                    fcntl.flock(mark, fcntl.LOCK_SH)
                    return Path(meta.get("live_journals") or place / files.JOURNALS), mark
        time.sleep(_POLL_S)
    return None


def wait_for_members(folder: Path) -> None:
    """Wait until the other ranks of this node have ended, though not for ever: a rank may hang."""
    if fcntl is None:
        return
    until = time.monotonic() + PATIENCE_S
    with suppress(OSError), open(folder / files.MEMBERS, "a", encoding="utf-8") as mark:
        while time.monotonic() < until:
            try:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_POLL_S)
    with suppress(OSError):
        (folder / files.MEMBERS).unlink()
