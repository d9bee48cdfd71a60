"""Changes to what is stored, read and sent: a cache in memory or on disk, shards, bytes in place of floats, an earlier crop.

What a change of code leaves is assumed to be more or less: its interval spans both, down to no gain where one run knows
nothing of the storage that it would meet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from loaderprof.advise.change import Change, Rule, RunFacts
from loaderprof.diagnose.loop_context import LoopContext, of_tensors, small_files
from loaderprof.diagnose.verdict import MIN_GAIN
from loaderprof.findings import Costs
from loaderprof.replay.edits import SHARE_PER_BYTE_S, UNMAP_PER_BYTE_S, faster
from loaderprof.replay.model import LoopModel
from loaderprof.replay.removal import remove_stage

CACHE_SHARE_OF_MEMORY = 0.5
MIN_CACHED = 0.2
# Of reading small files one by one, what reading the same bytes in a row leaves: at worst, likely, at best.
SHARDED_KEPT = (1.0, 0.5, 0.1)
# A batch is mostly floats from this share of its bytes on; an element that is sent as one byte has a quarter of them.
MOSTLY_FLOATS, BYTE_OF_FLOAT = 0.9, 0.25
# Seconds a byte of floats made from bytes in the training process, mean and deviation taken out; and of making a tensor
# of floats, what making one of bytes takes (PILToTensor against ToTensor). Measured on one core of a 2-core machine.
TO_FLOAT_PER_BYTE_S, BYTES_KEPT = 0.1e-9, 0.3
# What cutting a sample to size first leaves of the work on floats: at worst, likely, at best.
CROPPED_KEPT = (1.0, 0.6, 0.25)
_TO_FLOAT = re.compile(r"(?i)to_?tensor|to_?float|convert_?image|to_?dtype|normali[sz]e|astype")
_SMALLER = re.compile(r"(?i)crop|resize|rescale")


def _cache(context: LoopContext, base: LoopModel, facts: RunFacts) -> Iterator[Change]:
    """Samples kept as they are read and decoded: in memory where they fit, else as arrays on disk."""
    if of_tensors(context):
        return
    samples, size = context.loop.facts.samples, facts.bytes_per_sample
    decoding = context.share("decode") or 0.0
    share = (context.share("read") or 0.0) + decoding
    if not samples or not size or not facts.available_memory or share < MIN_CACHED:
        return
    needed = int(samples * size)
    decoded = remove_stage(base, "decode", context.parts) or base
    where = context.named("decode") or context.named("read") or None
    if needed > CACHE_SHARE_OF_MEMORY * facts.available_memory:
        if decoding >= MIN_CACHED:
            yield _on_disk(context, base, decoded, needed, where)
        return
    # What comes out of the loader is known; what stands between decoding and a crop is not.
    kept = (context.share("transform") or 0.0) < 0.05
    fit = (
        f"all {samples} samples fit in memory" if kept else f"what its {samples} samples take decoded was not measured"
    )
    yield Change(
        "cache-in-memory",
        "Cache samples in memory, before what is random: gains from the second epoch on",
        f"Reading and decoding are {share:.0%} of making a batch, and {fit}.",
        where,
        {"kind": "cache", "place": "memory"},
        {"cache": None},
        remove_stage(decoded, "read", context.parts) or decoded,
        Costs(0.0, needed if kept else None, "a few lines"),
        "# in the dataset: fill once, before the workers start, then index\nself.cache = [self.load(i) for i in range(len(self))]",
        cheaper=frozenset({"read", "decode"}),
    )


def _on_disk(context: LoopContext, base: LoopModel, decoded: LoopModel, needed: int, where: str | None) -> Change:
    asked, now = context.parts.asked_bytes or 0.0, context.batch_bytes or 0.0
    # Decoded, a sample is read as more bytes: as many as it has in the batch, or as bytes where those are floats.
    longer = max(1.0, now / asked) if asked > 0 else 1.0
    worst = faster(decoded, context.parts, "read", 1.0 / longer)
    before = base.pace_s()
    return Change(
        "cache-on-disk",
        "Store samples decoded, as arrays in one file that is mapped: gains from the second epoch on",
        f"Decoding is {context.share('decode') or 0.0:.0%} of making a batch, and {needed / (1 << 30):.3g} GiB of samples do "
        "not fit in memory.",
        where,
        {"kind": "cache", "place": "disk"},
        {"cache": None},
        faster(decoded, context.parts, "read", 1.0 / max(1.0, longer * BYTE_OF_FLOAT)),
        Costs(0.0, 0, "a script that runs once"),
        "decoded = np.lib.format.open_memmap('decoded.npy', 'w+', np.uint8, (len(files), *shape))  # filled once\n"
        "decoded = np.load('decoded.npy', mmap_mode='r')  # in the dataset",
        min(1.0, before / worst.pace_s()),
        cheaper=frozenset({"decode"}),
    )


def _shards(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Many small files, each opened and looked for by itself: the same bytes in a few large ones, read in a row."""
    if not small_files(context):
        return
    slow, likely, best = (faster(base, context.parts, "read", 1.0 / kept) for kept in SHARDED_KEPT)
    before = base.pace_s()
    opened = context.parts.reads.opened if context.parts.reads is not None else None
    yield Change(
        "shards",
        "Pack the small files into a few large ones, and read these in a row",
        f"A batch opens {opened or 0.0:.0f} small files, one after another.",
        context.named("read") or None,
        {"kind": "code", "storage": "shards"},
        {"storage": "files"},
        likely,
        Costs(0.0, 0, "a script that runs once"),
        "with tarfile.open('train-000.tar', 'w') as shard:  # once; then webdataset.WebDataset('train-{000..099}.tar')\n"
        "    for file in files[:1000]:\n        shard.add(file)",
        before / slow.pace_s(),
        before / best.pace_s(),
        cheaper=frozenset({"read"}),
    )


