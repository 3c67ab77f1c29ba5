"""Difficult image files made on the fly, what is expected of each, and a network that needs no torch."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mmseg_cli.data.labels import LabelSpace
from mmseg_cli.evaluation.segmenter import Arrays, Protocol, Segmenter
from mmseg_cli.prediction.model import Model

SPACE = LabelSpace(
    name="toy-3",
    classes=("red", "green", "blue"),
    colours=((250, 0, 0), (0, 250, 0), (0, 0, 250)),
    ids=(7, 8, 26),
)
RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


# --------------------------------------------------------------------------------------------------------- network


def model(source: Path = Path("net.onnx"), *, protocol: Protocol | None = None, space: LabelSpace = SPACE, **more):
    """Its class is the strongest colour; the first of equal ones."""
    segmenter = Segmenter(
        forward=lambda x_BCHW: x_BCHW,
        arrays=Arrays(),
        classes=3,
        mean=(0.0, 0.0, 0.0),
        std=(255.0, 255.0, 255.0),
        protocol=protocol or Protocol(),
        bytes_per_pixel=12.0,
        **more,
    )
    return Model(segmenter, space, "ab" * 32, source, {}, more.get("limit"))


# ----------------------------------------------------------------------------------------------------------- files


def saved(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour_type: int, rows: list[bytes], *, more: bytes = b"") -> bytes:
    """A PNG of raw rows; `more` are chunks before the data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def words(*values: int, order: str = ">") -> bytes:
    return struct.pack(f"{order}{len(values)}H", *values)


def four() -> Image.Image:
    """2 wide, 3 high: red green / blue white / black black."""
    return Image.fromarray(np.array([[RED, GREEN], [BLUE, WHITE], [BLACK, BLACK]], dtype=np.uint8))


FOUR = np.asarray(four())


