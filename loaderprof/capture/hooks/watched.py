"""An iterable that is no DataLoader, recorded as a loader without workers.

Standard library only, Python >= 3.8: workers import it with `by_hand`.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Optional

from loaderprof.capture.hooks import describe
from loaderprof.capture.hooks.frames import unseen
from loaderprof.capture.hooks.iteration import Iteration
from loaderprof.capture.hooks.process import process, stand_aside

_NOW = time.perf_counter_ns
_CPU = time.thread_time_ns
_IDENT = threading.get_ident


class Watched:
    """An iterable that is no DataLoader, recorded as a loader without workers; made by `loaderprof.watch`."""

    def __init__(self, iterator: Any, iteration: Optional[Iteration]) -> None:
        self.collate_fn = None
        self._iterator = iterator
        self._loaderprof = iteration

    @classmethod
    def begin(cls, iterable: Any, name: str) -> Optional["Watched"]:
        """Return the watched iterator, None where nothing is recorded."""
        if process.off:
            return None
        begun, cpu = _NOW(), _CPU()
        iterator = iter(iterable)
        try:
            facts = describe.watched(iterable, name)
            return cls(iterator, Iteration.of_iterable(iterable, facts, begun, _CPU() - cpu))
        except Exception as error:
            stand_aside(error)
            return cls(iterator, None)

    def __iter__(self) -> "Watched":
        return self

    @unseen
    def __next__(self) -> Any:
        iteration = self._loaderprof
        if iteration is None or process.off or iteration.journal is not process.journal:
            return next(self._iterator)
        return iteration.take(self, next_watched)

    @unseen
    def pull(self, _: Any = None) -> Any:
        """Take the next item of what is watched."""
        return next(self._iterator)


@unseen
def next_watched(watched: Any) -> Any:
    """Take an item by its `pull`, as a batch that this process makes."""
    fetches = process.fetching.get(_IDENT())
    if fetches is None:
        return watched.pull()
    return fetches.fetch(type(watched).pull, watched, None)