def _as_bytes(context: LoopContext, base: LoopModel, facts: RunFacts) -> Iterator[Change]:
    """Images made floats in the workers: four times the bytes to hand over, and to copy to a device."""
    floats = (context.float_share or 0.0) >= MOSTLY_FLOATS
    making = [piece for piece in context.parts.pieces if piece.stage == "transform" and _TO_FLOAT.search(piece.name)]
    if not (floats and making and context.share("decode") and context.batch_bytes and base.settings.num_workers):
        return
    costs, bytes_ = base.costs, context.batch_bytes
    less = (1.0 - BYTES_KEPT) * sum(piece.cpu_s for piece in making) + (1.0 - BYTE_OF_FLOAT) * SHARE_PER_BYTE_S * bytes_
    # On a device making them floats is nothing beside the step; without one the step does it.
    more = 0.0 if facts.cuda else TO_FLOAT_PER_BYTE_S * bytes_
    unmapped = (1.0 - BYTE_OF_FLOAT) * UNMAP_PER_BYTE_S * bytes_
    model = replace(
        base,
        costs=replace(
            costs,
            fetch_cpu_s=np.maximum(costs.fetch_cpu_s - less, 0.0),
            step_cpu_s=np.maximum(costs.step_cpu_s + more - unmapped, 0.0),
        ),
    )
    yield Change(
        "uint8-batches",
        "Send images as uint8, and make them floats after the copy to the device",
        f"A batch is {bytes_ / (1 << 20):.3g} MiB of floats, made from bytes in the workers and handed over as four times "
        "as many.",
        making[0].where,
        {"kind": "code", "batches": "uint8"},
        {"batches": "float"},
        model,
        Costs(0.0, 0, "a few lines"),
        "# PILToTensor() in place of ToTensor(), without Normalize(); then in the loop\n"
        "images = images.to(device, non_blocking=True).float().div_(255).sub_(mean).div_(std)",
        1.0,
        cheaper=frozenset({"transform"}),
    )


def _crop_first(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Transforms that make a whole image floats and then take a part of it, or shrink it."""
    names = str(context.loop.facts.transforms or "").split(", ")
    first = next((number for number, name in enumerate(names) if _TO_FLOAT.search(name)), len(names))
    later = next((name for name in names[first:] if _SMALLER.search(name)), None)
    if later is None or context.gain("transform") < MIN_GAIN:
        return
    worst, likely, best = (faster(base, context.parts, "transform", 1.0 / kept) for kept in CROPPED_KEPT)
    before = base.pace_s()
    yield Change(
        "crop-first",
        f"Put {later} before {names[first]}: cut samples to size while they are bytes",
        f"{names[first]} works on whole samples, of which {later} then takes a part or a smaller copy.",
        context.loop.facts.dataset_where,
        {"kind": "code", "first": later},
        {"first": names[first]},
        likely,
        Costs(0.0, 0, "one line moved"),
        f"Compose([..., {later}(...), ..., {names[first]}(...)])",
        before / worst.pace_s(),
        before / best.pace_s(),
        cheaper=frozenset({"transform"}),
    )


DATA_RULES: tuple[Rule, ...] = (_cache, _shards, _as_bytes, _crop_first)
