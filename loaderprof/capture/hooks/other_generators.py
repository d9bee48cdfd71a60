"""Loaders of other libraries whose batches come out of a generator, recorded as `loaderprof.watch()` would record them.

Ray Data: `iter_torch_batches` and its kin return an iterable around a generator function, which is replaced in that one
object. MONAI's ThreadDataLoader without workers: its own DataLoader runs in a thread ahead of the loop, and what the loop
waits for is this generator. Standard library only, Python >= 3.8.
"""

from __future__ import annotations

import functools
import threading
from typing import Any, Callable, Dict, Iterator, Optional

from loaderprof.capture.hooks import describe
from loaderprof.capture.hooks.frames import unseen
from loaderprof.capture.hooks.other_iterators import Taken
from loaderprof.capture.hooks.process import process, stand_aside

RAY = "ray.data.iterator"
MONAI = "monai.data.thread_buffer"
# What the report says of Ray's settings, by Ray's own names.
SETTINGS = ("batch_size", "prefetch_batches", "local_shuffle_buffer_size")


def patch(module: Any) -> None:
    """Install the hook of one imported module; one of another shape is for `watch()`."""
    kind, name, hook = {
        RAY: ("DataIterator", "_iter_batches", ray_hook),
        MONAI: ("ThreadDataLoader", "__iter__", monai_hook),
    }[module.__name__]
    owner = getattr(module, kind, None)
    if owner is not None and name in vars(owner):
        setattr(owner, name, functools.wraps(vars(owner)[name])(hook(vars(owner)[name])))


@unseen
def ray_hook(original: Any) -> Any:
    def _iter_batches(self: Any, *args: Any, **kwargs: Any) -> Any:
        batches = original(self, *args, **kwargs)
        make = getattr(batches, "iterator_gen", None)
        if not process.off and make is not None:
            settings = {name: kwargs[name] for name in SETTINGS if isinstance(kwargs.get(name), int)}
            batches.iterator_gen = recorded(make, self, "ray.data", dict(settings, framework="ray"))
        return batches

    return _iter_batches


@unseen
def monai_hook(original: Any) -> Any:
    def __iter__(self: Any) -> Any:  # noqa: N807
        make = functools.partial(original, self)
        if process.off or getattr(self, "num_workers", 0) > 0:
            return make()
        return recorded(make, self, "monai", {"batch_size": getattr(self, "batch_size", None)})()

    return __iter__


def is_ahead(loader: Any) -> bool:
    """Whether a DataLoader runs in a thread of its own, ahead of a loop whose waits are recorded here."""
    return type(loader).__module__ == MONAI and not getattr(loader, "num_workers", 0)


@unseen
def recorded(make: Callable[[], Any], source: Any, name: str, settings: Dict[str, Any]) -> Callable[[], Iterator[Any]]:
    """Return a generator function that hands out what another one does, and records each batch of it.

    Args:
        make: the other one.
        source: the loader of the user's that it belongs to.
        name: what the report calls it where no variable holds it.
        settings: what else is known of it.
    """

    def batches() -> Iterator[Any]:
        iterator = make()
        taken = _begun(source, name, settings)
        try:
            while True:
                try:
                    batch = next(iterator) if taken is None or _is_anothers(taken) else taken.take(iterator)
                except StopIteration:
                    return
                yield batch
        finally:
            # A loop that breaks off closes the generator; what runs behind it ends at once.
            iterator.close()

    return batches


def _begun(source: Any, name: str, settings: Dict[str, Any]) -> Optional[Taken]:
    if process.off or threading.get_ident() in process.fetching or "worker" in process.header:
        return None
    try:
        return Taken(None, describe.watched(source, name, settings), next)
    except Exception as error:
        stand_aside(error)
        return None


def _is_anothers(taken: Taken) -> bool:
    # One inherited over a fork has its parent's journal, which is not this process's to write.
    return process.off or taken.iteration.journal is not process.journal
