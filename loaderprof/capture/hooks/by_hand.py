"""What a user marks by hand inside the job: `watch()` around any iterable, `stage()` around the code of one stage.

Standard library only, Python >= 3.8: workers use `stage`.
"""

from __future__ import annotations

import functools
from types import TracebackType
from typing import Any, Callable, Iterable, Iterator, List, Optional, Type, TypeVar

from loaderprof.capture.hooks import fetches
from loaderprof.capture.hooks.watched import Watched

Item = TypeVar("Item")


def watch(iterable: Iterable[Item], name: str = "watched") -> Iterator[Item]:
    """Iterate anything that yields batches, recorded as a loader; outside a recording, just iterate it.

    Args:
        iterable: the batches.
        name: what the report calls it.
    """
    watched = Watched.begin(iterable, name)
    if watched is None:
        return iter(iterable)
    return watched


class stage:  # noqa: N801 - reads as a statement: `with loaderprof.stage("decode"):`
    """Name a stage by hand, as a decorator or a `with` block around the code that does it.

    Args:
        name: one of the stages of findings.json: read, decode, transform, collate; or copy, around the batch's way to the device.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._begun: List[Any] = []

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` with its time charged to the stage."""

        @functools.wraps(function)
        def staged(*args: Any, **kwargs: Any) -> Any:
            with stage(self.name):
                return function(*args, **kwargs)

        return staged

    def __enter__(self) -> stage:
        self._begun.append(fetches.stage_begins(self.name))
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        fetches.stage_ends(self._begun.pop())
