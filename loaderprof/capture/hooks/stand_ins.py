"""Stand-ins that time what they stand for, for the length of one batch, and the table that they fill.

A Python function keeps its identity: its code is exchanged. What is none is replaced where it is held. Each call's self
time is charged to its operator.

Standard library only, Python >= 3.8: every worker imports this.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
import types
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

from loaderprof.capture.hooks import describe
from loaderprof.capture.hooks.frames import unseen

_NOW = time.perf_counter_ns
_IDENT = threading.get_ident
_CPU = time.thread_time_ns
MAX_SAMPLES = 64
# Where a pipeline enters an object of its own or of a library.
ENTRIES = ("__getitem__", "__getitems__", "__call__", "forward", "__next__")
# Libraries whose functions call other timed ones as part of their own work: formatting a row makes its tensors.
_OWNERS = ("datasets", "transformers", "librosa", "nibabel", "pandas", "pyarrow", "webdataset")
# Functions whose first argument is a file: the first one called for a sample gives the sample its file name.
OPENERS = frozenset(
    (
        "builtins.open",
        "io.open",
        "os.open",
        "pathlib.Path.read_bytes",
        "pathlib.Path.open",
        "PIL.Image.open",
        "cv2.imread",
        "imageio.imread",
        "imageio.v3.imread",
        "numpy.load",
        "numpy.fromfile",
        "torch.load",
        "soundfile.read",
        "librosa.load",
        "torchaudio.load",
        "torchvision.io.read_image",
        "torchvision.io.decode_image",
        "torchvision.io.read_file",
        "torchvision.io.read_video",
        "av.open",
        "nibabel.load",
        "pydicom.dcmread",
        "pandas.read_csv",
        "pandas.read_parquet",
    )
)
# Separates an operator's name from the user's line in the rows of one that is called from several lines.
FROM = "@from "
_NOTHING = object()
# One call under way: [wall ns, CPU ns] of the timed calls inside it, and the library operator that these belong to.
_Call = List[Any]


class Function:
    """A Python function whose code is exchanged for the length of a batch, so that the object stays the one it is."""

    __slots__ = ("_code", "_function", "_trampoline", "name")

    def __init__(self, function: Any, name: str) -> None:
        self.name, self._function, self._code = name, function, function.__code__
        self._trampoline: Any = None

    def begin(self, table: Table, is_sample: bool) -> None:
        """Have every call of the function timed."""
        function, code = self._function, self._code
        if function.__code__ is not code:
            return
        itself = types.FunctionType(
            code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
        )
        itself.__kwdefaults__ = function.__kwdefaults__
        itself.__dict__.update(function.__dict__)
        timed = Timed(table, self.name, itself, is_sample)
        stand_in = {_CALL: _timed_call, _TIMED: timed}
        self._trampoline = TRAMPOLINE.replace(
            co_consts=tuple(stand_in.get(item, item) for item in TRAMPOLINE.co_consts),
            co_freevars=code.co_freevars,
            co_name=code.co_name,
            co_firstlineno=code.co_firstlineno,
        )
        # With this `inspect.signature` still shows the function's own arguments.
        function.__dict__.setdefault("__wrapped__", itself)
        function.__code__ = self._trampoline

    def end(self) -> None:
        """Give the function its own code again."""
        trampoline, self._trampoline = self._trampoline, None
        if trampoline is not None and self._function.__code__ is trampoline:
            self._function.__code__ = self._code
            wrapped = self._function.__dict__.get("__wrapped__")
            if getattr(wrapped, "__code__", None) is self._code:
                del self._function.__dict__["__wrapped__"]


class Slot:
    """What is no Python function, and so has to be replaced where it is held: in a module, an object, a closure.

    The dictionary of a module or an object stands for it, so that no `__setattr__` of the user's runs.
    """

    __slots__ = ("_attribute", "_installed", "_original", "_owner", "name")

    def __init__(self, owner: Any, attribute: Any, original: Any, name: str) -> None:
        self._owner, self._attribute, self._original, self.name = owner, attribute, original, name
        self._installed = _NOTHING

    def begin(self, table: Table, is_sample: bool) -> None:
        """Put a timed stand-in into the slot."""
        timed = Timed(table, self.name, self._original, is_sample)
        self._store(self._attribute, timed)
        self._installed = timed

    def end(self) -> None:
        """Put the original back; whatever the user's code has put there meanwhile stays."""
        installed, self._installed = self._installed, _NOTHING
        if installed is _NOTHING:
            return
        if is_a(self._owner, list):
            for place in range(list.__len__(self._owner)):
                if list.__getitem__(self._owner, place) is installed:
                    self._store(place, self._original)
        elif self._held() is installed:
            self._store(self._attribute, self._original)

    def _held(self) -> Any:
        if is_a(self._owner, dict):
            return dict.get(self._owner, self._attribute)
        return cell_contents(self._owner) if is_a(self._owner, _CELL) else vars(self._owner).get(self._attribute)

    def _store(self, place: Any, value: Any) -> None:
        if is_a(self._owner, list):
            list.__setitem__(self._owner, place, value)
        elif is_a(self._owner, dict):
            dict.__setitem__(self._owner, place, value)
        else:
            setattr(self._owner, place, value)


