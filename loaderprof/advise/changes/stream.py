"""Changes to datasets that are streamed from shards, in the words of the library that streams them. Pure.

A dataset whose shards do not fit into the local cache that its library was given fetches them anew in every epoch. What
the loop would gain without that, one run cannot tell: the fetching goes on beside the making of batches.
"""

from __future__ import annotations

from collections.abc import Iterator

from loaderprof.advise.change import Change, Rule, RunFacts
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.findings import Costs
from loaderprof.replay.edits import with_settings
from loaderprof.replay.model import LoopModel

# Below these shares of its shards fetched again in an epoch, and of its time that the loop waits, nothing is advised.
MIN_FETCHED, MIN_WAITING = 0.1, 0.1
# A library counts its index and what it unpacks as well.
ROOM = 1.1


def _more_shards(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Fewer shards than workers: those that were given none make nothing."""
    idle, workers = context.loop.idle_workers, context.loop.num_workers
    if not idle or base.settings.num_workers >= workers:
        return
    shards = context.loop.facts.shards or 0
    library = str(context.loop.facts.dataset).partition(".")[0]
    yield Change(
        "more-shards",
        f"Split the dataset into {workers} shards or a multiple, in place of {shards}",
        f"{workers} workers share {shards} {'shard' if shards == 1 else 'shards'}: {idle} of them made no batch.",
        context.loop.facts.where,
        {"kind": "code", "shards": workers},
        {"shards": shards},
        with_settings(base, num_workers=workers),
        Costs(float(idle), None, "the data written once more, or one argument"),
        _SHARDED.get(library, "# write the data as {0} files, or as a multiple").format(workers),
    )


_SHARDED = {
    "datasets": "dataset.to_iterable_dataset(num_shards={0})  # of a stream: as many files in data_files",
    "webdataset": "wds.ShardWriter('train-%06d.tar', maxcount=samples // {0})  # once",
}


def _cache(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Shards that were dropped from the local cache and fetched again: keep more, or need fewer at a time."""
    facts, reads = context.loop.facts, context.parts.reads
    knob, limit, stored = facts.cache_knob, facts.cache_bytes, facts.stored_bytes
    if knob is None or not limit or reads is None or reads.written_again is None or (stored or limit + 1) <= limit:
        return
    wait, step = context.loop.mean(context.loop.wait) or 0.0, context.loop.mean(context.loop.step) or 0.0
    # What is pickled into a pipe is written too.
    fetched = reads.written_again - (context.pickled_bytes or 0.0) * context.loop.epochs[0].batches
    if fetched < MIN_FETCHED * (stored or limit) or wait < MIN_WAITING * (wait + step):
        return
    needed = int(ROOM * stored) if stored else None
    held = f" of {_size(stored)}" if stored else ""
    yield Change(
        "larger-cache",
        f"Raise {knob} from {_size(limit)} to {_size(needed)}" if needed else f"Raise {knob} above {_size(limit)}",
        f"Workers fetched {_size(fetched)} of shards anew in each epoch after the first: {_size(limit)}{held} are kept.",
        facts.where,
        {"kind": "code", **({knob: needed} if needed else {})},
        {knob: limit},
        base,
        Costs(
            0.0, 0, f"one argument{f', and {_size(needed - limit)} of local disk' if needed else ', and local disk'}"
        ),
        f"StreamingDataset(..., {knob}={needed or 'as large as the dataset'})",
    )
    places = facts.canonical_nodes or 1
    if places > 1:
        yield Change(
            "fewer-canonical-nodes",
            f"Lower num_canonical_nodes to the number of machines: {places:g} times fewer",
            f"Each machine reads {places:g} places of the dataset by turns, whose shards do not lie in {_size(limit)} all at once.",
            facts.where,
            {"kind": "code"},
            {"canonical_nodes_per_machine": places},
            base,
            Costs(0.0, 0, "one argument; samples from fewer places stand side by side"),
            "StreamingDataset(..., num_canonical_nodes=1)  # one a machine",
        )


def _size(bytes_: float) -> str:
    return f"{bytes_ / 2**30:.3g} GiB" if bytes_ >= 2**30 else f"{bytes_ / 2**20:.3g} MiB"


STREAM_RULES: tuple[Rule, ...] = (_more_shards,)
# What is seen and can be changed, and whose gain cannot be told beforehand.
UNPREDICTED_RULES: tuple[Rule, ...] = (_cache,)
