"""The evaluation page as a browser shows it: Debian's Chromium, driven by playwright."""

from __future__ import annotations

import shutil

import pytest
from test_page import content, sheet

from mmseg_cli.evaluation.page import Example, write_page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")

QUIET = [  # what Chromium would ask the network for by itself, and what a container cannot give it
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    long = Example("median", "a_name_without_a_place_to_break_" * 8, 0.5, sheet(height=700, width=1400))
    write_page(folder, content(examples=[*content().examples, long], augmented="25.02 % (flip)"))
    return folder


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


class Visit:
    """The page opened alone, away from the files beside it, and everything that the browser asked for or said."""

    def __init__(self, browser, file, *, width, scheme="light"):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.requests, self.said = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("requestfailed", lambda request: self.said.append(f"failed: {request.url[:80]}"))
        self.url = file.as_uri()
        self.page.goto(self.url, wait_until="load")

    def pictures(self):
        return self.page.evaluate(
            "Promise.all([...document.images].map("
            "async image => {await image.decode(); return [image.naturalWidth, image.currentSrc]}))"
        )


@pytest.fixture
def visit(browser, written, tmp_path):
    alone = shutil.copy(written / "index.html", tmp_path)
    visits = []

    def opened(**arguments):
        visits.append(Visit(browser, (tmp_path / alone), **arguments))
        return visits[-1]

    yield opened
    for each in visits:
        each.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_needs_nothing_else(visit, scheme):
    seen = visit(width=1400, scheme=scheme)
    pictures = seen.pictures()
    assert len(pictures) == 3 + 4 * 4
    assert all(width > 0 for width, _ in pictures)
    asked = [url for url in seen.requests if not url.startswith("data:")]
    assert asked == [seen.url]
    assert seen.said == []


def test_the_page_of_a_run_is_whole(browser, _trained):
    """As `mmseg evaluate` wrote it."""
    seen = Visit(browser, _trained / "runs/demo/evaluate/mmbconv-s0/index.html", width=1200)
    pictures = seen.pictures()
    assert len(pictures) > 3
    assert all(width > 0 for width, _ in pictures)
    assert [url for url in seen.requests if not url.startswith("data:")] == [seen.url]
    assert seen.said == []
    assert "cityscapesscripts on the written PNGs" in seen.page.inner_text("#summary")
    seen.context.close()


def test_the_main_figures_can_be_read(visit):
    seen = visit(width=1400)
    assert seen.page.title() == "mmbconv-s0 of demo"
    assert seen.page.get_by_role("heading", level=1).inner_text() == "mmbconv-s0 of demo"
    text = seen.page.inner_text("#summary")
    for expected in ("mIoU\n41.24 %", "pixel accuracy\n70.00 %", "mIoU with test-time augmentation: 25.02 % (flip)"):
        assert expected in text
    row = seen.page.get_by_role("row", name="road 0 ")
    assert row.inner_text().split() == ["road", "0", "57.14", "72.73", "72.73", "55.00"]


@pytest.mark.parametrize("width", [320, 400, 800, 1400, 2200])
def test_no_window_is_too_narrow(visit, width):
    seen = visit(width=width)
    assert seen.page.evaluate("document.documentElement.scrollWidth") == width
    wide = seen.page.evaluate(
        "[...document.querySelectorAll('section, p, h1, .scroll, .panels img')]"
        ".map(e => e.getBoundingClientRect().right)"
    )
    assert max(wide) <= width


def test_a_dark_page_has_dark_drawings(visit):
    """The browser takes another picture, and the page behind it is dark too."""
    light, dark = visit(width=1400), visit(width=1400, scheme="dark")
    first_light, first_dark = light.pictures()[0][1], dark.pictures()[0][1]
    assert first_light != first_dark
    background = "getComputedStyle(document.querySelector('section')).backgroundColor"
    assert light.page.evaluate(background) == "rgb(255, 255, 255)"
    assert dark.page.evaluate(background) == "rgb(23, 25, 29)"


def test_it_prints_light_on_paper(visit):
    """Whatever the screen's colours are."""
    seen = visit(width=1400, scheme="dark")
    on_screen = seen.pictures()[0][1]
    seen.page.emulate_media(media="print", color_scheme="dark")
    seen.page.wait_for_function("before => document.images[0].currentSrc !== before", arg=on_screen)
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert len(seen.page.pdf()) > 10_000
