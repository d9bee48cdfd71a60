"""Which stage a timed operator, a stack frame or a source line belongs to.

The leaf-most known name wins. Tables name libraries by what they do; the user's own functions are known by the calls
in the source line at hand, then by their names. Pure functions; knows nothing of a recording.
"""

from __future__ import annotations

import ast
import re
import warnings
from functools import lru_cache
from typing import cast

from loaderprof.findings import STAGES, Stage

# Stages of making a batch, in the order in which a sample passes through them.
WORK: tuple[Stage, ...] = ("read", "decode", "transform", "collate")
# Stages of the loader, whoever runs them; the others are the loop's.
LOADER: tuple[Stage, ...] = (
    "read",
    "decode",
    "transform",
    "collate",
    "handover",
    "sampler",
    "startup",
    "straggler",
    "contention",
)
# The prefix of what `loaderprof.stage` times.
BY_HAND = "loaderprof.stage."

# Library operators by dotted name, the first match wins.
OPERATORS: tuple[tuple[re.Pattern[str], Stage], ...] = tuple(
    (re.compile(pattern), cast(Stage, stage))
    for pattern, stage in (
        # Decoders: bytes into samples.
        (r"^torchvision\.datasets\.folder\.\w+_loader$", "decode"),
        (r"^PIL\.(Image\.open|ImageFile\.|\w+ImagePlugin\.)", "decode"),
        (r"^cv2\.im(read|decode)", "decode"),
        (r"^(imageio|simplejpeg|soundfile|wave|av|nibabel|pydicom|torchcodec|decord|tifffile|rasterio)\b", "decode"),
        (r"^(skimage\.io|librosa\.(load|core\.audio)|torchaudio\.(load|backend|_torchcodec)|torchvision\.io)", "decode"),
        (r"^(_?json|_?pickle|_?csv|base64|zlib|zipfile|gzip|_?bz2|_?lzma|re|ast|xml|yaml|html|lxml|bs4|orjson|msgpack)\b", "decode"),
        (r"NpzFile\.__getitem__|^numpy\.(loadtxt|genfromtxt)|^torch\.load$|^torch\.serialization", "decode"),
        (r"^pandas\.read_|^transformers\.|^tokenizers\.|^sentencepiece|^tiktoken", "decode"),
        (r"^datasets\.formatting|^webdataset\.(autodecode|handlers)|^zarr\.", "decode"),
        # Readers: from a disk, a network or another process.
        (r"^(builtins|io|_io)\.open|^os\.|^pathlib\.|^posix\.", "read"),
        (r"^(socket|ssl|select|urllib|http|requests|httpx|aiohttp|urllib3|fsspec|botocore|boto3|s3fs|gcsfs)\b", "read"),
        (r"^(tarfile|sqlite3|h5py|lmdb|pyarrow|datasets|webdataset\.(tariterators|gopen)|streaming)\b", "read"),
        (r"^numpy\.(load|fromfile|memmap)|^pandas\.", "read"),
        # Everything else that libraries do to a sample.
        (r"^(torchvision|albumentations|monai|kornia|imgaug|augly|audiomentations|volumentations|timm\.data)\b", "transform"),
        (r"^(PIL|cv2|torch|torchaudio|librosa|scipy|skimage|numpy|numba)\b", "transform"),
    )
)  # fmt: skip

# Words in the names of the user's own functions and classes; weaker than what their lines call.
WORDS: tuple[tuple[re.Pattern[str], Stage], ...] = (
    (re.compile(r"collat\w*|pad|padd\w*|batchify"), "collate"),
    (
        re.compile(
            r"decod\w*|imread|imdecode|pars(e|er|es|ing)|\w*tokeni[sz]\w*|unpack\w*|decompress\w*|deseriali[sz]\w*|loads|"
            r"unpickle\w*|inflate|unzip"
        ),
        "decode",
    ),
    (
        re.compile(r"read|reads|reader|reading|fetch\w*|download\w*|requests?|readfile|disk|remote|https?|s3|storage|query|retrieve"),
        "read",
    ),
    (
        re.compile(
            r"transform\w*|augment\w*|aug|augs|normali[sz]\w*|resiz\w*|crop\w*|flip\w*|jitter\w*|blur\w*|noise|rotat\w*|"
            r"preprocess\w*|featuri[sz]\w*|features?|mel|spectrogram\w*|mixup|cutmix|eras\w*|warp\w*|filter\w*|distort\w*|"
            r"convert\w*|scal(e|ing)|standardi[sz]\w*|affine|elastic"
        ),
        "transform",
    ),
)  # fmt: skip

