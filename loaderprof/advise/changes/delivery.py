"""Changes to what brings indices to the workers and batches back: what a batch holds, whether workers are worth it, the
sampler.

How well a change of code is done is assumed, as a range that its interval spans. Handing over is two processes that answer
each other, once for each piece of a pipe or each tensor, and on a busy machine each answer waits for a core. The replay,
which shares cores smoothly, has no such waits: its gain is the lower bound, and all that was waited the upper one. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from loaderprof import formatting
from loaderprof.advise.change import Change, ChangeGuide, RunFacts, rule
from loaderprof.diagnose.loop_context import MANY_TENSORS, LoopContext, many_tensors, piped, piped_arrays, sampler_of
from loaderprof.diagnose.verdict import MIN_GAIN
from loaderprof.findings import Costs
from loaderprof.replay.edits import RECEIVE_PER_TENSOR_S, RECEIVE_S, SHARE_PER_BYTE_S, with_costs, with_settings
from loaderprof.replay.model import LoopModel

# How many tensors a batch is stacked into: at worst, likely, and at best.
STACKED = (8.0, 4.0, 1.0)
# A batch's fixed cost, in tensors: what receiving none of them costs.
FIXED_TENSORS = RECEIVE_S / RECEIVE_PER_TENSOR_S
# torch.stack of small tensors and taking them apart again, by tensor; measured on a 2-core machine.
STACK_PER_TENSOR_S = 4e-6
# Making a batch in the training process costs what it does in a worker, times or over this factor: libraries use more
# threads there, and the step competes for caches.
MAKING_DOUBT = 1.3
# What a cheaper sampler keeps of its cost: at worst, likely, and at best.
SAMPLER_KEPT = (0.5, 0.25, 0.0)

SHARED_MEMORY = ChangeGuide(
    "shared-memory",
    "Return tensors, not arrays or objects: they pass through shared memory",
    code="def collate(samples):\n    return torch.from_numpy(np.stack(samples))",
)


@rule(SHARED_MEMORY)
def shared_memory(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Return tensors, which pass through shared memory, where data is pickled through the pipe."""
    if not _handing_over(context, base) or not piped(context):
        return
    arrays = piped_arrays(context)
    held = max(1.0, context.batch_tensors or 1.0)
    size = context.batch_bytes if arrays else context.pickled_bytes
    if arrays and held < MANY_TENSORS:
        action, counts = "Return tensors, not arrays: they pass through shared memory", (held, held, held)
        code = SHARED_MEMORY.code
    else:
        what = "arrays" if arrays else "objects"
        action, counts = f"Turn {what} into a few tensors: they pass through shared memory", STACKED
        code = "# in the dataset, once: what a sample holds as one tensor\nself.boxes = torch.tensor([[b.x, b.y] for b in boxes])"
    pickled = context.parts.pickle_s or 0.0
    # Objects are walked through to make tensors of them, which is about what pickling does; or that is done only once.
    packing = (0.0, 0.0, 0.0) if arrays else (pickled, 0.5 * pickled, 0.0)
    worst, likely, best = (
        _delivered(
            base,
            context,
            RECEIVE_PER_TENSOR_S * count + SHARE_PER_BYTE_S * (size or 0.0) + cost,
            RECEIVE_S + RECEIVE_PER_TENSOR_S * count,
        )
        for count, cost in zip(counts, packing, strict=True)
    )
    change = Change(
        id=SHARED_MEMORY.id,
        action=action,
        why=f"{formatting.size(context.pickled_bytes or 0.0)} of every batch are pickled, written to a pipe, read and unpickled.",
        where=context.loop.facts.where,
        change={"kind": "code", "batches": "tensors"},
        current={"batches": "arrays" if arrays else "objects"},
        model=likely,
        costs=Costs(0.0, int(size or 0.0), "a line in collate_fn"),
        code=code,
    )
    yield _unhindered(context, change.between(base, worst, best), best)


FEWER_TENSORS = ChangeGuide(
    "fewer-tensors",
    "Stack what a batch holds into a few tensors in `collate_fn`",
    code="def collate(samples):\n    return torch.stack([box for sample in samples for box in sample])",
)


