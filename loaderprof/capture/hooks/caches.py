"""How much of a streamed dataset is kept on local disk, and how far apart it is read, by its library's own settings.

Found by looking, as in `dataset`.

Standard library only, Python >= 3.8.
"""

from __future__ import annotations

import os
import re
from typing import Any, Dict, List, Optional

# mosaicml-streaming's default of `num_canonical_nodes` for each node, by `shuffle_algo`.
_CANONICAL_NODES = {"py1s": 64, "py2s": 64}
# Of so many shards the sizes are added up, once a loader.
MAX_SHARDS = 20_000
_SIZE = re.compile(r"^([0-9.]+) *([kmgt]?)b?$", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def facts(kind: type, state: Dict[Any, Any]) -> Dict[str, Any]:
    """Return the setting that limits a dataset's cache, its bytes, those of all shards, and how many positions are interleaved.

    Facts that are not known are left out.

    Args:
        kind: the dataset's class.
        state: its attributes.
    """
    libraries = {each.__module__.split(".")[0] for each in kind.__mro__}
    if "streaming" in libraries:
        found = _limited("cache_limit", state.get("cache_limit"), _stored(state.get("shards")))
        return dict(found, canonical_nodes=_canonical_nodes(state)) if found else found
    if "litdata" in libraries:
        return _limited("max_cache_size", state.get("max_cache_size"), None)
    return {}


def _limited(knob: str, limit: Any, stored: Optional[int]) -> Dict[str, Any]:
    match = _SIZE.match(limit) if type(limit) is str else None
    if match is not None:
        limit = int(float(match[1]) * _UNITS[match[2].lower()])
    if type(limit) is not int or limit <= 0:
        return {}
    return dict({"cache_knob": knob, "cache_bytes": limit}, **({} if stored is None else {"stored_bytes": stored}))


def _canonical_nodes(state: Dict[Any, Any]) -> float:
    """Return how many positions of a mosaicml-streaming dataset each machine reads in an interleaved way."""
    asked = state.get("num_canonical_nodes")
    if type(asked) is not int or asked <= 0:
        return _CANONICAL_NODES.get(str(state.get("shuffle_algo")), 1)
    world, local = (int(os.environ.get(name) or 1) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    return asked / max(1, world // max(1, local))


def _stored(shards: Any) -> Optional[int]:
    """Return the bytes of all shards as they lie on local disk; None where the library keeps them otherwise."""
    if type(shards) is not list or len(shards) > MAX_SHARDS:
        return None
    files: List[Any] = [pair[0] for shard in shards for pair in vars(shard)["file_pairs"]]
    return sum(int(vars(file)["bytes"]) for file in files)
