"""Changes to what brings indices to the workers and batches back: what a batch holds, whether workers are worth it, the
sampler.

A change of code is assumed to be done well or less well: its interval spans both. Handing over is two processes that
answer each other, by the piece of a pipe or by the tensor, and on a busy machine each answer waits for a core anew. The
replay, which shares cores smoothly, knows no such waits: what it says is the least, and all that was waited the most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from loaderprof.advise.change import Change, RunFacts
from loaderprof.diagnose.loop_context import MANY_TENSORS, LoopContext, many_tensors, piped, piped_arrays, sampler_of
from loaderprof.diagnose.verdict import MIN_GAIN
from loaderprof.findings import Costs
from loaderprof.replay.edits import RECEIVE_PER_TENSOR_S, RECEIVE_S, SHARE_PER_BYTE_S, with_settings
from loaderprof.replay.model import LoopModel

# What a batch is stacked into: well done, as a rule, and less well done.
FEWEST, FEW, LESS_FEW = 1.0, 4.0, 8.0
# A batch's fixed cost, in tensors: what receiving none of them costs.
FIXED_TENSORS = RECEIVE_S / RECEIVE_PER_TENSOR_S
# torch.stack of small tensors and taking them apart again, by tensor; measured on a 2-core machine.
STACK_PER_TENSOR_S = 4e-6
# What a batch costs in the loop's own process is known this well from its cost in a worker: there libraries use more
# threads, and the step competes for caches.
MAKING_DOUBT = 1.3
# A sampler that is made cheaper keeps half of its cost, a quarter, or nothing.
SAMPLER_KEPT = (0.5, 0.25, 0.0)
_AT_ONCE = (
    "def __iter__(self):\n    indices = torch.multinomial(self.weights, len(self), replacement=True)\n"
    "    yield from indices.tolist()"
)
_FEWER = "sampler = RandomSampler(dataset, replacement=True, num_samples=samples)"


def _tensors(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Data that is pickled through the pipe: tensors pass through shared memory."""
    if not base.settings.num_workers or context.gain("handover") < MIN_GAIN or not piped(context):
        return
    arrays = piped_arrays(context)
    held = max(1.0, context.batch_tensors or 1.0)
    size = context.batch_bytes if arrays else context.pickled_bytes
    if arrays and held < MANY_TENSORS:
        action, counts = "Return tensors, not arrays: they pass through shared memory", (held, held, held)
        code = "def collate(samples):\n    return torch.from_numpy(np.stack(samples))"
    else:
        what = "arrays" if arrays else "objects"
        action, counts = f"Turn {what} into a few tensors: they pass through shared memory", (LESS_FEW, FEW, FEWEST)
        code = "# in the dataset, once: what a sample holds as one tensor\nself.boxes = torch.tensor([[b.x, b.y] for b in boxes])"
    pickled = context.parts.pickle_s or 0.0
    # Objects are walked through to make tensors of them, which is about what pickling does; or that is done only once.
    packing = (0.0, 0.0, 0.0) if arrays else (pickled, 0.5 * pickled, 0.0)
    models = [
        _delivered(
            base,
            context,
            RECEIVE_PER_TENSOR_S * count + SHARE_PER_BYTE_S * (size or 0.0) + cost,
            RECEIVE_S + RECEIVE_PER_TENSOR_S * count,
        )
        for count, cost in zip(counts, packing, strict=True)
    ]
    change = _spanning(
        base,
        models,
        "shared-memory",
        action,
        f"{(context.pickled_bytes or 0.0) / (1 << 20):.3g} MiB of every batch are pickled, written to a pipe, read and unpickled.",
        context.loop.facts.where,
        {"kind": "code", "batches": "tensors"},
        {"batches": "arrays" if arrays else "objects"},
        Costs(0.0, int(size or 0.0), "a line in collate_fn"),
        code,
    )
    yield _unhindered(context, change, models[-1])


