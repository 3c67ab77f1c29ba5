"""What a generated street scene is painted on: its classes, its light, its camera and a canvas that keeps labels.

Lengths in the world are metres: X to the right, Y up, Z ahead of the camera, which stands at X = 0, Z = 0. Every
stroke paints the picture and, with the number of the object, a map beside it, so that the picture and the labels
share their edges.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[float, float, float]
Point = tuple[float, float]
Point3 = tuple[float, float, float]
Rng = np.random.Generator
Place = Callable[[float, float, float], Point3]


class Kind(IntEnum):
    """The classes of a generated scene; ``TABLE`` maps them to both official label lists."""

    UNLABELED = 0
    EGO = 1
    BORDER = 2
    STATIC = 3
    ROAD = 4
    MARKING = 5
    CROSSWALK = 6
    MANHOLE = 7
    PARKING = 8
    CURB = 9
    SIDEWALK = 10
    TERRAIN = 11
    RAIL_TRACK = 12
    BUILDING = 13
    WALL = 14
    FENCE = 15
    SKY = 16
    VEGETATION = 17
    POLE = 18
    STREET_LIGHT = 19
    TRAFFIC_LIGHT = 20
    TRAFFIC_SIGN = 21
    PERSON = 22
    BICYCLIST = 23
    MOTORCYCLIST = 24
    CAR = 25
    TRUCK = 26
    BUS = 27
    TRAIN = 28
    MOTORCYCLE = 29
    BICYCLE = 30
    BENCH = 31
    TRASH_CAN = 32
    HYDRANT = 33
    BILLBOARD = 34
    BIRD = 35
    MOUNTAIN = 36


class KindRow(NamedTuple):
    """Official ids of a kind, and how strong its surface noise is at three scales (0 to 1)."""

    cityscapes_id: int
    vistas_index: int
    grain: float = 0.04
    leaf: float = 0.03
    patch: float = 0.05


TABLE: dict[Kind, KindRow] = {
    Kind.UNLABELED: KindRow(0, 65),
    Kind.EGO: KindRow(1, 64, 0.02, 0.01, 0.06),
    Kind.BORDER: KindRow(3, 65, 0.0, 0.0, 0.0),
    Kind.STATIC: KindRow(4, 65, 0.08, 0.10, 0.10),
    Kind.ROAD: KindRow(7, 13, 0.05, 0.02, 0.06),
    Kind.MARKING: KindRow(7, 24, 0.06, 0.06, 0.06),
    Kind.CROSSWALK: KindRow(7, 23, 0.06, 0.06, 0.06),
    Kind.MANHOLE: KindRow(7, 41, 0.10, 0.06, 0.05),
    Kind.PARKING: KindRow(9, 10, 0.07, 0.04, 0.06),
    Kind.CURB: KindRow(8, 2, 0.05, 0.03, 0.04),
    Kind.SIDEWALK: KindRow(8, 15, 0.05, 0.04, 0.06),
    Kind.TERRAIN: KindRow(22, 29, 0.09, 0.09, 0.12),
    Kind.RAIL_TRACK: KindRow(10, 12, 0.10, 0.05, 0.05),
    Kind.BUILDING: KindRow(11, 17, 0.05, 0.04, 0.07),
    Kind.WALL: KindRow(12, 6, 0.08, 0.12, 0.10),
    Kind.FENCE: KindRow(13, 3, 0.05, 0.05, 0.05),
    Kind.SKY: KindRow(23, 27, 0.0, 0.0, 0.0),
    Kind.VEGETATION: KindRow(21, 30, 0.14, 0.26, 0.16),
    Kind.POLE: KindRow(17, 45),
    Kind.STREET_LIGHT: KindRow(17, 44),
    Kind.TRAFFIC_LIGHT: KindRow(19, 48),
    Kind.TRAFFIC_SIGN: KindRow(20, 50),
    Kind.PERSON: KindRow(24, 19, 0.04, 0.08, 0.05),
    Kind.BICYCLIST: KindRow(25, 20, 0.04, 0.08, 0.05),
    Kind.MOTORCYCLIST: KindRow(25, 21, 0.04, 0.08, 0.05),
    Kind.CAR: KindRow(26, 55, 0.02, 0.02, 0.06),
    Kind.TRUCK: KindRow(27, 61, 0.03, 0.03, 0.06),
    Kind.BUS: KindRow(28, 54, 0.02, 0.03, 0.06),
    Kind.TRAIN: KindRow(31, 58, 0.02, 0.03, 0.06),
    Kind.MOTORCYCLE: KindRow(32, 57),
    Kind.BICYCLE: KindRow(33, 52),
    Kind.BENCH: KindRow(4, 33),
    Kind.TRASH_CAN: KindRow(4, 51),
    Kind.HYDRANT: KindRow(4, 38),
    Kind.BILLBOARD: KindRow(4, 35),
    Kind.BIRD: KindRow(5, 0, 0.04, 0.10, 0.05),
    Kind.MOUNTAIN: KindRow(0, 25, 0.03, 0.05, 0.10),
}
GROUND = (Kind.ROAD, Kind.MARKING, Kind.CROSSWALK, Kind.PARKING, Kind.CURB, Kind.SIDEWALK, Kind.TERRAIN)


@dataclass(frozen=True)
class Scene:
    """One rendered picture.

    Attributes:
        image_HWC: uint8 RGB.
        label_HW: uint8, values of ``Kind``.
        object_HW: int32, the number of the object each pixel belongs to, 1 and up in order of painting.
    """

    image_HWC: NDArray[np.uint8]
    label_HW: NDArray[np.uint8]
    object_HW: NDArray[np.int32]


@dataclass(frozen=True)
class Light:
    """Weather and time of day: colours are RGB 0 to 255, ``visibility`` is metres, the rest are factors."""

    zenith: Colour
    skyline: Colour
    cloud: Colour
    cloudiness: float
    visibility: float
    sun_side: int  # -1: from the left, 0: none, 1: from the right
    sun: float  # 0 is flat light, 1 is hard
    lamps: float  # share of lit windows and lamps
    gains: Colour
    exposure: float
    gamma: float


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along Z; ``focal``, ``x`` and ``horizon`` are pixels, ``bend`` is 1/metre."""

    focal: float
    x: float
    horizon: float
    above: float  # metres over the road
    bend: float  # the street's sideways shift is bend * Z**2

    def project(self, point: Point3) -> Point:
        """The pixel (x, y) of a world point in front of the camera."""
        x, y, z = point
        scale = self.focal / z
        return self.x + (x + self.bend * z * z) * scale, self.horizon + (self.above - y) * scale


