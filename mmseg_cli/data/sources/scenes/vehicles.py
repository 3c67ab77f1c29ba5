"""The vehicles of a generated street, one function each: they stand at (x, z) metres, turned by yaw."""

from __future__ import annotations

import math

from mmseg_cli.data.sources.scenes.canvas import (
    Canvas,
    Colour,
    Kind,
    Place,
    Rng,
    chance,
    mix,
    place,
    shaded,
    uniform,
)
from mmseg_cli.data.sources.scenes.parts import (
    CAR_PAINTS,
    CLOTHES,
    SKINS,
    Solid,
    contact_shadow,
    glass,
    pick,
    scaled,
)

SEDAN = ((-0.5, 0.2), (0.5, 0.2), (0.5, 0.5), (0.24, 0.63), (0.06, 0.99), (-0.24, 1.0), (-0.42, 0.66), (-0.5, 0.62))
HATCH = ((-0.5, 0.2), (0.5, 0.2), (0.5, 0.5), (0.27, 0.62), (0.1, 0.98), (-0.36, 1.0), (-0.48, 0.62), (-0.5, 0.55))
VAN = ((-0.5, 0.15), (0.5, 0.15), (0.5, 0.42), (0.38, 0.56), (0.22, 0.98), (-0.47, 1.0), (-0.5, 0.55), (-0.5, 0.5))
BOX = ((-0.5, 0.1), (0.5, 0.1), (0.5, 1.0), (-0.5, 1.0))
GLASS_EDGES = (3, 5)  # the windscreen and the rear window of the three profiles above


def car(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float) -> None:
    """A saloon, a hatchback or a van, parked or driving."""
    shape, length, height, width = ((SEDAN, 4.5, 1.45, 1.8), (HATCH, 4.0, 1.5, 1.75), (VAN, 4.8, 1.95, 1.9))[
        int(rng.choice(3, p=(0.4, 0.4, 0.2)))
    ]
    at = place(x, z, yaw)
    contact_shadow(canvas, at, length, width)
    canvas.begin(Kind.CAR)
    solid = Solid(canvas, at, scaled(shape, length, height), width)
    paint = pick(rng, CAR_PAINTS)
    _underside(solid, length, width)
    solid.body(paint)
    pane = glass(canvas, uniform(rng, 0.2, 0.6))
    for number in GLASS_EDGES:
        if number in solid.seen:
            solid.band(number, pane, low=0.12, high=0.9, inner=0.86)
    _side_windows(solid, pane, paint)
    for wheel in (-0.31, 0.31):
        solid.wheel(wheel * length, 0.32)
    _car_ends(solid, width, height, pane, lit=canvas.light.lamps > 0.3 or chance(rng, 0.3))


def _underside(solid: Solid, length: float, width: float) -> None:
    low = min(b for _, b in solid.profile) + 0.02
    for front in (False, True):
        for left, right in ((-0.5, -0.3), (0.3, 0.5)):
            solid.end(0.0, low, left * width, right * width, (16, 16, 18), front=front)
        solid.end(low * 0.55, low, -width / 2, width / 2, (20, 20, 23), front=front)
    solid.flank(
        [(-length / 2, low), (length / 2, low), (length / 2, low * 0.6), (-length / 2, low * 0.6)], (20, 20, 23)
    )


def _side_windows(solid: Solid, pane: Colour, paint: Colour) -> None:
    belt, top = solid.profile[6][1] + 0.02, solid.profile[5][1] * 0.95
    rear, front = solid.profile[6][0], solid.profile[3][0]
    roof_rear, roof_front = solid.profile[5][0], solid.profile[4][0]
    middle = (roof_rear + roof_front) / 2
    solid.flank([(rear + 0.15, belt), (middle - 0.05, belt), (middle - 0.05, top), (roof_rear + 0.05, top)], pane)
    solid.flank([(middle + 0.05, belt), (front - 0.2, belt), (roof_front - 0.05, top), (middle + 0.05, top)], pane)
    for seam in (middle, middle + 0.9):
        solid.flank([(seam, 0.4), (seam + 0.03, 0.4), (seam + 0.03, belt), (seam, belt)], shaded(paint, 0.5))


