from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from mmseg_cli.data.labels import LabelSpace, voc_colour
from mmseg_cli.evaluation import page, page_figures
from mmseg_cli.evaluation.page import Example, PageContent, SizeFigures, write_page

WEIRD = "<b>a|b & \"c\" 'd'</b> *e* _f_ [g](h) `i` $j$"


def space_of(names):
    colours = tuple(voc_colour(index + 1) for index in range(len(names)))
    return LabelSpace(f"made-{len(names)}", tuple(names), colours, tuple(range(len(names))))


def sheet(height=20, width=30, seed=0):
    """Four panels, each of one colour but for some noise, with white between."""
    rng = np.random.default_rng(seed)
    sheet_HWC = np.full((height, 4 * width + 3 * page.GAP, 3), 255, np.uint8)
    for panel in range(4):
        left = panel * (width + page.GAP)
        sheet_HWC[:, left : left + width] = 50 * panel + rng.integers(0, 10, (height, width, 3))
    return sheet_HWC


def content(**changes):
    names = ["road", "sky", WEIRD, "nowhere", "only predicted"]
    confusion_KK = np.zeros((5, 5), np.int64)
    confusion_KK[:3, :3] = [[80, 15, 5], [0, 50, 0], [30, 0, 10]]
    confusion_KK[0, 4] = 10
    base = PageContent(
        title="mmbconv-s0 of demo",
        dataset="cityscapes, val",
        space=space_of(names),
        images=3,
        protocol="whole image, float32",
        mean_iou=0.41236,
        pixel_accuracy=0.7,
        confusion_KK=confusion_KK,
        class_iou={"road": 0.5714, "sky": 0.7692, WEIRD: 0.2222, "nowhere": None, "only predicted": 0.0},
        boundary={3: (0.25, 0.5), 1: (0.125, None)},
        sizes={
            "small": SizeFigures(0, 64, 1234, 0.1, float("nan")),
            "medium": SizeFigures(64, 576, 20, 0.2, 0.3),
            "large": SizeFigures(576, None, 3, None, None),
        },
        rows=[(0.0, 0.5, 0.345), (0.5, 1.0, None)],
        notes=["a < b is *not* HTML"],
        examples=[
            Example("best", "a/<x>&y", 0.9, sheet()),
            Example("best", "second", 0.8, Image.fromarray(sheet(seed=1))),
            Example("worst", "w", None, sheet(seed=2)),
        ],
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    write_page(folder, content())
    return folder


class Parsed(HTMLParser):
    """Texts, tags with attributes, and tables of an HTML file; every tag must be closed in order."""

    VOID = ("meta", "link", "img", "source")

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.rows, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def parsed(written):
    return Parsed((written / "index.html").read_text(encoding="utf-8"))


def markdown(folder):
    return MarkdownIt("commonmark").enable("table").parse((folder / "index.md").read_text(encoding="utf-8"))


def markdown_rows(folder):
    rows = []
    for token in markdown(folder):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and token.level >= 4 and rows:
            rows[-1].append("".join(child.content for child in token.children))
    return rows


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.41236, "41.24"), (0.0, "0.00"), (1.0, "100.00"), (None, "–"), (float("nan"), "–")],
)
def test_percent(value, expected):
    assert page.percent(value) == expected


def test_the_html_says_what_was_measured(parsed):
    text = "\n".join(parsed.text)
    assert parsed.all("html") == [{"lang": "en"}]
    for expected in ("mmbconv-s0 of demo", "41.24 %", "mean IoU over 4 of 5 classes", "70.00 %", "of 200 pixels"):
        assert expected in text
    assert "In neither truth nor prediction, and not counted: nowhere." in text
    rows = parsed.rows
    assert ["class", "id", "IoU", "recall", "precision", "share of pixels"] in rows
    assert ["road", "0", "57.14", "72.73", "72.73", "55.00"] in rows
    assert ["nowhere", "3", "–", "–", "–", "0.00"] in rows
    assert ["only predicted", "4", "0.00", "–", "0.00", "0.00"] in rows
    distances = [row for row in rows if row[0].endswith(" px")]
    assert distances == [["1 px", "12.50", "–"], ["3 px", "25.00", "50.00"]]
    assert ["small", "below 64", "1,234", "10.00", "–"] in rows
    assert ["medium", "64 to 575", "20", "20.00", "30.00"] in rows
    assert ["large", "from 576", "3", "–", "–"] in rows
    assert ["0–50 %", "34.50"] in rows
    assert ["50–100 %", "–"] in rows


def test_confusions_are_listed_by_their_share_of_the_truth(parsed):
    first = parsed.rows.index(["truth", "predicted as", "share of the truth (%)", "pixels"]) + 1
    assert parsed.rows[first : first + 4] == [
        [WEIRD, "road", "75.00", "30"],
        ["road", "sky", "13.64", "15"],
        ["road", "only predicted", "9.09", "10"],
        ["road", WEIRD, "4.55", "5"],
    ]


def test_markdown_and_html_have_the_same_tables(written, parsed):
    html_rows = [row for row in parsed.rows if row]
    markdown_tables = markdown_rows(written)
    assert [row for row in markdown_tables if row in html_rows] == html_rows
    assert ["mIoU", "41.24 %", "mean IoU over 4 of 5 classes"] in markdown_tables


