"""Iterators of other libraries than torch's DataLoader, recorded as `loaderprof.watch()` would record them.

Their class's `__next__` is replaced, so that a script need not be changed. One that a DataLoader's worker goes over is
part of that loader's dataset, and left alone. Standard library only, Python >= 3.8.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Dict, Optional, Tuple

from loaderprof.capture.hooks import describe
from loaderprof.capture.hooks.frames import unseen
from loaderprof.capture.hooks.iteration import Iteration
from loaderprof.capture.hooks.process import process, stand_aside
from loaderprof.capture.hooks.watched import next_watched

_NOW = time.perf_counter_ns
# By module: the class whose instances hand out batches, what they hold of the user's loader, and what the report calls it.
ITERATORS: Dict[str, Tuple[str, str, str]] = {
    "torchdata.nodes.loader": ("LoaderIterator", "loader", "torchdata.nodes"),
    "spdl.pipeline._pipeline": ("PipelineIterator", "_pipeline", "spdl"),
    "grain._src.python.data_loader": ("DataLoaderIterator", "_data_loader", "grain"),
}


class Taken:
    """What is known of one iterator: its record, and a stand-in for the fetcher that a DataLoader would have.

    The iterator holds this, and is held only while it hands out an item: it has to go when its user lets go of it.
    """

    def __init__(self, loader: Any, facts: str, original: Any) -> None:
        self.collate_fn = None
        self.original, self.iterator = original, None
        self.iteration = Iteration.of_iterable(loader, facts, _NOW(), 0)
        self.ended = False

    @unseen
    def take(self, iterator: Any) -> Any:
        """Take one item through the original, and note where an epoch ends and the next begins."""
        if self.ended:
            self.ended = False
            self.iteration.restarted(_NOW(), 0, 0)
        self.iterator = iterator
        try:
            return self.iteration.take(self, next_watched)
        except StopIteration:
            self.ended = True
            raise
        finally:
            self.iterator = None

    @unseen
    def pull(self, _: Any = None) -> Any:
        """Take the next item of the iterator."""
        return self.original(self.iterator)


def patch(module: Any) -> None:
    """Install the hook of one imported module."""
    kind, held, name = ITERATORS[module.__name__]
    owner = getattr(module, kind, None)
    # One that was renamed is for `watch()`. It may be inherited: the class itself gets one, its base keeps its own.
    if owner is not None:
        owner.__next__ = next_hook(owner.__next__, held, name)


@unseen
def next_hook(original: Any, held: str, name: str) -> Any:
    def __next__(self: Any) -> Any:  # noqa: N807
        if process.off or threading.get_ident() in process.fetching or "worker" in process.header:
            return original(self)
        taken = _known(self, held, name, original)
        # An iterator inherited over a fork has its parent's journal, which is not this process's to write.
        if taken is None or taken.iteration.journal is not process.journal:
            return original(self)
        return taken.take(self)

    return __next__


def _known(iterator: Any, held: str, name: str, original: Any) -> Optional[Taken]:
    try:
        facts = iterator.__dict__
        if "_loaderprof" not in facts:
            loader = getattr(iterator, held)
            facts["_loaderprof"] = Taken(loader, describe.watched(loader, name), original)
        return facts["_loaderprof"]  # type: ignore[no-any-return]
    except Exception as error:
        stand_aside(error)
        return None
