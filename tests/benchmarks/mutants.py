"""How many planted faults do the tests find? Mutants of the modules that everything else rests on.

    python tests/benchmarks/mutants.py                          60 faults in each module, about ten minutes
    python tests/benchmarks/mutants.py --faults 20 --only replay --seed 7

A mutant is a module with one fault: a comparison turned or moved by one, a sign, a number, `and` for `or`, a condition
that always or never holds. The module's tests run on it, the quick ones first, to the first that fails: it has found the
fault. Each runs in a fork of an interpreter that has pytest and numpy loaded. Survivors are printed with their line: each
is a test that is missing, or a change that makes no difference.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import multiprocessing
import os
import random
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
# Not the tests that damage files at random: they ask for no more than a sentence, and take half a minute.
READING = ["tests/recording/test_reader.py", "-k", "not harm"]
# Not those that hold it against real loaders: what a busy machine does to these would count as found.
REPLAYED = ["tests/replay/test_protocol.py", "-k", "not real"]
MODULES = {
    "replay": ("predict/replay.py", REPLAYED),
    "machine": ("predict/machine.py", REPLAYED),
    "timeline": ("diagnose/timeline.py", ["tests/analyze/test_timeline.py"]),
    "verdict": ("diagnose/verdict.py", ["tests/diagnose/test_verdict.py"]),
    "recording": ("recording.py", READING),
    "tables": ("tables.py", READING),
    "stacks": ("stacks.py", READING),
}
FOUND_SHARE = 0.85
# A fault may loop for ever, or gather without end: seconds for one test, and address space for all of them.
TIMEOUT_S, MEMORY_BYTES = 30, 8 << 30
PROCESSES = multiprocessing.get_context("forkserver")

_TURNED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_SIGNS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A module with one fault: its text, and the line as it was and as it is."""

    text: str
    line: int
    before: str
    after: str


def places(tree: ast.Module) -> list[ast.AST]:
    """Return the nodes that can hold a fault: of functions, without docstrings and annotations."""
    found: list[ast.AST] = []
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for statement in function.body:
                found += [node for node in ast.walk(statement) if faults(node)]
    return list(dict.fromkeys(found))


def faults(node: ast.AST) -> list[ast.AST]:
    """Return what a node may become."""
    made: list[ast.AST] = []
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        made.append(_with(node, ops=[_TURNED[type(node.ops[0])]()]))
    elif isinstance(node, ast.BinOp) and type(node.op) in _SIGNS:
        made.append(_with(node, op=_SIGNS[type(node.op)]()))
    elif isinstance(node, ast.BoolOp):
        made.append(_with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And()))
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        # One more in a thousand million makes no difference.
        made.append(_with(node, value=node.value + 1 if abs(node.value) < 1000 else node.value * 2))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        made.append(node.operand)
    elif isinstance(node, ast.IfExp | ast.If):
        made += [_with(node, test=ast.Constant(value)) for value in (True, False)]
    return made


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


class _Planted(ast.NodeTransformer):
    def __init__(self, place: ast.AST, fault: ast.AST) -> None:
        self.place, self.fault = place, fault

    def visit(self, node: ast.AST) -> ast.AST:
        return self.fault if node is self.place else self.generic_visit(node)


def mutants(source: str, count: int, seed: int) -> Iterator[Mutant]:
    """Yield so many mutants of a module, chosen at random."""
    lines = source.splitlines()
    number = len(places(ast.parse(source)))
    for chosen in random.Random(seed).sample(range(number), min(count, number)):
        tree = ast.parse(source)
        place = places(tree)[chosen]
        fault = random.Random(seed + chosen).choice(faults(place))
        before, after = ast.unparse(place), ast.unparse(fault)
        text = ast.unparse(ast.fix_missing_locations(_Planted(place, fault).visit(tree)))
        line = int(getattr(place, "lineno", 0))
        yield Mutant(text, line, before.splitlines()[0], after.splitlines()[0] + f"    in: {lines[line - 1].strip()}")


class _Faulty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module of the package from a text, not from its file."""

    def __init__(self, module: str, text: str) -> None:
        self.file = ROOT / "loaderprof" / module
        self.name = ".".join(self.file.relative_to(ROOT).with_suffix("").parts)
        self.text = text

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.file, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.text, self.file, "exec"), module.__dict__)


class _QuickFirst:
    """A plugin of pytest that notes how long each test takes, and runs those first that took the least before."""

    def __init__(self, took_s: dict[str, float]) -> None:
        self.took_s, self.last_s = took_s, {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self.took_s.get(item.nodeid, 0.0))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.last_s[report.nodeid] = self.last_s.get(report.nodeid, 0.0) + report.duration


def trial(module: str, tests: Sequence[str], text: str, took_s: dict[str, float], answers: Any) -> None:
    """Run tests on a module of another text, in a process of its own: sends how long they took, and ends with pytest's code."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(ROOT))
    sys.meta_path.insert(0, _Faulty(module, text))
    os.chdir(ROOT)
    quick_first = _QuickFirst(took_s)
    # What was loaded before the fork is not loaded anew for pytest's own assertions.
    loaded = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
    options = ["-q", "-x", "-p", "no:cacheprovider", *loaded, f"--timeout={TIMEOUT_S}", *tests]
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        code = pytest.main(options, plugins=[quick_first])
    answers.send(quick_first.last_s)
    sys.exit(code)


def tried(module: str, tests: Sequence[str], text: str, took_s: dict[str, float]) -> dict[str, float] | None:
    """Return how long each test took on a module of this text; None where one failed."""
    answers, sending = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=trial, args=(module, tests, text, took_s, sending))
    process.start()
    sending.close()
    with contextlib.suppress(EOFError):
        took_s = answers.recv()
    process.join()
    return None if process.exitcode else took_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=60, help="in each module")
    parser.add_argument("--only", choices=MODULES, help="in this module alone")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    PROCESSES.set_forkserver_preload(["pytest", "pytest_timeout", "hypothesis.strategies", "numpy"])
    enough = True
    for name in [asked.only] if asked.only else MODULES:
        module, tests = MODULES[name]
        source = (ROOT / "loaderprof" / module).read_text()
        began = time.monotonic()
        took_s = tried(module, tests, source, {})
        if took_s is None:
            print(f"{name}: its tests fail as it is")
            return 1
        planted = list(mutants(source, asked.faults, asked.seed))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            trials = [pool.submit(tried, module, tests, mutant.text, took_s) for mutant in planted]
        missed = [mutant for mutant, each in zip(planted, trials, strict=True) if each.result() is not None]
        share = 1 - len(missed) / len(planted)
        enough = enough and share >= FOUND_SHARE
        took = f"{time.monotonic() - began:.0f} s"
        print(
            f"{name}: {len(planted) - len(missed)} of {len(planted)} faults found, {share:.0%}, in {took}", flush=True
        )
        for mutant in missed:
            print(f"    line {mutant.line}: {mutant.before}  ->  {mutant.after}")
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
