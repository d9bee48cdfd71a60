"""Facts about a tf.data pipeline: its operations, the user's lines that made them, what their functions do.

Read from the dataset objects once a dataset, without running any of it. Standard library only, Python >= 3.8.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any, Dict, List, Optional, Set

from loaderprof.capture.hooks import describe

MAX_OPERATIONS = 64
# What identifies the stage of a function: its graph's operations by type, or words in the Python that it calls.
_STAGE_OPS = re.compile(r"Decode|Parse|ReadFile|PyFunc|Unbatch|StringSplit|StringToNumber|Tokenize")
# Stateless ones give the same again; of Python nobody knows, so that names that draw count, and generators.
_RANDOM = re.compile(r"^(?!Stateless).*Random|GeneratorDataset")
_DRAWS = re.compile(r"(?i)rand|rng|shuffle|choice|augment")
_WORDS = re.compile(r"(?i)decode|imread|imdecode|^open$|^read|urlopen|^get$|loads?$|parse")


def origin(dataset: Any) -> None:
    """Note the user's line under way as the one that made a dataset."""
    frame: Any = sys._getframe(1)
    for _ in range(30):
        if frame is None:
            return
        name = frame.f_code.co_filename
        if not name.startswith("<") and not describe.installed(name):
            # Not `setattr`: TensorFlow tracks what is set on its objects.
            object.__setattr__(dataset, "_loaderprof_where", "%s:%d" % (name, frame.f_lineno))
            return
        frame = frame.f_back


def described(dataset: Any, made: Any, wanted: Dict[str, Any]) -> str:
    """Return the facts of a pipeline as JSON; the same text for every iterator of one dataset.

    Args:
        dataset: as the job made it.
        made: as it is iterated, with what `--set` added.
        wanted: what `--set` asked for.
    """
    known = describe.held(dataset).get("_loaderprof_facts")
    if known is not None:
        return str(known)
    name, where = describe.name_and_place(dataset)
    operations = _operations(made)
    facts = {
        "name": name or "dataset",
        "where": where,
        "type": describe.type_name(dataset),
        "num_workers": 0,
        "watched": True,
        "dataset": "tf.data",
        "batch_size": next((each["size"] for each in operations if each.get("size")), None),
        "pipeline": json.dumps(operations),
        "tensorflow": str(getattr(sys.modules.get("tensorflow"), "__version__", "")),
        **wanted,
    }
    text = json.dumps(facts)
    object.__setattr__(dataset, "_loaderprof_facts", text)
    return text


def _operations(dataset: Any) -> List[Dict[str, Any]]:
    """Return the operations of a pipeline from its output to its first source, each as a dictionary."""
    found: List[Dict[str, Any]] = []
    while dataset is not None and len(found) < MAX_OPERATIONS:
        found.append(_operation(dataset))
        inputs = dataset._inputs()
        dataset = inputs[0] if inputs else None
    return found


def _operation(dataset: Any) -> Dict[str, Any]:
    kind = re.sub(r"^_|Dataset(V\d)?$", "", type(dataset).__name__)
    held = describe.held(dataset)
    facts: Dict[str, Any] = {"op": kind, "where": held.get("_loaderprof_where")}
    function = held.get("_map_func")
    if function is not None:
        user = getattr(function, "_func", None)
        facts["function"] = getattr(user, "__name__", None)
        types = _types(function)
        facts["told"] = sorted(each for each in types if _STAGE_OPS.search(each))[:20]
        facts["random"] = _draws(function, types)
        facts["words"] = sorted(each for each in _names(user) if _WORDS.search(each))[:20]
    if kind in ("Batch", "ParallelBatch", "PaddedBatch"):
        facts["size"] = _number(held.get("_batch_size"))
    return facts


def _number(value: Any) -> Optional[int]:
    try:
        return int(value)
    except Exception:  # a tensor of a graph has no value
        return None


def is_random(function: Any) -> bool:
    """Return whether a pipeline's function may draw random numbers that differ from epoch to epoch."""
    return _draws(function, _types(function))


def _draws(function: Any, types: Set[str]) -> bool:
    if any("PyFunc" in each for each in types) and any(
        _DRAWS.search(each) for each in _names(getattr(function, "_func", None))
    ):
        return True
    return any(_RANDOM.search(each) for each in types)


def _types(function: Any) -> Set[str]:
    """Return the types of the operations of a function's graph, and of the functions that it calls."""
    try:
        # Not its definition, into which large constants would be copied.
        graph = function.function.graph
        graphs = [graph, *(each.graph for each in graph._functions.values())]
        return {operation.type for each in graphs for operation in each.get_operations()}
    except Exception:
        return set()


def _names(function: Any) -> Set[str]:
    """Return the names that a Python function uses, and those that the user's own functions among them use."""
    code = getattr(function, "__code__", None)
    found = set(getattr(code, "co_names", ())) | set(getattr(code, "co_freevars", ()))
    known = getattr(function, "__globals__", {})
    for name in list(found):
        inner = getattr(known.get(name), "__code__", None)
        if inner is not None and not describe.installed(inner.co_filename):
            found.update(inner.co_names)
    return found
