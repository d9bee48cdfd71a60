"""Facts about a process, a loader and a batch, read without running code of the user.

Standard library only, Python >= 3.8: every worker imports this.
"""

from __future__ import annotations

import dis
import functools
import inspect
import json
import os
import platform
import re
import sys
import threading
import time
from typing import Any, Dict, List, Optional, Set, Tuple

from loaderprof.capture.hooks import dataset as dataset_facts
from loaderprof.capture.hooks import kernel

# The environment is the user's; only these names are ever recorded.
ENVIRONMENT = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "GROUP_RANK",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_RUN_ID",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_CPUS_PER_TASK",
    "SLURM_JOB_ID",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "PMI_RANK",
    "PMI_SIZE",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "TOKENIZERS_PARALLELISM",
)
# Frameworks that build loaders from settings of their own, by the module that iterates them. A framework stands before
# the one that it is built upon, because the first match counts.
_FRAMEWORKS = (
    ("setfit.trainer", "setfit"),
    ("transformers.trainer", "transformers"),
    ("ultralytics.engine", "ultralytics"),
    ("chemprop.cli", "chemprop"),
    ("mace.cli", "mace"),
    ("darts.models.forecasting", "darts"),
    ("neuralforecast.core", "neuralforecast"),
    ("open_clip_train", "open_clip"),
    ("skorch.net", "skorch"),
    ("speechbrain.dataio.dataloader", "speechbrain"),
    ("keras.src.trainers.data_adapters", "keras"),
)
_SECRET = re.compile(r"(?i)((?:token|secret|password|passwd|api[-_]?key|access[-_]?key|auth)[^=\s]*)(=|$)")
_PR_SET_PTRACER = 0x59616D61


def host() -> str:
    """Return this host's name, safe for a file name."""
    return re.sub(r"[^A-Za-z0-9.-]", "_", platform.node() or "localhost")[:64]


def redacted(arguments: List[str]) -> List[str]:
    """Return a command line with the values of options that look like secrets replaced by `***`."""
    shown, hide = [], False
    for argument in arguments:
        match = _SECRET.search(argument.split("=", 1)[0]) if argument.startswith("-") else None
        if hide:
            shown.append("***")
            hide = False
        elif match and "=" in argument:
            shown.append(argument.split("=", 1)[0] + "=***")
        else:
            hide = bool(match)
            shown.append(re.sub(r"(://[^/@:\s]*:)[^/@\s]*@", r"\1***@", argument))
    return shown


def process() -> Dict[str, Any]:
    """Return the facts that head a process's journal."""
    torch = sys.modules.get("torch")
    return {
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "main_thread": (threading.main_thread().ident or 0) & 0xFFFFFFFF,
        **_of_the_program(),
        "torch": str(getattr(torch, "__version__", "")) or None,
        "threads": torch.get_num_threads() if torch is not None and hasattr(torch, "get_num_threads") else None,
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "perf_ns": time.perf_counter_ns(),
        "unix_ns": time.time_ns(),
    }


@functools.lru_cache(maxsize=1)
def _of_the_program() -> Dict[str, Any]:
    """Return the facts that hold for forked processes too, which inherit this cache."""
    return {
        "host": host(),
        "argv": [argument[:200] for argument in redacted(list(getattr(sys, "argv", [])))[:20]],
        "python": platform.python_version(),
        "unread": kernel.unread(),
    }


@functools.lru_cache(maxsize=1)
def _is_grad_enabled() -> Any:
    return getattr(sys.modules.get("torch"), "is_grad_enabled", lambda: False)


def gradients() -> int:
    """Return 1 where gradients are enabled in this thread, as in a training loop, else 0."""
    return 1 if _is_grad_enabled()() else 0


def loader(item: Any, iterator: Any) -> Dict[str, Any]:
    """Return one loader's facts: its name in the user's code (None: not found), where it is iterated, its settings."""
    name, where = name_and_place(item)
    dataset, sampler = item.dataset, getattr(item, "sampler", None)
    batch_sampler = getattr(item, "batch_sampler", None)
    # torch's own samplers have no line here, so with torch's BatchSampler the line is that of the sampler inside it.
    sampler_where = _source_of(batch_sampler) or _source_of(sampler)
    context = getattr(item, "multiprocessing_context", None)
    return {
        "name": name,
        "where": where,
        "type": type_name(item),
        "num_workers": getattr(iterator, "_num_workers", 0),
        "batch_size": getattr(item, "batch_size", None) or getattr(batch_sampler, "batch_size", None),
        "prefetch_factor": getattr(item, "prefetch_factor", None),
        "persistent_workers": bool(getattr(item, "persistent_workers", False)),
        "pin_memory": bool(getattr(item, "pin_memory", False)),
        "in_order": getattr(item, "in_order", True),
        "drop_last": bool(getattr(item, "drop_last", False)),
        "start_method": _start_method(context) if getattr(iterator, "_num_workers", 0) else None,
        "sampler": type_name(sampler) if sampler is not None else None,
        "batch_sampler": type_name(batch_sampler) if batch_sampler is not None else None,
        "sampler_where": sampler_where,
        "collate_fn": _function_name(getattr(item, "collate_fn", None)),
        "worker_init_fn": _function_name(getattr(item, "worker_init_fn", None)),
        "dataset": type_name(dataset),
        "dataset_where": _source_of(dataset),
        "iterable": getattr(iterator, "_dataset_kind", 0) == 1,
        "samples": _length(dataset, sampler),
        "guarded": dataset_facts.guarded(),
        "framework": _framework(item),
        **_dataset(item, iterator),
    }


