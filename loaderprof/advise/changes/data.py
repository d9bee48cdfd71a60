"""Changes to what is stored and sent: a cache in memory or on disk, shards, bytes in place of floats, an earlier crop.

How much such a change leaves of a cost is assumed, as a range: the interval of its gain spans that range, down to no gain
where one run shows nothing of the storage that would be read instead. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from loaderprof import formatting
from loaderprof.advise.change import Change, ChangeGuide, RunFacts, rule
from loaderprof.diagnose.causes.device import MOSTLY_FLOATS
from loaderprof.diagnose.loop_context import LoopContext, of_tensors, small_files
from loaderprof.diagnose.verdict import MIN_GAIN
from loaderprof.findings import Costs
from loaderprof.replay.edits import SHARE_PER_BYTE_S, UNMAP_PER_BYTE_S, faster, with_costs
from loaderprof.replay.model import LoopModel
from loaderprof.replay.removal import remove_stage

# A cache may take this share of the memory that is free, and is offered from this share of making a batch on.
CACHE_SHARE_OF_MEMORY, MIN_CACHED = 0.5, 0.2
# Transforms that take less than this of making a batch do not make samples smaller after they were decoded.
NO_TRANSFORM = 0.05
# Of reading small files one by one, what reading the same bytes in a row leaves: at worst, likely, at best.
SHARDED_KEPT = (1.0, 0.5, 0.1)
# An element that is sent as one byte has this share of a float's bytes.
BYTE_OF_FLOAT = 0.25
# Seconds a byte of floats made from bytes in the training process, mean and deviation taken out; and of making a tensor
# of floats, what making one of bytes takes (PILToTensor against ToTensor). Measured on one core of a 2-core machine.
TO_FLOAT_PER_BYTE_S, BYTES_KEPT = 0.1e-9, 0.3
# What cutting a sample to size first leaves of the work on floats: at worst, likely, at best.
CROPPED_KEPT = (1.0, 0.6, 0.25)
_TO_FLOAT = re.compile(r"(?i)to_?tensor|to_?float|convert_?image|to_?dtype|normali[sz]e|astype")
_SMALLER = re.compile(r"(?i)crop|resize|rescale")

CACHE_IN_MEMORY = ChangeGuide(
    "cache-in-memory",
    "Cache samples in memory, before what is random; it gains from the second epoch on",
    code="self.cache = [self.load(i) for i in range(len(self))]  # in the dataset, before the workers start",
)
CACHE_ON_DISK = ChangeGuide(
    "cache-on-disk",
    "Where samples do not fit in memory: store them decoded, as arrays in one file that is mapped",
    code=(
        'decoded = np.lib.format.open_memmap("decoded.npy", "w+", np.uint8, (len(files), *shape))  # filled once\n'
        'decoded = np.load("decoded.npy", mmap_mode="r")  # in the dataset'
    ),
)


@rule(CACHE_IN_MEMORY, CACHE_ON_DISK)
def cached_samples(context: LoopContext, base: LoopModel, facts: RunFacts) -> Iterator[Change]:
    """Keep samples as they are read and decoded: in memory where they fit, else as arrays on disk."""
    if of_tensors(context):
        return
    samples, size = context.loop.facts.samples, facts.bytes_per_sample
    decoding = context.share("decode") or 0.0
    share = (context.share("read") or 0.0) + decoding
    if not samples or not size or not facts.available_memory or share < MIN_CACHED:
        return
    needed = int(samples * size)
    decoded = remove_stage(base, "decode", context.parts) or base
    if needed > CACHE_SHARE_OF_MEMORY * facts.available_memory:
        if decoding >= MIN_CACHED:
            yield _on_disk(context, base, decoded, needed)
        return
    # The size of a sample is known as the loader returns it, not as it is between decoding and a crop.
    known = (context.share("transform") or 0.0) < NO_TRANSFORM
    fit = f"all {samples} samples fit in memory"
    if not known:
        fit = f"what its {samples} samples take decoded was not measured"
    yield Change(
        id=CACHE_IN_MEMORY.id,
        action="Cache samples in memory, before what is random: gains from the second epoch on",
        why=f"Reading and decoding are {formatting.percent(share, whole=True)} of making a batch, and {fit}.",
        where=context.named("decode") or context.named("read") or None,
        change={"kind": "cache", "place": "memory"},
        current={"cache": None},
        model=remove_stage(decoded, "read", context.parts) or decoded,
        costs=Costs(0.0, needed if known else None, "a few lines"),
        code="# in the dataset: fill once, before the workers start, then index\n"
        "self.cache = [self.load(i) for i in range(len(self))]",
        cheaper=frozenset({"read", "decode"}),
    )


def _on_disk(context: LoopContext, base: LoopModel, decoded: LoopModel, needed: int) -> Change:
    asked, now = context.parts.asked_bytes or 0.0, context.batch_bytes or 0.0
    # A decoded sample has more bytes to read: as many as in the batch, or as bytes where the batch holds floats.
    longer = max(1.0, now / asked) if asked > 0 else 1.0
    worst = faster(decoded, context.parts, "read", 1.0 / longer)
    return Change(
        id=CACHE_ON_DISK.id,
        action="Store samples decoded, as arrays in one file that is mapped: gains from the second epoch on",
        why=f"Decoding is {formatting.percent(context.share('decode') or 0.0, whole=True)} of making a batch, and {formatting.size(needed)} of samples do "
        "not fit in memory.",
        where=context.named("decode") or context.named("read") or None,
        change={"kind": "cache", "place": "disk"},
        current={"cache": None},
        model=faster(decoded, context.parts, "read", 1.0 / max(1.0, longer * BYTE_OF_FLOAT)),
        costs=Costs(0.0, 0, "a script that runs once"),
        code="decoded = np.lib.format.open_memmap('decoded.npy', 'w+', np.uint8, (len(files), *shape))  # filled once\n"
        "decoded = np.load('decoded.npy', mmap_mode='r')  # in the dataset",
        floor=min(1.0, base.pace_s() / worst.pace_s()),
        cheaper=frozenset({"decode"}),
    )


SHARDS = ChangeGuide(
    "shards",
    "Pack small files into a few large ones (tar, LMDB, Parquet, one array), and read these in a row",
    code='webdataset.WebDataset("train-{000..099}.tar", shardshuffle=100).shuffle(1000)',
)


@rule(SHARDS)
def shards(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Read the bytes of many small files, each looked up and opened by itself, from a few large ones in a row."""
    if not small_files(context):
        return
    worst, likely, best = (faster(base, context.parts, "read", 1.0 / kept) for kept in SHARDED_KEPT)
    opened = context.parts.reads.opened if context.parts.reads is not None else None
    yield Change(
        id=SHARDS.id,
        action="Pack the small files into a few large ones, and read these in a row",
        why=f"A batch opens {opened or 0.0:.0f} small files, one after another.",
        where=context.named("read") or None,
        change={"kind": "code", "storage": "shards"},
        current={"storage": "files"},
        model=likely,
        costs=Costs(0.0, 0, "a script that runs once"),
        code="with tarfile.open('train-000.tar', 'w') as shard:  # once; then webdataset.WebDataset('train-{000..099}.tar')\n"
        "    for file in files[:1000]:\n        shard.add(file)",
        cheaper=frozenset({"read"}),
    ).between(base, worst, best)


