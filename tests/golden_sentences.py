"""Sentences that users read, held in files under tests/golden: one file a catalogue, an entry a case.

A test checks an entry; `pytest --update-golden` over the tests that a file names in its first line writes it anew, and
its diff is what is reviewed. An entry is a line `[key]` and what is said below it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
Check = Callable[[str, str], None]


class Sentences:
    """One catalogue, read on first use, or begun anew where it is to be written."""

    def __init__(self, path: Path, tests: str, *, update: bool) -> None:
        self._path, self._update = path, update
        self._head = f"# Written by: pytest --update-golden {tests}\n"
        self._entries: dict[str, str] = {} if update else _parsed(path.read_text(encoding="utf-8"))

    def check(self, key: str, text: str) -> None:
        text = text.strip("\n")
        if self._update:
            assert self._entries.setdefault(key, text) == text, f"two texts of one key: {key}"
            self._path.parent.mkdir(exist_ok=True)
            entries = (f"\n[{key}]\n{text}\n" for key, text in sorted(self._entries.items()))
            self._path.write_text(self._head + "".join(entries), encoding="utf-8")
        else:
            assert text == self._entries[key]


def _parsed(text: str) -> dict[str, str]:
    _, *parts = re.split(r"^\[(.*)\]$", text, flags=re.MULTILINE)
    return {key: said.strip("\n") for key, said in zip(parts[::2], parts[1::2], strict=True)}