Target = Union[Function, Slot]
_CELL = type((lambda held: lambda: held)(0).__closure__[0])  # type: ignore[index]


def is_a(item: Any, kinds: Any) -> bool:
    """Like isinstance, which would ask an object for its `__class__`: a lazy proxy then loads what it stands for."""
    return issubclass(type(item), kinds)


def cell_contents(cell: Any) -> Any:
    """Return what a closure's cell holds; None where it is still empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


class Timed:
    """Stands in for a callable for the length of a batch: its self time is charged to `name` in this thread.

    It equals the callable, so that it is found where that is a key, and is pickled and copied as that.
    """

    __slots__ = ("__wrapped__", "inherited", "is_sample", "name", "opens", "owns", "rows", "table")

    def __init__(self, table: Table, name: str, function: Callable[..., Any], is_sample: bool) -> None:
        self.__wrapped__, self.table, self.name, self.is_sample = function, table, name, is_sample
        # One entry point of a library serves many transforms, so a call is named after the class of its object.
        self.inherited: Optional[Dict[int, str]] = {} if _inheritable(name) else None
        self.owns = _owns(name)
        self.opens = name in OPENERS
        self.rows: Dict[Any, List[int]] = {}

    @unseen
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return _timed_call(self, args, kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        # What C defines (`len`, say) binds to no instance.
        if instance is None or not hasattr(type(self.__wrapped__), "__get__"):
            return self
        return types.MethodType(self, instance)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __eq__(self, other: object) -> bool:
        return self is other or self.__wrapped__ == other

    def __hash__(self) -> int:
        return hash(self.__wrapped__)

    def __reduce__(self) -> Any:
        module, name = getattr(self.__wrapped__, "__module__", None), getattr(self.__wrapped__, "__name__", "")
        if vars(sys.modules.get(str(module), types)).get(name) is self:
            return _by_name, (module, name)
        return _itself, (self.__wrapped__,)


@unseen
def _timed_call(timed: Timed, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
    table = timed.table
    if table.thread != _IDENT():
        return timed.__wrapped__(*args, **kwargs)
    name, owns, stack = timed.name, timed.owns, table.stack
    if timed.inherited is not None and args:
        name = timed.inherited.get(id(type(args[0]))) or _own_name(timed, type(args[0]))
    owner: str = stack[-1][2] if stack and owns is not False else ""
    call: _Call = [0, 0, owner if owns is None else name if owns else ""]
    stack.append(call)
    if timed.opens and args and not table.file:
        table.file = _path(args[0])
    cpu, wall = _CPU(), _NOW()
    try:
        return timed.__wrapped__(*args, **kwargs)
    finally:
        wall, cpu = _NOW() - wall, _CPU() - cpu
        stack.pop()
        key: Any = (name, owner, table.collating)
        if owns is None:
            # Called from several lines of the user's, it has a row for each.
            frame = sys._getframe(1)
            frame = frame if frame.f_code.co_filename != _OURS else frame.f_back or frame
            key = (owner, table.collating, frame.f_lineno, frame.f_code.co_filename)
        mine = timed.rows.get(key)
        if mine is None:
            mine = timed.rows[key] = table.row(name, owner, users_line(sys._getframe(1)))
        table.charge(mine, call, wall, cpu)
        if timed.is_sample and len(table.samples) < MAX_SAMPLES:
            index = args[-1] if args and type(args[-1]) is int else -1
            table.samples.append((index, wall, cpu, table.file))
            table.file = ""


def _path(file: Any) -> str:
    """Return a file's name as it was given; empty for what is none, asking nothing of an object of the user's."""
    if type(file) is str:
        return file
    return str(file) if type(file).__module__.split(".")[0] == "pathlib" else ""


def _inheritable(name: str) -> bool:
    dotted, _, place = name.partition("@")
    return bool(place) and dotted.rpartition(".")[2] in ENTRIES and describe.installed(place)


def _owns(name: str) -> Optional[bool]:
    """Whether calls inside this one are part of it: a library's operator, True; the user's code, False; else None.

    None: a function of a library's that may itself be part of an operator.
    """
    dotted, _, place = name.partition("@")
    if place:
        return describe.installed(place)
    return True if dotted.split(".")[0] in _OWNERS else None


def _own_name(timed: Timed, kind: type) -> str:
    """Return the name of a library's entry point on an object of a class; asks nothing of a metaclass of the user's."""
    dotted, _, place = timed.name.partition("@")
    method, known = dotted.rpartition(".")[2], timed.name
    module, name, bases = (type.__getattribute__(kind, each) for each in ("__module__", "__qualname__", "__mro__"))
    if any(method in type.__getattribute__(base, "__dict__") for base in bases):
        known = "%s.%s.%s@%s" % (module, name, method, place)
    if timed.inherited is not None:
        timed.inherited[id(kind)] = known
    return known


def _itself(function: Any) -> Any:
    return function


def _by_name(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


_CALL, _TIMED = 7_000_000_001, 7_000_000_002


@unseen
def _trampoline(*args: Any, **kwargs: Any) -> Any:
    # The numbers are replaced by the function and object that they stand for.
    call: Any = 7_000_000_001
    timed: Any = 7_000_000_002
    return call(timed, args, kwargs)


TRAMPOLINE = _trampoline.__code__
_OURS = TRAMPOLINE.co_filename
_FETCHES = _OURS.replace("stand_ins.py", "fetches.py")


class Table:
    """Self time by operator within one batch: name -> [calls, wall_ns, cpu_ns]; (index, wall, cpu, file) by sample.

    A name is `operator[@file:line][@in operator@file:line]`, the latter being the library's operator that called it;
    `callers` maps it to the user's line. One called from several lines has a row for each, the line appended after `FROM`.
    """

    def __init__(self) -> None:
        self.rows: Dict[str, List[int]] = {}
        self.collate_rows: Dict[str, List[int]] = {}
        self.collating = False
        self.callers: Dict[str, str] = {}
        self.samples: List[Tuple[int, int, int, str]] = []
        # The first file that was opened for the sample under way.
        self.file = ""
        self.calls = 0
        self.thread = _IDENT()
        self.stack: List[_Call] = []
        self._by_hand: List[str] = []

    def end(self) -> None:
        """Time nothing more: user code may have kept a stand-in of ours."""
        self.thread = 0

    def row(self, name: str, owner: str, caller: str) -> List[int]:
        """Return the row of an operator as part of a library's `owner`, called from a line of the user's."""
        text = "%s@in %s" % (name, owner) if owner and owner != name else name
        if self.callers.setdefault(text, caller) != caller and "@" not in name:
            text += FROM + caller
            self.callers[text] = caller
        return (self.collate_rows if self.collating else self.rows).setdefault(text, [0, 0, 0])

    def begin_stage(self, name: str) -> Tuple[_Call, int, int]:
        """Charge what follows in this thread to a stage named by hand, whatever operators run inside it."""
        call: _Call = [0, 0, ""]
        self.stack.append(call)
        self._by_hand.append("loaderprof.stage.%s" % name)
        self.callers.setdefault(self._by_hand[-1], users_line(sys._getframe(3)))
        return call, _CPU(), _NOW()

    def end_stage(self, begun: Tuple[_Call, int, int]) -> None:
        """End the stage that `begin_stage` returned."""
        call, cpu, wall = begun
        wall, cpu = _NOW() - wall, _CPU() - cpu
        self.stack.pop()
        self.charge([0, 0, 0], call, wall, cpu)
        self._by_hand.pop()

    def charge(self, row: List[int], call: _Call, wall: int, cpu: int) -> None:
        """Book one call's self time, and its whole time in what called it."""
        if self._by_hand:
            row = self.rows.setdefault(self._by_hand[-1], [0, 0, 0])
        row[0] += 1
        row[1] += wall - call[0]
        row[2] += cpu - call[1]
        self.calls += 1
        if self.stack:
            self.stack[-1][0] += wall
            self.stack[-1][1] += cpu


def users_line(frame: Any) -> str:
    """Return `file:line` of the user's own code nearest to `frame`, within the making of the batch; empty for none."""
    for _ in range(60):
        if frame is None:
            break
        filename = frame.f_code.co_filename
        if filename == _FETCHES:
            # Frames further out only asked for the batch.
            break
        if not filename.startswith("<") and not describe.installed(filename):
            return "%s:%d" % (filename, frame.f_lineno)
        frame = frame.f_back
    return ""