UINT8_BATCHES = ChangeGuide(
    "uint8-batches",
    "Send images as uint8, and make them floats after the copy to the device: a quarter of the bytes",
    code="images = images.to(device, non_blocking=True).float().div_(255).sub_(mean).div_(std)",
)


@rule(UINT8_BATCHES)
def uint8_batches(context: LoopContext, base: LoopModel, facts: RunFacts) -> Iterator[Change]:
    """Hand images over as bytes: made floats in the workers, they are four times as much to hand over and to copy."""
    floats = (context.float_share or 0.0) >= MOSTLY_FLOATS
    making = [piece for piece in context.parts.pieces if piece.stage == "transform" and _TO_FLOAT.search(piece.name)]
    if not (floats and making and context.share("decode") and context.batch_bytes and base.settings.num_workers):
        return
    costs, bytes_ = base.costs, context.batch_bytes
    less = (1.0 - BYTES_KEPT) * sum(piece.cpu_s for piece in making) + (1.0 - BYTE_OF_FLOAT) * SHARE_PER_BYTE_S * bytes_
    # A device makes floats of them in next to no time; without one it is the step's own work.
    more = 0.0 if facts.cuda else TO_FLOAT_PER_BYTE_S * bytes_
    unmapped = (1.0 - BYTE_OF_FLOAT) * UNMAP_PER_BYTE_S * bytes_
    yield Change(
        id=UINT8_BATCHES.id,
        action="Send images as uint8, and make them floats after the copy to the device",
        why=f"A batch is {formatting.size(bytes_)} of floats, made from bytes in the workers and handed over as four times "
        "as many.",
        where=making[0].where,
        change={"kind": "code", "batches": "uint8"},
        current={"batches": "float"},
        model=with_costs(
            base,
            fetch_cpu_s=np.maximum(costs.fetch_cpu_s - less, 0.0),
            step_cpu_s=np.maximum(costs.step_cpu_s + more - unmapped, 0.0),
        ),
        costs=Costs(0.0, 0, "a few lines"),
        code=f"# PILToTensor() in place of ToTensor(), without Normalize(); then in the loop\n{UINT8_BATCHES.code}",
        floor=1.0,
        cheaper=frozenset({"transform"}),
    )


CROP_FIRST = ChangeGuide(
    "crop-first",
    "Cut samples to size while they are bytes: the crop or the resize before what makes floats of them",
    code="Compose([RandomResizedCrop(224), RandomHorizontalFlip(), ToTensor(), Normalize(mean, std)])",
)


@rule(CROP_FIRST)
def crop_first(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Crop or shrink an image before it is made floats, where transforms do it in the other order."""
    names = str(context.loop.facts.transforms or "").split(", ")
    first = next((number for number, name in enumerate(names) if _TO_FLOAT.search(name)), len(names))
    later = next((name for name in names[first:] if _SMALLER.search(name)), None)
    if later is None or context.gain("transform") < MIN_GAIN:
        return
    worst, likely, best = (faster(base, context.parts, "transform", 1.0 / kept) for kept in CROPPED_KEPT)
    yield Change(
        id=CROP_FIRST.id,
        action=f"Put {later} before {names[first]}: cut samples to size while they are bytes",
        why=f"{names[first]} works on whole samples, of which {later} then takes a part or a smaller copy.",
        where=context.loop.facts.dataset_where,
        change={"kind": "code", "first": later},
        current={"first": names[first]},
        model=likely,
        costs=Costs(0.0, 0, "one line moved"),
        code=f"Compose([..., {later}(...), ..., {names[first]}(...)])",
        cheaper=frozenset({"transform"}),
    ).between(base, worst, best)