def _framework(item: Any) -> Optional[str]:
    """Return the framework that made and iterates the loader, judged by the modules on the call stack; None: the user did.

    Keras and SpeechBrain also iterate loaders of their users; in one that they made, its class or the dataset's is theirs.
    """
    frame: Any = sys._getframe(1)
    names: Set[str] = {type(item).__module__, type(item.dataset).__module__}
    while frame is not None and len(names) < 64:
        names.add(str(frame.f_globals.get("__name__")))
        frame = frame.f_back
    return next(
        (framework for module, framework in _FRAMEWORKS if any(name.startswith(module) for name in names)), None
    )


def _dataset(item: Any, iterator: Any) -> Dict[str, Any]:
    iterable = getattr(iterator, "_dataset_kind", 0) == 1
    return dataset_facts.facts(item.dataset, iterable, getattr(item, "worker_init_fn", None) is not None)


def watched(iterable: Any, name: str, settings: Optional[Dict[str, Any]] = None) -> str:
    """Return the facts of an iterable that is no DataLoader, as JSON; with them, what is known of its settings."""
    _, where = name_and_place(iterable)
    facts = {
        "name": name,
        "where": where,
        "type": type_name(iterable),
        "num_workers": 0,
        "watched": True,
        "dataset": type_name(iterable),
        "dataset_where": _source_of(iterable),
    }
    return json.dumps(dict(facts, **(settings or {})))


def size(batch: Any) -> Tuple[int, int, int, int]:
    """Return (bytes, tensors, leaves, bytes of floats) of a batch.

    Containers are walked, nothing is copied, no code of the user's runs.
    """
    total = tensors = leaves = floats = seen = 0
    queue = [batch]
    while queue and seen < 10_000:
        item = queue.pop()
        kind, seen = type(item), seen + 1
        if issubclass(kind, dict):
            queue.extend(dict.values(item))
        elif issubclass(kind, list):
            queue.extend(list.__getitem__(item, slice(10_000)))
        elif issubclass(kind, tuple):
            queue.extend(tuple.__getitem__(item, slice(10_000)))
        else:
            leaves += 1
            if kind.__module__.split(".")[0] in ("torch", "torchvision", "numpy"):
                bytes_ = getattr(item, "nbytes", None)
                if isinstance(bytes_, int):
                    total += bytes_
                    tensors += 1
                    floats += bytes_ if _is_float(getattr(item, "dtype", None)) else 0
            elif kind in (bytes, str):
                total += len(item)
            else:
                queue.extend(held(item).values())
    return total, tensors, leaves, floats


def _is_float(dtype: Any) -> bool:
    return getattr(dtype, "kind", None) == "f" or bool(getattr(dtype, "is_floating_point", False))


def held(item: Any) -> Dict[Any, Any]:
    """Return an object's own dictionary, without a `__getattr__` of the user's."""
    try:
        state = object.__getattribute__(item, "__dict__")
    except Exception:
        return {}
    return state if type(state) is dict else {}


def may_use() -> Tuple[int, int, int]:
    """Return which CPUs this thread may run on (a mask of the first 63), how many, and torch's thread count."""
    try:
        cpus = os.sched_getaffinity(0)
    except (AttributeError, OSError):
        cpus = set()
    torch = sys.modules.get("torch")
    return sum(1 << cpu for cpu in cpus if cpu < 63), len(cpus), torch.get_num_threads() if torch is not None else 0


@functools.lru_cache(maxsize=1)
def _restricts_tracing() -> bool:
    return os.path.exists("/proc/sys/kernel/yama/ptrace_scope")


def allow_tracing() -> None:
    """Let py-spy read this process where Yama restricts tracing to ancestors; without Yama this does nothing."""
    if not _restricts_tracing():
        return
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        return


