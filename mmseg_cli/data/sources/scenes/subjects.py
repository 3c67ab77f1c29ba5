"""Pictures of one single thing before a random background."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mmseg_cli.data.sources.scenes import objects as things
from mmseg_cli.data.sources.scenes import vehicles as vehicles
from mmseg_cli.data.sources.scenes.canvas import (
    Camera,
    Canvas,
    Kind,
    Rng,
    chance,
    mix,
    pick_hue,
    uniform,
)
from mmseg_cli.data.sources.scenes.parts import glass
from mmseg_cli.data.sources.scenes.render import draw_light
from mmseg_cli.data.sources.scenes.street import building, paint_sky, strip

Thing = Callable[[Canvas, Rng, float, float, float], None]


def _house(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float) -> None:
    side = 1 if math.sin(yaw) >= 0 else -1
    height = uniform(rng, 3.4, 8)
    building(canvas, rng, side, x - side * 2.5, (z - 2, z + uniform(rng, 4, 9)), height)


# What single-thing pictures show: the painter, its height in metres and its greatest width.
SUBJECTS: tuple[tuple[str, Thing, float, float], ...] = (
    ("car", vehicles.car, 1.5, 4.6),
    ("person", things.person, 1.75, 1.0),
    ("tree", things.tree, 8.0, 6.0),
    ("building", _house, 7.0, 9.0),
    ("traffic sign", things.traffic_sign, 2.8, 1.0),
    ("street light", things.street_light, 8.6, 2.4),
    ("truck", vehicles.truck, 3.3, 8.5),
    ("bicycle", vehicles.bicycle, 1.05, 1.8),
    ("bench", things.bench, 0.95, 1.9),
    ("traffic light", things.traffic_light, 4.0, 2.4),
    ("bus", vehicles.bus, 3.0, 11.0),
    ("motorcycle", vehicles.motorcycle, 1.1, 2.0),
    ("trash can", things.trash_can, 1.1, 0.8),
    ("tram", vehicles.train, 3.4, 20.0),
    ("fire hydrant", things.hydrant, 0.8, 0.55),
    ("bird", things.bird, 0.42, 0.6),
    ("billboard", things.billboard, 3.0, 3.0),
    ("cyclist", vehicles.cyclist, 1.95, 1.9),
)


def render_subject(rng: Rng, subject: int, *, height: int, width: int) -> NDArray[np.uint8]:
    """Render a picture of one thing before a random background.

    Args:
        rng: decides everything but the thing.
        subject: index into ``SUBJECTS``.
        height: rows of the picture.
        width: columns of the picture.

    Returns:
        RGB picture, uint8 of shape (height, width, 3).
    """
    _, thing, tall, wide = SUBJECTS[subject]
    factor = 2 if min(height, width) <= 256 else 1
    yaw = uniform(rng, 0, math.tau)
    seen = max(0.45 * wide, wide * abs(math.sin(yaw)))  # how wide it looks from here
    fill = uniform(rng, 0.6, 1.05)
    focal = 1.1 * max(height, width) * factor
    z = max(focal * tall / (fill * height * factor), focal * seen / (fill * width * factor)) + wide * (
        0.5 if wide < 4 else 0.25
    )
    eye = tall * uniform(rng, 0.45, 0.9) + 0.15
    horizon = height * factor * uniform(rng, 0.42, 0.58) - focal * (eye - tall / 2) / z
    camera = Camera(focal=focal, x=width * factor * uniform(rng, 0.4, 0.6), horizon=horizon, above=eye, bend=0.0)
    canvas = Canvas(height=height, width=width, factor=factor, camera=camera, light=draw_light(rng))
    paint_sky(canvas, rng)
    paint_stage(canvas, rng, z, wide)
    thing(canvas, rng, 0.0, z, yaw)
    return canvas.finish(rng).image_HWC


def paint_stage(canvas: Canvas, rng: Rng, z: float, wide: float) -> None:
    """Ground and a few blurred shapes behind a single thing ``z`` metres away."""
    kind = (Kind.ROAD, Kind.SIDEWALK, Kind.TERRAIN)[int(rng.integers(3))]
    ground = mix(pick_hue(rng, 0.35, uniform(rng, 0.3, 0.75)), (128, 124, 118), uniform(rng, 0.2, 0.9))
    canvas.begin(kind)
    strip(canvas, (-60 * z, 60 * z), (z * 0.12, z * 40), ground)
    for _ in range(int(rng.integers(0, 5))):
        far, x = z * uniform(rng, 1.8, 4) + wide, uniform(rng, -1.6, 1.6) * z
        size = z * uniform(rng, 0.3, 1.1)
        if chance(rng, 0.5):
            paint_block(canvas, rng, x, far, size)
        else:
            canvas.begin(Kind.VEGETATION)
            things.crown(canvas, rng, (x, size * 0.6, far), size * 0.8, size * 0.7, things.leaf_colour(rng))


def paint_block(canvas: Canvas, rng: Rng, x: float, z: float, size: float) -> None:
    """A house of any size, seen square on, as a backdrop."""
    canvas.begin(Kind.BUILDING)
    wall, high = pick_hue(rng, uniform(rng, 0, 0.4), uniform(rng, 0.35, 0.9)), size * uniform(rng, 0.8, 2.2)
    canvas.face([(x - size, 0.0, z), (x - size, high, z), (x + size, high, z), (x + size, 0.0, z)], wall)
    rows, columns = int(rng.integers(1, 5)), int(rng.integers(2, 6))
    pane, wide, tall = glass(canvas, uniform(rng, 0.1, 0.6)), 2 * size / columns, high / rows
    for k in range(rows * columns):
        a, low = x - size + wide * (k % columns + 0.25), tall * (k // columns + 0.3)
        canvas.face(
            [(a, low, z), (a, low + tall * 0.5, z), (a + wide * 0.5, low + tall * 0.5, z), (a + wide * 0.5, low, z)],
            pane,
        )
