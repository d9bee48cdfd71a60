"""What a process of the job wrote about itself and about each loader that it iterated.

Every field is None, or empty, where it was not recorded. Imports the standard library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loaderprof.recording.declared import (
    MAX_COUNT,
    MAX_WORKERS,
    flag,
    moment,
    named_words,
    real,
    scalar,
    text,
    texts,
    whole,
    words,
)


@dataclass(frozen=True, slots=True)
class LoaderFacts:
    """A loader, or another iterable that is watched, as the process that iterates it describes it.

    Attributes:
        number: of the loaders that are described alike, which one this is.
        name: the variable that holds it in the user's code.
        where: `file:line` where it is iterated.
        type: its class, dotted; so are `sampler`, `batch_sampler` and `dataset`.
        start_method: how its workers are started: `fork`, `spawn` or `forkserver`.
        sampler_where: `file:line` of the class of its sampler, `dataset_where` of its dataset.
        collate_fn: the function's dotted name, as `worker_init_fn`.
        iterable: the dataset is an iterable-style one, which every worker goes through.
        samples: how many the dataset or the sampler says it has.
        guarded: the script's main module is protected by `if __name__ == "__main__"`.
        framework: the library that made the loader from settings of its own, and whose settings advice has to name.
        path: of the data, as far as the dataset shows one; may be a URL.
        handle: an open file of a library that must not be shared with forked workers, by its type.
        shards: how many files an iterable dataset is split into.
        splits: the dataset gives each worker a part of its own; False: every worker goes through all of it.
        transforms: the names of what is applied to each sample, with commas between them.
        cache_knob: the setting that bounds what a streamed dataset keeps on local disk; `cache_bytes`: that bound.
        stored_bytes: of all shards as they lie on local disk.
        canonical_nodes: positions of a streamed dataset that each machine reads interleaved.
        watched: it is no DataLoader; how its batches are produced is not known.
        prefetch_batches: of Ray Data: batches fetched ahead of the loop; `local_shuffle_buffer_size`: its samples.
        pipeline: of tf.data: the operations from the output to the source, as JSON.
        tensorflow: its version.
        num_parallel_calls: of tf.data, what `loaderprof` was asked to set; so are `prefetch`, `cache` and
            `private_threadpool_size`.
        written: all that was recorded, by the recording's own names in its own order, with what this version has no
            field for.
    """

    number: int | None = whole()
    name: str | None = text()
    where: str | None = text()
    type: str | None = text()
    num_workers: int | None = whole(0, MAX_WORKERS)
    batch_size: int | None = whole()
    prefetch_factor: int | None = whole(1, MAX_WORKERS)
    persistent_workers: bool | None = flag()
    pin_memory: bool | None = flag()
    in_order: bool | None = flag()
    drop_last: bool | None = flag()
    start_method: str | None = text()
    sampler: str | None = text()
    batch_sampler: str | None = text()
    sampler_where: str | None = text()
    collate_fn: str | None = text()
    worker_init_fn: str | None = text()
    dataset: str | None = text()
    dataset_where: str | None = text()
    iterable: bool | None = flag()
    samples: int | None = whole()
    guarded: bool | None = flag()
    framework: str | None = text()
    path: str | None = text()
    handle: str | None = text()
    shards: int | None = whole()
    splits: bool | None = flag()
    transforms: str | None = text()
    cache_knob: str | None = text()
    cache_bytes: int | None = moment()
    stored_bytes: int | None = moment()
    canonical_nodes: float | None = real()
    watched: bool | None = flag()
    prefetch_batches: int | None = whole()
    local_shuffle_buffer_size: int | None = whole()
    pipeline: str | None = text()
    tensorflow: str | None = text()
    num_parallel_calls: str | float | None = scalar()
    private_threadpool_size: str | float | None = scalar()
    prefetch: str | float | None = scalar()
    cache: str | float | None = scalar()
    written: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """What heads a process's journal.

    Attributes:
        pid: as `ppid` unique in the recording; see `Process.own_pid` for the process's own node's.
        main_thread: the lower 32 bits of what Python calls its main thread.
        worker: its DataLoader worker number.
        host: its node's name.
        python: its version, as is `torch`.
        argv: its command line, secrets left out.
        unread: the files of /proc that cannot be read here, so that what they hold is unknown and not 0.
        threads: how many torch computes with.
        environment: those variables of it that say how the job was launched.
        perf_ns: the moment the journal was begun on the recording's clock; `unix_ns`: since 1970.
    """

    pid: int | None = whole(0, MAX_COUNT - 1)
    ppid: int | None = whole(0, MAX_COUNT - 1)
    main_thread: int | None = whole(0, (1 << 32) - 1)
    worker: int | None = whole(0, MAX_WORKERS)
    host: str | None = text()
    python: str | None = text()
    torch: str | None = text()
    argv: Sequence[str | None] | None = words()
    unread: Sequence[str] = texts()
    threads: float | None = real()
    environment: Mapping[str, str | None] = named_words()
    perf_ns: int | None = moment()
    unix_ns: int | None = whole(0, 1 << 62)