def test_names_are_text_and_never_markup(tmp_path):
    title = '</title><script>alert("&")</script>'
    write_page(
        tmp_path,
        content(
            title=title,
            dataset=WEIRD,
            protocol=WEIRD,
            official=WEIRD,
            augmented=WEIRD,
            notes=[WEIRD],
            category_iou={WEIRD: 0.5},
            mean_category_iou=0.5,
            instance_iou={WEIRD: 0.5},
            mean_instance_iou=0.5,
        ),
    )
    found = Parsed((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert not found.all("script")
    assert not found.all("b")
    assert found.text.count(title) == 2  # in <title> and <h1>
    assert WEIRD in found.text
    assert f"mIoU with test-time augmentation: {WEIRD}" in found.text
    tokens = markdown(tmp_path)
    lines = ["".join(child.content for child in token.children) for token in tokens if token.type == "inline"]
    assert lines[0] == title
    assert f"protocol: {WEIRD}" in lines
    kinds = {child.type for token in tokens if token.type == "inline" for child in token.children}
    assert kinds <= {"text", "text_special", "image", "softbreak"}  # no emphasis, code, link or HTML from a name


def test_nothing_is_loaded_from_anywhere(written, parsed):
    text = (written / "index.html").read_text(encoding="utf-8")
    for tag, attributes in parsed.tags:
        for name in ("src", "srcset", "href", "data", "poster", "action"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, name)
    without_pictures = re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", text)
    assert len(without_pictures) < 30_000
    assert not re.search(r"https?:|//|@import|url\(|<script", without_pictures)
    targets = {attributes["id"] for _, attributes in parsed.tags if "id" in attributes}
    assert {link["href"][1:] for link in parsed.all("a")} <= targets


def test_every_picture_is_described_and_can_be_read(parsed):
    pictures = parsed.all("img")
    assert len(pictures) == 3 + 3 * 4
    for picture in pictures:
        assert picture["alt"].strip()
        with Image.open(io.BytesIO(base64.b64decode(picture["src"].split(",", 1)[1]))) as image:
            image.load()
            assert image.size == (int(picture["width"]), int(picture["height"]))
    assert pictures[-1]["alt"] == "w, mIoU –: errors"
    assert all({"scope"} <= set(cell) for cell in parsed.all("th"))
    assert len(parsed.all("caption")) == len(parsed.all("table"))


def test_panels_are_the_four_pictures_of_a_sheet(written):
    found = page.panels(sheet())
    assert [panel.size for panel in found] == [(30, 20)] * 4
    assert [int(np.asarray(panel).min()) // 50 for panel in found] == [0, 1, 2, 3]
    assert [int(np.asarray(panel).max()) // 50 for panel in found] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="130 pixels"):
        page.panels(sheet()[:, :130])


def test_markdown_links_to_pictures_beside_it(written):
    links = [
        child.attrs["src"]
        for token in markdown(written)
        if token.type == "inline"
        for child in token.children
        if child.type == "image"
    ]
    assert links == [
        "figures/classes.png",
        "figures/scale.png",
        "figures/confusion.png",
        "images/best-1.png",
        "images/best-2.png",
        "images/worst-1.png",
    ]
    files = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert files == {*links, "index.html", "index.md"}
    with Image.open(written / "images" / "best-2.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), sheet(seed=1))


def test_equal_content_is_equal_bytes(written, tmp_path):
    write_page(tmp_path, content())
    for path in written.rglob("*"):
        if path.is_file():
            assert (tmp_path / path.relative_to(written)).read_bytes() == path.read_bytes(), path


def test_large_pictures_are_embedded_small(tmp_path):
    height, width = 1024, 2048
    rng = np.random.default_rng(0)
    noise_HWC = rng.integers(0, 255, (height // 16, width * 4 // 16 + 1, 3), dtype=np.uint8)
    large = Image.fromarray(noise_HWC).resize((4 * width + 3 * page.GAP, height))
    write_page(tmp_path, content(examples=[Example("best", "large", 0.5, large)], boundary={}, sizes={}, rows=[]))
    found = Parsed((tmp_path / "index.html").read_text(encoding="utf-8"))
    panels = found.all("img")[-4:]
    assert [(panel["width"], panel["height"]) for panel in panels] == [("600", "300")] * 4
    assert sum(len(panel["src"]) for panel in panels) < 500_000
    with Image.open(tmp_path / "images" / "best-1.png") as picture:
        assert picture.size == large.size


def test_what_was_not_measured_has_no_section(tmp_path):
    plain = content(boundary={}, sizes={}, rows=[], notes=(), examples=(), mean_iou=None)
    write_page(tmp_path, plain)
    found = Parsed((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert [section["id"] for section in found.all("section")] == ["summary", "classes", "confusion"]
    assert "–" in found.text


@pytest.mark.parametrize("count", [1, 26, pytest.param(81, marks=pytest.mark.slow)])
def test_any_number_of_classes(count, tmp_path):
    """Few are numbered, more are named, many have their ids; a single one may have no pixel at all."""
    names = [f"class {k}" for k in range(count)]
    confusion_KK = np.diag(np.arange(count) + (count > 1)).astype(np.int64)
    some = content(
        space=space_of(names),
        confusion_KK=confusion_KK,
        class_iou=dict.fromkeys(names, 1.0 if count > 1 else None),
        boundary={},
        sizes={},
        rows=[],
        examples=[],
    )
    write_page(tmp_path, some)
    text = (tmp_path / "index.md").read_text()
    assert ("figures/confusion.png" in text) == (count > 1)
    assert ("Rows and columns are train ids" in text) == (count > page_figures.NAMED)


def test_a_matrix_of_other_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\(2, 2\) for 5 classes"):
        write_page(tmp_path, content(confusion_KK=np.ones((2, 2), np.int64)))
    assert not list(tmp_path.iterdir())


def test_row_shares_are_of_the_truth():
    shares_KK = page_figures.row_shares(np.array([[3, 1], [0, 0]]))
    np.testing.assert_array_equal(shares_KK, [[0.75, 0.25], [np.nan, np.nan]])
