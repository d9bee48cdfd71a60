"""`--set KEY=VALUE`: apply DataLoader settings without editing the script.

Only where `LOADERPROF_SET` asks for it is `DataLoader.__init__` wrapped. A setting that torch refuses in combination
(prefetch_factor without workers, say) leaves with the workers. Standard library only.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from typing import Any, Dict, Optional

KEYS = (
    "num_workers",
    "prefetch_factor",
    "pin_memory",
    "persistent_workers",
    "in_order",
    "multiprocessing_context",
    "batch_size",
)
_NEEDS_WORKERS = ("prefetch_factor", "persistent_workers", "multiprocessing_context", "timeout")


def fits(key: str, value: Any) -> bool:
    """Return whether a DataLoader takes this value for one of `KEYS`."""
    if key in ("pin_memory", "persistent_workers", "in_order"):
        return isinstance(value, bool)
    if key == "multiprocessing_context":
        return value in (None, "fork", "spawn", "forkserver")
    if value is None:
        return key != "num_workers"
    return isinstance(value, int) and not isinstance(value, bool) and value >= (0 if key == "num_workers" else 1)


def install(module: Any) -> None:
    """Wrap the DataLoader classes of an imported module, if this job was asked to."""
    text = os.environ.get("LOADERPROF_SET")
    if not text:
        return
    wanted = json.loads(text)
    for name in ("DataLoader", "StatefulDataLoader"):
        cls = module.__dict__.get(name)
        if cls is not None and cls.__module__ == module.__name__:
            cls.__init__ = _with_settings(cls.__init__, wanted)


def _with_settings(original: Any, wanted: Dict[str, Any]) -> Any:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        changed = None
        try:
            bound = signature.bind(self, *args, **kwargs)
            changed = _changed(dict(bound.arguments), _for_loader(wanted, sys._getframe(1)), signature)
        except Exception as error:
            sys.stderr.write("loaderprof: --set was not applied to a loader: %s\n" % error)
        if changed is None:
            original(self, *args, **kwargs)
            return
        changed.pop("self", None)
        original(self, **changed)

    return __init__


def _for_loader(wanted: Dict[str, Any], frame: Any) -> Dict[str, Any]:
    """Return the settings meant for every loader, and for the one that this frame assigns."""
    name = assigned_name(frame) if any("." in key for key in wanted) else None
    chosen = {key: value for key, value in wanted.items() if "." not in key}
    chosen.update({key.split(".", 1)[1]: value for key, value in wanted.items() if key.split(".", 1)[0] == name})
    return chosen


def assigned_name(frame: Any) -> Optional[str]:
    """Return the variable that the statement under way in a frame assigns: `train_loader = DataLoader(...)`."""
    import ast
    import linecache

    source = "".join(linecache.getlines(frame.f_code.co_filename))
    for node in ast.walk(ast.parse(source)) if source else ():
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.lineno <= frame.f_lineno <= (node.end_lineno or 0):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Attribute):
                return target.attr
            if isinstance(target, ast.Name):
                return target.id
    return None


def _changed(given: Dict[str, Any], chosen: Dict[str, Any], signature: Any) -> Optional[Dict[str, Any]]:
    """Return the arguments with the chosen settings, or None where nothing changes."""
    chosen = {key: value for key, value in chosen.items() if key in signature.parameters}
    if "batch_size" in chosen and (given.get("batch_sampler") is not None or given.get("batch_size", 1) is None):
        del chosen["batch_size"]
    given.update(given.pop("kwargs", {}))
    arguments = {**given, **chosen}
    if not arguments.get("num_workers"):
        for key in _NEEDS_WORKERS:
            arguments.pop(key, None)
    return arguments if chosen else None
