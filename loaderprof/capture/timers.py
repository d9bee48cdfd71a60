"""Self time of every operator of an input pipeline, for the length of one batch.

Now and then one batch is timed in depth: the classes and functions it passes through are replaced by timed ones and
put back right after, so that ordinary batches run untouched code and no object the user can see changes. What is
timed: the dataset's and its wrappers' `__getitem__`, every transform reachable from them, the functions of the user's
own modules, and well-known library functions (decoders, readers, clients).

Standard library only; whatever it patches the job had imported itself. Writes nothing: the caller journals `Table`.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import time
import types
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

from loaderprof.capture import describe

_NOW = time.perf_counter_ns
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


class Target:
    """One attribute to replace for the length of a batch: a function of a class, a module, or a slot of an object."""

    __slots__ = ("attribute", "name", "original", "owner", "present")

    def __init__(self, owner: Any, attribute: Any, original: Any, name: str) -> None:
        self.owner, self.attribute, self.original, self.name = owner, attribute, original, name
        self.present = not isinstance(owner, type) or attribute in owner.__dict__

    def set(self, value: Any) -> None:
        if isinstance(self.owner, (list, dict)):
            self.owner[self.attribute] = value
        else:
            setattr(self.owner, self.attribute, value)

    def restore(self) -> None:
        if self.present:
            self.set(self.original)
        else:
            delattr(self.owner, self.attribute)


class Table:
    """Self time by operator within one batch: name -> [calls, wall_ns, cpu_ns], and (index, wall, cpu) by sample."""

    def __init__(self) -> None:
        self.rows: Dict[str, List[int]] = {}
        self.collate_rows: Dict[str, List[int]] = {}
        self.collating = False
        self.callers: Dict[str, str] = {}
        self.samples: List[Tuple[int, int, int]] = []
        self.calls = 0
        self._by_hand: List[str] = []
        self._thread = threading.get_ident()
        self._stack: List[List[int]] = []

    def timed(self, name: str, function: Callable[..., Any], is_sample: bool) -> Callable[..., Any]:
        """Return `function` with its self time charged to `name`; other threads pass through untimed."""
        row = self.rows.setdefault(name, [0, 0, 0])
        collate_row = self.collate_rows.setdefault(name, [0, 0, 0])
        stack, thread, ident = self._stack, self._thread, threading.get_ident

        @functools.wraps(function)
        def loaderprof_timed(*args: Any, **kwargs: Any) -> Any:
            if ident() != thread:
                return function(*args, **kwargs)
            inner = [0, 0]
            stack.append(inner)
            cpu, wall = _CPU(), _NOW()
            try:
                return function(*args, **kwargs)
            finally:
                wall, cpu = _NOW() - wall, _CPU() - cpu
                stack.pop()
                mine = collate_row if self.collating else row
                if not mine[0]:
                    self.callers.setdefault(name, users_line(sys._getframe(1)))
                self._charge(mine, inner, wall, cpu)
                if is_sample and len(self.samples) < MAX_SAMPLES:
                    index = args[-1] if args and isinstance(args[-1], int) else -1
                    self.samples.append((index, wall, cpu))

        return loaderprof_timed

    def begin_stage(self, name: str) -> Tuple[List[int], int, int]:
        """Charge what follows in this thread to a stage named by hand, whatever operators run inside it."""
        inner = [0, 0]
        self._stack.append(inner)
        self._by_hand.append("loaderprof.stage.%s" % name)
        self.callers.setdefault(self._by_hand[-1], users_line(sys._getframe(3)))
        return inner, _CPU(), _NOW()

    def end_stage(self, begun: Tuple[List[int], int, int]) -> None:
        """End the stage that `begin_stage` returned."""
        inner, cpu, wall = begun
        wall, cpu = _NOW() - wall, _CPU() - cpu
        self._stack.pop()
        self._charge([0, 0, 0], inner, wall, cpu)
        self._by_hand.pop()

    def _charge(self, row: List[int], inner: List[int], wall: int, cpu: int) -> None:
        """Book one call's self time, and its whole time in what called it."""
        if self._by_hand:
            row = self.rows.setdefault(self._by_hand[-1], [0, 0, 0])
        row[0] += 1
        row[1] += wall - inner[0]
        row[2] += cpu - inner[1]
        self.calls += 1
        if self._stack:
            self._stack[-1][0] += wall
            self._stack[-1][1] += cpu


def users_line(frame: Any) -> str:
    """Return `file:line` of the nearest frame that is the user's own code, from `frame` outwards; empty if none is."""
    for _ in range(30):
        if frame is None:
            break
        filename = frame.f_code.co_filename
        if not filename.startswith("<") and not describe.installed(filename):
            return "%s:%d" % (filename, frame.f_lineno)
        frame = frame.f_back
    return ""


