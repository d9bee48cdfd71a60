"""Self time of every operator of an input pipeline, for the length of one batch.

Now and then one batch is timed in depth: the classes and functions it passes through are replaced by timed ones and
put back right after, so that ordinary batches run untouched code and no object the user can see changes. What is
timed: the dataset's and its wrappers' `__getitem__`, every transform reachable from them, the functions of the user's
own modules, and well-known library functions (decoders, readers, clients).

Standard library only; whatever it patches the job had imported itself. Writes nothing: the caller journals `Table`.
"""

from __future__ import annotations

import dis
import functools
import importlib
import inspect
import sys
import threading
import time
import types
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple, Union

from loaderprof.capture import describe
from loaderprof.capture.unseen import unseen

_NOW = time.perf_counter_ns
_IDENT = threading.get_ident
_CPU = time.thread_time_ns
MAX_OBJECTS = 2000
MAX_DEPTH = 7
MAX_FUNCTIONS = 300
MAX_SAMPLES = 64
# Where a pipeline enters an object of its own or of a library.
ENTRIES = ("__getitem__", "__getitems__", "__call__", "forward", "__next__")

# Library functions worth a name of their own, looked up only in modules the job has imported: module -> attributes.
LIBRARY: Dict[str, Tuple[str, ...]] = {
    "builtins": ("open",),
    "io": ("open",),
    "os": ("read", "pread", "open", "stat", "listdir", "scandir"),
    "pathlib": ("Path.read_bytes", "Path.read_text", "Path.open"),
    "json": ("loads", "load"),
    "pickle": ("loads", "load"),
    "zlib": ("decompress",),
    "gzip": ("decompress", "GzipFile.read", "GzipFile.readline"),
    "bz2": ("decompress", "BZ2File.read"),
    "lzma": ("decompress", "LZMAFile.read"),
    "csv": ("DictReader.__next__",),
    "base64": ("b64decode",),
    "re": ("sub", "split", "findall"),
    "tarfile": ("open", "TarFile.extractfile", "TarFile.next", "ExFileObject.read", "_FileInFile.read"),
    "zipfile": ("ZipFile.read", "ZipFile.open", "ZipExtFile.read"),
    "wave": ("open", "Wave_read.readframes"),
    "sqlite3": ("connect",),
    "socket": ("create_connection", "SocketIO.readinto", "socket.connect"),
    "urllib.request": ("urlopen",),
    "http.client": ("HTTPResponse.read", "HTTPConnection.getresponse", "HTTPConnection.request"),
    "requests.sessions": ("Session.request",),
    "httpx": ("Client.request",),
    "urllib3.connectionpool": ("HTTPConnectionPool.urlopen",),
    "fsspec.spec": ("AbstractBufferedFile.read", "AbstractFileSystem.cat_file"),
    "fsspec.asyn": ("sync",),
    "botocore.client": ("BaseClient._make_api_call",),
    "numpy": ("load", "fromfile", "loadtxt", "genfromtxt", "memmap"),
    "numpy.lib.npyio": ("NpzFile.__getitem__",),
    "numpy.lib._npyio_impl": ("NpzFile.__getitem__",),
    "PIL.Image": (
        "open", "Image.convert", "Image.resize", "Image.crop", "Image.rotate", "Image.transform", "Image.transpose",
        "Image.thumbnail", "Image.filter", "Image.reduce", "Image.tobytes", "fromarray",
    ),
    "PIL.ImageFile": ("ImageFile.load", "ImageFile.draft"),
    # Opening is lazy; these tell which format it is that is decoded later.
    "PIL.JpegImagePlugin": ("JpegImageFile._open", "JpegImageFile.draft"),
    "PIL.PngImagePlugin": ("PngImageFile._open",),
    "PIL.WebPImagePlugin": ("WebPImageFile._open", "WebPImageFile.load"),
    "PIL.TiffImagePlugin": ("TiffImageFile._open",),
    "cv2": (
        "imread", "imdecode", "resize", "cvtColor", "warpAffine", "warpPerspective", "GaussianBlur", "flip", "remap",
        "medianBlur", "bilateralFilter", "LUT",
    ),
    "imageio.v3": ("imread",),
    "imageio": ("imread",),
    "simplejpeg": ("decode_jpeg",),
    "soundfile": ("read", "SoundFile.read"),
    "librosa": ("load", "resample", "stft"),
    "librosa.feature": ("melspectrogram",),
    "torchaudio": ("load",),
    "torchvision.io": ("read_image", "decode_image", "decode_jpeg", "read_file", "read_video"),
    "av": ("open",),
    "h5py._hl.dataset": ("Dataset.__getitem__",),
    "h5py._hl.files": ("File.__init__",),
    "zarr.core.array": ("Array.__getitem__",),
    "pandas": ("read_csv", "read_parquet"),
    "pandas.core.indexing": ("_iLocIndexer.__getitem__", "_LocIndexer.__getitem__", "_LocationIndexer.__getitem__"),
    "pyarrow.parquet": ("read_table",),
    "pyarrow.parquet.core": ("read_table", "ParquetFile.read_row_group"),
    "datasets.arrow_dataset": ("Dataset._getitem", "Dataset.__getitems__"),
    "datasets.formatting.formatting": ("query_table", "format_table"),
    "transformers.tokenization_utils_base": ("PreTrainedTokenizerBase.__call__",),
    "nibabel": ("load",),
    "nibabel.dataobj_images": ("DataobjImage.get_fdata",),
    "pydicom": ("dcmread",),
    "torch": ("load", "from_numpy", "as_tensor", "tensor", "stack"),
    "torch.nn.functional": ("interpolate", "pad", "conv2d", "avg_pool2d", "grid_sample"),
}  # fmt: skip


