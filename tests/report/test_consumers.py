"""Exports in the hands of who reads them: speedscope's own page in a real browser, HTA, Perfetto's trace processor.

None of them is a dependency of ours: `npm install -g speedscope`, `pip install HolisticTraceAnalysis`, and Perfetto's
`trace_processor_shell` on the PATH with `pip install perfetto`. What is missing is skipped and says so.
"""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest
from browser import CHROMIUM, QUIET
from exports import PLAN, exported, recorded

SPEEDSCOPE = shutil.which("speedscope")
TRACE_PROCESSOR = shutil.which("trace_processor_shell") or shutil.which("trace_processor")


@pytest.fixture
def speedscope() -> Path:
    """The folder of speedscope's page and of its schema."""
    if SPEEDSCOPE is None:
        pytest.skip("no speedscope on this machine: npm install -g speedscope")
    return Path(SPEEDSCOPE).resolve().parents[1] / "dist" / "release"


def test_speedscope_has_no_fault_to_find_with_the_form(tmp_path: Path, speedscope: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    schema = json.loads((speedscope / "file-format-schema.json").read_text())
    document = json.loads(exported(recorded(tmp_path / "r", ranks=2), "speedscope"))
    jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "profiles": [{}]}, schema)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt install chromium")
@pytest.mark.parametrize("name", ["speedscope", "collapsed", "chrome"])
def test_speedscope_shows_it(tmp_path: Path, speedscope: Path, name: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    raw = exported(recorded(tmp_path / "r"), name)
    # As speedscope's own command hands a file to its page.
    script = tmp_path / "load.js"
    script.write_text(f'speedscope.loadFileFromBase64("export.{name}", "{base64.b64encode(raw).decode()}")')
    complaints: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, "--use-angle=swiftshader"])
        page = browser.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"file://{speedscope}/index.html#localProfilePath={script}")
        # The page is named after the profile once it has been read.
        page.wait_for_function("document.title !== 'speedscope'", timeout=20_000)
        page.get_by_text("Sandwich").click()
        wanted = {"speedscope": "step;odd", "collapsed": "step", "chrome": "worker"}[name]
        page.get_by_text(wanted).first.wait_for(timeout=20_000)
        browser.close()
    assert complaints == []


@pytest.mark.filterwarnings("ignore")  # of HTA's own way with pandas
def test_hta_reads_the_trace(tmp_path: Path) -> None:
    analysis = pytest.importorskip("hta.trace_analysis", reason="HolisticTraceAnalysis is not installed")
    folder = tmp_path / "traces"
    folder.mkdir()
    (folder / "rank0.json").write_bytes(exported(recorded(tmp_path / "r"), "chrome"))
    trace = analysis.TraceAnalysis(trace_files={0: str(folder / "rank0.json")})
    frame = trace.t.get_trace(0)
    names = trace.t.symbol_table.get_sym_table()
    shown = {names[number] for number in frame["name"]}
    assert any(name.startswith("enumerate(DataLoader)#") for name in shown)
    steps = frame[frame["name"].map(lambda number: names[number].startswith("ProfilerStep#"))]
    assert len(steps) >= PLAN.batches - 1
    assert steps["dur"].median() == pytest.approx(14_000, rel=0.05)


def test_perfetto_reads_the_trace(tmp_path: Path) -> None:
    trace_processor = pytest.importorskip("perfetto.trace_processor", reason="perfetto is not installed")
    if TRACE_PROCESSOR is None:
        pytest.skip("no trace_processor_shell on the PATH")
    file = tmp_path / "trace.json"
    file.write_bytes(exported(recorded(tmp_path / "r"), "chrome"))
    config = trace_processor.TraceProcessorConfig(bin_path=TRACE_PROCESSOR)
    processor = trace_processor.TraceProcessor(trace=str(file), config=config)
    try:
        (errors,) = processor.query("select sum(value) as n from stats where severity = 'error'")
        (steps,) = processor.query("select count(*) as n from slice where name glob 'ProfilerStep#*'")
        (workers,) = processor.query("select count(*) as n from thread where name glob '* worker *'")
    finally:
        processor.close()
    assert (errors.n, workers.n) == (0, 2)
    assert steps.n >= PLAN.batches - 1
