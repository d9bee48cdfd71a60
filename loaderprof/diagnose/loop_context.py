"""What a cause looks at: one loop with all that is known of it, and what can be asked of it.

Pure. What the answers are used for stands in `causes`, how they are told in `evidence`, what may be changed in `predict`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from loaderprof.analyze.breakdown import Breakdown
from loaderprof.analyze.loop import Loop, Seconds
from loaderprof.analyze.operators import TENSORS
from loaderprof.analyze.reads import Reads
from loaderprof.findings import Gpu, Stage, StepPhases

# Fetches that wait this share of their time are waiting, not working.
MOSTLY_BLOCKED = 0.5
# This share of the makers' reading must be seen in sockets for it to be remote.
MOSTLY_REMOTE = 0.5
# Below this share of the bytes that came from a disk, nobody asked for them; and the other way round.
UNASKED = 0.2
# Where files are this small, and as many a batch, opening them costs more than reading them.
SMALL_FILE, MANY_FILES = 32 << 10, 4
# Copying this much a batch out of memory is worth telling.
MUCH = 1 << 20
LARGE_FILE = 64 << 20
# A tensor in shared memory leaves a handle of 70 to 130 bytes in the pickle. What is beyond the handles, and beyond what
# the buffer of a pipe takes at once, is data that passes through the pipe.
HANDLE_BYTES, PIPE_BYTES = 256, 64 << 10
# Above this many, receiving tensors costs several times what receiving a batch does anyhow (predict/delivery_advice.py).
MANY_TENSORS = 20
# From this share on it is most: of a batch's objects, of the steps at which the queue was empty, or was not.
MOSTLY = 0.5
# A batch is mostly floats, or lies in pinned memory, from these shares of its bytes on.
MOSTLY_FLOATS, MOSTLY_PINNED = 0.9, 0.5
# A thread that works this much of the step, beside a GPU that runs a kernel less than this of the time, cannot feed it.
# Without the latter nothing is told: a thread that waits for its device spins.
LAUNCHING, MANY_KERNELS_PERCENT = 0.85, 70.0
# A thread that waits for a core this share of its step is kept from launching kernels.
KEPT_WAITING = 0.15
TORCH_BATCH_SAMPLER = "torch.utils.data.sampler.BatchSampler"
_REMOTE = re.compile(r"^(socket|ssl|urllib|http|requests|httpx|urllib3|boto|fsspec|s3fs|gcsfs|aiohttp)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LoopContext:
    """Everything a cause may look at: one loop, what its batches cost, what each stage's removal would gain.

    `gains` are speedups of the job (1.3: 30 % faster), `cores` the CPU budget, `busy_others` cores that processes
    outside the job used (None: not measured). `batch_bytes`, `batch_tensors` and `batch_leaves` are of the tensors,
    arrays and strings of a batch, `float_share` is the share of its bytes that are floating-point numbers, `pickled_bytes`
    what a batch put into the pipe (None: not measured, or no workers). `validates`: the host limits the job, and most of
    its time there lies in loops that do not train.
    """

    loop: Loop
    parts: Breakdown
    gains: dict[Stage, float]
    cores: float
    busy_others: float | None
    gpu_missing: str | None
    stacks_missing: str | None
    operators: tuple[str, ...]
    batch_bytes: float | None
    batch_tensors: float | None
    bound: bool = False
    helpers: float = 0.0
    batch_leaves: float | None = None
    pickled_bytes: float | None = None
    sampler_where: str | None = None
    float_share: float | None = None
    phases: StepPhases | None = None
    gpus: tuple[Gpu, ...] = ()
    validates: bool = False

    def gain(self, stage: Stage) -> float:
        """Return what removing a stage would gain: 0.3 for 30 %."""
        return self.gains.get(stage, 1.0) - 1.0

    def share(self, stage: Stage) -> float | None:
        """Return a stage's share of the time a batch takes its maker."""
        total = sum(piece.total_s for piece in self.parts.pieces)
        mine = sum(piece.total_s for piece in self.parts.pieces if piece.stage == stage)
        return mine / total if total > 0 else None

    def named(self, stage: Stage) -> str:
        """Return the dearest piece of a stage with its line: `decode (train.py:41)`."""
        for piece in self.parts.pieces:
            if piece.stage == stage:
                short = ".".join(piece.name.split(".")[-2:])
                return f"{short}, {piece.where}" if piece.where else short
        return ""

    def producer(self) -> str:
        """Return who makes the batches, in words."""
        if self.parts.pool is not None:
            return f"{self.parts.pool.words()} of {self.loop.name}"
        return "the loader workers" if self.loop.num_workers else "the training process"


def how_read(context: LoopContext) -> Reads:
    """Return how the bytes of a batch come."""
    # Of a job that was watched from outside nothing is known.
    return context.parts.reads or Reads()


def from_device(context: LoopContext) -> bool:
    """Return whether more than a little of the bytes comes from the disk, not from the page cache."""
    device, asked = context.parts.device_bytes, context.parts.asked_bytes
    return bool(device and device > 4096 and device > 0.2 * (asked or 0.0))