def _car_ends(solid: Solid, width: float, height: float, pane: Colour, *, lit: bool) -> None:
    w, low = width / 2, height * 0.38
    red: Colour = (250, 40, 30) if lit else (150, 22, 24)
    white: Colour = (255, 250, 225) if lit else (205, 210, 215)
    for side in (-1, 1):
        inner, outer = sorted((side * w * 0.62, side * w * 0.96))
        solid.end(low, low + 0.17, inner, outer, red, front=False)
        solid.end(low - 0.08, low + 0.06, inner, outer, white, front=True)
    solid.end(0.42, 0.52, -0.26, 0.26, (225, 225, 215), front=False)
    solid.end(0.32, 0.5, -w * 0.55, w * 0.55, shaded(pane, 0.6), front=True)
    solid.end(0.34, 0.42, -0.26, 0.26, (225, 225, 215), front=True)
    if lit and solid.eye[0] > 0:
        for lamp in (-0.78, 0.78):
            solid.canvas.glow(solid.at(solid.profile[2][0], low, lamp * w), 0.35, (255, 240, 200))


def bus(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float) -> None:
    """A city bus with a row of windows and a lit destination sign."""
    _coach(canvas, rng, (x, z, yaw), Kind.BUS, (11.0, 3.0, 2.5))


def train(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float) -> None:
    """A tram."""
    _coach(canvas, rng, (x, z, yaw), Kind.TRAIN, (uniform(rng, 18, 26), 3.4, 2.4))


def _coach(
    canvas: Canvas, rng: Rng, spot: tuple[float, float, float], kind: Kind, size: tuple[float, float, float]
) -> None:
    length, height, width = size
    at = place(*spot)
    contact_shadow(canvas, at, length, width)
    canvas.begin(kind)
    profile = scaled(BOX, length, height)
    if kind == Kind.TRAIN:  # a tram's ends lean back and its roof carries gear
        profile = [(-length / 2, 0.2), (length / 2, 0.2), (length / 2, 1.4), (length / 2 - 0.7, height)]
        profile += [(-length / 2 + 0.7, height), (-length / 2, 1.4)]
    solid = Solid(canvas, at, profile, width)
    paint, second = pick(rng, CAR_PAINTS), pick(rng, CAR_PAINTS)
    _underside(solid, length, width)
    solid.body(paint)
    pane, sill, top = glass(canvas, uniform(rng, 0.15, 0.5)), height * 0.42, height * 0.82
    solid.flank([(-length / 2, 0.4), (length / 2, 0.4), (length / 2, sill * 0.75), (-length / 2, sill * 0.75)], second)
    step = 1.5
    for k in range(int(length / step)):
        a = -length / 2 + 0.2 + k * step
        low = 0.5 if k % 3 == 1 else sill  # every third one is a door
        solid.flank(
            [(a, low), (a + step * 0.86, low), (a + step * 0.86, top), (a, top)], shaded(pane, 1.0 - 0.04 * (k % 3))
        )
    for front in (False, True):
        solid.end(0.45, sill * 0.75, -width / 2, width / 2, shaded(second, 0.8), front=front)
    if kind == Kind.TRAIN:
        for number in (2, 4):
            if number in solid.seen:
                solid.band(number, pane, low=0.1, high=0.8, inner=0.88)
    else:
        for front in (False, True):
            solid.end(sill, top, -width * 0.43, width * 0.43, pane, front=front)
            solid.end(top + 0.08, height * 0.95, -width * 0.3, width * 0.3, (250, 180, 50), front=front)
    for a in (-0.32, 0.28):
        if kind == Kind.BUS:
            solid.wheel(a * length, 0.48)
    for side in (-1, 1):
        left, right = sorted((side * width * 0.34, side * width * 0.47))
        solid.end(0.6, 0.85, left, right, (220, 35, 30), front=False)
        solid.end(0.6, 0.85, left, right, (255, 248, 220), front=True)


