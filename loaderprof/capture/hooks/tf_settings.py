"""`--set tf.KEY=VALUE`: apply settings of a tf.data pipeline without editing the script. Standard library only."""

from __future__ import annotations

import functools
import json
import os
import sys
from typing import Any, Dict

from loaderprof.capture.hooks.tf_facts import is_random

PREFIX = "tf."
KEYS = ("tf.num_parallel_calls", "tf.prefetch", "tf.cache", "tf.private_threadpool_size")
AUTOTUNE = "AUTOTUNE"
# tf.data's own number for AUTOTUNE.
_AUTOTUNE = -1


def fits(key: str, value: Any) -> bool:
    """Return whether a pipeline takes this value for one of `KEYS`."""
    if key == "tf.cache":
        return value is True
    if value == AUTOTUNE:
        return key != "tf.private_threadpool_size"
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def wanted() -> Dict[str, Any]:
    """Return what this job was asked to set, by key without the prefix."""
    text = os.environ.get("LOADERPROF_SET")
    chosen = json.loads(text) if text else {}
    return {key[len(PREFIX) :]: value for key, value in chosen.items() if key in KEYS}


def _as_number(value: Any) -> int:
    return _AUTOTUNE if value == AUTOTUNE else int(value)


def install(kind: Any) -> None:
    """Wrap what makes pipelines, if this job was asked to."""
    chosen = wanted()
    if "num_parallel_calls" in chosen:
        for name in ("map", "interleave"):
            setattr(kind, name, _parallel(getattr(kind, name), _as_number(chosen["num_parallel_calls"])))
    if chosen.get("cache"):
        # Before what is random or gathers: everything up to there is the same in every epoch.
        for name in ("shuffle", "batch", "padded_batch", "repeat"):
            setattr(kind, name, _cached(getattr(kind, name)))


def finished(dataset: Any) -> Any:
    """Return a dataset that is about to be iterated, with the end and the threads that were asked for."""
    chosen = wanted()
    try:
        if "prefetch" in chosen:
            source = dataset._inputs()[0] if type(dataset).__name__ == "_PrefetchDataset" else dataset
            dataset = source.prefetch(_as_number(chosen["prefetch"]))
        if "private_threadpool_size" in chosen:
            options = type(dataset.options())()
            options.threading.private_threadpool_size = int(chosen["private_threadpool_size"])
            dataset = dataset.with_options(options)
    except Exception as error:
        sys.stderr.write("loaderprof: --set was not applied to a dataset: %s\n" % error)
    return dataset


def _parallel(original: Any, calls: int) -> Any:
    @functools.wraps(original)
    def made(self: Any, *args: Any, **kwargs: Any) -> Any:
        # `map(function, calls)` and `interleave(function, cycle, block, calls)` take it by place, too.
        place = 1 if original.__name__ == "map" else 3
        if len(args) > place:
            args = (*args[:place], calls, *args[place + 1 :])
        elif not kwargs.get("synchronous"):
            kwargs["num_parallel_calls"] = calls
        return original(self, *args, **kwargs)

    return made


def _cached(original: Any) -> Any:
    @functools.wraps(original)
    def made(self: Any, *args: Any, **kwargs: Any) -> Any:
        source = self
        try:
            source = _with_cache(self)
        except Exception as error:
            sys.stderr.write("loaderprof: --set was not applied to a dataset: %s\n" % error)
        return original(source, *args, **kwargs)

    return made


def _with_cache(dataset: Any) -> Any:
    """Return a dataset with a cache at its end where something was done to its elements and none of it is random."""
    each, mapped = dataset, False
    while each is not None:
        name = type(each).__name__
        if any(word in name for word in ("Cache", "Shuffle", "Batch", "Repeat")):
            return dataset
        if getattr(each, "_map_func", None) is not None:
            mapped = True
            if is_random(each._map_func):
                return dataset
        inputs = each._inputs()
        each = inputs[0] if inputs else None
    return dataset.cache() if mapped else dataset
