"""The page in a real browser: nothing fails, nothing reaches out, all answers to mouse and keyboard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import page_samples
import pytest
import report_samples
from browser import CHROMIUM, QUIET

from loaderprof.report import html
from loaderprof.report.page import PageData

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt install chromium")

Page = Any


@dataclass(slots=True)
class Visit:
    """An open page, what its console complained of, and what it asked the network for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()


def rendered(name: str, data: PageData) -> str:
    return html.render(report_samples.ALL[name](), data, folder="train-0412")


@cache
def usual(name: str) -> str:
    return rendered(name, page_samples.hostile() if name == "hostile" else page_samples.page())


class Reader:
    """Opens reports; at the end of a test nothing may have complained or reached out."""

    def __init__(self, browser: Any, folder: Path) -> None:
        self._browser = browser
        self._folder = folder
        self.visits: list[Visit] = []

    def open(self, name: str, data: PageData | None = None, **how: Any) -> Page:
        text = usual(name) if data is None else rendered(name, data)
        path = self._folder / f"{name}.html"
        path.write_text(text, encoding="utf-8")
        return self.open_file(path, **how)

    def open_file(self, path: Path, **how: Any) -> Page:
        how = {"viewport": {"width": 1200, "height": 900}} | how
        visit = Visit(self._browser.new_context(**how).new_page())
        visit.page.on("console", lambda message: visit.complaints.append(message.text))
        visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        visit.page.on("request", lambda request: visit.requests.append(request.url))
        visit.page.on("dialog", lambda dialog: (visit.complaints.append(dialog.message), dialog.dismiss()))
        self.visits.append(visit)
        visit.page.goto(path.as_uri())
        return visit.page

    def close(self) -> None:
        for visit in self.visits:
            visit.page.context.close()
            assert visit.complaints == []
            assert [url for url in visit.requests if not url.startswith(("file:", "data:"))] == []
            assert len(visit.requests) <= 2


@pytest.fixture
def reader(browser: Any, tmp_path: Path) -> Iterator[Reader]:
    made = Reader(browser, tmp_path)
    yield made
    made.close()


