"""Changes to what passes between host and device: pinned batches, copies beside the step, decoding on the GPU.

None of them has been measured on a GPU yet (docs/gpu.md): their intervals reach down to what needs no assumption.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from loaderprof.advise.change import Change, Rule, RunFacts
from loaderprof.diagnose.loop_context import LoopContext, pageable
from loaderprof.diagnose.verdict import MIN_GAIN
from loaderprof.findings import Costs
from loaderprof.replay.edits import with_settings
from loaderprof.replay.model import LoopModel
from loaderprof.replay.removal import remove_stage

# What a copy from pinned memory reaches of its link's full speed.
PINNED_OF_LINK = 0.8
# A GPU that stands idle this share of a step has time to decode.
IDLE = 0.3


def _pin(context: LoopContext, base: LoopModel, facts: RunFacts) -> Iterator[Change]:
    if not facts.cuda or not base.settings.num_workers or base.settings.pin_memory:
        return
    pinned, copy = with_settings(base, pin_memory=True), context.parts.copy_s
    why = "Batches are received on the training thread; a pinning thread would receive them beside it."
    likely, ceiling = pinned, None
    if pageable(context) and copy is not None and base.costs.device_step_s is not None:
        least = context.parts.copies.least_s if context.parts.copies is not None else None
        why = f"Copying a batch from pageable memory takes {copy * 1e3:.3g} ms of a step"
        why += f"; the link would take {least * 1e3:.3g} ms." if least is not None else "."
        if least is not None:
            likely = _copying(pinned, copy, min(copy, least / PINNED_OF_LINK))
        # Copied while the step before it goes on, it takes none of the device's time.
        ceiling = base.pace_s() / _copying(pinned, copy, 0.0).pace_s()
    yield Change(
        "pin-memory",
        "Pin batches (pin_memory=True) and copy with non_blocking=True",
        why,
        context.loop.facts.where,
        {"pin_memory": True},
        {"pin_memory": False},
        likely,
        Costs(0.2, int(2 * context.batch_bytes) if context.batch_bytes else None, "one argument"),
        f"{context.loop.name} = DataLoader(..., pin_memory=True)",
        base.pace_s() / pinned.pace_s() if ceiling is not None else None,
        ceiling,
    )


def _overlap(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Copies from pinned memory that the step waits for: the next batch copied on a stream of its own."""
    hidden = remove_stage(base, "copy", context.parts)
    if hidden is None or pageable(context) or context.gain("copy") < MIN_GAIN:
        return
    yield Change(
        "overlapped-copy",
        "Copy the next batch on a stream of its own, while the step goes on",
        f"The copy is {(context.parts.copy_s or 0.0) * 1e3:.3g} ms of a step, in which the device does nothing else.",
        context.loop.facts.where,
        {"kind": "code", "copy": "overlapped"},
        {"copy": "in the step"},
        hidden,
        Costs(0.0, int(context.batch_bytes) if context.batch_bytes else None, "a few lines in the loop"),
        "with torch.cuda.stream(side):\n    following = next(batches).to(device, non_blocking=True)\n"
        "step(batch)\ntorch.cuda.current_stream().wait_stream(side)\n"
        "following.record_stream(torch.cuda.current_stream())",
        1.0,
    )


def _gpu_decode(context: LoopContext, base: LoopModel, facts: RunFacts) -> Iterator[Change]:
    """Decoding limits the job and the GPU is idle: it may decode, which takes of its time what was not measured."""
    starved, step = context.loop.starved, context.loop.mean(context.loop.step) or 0.0
    decoded = remove_stage(base, "decode", context.parts)
    images = any("jp" in name.lower() or name.startswith(("PIL.", "cv2.im")) for name in context.operators)
    if not facts.cuda or decoded is None or not images or context.gain("decode") < MIN_GAIN or not len(starved):
        return
    idle = float(starved.mean())
    if idle < IDLE * (idle + step) or base.costs.device_step_s is None:
        return
    # The GPU decodes for no longer than it stands idle now, or the change is none: half of that is as likely as any.
    likely = replace(decoded, costs=replace(decoded.costs, device_step_s=base.costs.device_step_s + 0.5 * idle))
    yield Change(
        "gpu-decode",
        "Decode images on the GPU, which has time to spare (torchvision.io.decode_jpeg, or DALI)",
        f"Decoding limits the job, and the device has nothing to do {idle * 1e3:.3g} ms of every step; what it would take "
        "to decode was not measured.",
        context.named("decode") or None,
        {"kind": "decoder", "decoder": "gpu"},
        {"decoder": "cpu"},
        likely,
        Costs(0.0, None, "code, and memory of the GPU"),
        'images = torchvision.io.decode_jpeg(encoded, device="cuda")',
        1.0,
        cheaper=frozenset({"decode"}),
    )


def _copying(base: LoopModel, now_s: float, then_s: float) -> LoopModel:
    """Return the model whose copies take so long in place of what they take now."""
    own = base.costs.device_step_s
    if own is None or now_s <= 0:
        return base
    # More than the whole step it cannot be.
    kept = max(0.0, 1.0 - (now_s - then_s) / float(own.mean()))
    return replace(base, costs=replace(base.costs, device_step_s=own * kept))


DEVICE_RULES: tuple[Rule, ...] = (_pin, _overlap, _gpu_decode)
