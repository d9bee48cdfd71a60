"""The walls of the house: imports go one way, thinking needs no torch, a worker imports next to nothing."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from made import Made
from truths import PLANS

PACKAGE = Path(__file__).parents[1] / "loaderprof"
MODULES = {
    ".".join(("loaderprof", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "sitecustomize.py"
}
# The rooms in the order in which they may import: each only what stands on a line before it, or beside it where they
# are one room. A name with a dot is a room inside another, and the longest name that fits counts.
LAYERS = (
    ("_version", "errors", "formatting"),
    ("recording",),
    ("findings",),
    ("capture.hooks",),
    ("capture",),
    ("analyze",),
    ("replay",),
    ("diagnose",),
    ("advise",),
    ("measure",),
    ("conclude_tf",),
    ("conclude",),
    ("report",),
    ("live", "finish"),
    ("api",),
    ("commands",),
    ("integrations",),
    ("cli",),
    ("__init__", "__main__"),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# What was seen and what is thought of it meet only in the recording.
THINKS = ("analyze", "replay", "diagnose", "advise")
CONCLUDES = (*THINKS, "conclude", "conclude_tf", "findings", "recording", "formatting", "errors", "report")
SITECUSTOMIZE = PACKAGE / "capture/inject/sitecustomize.py"
# What hooks patch they may import where the job has loaded it.
PATCHED = {"torch", "tensorflow"}
HEAVY = {"torch", "psutil", "pynvml", "torchvision", "tensorflow"}
# What workers may load of ours beside the hooks: found by folder, so that a new hook is inside the wall by itself.
BESIDE_HOOKS = {
    "loaderprof",
    "loaderprof._version",
    "loaderprof.capture",
    "loaderprof.capture.hooks",
    "loaderprof.recording",
    "loaderprof.recording.journal",
}
IN_JOB = BESIDE_HOOKS | {name for name in MODULES if name.startswith("loaderprof.capture.hooks.")}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported(path: Path, lazy: bool) -> frozenset[str]:
    """Return the modules that a file imports: as it is imported itself, and, where `lazy`, whenever."""
    found: set[str] = set()
    left: list[ast.AST] = [parsed(path)]
    while left:
        node = left.pop()
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else str(node.module))
        for child in ast.iter_child_nodes(node):
            later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            if not typing and (lazy or not later):
                left.append(child)
    return frozenset(found)


def ours(path: Path, lazy: bool = False) -> set[str]:
    return {name for name in imported(path, lazy) if name.split(".")[0] == "loaderprof"}


def room_of(module: str) -> str:
    inside = module.removeprefix("loaderprof").lstrip(".") or "__init__"
    fitting = [room for room in LEVEL if inside == room or inside.startswith(room + ".")]
    return max(fitting, key=len)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_one_way(module: str) -> None:
    room = room_of(module)
    # A name that the package itself hands out (`from loaderprof import read`) is in the last room.
    for needed in ours(MODULES[module], lazy=True) - {module}:
        other = room_of(needed)
        assert other == room or LEVEL[other] < LEVEL[room], f"{module} imports {needed}"


def test_no_module_needs_itself() -> None:
    """Not even by an import that waits inside a function."""
    graph = {module: ours(path, lazy=True) - {module} for module, path in MODULES.items()}
    # The package's public names are imported on first use.
    graph["loaderprof"] = set()
    done: set[str] = set()

    def visit(module: str, under_way: tuple[str, ...]) -> None:
        assert module not in under_way, " -> ".join((*under_way, module))
        if module not in done:
            for needed in graph.get(module, ()):
                visit(needed, (*under_way, module))
            done.add(module)

    for module in graph:
        visit(module, ())
    assert done == set(graph)


@pytest.mark.parametrize("module", sorted(name for name in MODULES if room_of(name) in CONCLUDES))
def test_thinking_and_reporting_import_nothing_of_the_job(module: str) -> None:
    everything = {name.split(".")[0] for name in imported(MODULES[module], lazy=True)}
    assert not everything & HEAVY
    assert "importlib" not in everything, "an import that no wall sees"
    assert not any(room_of(name).startswith("capture") for name in ours(MODULES[module], lazy=True))


@pytest.mark.parametrize("module", sorted(name for name in MODULES if room_of(name).startswith("capture")))
def test_capture_concludes_nothing(module: str) -> None:
    assert not {room_of(name) for name in ours(MODULES[module], lazy=True)} & {*THINKS, "findings", "report"}


@pytest.mark.parametrize("module", sorted(name for name in IN_JOB if name in MODULES))
def test_hooks_import_the_standard_library_only(module: str) -> None:
    needed = set(imported(MODULES[module], lazy=True))
    assert {name for name in needed if name.startswith("loaderprof")} <= IN_JOB
    assert {name.split(".")[0] for name in needed} - {"loaderprof", *PATCHED} <= set(sys.stdlib_module_names)
    # What a hook patches it imports only when it is called: a job without torch must not get it from us.
    assert not {name.split(".")[0] for name in imported(MODULES[module], lazy=False)} & PATCHED


def test_what_is_injected_imports_the_standard_library_and_the_hooks_only() -> None:
    needed = set(imported(SITECUSTOMIZE, lazy=True))
    assert {name for name in needed if name.startswith("loaderprof")} <= IN_JOB
    assert {name.split(".")[0] for name in needed} - {"loaderprof"} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("module", sorted(name for name in MODULES if room_of(name) not in ("report", "live")))
def test_only_reports_import_what_draws(module: str) -> None:
    assert not {name.split(".")[0] for name in imported(MODULES[module], lazy=True)} & {"rich", "matplotlib", "jinja2"}


# More than this and a module or function is two.
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_PARAMETERS = 400, 60, 7


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_and_functions_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            assert (node.end_lineno or 0) - node.lineno < MOST_LINES_OF_A_FUNCTION, node.name
            assert len([each for each in arguments if each not in ("self", "cls")]) <= MOST_PARAMETERS, node.name


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_prints(path: Path) -> None:
    calls = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_what_every_worker_imports_runs_on_python_3_8() -> None:
    for path in (*(MODULES[module] for module in IN_JOB), SITECUSTOMIZE):
        ast.parse(path.read_text(), feature_version=(3, 8))


BLOCK = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "psutil", "pynvml", "py_spy"}:
            raise ImportError(name + " is behind the wall")
sys.meta_path.insert(0, Wall())
"""


