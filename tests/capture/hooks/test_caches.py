"""What a streamed dataset's library keeps on local disk."""

from __future__ import annotations

from typing import Any

import pytest

from loaderprof.capture.hooks import caches


class Holder:
    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)


def library(name: str) -> type[Any]:
    """Return a class of a library's, and one of the user's that inherits it."""
    base = type("StreamingDataset", (Holder,), {"__module__": name})
    return type("Pictures", (base,), {"__module__": "__main__"})


def kept(name: str, held: dict[str, Any]) -> dict[str, Any]:
    return caches.facts(library(name), held)


@pytest.mark.parametrize(
    ("name", "held", "limit"),
    [
        ("streaming.base.dataset", {"cache_limit": 500}, (500, None)),
        (
            "streaming.base.dataset",
            {"cache_limit": 500, "shards": [Holder(file_pairs=[(Holder(bytes=n), None)]) for n in (300, 400)]},
            (500, 700),
        ),
        ("streaming.base.dataset", {"cache_limit": None, "shards": []}, None),
        ("litdata.streaming.dataset", {"max_cache_size": "1.5GB"}, (1_500_000_000, None)),
        ("litdata.streaming.dataset", {"max_cache_size": 0.9}, None),
        ("litdata.streaming.dataset", {"max_cache_size": None}, None),
        ("mine", {"cache_limit": 500}, None),
    ],
)
def test_a_cache_of_a_streamed_dataset(name: str, held: dict[str, Any], limit: tuple[int, int | None] | None) -> None:
    facts = kept(name, held)
    assert (facts.get("cache_bytes"), facts.get("stored_bytes")) == (limit or (None, None))
    assert (facts.get("cache_knob") is not None) == (limit is not None)


@pytest.mark.parametrize(
    ("held", "ranks", "nodes"),
    [
        ({"num_canonical_nodes": 16, "shuffle_algo": "py1e"}, {}, 16),
        ({"num_canonical_nodes": 16, "shuffle_algo": "py1e"}, {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, 8),
        ({"num_canonical_nodes": None, "shuffle_algo": "py1s"}, {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}, 64),
        ({"num_canonical_nodes": None, "shuffle_algo": "py1e"}, {}, 1),
        ({}, {}, 1),
    ],
)
def test_places_that_a_machine_reads_by_turns(
    held: dict[str, Any], ranks: dict[str, str], nodes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    facts = kept("streaming.base.dataset", {"cache_limit": 500, **held})
    assert facts["canonical_nodes"] == nodes