@rule(FEWER_TENSORS)
def fewer_tensors(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Stack many tensors into a few: each has a file in shared memory, and a round trip to be received."""
    if not _handing_over(context, base) or piped(context) or not many_tensors(context):
        return
    held, size = context.batch_tensors or 1.0, context.batch_bytes or 0.0
    pickled = context.parts.pickle_s or 0.0
    copying = min(pickled, SHARE_PER_BYTE_S * size)
    received = max(0.0, base.costs.receive_cpu_s - (context.parts.index_s or 0.0))
    models = []
    for count in STACKED:
        kept = (count + FIXED_TENSORS) / (held + FIXED_TENSORS)
        # Stacking copies the batch once more.
        stacking = STACK_PER_TENSOR_S * held + SHARE_PER_BYTE_S * size
        sending = copying + (pickled - copying) * kept + stacking
        models.append(_delivered(base, context, sending, received * kept, base.costs.answer_cpu_s * kept))
    worst, likely, best = models
    change = Change(
        id=FEWER_TENSORS.id,
        action="Stack what a batch holds into a few tensors in collate_fn",
        why=f"A batch holds {held:.0f} tensors; each has a file in shared memory that is made, sent and mapped by itself.",
        where=context.loop.facts.where,
        change={"kind": "code", "tensors": round(STACKED[1])},
        current={"tensors": round(held)},
        model=likely,
        costs=Costs(0.0, 0, "a few lines in collate_fn and in the loop"),
        code=FEWER_TENSORS.code,
    )
    yield _unhindered(context, change.between(base, worst, best), best)


NO_WORKERS = ChangeGuide(
    "no-workers",
    "Make batches in the training process, where handing them over costs more: `num_workers=0`",
    setting=True,
)


@rule(NO_WORKERS)
def no_workers(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Make batches in the training process, where handing them over costs more than making them."""
    if not _handing_over(context, base):
        return
    worst, likely, best = in_process(base)
    workers = context.loop.num_workers
    change = Change(
        id=NO_WORKERS.id,
        action=f"Make batches in the training process: num_workers=0, not {workers}",
        why="Handing a batch over costs more than making it does.",
        where=context.loop.facts.where,
        change={"num_workers": 0},
        current={"num_workers": workers},
        model=likely,
        costs=Costs(-float(workers), 0, "one argument"),
        code=f"{context.loop.name} = DataLoader(..., num_workers=0)",
    ).between(base, worst, best)
    # A run with workers shows too little to offer this where it may lose.
    if (change.floor or 0.0) >= 1.0 + MIN_GAIN:
        yield _unhindered(context, change, best)


def in_process(base: LoopModel) -> list[LoopModel]:
    """Return the model without workers, as it may be at worst, likely and at best."""
    alone = with_settings(base, num_workers=0)
    making_s = alone.costs.fetch_cpu_s
    return [with_costs(alone, fetch_cpu_s=making_s * doubt) for doubt in (MAKING_DOUBT, 1.0, 1.0 / MAKING_DOUBT)]


CHEAPER_SAMPLER = ChangeGuide("cheaper-sampler", "Make the sampler cheaper: draw the indices of an epoch at once")
_AT_ONCE = (
    "def __iter__(self):\n    indices = torch.multinomial(self.weights, len(self), replacement=True)\n"
    "    yield from indices.tolist()"
)
_FEWER = "sampler = RandomSampler(dataset, replacement=True, num_samples=samples)"


@rule(CHEAPER_SAMPLER)
def cheaper_sampler(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Make the sampler cheaper: the loop's own thread draws the indices, so that no worker helps."""
    if context.gain("sampler") < MIN_GAIN:
        return
    costs, index = base.costs, context.parts.index_s or 0.0
    worst, likely, best = (
        with_costs(
            base,
            receive_cpu_s=max(0.0, costs.receive_cpu_s - (1 - kept) * index),
            epoch_gap_s=costs.epoch_gap_s * kept,
        )
        for kept in SAMPLER_KEPT
    )
    sampler = sampler_of(context.loop)
    name = sampler.rsplit(".", 1)[-1]
    if index * base.batches_per_epoch >= costs.epoch_gap_s:
        what, code = "the indices of an epoch at once", _AT_ONCE
        why = f"{name} takes {formatting.duration(index)} a batch of the training process itself, which workers cannot take over."
    else:
        what, code = "only the indices that an epoch takes", _FEWER
        why = f"{name} takes {formatting.duration(costs.epoch_gap_s)} at the start of every epoch, before the first batch."
    yield Change(
        id=CHEAPER_SAMPLER.id,
        action=f"Make the sampler cheaper: draw {what}",
        why=why,
        where=context.sampler_where,
        change={"kind": "code", "operator": name},
        current={"s_per_batch": round(index, 6), "s_per_epoch": round(costs.epoch_gap_s, 6)},
        model=likely,
        costs=Costs(0.0, None, "code"),
        # Only its author knows what a sampler of the user's draws, and whether it depends on the batch before.
        code=code if sampler.startswith("torch.") else "",
    ).between(base, worst, best)


def _handing_over(context: LoopContext, base: LoopModel) -> bool:
    """Return whether there are workers, and handing their batches over is worth a change."""
    return bool(base.settings.num_workers) and context.gain("handover") >= MIN_GAIN


def _delivered(
    base: LoopModel, context: LoopContext, sending_s: float, receiving_s: float, answer_s: float = 0.0
) -> LoopModel:
    """Return the model in which pickling, receiving and answering for a batch take these seconds."""
    costs = base.costs
    making = np.maximum(costs.fetch_cpu_s - (context.parts.pickle_s or 0.0), 0.0)
    index = min(context.parts.index_s or 0.0, costs.receive_cpu_s)
    return with_costs(base, fetch_cpu_s=making + sending_s, receive_cpu_s=index + receiving_s, answer_cpu_s=answer_s)


def _unhindered(context: LoopContext, change: Change, best: LoopModel) -> Change:
    """Return the change with a ceiling as if nothing else wanted the cores of the loop and its workers."""
    measured = (context.loop.mean(context.loop.wait) or 0.0) + (context.loop.mean(context.loop.step) or 0.0)
    alone = replace(best, neighbours=0.0).run().steady_step_s
    most = measured / alone if alone > 0 else 0.0
    return replace(change, ceiling=max(change.ceiling or 0.0, most))
