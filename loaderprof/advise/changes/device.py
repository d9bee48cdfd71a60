"""Changes to what passes between host and device: pinned batches, copies beside the step, decoding on the GPU.

None of them has been measured on a GPU yet (docs/gpu.md): their intervals reach down to what needs no assumption. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from loaderprof import formatting
from loaderprof.advise.change import Change, ChangeGuide, RunFacts, rule
from loaderprof.diagnose.loop_context import LoopContext, pageable
from loaderprof.diagnose.verdict import MIN_GAIN
from loaderprof.findings import Costs
from loaderprof.replay.edits import with_costs, with_settings
from loaderprof.replay.model import LoopModel
from loaderprof.replay.removal import remove_stage

# What a copy from pinned memory reaches of its link's full speed.
PINNED_OF_LINK = 0.8
# A GPU that stands idle this share of a step has time to decode.
IDLE = 0.3
# Cores that the pinning thread takes.
PINNING_CORES = 0.2

PIN_MEMORY = ChangeGuide(
    "pin-memory",
    "`pin_memory=True` on a GPU: a thread receives and pins batches beside the training thread",
    setting=True,
)


@rule(PIN_MEMORY)
def pin_memory(context: LoopContext, base: LoopModel, facts: RunFacts) -> Iterator[Change]:
    """Receive and pin batches in a thread of their own, and copy them without waiting."""
    if not facts.cuda or not base.settings.num_workers or base.settings.pin_memory:
        return
    pinned, copy = with_settings(base, pin_memory=True), context.parts.copy_s
    why = "Batches are received on the training thread; a pinning thread would receive them beside it."
    likely, floor, ceiling = pinned, None, None
    if pageable(context) and copy is not None and base.costs.device_step_s is not None:
        least = context.parts.copies.least_s if context.parts.copies is not None else None
        why = f"Copying a batch from pageable memory takes {formatting.duration(copy)} of a step"
        why += f"; the link would take {formatting.duration(least)}." if least is not None else "."
        if least is not None:
            likely = _copying(pinned, copy, min(copy, least / PINNED_OF_LINK))
        floor = base.pace_s() / pinned.pace_s()
        # A copy that runs while the step before it goes on takes none of the device's time.
        ceiling = base.pace_s() / _copying(pinned, copy, 0.0).pace_s()
    yield Change(
        id=PIN_MEMORY.id,
        action="Pin batches (pin_memory=True) and copy with non_blocking=True",
        why=why,
        where=context.loop.facts.where,
        change={"pin_memory": True},
        current={"pin_memory": False},
        model=likely,
        costs=Costs(PINNING_CORES, int(2 * context.batch_bytes) if context.batch_bytes else None, "one argument"),
        code=f"{context.loop.name} = DataLoader(..., pin_memory=True)",
        floor=floor,
        ceiling=ceiling,
    )


def _copying(base: LoopModel, now_s: float, then_s: float) -> LoopModel:
    """Return the model whose copies take `then_s` in place of `now_s`."""
    own = base.costs.device_step_s
    if own is None or now_s <= 0:
        return base
    # Copies cannot take more than the whole step.
    kept = max(0.0, 1.0 - (now_s - then_s) / float(own.mean()))
    return with_costs(base, device_step_s=own * kept)


OVERLAPPED_COPY = ChangeGuide(
    "overlapped-copy",
    "Copy the next batch on a stream of its own, while the step goes on",
    code=(
        "with torch.cuda.stream(side):\n    following = next(batches).to(device, non_blocking=True)\n"
        "step(batch)\ntorch.cuda.current_stream().wait_stream(side)\n"
        "following.record_stream(torch.cuda.current_stream())"
    ),
)


@rule(OVERLAPPED_COPY)
def overlapped_copy(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Copy the next batch while the step goes on, where the step waits for copies from pinned memory."""
    hidden = remove_stage(base, "copy", context.parts)
    if hidden is None or pageable(context) or context.gain("copy") < MIN_GAIN:
        return
    yield Change(
        id=OVERLAPPED_COPY.id,
        action=OVERLAPPED_COPY.action,
        why=f"The copy is {formatting.duration(context.parts.copy_s or 0.0)} of a step, in which the device does nothing else.",
        where=context.loop.facts.where,
        change={"kind": "code", "copy": "overlapped"},
        current={"copy": "in the step"},
        model=hidden,
        costs=Costs(0.0, int(context.batch_bytes) if context.batch_bytes else None, "a few lines in the loop"),
        code=OVERLAPPED_COPY.code,
        floor=1.0,
    )


GPU_DECODE = ChangeGuide(
    "gpu-decode",
    "Decode on the GPU where it has time to spare (nvJPEG by `torchvision.io.decode_jpeg(..., device='cuda')`, or DALI)",
    code='images = torchvision.io.decode_jpeg(encoded, device="cuda")  # a batch of encoded files at once, in the loop',
)


@rule(GPU_DECODE)
def gpu_decode(context: LoopContext, base: LoopModel, facts: RunFacts) -> Iterator[Change]:
    """Decode on the GPU, where decoding limits the job and the GPU is idle; how long it takes there was not measured."""
    starved, step = context.loop.starved, context.loop.mean(context.loop.step) or 0.0
    decoded = remove_stage(base, "decode", context.parts)
    images = any("jp" in name.lower() or name.startswith(("PIL.", "cv2.im")) for name in context.operators)
    if not facts.cuda or decoded is None or not images or context.gain("decode") < MIN_GAIN or not len(starved):
        return
    idle = float(starved.mean())
    if idle < IDLE * (idle + step) or base.costs.device_step_s is None:
        return
    # The change only pays where decoding takes the GPU less than its idle time: half of that is assumed.
    likely = with_costs(decoded, device_step_s=base.costs.device_step_s + 0.5 * idle)
    yield Change(
        id=GPU_DECODE.id,
        action="Decode images on the GPU, which has time to spare (torchvision.io.decode_jpeg, or DALI)",
        why=f"Decoding limits the job, and the device has nothing to do {formatting.duration(idle)} of every step; what it would take "
        "to decode was not measured.",
        where=context.named("decode") or None,
        change={"kind": "decoder", "decoder": "gpu"},
        current={"decoder": "cpu"},
        model=likely,
        costs=Costs(0.0, None, "code, and memory of the GPU"),
        code='images = torchvision.io.decode_jpeg(encoded, device="cuda")',
        floor=1.0,
        cheaper=frozenset({"decode"}),
    )
