"""What a page is made of, and its renderings: one HTML file that needs nothing else, and markdown with files beside.

All text is plain here and is escaped where it is rendered.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from PIL import Image

from mmseg_cli.evaluation.page_figures import DPI, Drawing
from mmseg_cli.text import printable

WIDEST, TALLEST = 600, 1200  # pixels of an embedded picture; a sheet of four is 2400 wide
SMALL = 320  # pixels up to which a picture is shown with its own pixels instead of smoothed
QUALITY = 85
PER_INCH = 108  # pixels of the page to an inch of a drawing, at most

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Headline:
    """The main figures, large: (name, value, what it is)."""

    tiles: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Table:
    """A table whose first column names the row; `texts` columns are flush left, the others hold numbers.

    `colours` are those of the rows' first cells.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1
    colours: Sequence[Colour] | None = None


@dataclass(frozen=True)
class Figure:
    """A drawing; `alt` says what is to be seen, `file` is its place below the page's folder."""

    file: str
    alt: str
    caption: str
    drawing: Drawing


@dataclass(frozen=True)
class Sheet:
    """Pictures of one image beside each other, each with its caption; `sheet` is all of them in one, for a file."""

    file: str
    caption: str
    panels: Sequence[tuple[str, Image.Image]]
    sheet: Image.Image


@dataclass(frozen=True)
class Legend:
    """Names and colours; `caption` is the line to open where there are many."""

    caption: str
    entries: Sequence[tuple[str, Colour]]


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str


@dataclass(frozen=True)
class Points:
    """A list of remarks."""

    points: Sequence[str]


Block = Text | Headline | Table | Figure | Sheet | Legend | Heading | Points


@dataclass(frozen=True)
class Section:
    """A part of the page; `key` is where links lead to."""

    key: str
    title: str
    blocks: Sequence[Block]


# --------------------------------------------------------------------------------------------------------------- HTML

_STYLE = """
:root{color-scheme:light dark;--ink:#1c1f24;--soft:#5b6169;--paper:#fff;--page:#f5f6f8;--line:#e1e4e8;--accent:#0063a0}
@media screen and (prefers-color-scheme:dark){
:root{--ink:#e6e8eb;--soft:#a0a7b0;--paper:#17191d;--page:#0e1013;--line:#33373d;--accent:#7cc4f2}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--page);color:var(--ink);font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue","Noto Sans","Liberation Sans",Arial,sans-serif;overflow-wrap:anywhere}
header,main,footer{max-width:76rem;margin-inline:auto;padding-inline:clamp(.75rem,3vw,2rem)}
header{padding-top:clamp(1.25rem,4vw,3rem)}
h1{font-size:clamp(1.5rem,4vw,2.2rem);line-height:1.2;margin:0 0 .35rem;letter-spacing:-.015em}
h2{font-size:1.3rem;line-height:1.3;margin:0 0 .75rem;letter-spacing:-.01em}
h3{font-size:1.02rem;margin:1.75rem 0 .5rem}
p{margin:.5rem 0;max-width:60rem}
a{color:var(--accent);text-underline-offset:.2em}
a:focus-visible,.scroll:focus-visible,summary:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.facts{display:flex;flex-wrap:wrap;gap:.15rem 1.5rem;margin:.25rem 0 0;color:var(--soft)}
.facts div{display:flex;gap:.4rem}
.facts dt::after{content:":"}
.facts dd{margin:0;color:var(--ink)}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;list-style:none;margin:1rem 0 0;padding:.75rem 0 0;
border-top:1px solid var(--line)}
section{background:var(--paper);border:1px solid var(--line);border-radius:.75rem;margin:1.25rem 0;
padding:clamp(1rem,2.5vw,1.75rem);scroll-margin-top:1rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,9rem),1fr));gap:1.25rem;margin:0 0 .75rem}
.tiles dt{color:var(--soft);font-size:.92rem}
.tiles dd{margin:0}
.tiles .value{font-size:1.95rem;line-height:1.25;font-weight:650;letter-spacing:-.02em;
font-variant-numeric:tabular-nums}
.tiles .note{color:var(--soft);font-size:.85rem;line-height:1.4}
.scroll{overflow-x:auto;margin:.75rem 0}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;white-space:nowrap;color:var(--soft);padding:0 0 .4rem;font-size:.92rem}
th,td{padding:.28rem .8rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{padding-left:0}
th:first-child{position:sticky;left:0;background:var(--paper)}
thead th{vertical-align:bottom;color:var(--soft);font-weight:600;border-bottom:2px solid var(--line)}
tbody th{font-weight:500}
.left{text-align:left}
.swatch{display:inline-block;width:.85em;height:.85em;margin-right:.55em;border:1px solid var(--soft);
border-radius:.15em;vertical-align:-.06em;print-color-adjust:exact;-webkit-print-color-adjust:exact}
figure{margin:0 0 1.25rem}
figcaption{color:var(--soft);font-size:.92rem;max-width:60rem}
figure img{display:block;width:100%;height:auto}
.drawing .scroll{margin:0 0 .25rem}
/* A phone scrolls a drawing sideways rather than showing letters that nobody can read. */
.drawing img{width:max(100%,min(40rem,var(--own)));max-width:var(--own)}
.tables{display:flex;flex-wrap:wrap;gap:.5rem 3rem;align-items:flex-start}
.tables .scroll{max-width:100%}
.sheet{margin:0 0 1.75rem;break-inside:avoid}
.sheet>figcaption{color:var(--ink);margin-bottom:.4rem}
.panels{display:grid;gap:.6rem}
.panels figure{margin:0}
.panels figcaption{font-size:.82rem}
.panels img{max-height:85vh;object-fit:contain;object-position:left top}
.panels img.small{image-rendering:pixelated}
/* In two columns the errors come second, so that truth and prediction stand side by side. */
@media (min-width:34rem){.panels{grid-template-columns:1fr 1fr}.panels.tall{grid-template-columns:repeat(4,1fr)}
.wide figure:nth-child(-n+3){order:2}.wide figure:first-child,.wide figure:nth-child(4){order:1}}
@media (min-width:110rem){.panels{grid-template-columns:repeat(4,1fr)}.wide figure:nth-child(n){order:0}
#examples{width:min(94vw,124rem);margin-left:calc(50% - min(47vw,62rem))}}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;list-style:none;margin:.5rem 0;padding:0;font-size:.88rem}
summary{cursor:pointer;color:var(--accent)}
.remarks{margin:.5rem 0;padding-left:1.2rem;max-width:60rem}
.remarks li{margin:.25rem 0}
footer{color:var(--soft);font-size:.88rem;padding-block:0 2.5rem}
@media print{
:root{--ink:#000;--soft:#444;--paper:#fff;--page:#fff;--line:#ccc;--accent:#000}
body{font-size:10pt}nav{display:none}section{border:0;padding:0;margin:1.5rem 0}h2,h3{break-after:avoid}
.scroll{overflow:visible}.drawing{break-inside:avoid}.drawing img{width:100%;max-height:24cm;object-fit:contain;
object-position:left}
tr{break-inside:avoid}thead{display:table-header-group}}
"""

