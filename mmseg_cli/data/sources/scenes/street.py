"""The fixed parts of a generated street: its sky and skyline, its ground, its houses, walls and fences."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from mmseg_cli.data.sources.scenes import objects as things
from mmseg_cli.data.sources.scenes.canvas import (
    Canvas,
    Colour,
    Kind,
    Point3,
    Rng,
    chance,
    mix,
    pick_hue,
    shaded,
    smooth_noise,
    uniform,
)
from mmseg_cli.data.sources.scenes.parts import CLOTHES, glass, pick

NEAR, FAR = 1.2, 130.0  # metres: where painting starts and where the street ends in haze
OnWall = Callable[[float, float], Point3]  # (along, up) on a building's front, to the world


@dataclass(frozen=True)
class Street:
    """Cross-section of a street in metres from the camera: kerbs, building lines, and what lies between."""

    left_kerb: float
    right_kerb: float
    left_front: float
    right_front: float
    lanes: int
    verge: tuple[float, float]  # width of the strip of grass behind the kerb, left and right
    parking: tuple[bool, bool]
    rails: bool
    road: Colour
    paving: Colour
    grass: Colour
    crossing: float  # metres ahead, 0 for none


def paint_sky(canvas: Canvas, rng: Rng) -> None:
    """A gradient from zenith to skyline with clouds that flatten toward the horizon."""
    light, rows, columns = canvas.light, 64, max(48, 64 * canvas.width // canvas.height)
    horizon = max(0.1, canvas.camera.horizon / (canvas.height * canvas.factor))
    down = np.clip(np.linspace(0, 1, rows, dtype=np.float32) / horizon, 0, 1)[:, None, None]
    sky = np.asarray(light.zenith, dtype=np.float32) * (1 - down**1.3) + np.asarray(light.skyline) * down**1.3
    noise = np.zeros((rows, columns), dtype=np.float32)
    for cell, weight in ((22, 0.6), (10, 0.4), (4, 0.22)):
        wide = smooth_noise(rng, rows, max(2, columns // 2), cell)  # stretched sideways below
        noise += weight * np.asarray(Image.fromarray(wide).resize((columns, rows), Image.Resampling.BILINEAR))
    cover = np.clip((noise - 0.55 + light.cloudiness) * 1.3, 0, 1)[..., None] * (1 - 0.6 * down)
    shade = np.asarray(light.cloud, dtype=np.float32) * (1 - 0.12 * np.clip(noise, 0, 1))[..., None]
    canvas.background(Image.fromarray(np.clip(sky * (1 - cover) + shade * cover, 0, 255).astype(np.uint8)))


def paint_skyline(canvas: Canvas, rng: Rng) -> None:
    """Hills, woods and houses where the street ends."""
    if chance(rng, 0.35):
        canvas.begin(Kind.MOUNTAIN)
        xs = np.linspace(-260, 260, 24)
        peaks = 16 + 26 * np.abs(np.cumsum(rng.normal(0, 0.32, 24)))
        ridge = [(float(x), float(y), 240.0) for x, y in zip(xs, peaks, strict=True)]
        canvas.face([(-260, 0, 240), *ridge, (260, 0, 240)], (80, 96, 100))
    for _ in range(9):
        x, z = uniform(rng, -90, 90), uniform(rng, FAR, FAR + 50)
        canvas.begin(Kind.BUILDING)
        half, top = uniform(rng, 4, 12), uniform(rng, 6, 26)
        canvas.face(
            [(x - half, 0, z), (x - half, top, z), (x + half, top, z), (x + half, 0, z)], pick_hue(rng, 0.2, 0.5)
        )
    for _ in range(10):
        canvas.begin(Kind.VEGETATION)
        leaf = shaded(things.leaf_colour(rng), 0.8)
        for x in rng.uniform(-70, 70, 3):
            canvas.blob((float(x), 2.5, FAR), uniform(rng, 3, 7), leaf, flat=0.8)


def strip(canvas: Canvas, x: tuple[float, float], z: tuple[float, float], colour: Colour, up: float = 0.0) -> None:
    """Paint a lengthwise strip of the ground in bands, each through its own haze."""
    edges = [z[0]]
    while edges[-1] < z[1]:
        edges.append(min(z[1], edges[-1] * 1.3 + 0.3))
    for near, far in pairwise(edges):
        canvas.face([(x[0], up, near), (x[1], up, near), (x[1], up, far), (x[0], up, far)], colour)


def paint_ground(canvas: Canvas, rng: Rng, street: Street) -> None:
    """Road, parking strips, kerbs, pavements, grass and what is painted on them."""
    reach = (NEAR * 0.4, FAR * 1.4)
    canvas.begin(Kind.TERRAIN)
    strip(canvas, (-400, 400), (8, FAR * 2), street.grass)
    canvas.begin(Kind.SIDEWALK)
    strip(canvas, (street.left_front - 12, street.right_front + 12), reach, street.paving)
    for side, kerb, verge in ((-1, street.left_kerb, street.verge[0]), (1, street.right_kerb, street.verge[1])):
        if verge:
            canvas.begin(Kind.TERRAIN)
            strip(canvas, (kerb + side * 0.3, kerb + side * (0.3 + verge)), reach, shaded(street.grass, 0.95))
        canvas.begin(Kind.CURB)
        strip(canvas, (kerb, kerb + side * 0.28), reach, shaded(mix(street.paving, (190, 190, 188), 0.6), 1.06))
    canvas.begin(Kind.ROAD)
    strip(canvas, (street.left_kerb, street.right_kerb), reach, street.road)
    for side, kerb, has in ((1, street.left_kerb, street.parking[0]), (-1, street.right_kerb, street.parking[1])):
        strip(canvas, (kerb, kerb + side * 0.12), reach, shaded(street.road, 0.7))  # the gutter
        if has:
            canvas.begin(Kind.PARKING if chance(rng, 0.3) else Kind.ROAD)
            strip(
                canvas,
                (kerb + side * 0.12, kerb + side * 2.1),
                reach,
                mix(street.road, street.paving, uniform(rng, 0.1, 0.6)),
            )
            canvas.begin(Kind.ROAD)
    paint_markings(canvas, rng, street)


def paint_markings(canvas: Canvas, rng: Rng, street: Street) -> None:
    """Lane lines, a zebra crossing, tram rails, manholes and repairs."""
    left = street.left_kerb + 2.1 * street.parking[0]
    right = street.right_kerb - 2.1 * street.parking[1]
    white = shaded((232, 230, 222), uniform(rng, 0.75, 1.05)) if chance(rng, 0.85) else (226, 186, 70)
    canvas.begin(Kind.ROAD)
    for _ in range(3):
        x, z = uniform(rng, left, right - 1), uniform(rng, 3, 25)
        strip(
            canvas,
            (x, x + uniform(rng, 0.6, 1.6)),
            (z, z + uniform(rng, 1, 7)),
            shaded(street.road, uniform(rng, 0.8, 1.12)),
        )
    canvas.begin(Kind.MARKING)
    phase = uniform(rng, 0, 6)
    for lane in range(street.lanes + 1):
        x = left + (right - left) * lane / street.lanes
        if lane in (0, street.lanes):
            if chance(rng, 0.6):
                strip(canvas, (x - 0.07, x + 0.07), (NEAR * 0.4, FAR), white)
            continue
        z = 0.5 + phase
        while z < 90:
            strip(canvas, (x - 0.08, x + 0.08), (z, z + 3), white)
            z += 6.5
    if street.rails:
        canvas.begin(Kind.RAIL_TRACK)
        for x in (-4.0, -2.6):
            strip(canvas, (x - 0.1, x + 0.1), (NEAR * 0.4, FAR), (96, 88, 84))
    if street.crossing:
        canvas.begin(Kind.CROSSWALK)
        for k in range(int((street.right_kerb - street.left_kerb) / 1.1)):
            x = street.left_kerb + 0.3 + k * 1.1
            strip(canvas, (x, x + 0.55), (street.crossing, street.crossing + 3.2), white)
    for _ in range(2):
        canvas.begin(Kind.MANHOLE)
        x, z = uniform(rng, left + 0.5, right - 0.5), uniform(rng, 4, 20)
        ring = [(x + 0.35 * math.cos(t), 0.0, z + 0.35 * math.sin(t)) for t in np.arange(0, math.tau, math.tau / 12)]
        canvas.face(ring, shaded(street.road, 0.62))


def building(canvas: Canvas, rng: Rng, side: int, front: float, z: tuple[float, float], height: float) -> None:
    """A house on one side of the street from ``z[0]`` to ``z[1]``: its front, its near gable and its roof."""
    canvas.begin(Kind.BUILDING)
    near, far = max(z[0], NEAR), z[1]
    value = uniform(rng, 0.42, 0.95)
    wall = pick_hue(rng, uniform(rng, 0.04, 0.45), value)
    if chance(rng, 0.65):  # plaster and brick are mostly warm
        wall = mix(wall, shaded((222, 176, 140), value), 0.7)
    sunny = canvas.light.sun_side == -side
    lit = shaded(wall, 0.82 + (0.3 * canvas.light.sun if sunny else -0.14 * canvas.light.sun))
    gable = shaded(wall, 0.74)
    back = front + side * 9
    roof = uniform(rng, 1.2, 3.4) if chance(rng, 0.55) else 0.0
    if roof:
        tile = mix((150, 74, 54), pick_hue(rng, 0.2, 0.4), float(rng.random()))
        ridge = front + side * 4.5
        canvas.face(
            [(front, height, near), (ridge, height + roof, near), (ridge, height + roof, far), (front, height, far)],
            tile,
        )
        canvas.face([(front, height, z[0]), (ridge, height + roof, z[0]), (back, height, z[0])] if z[0] > NEAR else
                    [(front, height, near)] * 3, gable)  # fmt: skip
    if z[0] > NEAR:
        canvas.face([(front, 0, near), (front, height, near), (back, height, near), (back, 0, near)], gable)
        paint_storeys(canvas, rng, lambda a, b: (front + side * a, b, near - 0.01), 9, height, gable)
    canvas.face([(front, 0, near), (front, height, near), (front, height, far), (front, 0, far)], lit)
    paint_storeys(canvas, rng, lambda a, b: (front, b, max(near, z[0] + a)), z[1] - z[0], height, lit)


def paint_storeys(canvas: Canvas, rng: Rng, on: OnWall, length: float, height: float, wall: Colour) -> None:
    """Windows with frames and sills, shops or doors at the ground, a plinth and a cornice."""
    storeys, bays = max(1, int(height / 3.1)), max(1, int(length / uniform(rng, 2.0, 3.4)))
    tall, wide = height / storeys, length / bays
    middle = on(length / 2, 0)
    if tall * canvas.camera.focal / middle[2] < 4 * canvas.factor:
        return

    def patch(a: float, b: float, low: float, high: float, colour: Colour) -> None:
        canvas.face([on(a, low), on(a, high), on(b, high), on(b, low)], colour)

    trim = mix(wall, (244, 240, 232), uniform(rng, 0.2, 0.8))
    patch(0, length, 0, 0.5, shaded(wall, 0.66))
    patch(0, length, height - 0.35, height, trim)
    shop, fine = chance(rng, 0.5), tall * canvas.camera.focal / middle[2] > 12 * canvas.factor
    if shop:
        patch(0, length, tall * 0.86, tall * 1.02, pick(rng, CLOTHES))
    inset, sill, top = uniform(rng, 0.16, 0.3), uniform(rng, 0.2, 0.34), uniform(rng, 0.8, 0.9)
    tint = uniform(rng, 0.1, 0.6)
    shine = rng.random((storeys, bays, 2))
    for floor in range(storeys):
        for bay in range(bays):
            a, b = (bay + inset) * wide, (bay + 1 - inset) * wide
            low, high = (floor + sill) * tall, (floor + top) * tall
            if floor == 0:
                door = shine[floor, bay, 0] < 0.25
                a, b = (
                    ((bay + 0.3) * wide, (bay + 0.7) * wide)
                    if door
                    else ((bay + 0.08) * wide, (bay + 0.92) * wide)
                    if shop
                    else (a, b)
                )
                low, high = (0.05 if door else 0.6 if shop else low), tall * 0.8
            if on(b, 0)[2] <= NEAR:
                continue
            pane = shaded(glass(canvas, tint), 0.75 + 0.5 * shine[floor, bay, 1])
            if shine[floor, bay, 0] < canvas.light.lamps:
                pane = (255, 206, 120)
            if fine:
                patch(a - 0.12, b + 0.12, low - 0.14, high + 0.12, trim)
            patch(a, b, low, high, pane)
            if fine:
                patch((a + b) / 2 - 0.04, (a + b) / 2 + 0.04, low, high, trim)
                patch(a, b, high - 0.16 * (high - low), high, shaded(pane, 0.62))


def paint_fronts(canvas: Canvas, rng: Rng, street: Street) -> None:
    """Rows of houses on both sides, with gaps for trees, and the shadows they cast on the ground."""
    rows: list[tuple[int, float, float, float, float]] = []
    for side, front in ((-1, street.left_front), (1, street.right_front)):
        z, usual = uniform(rng, -8, 0), uniform(rng, 6, 16)
        while z < FAR:
            length = uniform(rng, 7, 18)
            if not chance(rng, 0.16):
                rows.append(
                    (
                        side,
                        front + side * uniform(rng, 0, 1.2),
                        z,
                        z + length,
                        max(3.4, usual * uniform(rng, 0.6, 1.35)),
                    )
                )
            z += length + (uniform(rng, 1, 6) if chance(rng, 0.25) else 0)
    for side, front, z0, z1, height in rows:
        if side == canvas.light.sun_side and z1 > NEAR + 1:
            tip = front - side * height * 0.55 * (1.2 - 0.5 * canvas.light.sun)
            z0 = max(z0, NEAR)
            canvas.shadow([(front, 0, z0), (front, 0, z1), (tip, 0, z1 + 3), (tip, 0, z0 + 3)], 0.38 * canvas.light.sun)
    for side, front, z0, z1, height in sorted(rows, key=lambda row: -row[3]):
        if z1 > NEAR + 1:
            building(canvas, rng, side, front, (z0, z1), height)


def barrier(canvas: Canvas, rng: Rng, side: int, x: float, z: tuple[float, float]) -> None:
    """A wall of stones, a fence of bars or a hedge along the pavement; ``side`` is that of the street."""
    style = int(rng.choice(3, p=(0.36, 0.4, 0.24)))
    near, far = max(z[0], NEAR), z[1]
    height = uniform(rng, 0.9, 2.3)
    if style == 2:
        for step in np.arange(far, near + 0.6, -1.1):
            things.bush(canvas, rng, x + side * 0.5, float(step))
        return
    colour = mix((150, 140, 128), pick_hue(rng, 0.3, 0.5), float(rng.random()))
    canvas.begin(Kind.WALL if style == 0 else Kind.FENCE)
    if style == 0:
        strip_wall(canvas, x, (near, far), (0, height), shaded(colour, 0.9))
        for up in np.arange(0.4, height, 0.45):
            strip_wall(canvas, x, (near, far), (float(up), float(up) + 0.06), shaded(colour, 0.66))
        strip_wall(canvas, x, (near, far), (height - 0.14, height), shaded(colour, 1.2))
        return
    rail = max(0.05, height * 0.05)
    for up in (0.12, height * 0.55, height - rail):
        strip_wall(canvas, x, (near, far), (up, up + rail), colour)
    step, gap = far, uniform(rng, 0.28, 0.6)
    while step > near:
        canvas.face(
            [(x, 0, step), (x, height * 1.06, step), (x, height * 1.06, step - gap * 0.5), (x, 0, step - gap * 0.5)],
            shaded(colour, 0.85),
        )
        step -= gap


def strip_wall(canvas: Canvas, x: float, z: tuple[float, float], up: tuple[float, float], colour: Colour) -> None:
    """An upright strip along the street."""
    canvas.face([(x, up[0], z[0]), (x, up[1], z[0]), (x, up[1], z[1]), (x, up[0], z[1])], colour)