def uniform(rng: Rng, low: float, high: float) -> float:
    """A float from [low, high)."""
    return low + (high - low) * float(rng.random())


def chance(rng: Rng, probability: float) -> bool:
    """True with the given probability."""
    return float(rng.random()) < probability


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """``a`` with ``share`` (0 to 1) of ``b`` in it."""
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share)


def shaded(colour: Colour, factor: float) -> Colour:
    """The colour times a factor."""
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def pick_hue(rng: Rng, saturation: float, value: float) -> Colour:
    """A colour of random hue."""
    r, g, b = colorsys.hsv_to_rgb(float(rng.random()), saturation, value)
    return r * 255, g * 255, b * 255


def smooth_noise(rng: Rng, height: int, width: int, cell: float) -> NDArray[np.float32]:
    """Noise of about unit spread whose blobs are ``cell`` pixels wide, float32 of shape (height, width)."""
    rows, columns = max(2, math.ceil(height / cell) + 1), max(2, math.ceil(width / cell) + 1)
    coarse = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)


class Canvas:
    """A picture and its object map, both ``factor`` times the final size until ``finish``.

    Args:
        height: final rows.
        width: final columns.
        factor: supersampling.
        camera: in supersampled pixels.
        light: of the scene.
    """

    def __init__(self, *, height: int, width: int, factor: int, camera: Camera, light: Light) -> None:
        self.height, self.width, self.factor = height, width, factor
        self.camera, self.light = camera, light
        size = (width * factor, height * factor)
        self.image = Image.new("RGB", size)
        self._objects = Image.new("I", size)
        self._kinds = [int(Kind.UNLABELED)]
        self._restart()

    def _restart(self) -> None:
        self._paint = ImageDraw.Draw(self.image)
        self._blend = ImageDraw.Draw(self.image, "RGBA")
        self._mark = ImageDraw.Draw(self._objects)

    def background(self, image: Image.Image) -> None:
        """Lay a picture, at any size, under everything as sky."""
        self.image = image.resize(self.image.size, Image.Resampling.BILINEAR)
        self.begin(Kind.SKY)
        self._objects.paste(self._number, (0, 0, *self._objects.size))
        self._restart()

    def begin(self, kind: Kind) -> int:
        """Start a new object: what is painted from now on belongs to it. Returns its number."""
        self._kinds.append(int(kind))
        self._number = len(self._kinds) - 1
        return self._number

    def resume(self, number: int) -> None:
        """Paint on with an object that was begun before."""
        self._number = number

    def ink(self, colour: Colour, z: float) -> tuple[int, int, int]:
        """The colour as seen through ``z`` metres of haze."""
        clear = math.exp(-z / self.light.visibility)
        r, g, b = mix(self.light.skyline, colour, clear)
        return min(255, int(r)), min(255, int(g)), min(255, int(b))

    def polygon(self, pixels: Sequence[Point], colour: Colour, z: float) -> None:
        """Fill a polygon given in pixels."""
        self._paint.polygon(pixels, fill=self.ink(colour, z))
        self._mark.polygon(pixels, fill=self._number)

    def face(self, points: Sequence[Point3], colour: Colour) -> None:
        """Fill a polygon given in the world."""
        z = sum(point[2] for point in points) / len(points)
        self.polygon([self.camera.project(point) for point in points], colour, z)

    def stroke(self, points: Sequence[Point3], metres: float, colour: Colour) -> None:
        """A line of the given thickness through world points, at least one final pixel wide."""
        z = points[0][2]
        width = max(self.factor, round(metres * self.camera.focal / z))
        pixels = [self.camera.project(point) for point in points]
        self._paint.line(pixels, fill=self.ink(colour, z), width=width, joint="curve" if width > 4 else None)
        self._mark.line(pixels, fill=self._number, width=width, joint="curve" if width > 4 else None)

    def blob(self, point: Point3, radius: float, colour: Colour, *, flat: float = 1.0) -> None:
        """A disc of ``radius`` metres that faces the camera; ``flat`` scales its height."""
        x, y = self.camera.project(point)
        across = radius * self.camera.focal / point[2]
        box = (x - across, y - across * flat, x + across, y + across * flat)
        self._paint.ellipse(box, fill=self.ink(colour, point[2]))
        self._mark.ellipse(box, fill=self._number)

    def shadow(self, points: Sequence[Point3], strength: float) -> None:
        """Darken a world polygon; labels stay."""
        pixels = [self.camera.project(point) for point in points]
        self._blend.polygon(pixels, fill=(8, 10, 22, int(255 * strength)))

    def glow(self, point: Point3, radius: float, colour: tuple[int, int, int]) -> None:
        """A soft light around a world point; labels stay."""
        x, y = self.camera.project(point)
        full = radius * self.camera.focal / point[2]
        steps = int(min(24, 4 + full / 3))
        for step in range(steps):
            r = full * (1 - step / steps) ** 1.5
            self._blend.ellipse((x - r, y - r, x + r, y + r), fill=(*colour, max(4, 120 // steps)))

    def finish(self, rng: Rng) -> Scene:
        """Scale down, add surface texture, colour grade, blur and sensor noise."""
        factor = self.factor
        object_HW = np.asarray(self._objects, dtype=np.int32)[factor // 2 :: factor, factor // 2 :: factor].copy()
        label_HW = np.asarray(self._kinds, dtype=np.uint8)[object_HW]
        small = self.image.reduce(factor) if factor > 1 else self.image
        image = np.asarray(small, dtype=np.float32) * self._texture(rng, label_HW)[..., None]
        image = self._grade(rng, image)
        blurred = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        blur = uniform(rng, 0.0, 0.45) * max(1.0, self.height / 400)
        if blur > 0.15:
            blurred = blurred.filter(ImageFilter.GaussianBlur(blur))
        grain = rng.standard_normal(image.shape, dtype=np.float32) * uniform(rng, 0.6, 3.2)
        final = np.clip(np.asarray(blurred, dtype=np.float32) + grain, 0, 255).astype(np.uint8)
        border_HW = label_HW == Kind.BORDER
        final[border_HW] = 0
        return Scene(final, label_HW, object_HW)

    def _texture(self, rng: Rng, label_HW: NDArray[np.uint8]) -> NDArray[np.float32]:
        height, width = label_HW.shape
        unit = max(0.6, min(height, width) / 128)
        rows = [TABLE[kind] for kind in Kind]
        gain = np.ones((height, width), dtype=np.float32)
        for name, cell in (("grain", 1.0), ("leaf", 2.6 * unit), ("patch", 14.0 * unit)):
            strength = np.asarray([getattr(row, name) for row in rows], dtype=np.float32)
            gain += strength[label_HW] * smooth_noise(rng, height, width, cell)
        self._ground_texture(rng, label_HW, gain)
        return np.clip(gain, 0.35, 1.8, out=gain)

    def _ground_texture(self, rng: Rng, label_HW: NDArray[np.uint8], gain: NDArray[np.float32]) -> None:
        """Noise, stains and slab joints that lie on the ground, in perspective."""
        height, width = label_HW.shape
        top = int(self.camera.horizon / self.factor) + 2
        if top >= height:
            return
        below = (np.arange(top, height, dtype=np.float32)[:, None] + 0.5) * self.factor - self.camera.horizon
        z = self.camera.focal * self.camera.above / below
        across = (np.arange(width, dtype=np.float32)[None] + 0.5) * self.factor - self.camera.x
        x = across * z / self.camera.focal - self.camera.bend * z * z
        tile: NDArray[np.float32] = rng.standard_normal((256, 256), dtype=np.float32)
        fine = tile[(z * 9).astype(np.int32) % 256, (x * 9).astype(np.int32) % 256]
        loose = rng.random(x.shape, dtype=np.float32)  # blurs the steps between the cells of the stains
        rows, columns = (z * 3 + loose).astype(np.int32) % 256, (x * 12 + loose).astype(np.int32) % 256
        worn = smooth_noise(rng, 256, 256, 24)[rows, columns]
        near = np.exp(-z / 14)
        amount = (0.05 * fine + 0.06 * worn) * near
        slabs = (np.mod(x, 0.9) < 0.06) | (np.mod(z, 0.9) < 0.07)
        part = label_HW[top:]
        amount -= 0.16 * (slabs & (part == Kind.SIDEWALK)) * np.exp(-z / 9)
        gain[top:] += amount * np.isin(part, GROUND)

    def _grade(self, rng: Rng, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Colour temperature, exposure, contrast and a little vignette."""
        height, width = image.shape[:2]
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        x = np.linspace(-1, 1, width, dtype=np.float32)[None]
        vignette = 1 - uniform(rng, 0.02, 0.13) * (x * x + y * y)
        grey = image.mean(axis=2, keepdims=True)
        image = grey + (image - grey) * uniform(rng, 0.95, 1.35)
        gains = np.asarray(self.light.gains, dtype=np.float32) * self.light.exposure / 255
        graded: NDArray[np.float32] = np.clip(image * gains * vignette[..., None], 0, 1.25)
        graded = graded / (1 + 0.18 * np.maximum(graded - 0.6, 0))  # a soft shoulder keeps detail in bright parts
        result: NDArray[np.float32] = 255 * np.power(graded, np.float32(self.light.gamma))
        return result


def place(x: float, z: float, yaw: float) -> Place:
    """A function from an object's own (along, up, across) in metres to the world; yaw 0 points along Z."""
    sin, cos = math.sin(yaw), math.cos(yaw)

    def world(along: float, up: float, across: float) -> Point3:
        return x + along * sin + across * cos, up, z + along * cos - across * sin

    return world
