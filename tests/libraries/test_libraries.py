"""Pipelines as users of well-known libraries write them: the stage, the operator and the user's own line are right.

Each script marks with `# the limit` the line that costs the most, some with `# the second` the next one; where a
library makes that operator by itself, the line that asked for it. A library that is not installed skips its scripts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Lines between the marked one and the named one: a call may be written over several.
NEAR = 2


@dataclass(frozen=True)
class Expected:
    """What is to be named: the stage, words of which the operator's name holds one, the next operator's name, and the
    script with the marked line, where it is another one.

    Attributes:
        knob: what advice has to say, in the library's own words.
        unmeasured: what is not measured with this library, for the table of docs/ecosystem.md.
    """

    needs: str
    stage: str
    operators: tuple[str, ...]
    second: str = ""
    at: str = ""
    knob: str = ""
    unmeasured: str = ""


# Makers that are only seen from outside: by stacks in windows and by the kernel's account.
BY_STACKS = "single batches and samples of its makers: told by stacks"
EXPECTED = {
    "albumentations_elastic": Expected("albumentations cv2", "transform", ("ElasticTransform",), "Normalize"),
    "albumentations_imread": Expected("albumentations cv2", "decode", ("cv2.imread",)),
    "datasets_format": Expected("datasets", "decode", ("format_table",)),
    "datasets_generator": Expected("datasets", "transform", ("__iter__", "Stream")),
    "datasets_iterable": Expected("datasets", "decode", ("json.loads",)),
    "datasets_shards": Expected("datasets", "transform", ("smoothed",), at="rows", knob="into 2 shards"),
    "datasets_transform": Expected("datasets transformers", "decode", ("okeniz",)),
    "h5py_chunks": Expected("h5py", "read", ("h5py",)),
    "litdata_streaming": Expected("litdata", "transform", ("Ranked.ranks",)),
    "lmdb_pictures": Expected("lmdb", "decode", ("PIL.ImageFile",)),
    "monai_cache": Expected("monai scipy", "transform", ("Smoothed",), at="monai_pictures"),
    "monai_compose": Expected("monai", "transform", ("Rand3DElasticd",)),
    "opencv_filter": Expected("cv2", "transform", ("bilateralFilter",)),
    "pandas_rows": Expected("pandas", "read", ("pandas.core.indexing",)),
    "pyarrow_groups": Expected("pyarrow", "read", ("read_row_group",)),
    "soundfile_flac": Expected("soundfile", "decode", ("soundfile",)),
    "streaming_cache": Expected("streaming", "read", ("open", "__getitem__"), at="shards", knob="Raise cache_limit"),
    "streaming_nodes": Expected(
        "streaming", "read", ("open", "__getitem__"), at="shards", knob="Lower num_canonical_nodes"
    ),
    "streaming_shards": Expected("streaming", "decode", ("PIL.ImageFile",)),
    "timm_loader": Expected("timm torchvision", "transform", ("RandAugment",)),
    "torchvision_blur_and_jitter": Expected("torchvision", "transform", ("ColorJitter",), "GaussianBlur"),
    "torchvision_v1": Expected("torchvision", "decode", ("PIL.ImageFile",)),
    "torchvision_v2": Expected("torchvision", "transform", ("GaussianBlur",)),
    "transformers_collate": Expected("transformers", "collate", ("okeniz",)),
    "transformers_getitem": Expected("transformers", "decode", ("okeniz",)),
    "webdataset_decode": Expected("webdataset", "decode", ("PIL.ImageFile",)),
    "webdataset_map": Expected("webdataset", "transform", ("features",)),
    "accelerate_loop": Expected("accelerate", "transform", ("smoothed", "Smooth"), at="rows"),
    "lightning_fit": Expected("lightning torchvision", "transform", ("smoothed", "Smooth"), at="rows"),
    "transformers_trainer": Expected(
        "transformers accelerate", "transform", ("smoothed", "Smooth"), at="rows", knob="dataloader_num_workers"
    ),
    "fastai_learner": Expected("fastai fasthtml", "transform", ("smoothed", "Smooth"), at="rows"),
    "geometric_graphs": Expected("torch_geometric", "transform", ("smoothed", "Smooth")),
    "torchdata_stateful": Expected("torchdata", "transform", ("smoothed", "Smooth"), at="rows"),
    "torchdata_nodes": Expected("torchdata", "transform", ("smoothed", "Smooth"), at="rows", unmeasured=BY_STACKS),
    "sentence_transformers_trainer": Expected(
        "sentence_transformers transformers",
        "transform",
        ("scored", "smoothed"),
        at="rows",
        knob="dataloader_num_workers",
    ),
    "darts_model": Expected("darts torchvision", "transform", ("Smoothed",), knob='dataloader_kwargs["num_workers"]'),
    "setfit_trainer": Expected(
        "setfit", "collate", ("Slow", "preprocess"), knob="st_trainer.args.dataloader_num_workers"
    ),
    "monai_thread_loader": Expected(
        "monai scipy", "transform", ("Smoothed",), at="monai_pictures", unmeasured=BY_STACKS
    ),
    "ultralytics_infinite": Expected("ultralytics cv2", "decode", ("cv2.imdecode",)),
    "dask_array": Expected("dask", "transform", ("block", "smoothed"), at="rows"),
    "grain_loader": Expected("grain", "transform", ("smoothed", "Smooth"), at="rows"),
    "grain_dataset": Expected("grain", "transform", ("smoothed",), at="rows", unmeasured=BY_STACKS),
    "ray_batches": Expected(
        "ray",
        "transform",
        ("smoothed", "transformed"),
        at="rows",
        knob="map_batches",
        unmeasured=f"{BY_STACKS}; Ray's object store and local shuffle; workers on other machines",
    ),
    "keras_pydataset": Expected("keras", "transform", ("smoothed",), at="rows", unmeasured=BY_STACKS),
    "skorch_net": Expected(
        "skorch", "transform", ("smoothed", "Smooth"), at="rows", knob="iterator_train__num_workers"
    ),
    "spdl_pipeline": Expected("spdl", "transform", ("smoothed", "Smooth"), at="rows", unmeasured=BY_STACKS),
    "tf_fit_decode": Expected("tensorflow keras", "decode", ("map(load)",)),
    "tf_fit_records": Expected("tensorflow keras", "decode", ("map(unpacked)",)),
    "tf_function_read": Expected("tensorflow keras", "read", ("map(sample)",)),
    "tf_loop_transform": Expected("tensorflow keras", "transform", ("map(smoothed)",)),
}
# No library asks the network for anything, nor for a newer version of itself.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}


def started(command: list[str], folder: Path) -> str:
    """Run a command and return what it printed."""
    environment = {**os.environ, **QUIET, "HF_HOME": str(folder / "hub")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def marked(script: Path, mark: str) -> list[int]:
    lines = script.read_text().splitlines()
    return [number for number, line in enumerate(lines, 1) if line.endswith(mark)]


def is_near(where: str | None, script: Path, mark: str) -> bool:
    file, _, line = (where or "").rpartition(":")
    return Path(file).name == script.name and any(abs(int(line) - at) <= NEAR for at in marked(script, mark))


def test_every_script_is_expected() -> None:
    texts = {path.stem: path.read_text() for path in HERE.glob("*.py")}
    shared = {each.at for each in EXPECTED.values() if each.at}
    scripts = {
        name
        for name, text in texts.items()
        if "# the limit" in text or any(f"from {module} import" in text for module in shared)
    }
    assert scripts - {"test_libraries"} - shared == set(EXPECTED)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", EXPECTED)
def test_stage_operator_and_line(name: str, tmp_path: Path) -> None:
    expected, script = EXPECTED[name], HERE / f"{name}.py"
    missing = [module for module in expected.needs.split() if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    profiled = [sys.executable, "-m", "loaderprof", "run", "--no-html", "-o", "seen", str(script)]
    printed = started(profiled, tmp_path)
    found = json.loads((tmp_path / "seen" / "findings.json").read_text())
    seen = [(each["stage"], part) for each in found["stages"] for part in each["by"][:2]]
    assert found["verdict"]["bottleneck"] == expected.stage, (found["verdict"], seen)
    most_expensive, *others = next(each for each in found["stages"] if each["stage"] == expected.stage)["by"]
    assert any(word in most_expensive["name"] for word in expected.operators), seen
    assert is_near(most_expensive["where"], HERE / f"{expected.at or name}.py", "# the limit"), seen
    if expected.second:
        assert expected.second in others[0]["name"], seen
        assert is_near(others[0]["where"], script, "# the second"), seen
    message = " ".join(each["action"] for each in found["advice"])
    assert expected.knob in message, message
    assert printed == started([sys.executable, str(script)], tmp_path)
