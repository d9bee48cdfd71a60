"""What a dataset holds that may end or slow a run, found by looking: no code of the user's runs, nothing is changed.

Standard library only, Python >= 3.8.
"""

from __future__ import annotations

import itertools
import re
import sys
import types
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

from loaderprof.capture.hooks import caches

# So many objects are looked at, and so many of each container.
MAX_OBJECTS, MAX_ITEMS = 300, 32
_URL = re.compile(r"^[a-z][a-z0-9+.-]{1,15}://[^\s]{1,1000}$")
_PATH = re.compile(r"^(?:/|\./|\.\./)?[^\n\0:;,<>|*?\"' ]{0,1000}/[^\n\0 ]{1,1000}$")
_SHARDS = re.compile(r"^_?(urls?|shards?|files|file_list|filenames|paths|data_files|shard_(list|paths|urls|files))$")
# Handles that must not be shared by a process and those it forks: their files' positions and locks would be.
_HANDLES = {"h5py": ("File", "Group", "Dataset"), "lmdb": ("Environment", "Transaction"), "sqlite3": ("Connection",)}
_SPLITS = {"get_worker_info", "split_by_worker", "split_by_node", "split_dataset_by_node"}


def facts(dataset: Any, iterable: bool, split_elsewhere: bool) -> Dict[str, Any]:
    """Return what was found; what was not found, or cannot be known, is None.

    Args:
        dataset: the loader's.
        iterable: it is an iterable-style one, which every worker goes through.
        split_elsewhere: something beside the dataset, as a `worker_init_fn`, may give each worker its part.
    """
    found: Dict[str, Any] = {"path": None, "handle": None, "shards": None, "splits": None, "transforms": None}
    try:
        for name, item in _held_by(dataset):
            found["path"] = found["path"] or _path(item)
            found["handle"] = found["handle"] or _handle(item)
            found["transforms"] = found["transforms"] or _transforms(item)
            if iterable and found["shards"] is None and _SHARDS.match(name) and type(item) in (list, tuple):
                found["shards"] = len(item)
        if iterable:
            found["splits"] = True if split_elsewhere else _splits(type(dataset))
            found.update(caches.facts(type(dataset), _attributes(dataset)))
    except Exception:  # a container that another thread changes meanwhile, an object that is not what it seems
        return found
    return found


def _held_by(dataset: Any) -> Iterator[Tuple[str, Any]]:
    """Yield (name, object) of what a dataset holds, the nearest first."""
    queue: List[Tuple[str, Any]] = [("", dataset)]
    seen: Set[int] = set()
    while queue and len(seen) < MAX_OBJECTS:
        name, item = queue.pop(0)
        if id(item) in seen:
            continue
        seen.add(id(item))
        yield name, item
        kind = type(item)
        if kind in (list, tuple):
            queue.extend((name, each) for each in item[:2])
        elif kind is dict:
            queue.extend((str(key), each) for key, each in itertools.islice(item.items(), 8))
        elif not issubclass(kind, (str, bytes, int, float, type, types.ModuleType, types.FunctionType)):
            queue.extend((str(key), each) for key, each in itertools.islice(_attributes(item).items(), MAX_ITEMS))


def _attributes(item: Any) -> Dict[Any, Any]:
    try:
        state = object.__getattribute__(item, "__dict__")
    except Exception:
        return {}
    return state if type(state) is dict else {}


def _path(item: Any) -> Optional[str]:
    if type(item) is str:
        if len(item) < 2000 and (_URL.match(item) or _PATH.match(item)):
            return re.sub(r"(://)[^/@]*@", r"\1***@", item.split("?", 1)[0])
    elif type(item).__module__.split(".")[0] == "pathlib":
        return str(item)
    return None


def _handle(item: Any) -> Optional[str]:
    for module, names in _HANDLES.items():
        # A module's dictionary: asking the module for a name may import something.
        loaded = vars(sys.modules[module]) if module in sys.modules else {}
        for name in names:
            # Written in C, a class may not know its module; the module knows its class.
            if isinstance(loaded.get(name), type) and issubclass(type(item), loaded[name]):
                return "%s.%s" % (module, name)
    return None


def _transforms(item: Any) -> Optional[str]:
    """Return the names of what a chain of transforms applies, in order, by commas; None for anything else."""
    chain: Any = _attributes(item).get("transforms") if type(item).__name__ == "Compose" else None
    return ", ".join(type(each).__name__ for each in chain[:MAX_ITEMS]) if type(chain) in (list, tuple) else None


def _splits(kind: type) -> Optional[bool]:
    """Return whether an iterable-style dataset of the user's asks which worker it is in; None for a library's."""
    own = [each for each in kind.__mro__ if each.__module__.split(".")[0] not in ("torch", "builtins", "typing", "abc")]
    if not own or any(_is_library(each.__module__) for each in own):
        return None
    module = sys.modules.get(kind.__module__)
    codes = [code for each in own for code in _codes(vars(each).values())]
    names = {name for code in codes for name in code.co_names}
    # Functions of the same file that its methods call may ask in their place.
    called = [vars(module)[name] for name in names if module is not None and name in vars(module)]
    names |= {name for code in _codes(called) for name in code.co_names}
    return bool(names & _SPLITS)


def _is_library(module: str) -> bool:
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


def _codes(values: Any) -> Iterator[types.CodeType]:
    """Yield the code of functions, methods and properties, and of the functions inside them."""
    for value in values:
        value = getattr(value, "__func__", value)
        code = getattr(value, "__code__", None)
        stack = [code] if isinstance(code, types.CodeType) else []
        while stack:
            code = stack.pop()
            yield code
            stack.extend(each for each in code.co_consts if isinstance(each, types.CodeType))


def guarded() -> Optional[bool]:
    """Return whether the script under way asks for its `__name__`, as one does that spawned workers may import.

    None where no script is: a notebook, an embedded interpreter, a module run by a launcher.
    """
    frame: Any = sys._getframe(1)
    found = None
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__":
            found = frame
        frame = frame.f_back
    if found is None or not str(found.f_code.co_filename).endswith(".py"):
        return None
    return "__name__" in found.f_code.co_names
