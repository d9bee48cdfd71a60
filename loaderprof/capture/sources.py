"""What a recording keeps of the user's sources: the lines that stacks passed through, the lines that make operators.

Read after the job has ended, in the supervisor.
"""

from __future__ import annotations

import ast
import linecache
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from loaderprof.capture.hooks.describe import installed

MAX_LINES = 2000
# A user's pipeline is written in a handful of files; what is larger than this was not written by hand.
MAX_FILES, MAX_BYTES = 64, 500_000
_PLACE = re.compile(r"\((?P<file>/.*):(?P<line>\d+)\)$")


def lines_of(frames: Iterable[str]) -> dict[str, str]:
    """Return `file:line` -> text for the frames `function (file:line)` that lie in the user's own files."""
    found: dict[str, str] = {}
    for frame in sorted(frames):
        match = _PLACE.search(frame)
        if match is None or installed(match["file"]) or len(found) >= MAX_LINES:
            continue
        text = linecache.getline(match["file"], int(match["line"])) if Path(match["file"]).is_file() else ""
        if text:
            found[f"{match['file']}:{match['line']}"] = text.strip()[:300]
    return found


def lines_with(pattern: re.Pattern[str], files: Iterable[str]) -> dict[str, str]:
    """Return `file:line` -> text of the lines in the user's files that hold a pattern."""
    found: dict[str, str] = {}
    for file in sorted(set(files))[:MAX_FILES]:
        for number, text in enumerate(linecache.getlines(file) if _is_small(Path(file)) else (), 1):
            if pattern.search(text):
                found[f"{file}:{number}"] = text.strip()[:300]
    return found


def lines_that_make(names: set[str], files: Iterable[str]) -> dict[str, str]:
    """Return name -> `file:line` of the one call in the user's files, and in what they import, that makes it.

    A name that several lines call is left out, because the line that was meant cannot be known.
    """
    calls: dict[str, set[str]] = {}
    queue = [Path(file) for file in sorted(set(files)) if not installed(file)]
    seen: set[Path] = set()
    while queue and len(seen) < MAX_FILES:
        file = queue.pop(0)
        tree = None if file in seen else _parsed(file)
        seen.add(file)
        if tree is None:
            continue
        for name, line in _calls(tree):
            if name in names:
                calls.setdefault(name, set()).add(f"{file}:{line}")
        queue += [beside for beside in _imported(tree, file.parent) if beside not in seen]
    return {name: next(iter(lines)) for name, lines in calls.items() if len(lines) == 1}


def _parsed(file: Path) -> ast.Module | None:
    try:
        return ast.parse(file.read_bytes()) if _is_small(file) else None
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def _is_small(file: Path) -> bool:
    try:
        return file.is_file() and file.stat().st_size < MAX_BYTES
    except OSError:
        return False


def _calls(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield each name of what is called, `Dataset` and `from_dict` of `datasets.Dataset.from_dict(...)`, with its line."""
    renamed = {
        alias.asname: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    for node in ast.walk(tree):
        called = node.func if isinstance(node, ast.Call) else None
        while isinstance(called, ast.Attribute):
            yield called.attr, called.end_lineno or called.lineno
            called = called.value
        if isinstance(called, ast.Name):
            yield renamed.get(called.id, called.id), called.lineno


def _imported(tree: ast.Module, folder: Path) -> Iterator[Path]:
    """Yield the user's own modules that a module imports, as files beside it."""
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or "", *(f"{node.module or ''}.{alias.name}".strip(".") for alias in node.names)]
        for module in filter(None, modules):
            path = folder.joinpath(*module.split("."))
            yield from (file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file())