# Nothing is loaded, whatever a name holds: not even by mistake.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def _html(text: str) -> str:
    return html.escape(printable(text))


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _png(picture: Image.Image, *, optimize: bool = False) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=optimize)
    return buffer.getvalue()


def _embedded(picture: Image.Image) -> tuple[str, int, int]:
    """The picture as a data: URI, made smaller where it is large, and its width and height.

    As PNG or as JPEG, whichever is shorter: the one suits labels, the other photographs.
    """
    scale = min(1.0, WIDEST / picture.width, TALLEST / picture.height)
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="jpeg", quality=QUALITY, subsampling=0, optimize=True)
    lossless = _png(picture, optimize=True)
    if len(lossless) <= len(buffer.getvalue()):
        return _uri(lossless, "png"), picture.width, picture.height
    return _uri(buffer.getvalue(), "jpeg"), picture.width, picture.height


def _swatch(colour: Colour) -> str:
    return f'<span class="swatch" style="background:#{"".join(f"{value:02x}" for value in colour)}"></span>'


def _html_table(table: Table) -> str:
    def place(column: int) -> str:
        return ' class="left"' if column < table.texts else ""

    head = "".join(f'<th scope="col"{place(c)}>{_html(text)}</th>' for c, text in enumerate(table.headings))
    lines = []
    for number, row in enumerate(table.rows):
        swatch = _swatch(table.colours[number]) if table.colours else ""
        first = f'<th scope="row" class="left">{swatch}{_html(row[0])}</th>'
        rest = "".join(f"<td{place(c)}>{_html(text)}</td>" for c, text in enumerate(row[1:], start=1))
        lines.append(f"<tr>{first}{rest}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_html(table.caption)}">\n<table>'
        f"<caption>{_html(table.caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def _html_figure(figure: Figure) -> str:
    with Image.open(io.BytesIO(figure.drawing.light)) as picture:
        width, height = picture.size
    alt = _html(figure.alt)
    return (
        f'<figure class="drawing"><div class="scroll" tabindex="0" role="region" aria-label="{alt}"><picture>\n'
        f'<source media="screen and (prefers-color-scheme:dark)" srcset="{_uri(figure.drawing.dark, "png")}">\n'
        f'<img src="{_uri(figure.drawing.light, "png")}" alt="{alt}" width="{width}" height="{height}" '
        f'style="--own:{PER_INCH * width // DPI}px">'
        f"</picture></div>\n<figcaption>{_html(figure.caption)}</figcaption></figure>"
    )


def _html_sheet(sheet: Sheet) -> str:
    parts = []
    for name, picture in sheet.panels:
        uri, width, height = _embedded(picture)
        small = ' class="small"' if max(width, height) <= SMALL else ""
        alt = _html(f"{sheet.caption}: {name}")
        parts.append(
            f'<figure><img src="{uri}" alt="{alt}" width="{width}" height="{height}"{small}>'
            f"<figcaption>{_html(name)}</figcaption></figure>"
        )
    panels = "\n".join(parts)
    shape = "wide" if all(picture.width >= picture.height for _, picture in sheet.panels) else "tall"
    return (
        f'<figure class="sheet"><figcaption>{_html(sheet.caption)}</figcaption>\n'
        f'<div class="panels {shape}">\n{panels}\n</div></figure>'
    )


def _html_legend(legend: Legend) -> str:
    entries = "".join(f"<li>{_swatch(colour)}{_html(name)}</li>" for name, colour in legend.entries)
    listed = f'<ul class="legend">{entries}</ul>'
    if len(legend.entries) <= 30:
        return listed
    return f"<details><summary>{_html(legend.caption)}</summary>{listed}</details>"


def _html_headline(headline: Headline) -> str:
    tiles = "".join(
        f'<div><dt>{_html(name)}</dt><dd class="value">{_html(value)}</dd><dd class="note">{_html(note)}</dd></div>\n'
        for name, value, note in headline.tiles
    )
    return f'<dl class="tiles">\n{tiles}</dl>'


def _html_block(block: Block) -> str:
    match block:
        case Text(text):
            return f"<p>{_html(text)}</p>"
        case Heading(text):
            return f"<h3>{_html(text)}</h3>"
        case Points(points):
            return f'<ul class="remarks">{"".join(f"<li>{_html(point)}</li>" for point in points)}</ul>'
        case Headline():
            return _html_headline(block)
        case Table():
            return _html_table(block)
        case Figure():
            return _html_figure(block)
        case Sheet():
            return _html_sheet(block)
        case Legend():
            return _html_legend(block)


def _html_blocks(blocks: Sequence[Block]) -> Iterator[str]:
    """The blocks in order; tables that follow each other stand side by side where there is room."""
    for are_tables, group in groupby(blocks, key=lambda block: isinstance(block, Table)):
        rendered = "\n".join(map(_html_block, group))
        yield f'<div class="tables">\n{rendered}\n</div>' if are_tables else rendered


def as_html(title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section], *, footer: str) -> str:
    """The page as one HTML file: style and pictures inside, no script, nothing to load."""
    listed = "\n".join(f"<div><dt>{_html(name)}</dt><dd>{_html(value)}</dd></div>" for name, value in facts)
    links = "".join(f'<li><a href="#{section.key}">{_html(section.title)}</a></li>' for section in sections)
    body = "\n\n".join(
        f'<section id="{section.key}" aria-labelledby="{section.key}-title">\n'
        f'<h2 id="{section.key}-title">{_html(section.title)}</h2>\n'
        + "\n".join(_html_blocks(section.blocks))
        + "\n</section>"
        for section in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_html(title)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{_html(title)}</h1>
<dl class="facts">
{listed}
</dl>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{body}
</main>
<footer><p>{_html(footer)}</p></footer>
</body>
</html>
"""


# ----------------------------------------------------------------------------------------------------------- markdown


def _markdown(text: str) -> str:
    """The text as markdown shows it literally, in a line or a cell."""
    return re.sub(r"([\\`*_\[\]<>|&~$#!])", r"\\\1", printable(text))


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> list[str]:
    rule = [":---" if column < texts else "---:" for column in range(len(headings))]
    cells = [list(map(_markdown, headings)), rule, *(list(map(_markdown, row)) for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


def _markdown_block(block: Block) -> list[str]:
    match block:
        case Text(text):
            return [_markdown(text)]
        case Heading(text):
            return [f"### {_markdown(text)}"]
        case Points(points):
            return [f"- {_markdown(point)}" for point in points]
        case Headline(tiles):
            return _markdown_table(["figure", "", "of"], tiles, texts=1)
        case Table():
            table = _markdown_table(block.headings, block.rows, texts=block.texts)
            return [f"{_markdown(block.caption)}:", "", *table]
        case Figure():
            return [f"![{_markdown(block.alt)}]({block.file})", "", _markdown(block.caption)]
        case Sheet():
            names = ", ".join(name for name, _ in block.panels)
            return [f"{_markdown(block.caption)}:", "", f"![{_markdown(names)}]({block.file})"]
        case Legend():
            return []  # markdown has no colours


def as_markdown(title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """The page in markdown; pictures are links to `files`."""
    lines = [f"# {_markdown(title)}", "", *(f"- {_markdown(f'{name}: {value}')}" for name, value in facts)]
    for section in sections:
        lines += ["", f"## {_markdown(section.title)}"]
        for block in section.blocks:
            if rendered := _markdown_block(block):
                lines += ["", *rendered]
    return "\n".join(lines) + "\n"


def files(sections: Sequence[Section]) -> dict[str, bytes]:
    """The pictures that the markdown links to, by place below the page's folder: PNGs, sheets at full size."""
    found = {}
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Figure):
                found[block.file] = block.drawing.light
            elif isinstance(block, Sheet):
                found[block.file] = _png(block.sheet)
    return found