# Calls in a source line: the last part of a dotted name, or the whole of it.
LINE_CALLS: tuple[tuple[re.Pattern[str], Stage], ...] = tuple(
    (re.compile(pattern), cast(Stage, stage))
    for pattern, stage in (
        (r"(^|\.)(imread|imdecode|decode_jpeg|decode_image|read_image)$", "decode"),
        # A frame of a video is decoded as it is read.
        (r"(^|\.)(cap|capture|vcap|vidcap|vid|video|video_capture)\.(read|grab|retrieve|set)$|(^|\.)(VideoReader|VideoCapture)$", "decode"),
        (r"(^|\.)(get_batch|get_frames_at|get_frames_in_range|get_frames_played_at|read_video)$", "decode"),
        (r"^(json|pickle|orjson|yaml|msgpack|csv|zlib|gzip|bz2|lzma|base64|struct)\.", "decode"),
        (r"^(torch\.load|np\.loadtxt|numpy\.loadtxt|Image\.open|soundfile\.read|sf\.read|librosa\.load|torchaudio\.load)$", "decode"),
        (r"(^|\.)(decode|loads|tokenize|encode_plus|batch_encode_plus|decompress|decodebytes|readframes)$|token\w*(\.encode)?$", "decode"),
        (r"(^|\.)(read|readline|readlines|read_bytes|read_text|recv|recv_into|urlopen|pread|readinto|getresponse)$", "read"),
        (r"^(open|os\.read|os\.open|requests\.get|requests\.post|httpx\.get|np\.load|numpy\.load|np\.fromfile|np\.memmap)$", "read"),
        (r"(^|\.)(get_object|cat_file|download|execute|fetchone|fetchall)$|(^|\.)(txn|transaction|env|session|client)\.get$", "read"),
        (r"(^|\.)(sleep)$", "read"),
        # Taking text and records apart.
        (r"(^|\.)(split|rsplit|strip|rstrip|lstrip|splitlines|partition|lower|casefold|fromstring|unpack_from|from_bytes)$", "decode"),
        (r"(^|\.)(finditer|findall|fullmatch|match|reader|DictReader)$|^(float|int|ord|struct\.unpack)$", "decode"),
        (r"^(cv2|F|TF|T|A|v2|np|numpy|torch|scipy|skimage|transforms|ImageOps|ImageFilter|ImageEnhance)\.", "transform"),
    )
)  # fmt: skip

# Frames of torch's own loader and of libraries: (file, function) fragments, the leaf-most match wins.
FRAMES: tuple[tuple[re.Pattern[str], re.Pattern[str], Stage], ...] = tuple(
    (re.compile(file), re.compile(function), cast(Stage, stage))
    for file, function, stage in (
        (r"torch/utils/data/_utils/collate\.py", r".", "collate"),
        (r"torch/utils/data/sampler\.py", r".", "sampler"),
        (r"multiprocessing/(reduction|resource_sharer|queues|connection)\.py|torch/multiprocessing/", r".", "handover"),
        (r"torch/utils/data/_utils/pin_memory\.py", r".", "handover"),
        (r"PIL/(ImageFile|JpegImagePlugin|PngImagePlugin|WebPImagePlugin|TiffImagePlugin|GifImagePlugin)\.py", r".", "decode"),
        (r"PIL/Image\.py", r"^(open|preinit|init)$|_open_core", "decode"),
        (r"/(json|pickle|csv|gzip|zlib|bz2|lzma|_compression|base64|wave|xml/.*|html/.*)(/\w+)?\.py", r".", "decode"),
        (r"/(soundfile|librosa/core/audio|torchaudio/.*|torchvision/io/.*|nibabel/.*|pydicom/.*|imageio/.*)\.py", r".", "decode"),
        (r"/(transformers|tokenizers|sentencepiece|tiktoken)/", r".", "decode"),
        (r"numpy/lib/_?npyio", r"__getitem__|loadtxt|genfromtxt", "decode"),
        (r"torch/serialization\.py", r"load", "decode"),
        (r"/(socket|ssl|selectors|http/\w+|urllib/\w+|tarfile|zipfile|pathlib|sqlite3/\w+)\.py", r".", "read"),
        (r"/(requests|urllib3|httpx|httpcore|aiohttp|botocore|boto3|fsspec|s3fs|h5py|lmdb|pyarrow|datasets|webdataset)/", r".", "read"),
        (r"numpy/lib/_?npyio|numpy/lib/_?format|numpy/_core/(memmap|records)", r".", "read"),
        (r"/(torchvision|albumentations|monai|kornia|imgaug|audiomentations|cv2|scipy|skimage|PIL)/", r".", "transform"),
    )
)  # fmt: skip