def name_and_place(item: Any) -> Tuple[Optional[str], Optional[str]]:
    """Find the variable that holds a loader and the user's line that iterates it, by walking the calling frames.

    Where no code of the user's holds it, its name is what the outermost of the installed packages under way calls it.
    """
    frame: Any = sys._getframe(1)
    place = outer = None
    for _ in range(60):
        if frame is None:
            break
        filename = frame.f_code.co_filename
        if not filename.startswith("<") and not _of_the_machinery(filename):
            name = _held_by(frame, item)
            if not installed(filename):
                place = place or "%s:%d" % (filename, frame.f_lineno)
                if name:
                    return name, place
            # Only a local variable of a package counts: an attribute of its objects holds a part of the loader its user knows.
            elif name in frame.f_code.co_varnames:
                outer = name
        frame = frame.f_back
    return outer, place


# A function that calls one of these may hold the dictionary that `f_locals` would fill in anew.
_SEES_LOCALS = {"locals", "vars", "dir", "eval", "exec", "currentframe", "_getframe", "stack", "settrace"}


def _held_by(frame: Any, item: Any) -> Optional[str]:
    """Return the variable of a frame that holds an item.

    Before Python 3.13 `f_locals` of a function is one dictionary, kept with the frame: it would keep alive what the
    function deletes, and is the very one that `locals()` gave the user. So it is emptied, or not asked for at all.
    """
    if frame.f_code.co_flags & inspect.CO_OPTIMIZED and sys.version_info < (3, 13):
        if not _SEES_LOCALS.isdisjoint(frame.f_code.co_names):
            return None
        variables = frame.f_locals
        name = _held_in(variables, item)
        # References of the frame, of `variables` and of the argument: any more, and somebody else keeps the dictionary.
        if sys.getrefcount(variables) <= 3:
            variables.clear()
        return name
    return _held_in(frame.f_locals, item)


def _held_in(variables: Dict[str, Any], item: Any) -> Optional[str]:
    for name, value in list(variables.items()):
        if value is item and name not in ("self", "loader_"):
            return name
    return next((str(name) for name, value in list(held(variables.get("self")).items()) if value is item), None)


_STANDARD_LIBRARY = os.path.dirname(os.__file__) + os.sep
_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep


def installed(filename: str) -> bool:
    """Return whether a source file is an installed package's, the standard library's or ours: not the user's own."""
    return (
        "site-packages" in filename or "dist-packages" in filename or filename.startswith((_STANDARD_LIBRARY, _PACKAGE))
    )


def _of_the_machinery(filename: str) -> bool:
    """Return whether a source file is ours, torch's or the standard library's, where a loader has no name of its own."""
    standard = filename.startswith(_STANDARD_LIBRARY) and "-packages" not in filename
    return standard or filename.startswith(_PACKAGE) or "/torch/utils/data/" in filename


def type_name(item: Any) -> str:
    """Return `module.QualName` of an object's class."""
    return "%s.%s" % (type(item).__module__, type(item).__qualname__)


def _function_name(function: Any) -> Optional[str]:
    if function is None:
        return None
    if isinstance(function, functools.partial):
        function = function.func
    return "%s.%s" % (
        getattr(function, "__module__", "?"),
        getattr(function, "__qualname__", type(function).__qualname__),
    )


def _source_of(item: Any) -> Optional[str]:
    """Return where a dataset's or sampler's own class gives what it is asked for; None where that is torch or no Python."""
    for name in ("__getitem__", "__iter__", "__next__", "__getitems__"):
        code = getattr(getattr(type(item), name, None), "__code__", None)
        # torch's base classes have these too, and do nothing in them.
        if code is not None and "/torch/utils/data/" not in code.co_filename:
            return "%s:%d" % (code.co_filename, code.co_firstlineno)
    return None


def _length(dataset: Any, sampler: Any) -> Optional[int]:
    # These two samplers call len(dataset) at least once an epoch; with another it may never be called, so we do not either.
    module = sys.modules.get("torch.utils.data.sampler")
    if type(sampler) not in (getattr(module, "SequentialSampler", None), getattr(module, "RandomSampler", None)):
        return None
    try:
        return len(dataset) if _quiet(type(dataset)) else None
    except Exception:
        return None


def _quiet(kind: type) -> bool:
    """Return whether one more call of a dataset's `__len__` has no side effect: it only reads and adds up."""
    if kind.__module__.split(".")[0] in ("torch", "torchvision", "datasets", "builtins"):
        return True
    code = getattr(getattr(kind, "__len__", None), "__code__", None)
    steps = list(dis.get_instructions(code)) if code is not None else []
    used = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_METHOD")}
    changes = any(step.opname.startswith(("STORE_ATTR", "STORE_GLOBAL", "STORE_SUBSCR", "IMPORT")) for step in steps)
    return bool(steps) and not changes and used <= {"len", "int", "min", "max", "sum"}


def _start_method(context: Any) -> Optional[str]:
    import multiprocessing

    method = getattr(context, "_start_method", None) or getattr(type(context), "_name", None)
    if method is None:
        # allow_none: asking must not fix the default that the user may still set.
        method = multiprocessing.get_start_method(allow_none=True)
    return str(method) if method else None
