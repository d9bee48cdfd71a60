"""What an input pipeline may call: found by walking from a dataset and a collate function, without running user code.

The dataset's and its wrappers' `__getitem__`, every transform reachable from them, the functions of the user's own
modules, and well-known library functions (decoders, readers, clients).

Standard library only, Python >= 3.8; it looks only at what the job had imported itself.
"""

from __future__ import annotations

import dis
import functools
import inspect
import sys
import types
from typing import Any, Dict, Iterable, List, Optional, Tuple

from loaderprof.capture.hooks import describe
from loaderprof.capture.hooks.stand_ins import ENTRIES, TRAMPOLINE, Function, Slot, Target, Timed, cell_contents, is_a

MAX_OBJECTS = 2000
MAX_DEPTH = 7
MAX_FUNCTIONS = 300
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
    "zipfile": ("ZipFile.__init__", "ZipFile.read", "ZipFile.open", "ZipExtFile.read"),
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
        "open",
        "Image.convert",
        "Image.resize",
        "Image.crop",
        "Image.rotate",
        "Image.transform",
        "Image.transpose",
        "Image.thumbnail",
        "Image.filter",
        "Image.reduce",
        "Image.tobytes",
        "fromarray",
    ),
    "PIL.ImageFile": ("ImageFile.load", "ImageFile.draft"),
    # PIL opens lazily; these calls show which format is decoded later.
    "PIL.JpegImagePlugin": ("JpegImageFile._open", "JpegImageFile.draft"),
    "PIL.PngImagePlugin": ("PngImageFile._open",),
    "PIL.WebPImagePlugin": ("WebPImageFile._open", "WebPImageFile.load"),
    "PIL.TiffImagePlugin": ("TiffImageFile._open",),
    "cv2": (
        "imread",
        "imdecode",
        "resize",
        "cvtColor",
        "warpAffine",
        "warpPerspective",
        "GaussianBlur",
        "flip",
        "remap",
        "medianBlur",
        "bilateralFilter",
        "LUT",
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
}


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
        own = function.__code__.co_filename != TRAMPOLINE.co_filename
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
        return (
            [cell_contents(cell) for cell in item.__closure__ or ()]
            + ([wrapped] if wrapped is not None else [])
            + named
        )
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
            _add_slot(found, cell, "cell_contents", cell_contents(cell), modules)
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
                _add(found, base, key, value, qualified(base, key))


def _add_slot(found: Dict[Tuple[int, Any], Target], owner: Any, key: Any, value: Any, modules: Any) -> None:
    """Add a function that a slot of an object, a container or a closure holds: Python's, C's, bound or partial."""
    function = value.func if is_a(value, functools.partial) else value
    function = function.__func__ if is_a(function, types.MethodType) else function
    if is_a(function, types.FunctionType) and not _generator(function):
        _note_module(function.__module__, modules)
    elif not is_a(function, types.BuiltinFunctionType):
        return
    if not _generator(function):
        _add(found, owner, key, value, qualified(function))


def _module_functions(module: types.ModuleType, found: Dict[Tuple[int, Any], Target]) -> None:
    for key, value in list(vars(module).items()):
        if is_a(value, types.FunctionType) and value.__module__ == module.__name__ and not _generator(value):
            _add(found, module, key, value, qualified(value))
        elif is_a(value, type) and value.__module__ == module.__name__ and not _is_torch_plumbing(value):
            for name, function in list(vars(value).items()):
                if isinstance(function, types.FunctionType) and not _special(name) and not _generator(function):
                    _add(found, value, name, function, qualified(value, name))


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


def qualified(item: Any, attribute: str = "") -> str:
    """Return `module.QualName[.attribute]@file:line`, the key under which the reader finds operator and line."""
    function = vars(item).get(attribute) if attribute and isinstance(item, type) else item
    if isinstance(function, (staticmethod, classmethod)):
        function = function.__func__
    code = getattr(function, "__code__", None)
    place = "@%s:%d" % (code.co_filename, code.co_firstlineno) if code is not None else ""
    name = getattr(item, "__qualname__", None) or type(item).__qualname__
    dotted = "%s.%s" % (getattr(item, "__module__", None) or "?", name)
    return dotted + ("." + attribute if attribute else "") + place