def overflow(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def drag(page: Page, low: float, high: float) -> None:
    page.locator("#timeline-view").scroll_into_view_if_needed()
    box = page.locator("#timeline-view").bounding_box()
    at = box["y"] + 60
    page.mouse.move(box["x"] + box["width"] * low, at)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * (low + high) / 2, at)
    page.mouse.move(box["x"] + box["width"] * high, at)
    page.mouse.up()


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (390, "light"),
        pytest.param(390, "dark", marks=pytest.mark.slow),
        pytest.param(1200, "light", marks=pytest.mark.slow),
        (1200, "dark"),
    ],
)
@pytest.mark.parametrize("name", report_samples.ALL)
def test_every_run_opens_clean_and_fits(reader: Reader, name: str, width: int, scheme: str) -> None:
    page = reader.open(name, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.locator("h1").is_visible()
    assert overflow(page) <= 0


@pytest.mark.parametrize("name", report_samples.ALL)
def test_empty_data_opens_clean(reader: Reader, name: str) -> None:
    page = reader.open(name, PageData(), viewport={"width": 390, "height": 800})
    assert overflow(page) <= 0


def test_without_javascript_all_is_said_and_nothing_is_dead(reader: Reader) -> None:
    page = reader.open("decode", java_script_enabled=False)
    for section in ("step", "changes", "timeline", "batches", "slow", "flame", "why", "environment"):
        assert page.locator(f"#{section}").is_visible()
    assert page.locator("#timeline svg").is_visible()
    assert page.locator("#batches svg").is_visible()
    assert page.locator("#flame noscript td").first.is_visible()
    assert page.locator("button").count() == page.locator("button").filter(visible=False).count()


def test_in_print_all_is_there(reader: Reader) -> None:
    page = reader.open("decode")
    page.emulate_media(media="print", color_scheme="dark")
    ink = "getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()"
    assert page.evaluate(ink) == "#000"
    assert not page.locator("nav").is_visible()
    assert page.locator("#flame-view").is_visible()
    assert len(page.pdf()) > 20_000


def test_theme_follows_the_system_and_the_button(reader: Reader) -> None:
    page = reader.open("decode", color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.click("#theme")
    light = page.evaluate(paper)
    page.click("#theme")
    assert page.evaluate(paper) == dark != light


def test_pictures_take_the_colours_of_the_theme(reader: Reader) -> None:
    fill = "getComputedStyle(document.querySelector('#step .wide text')).fill"
    assert reader.open("decode", color_scheme="dark").evaluate(fill) == "rgb(231, 233, 236)"
    assert reader.open("decode", color_scheme="light").evaluate(fill) == "rgb(28, 33, 40)"


def test_drag_selects_and_the_rest_follows(reader: Reader) -> None:
    page = reader.open("decode")
    before = page.locator("#flame-view [data-place='0']").get_attribute("aria-label")
    ticks = page.locator("#batches-view svg").text_content()
    drag(page, 0.3, 0.5)
    said = page.locator("#timeline-readout").inner_text()
    assert "steps of" in said
    assert "waiting" in said
    assert page.locator("#timeline-view rect.selected").count() == 1
    assert page.locator("#flame-view [data-place='0']").get_attribute("aria-label") != before
    assert page.locator("#batches-view svg").text_content() != ticks
    box = page.locator("#timeline-view").bounding_box()
    page.mouse.click(box["x"] + 300, box["y"] + 40)
    assert page.locator("#timeline-view rect.selected").count() == 0
    assert page.locator("#flame-view [data-place='0']").get_attribute("aria-label") == before


def test_flame_graph_of_a_stretch_shows_that_stretch(reader: Reader) -> None:
    page = reader.open("decode")
    assert page.locator("#flame-view").get_by_text("crop (functional.py:5)").count() == 1
    # In the middle of this run nothing but decoding was seen.
    drag(page, 0.545, 0.555)
    assert page.locator("#flame-view").get_by_text("convert (Image.py:993)").count() == 1
    assert page.locator("#flame-view").get_by_text("crop (functional.py:5)").count() == 0


def test_timeline_by_keyboard(reader: Reader) -> None:
    page = reader.open("decode")
    page.locator("#timeline-view svg").focus()
    page.keyboard.press("ArrowRight")
    first = page.locator("#timeline-readout").inner_text()
    page.keyboard.press("ArrowRight")
    second = page.locator("#timeline-readout").inner_text()
    page.keyboard.press("Shift+ArrowRight")
    third = page.locator("#timeline-readout").inner_text()
    assert len({first, second, third}) == 3
    page.keyboard.press("Escape")
    assert page.locator("#timeline-readout").inner_text() == ""


def test_epochs_and_outliers_are_marked(reader: Reader) -> None:
    page = reader.open("decode")
    assert page.locator("#timeline-view line.epoch").count() == 2
    assert "epoch 2" in page.locator("#timeline-view svg").text_content()
    slow = page_samples.page()
    lasted = list(slow.steps.step_s)
    lasted[100] = 60.0
    data = PageData(html.Steps(slow.steps.t_s, slow.steps.wait_s, lasted, (), ()))
    assert reader.open("decode", data).locator("#timeline-view .outlier").count() >= 1


def test_batches_show_who_waits_for_whom(reader: Reader) -> None:
    page = reader.open("decode")
    view = page.locator("#batches-view")
    assert view.locator("rect.bar").count() > 4
    assert view.locator("rect.wait").count() > 1
    view.locator("rect.bar").nth(2).hover()
    assert "batch" in page.locator("#batches-readout").inner_text()
    shown = view.locator("svg").text_content()
    page.click("#batches-later")
    page.click("#batches-wider")
    assert view.locator("svg").text_content() != shown
    page.click("#batches-slowest")
    assert view.locator("svg").text_content() == shown


def test_flame_graph_by_mouse(reader: Reader) -> None:
    page = reader.open("decode")
    page.locator("#flame-view").get_by_text("crop (functional.py:5)").click()
    box = page.locator("#flame-view").bounding_box()
    crop = page.locator("#flame-view").get_by_text("crop (functional.py:5)").bounding_box()
    assert crop["width"] == pytest.approx(box["width"], rel=0.01)
    assert "18 % of" in page.locator("#flame-readout").inner_text()
    page.get_by_role("button", name="Main process").click()
    assert page.locator("#flame-view").get_by_text("backward (_tensor.py:581)").count() == 1


def test_flame_graph_by_keyboard(reader: Reader) -> None:
    page = reader.open("decode")
    page.locator("#flame-view [data-place='0']").focus()
    said = []
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight", "Enter"):
        page.keyboard.press(key)
        said.append(page.locator("#flame-readout").inner_text())
    assert said[0].startswith("main (train.py:60)")
    assert said[2].startswith("__getitem__ (data.py:43)")
    assert said[3].startswith("__getitem__ (data.py:44)")
    assert page.locator("#flame-view").get_by_text("convert (Image.py:993)").count() == 0
    page.keyboard.press("Escape")
    assert page.locator("#flame-view").get_by_text("convert (Image.py:993)").count() == 1
    assert page.evaluate("document.activeElement.dataset.place") == "0"


def test_search(reader: Reader) -> None:
    page = reader.open("decode")
    page.keyboard.press("/")
    page.keyboard.type("GETITEM")
    assert page.locator("#flame-view .hit").count() == 3
    assert page.locator("#flame-found").inner_text() == "91 % of samples match"
    page.keyboard.press("Escape")
    assert page.locator("#flame-view .hit").count() == 0


def test_code_is_copied(reader: Reader) -> None:
    page = reader.open("decode", permissions=["clipboard-read", "clipboard-write"])
    page.locator("#changes .copy button").first.click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "DataLoader(train_set, batch_size=64, num_workers=4)"


def test_hostile_names_do_no_harm(reader: Reader) -> None:
    page = reader.open("hostile")
    assert page.locator("img").count() == 0
    assert page.locator("#flame-view [role=treeitem]").count() == 5
    page.locator("#flame-view [role=treeitem]").nth(2).click()
    page.locator("#flame-search").fill("</script>")
    assert page.locator("#flame-view .hit").count() == 1
    drag(page, 0.2, 0.6)
    assert page.title().endswith(".py")


def test_narrow_window_after_a_wide_one(reader: Reader) -> None:
    page = reader.open("gpu")
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_function("document.querySelector('#timeline-view svg').viewBox.baseVal.width < 390")
    assert overflow(page) <= 0
    assert page.locator("#step .narrow").is_visible()
    assert not page.locator("#step .wide").is_visible()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_long_run_opens_in_three_seconds_and_says_what_was_merged(reader: Reader, tmp_path: Path) -> None:
    text = html.render(report_samples.decode(), page_samples.large(), folder="train-0412")
    path = tmp_path / "large.html"
    path.write_text(text, encoding="utf-8")
    begun = time.perf_counter()
    page = reader.open_file(path)
    page.locator("#flame-view [data-place='0']").wait_for()
    page.locator("#batches-view rect.bar").first.wait_for()
    assert time.perf_counter() - begun < 3.0
    merged = " ".join(page.locator(".merged").all_inner_texts())
    assert "100,000 steps" in merged
    assert "100,000 batches" in merged
    assert "500,000 stacks" in merged
    drag(page, 0.4, 0.5)
    assert "steps of" in page.locator("#timeline-readout").inner_text()


def test_ranks_are_lanes_on_one_scale(reader: Reader) -> None:
    page = reader.open("ranks", page_samples.with_ranks(3))
    titles = page.locator("#timeline-view text.title").all_text_contents()
    assert [title for title in titles if title.startswith("Rank")] == [
        f"Rank {at}, step timehatched: waiting" for at in range(3)
    ]
    assert not any(title.startswith("Step time") for title in titles)
    tops = page.locator("#timeline-view text[text-anchor=end]").all_text_contents()
    assert tops[0] == tops[2] == tops[4]
    drag(page, 0.3, 0.6)
    assert "steps of" in page.locator("#timeline-readout").text_content()


@pytest.mark.parametrize("width", [390, 1200])
def test_samples_are_drawn_and_listed(reader: Reader, width: int) -> None:
    page = reader.open("decode", viewport={"width": width, "height": 900})
    page.locator('nav a[href="#samples"]').click()
    assert page.locator("#samples svg:visible").count() == 1
    assert page.locator("#samples tbody tr").count() == 10
    assert page.locator("#samples svg:visible").get_by_text("95 %").is_visible()
    assert overflow(page) <= 0