def test_a_recording_is_concluded_and_rendered_without_torch(tmp_path: Path) -> None:
    made = Made(tmp_path / "r")
    process = made.process()
    made.stacks(process.pid, ["<module> (/home/me/train.py:58)"], 30)
    made.finish(made.loop(process, PLANS["decode"][0]))
    program = (
        BLOCK
        + """
from loaderprof import cli
for arguments in (["report", "r"], ["report", "r", "--json"], ["report", "r", "--html", "page.html"],
                  ["check", "r", "--max-wait", "99%"], ["compare", "r", "r"],
                  ["export", "r", "--format", "chrome"], ["export", "r", "--format", "collapsed"]):
    assert cli.main(arguments) == 0, arguments
import loaderprof
assert loaderprof.read("r").findings().verdict.bottleneck == "decode"
assert not {"torch", "psutil", "pynvml"} & set(sys.modules)
assert not [name for name in sys.modules if name.startswith("loaderprof.capture")]
"""
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Image decode" in done.stdout
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_help_imports_nothing_heavy() -> None:
    program = """
import sys
from loaderprof import cli
try:
    cli.main(["--help"])
except SystemExit:
    pass
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "numpy", "psutil", "rich", "matplotlib", "jinja2"}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("\n[]\n")


TRAIN = """
import json, sys
from pathlib import Path
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, index):
        return json.dumps(sorted(sys.modules)) if index == 5 else ""

if __name__ == "__main__":
    loader = DataLoader(Numbers(), num_workers=1, multiprocessing_context="spawn")
    Path(sys.argv[1]).write_text(list(loader)[-1][0])
"""


@pytest.mark.slow
def test_a_worker_imports_the_standard_library_and_its_hooks(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "journals").mkdir()
    inject = {
        "PYTHONPATH": os.pathsep.join((str(PACKAGE / "capture/inject"), os.environ.get("PYTHONPATH", ""))),
        "LOADERPROF_JOURNALS": str(tmp_path / "journals"),
    }
    running = [
        subprocess.Popen(
            [sys.executable, "train.py", way],
            cwd=tmp_path,
            env={**os.environ, **more},
            stderr=subprocess.PIPE,
            text=True,
        )
        for way, more in (("bare", {}), ("hooked", inject))
    ]
    for process in running:
        assert process.communicate(timeout=100)[1] == ""
        assert process.returncode == 0
    assert len(list((tmp_path / "journals").glob("*.lpj"))) == 2
    bare, hooked = (set(json.loads((tmp_path / way).read_text())) for way in ("bare", "hooked"))
    more = {name for name in hooked - bare if name.split(".")[0] not in sys.stdlib_module_names}
    assert {name for name in more if name.startswith("loaderprof")} <= IN_JOB
    assert "loaderprof.capture.hooks.install" in more
    assert {name for name in more if not name.startswith("loaderprof")} <= {"sitecustomize"}


def test_what_is_waited_for_is_what_the_hooks_know() -> None:
    import importlib.util

    from loaderprof.capture import launch
    from loaderprof.capture.hooks import install, other_generators, other_iterators, tf_pipeline

    spec = importlib.util.spec_from_file_location("injected", launch.INJECT / "sitecustomize.py")
    assert spec is not None
    assert spec.loader is not None
    injected = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(injected)
    assert set(install.PATCHED_MODULES) == injected.HOOKED
    assert set(other_iterators.ITERATORS) == set(install.ITERATORS)
    assert {other_generators.RAY, other_generators.MONAI} == set(install.GENERATORS)
    assert {tf_pipeline.DATASETS, tf_pipeline.ITERATORS, tf_pipeline.FUNCTIONS, tf_pipeline.PYTHON} == set(
        install.TENSORFLOW
    )
