"""Iterators of other libraries than torch's DataLoader, recorded as `loaderprof.watch()` would record them.

Their class's `__next__` is replaced, so that a script need not be changed. One that a DataLoader's worker goes over is
part of that loader's dataset, and left alone. Standard library only, Python >= 3.8.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Dict, Optional, Tuple

from loaderprof.capture import describe
from loaderprof.capture.iterators import Iteration
from loaderprof.capture.process import process, stand_aside
from loaderprof.capture.unseen import unseen

_NOW = time.perf_counter_ns
# By module: the class whose instances hand out batches, and what the report calls them where they have no variable.
ITERATORS: Dict[str, Tuple[str, str]] = {
    "torchdata.nodes.loader": ("LoaderIterator", "torchdata.nodes"),
    "spdl.pipeline._pipeline": ("PipelineIterator", "spdl"),
}


class Taken:
    """What is known of one iterator: its record, and a stand-in for the fetcher that a DataLoader would have."""

    def __init__(self, iterator: Any, name: str, original: Any) -> None:
        self.collate_fn = None
        self.iterator, self.original = iterator, original
        begun = _NOW()
        self.iteration = Iteration.of_iterable(iterator, describe.watched(iterator, name), begun, 0)
        self.ended = False

    def pull(self) -> Any:
        """Take one item through the original, and note where an epoch ends and the next begins."""
        if self.ended:
            self.ended = False
            self.iteration.restarted(_NOW(), 0, 0)
        try:
            return self.iteration.take(self, _next_watched)
        except StopIteration:
            self.ended = True
            raise


def patch(module: Any) -> None:
    """Install the hook of one imported module."""
    kind, name = ITERATORS[module.__name__]
    owner = getattr(module, kind, None)
    # One that was renamed is for `watch()`. It may be inherited: the class itself gets one, its base keeps its own.
    if owner is not None:
        owner.__next__ = next_hook(owner.__next__, name)


@unseen
def next_hook(original: Any, name: str) -> Any:
    def __next__(self: Any) -> Any:  # noqa: N807
        if process.off or threading.get_ident() in process.fetching or "worker" in process.header:
            return original(self)
        taken = _known(self, name, original)
        # An iterator inherited over a fork has its parent's journal, which is not this process's to write.
        if taken is None or taken.iteration.journal is not process.journal:
            return original(self)
        return taken.pull()

    return __next__


def _known(iterator: Any, name: str, original: Any) -> Optional[Taken]:
    held = iterator.__dict__
    try:
        if "_loaderprof" not in held:
            held["_loaderprof"] = Taken(iterator, name, original)
        return held["_loaderprof"]  # type: ignore[no-any-return]
    except Exception as error:
        stand_aside(error)
        return None


@unseen
def _next_watched(taken: Taken) -> Any:
    fetches = process.fetching.get(threading.get_ident())
    if fetches is None:
        return taken.original(taken.iterator)
    return fetches.fetch(_pull, taken, None)


@unseen
def _pull(taken: Taken, _: Any) -> Any:
    return taken.original(taken.iterator)
