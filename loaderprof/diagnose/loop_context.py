"""One loop with all that is known of it, as causes and changes see it, and the questions that more than one of them ask.

What only one cause asks stands beside that cause in `causes`. Pure: no torch, no clock, no processes.
"""

from __future__ import annotations

from dataclasses import dataclass

from loaderprof.analyze.breakdown import Breakdown
from loaderprof.analyze.loop import Loop
from loaderprof.analyze.operators import TENSORS
from loaderprof.analyze.reads import Reads
from loaderprof.findings import Gpu, Stage, StepPhases

# Where files are this small, and as many a batch, opening them costs more than reading them.
SMALL_FILE, MANY_FILES = 32 << 10, 4
# A tensor in shared memory leaves a handle of 70 to 130 bytes in the pickle. What is beyond the handles, and beyond what
# the buffer of a pipe takes at once, is data that passes through the pipe.
HANDLE_BYTES, PIPE_BYTES = 256, 64 << 10
# Above this many, receiving tensors costs several times what receiving a batch does anyhow (advise/changes/delivery.py).
MANY_TENSORS = 20
# From this share on it is most: of a batch's objects, of the steps at which the queue was empty, or was not.
MOSTLY = 0.5
# Below this share of its bytes in pinned memory, a batch is copied from memory that is not pinned.
MOSTLY_PINNED = 0.5
TORCH_BATCH_SAMPLER = "torch.utils.data.sampler.BatchSampler"


@dataclass(frozen=True, slots=True)
class LoopContext:
    """One loop, what its batches cost, what each stage's removal would gain, and the machine around it.

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
        """Return a stage's share of the time that producing a batch takes; None where nothing was timed."""
        total = sum(piece.total_s for piece in self.parts.pieces)
        mine = sum(piece.total_s for piece in self.parts.pieces if piece.stage == stage)
        return mine / total if total > 0 else None

    def named(self, stage: Stage) -> str:
        """Return the most expensive operator of a stage with its line: `Image.load, train.py:41`; empty where none is known."""
        for piece in self.parts.pieces:
            if piece.stage == stage:
                short = ".".join(piece.name.split(".")[-2:])
                return f"{short}, {piece.where}" if piece.where else short
        return ""

    def producer(self) -> str:
        """Return who produces the batches, in words."""
        if self.parts.pool is not None:
            return f"{self.parts.pool.words()} of {self.loop.name}"
        return "the loader workers" if self.loop.num_workers else "the training process"


def how_read(context: LoopContext) -> Reads:
    """Return how the bytes of a batch come; nothing is known of it in a job that was watched from outside."""
    return context.parts.reads or Reads()


def small_files(context: LoopContext) -> bool:
    """Return whether a batch opens many files, each of them small."""
    reads = how_read(context)
    size = reads.bytes_per_file
    return bool(reads.opened and reads.opened >= MANY_FILES and size is not None and size < SMALL_FILE)


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


def step_s(context: LoopContext) -> float:
    """Return the mean seconds of a step; 0 where none was seen."""
    return context.loop.mean(context.loop.step) or 0.0


def sampler_of(loop: Loop) -> str:
    """Return the type of what draws the indices: a batch sampler of the user's, else the sampler."""
    batches = loop.facts.batch_sampler or TORCH_BATCH_SAMPLER
    return str(loop.facts.sampler or "") if batches == TORCH_BATCH_SAMPLER else batches
