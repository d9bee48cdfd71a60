"""Fields of records that are read from a recording: each is declared once, with its type and what a value must be.

A record is a frozen dataclass whose fields are made by the functions below. Each returns a default of the field's type,
so that mypy compares the annotation with the check. None: not recorded, or damaged.

Imports the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields
from typing import Any, TypeVar

Check = Callable[[Any], bool]
Record = TypeVar("Record")
# 36 years in nanoseconds: no monotonic clock shows more.
MAX_NS = 1 << 60
MAX_COUNT = 1 << 31
MAX_WORKERS = 1024
_CHECK, _MAKE = "check", "make"


def is_whole(low: int, high: int) -> Check:
    """Return the check for whole numbers from `low` to `high`, both included."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18 and math.isfinite(value)


def is_scalar(value: Any) -> bool:
    """Return whether a value is a text, a truth value or a number."""
    return isinstance(value, str | bool) or is_number(value)


def _is(kind: type) -> Check:
    return lambda value: isinstance(value, kind)


def _all(container: type, kind: Any) -> Check:
    def check(value: Any) -> bool:
        items = value.values() if isinstance(value, dict) else value
        return isinstance(value, container) and all(isinstance(item, kind) for item in items)

    return check


is_moment = is_whole(0, MAX_NS)
are_words = _all(dict, str | None)


def whole(low: int = 0, high: int = MAX_COUNT) -> int | None:
    """A whole number within bounds, both included."""
    return field(default=None, metadata={_CHECK: is_whole(low, high)})


def moment() -> int | None:
    """A moment or a span, nanoseconds; or an amount as large."""
    return field(default=None, metadata={_CHECK: is_moment})


def real() -> float | None:
    """A finite number."""
    return field(default=None, metadata={_CHECK: is_number})


def cost() -> float | None:
    """A finite number that is not negative."""
    return field(default=None, metadata={_CHECK: lambda value: is_number(value) and value >= 0})


def flag() -> bool | None:
    """A truth value."""
    return field(default=None, metadata={_CHECK: _is(bool)})


def text() -> str | None:
    """A text."""
    return field(default=None, metadata={_CHECK: _is(str)})


def scalar() -> str | float | None:
    """A text, a truth value or a number."""
    return field(default=None, metadata={_CHECK: is_scalar})


def texts() -> Sequence[str]:
    """A list of texts; empty where it was not recorded."""
    return field(default=(), metadata={_CHECK: _all(list, str)})


def words() -> Sequence[str | None] | None:
    """A list of texts, of which some may be unknown."""
    return field(default=None, metadata={_CHECK: _all(list, str | None)})


def named_texts() -> Mapping[str, str]:
    """Texts by name; empty where they were not recorded."""
    return field(default_factory=dict, metadata={_CHECK: _all(dict, str)})


def named_words() -> Mapping[str, str | None]:
    """Texts by name, of which some may be unknown; empty where they were not recorded."""
    return field(default_factory=dict, metadata={_CHECK: are_words})


def mapping() -> Mapping[str, Any]:
    """Values by name; empty where they were not recorded."""
    return field(default_factory=dict, metadata={_CHECK: _is(dict)})


def record(kind: type[Record], check: Check | None = None) -> Record:
    """A record of its own; an empty one where it was not recorded, or is none."""

    def make(values: Any) -> Record:
        return built(kind, values if isinstance(values, dict) else {})

    return field(default_factory=kind, metadata={_CHECK: check or _is(dict), _MAKE: make})


def optional_record(kind: type[Record]) -> Record | None:
    """A record of its own."""
    return field(default=None, metadata={_CHECK: _is(dict), _MAKE: lambda values: built(kind, values)})


def records(kind: type[Record]) -> Sequence[Record]:
    """A list of records; what is no record in it is left out."""

    def make(values: list[Any]) -> tuple[Record, ...]:
        return tuple(built(kind, each) for each in values if isinstance(each, dict))

    return field(default=(), metadata={_CHECK: _is(list), _MAKE: make})


def checks(kind: type[Any]) -> dict[str, Check]:
    """Return what a value of each field that a record is read from must be, by the field's name."""
    return {each.name: each.metadata[_CHECK] for each in fields(kind) if _CHECK in each.metadata}


def built(kind: type[Record], values: Mapping[str, Any], **more: Any) -> Record:
    """Return a record of what the values hold of its fields; those that fail their check are as if not recorded.

    Args:
        kind: the record's class.
        values: by name, as they were read.
        more: fields that are not read but given.
    """
    for each in fields(kind):  # type: ignore[arg-type]
        value = values.get(each.name)
        if value is not None and each.metadata.get(_CHECK, lambda _: False)(value):
            more[each.name] = each.metadata[_MAKE](value) if _MAKE in each.metadata else value
    return kind(**more)