def truck(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float) -> None:
    """A lorry: a cab before a cargo box, or before an open bed."""
    at = place(x, z, yaw)
    length, width, height = uniform(rng, 6.5, 9.5), 2.4, uniform(rng, 2.9, 3.6)
    contact_shadow(canvas, at, length, width)
    canvas.begin(Kind.TRUCK)
    cab_at, box_at = (lambda a, b, c: at(a + length * 0.36, b, c)), (lambda a, b, c: at(a - length * 0.14, b, c))
    cab_length, box_length = length * 0.27, length * 0.7
    cab_profile = [(-0.5, 0.18), (0.5, 0.18), (0.5, 0.5), (0.36, 1.0), (-0.5, 1.0)]
    cab = Solid(canvas, cab_at, scaled(cab_profile, cab_length, 2.6), width * 0.96)
    open_bed = chance(rng, 0.25)
    box_profile = [(-0.5, 0.8), (0.5, 0.8), (0.5, 1.6 if open_bed else height), (-0.5, 1.6 if open_bed else height)]
    box = Solid(canvas, box_at, [(a * box_length, b) for a, b in box_profile], width)
    paint, cargo = pick(rng, CAR_PAINTS), pick(rng, (*CAR_PAINTS[:3], *CLOTHES))
    parts = [_truck_cab, _truck_box] if cab.eye[0] < -length / 4 else [_truck_box, _truck_cab]
    for part in parts:
        solid, colour = (cab, paint) if part is _truck_cab else (box, cargo)
        part(canvas, solid, colour)


def _truck_cab(canvas: Canvas, cab: Solid, paint: Colour) -> None:
    half, pane = cab.profile[1][0], glass(canvas, 0.4)
    _underside(cab, half * 2, cab.width)
    cab.body(paint)
    if 2 in cab.seen:
        cab.band(2, pane, low=0.1, high=0.8, inner=0.88)
    cab.flank([(-half * 0.3, 1.4), (half * 0.8, 1.4), (half * 0.72, 2.2), (-half * 0.3, 2.2)], pane)
    cab.wheel(0.0, 0.48)
    for side in (-1, 1):
        left, right = sorted((side * cab.width * 0.3, side * cab.width * 0.46))
        cab.end(0.6, 0.85, left, right, (255, 250, 225), front=True)


def _truck_box(canvas: Canvas, box: Solid, cargo: Colour) -> None:
    half, width, top = box.profile[1][0], box.width, box.profile[2][1]
    box.flank([(-half, 0.45), (half, 0.45), (half, 0.8), (-half, 0.8)], (30, 30, 33))
    box.end(0.4, 0.82, -width * 0.46, width * 0.46, (28, 28, 30), front=False)
    box.body(cargo)
    box.end(0.85, top - 0.05, -0.02, 0.02, shaded(cargo, 0.4), front=False)
    box.flank([(-half * 0.6, top * 0.6), (half * 0.5, top * 0.6), (half * 0.5, top * 0.8), (-half * 0.6, top * 0.8)],
              mix(cargo, (255, 255, 255), 0.5))  # fmt: skip
    for a in (-0.72, -0.42):
        box.wheel(a * half, 0.48)
    for side in (-1, 1):
        left, right = sorted((side * width * 0.3, side * width * 0.46))
        box.end(0.0, 0.6, left, right, (16, 16, 18), front=False)
        box.end(0.62, 0.78, left, right, (200, 30, 28), front=False)


def _wheel_ring(canvas: Canvas, at: Place, along: float, radius: float, thick: float) -> None:
    ring = [math.tau * k / 12 for k in range(13)]
    canvas.stroke([at(along + radius * math.cos(t), radius * (1 + math.sin(t)), 0) for t in ring], thick, (24, 24, 26))