def _stacked(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Many tensors: each has a file in shared memory, and a round trip to be received."""
    if (
        not base.settings.num_workers
        or context.gain("handover") < MIN_GAIN
        or piped(context)
        or not many_tensors(context)
    ):
        return
    held, size = context.batch_tensors or 1.0, context.batch_bytes or 0.0
    pickled = context.parts.pickle_s or 0.0
    copying = min(pickled, SHARE_PER_BYTE_S * size)
    received = max(0.0, base.costs.receive_cpu_s - (context.parts.index_s or 0.0))
    models = []
    for count in (LESS_FEW, FEW, FEWEST):
        kept = (count + FIXED_TENSORS) / (held + FIXED_TENSORS)
        # Stacking copies the batch once more.
        stacking = STACK_PER_TENSOR_S * held + SHARE_PER_BYTE_S * size
        sending = copying + (pickled - copying) * kept + stacking
        models.append(_delivered(base, context, sending, received * kept, base.costs.answer_cpu_s * kept))
    change = _spanning(
        base,
        models,
        "fewer-tensors",
        "Stack what a batch holds into a few tensors in collate_fn",
        f"A batch holds {held:.0f} tensors; each has a file in shared memory that is made, sent and mapped by itself.",
        context.loop.facts.where,
        {"kind": "code", "tensors": round(FEW)},
        {"tensors": round(held)},
        Costs(0.0, 0, "a few lines in collate_fn and in the loop"),
        "def collate(samples):\n    return torch.stack([box for sample in samples for box in sample])",
    )
    yield _unhindered(context, change, models[-1])


def _no_workers(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Handing over costs more than making does: the training process makes its batches itself."""
    if not base.settings.num_workers or context.gain("handover") < MIN_GAIN:
        return
    models = in_process(base)
    change = _spanning(
        base,
        models,
        "no-workers",
        f"Make batches in the training process: num_workers=0, not {context.loop.num_workers}",
        "Handing a batch over costs more than making it does.",
        context.loop.facts.where,
        {"num_workers": 0},
        {"num_workers": context.loop.num_workers},
        Costs(-float(context.loop.num_workers), 0, "one argument"),
        f"{context.loop.name} = DataLoader(..., num_workers=0)",
    )
    # One run with workers cannot promise this where it may as well lose.
    if (change.floor or 0.0) >= 1.0 + MIN_GAIN:
        yield _unhindered(context, change, models[-1])


def in_process(base: LoopModel) -> list[LoopModel]:
    """Return the model without workers, as it may be at worst, likely and at best."""
    alone = with_settings(base, num_workers=0)
    return [
        replace(alone, costs=replace(alone.costs, fetch_cpu_s=alone.costs.fetch_cpu_s * doubt))
        for doubt in (MAKING_DOUBT, 1.0, 1.0 / MAKING_DOUBT)
    ]


def _sampler(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Indices are drawn by the loop's own thread, so that no worker helps."""
    index = context.parts.index_s or 0.0
    if context.gain("sampler") < MIN_GAIN:
        return
    costs = base.costs
    models = [
        replace(
            base,
            costs=replace(
                costs,
                receive_cpu_s=max(0.0, costs.receive_cpu_s - (1 - kept) * index),
                epoch_gap_s=costs.epoch_gap_s * kept,
            ),
        )
        for kept in SAMPLER_KEPT
    ]
    by_batch = index * base.batches_per_epoch >= costs.epoch_gap_s
    name = sampler_of(context.loop).rsplit(".", 1)[-1]
    yield _spanning(
        base,
        models,
        "cheaper-sampler",
        "Make the sampler cheaper: draw the indices of an epoch at once"
        if by_batch
        else "Make the sampler cheaper: draw only the indices that an epoch takes",
        f"{name} takes {index * 1e3:.2g} ms a batch of the training process itself, which workers cannot take over."
        if by_batch
        else f"{name} takes {costs.epoch_gap_s:.2g} s at the start of every epoch, before the first batch.",
        context.sampler_where,
        {"kind": "code", "operator": name},
        {"s_per_batch": round(index, 6), "s_per_epoch": round(costs.epoch_gap_s, 6)},
        Costs(0.0, None, "code"),
        # What a sampler of the user's draws, and whether anew after each batch, only they know.
        (_AT_ONCE if by_batch else _FEWER) if sampler_of(context.loop).startswith("torch.") else "",
    )


def _delivered(
    base: LoopModel, context: LoopContext, sending_s: float, receiving_s: float, answer_s: float = 0.0
) -> LoopModel:
    """Return the model in which a batch takes so long to be pickled, received, and answered for."""
    costs = base.costs
    making = np.maximum(costs.fetch_cpu_s - (context.parts.pickle_s or 0.0), 0.0)
    index = min(context.parts.index_s or 0.0, costs.receive_cpu_s)
    return replace(
        base,
        costs=replace(costs, fetch_cpu_s=making + sending_s, receive_cpu_s=index + receiving_s, answer_cpu_s=answer_s),
    )


def _spanning(
    base: LoopModel,
    models: list[LoopModel],
    id_: str,
    action: str,
    why: str,
    where: str | None,
    change: dict[str, object],
    current: dict[str, object],
    costs: Costs,
    code: str,
) -> Change:
    """Return a change that gains at least what the first model does, at most what the last does, and likely the middle."""
    worst, likely, best = models
    before = base.pace_s()
    low, high = before / worst.pace_s(), before / best.pace_s()
    return Change(id_, action, why, where, change, current, likely, costs, code, low, high)


def _unhindered(context: LoopContext, change: Change, best: LoopModel) -> Change:
    """Return the change with all as its most that was waited: as if nobody were in the way of the loop and its workers."""
    measured = (context.loop.mean(context.loop.wait) or 0.0) + (context.loop.mean(context.loop.step) or 0.0)
    alone = replace(best, neighbours=0.0).run().steady_step_s
    most = measured / alone if alone > 0 else 0.0
    return replace(change, ceiling=max(change.ceiling or 0.0, most))


DELIVERY_RULES: tuple[Callable[[LoopContext, LoopModel, RunFacts], Iterator[Change]], ...] = (
    _tensors,
    _stacked,
    _no_workers,
    _sampler,
)
