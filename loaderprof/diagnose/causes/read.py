"""Causes in reading: where the bytes of a sample come from, and in which pieces."""

from __future__ import annotations

import re

from loaderprof import formatting
from loaderprof.analyze.pools import MOSTLY_WAITING
from loaderprof.analyze.reads import Reads
from loaderprof.diagnose.causes.cause import CauseRule, Guide, StageEvidence, always, share_fact, uses
from loaderprof.diagnose.causes.making import PRODUCING, in_producers, pool_at_work, production_share
from loaderprof.diagnose.causes.prefetch_queue import device_idle, none_ready
from loaderprof.diagnose.loop_context import MANY_FILES, LoopContext, how_read, of_tensors, small_files
from loaderprof.findings import Evidence

# Fetches that wait this share of their time are waiting, not working.
MOSTLY_BLOCKED = 0.5
# This share of the producers' reading must be seen in sockets for it to be remote, or in a command for it to be piped.
MOSTLY_REMOTE = 0.5
# Where fewer of the bytes that came from a disk were asked for, page faults brought them; where fewer of the bytes that
# were asked for came from a disk, memory did.
UNASKED = 0.2
# A batch for which the disk delivers no more than a page did not come from it.
PAGE = 4096
# Copying less than this a batch out of memory is not what takes the time.
MUCH = 1 << 20
# A single file is a cause of its own from this size on.
LARGE_FILE = 64 << 20
_REMOTE = re.compile(r"^(socket|ssl|urllib|http|requests|httpx|urllib3|boto|fsspec|s3fs|gcsfs|aiohttp)", re.IGNORECASE)
_READ = (
    "num-workers",
    "keep-open",
    "overlapped-reads",
    "requests-in-flight",
    "threads",
    "batches-ahead",
    "cache-in-memory",
)


def _facts(context: LoopContext) -> list[Evidence]:
    parts = context.parts
    facts = production_share("read", context)
    if facts and parts.blocked_s is not None and parts.wall_s and parts.pool is None:
        blocked = blocked_share(context)
        facts.append(share_fact("makers are blocked {} of their time", blocked, MOSTLY_BLOCKED))
    facts += [*_of_bytes(how_read(context)), *pool_at_work(context)]
    if parts.pool is not None:
        waiting = parts.pool.waiting
        facts.append(share_fact("they wait for reads {} of their work", waiting, MOSTLY_WAITING))
    return [*facts, *none_ready(context.loop), *device_idle(context)]


def _of_bytes(reads: Reads) -> list[Evidence]:
    """Return how the bytes come, as far as it was measured."""
    facts = []
    for share, where in ((reads.command, "waits for a command"), (reads.remote, "is in sockets")):
        if share:
            facts.append(share_fact(f"{{}} of their reading {where}", share, MOSTLY_REMOTE))
    if reads.file_system is not None:
        facts.append(Evidence(f"the data lies on {reads.file_system} ({reads.path})", None, reads.file_system, None))
    if reads.opened:
        size = reads.bytes_per_file
        each = f" of {formatting.size(size)}" if size is not None else ""
        facts.append(Evidence(f"{reads.opened:.0f} files{each} are opened a batch", reads.opened, "files", MANY_FILES))
    if reads.asked_bytes is not None and reads.device_bytes is not None:
        asked, device = formatting.size(reads.asked_bytes), formatting.size(reads.device_bytes)
        text = f"{asked} a batch are asked for, {device} come from a disk"
        facts.append(Evidence(text, reads.device_bytes, "bytes", None))
    if reads.faults:
        text = f"{formatting.number(reads.faults)} page faults a batch wait for a disk"
        facts.append(Evidence(text, reads.faults, "faults", None))
    if reads.held_open == 1 and reads.largest is not None and not reads.opened:
        path, size = reads.largest
        facts.append(Evidence(f"all is read from {path}, {formatting.size(size)}", float(size), "bytes", None))
    return facts


READING = StageEvidence(f"{PRODUCING}; how much of their time makers are blocked", _facts)


def blocked_share(context: LoopContext) -> float:
    """Return the share of their time in which the producers of batches wait for what they read."""
    if context.parts.pool is not None:
        return context.parts.pool.waiting
    return (context.parts.blocked_s or 0.0) / context.parts.wall_s if context.parts.wall_s else 0.0


def _remote(context: LoopContext) -> bool:
    """Return whether bytes come over sockets, by stacks where there are enough, else by the names of timed operators."""
    share = how_read(context).remote
    return share >= MOSTLY_REMOTE if share is not None else any(map(_REMOTE.search, context.operators))


