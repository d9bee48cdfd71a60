"""Self time of every operator of an input pipeline, for the length of one batch.

Now and then one batch is timed in depth: the classes and functions it passes through (`discover`) are replaced by timed
ones (`stand_ins`) and put back right after, so that ordinary batches run untouched code and no object the user can see
changes.

Standard library only; whatever it patches the job had imported itself. Writes nothing: the caller journals `Table`.
"""

from __future__ import annotations

from typing import Any, List, Optional

from loaderprof.capture.hooks.discover import discover, qualified
from loaderprof.capture.hooks.stand_ins import Table, Target


class Timers:
    """The operators reachable from one dataset and collate function, found once a process and timed on demand."""

    def __init__(self, dataset: Any, collate: Any) -> None:
        self._roots = (dataset, collate)
        self._targets: Optional[List[Target]] = None
        self._table: Optional[Table] = None
        self._sample_name = qualified(type(dataset), "__getitem__")

    def __enter__(self) -> Table:
        if self._targets is None:
            self._targets = discover(*self._roots)
        self._table = table = Table()
        for target in self._targets:
            try:
                target.begin(table, target.name == self._sample_name)
            except Exception:  # it stays untimed
                continue
        return table

    def __exit__(self, *_: object) -> None:
        if self._table is not None:
            self._table.end()
        self._table = None
        for target in reversed(self._targets or []):
            try:
                target.end()
            except Exception:
                continue
