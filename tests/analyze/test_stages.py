"""Names, frames and lines of real libraries, and the stage that each belongs to."""

from __future__ import annotations

import csv
import gzip
import importlib
import inspect
import json
import pathlib
import pickle
import socket
import tarfile
import urllib.request
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaderprof.analyze import stages
from loaderprof.analyze.stages import split_frame, stage_of_line, stage_of_operator, stage_of_stack, stage_of_words
from loaderprof.findings import STAGES, Stage


def dotted(function: Any) -> str:
    """The name by which a timer knows a function."""
    return f"{function.__module__}.{function.__qualname__}"


def frame(function: Any) -> str:
    """A frame as py-spy writes it."""
    lines = inspect.getsourcelines(function)
    return f"{function.__name__} ({inspect.getsourcefile(function)}:{lines[1] + 1})"


@pytest.mark.parametrize(
    ("function", "stage"),
    [
        (json.loads, "decode"), (pickle._loads, "decode"), (csv.DictReader.__next__, "decode"), (gzip.decompress, "decode"),
        (urllib.request.urlopen, "read"), (socket.socket.makefile, "read"), (tarfile.TarFile.extractfile, "read"),
        (pathlib.Path.read_bytes, "read"),
    ],
    ids=lambda value: value if isinstance(value, str) else dotted(value),
)  # fmt: skip
def test_functions_of_the_standard_library_are_known(function: Any, stage: Stage) -> None:
    assert stage_of_operator(dotted(function)) == stage
    assert stage_of_stack((frame(function),), {}) == stage


@pytest.mark.parametrize(
    ("module", "name", "stage"),
    [
        ("PIL.Image", "open", "decode"), ("PIL.ImageFile", "ImageFile.load", "decode"), ("PIL.Image", "Image.resize", "transform"),
        ("PIL.Image", "Image.convert", "transform"), ("PIL.JpegImagePlugin", "JpegImageFile._open", "decode"),
        ("PIL.PngImagePlugin", "PngImageFile._open", "decode"), ("PIL.ImageOps", "flip", "transform"),
        ("torchvision.transforms.transforms", "RandomResizedCrop.forward", "transform"),
        ("torchvision.transforms.transforms", "ToTensor.__call__", "transform"),
        ("torchvision.transforms.functional", "normalize", "transform"), ("torchvision.io.image", "read_image", "decode"),
        ("torch.serialization", "load", "decode"), ("soundfile", "read", "decode"),
        ("numpy.lib._npyio_impl", "NpzFile.__getitem__", "decode"),
    ],
)  # fmt: skip
def test_functions_of_libraries_are_known_by_their_own_names(module: str, name: str, stage: Stage) -> None:
    try:
        function: Any = importlib.import_module(module)
    except Exception as error:
        pytest.skip(f"{module} cannot be used here: {error}")
    for part in name.split("."):
        function = getattr(function, part)
    assert dotted(function) == f"{module}.{name}"
    assert stage_of_operator(dotted(function)) == stage
    assert stage_of_stack((frame(function),), {}) == stage


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("torchvision.transforms.transforms.RandomResizedCrop.forward", "transform"),
        ("torchvision.io.image.read_image", "decode"), ("cv2.imread", "decode"), ("cv2.imdecode", "decode"), ("cv2.resize", "transform"), ("io.open", "read"),
        ("builtins.open", "read"), ("os.read", "read"), ("posix.pread", "read"), ("h5py._hl.dataset.Dataset.__getitem__", "read"),
        ("numpy.load", "read"), ("zlib.decompress", "decode"), ("requests.api.get", "read"), ("re.Pattern.findall", "decode"),
        ("tokenizers.Tokenizer.encode", "decode"), ("albumentations.core.composition.Compose.__call__", "transform"),
        ("torch.Tensor.float", "transform"), ("numpy.ndarray.astype", "transform"), ("avatar.load", None), ("research.run", None),
        ("loaderprof.stage.decode", "decode"), ("loaderprof.stage.read", "read"), ("loaderprof.stage.my own", "transform"),
    ],
)  # fmt: skip
def test_operators_are_known_by_what_they_do(name: str, stage: Stage | None) -> None:
    assert stage_of_operator(name) == stage


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("__main__.Images.__getitem__", None), ("__main__.Images.__iter__", None), ("train.collate_fn", "collate"),
        ("train.pad_batch", "collate"), ("train.BatchPadder.pad", "collate"), ("train.decode_image", "decode"),
        ("train.parse_line", "decode"), ("train.MyTokenizer.run", "decode"), ("train.read_sample", "read"),
        ("train.Reader.get", "read"), ("train.download_shard", "read"), ("train.random_crop", "transform"),
        ("train.Normalise.__call__", "transform"), ("train.MyThing.__call__", "transform"), ("train.Block.forward", "transform"),
        ("train.main.<locals>.augment", "transform"), ("train.HTTPSource.get", "read"), ("train.thread_pool", None),
        ("train.spread", None), ("train.notebook", None), ("train.", None), ("", None),
    ],
)  # fmt: skip
def test_words_in_names_of_the_users_own_tell_their_stage(name: str, stage: Stage | None) -> None:
    assert stage_of_words(name) == stage