def _mapped(context: LoopContext) -> bool:
    """Return whether bytes come from the disk that nobody asked for in a read: by page faults."""
    device, asked = context.parts.device_bytes, context.parts.asked_bytes
    return bool(device and device > PAGE and (asked or 0.0) < UNASKED * device)


def _from_disk(context: LoopContext) -> bool:
    """Return whether more than a little of the bytes comes from the disk, not from the page cache."""
    device, asked = context.parts.device_bytes, context.parts.asked_bytes
    return bool(device and device > PAGE and device > UNASKED * (asked or 0.0))


def _cached(context: LoopContext) -> bool:
    """Return whether nearly all that is asked for comes from memory, and copying it is the work."""
    device, asked = context.parts.device_bytes, context.parts.asked_bytes
    local = how_read(context).file_system is not None or bool(how_read(context).opened)
    much = asked is not None and asked > MUCH and device is not None and device < UNASKED * asked
    return much and local and blocked_share(context) < MOSTLY_BLOCKED


def _single_file(context: LoopContext) -> bool:
    """Return whether all is read from one large file that stays open."""
    reads = how_read(context)
    return reads.held_open == 1 and reads.largest is not None and reads.largest[1] >= LARGE_FILE and not reads.opened


CAUSES: tuple[CauseRule, ...] = (
    CauseRule(
        id="rows-of-tensors",
        stage="read",
        title="Tensor rows fetched one by one",
        test=of_tensors,
        evidence=READING,
        headline=in_producers,
        guide=Guide(
            means="A `TensorDataset` is indexed once for every sample, and the rows are stacked again; one indexing call does both.",
            identified_by="the dataset is torch's own of tensors in memory",
            changes=("slice-batches", "num-workers"),
            do=("Move the whole table to the device if it fits, and shuffle indices there.",),
        ),
    ),
    CauseRule(
        id="piped-command",
        stage="read",
        title="Data piped from a command",
        test=lambda context: (how_read(context).command or 0) >= MOSTLY_REMOTE,
        evidence=READING,
        headline=in_producers,
        guide=Guide(
            means="Each sample or shard comes through the pipe of a command (`aws s3 cp`, `curl`, `cat`): it is started, and waited for.",
            identified_by="the makers' reading is seen in `subprocess`",
            changes=_READ,
            do=(
                "Start a command for a shard of many samples, not for each; or use a library that keeps its connection.",
                "Copy the data to a local disk before training.",
            ),
        ),
    ),
    CauseRule(
        id="remote-latency",
        stage="read",
        title="Remote reads",
        test=_remote,
        evidence=READING,
        headline=in_producers,
        guide=Guide(
            means="Samples are fetched over a network, one after another; the makers of batches wait for answers and hardly work.",
            identified_by="calls into sockets or into an HTTP or object-store library within the timed batches",
            changes=(*_READ, "larger-cache", "fewer-canonical-nodes"),
            do=(
                "Pack samples into shards and read those in sequence: one request then brings many samples.",
                "Stage the data on a local disk before training.",
            ),
        ),
    ),
    CauseRule(
        id="network-file-system",
        stage="read",
        title="Reads from a network file system",
        test=lambda context: how_read(context).over_network,
        evidence=READING,
        headline=in_producers,
        guide=Guide(
            means="The files lie on a network file system (NFS, Lustre, FUSE, ...): every open and read is a request to a server.",
            identified_by="the kernel's table of mounts, looked up for the files that the makers of batches had open",
            changes=_READ,
            do=(
                "Copy the data to a local disk before training, or pack it into shards: one open then brings many samples.",
            ),
            commands=("findmnt -T FILE",),
        ),
    ),
    CauseRule(
        id="mapped-file",
        stage="read",
        title="Page faults of a mapped file",
        test=_mapped,
        evidence=READING,
        headline=in_producers,
        guide=Guide(
            means="Samples are cut from a memory-mapped file that is not in memory: each first touch of a page waits for the disk.",
            identified_by="major page faults of the makers of batches",
            changes=("overlapped-reads",),
            do=(
                "Read in the order in which samples lie in the file, or in large pieces.",
                "Give the page cache room: a smaller encoding, or more memory.",
            ),
            commands=("free -g",),
        ),
    ),
    CauseRule(
        id="small-files",
        stage="read",
        title="Many small files",
        test=small_files,
        evidence=READING,
        headline=in_producers,
        guide=Guide(
            means="Each sample is a small file: opening it costs more than reading it.",
            identified_by="the open calls and the bytes of a sample, as the timers and the kernel count them",
            changes=(*_READ, "shards"),
        ),
    ),
    CauseRule(
        id="disk-read",
        stage="read",
        title="Reads from the disk",
        test=_from_disk,
        evidence=READING,
        headline=in_producers,
        guide=Guide(
            means="Bytes come from the device, not from the page cache: the disk, or the file system behind it, sets the pace.",
            identified_by="over a fifth of the bytes that were asked for came from the device",
            changes=_READ,
            do=(
                "Make the data fit in memory, so that later epochs read the page cache: smaller encoding, fewer files.",
                "Read in sequence (shards) instead of at random.",
            ),
            commands=("iostat -x 1",),
        ),
    ),
    CauseRule(
        id="archive-read",
        stage="read",
        title="Reads from an archive",
        test=uses(r"tarfile|zipfile", "read"),
        evidence=READING,
        headline=in_producers,
        guide=Guide(
            means="Samples are taken out of a tar or zip archive; finding and unpacking the member is the work.",
            identified_by="tarfile or zipfile among the dearest reads",
            changes=_READ,
            do=("Keep the archive open in each worker, and read its members in the order in which they lie in it.",),
        ),
    ),
    CauseRule(
        id="table-rows",
        stage="read",
        title="Rows looked up in a table in memory",
        test=uses(r"i?LocIndexer|_LocationIndexer|\.i?loc\b", "read"),
        evidence=READING,
        headline=in_producers,
        guide=Guide(
            means="Rows are looked up one by one in a table that is in memory (pandas): each look-up makes an object of Python.",
            identified_by="such a look-up among the dearest reads",
            changes=_READ,
            do=(
                "Turn the columns into arrays or tensors once, in `__init__`, and index these.",
                "Ask for a batch of rows in one call (`__getitems__`).",
            ),
        ),
    ),
    CauseRule(
        id="database-read",
        stage="read",
        title="Reads from a database file",
        test=uses(r"h5py|lmdb|sql|query|pyarrow|zarr|datasets", "read"),
        evidence=READING,
        headline=in_producers,
        guide=Guide(
            means="Samples come out of a database file (HDF5, LMDB, Arrow, zarr, SQLite): looking up, copying and converting rows.",
            identified_by="such a library among the dearest reads",
            changes=_READ,
            do=(
                "Open the file once in each worker, on first use.",
                "Ask for a batch of rows in one call (`__getitems__`), and match chunks to what a sample reads.",
            ),
        ),
    ),
    CauseRule(
        id="cached-read",
        stage="read",
        title="Reads of files that are in memory",
        test=_cached,
        evidence=READING,
        headline=in_producers,
        guide=Guide(
            means="The bytes come from memory (the page cache), yet reading them is the limit: copying and parsing calls, not the disk.",
            identified_by="nothing of what was asked for came from the device",
            changes=("num-workers", "cache-in-memory"),
            do=("Read a sample in one call, in its final form; memory-map arrays instead of copying them.",),
        ),
    ),
    CauseRule(
        id="single-file",
        stage="read",
        title="Reads from one large file",
        test=_single_file,
        evidence=READING,
        headline=in_producers,
        guide=Guide(
            means="All samples come out of one large file, read piece by piece.",
            identified_by="one file open in the makers of batches, and many bytes a read",
            changes=_READ,
            do=("Memory-map it, or cut it into as many parts as there are workers.",),
        ),
    ),
    CauseRule(
        id="waiting-read",
        stage="read",
        title="Waiting for reads",
        test=lambda context: blocked_share(context) > MOSTLY_BLOCKED,
        evidence=READING,
        headline=in_producers,
        guide=Guide(
            means="The makers of batches wait for most of the time of a read: for a network file system, another process, or a lock.",
            identified_by=f"makers are blocked over {formatting.percent(MOSTLY_BLOCKED)} of their time, and neither a network library nor the disk is seen",
            changes=(*_READ, "larger-cache", "fewer-canonical-nodes"),
            do=("Look at what the report's dearest read calls, and whether others use the same server.",),
        ),
    ),
    CauseRule(
        id="file-read",
        stage="read",
        title="File reads",
        test=always,
        evidence=READING,
        headline=in_producers,
        guide=Guide(
            means="Opening and reading files takes the time: many small files, or large ones copied from the page cache.",
            identified_by="reads that are none of the kinds above",
            changes=(*_READ, "larger-cache", "fewer-canonical-nodes"),
            do=("Join small files into shards, or memory-map one large array.",),
        ),
    ),
)
