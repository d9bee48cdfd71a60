"""Puts the hooks into every Python of the job: found first on PYTHONPATH, gone from `sys.path` at once.

It runs in interpreters that need not be ours, so: standard library only, the syntax of Python 3.8, no
output, no error of its own. It never imports torch; it waits until the job does.
"""

import os
import sys
from _thread import get_ident

TYPE_CHECKING = False  # importing `typing` would cost more than all the rest of this file
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

FOLDER = os.path.dirname(os.path.abspath(__file__))
PACKAGE = "loaderprof"
HOME = FOLDER.rsplit(os.sep + PACKAGE + os.sep, 1)[0]
HOOKED = frozenset(
    {
        "torch.utils.data.dataloader",
        "torchdata.stateful_dataloader.stateful_dataloader",
        "torchdata.nodes.loader",
        "spdl.pipeline._pipeline",
        "tensorflow.python.data.ops.dataset_ops",
        "tensorflow.python.data.ops.iterator_ops",
        "tensorflow.python.eager.polymorphic_function.polymorphic_function",
        "tensorflow.python.ops.script_ops",
        "ray.data.iterator",
        "monai.data.thread_buffer",
        "grain._src.python.data_loader",
    }
)


class Finder:
    """A `sys.meta_path` entry that finds loaderprof, and has the hooked modules patched once executed."""

    def __init__(self) -> None:
        self._searching: set[tuple[int, str]] = set()

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return a spec for the few names that concern us; None for others and where anything is odd."""
        try:
            if name == PACKAGE:
                from importlib.machinery import PathFinder

                # Before any installed one: journals are written and read by the same version.
                return PathFinder.find_spec(name, [HOME])
            return self._hooked(name, path, target) if name in HOOKED else None
        except Exception:
            return None

    def _hooked(self, name: str, path: "Sequence[str] | None", target: "ModuleType | None") -> "ModuleSpec | None":
        search = (get_ident(), name)
        if search in self._searching:  # another tool's finder does what this one does, and asked us in turn
            return None
        self._searching.add(search)
        try:
            for finder in list(sys.meta_path):
                find_spec = None if finder is self else getattr(finder, "find_spec", None)
                spec: ModuleSpec | None = find_spec(name, path, target) if find_spec else None
                if spec is not None:
                    _patch_when_executed(name, spec.loader)
                    return spec
        finally:
            self._searching.discard(search)
        return None


class Execution:
    """Stands in for the `exec_module` of one loader, whose type stays, until it has executed one module."""

    def __init__(self, name: str, loader: "Loader") -> None:
        self._name = name
        self._loader = loader
        self._original = loader.exec_module

    def __call__(self, module: "ModuleType") -> None:
        """Execute the module, and have it patched if it is the one."""
        if module.__name__ != self._name:  # a loader may serve many modules: a zip archive's does
            self._original(module)
            return
        if vars(self._loader).get("exec_module") is self:
            del vars(self._loader)["exec_module"]
        self._original(module)
        if sys.modules.get(self._name) is module:
            _patch(self._name)

    def watches(self, name: str) -> bool:
        """Return whether this is the module waited for."""
        return name == self._name


def _patch_when_executed(name: str, loader: "Loader | None") -> None:
    if loader is None or isinstance(loader, type) or not hasattr(loader, "exec_module"):
        return
    present = vars(loader).get("exec_module")
    if not (isinstance(present, Execution) and present.watches(name)):
        vars(loader)["exec_module"] = Execution(name, loader)


def _patch(name: str) -> None:
    """Hand a module just executed to the hooks; if that fails, say so in one line and let the job go on."""
    try:
        from loaderprof.capture.hooks import install

        install.patch(name)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        try:
            sys.stderr.write("loaderprof: capture is off: " + reason + "\n")
        except Exception:
            pass


def _install() -> None:
    """Arm the finder, and patch what a `.pth` file has imported before us."""
    sys.meta_path.insert(0, Finder())
    for name in HOOKED:
        if name in sys.modules:
            _patch(name)


def _import_shadowed() -> None:
    """Import the sitecustomize that this one hid; it takes our place, and its errors reach `site` as ever."""
    ours = sys.modules.pop(__name__)
    try:
        __import__(__name__)
    except ImportError as error:
        if error.name != __name__:
            raise
        sys.modules[__name__] = ours


if __name__ == "sitecustomize":
    sys.path[:] = [entry for entry in sys.path if entry != FOLDER]
    sys.path_importer_cache.pop(FOLDER, None)
    if os.environ.get("LOADERPROF_JOURNALS"):
        _install()
    _import_shadowed()