@pytest.mark.parametrize(
    ("line", "stage"),
    [
        ("raw = file.read()", "read"), ("with open(path, 'rb') as file:", "read"), ("data = np.load(path)", "read"),
        ("image = cv2.imdecode(raw, 1)", "decode"), ("record = json.loads(line)", "decode"),
        ("image = Image.open(path).convert('RGB')", "decode"), ("x = torch.load(path)", "decode"),
        ("x = np.fft.rfft(signal)", "transform"), ("x = F.interpolate(x, 224)", "transform"),
        # Of several, decoding before reading before transforming.
        ("image = decode(file.read())", "decode"), ("x = torch.from_numpy(np.load(path))", "read"),
        ("if cv2.imread(path) is None:", "decode"), ("for line in file.readlines():", "read"), ("else:", None),
        ("elif f(sock.recv(4096)):", "read"), ("x = torch.stack([", None), ("value = self.helper(index)", None),
        ("return x", None), ("", None), ("))) broken (", None), ("x = y[", None),
        ("image = cv2.resize(image, (224,", "transform"),
    ],
)  # fmt: skip
def test_source_lines_are_known_by_their_calls(line: str, stage: Stage | None) -> None:
    assert stage_of_line(line) == stage
    assert stage_of_line("        " + line) == stage


@pytest.mark.parametrize(
    "line", [r"x = re.findall('\d', text)", "if x is 1: y = read(x)", "-" * 100_000 + "1", "f(" * 5000]
)
def test_odd_lines_are_nobodys_business(line: str, recwarn: pytest.WarningsRecorder) -> None:
    stage_of_line.cache_clear()
    assert stage_of_line(line) in (None, *STAGES)
    assert not recwarn.list


def test_a_stack_belongs_to_its_leaf_most_known_frame() -> None:
    sources = {
        "/me/train.py:30": "return self.transform(self.load(path))", "/me/train.py:41": "raw = client.get_object(key)",
        "/me/train.py:50": "total += value * weight",
    }  # fmt: skip
    root = "fetch (/lib/torch/utils/data/_utils/fetch.py:54)"
    item = "__getitem__ (/me/train.py:30)"
    assert stage_of_stack((root, item, "load (/me/train.py:41)"), sources) == "read"
    assert stage_of_stack((root, item, "load (/me/train.py:41)", "f (/lib/PIL/ImageFile.py:300)"), sources) == "decode"
    assert stage_of_stack((root, item, "augment (/me/train.py:50)"), sources) == "transform"
    assert stage_of_stack((root, item, "mystery (/me/train.py:50)"), sources) in (None, "transform")
    assert stage_of_stack((root,), sources) is None
    assert stage_of_stack((), sources) is None


@pytest.mark.parametrize(
    ("function", "stage"),
    [
        ("torch.utils.data._utils.collate.default_collate", "collate"), ("torch.utils.data.sampler.RandomSampler.__iter__", "sampler"),
        ("multiprocessing.reduction.ForkingPickler.dumps", "handover"), ("multiprocessing.queues.Queue.get", "handover"),
    ],
)  # fmt: skip
def test_frames_of_torchs_own_loader_are_known(function: str, stage: Stage) -> None:
    parts = function.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        break
    assert stage_of_stack((frame(found),), {}) == stage


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("f (/a/b.py:12)", ("f", "/a/b.py", 12)), ("<module> (t.py:1)", ("<module>", "t.py", 1)),
        ("<lambda> (/a (b)/c.py:3)", ("<lambda>", "/a (b)/c.py", 3)), ("f (/a.py)", ("f", "/a.py", None)),
        ("odd", ("odd", "", None)), ("", ("", "", None)),
    ],
)  # fmt: skip
def test_frames_are_taken_apart(text: str, parts: tuple[str, str, int | None]) -> None:
    assert split_frame(text) == parts


@given(text=st.text(max_size=80))
def test_any_text_has_a_stage_or_none(text: str) -> None:
    for stage in (stage_of_operator(text), stage_of_words(text), stage_of_line(text), stage_of_stack((text,), {})):
        assert stage is None or stage in STAGES
    assert isinstance(split_frame(text)[0], str)


def test_tables_name_stages_of_the_contract() -> None:
    named = {stage for table in (stages.OPERATORS, stages.WORDS, stages.LINE_CALLS) for _, stage in table}
    assert named | {stage for *_, stage in stages.FRAMES} <= set(STAGES)