def turned(orientation: int, form: str = "PNG") -> bytes:
    """`four` as it lies in a file whose EXIF data ask for a turn."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(four(), form, exif=exif)


def plain(colour: tuple[int, ...], mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new(mode, size, colour)


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def palette(**options) -> bytes:
    image = Image.fromarray(np.array([[0, 1], [2, 3], [4, 4]], dtype=np.uint8))
    image.putpalette([value for colour in (RED, GREEN, BLUE, WHITE, BLACK) for value in colour])
    return saved(image, "PNG", **options)


def gif() -> bytes:
    frames = [plain(RED), plain(BLUE)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


def halved(content: bytes, *, end: bytes = b"") -> bytes:
    return content[: len(content) // 2] + end


def short_png() -> bytes:
    """A PNG with right checksums that lacks the lower half."""
    return png(4, 8, 8, 2, [b"\xff\x80\x01" * 4] * 4)


def bad_checksum() -> bytes:
    content = bytearray(saved(noise(16, 16), "PNG"))
    content[60] ^= 1
    return bytes(content)


def bomb(width: int = 60000, height: int = 60000) -> bytes:
    """A small file that claims billions of pixels."""
    return png(width, height, 8, 0, [b"\0" * 60000] * 64)


def tiff_float() -> bytes:
    return saved(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF")


def tiff_int() -> bytes:
    return saved(Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)), "TIFF")


def tiff16(mode: str) -> bytes:
    """Big-endian or little-endian 16-bit grey."""
    order = ">" if mode == "I;16B" else "<"
    return saved(Image.frombytes(mode, (2, 1), words(0x12FE, 0xFF01, order=order)), "TIFF")


def jpeg(image: Image.Image, **options) -> bytes:
    return saved(image, "JPEG", quality=100, subsampling=0, **options)


def ycck() -> bytes:
    """As Adobe writes it: inverted, and its colours as YCC. Only libjpeg-turbo makes one."""
    import simplejpeg

    inks_HWC = np.empty((16, 16, 4), dtype=np.uint8)
    inks_HWC[:] = (0, 200, 200, 30)
    return simplejpeg.encode_jpeg(255 - inks_HWC, quality=100, colorspace="CMYK", colorsubsampling="444")


def grey(*rows: tuple[int, ...]) -> np.ndarray:
    return np.repeat(np.array(rows, dtype=np.uint8)[:, :, None], 3, axis=2)


def full(colour: tuple[int, int, int], height: int = 16, width: int = 16) -> np.ndarray:
    return np.full((height, width, 3), colour, dtype=np.uint8)


@dataclass(frozen=True)
class Row:
    """One difficult file.

    Attributes:
        file: its name in a folder.
        content: its bytes.
        expected: image_HWC, or words of the one line.
        tolerance: by which a lossy format may differ.
    """

    file: str
    content: bytes
    expected: np.ndarray | str
    tolerance: int = 0


def transparent() -> Image.Image:
    image = four().convert("RGBA")
    image.putalpha(Image.fromarray(np.array([[0, 255], [128, 0], [1, 2]], dtype=np.uint8)))
    return image


def table() -> list[Row]:
    """The difficult files."""
    cmyk = Image.new("CMYK", (16, 16), (0, 200, 200, 30))
    deep = [words(0x12FE, 0x80FF, 0xFF01), words(0x00FF, 0xFFFF, 0x0100)]
    deep_HWC = np.array([[[0x12, 0x80, 0xFF]], [[0x00, 0xFF, 0x01]]], dtype=np.uint8)
    good = [
        Row("rgb.png", saved(four(), "PNG"), FOUR),
        Row("rgb.bmp", saved(four(), "BMP"), FOUR),
        Row("rgb.webp", saved(four(), "WEBP", lossless=True), FOUR),
        Row("rgb.tif", saved(four(), "TIFF", compression="tiff_lzw"), FOUR),
        Row("rgb.ppm", saved(four(), "PPM"), FOUR),
        Row("grey8.png", saved(Image.fromarray(np.array([[0, 77, 255]], dtype=np.uint8)), "PNG"), grey((0, 77, 255))),
        Row("grey1.png", png(2, 1, 1, 0, [b"\x40"]), grey((0, 255))),
        Row("grey2.png", png(4, 1, 2, 0, [b"\x1b"]), grey((0, 85, 170, 255))),
        Row("grey4.png", png(2, 1, 4, 0, [b"\x1f"]), grey((17, 255))),
        Row("grey16.png", png(3, 1, 16, 0, [words(0x12FE, 0xFF01, 0xFFFF)]), grey((0x12, 0xFF, 0xFF))),
        Row("grey16-little.tif", tiff16("I;16"), grey((0x12, 0xFF))),
        Row("grey16-big.tif", tiff16("I;16B"), grey((0x12, 0xFF))),
        Row("grey16.pgm", b"P5 2 1 65535\n" + words(0x12FE, 0xFF01), grey((0x12, 0xFF))),
        Row("grey-alpha16.png", png(1, 1, 16, 4, [words(0x12FE, 0x80FF)]), grey((0x12,))),
        Row("rgb16.png", png(1, 2, 16, 2, deep), deep_HWC),
        Row("rgba16.png", png(1, 1, 16, 6, [words(0x12FE, 0x80FF, 0xFF01, 0)]), deep_HWC[:1]),
        Row("palette.png", palette(), FOUR),
        Row("palette-transparent.png", palette(transparency=b"\x00\x80\xff\xff\xff"), FOUR),
        Row("grey-key.png", png(2, 1, 8, 0, [b"\x05\x06"], more=chunk(b"tRNS", words(5))), grey((5, 6))),
        Row("rgba.png", saved(transparent(), "PNG"), FOUR),
        Row("grey-alpha.png", saved(Image.new("LA", (1, 1), (9, 0)), "PNG"), grey((9,))),
        Row("cmyk.jpg", jpeg(cmyk), full((225, 49, 49)), tolerance=3),
        Row("ycck.jpg", ycck(), full((225, 49, 49)), tolerance=3),
        Row("cmyk.tif", saved(cmyk, "TIFF"), full((225, 49, 49)), tolerance=1),
        Row("grey.jpg", jpeg(Image.new("L", (16, 16), 99)), full((99, 99, 99)), tolerance=1),
        Row("progressive.jpg", jpeg(plain((200, 30, 60)), progressive=True), full((200, 30, 60)), tolerance=3),
        Row("gif-named.png", gif(), full(RED)),
        Row("animated.gif", gif(), full(RED)),
        Row("jpeg-named.png", jpeg(plain((0, 0, 250))), full((0, 0, 250)), tolerance=3),
        Row("exif3.png", turned(3), FOUR[::-1, ::-1]),
        Row("exif6.jpg", turned(6, "JPEG"), np.empty((2, 3, 3), dtype=np.uint8), tolerance=255),  # its shape counts
        Row("1x1.png", saved(plain(GREEN, size=(1, 1)), "PNG"), full(GREEN, 1, 1)),
        Row("1x5000.png", saved(plain(BLUE, size=(5000, 1)), "PNG"), full(BLUE, 1, 5000)),
        Row("5000x1.jpg", jpeg(plain(RED, size=(1, 5000))), full(RED, 5000, 1), tolerance=3),
        Row("behind-the-end.png", saved(four(), "PNG") + b"trailing", FOUR),
    ]
    noisy = noise(64, 64)
    bad = [
        Row("empty.png", b"", "is empty (0 bytes)"),
        Row("text.png", b"this is no picture\n" * 9, "is not an image that can be read here"),
        Row("signature.png", b"\x89PNG\r\n\x1a\n", "is cut short"),
        Row("cut.png", halved(saved(noisy, "PNG")), "is cut short"),
        Row("short.png", short_png(), "fewer rows than its header says"),
        Row("checksum.png", bad_checksum(), "wrong checksum"),
        Row("cut.jpg", halved(jpeg(noisy)), "is cut short"),
        Row("cut-but-ended.jpg", halved(jpeg(noisy), end=b"\xff\xd9"), "is damaged"),
        Row("cut-cmyk.jpg", halved(jpeg(noisy.convert("CMYK")), end=b"\xff\xd9"), "is damaged"),
        Row("cut.gif", halved(saved(noisy, "GIF")), "cannot be decoded"),
        Row("cut.bmp", halved(saved(noisy, "BMP")), "cannot be decoded"),
        Row("cut.webp", halved(saved(noisy, "WEBP")), "cannot be decoded"),
        Row("cut.tif", halved(saved(noisy, "TIFF")), "cannot be decoded"),
        Row("float.tif", tiff_float(), "holds floating point numbers"),
        Row("integers.tif", tiff_int(), "holds 32-bit or signed integers"),
        Row("bomb.png", bomb(), "claims 60000x60000 pixels, the limit is 268 million"),
        Row("svg.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image that can be read here"),
        Row("pdf.jpg", b"%PDF-1.4\n%%EOF\n", "is not an image that can be read here"),
    ]
    return good + bad


def lay_out(folder: Path) -> list[Row]:
    """The files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = table()
    for row in rows:
        (folder / row.file).write_bytes(row.content)
    return rows


def special(folder: Path) -> dict[str, str]:
    """What is no file but is named like an image, in a folder, with words of its line."""
    os.mkfifo(folder / "pipe.png")
    (folder / "nowhere.png").symlink_to(folder / "missing")
    (folder / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as end:
        here = Path.cwd()
        os.chdir(folder)  # its path may be too long for a socket's name
        try:
            end.bind("socket.png")
        finally:
            os.chdir(here)
    return {
        "pipe.png": "is a named pipe",
        "nowhere.png": "is a link that leads nowhere",
        "device.png": "is a device",
        "socket.png": "is a socket",
    }


# ----------------------------------------------------------------------------------------------------------- films

SHADES = (RED, GREEN, BLUE)


def film(path: Path, *, frames: int = 6, size: tuple[int, int] = (64, 48), **options) -> Path:
    """Whole frames of red, green and blue by turns."""
    import av

    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            picture = av.VideoFrame.from_image(plain(SHADES[number % 3], size=size))
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path
