"""Changes to datasets that are streamed from shards, in the words of the library that streams them. Pure.

A dataset whose shards do not fit into its library's local cache fetches them anew in every epoch. What the loop would
gain without that, one run cannot predict: the fetching goes on beside the making of batches.
"""

from __future__ import annotations

from collections.abc import Iterator

from loaderprof import formatting
from loaderprof.advise.change import Change, ChangeGuide, RunFacts, rule
from loaderprof.diagnose.loop_context import LoopContext
from loaderprof.findings import Costs
from loaderprof.replay.edits import with_settings
from loaderprof.replay.model import LoopModel

# A larger cache is advised from these shares on: of the shards fetched again in an epoch, of the time that the loop waits.
MIN_FETCHED, MIN_WAITING = 0.1, 0.1
# Of its shards, what a library needs in the cache: it counts its index and what it unpacks as well.
ROOM = 1.1

MORE_SHARDS = ChangeGuide(
    "more-shards",
    "Split a streamed dataset into as many shards as there are workers, or a multiple: those without one are idle",
    code="dataset.to_iterable_dataset(num_shards=8)  # Hugging Face datasets; others: more files",
)
_SHARDED = {
    "datasets": "dataset.to_iterable_dataset(num_shards={0})  # of a stream: as many files in data_files",
    "webdataset": "wds.ShardWriter('train-%06d.tar', maxcount=samples // {0})  # once",
}


@rule(MORE_SHARDS)
def more_shards(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Split the dataset into more shards, where there are fewer than workers, so that some make nothing."""
    idle, workers = context.loop.idle_workers, context.loop.num_workers
    if not idle or base.settings.num_workers >= workers:
        return
    shards = context.loop.facts.shards or 0
    library = str(context.loop.facts.dataset).partition(".")[0]
    yield Change(
        id=MORE_SHARDS.id,
        action=f"Split the dataset into {workers} shards or a multiple, in place of {shards}",
        why=f"{workers} workers share {shards} {'shard' if shards == 1 else 'shards'}: {idle} of them made no batch.",
        where=context.loop.facts.where,
        change={"kind": "code", "shards": workers},
        current={"shards": shards},
        model=with_settings(base, num_workers=workers),
        costs=Costs(float(idle), None, "the data written once more, or one argument"),
        code=_SHARDED.get(library, "# write the data as {0} files, or as a multiple").format(workers),
    )


LARGER_CACHE = ChangeGuide(
    "larger-cache",
    "Let the local cache of a streamed dataset hold all of its shards (`cache_limit` of mosaicml-streaming, "
    "`max_cache_size` of litdata): else they are fetched anew in every epoch",
    code='StreamingDataset(..., cache_limit="200gb")',
)
FEWER_CANONICAL_NODES = ChangeGuide(
    "fewer-canonical-nodes",
    "Let a machine read fewer places of a mosaicml-streaming dataset by turns (`num_canonical_nodes`), so that "
    "their shards lie in its local cache together",
    code="StreamingDataset(..., num_canonical_nodes=1)  # one a machine",
)


@rule(LARGER_CACHE, FEWER_CANONICAL_NODES, predicted=False)
def shard_cache(context: LoopContext, base: LoopModel, _: RunFacts) -> Iterator[Change]:
    """Keep more shards, or need fewer at a time, where they were dropped from the local cache and fetched again."""
    facts, reads = context.loop.facts, context.parts.reads
    knob, limit, stored = facts.cache_knob, facts.cache_bytes, facts.stored_bytes
    if knob is None or not limit or reads is None or reads.written_again is None or (stored or limit + 1) <= limit:
        return
    wait, step = context.loop.mean(context.loop.wait) or 0.0, context.loop.mean(context.loop.step) or 0.0
    # What is pickled into a pipe is counted as written, too.
    fetched = reads.written_again - (context.pickled_bytes or 0.0) * context.loop.epochs[0].batches
    if fetched < MIN_FETCHED * (stored or limit) or wait < MIN_WAITING * (wait + step):
        return
    needed = int(ROOM * stored) if stored else None
    held = f" of {formatting.size(stored)}" if stored else ""
    disk = f", and {formatting.size(needed - limit)} of local disk" if needed else ", and local disk"
    yield Change(
        id=LARGER_CACHE.id,
        action=f"Raise {knob} from {formatting.size(limit)} to {formatting.size(needed)}"
        if needed
        else f"Raise {knob} above {formatting.size(limit)}",
        why=f"Workers fetched {formatting.size(fetched)} of shards anew in each epoch after the first: {formatting.size(limit)}{held} are kept.",
        where=facts.where,
        change={"kind": "code", **({knob: needed} if needed else {})},
        current={knob: limit},
        model=base,
        costs=Costs(0.0, 0, f"one argument{disk}"),
        code=f"StreamingDataset(..., {knob}={needed or 'as large as the dataset'})",
    )
    places = facts.canonical_nodes or 1
    if places > 1:
        yield Change(
            id=FEWER_CANONICAL_NODES.id,
            action=f"Lower num_canonical_nodes to the number of machines: {places:g} times fewer",
            why=f"Each machine reads {places:g} places of the dataset by turns, whose shards do not lie in {formatting.size(limit)} all at once.",
            where=facts.where,
            change={"kind": "code"},
            current={"canonical_nodes_per_machine": places},
            model=base,
            costs=Costs(0.0, 0, "one argument; samples from fewer places stand side by side"),
            code=FEWER_CANONICAL_NODES.code,
        )
