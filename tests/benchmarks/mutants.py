"""How many planted faults do the tests find? Mutants of the modules that everything else rests on.

    python tests/benchmarks/mutants.py                          60 faults in each module, about ten minutes
    python tests/benchmarks/mutants.py --faults 20 --only replay

A mutant is a copy of the package with one fault: a comparison turned or moved by one, a sign, a number, `and` for `or`, a
condition that always or never holds. The module's tests run on it; one that fails has found it. Survivors are printed with
their line: each is a test that is missing, or a change that makes no difference.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = {
    # Not the tests that hold it against real loaders: what a busy machine does to these would count as found.
    "replay": ("predict/replay.py", ["tests/predict/test_replay.py", "-k", "not real"]),
    "timeline": (
        "diagnose/timeline.py",
        ["tests/diagnose/test_timeline.py", "tests/test_background.py", "tests/test_epochs.py", "tests/test_zipped.py"],
    ),
    "verdict": ("diagnose/verdict.py", ["tests/diagnose/test_verdict.py"]),
    "recording": ("recording.py", ["tests/test_recording.py", "tests/diagnose/test_pools.py"]),
}
FOUND_SHARE = 0.85
TIMEOUT_S = 120

_TURNED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_SIGNS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult,
    ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


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


def found(module: str, tests: list[str], mutant: Mutant | None) -> bool:
    """Return whether the tests fail on a mutant; None: on the module as it is."""
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(ROOT / "loaderprof", Path(name, "loaderprof"))
        if mutant is not None:
            Path(name, "loaderprof", module).write_text(mutant.text)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *tests]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env={**os.environ, "PYTHONPATH": name, "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True, timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return True
        return done.returncode != 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=60, help="in each module")
    parser.add_argument("--only", choices=MODULES, help="in this module alone")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    enough = True
    for name in [asked.only] if asked.only else MODULES:
        module, tests = MODULES[name]
        if found(module, tests, None):
            print(f"{name}: its tests fail as it is")
            return 1
        planted = list(mutants((ROOT / "loaderprof" / module).read_text(), asked.faults, asked.seed))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            outcomes = list(pool.map(lambda mutant: found(module, tests, mutant), planted))  # noqa: B023 - used at once
        share = sum(outcomes) / len(planted)
        enough = enough and share >= FOUND_SHARE
        print(f"{name}: {sum(outcomes)} of {len(planted)} faults found, {share:.0%}")
        for mutant in (each for each, seen in zip(planted, outcomes, strict=True) if not seen):
            print(f"    line {mutant.line}: {mutant.before}  ->  {mutant.after}")
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