def remote(context: LoopContext) -> bool:
    """Return whether bytes come over sockets, as timers or stacks tell."""
    share = how_read(context).remote
    return share >= MOSTLY_REMOTE if share is not None else any(map(_REMOTE.search, context.operators))


def mapped(context: LoopContext) -> bool:
    """Return whether bytes come from the disk that nobody asked for in a read: by page faults."""
    device, asked = context.parts.device_bytes, context.parts.asked_bytes
    return bool(device and device > 4096 and (asked or 0.0) < UNASKED * device)


def small_files(context: LoopContext) -> bool:
    """Return whether a batch opens many files, each of them small."""
    reads = how_read(context)
    size = reads.bytes_per_file
    return bool(reads.opened and reads.opened >= MANY_FILES and size is not None and size < SMALL_FILE)


def cached(context: LoopContext) -> bool:
    """Return whether nearly all that is asked for comes from memory, and copying it is the work."""
    device, asked = context.parts.device_bytes, context.parts.asked_bytes
    local = how_read(context).file_system is not None or bool(how_read(context).opened)
    much = asked is not None and asked > MUCH and device is not None and device < UNASKED * asked
    return much and local and blocked_share(context) < MOSTLY_BLOCKED


def single_file(context: LoopContext) -> bool:
    """Return whether all is read from one large file that stays open."""
    reads = how_read(context)
    return reads.held_open == 1 and reads.largest is not None and reads.largest[1] >= LARGE_FILE and not reads.opened


def blocked_share(context: LoopContext) -> float:
    """Return the share of their time in which the makers of batches wait for what they read."""
    if context.parts.pool is not None:
        return context.parts.pool.waiting
    return (context.parts.blocked_s or 0.0) / context.parts.wall_s if context.parts.wall_s else 0.0


def restarts(context: LoopContext) -> bool:
    """Return whether more than one epoch began with new workers."""
    return context.loop.num_workers > 0 and len([epoch for epoch in context.loop.epochs if not epoch.restarted]) > 1


def of_tensors(context: LoopContext) -> bool:
    """Return whether the dataset is torch's own of tensors in memory, which a batch could be sliced from."""
    return context.loop.facts.dataset == TENSORS


def piped(context: LoopContext) -> bool:
    """Return whether the data of a batch passes through the pipe: its pickle is larger than handles of shared memory are."""
    handles = HANDLE_BYTES * (context.batch_tensors or 0.0)
    return context.pickled_bytes is not None and context.pickled_bytes - handles > PIPE_BYTES


def piped_arrays(context: LoopContext) -> bool:
    """Return whether what passes through the pipe are arrays: a batch holds little else, or they make up the pickle's size."""
    tensors, leaves = context.batch_tensors or 0.0, context.batch_leaves or 0.0
    size, pickled = context.batch_bytes or 0.0, context.pickled_bytes or 0.0
    return piped(context) and tensors > 0 and (tensors > MOSTLY * leaves or MOSTLY * pickled < size < pickled / MOSTLY)


def many_tensors(context: LoopContext) -> bool:
    """Return whether a batch holds so many tensors that their number is what costs."""
    return (context.batch_tensors or 0.0) >= MANY_TENSORS


def pageable(context: LoopContext) -> bool:
    """Return whether batches are copied to the device from memory that is not pinned."""
    copies = context.parts.copies
    return copies is not None and copies.pinned is not None and copies.pinned < MOSTLY_PINNED


def utilisation(context: LoopContext) -> float | None:
    """Return percent of the time in which any kernel ran, of the GPU that ran the fewest."""
    return min(
        (each.utilisation_percent for each in context.gpus if each.utilisation_percent is not None), default=None
    )


def step_s(context: LoopContext) -> float:
    """Return the mean seconds of a step; 0 where none was seen."""
    return context.loop.mean(context.loop.step) or 0.0


def step_share(context: LoopContext, seconds: Seconds) -> float:
    """Return what part of a loop's steps some of their seconds are; 0 where the step did not run on a device."""
    mean, step = context.loop.mean(np.clip(seconds, 0.0, None)), step_s(context)
    return mean / step if len(context.loop.busy) and mean is not None and step else 0.0


def kept_waiting(context: LoopContext) -> bool:
    """Return whether the thread that launches kernels waits long for a core."""
    return step_share(context, context.loop.step_runq) >= KEPT_WAITING


def launches(context: LoopContext) -> bool:
    """Return whether the device waits for the thread that launches its kernels."""
    used = utilisation(context)
    return used is not None and used < MANY_KERNELS_PERCENT and step_share(context, context.loop.step_cpu) >= LAUNCHING


def sampler_of(loop: Loop) -> str:
    """Return the type of what draws the indices: a batch sampler of the user's, else the sampler."""
    batches = loop.facts.batch_sampler or TORCH_BATCH_SAMPLER
    return str(loop.facts.sampler or "") if batches == TORCH_BATCH_SAMPLER else batches