_FRAME = re.compile(r"^(?P<function>.*?) \((?P<file>.*?)(?::(?P<line>\d+))?\)$")


_STRONGEST: tuple[Stage, ...] = ("decode", "read", "transform")


def stage_of_operator(name: str) -> Stage | None:
    """Return the stage of a timed operator by its dotted name; None where its name does not show it."""
    if name.startswith(BY_HAND):
        by_hand = name.removeprefix(BY_HAND)
        return by_hand if by_hand in STAGES else "transform"
    for pattern, stage in OPERATORS:
        if pattern.search(name):
            return stage
    return stage_of_words(name)


# Decoders that are given what they decode: what blocks them is no reading but their own threads.
_GIVEN = re.compile(
    r"^(transformers|tokenizers|sentencepiece|tiktoken|zlib|base64|re|ast|orjson|msgpack|torchvision\.io\.decode)\b|"
    r"^cv2\.imdecode|^simplejpeg|\.loads$|\.decompress$|^datasets\.formatting\.formatting\.format_table"
)


def never_reads(name: str) -> bool:
    """Whether a decoder of a library is handed its bytes or text, and so never waits for a read."""
    return _GIVEN.search(name) is not None


def stage_of_words(name: str) -> Stage | None:
    """Return the stage that the words of a user's function or class name suggest, the last part first; None if none do."""
    parts = [part for part in name.split(".") if part not in ("<locals>", "<lambda>", "__main__")]
    for part in reversed(parts):
        words = set(re.findall(r"[A-Z]{2,}(?![a-z])|[A-Z][a-z]*|[a-z]+", part))
        lower = {word.lower() for word in words} | {part.lower()}
        for pattern, stage in WORDS:
            if any(pattern.fullmatch(word) for word in lower):
                return stage
        if part in ("__call__", "forward"):
            continue
        if part in ("__getitem__", "__iter__", "__next__", "__getitems__"):
            return None
    return "transform" if parts and parts[-1] in ("__call__", "forward") else None


def split_frame(frame: str) -> tuple[str, str, int | None]:
    """Return (function, file, line) of a frame written `function (file:line)`."""
    match = _FRAME.match(frame)
    if match is None:
        return frame, "", None
    return match["function"], match["file"], int(match["line"]) if match["line"] else None


def stage_of_stack(frames: tuple[str, ...], sources: dict[str, str]) -> Stage | None:
    """Return the stage of a worker's stack, root first; None where nothing in it is known.

    Args:
        frames: `function (file:line)`, root first.
        sources: the text of the user's source lines, by `file:line`.
    """
    for frame in reversed(frames):
        function, file, line = split_frame(frame)
        for file_pattern, function_pattern, stage in FRAMES:
            if file_pattern.search(file) and function_pattern.search(function):
                return stage
        source = sources.get(f"{file}:{line}")
        if source is not None:
            known = stage_of_line(source) or stage_of_words(function)
            if known is not None:
                return known
    return None


@lru_cache(maxsize=4096)
def stage_of_line(source: str) -> Stage | None:
    """Return the stage of the calls in one source line; None where none is known.

    Of several, decoding before reading before transforming: `torch.from_numpy(np.load(path))` is a read that a
    transform only wraps.
    """
    known = set()
    for name in _calls(source):
        by_table = next((stage for pattern, stage in LINE_CALLS if pattern.search(name)), None)
        known.add(by_table or stage_of_words(name.rsplit(".", 1)[-1]))
    return next((stage for stage in _STRONGEST if stage in known), None)


def _calls(source: str) -> list[str]:
    """Return the dotted names that a source line calls, innermost first; a line that opens a block is completed."""
    text = source.strip()
    tree = None
    for candidate in (text, text + " pass", "if True:\n pass\n" + text + " pass", text.rstrip("([{,") or "0"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the user's code there is nothing to say here
                tree = ast.parse(candidate)
            break
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    if tree is None:
        return [match[0] for match in re.findall(r"((?:\w+\.)*\w+)(?=\()", text)] and re.findall(
            r"(?:\w+\.)*\w+(?=\()", text
        )
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [name for name in map(_dotted, (call.func for call in reversed(calls))) if name]


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return f"{inner}.{node.attr}" if inner else node.attr
    return ""