def bicycle(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float, *, ridden: bool = False) -> None:
    """A bicycle, with a cyclist when ``ridden``."""
    at, paint = place(x, z, yaw), pick(rng, CAR_PAINTS[4:])
    contact_shadow(canvas, at, 1.7, 0.3)
    canvas.begin(Kind.BICYCLE)
    for wheel in (-0.52, 0.52):
        _wheel_ring(canvas, at, wheel, 0.34, 0.06)
    diamond = ((-0.52, 0.34), (-0.2, 0.85), (0.35, 0.85), (-0.08, 0.32), (-0.52, 0.34))
    for line in (diamond, ((-0.08, 0.32), (-0.22, 0.95)), ((0.52, 0.34), (0.36, 0.98))):
        canvas.stroke([at(a, b, 0) for a, b in line], 0.07, paint)
    canvas.stroke([at(0.36, 1.0, -0.28), at(0.36, 1.0, 0.28)], 0.05, (40, 40, 42))
    canvas.stroke([at(-0.32, 0.97, 0), at(-0.1, 0.97, 0)], 0.1, (30, 26, 24))
    if ridden:
        _rider(canvas, rng, at, Kind.BICYCLIST, saddle=0.98)


def motorcycle(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float, *, ridden: bool = False) -> None:
    """A motorcycle or a scooter, with its driver when ``ridden``."""
    at, paint = place(x, z, yaw), pick(rng, CAR_PAINTS)
    contact_shadow(canvas, at, 2.0, 0.6)
    canvas.begin(Kind.MOTORCYCLE)
    for wheel in (-0.68, 0.68):
        _wheel_ring(canvas, at, wheel, 0.27, 0.15)
    profile = [(-0.75, 0.62), (-0.3, 0.3), (0.35, 0.3), (0.62, 0.75), (0.35, 1.02), (0.0, 0.82), (-0.75, 0.86)]
    solid = Solid(canvas, at, profile, 0.38)
    solid.body(paint)
    solid.flank([(-0.3, 0.32), (0.3, 0.32), (0.25, 0.62), (-0.25, 0.62)], (70, 72, 76))
    canvas.stroke([at(0.68, 0.3, 0), at(0.4, 1.0, 0)], 0.1, (120, 122, 126))
    canvas.stroke([at(0.4, 1.06, -0.36), at(0.4, 1.06, 0.36)], 0.07, (30, 30, 32))
    canvas.stroke([at(-0.65, 0.88, 0), at(0.0, 0.85, 0)], 0.16, (26, 24, 24))
    canvas.blob(at(0.6, 0.85, 0) if solid.eye[0] > 0 else at(-0.78, 0.75, 0), 0.09,
                (255, 246, 215) if solid.eye[0] > 0 else (210, 30, 26))  # fmt: skip
    if ridden:
        _rider(canvas, rng, at, Kind.MOTORCYCLIST, saddle=0.86)


def _rider(canvas: Canvas, rng: Rng, at: Place, kind: Kind, *, saddle: float) -> None:
    canvas.begin(kind)
    coat, trousers, skin = pick(rng, CLOTHES), pick(rng, CLOTHES[:4]), pick(rng, SKINS)
    for side, pedal in ((-0.13, 0.25), (0.13, 0.5)):
        canvas.stroke([at(-0.18, saddle, side), at(0.18, saddle - 0.32, side), at(0.0, pedal, side)], 0.17, trousers)
    canvas.stroke([at(-0.2, saddle, 0), at(0.05, saddle + 0.55, 0)], 0.42, coat)
    for side in (-0.22, 0.22):
        canvas.stroke([at(0.05, saddle + 0.5, side), at(0.2, saddle + 0.2, side), at(0.4, saddle + 0.1, side)],
                      0.12, shaded(coat, 0.85))  # fmt: skip
    head = at(0.12, saddle + 0.78, 0)
    canvas.blob(head, 0.14, skin, flat=1.15)
    canvas.blob((head[0], head[1] + 0.05, head[2]), 0.15, pick(rng, CAR_PAINTS), flat=0.75)


def cyclist(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float) -> None:
    """A bicycle and who rides it."""
    bicycle(canvas, rng, x, z, yaw, ridden=True)


def biker(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float) -> None:
    """A motorcycle and who drives it."""
    motorcycle(canvas, rng, x, z, yaw, ridden=True)
