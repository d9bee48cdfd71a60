"""Changes to how samples are read: rows taken as one slice, reads that overlap, files that stay open. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from loaderprof import formatting
from loaderprof.advise.change import Change, ChangeGuide, RunFacts, rule
from loaderprof.diagnose.loop_context import LoopContext, of_tensors
from loaderprof.findings import Costs
from loaderprof.replay.edits import faster, with_costs
from loaderprof.replay.model import LoopModel
from loaderprof.replay.removal import STRAGGLER_RATIO

# Speedup of one indexing call over one for each row and stacking them: 256 rows of 784 floats, likely, 1,024 rows of 3.
SLICED_RATIOS = (2.4, 8.0, 13.0)
# Threads that read a batch's samples at once, and the least share of making a batch that must be blocked in reads.
READ_THREADS, MIN_BLOCKED = 8, 0.3
# What opens an archive or a database file, what reads its index, and the least share of a batch that is worth a change.
_OPENING = re.compile(
    r"tarfile\.open|ZipFile\.__init__|h5py\._hl\.files\.File\.__init__|lmdb\.open|sqlite3\.connect|zarr\.open"
)
_INDEXING = re.compile(r"TarFile\.(next|extractfile)$")
MIN_OPENING = 0.1

SLICE_BATCHES = ChangeGuide(
    "slice-batches",
    "Take each batch as one slice of the tensors instead of row by row",
    code=(
        "sampler = BatchSampler(RandomSampler(dataset), batch_size, drop_last=False)\n"
        "loader = DataLoader(dataset, sampler=sampler, batch_size=None)  # dataset[list of indices]"
    ),
)


@rule(SLICE_BATCHES)
def slice_batches(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Take a batch of a TensorDataset with one indexing call."""
    if not of_tensors(context):
        return
    worst, likely, best = (
        faster(faster(base, context.parts, "read", ratio), context.parts, "collate", ratio) for ratio in SLICED_RATIOS
    )
    yield Change(
        id=SLICE_BATCHES.id,
        action="Take each batch as one slice of the tensors, not row by row",
        why="The rows are in memory: indexing them one by one, and stacking them again, is all that a batch costs.",
        where=context.loop.facts.where,
        change={"kind": "code"},
        model=likely,
        costs=Costs(0.0, 0, "a few lines"),
        code="sampler = BatchSampler(RandomSampler(dataset), batch_size, drop_last=False)\n"
        f"{context.loop.name} = DataLoader(dataset, sampler=sampler, batch_size=None)  # dataset[list of indices]",
        cheaper=frozenset({"read", "collate"}),
    ).between(base, worst, best)


OVERLAPPED_READS = ChangeGuide(
    "overlapped-reads",
    "Read the samples of a batch at once, in threads within `__getitems__`",
    code=(
        "def __getitems__(self, indices):\n    with ThreadPoolExecutor(8) as pool:\n"
        "        return list(pool.map(self.__getitem__, indices))"
    ),
)


@rule(OVERLAPPED_READS)
def overlapped_reads(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Read the samples of a batch in threads, where a producer waits for one after another."""
    blocked = sum(piece.blocked_s for piece in context.parts.pieces if piece.stage == "read")
    batch = context.loop.facts.batch_size or 1
    at_once = any(name.endswith(".__getitems__") for name in context.operators)
    # An iterable dataset is not asked for samples by their index.
    if batch < 2 or at_once or context.loop.facts.iterable:
        return
    if blocked < MIN_BLOCKED * (context.parts.wall_s or math.inf):
        return
    threads = min(READ_THREADS, batch)
    blocked_s = base.costs.fetch_blocked_s
    less = (1.0 - 1.0 / threads) * min(1.0, blocked / max(float(blocked_s.mean()), 1e-12))
    # The part of a slow read that exceeds the others has nothing to overlap with.
    usual = np.minimum(blocked_s, STRAGGLER_RATIO * np.median(blocked_s))
    yield Change(
        id=OVERLAPPED_READS.id,
        action=f"Read the samples of a batch at once: {threads} threads in __getitems__",
        why="Makers wait for reads one after another; the waiting overlaps freely until the source is full.",
        where=context.named("read") or None,
        change={"kind": "code", "threads": threads},
        current={"threads": 1},
        model=with_costs(base, fetch_blocked_s=blocked_s - less * usual),
        costs=Costs(0.0, 0, "a few lines"),
        code="def __getitems__(self, indices):\n"
        f"    with ThreadPoolExecutor({threads}) as pool:\n        return list(pool.map(self.__getitem__, indices))",
        floor=1.0,
        cheaper=frozenset({"read"}),
    )


KEEP_OPEN = ChangeGuide(
    "keep-open",
    "Open an archive or a database file once in each worker, on first use, not for every sample",
    code=(
        "def __getitem__(self, index):\n    if self.file is None:  # None in __init__: each worker opens its own\n"
        "        self.file = h5py.File(self.path)"
    ),
)


@rule(KEEP_OPEN)
def keep_open(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Open an archive or a database file once in each worker, where batches were seen to open it again."""
    reads = [piece for piece in context.parts.pieces if piece.stage == "read"]
    opening = [piece for piece in reads if _OPENING.search(piece.name)]
    if not opening:
        return
    # The file's index is read again each time it is opened, as is what else stands on the line that opens it.
    line = opening[0].where
    opening += [
        piece
        for piece in reads
        if piece not in opening and ((line and piece.where == line) or _INDEXING.search(piece.name))
    ]
    cpu, blocked = sum(piece.cpu_s for piece in opening), sum(piece.blocked_s for piece in opening)
    share = (cpu + blocked) / sum(piece.total_s for piece in context.parts.pieces)
    if share < MIN_OPENING:
        return
    yield Change(
        id=KEEP_OPEN.id,
        action="Open the archive or database file once in each worker, not for every sample",
        why=f"Opening it, with its index, is {formatting.percent(share, whole=True)} of making a batch.",
        where=line,
        change={"kind": "code"},
        model=with_costs(
            base,
            fetch_cpu_s=np.maximum(base.costs.fetch_cpu_s - cpu, 0.0),
            fetch_blocked_s=np.maximum(base.costs.fetch_blocked_s - blocked, 0.0),
        ),
        costs=Costs(0.0, 0, "a few lines"),
        code="def __getitem__(self, index):\n    if self.file is None:  # None in __init__: each worker opens its own\n"
        "        self.file = open_it(self.path)",
        cheaper=frozenset({"read"}),
    )
