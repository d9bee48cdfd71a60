"""The hooks in the job: DataLoader iterators in the main process, and the loop of every worker.

`patch(module)` is called right after one of `PATCHED_MODULES` was imported. It replaces a few functions at class or
module level; no type, object or argument that the user can see changes. Each hook calls the original exactly once,
returns what it returned and raises what it raised; whatever of ours fails is caught, says one line on stderr and
takes capture out of the job (`process.stand_aside`). Hooks store numbers in this process's journal and conclude nothing: `iterators` of
what the main process waits for, `fetches` of what a batch costs whoever makes it, `workers` of the processes between.

Standard library only, Python >= 3.8: every worker imports this.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from typing import Any, Callable, List, Optional, Tuple

from loaderprof.capture.hooks import settings
from loaderprof.capture.hooks.fetches import fetch_hook
from loaderprof.capture.hooks.iterators import iterator_init, next_data, next_index, reset
from loaderprof.capture.hooks.process import process, stand_aside
from loaderprof.capture.hooks.workers import WorkerEntry, patch_pickler, pin_hook

TORCH = "torch.utils.data.dataloader"
STATEFUL = "torchdata.stateful_dataloader.stateful_dataloader"
GENERATORS = ("ray.data.iterator", "monai.data.thread_buffer")
ITERATORS = ("torchdata.nodes.loader", "spdl.pipeline._pipeline", "grain._src.python.data_loader")
TENSORFLOW = (
    "tensorflow.python.data.ops.dataset_ops",
    "tensorflow.python.data.ops.iterator_ops",
    "tensorflow.python.eager.polymorphic_function.polymorphic_function",
    "tensorflow.python.ops.script_ops",
)
PATCHED_MODULES = (TORCH, STATEFUL, *GENERATORS, *ITERATORS, *TENSORFLOW)


def begin(directory: str) -> None:
    """Start capture in this process into `directory`, also for loaders imported already."""
    process.directory, process.off, process.journal = directory, False, None
    for name in PATCHED_MODULES:
        if name in sys.modules:
            patch(name)


def end() -> None:
    """Stop capture in this process; the hooks stay, and do nothing but call the originals."""
    process.off, process.journal, process.step = True, None, None


def patch(module_name: str) -> None:
    """Install the hooks of one imported module; once a process, and only where its shape is the known one."""
    module = sys.modules[module_name]
    if getattr(module, "_loaderprof_patched", False):
        return
    module._loaderprof_patched = True  # type: ignore[attr-defined]
    if module_name in TENSORFLOW:
        from loaderprof.capture.hooks import tf_pipeline

        tf_pipeline.patch(module)
        return
    if module_name in GENERATORS:
        from loaderprof.capture.hooks import other_generators

        other_generators.patch(module)
        return
    if module_name in ITERATORS:
        from loaderprof.capture.hooks import other_iterators

        other_iterators.patch(module)
        return
    settings.install(module)
    if module_name == TORCH and os.environ.get("LOADERPROF_TUNE"):
        from loaderprof.capture.hooks import tuned_loader

        tuned_loader.install(module)
    try:
        replaced = _replacements(module_name, module)
    except (AttributeError, KeyError) as error:
        stand_aside(RuntimeError("this torch has another DataLoader than the ones known here (no %s)" % error))
        return
    for owner, name, value in replaced:
        setattr(owner, name, value)
    if module_name == TORCH:
        patch_pickler()


def _replacements(module_name: str, module: Any) -> List[Tuple[Any, str, Any]]:
    """Return (owner, name, hook) of all that is to be replaced; raises where a name is missing, before anything is."""
    prefix = "_Stateful" if module_name == STATEFUL else "_"
    base = getattr(module, prefix + "BaseDataLoaderIter")
    single = getattr(module, prefix + "SingleProcessDataLoaderIter")
    several = getattr(module, prefix + "MultiProcessingDataLoaderIter")
    replaced = [_wrapped(several, "_reset", reset)]
    for iterator in (single, several):
        replaced += [_wrapped(iterator, "__init__", iterator_init), _wrapped(iterator, "_next_data", next_data)]
    if "_next_index" in base.__dict__:
        replaced.append(_wrapped(base, "_next_index", next_index))
    if module_name == STATEFUL:
        return [*replaced, (module, "_worker_loop", WorkerEntry(STATEFUL, module._worker_loop, restore_entry))]
    utils = module._utils
    for name in ("_MapDatasetFetcher", "_IterableDatasetFetcher"):
        replaced.append(_wrapped(getattr(utils.fetch, name), "fetch", fetch_hook))
    return [
        *replaced,
        (utils.worker, "_worker_loop", WorkerEntry(TORCH, utils.worker._worker_loop, restore_entry)),
        (utils.pin_memory, "_pin_memory_loop", pin_hook(utils.pin_memory._pin_memory_loop)),
    ]


def restore_entry(module_name: str, directory: Optional[str], off: bool) -> Any:
    """Return the entry of a worker that was spawned: patched, and recorded where its parent is."""
    process.directory, process.off = directory, off
    source = importlib.import_module(module_name)
    patch(module_name)
    return source._worker_loop if module_name == STATEFUL else source._utils.worker._worker_loop


def _wrapped(owner: Any, name: str, hook: Callable[[Any], Any]) -> Tuple[Any, str, Any]:
    original = owner.__dict__[name]
    return owner, name, functools.wraps(original)(hook(original))