# Those of them that others are part of, as making tensors is of formatting a row.
_OWNERS = ("datasets", "transformers", "librosa", "nibabel", "pandas", "pyarrow", "webdataset")
# Tells apart the rows of an operator that is called from several lines of the user's.
FROM = "@from "
_NOTHING = object()
# One call under way: wall and CPU time of the timed calls inside it, and the library's operator that they are part of.
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
        self._trampoline = _TRAMPOLINE.replace(
            co_consts=tuple(stand_in.get(item, item) for item in _TRAMPOLINE.co_consts),
            co_freevars=code.co_freevars, co_name=code.co_name, co_firstlineno=code.co_firstlineno,
        )  # fmt: skip
        # By this `inspect` still tells the function's own arguments.
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
        return _cell(self._owner) if is_a(self._owner, _CELL) else vars(self._owner).get(self._attribute)

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


class Timed:
    """Stands in for a callable for the length of a batch: its self time is charged to `name` in this thread.

    It equals the callable, so that it is found where that is a key, and is pickled and copied as that.
    """

    __slots__ = ("__wrapped__", "inherited", "is_sample", "name", "owns", "rows", "table")

    def __init__(self, table: Table, name: str, function: Callable[..., Any], is_sample: bool) -> None:
        self.__wrapped__, self.table, self.name, self.is_sample = function, table, name, is_sample
        # A library's entry point is many transforms' at once: it goes by the class of the object it is called on.
        self.inherited: Optional[Dict[int, str]] = {} if _inheritable(name) else None
        self.owns = _owns(name)
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
            table.samples.append((index, wall, cpu))


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


_TRAMPOLINE = _trampoline.__code__
_OURS = _TRAMPOLINE.co_filename
_FETCHES = _OURS.replace("timers.py", "fetches.py")


class Table:
    """Self time by operator within one batch: name -> [calls, wall_ns, cpu_ns], and (index, wall, cpu) by sample.

    A name is `operator[@file:line][@in operator@file:line]`, the latter being the library's operator that called it;
    `callers` tell the user's line of each. One called from several has a row for each, told apart by `FROM`.
    """

    def __init__(self) -> None:
        self.rows: Dict[str, List[int]] = {}
        self.collate_rows: Dict[str, List[int]] = {}
        self.collating = False
        self.callers: Dict[str, str] = {}
        self.samples: List[Tuple[int, int, int]] = []
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
            # What lies outside only asked for the batch.
            break
        if not filename.startswith("<") and not describe.installed(filename):
            return "%s:%d" % (filename, frame.f_lineno)
        frame = frame.f_back
    return ""


class Timers:
    """The operators reachable from one dataset and collate function, found once a process and timed on demand."""

    def __init__(self, dataset: Any, collate: Any) -> None:
        self._roots = (dataset, collate)
        self._targets: Optional[List[Target]] = None
        self._table: Optional[Table] = None
        self._sample_name = _qualified(type(dataset), "__getitem__")

    def __enter__(self) -> Table:
        if self._targets is None:
            self._targets = discover(*self._roots)
        self._table = table = Table()
        for target in self._targets:
            try:
                target.begin(table, target.name == self._sample_name)
            except Exception:  # it stays untimed
                continue
        return table

    def __exit__(self, *_: object) -> None:
        if self._table is not None:
            self._table.end()
        self._table = None
        for target in reversed(self._targets or []):
            try:
                target.end()
            except Exception:
                continue