class Timers:
    """The operators reachable from one dataset and collate function, found once a process and timed on demand."""

    def __init__(self, dataset: Any, collate: Any) -> None:
        self._roots = (dataset, collate)
        self._targets: Optional[List[Target]] = None
        self._sample_name = _qualified(type(dataset), "__getitem__")

    def __enter__(self) -> Table:
        if self._targets is None:
            self._targets = discover(*self._roots)
        table = Table()
        for target in self._targets:
            try:
                function = target.original
                unwrapped = function.__func__ if isinstance(function, (staticmethod, classmethod)) else function
                timed = table.timed(target.name, unwrapped, target.name == self._sample_name)
                target.set(type(function)(timed) if unwrapped is not function else timed)
            except (TypeError, AttributeError, ValueError):
                continue
        return table

    def __exit__(self, *_: object) -> None:
        for target in reversed(self._targets or []):
            try:
                target.restore()
            except (TypeError, AttributeError):
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


def _add(found: Dict[Tuple[int, Any], Target], owner: Any, attribute: Any, original: Any, name: str) -> None:
    if len(found) < MAX_FUNCTIONS + 200:
        found.setdefault((id(owner), attribute), Target(owner, attribute, original, name))


def _add_path(module: Any, path: str, found: Dict[Tuple[int, Any], Target]) -> None:
    owner, names = module, path.split(".")
    for name in names[:-1]:
        owner = getattr(owner, name, None)
    if owner is None:
        return
    # A class inherits what it does not define; only its own attribute may be replaced.
    original = vars(owner).get(names[-1]) if isinstance(owner, type) else getattr(owner, names[-1], None)
    if original is None or isinstance(original, (property, type)) or not callable(original):
        return
    _add(found, owner, names[-1], original, "%s.%s" % (getattr(module, "__name__", "?"), path))


def _reachable(roots: Iterable[Any]) -> Iterable[Any]:
    """Walk instance dictionaries, small containers, closures and partials; never calls a property or `__getattr__`."""
    seen, queue, count = set(), [(root, 0) for root in roots], 0
    while queue and count < MAX_OBJECTS:
        item, depth = queue.pop(0)
        if id(item) in seen or isinstance(item, (type, types.ModuleType, str, bytes, int, float, complex)):
            continue
        seen.add(id(item))
        count += 1
        yield item
        if depth < MAX_DEPTH:
            queue.extend((child, depth + 1) for child in _children(item))


def _children(item: Any) -> List[Any]:
    if isinstance(item, (list, tuple)):
        return list(item[:64])
    if isinstance(item, dict):
        return list(item.values()) if len(item) <= 64 else []
    if isinstance(item, functools.partial):
        return [item.func, *item.args[:16], *item.keywords.values()]
    if isinstance(item, types.MethodType):
        return [item.__self__, item.__func__]
    if isinstance(item, types.FunctionType):
        wrapped = item.__dict__.get("__wrapped__")
        return [_cell(cell) for cell in item.__closure__ or ()] + ([wrapped] if wrapped is not None else [])
    module = type(item).__module__ or ""
    if module.split(".")[0] in ("builtins", "numpy", "pandas", "pyarrow") or type(item).__name__ == "Tensor":
        return []
    state = getattr(item, "__dict__", None)
    held = list(state.values()) if isinstance(state, dict) and len(state) <= 256 else []
    methods = [value for base in type(item).__mro__ if _is_users(base.__module__) for value in vars(base).values()]
    return held + [value for value in methods if isinstance(value, types.FunctionType)]


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _targets_of(item: Any, found: Dict[Tuple[int, Any], Target], modules: Dict[str, types.ModuleType]) -> None:
    """Add what one object brings: its class's entry points, its class's own functions, functions in its slots."""
    if isinstance(item, (list, dict)):
        pairs = list(enumerate(item)) if isinstance(item, list) else list(item.items())
        for key, value in pairs[:64]:
            _add_slot(found, item, key, value, modules)
        return
    if isinstance(item, types.FunctionType):
        _note_module(item.__module__, modules)
        for cell in item.__closure__ or ():
            _add_slot(found, cell, "cell_contents", _cell(cell), modules)
        return
    if isinstance(item, (types.MethodType, functools.partial, tuple)):
        return
    cls = type(item)
    state = getattr(item, "__dict__", None)
    for key, value in list(state.items())[:256] if isinstance(state, dict) else ():
        _add_slot(found, item, key, value, modules)
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
    function = value.func if isinstance(value, functools.partial) else value
    function = function.__func__ if isinstance(function, types.MethodType) else function
    if isinstance(function, types.FunctionType) and not _generator(function):
        _note_module(function.__module__, modules)
    elif not isinstance(function, types.BuiltinFunctionType):
        return
    if not _generator(function):
        _add(found, owner, key, value, _qualified(function))


def _module_functions(module: types.ModuleType, found: Dict[Tuple[int, Any], Target]) -> None:
    for key, value in list(vars(module).items()):
        if isinstance(value, types.FunctionType) and value.__module__ == module.__name__ and not _generator(value):
            _add(found, module, key, value, _qualified(value))
        elif isinstance(value, type) and value.__module__ == module.__name__ and not _is_torch_plumbing(value):
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