def discover(dataset: Any, collate: Any) -> List[Target]:
    """Return what to time for a dataset and collate function. Reads object attributes without running user code."""
    found: Dict[Tuple[int, Any], Target] = {}
    modules: Dict[str, types.ModuleType] = {}
    for owner in _reachable((dataset, collate)):
        _targets_of(owner, found, modules)
    for module in list(modules.values()):
        _module_functions(module, found)
    for name, attributes in LIBRARY.items():
        library = sys.modules.get(name)
        for attribute in attributes if library is not None else ():
            _add_path(library, attribute, found)
    return list(found.values())


def _recursive(function: Any) -> bool:
    """Whether a function of the user's calls itself by name: timed, it would reach the recursion limit too soon."""
    code, name = function.__code__, function.__name__
    if name not in code.co_names or not _is_users(function.__module__):
        return False
    if function.__globals__.get(name) is function:
        return True
    before = None
    for step in dis.get_instructions(code):
        if step.argval == name and before == "self":
            return True
        before = step.argval if step.opname.startswith("LOAD_FAST") else None
    return False


def _add(found: Dict[Tuple[int, Any], Target], owner: Any, attribute: Any, original: Any, name: str) -> None:
    if len(found) >= MAX_FUNCTIONS + 200:
        return
    function = original.func if is_a(original, functools.partial) else original
    function = function.__func__ if is_a(function, (types.MethodType, staticmethod, classmethod)) else function
    if is_a(function, types.FunctionType):
        # A trampoline is there for another thread's batch, and will be gone when this one's is to be put back.
        own = function.__code__.co_filename != _TRAMPOLINE.co_filename
        if own and (id(function), "") not in found and not _recursive(function):
            found[id(function), ""] = Function(function, name)
    elif type(function) is not Timed:  # else another thread's, gone in a moment
        owner = vars(owner) if isinstance(owner, types.ModuleType) else owner
        found.setdefault((id(owner), attribute), Slot(owner, attribute, original, name))


def _add_path(module: Any, path: str, found: Dict[Tuple[int, Any], Target]) -> None:
    owner, names = module, path.split(".")
    for name in names[:-1]:
        owner = vars(owner).get(name)
        if not isinstance(owner, (type, types.ModuleType)):
            return
    # Its own attribute: a class inherits what it does not define, a lazy module imports what it does not hold yet.
    original = vars(owner).get(names[-1])
    if original is None or isinstance(original, (property, type)) or not callable(original):
        return
    _add(found, owner, names[-1], original, "%s.%s" % (getattr(module, "__name__", "?"), path))


def _reachable(roots: Iterable[Any]) -> Iterable[Any]:
    """Walk instance dictionaries, small containers, closures and partials; never calls a property or `__getattr__`."""
    seen, queue, count = set(), [(root, 0) for root in roots], 0
    while queue and count < MAX_OBJECTS:
        item, depth = queue.pop(0)
        item = item.__wrapped__ if type(item) is Timed else item
        if id(item) in seen or is_a(item, (type, types.ModuleType, str, bytes, int, float, complex)):
            continue
        seen.add(id(item))
        count += 1
        yield item
        if depth < MAX_DEPTH:
            queue.extend((child, depth + 1) for child in _children(item))


def _children(item: Any) -> List[Any]:
    if is_a(item, list):
        return list.__getitem__(item, slice(64))
    if is_a(item, tuple):
        return list(tuple.__getitem__(item, slice(64)))
    if is_a(item, dict):
        return list(dict.values(item)) if dict.__len__(item) <= 64 else []
    if is_a(item, functools.partial):
        return [item.func, *item.args[:16], *item.keywords.values()]
    if is_a(item, types.MethodType):
        return [item.__self__, item.__func__]
    if is_a(item, types.FunctionType):
        wrapped = item.__dict__.get("__wrapped__")
        named = _named_globals(item) if _is_users(item.__module__) else []
        return [_cell(cell) for cell in item.__closure__ or ()] + ([wrapped] if wrapped is not None else []) + named
    module = type(item).__module__ or ""
    if module.split(".")[0] in ("builtins", "numpy", "pandas", "pyarrow") or type(item).__name__ == "Tensor":
        return []
    state = describe.held(item)
    held = list(state.values()) if len(state) <= 256 else []
    # Methods, and transforms that stand in the class.
    return held + [value for base in type(item).__mro__ if _is_users(base.__module__) for value in vars(base).values()]


def _named_globals(function: types.FunctionType) -> List[Any]:
    """Return what a function of the user's calls by a global name: a pipeline is often built beside the dataset."""
    names = function.__code__.co_names[:64]
    return [function.__globals__[name] for name in names if dict.__contains__(function.__globals__, name)]


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _targets_of(item: Any, found: Dict[Tuple[int, Any], Target], modules: Dict[str, types.ModuleType]) -> None:
    """Add what one object brings: its class's entry points, its class's own functions, functions in its slots."""
    if is_a(item, (list, dict)):
        pairs = enumerate(list.__getitem__(item, slice(64))) if is_a(item, list) else list(dict.items(item))[:64]
        for key, value in pairs:
            _add_slot(found, item, key, value, modules)
        # A subclass of list or dict may be a dataset or a transform of the user's.
        if type(item) in (list, dict):
            return
    if is_a(item, types.FunctionType):
        _note_module(item.__module__, modules)
        for cell in item.__closure__ or ():
            _add_slot(found, cell, "cell_contents", _cell(cell), modules)
        return
    if is_a(item, (types.MethodType, functools.partial, tuple)):
        return
    cls = type(item)
    state = describe.held(item)
    for key, value in list(state.items())[:256]:
        _add_slot(found, state, key, value, modules)
    for base in cls.__mro__[:-1]:
        if base.__module__ in ("builtins", "typing", "abc", "collections.abc"):
            continue
        own = _is_users(base.__module__)
        if own:
            _note_module(base.__module__, modules)
        for key, value in list(vars(base).items()):
            if not isinstance(value, (types.FunctionType, staticmethod, classmethod)):
                continue
            entry = key in ENTRIES and not _is_torch_plumbing(base)
            if (entry or (own and not _special(key))) and not _generator(value):
                _add(found, base, key, value, _qualified(base, key))


def _add_slot(found: Dict[Tuple[int, Any], Target], owner: Any, key: Any, value: Any, modules: Any) -> None:
    """Add a function that a slot of an object, a container or a closure holds: Python's, C's, bound or partial."""
    function = value.func if is_a(value, functools.partial) else value
    function = function.__func__ if is_a(function, types.MethodType) else function
    if is_a(function, types.FunctionType) and not _generator(function):
        _note_module(function.__module__, modules)
    elif not is_a(function, types.BuiltinFunctionType):
        return
    if not _generator(function):
        _add(found, owner, key, value, _qualified(function))


def _module_functions(module: types.ModuleType, found: Dict[Tuple[int, Any], Target]) -> None:
    for key, value in list(vars(module).items()):
        if is_a(value, types.FunctionType) and value.__module__ == module.__name__ and not _generator(value):
            _add(found, module, key, value, _qualified(value))
        elif is_a(value, type) and value.__module__ == module.__name__ and not _is_torch_plumbing(value):
            for name, function in list(vars(value).items()):
                if isinstance(function, types.FunctionType) and not _special(name) and not _generator(function):
                    _add(found, value, name, function, _qualified(value, name))


def _note_module(name: Optional[str], modules: Dict[str, types.ModuleType]) -> None:
    if name and _is_users(name) and name in sys.modules and len(modules) < 32:
        modules[name] = sys.modules[name]


def _is_users(module: Optional[str]) -> bool:
    """Whether a module is the user's own code: not installed, not the standard library, not ours."""
    if not module or module.split(".")[0] in ("torch", "torchvision", "loaderprof", "numpy", "PIL"):
        return False
    path = getattr(sys.modules.get(module), "__file__", None) or ""
    if module in ("__main__", "__mp_main__"):
        return True
    return bool(path) and not describe.installed(path)


def _is_torch_plumbing(cls: type) -> bool:
    # Module.__call__ would double every forward; the dataset wrappers of torch keep no work of their own.
    return cls.__module__ in ("torch.nn.modules.module", "torch.utils.data.dataset", "typing", "collections")


def _special(name: str) -> bool:
    return name.startswith("__") and name not in ENTRIES


def _generator(value: Any) -> bool:
    function = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
    return inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function)


def _qualified(item: Any, attribute: str = "") -> str:
    """Return `module.QualName[.attribute]@file:line`, the key under which the reader finds operator and line."""
    function = vars(item).get(attribute) if attribute and isinstance(item, type) else item
    if isinstance(function, (staticmethod, classmethod)):
        function = function.__func__
    code = getattr(function, "__code__", None)
    place = "@%s:%d" % (code.co_filename, code.co_firstlineno) if code is not None else ""
    name = getattr(item, "__qualname__", None) or type(item).__qualname__
    dotted = "%s.%s" % (getattr(item, "__module__", None) or "?", name)
    return dotted + ("." + attribute if attribute else "") + place
