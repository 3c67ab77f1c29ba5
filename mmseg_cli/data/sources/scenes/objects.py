"""What stands on a generated street beside vehicles, one function each, at (x, z) metres."""

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
    CLOTHES,
    SKINS,
    Solid,
    contact_shadow,
    pick,
)


def person(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float = 0.0) -> None:
    """A standing or walking person; ``yaw`` is not used, as they face the camera or away from it."""
    tall = uniform(rng, 1.5, 1.92) * (0.7 if chance(rng, 0.12) else 1.0)
    at = place(x, z, 0.0)
    canvas.shadow([at(-0.15, 0, -0.3), at(0.2, 0, -0.2), at(0.2, 0, 0.3), at(-0.15, 0, 0.3)], 0.35)
    canvas.begin(Kind.PERSON)
    coat, trousers, skin = pick(rng, CLOTHES), pick(rng, CLOTHES), pick(rng, SKINS)
    hair = pick(rng, ((40, 30, 24), (110, 76, 44), (190, 160, 100), (150, 148, 146), (24, 22, 24)))
    stride = uniform(rng, -0.22, 0.22)

    def body(up: float, across: float) -> tuple[float, float, float]:
        return at(0, up * tall, across * tall)

    if chance(rng, 0.22):  # a skirt or a long coat
        canvas.stroke([body(0.0, -0.05), body(0.3, -0.04)], 0.09, skin)
        canvas.stroke([body(0.0, 0.06), body(0.3, 0.04)], 0.09, skin)
        canvas.face([body(0.22, -0.13), body(0.22, 0.13), body(0.58, 0.08), body(0.58, -0.08)], trousers)
    else:
        canvas.stroke(
            [body(0.5, -0.045), body(0.26, -0.05 - stride * 0.25), body(0.02, -0.05 - stride * 0.6)], 0.15, trousers
        )
        canvas.stroke([body(0.5, 0.045), body(0.26, 0.05 + stride * 0.25), body(0.02, 0.05 + stride * 0.6)], 0.15,
                      shaded(trousers, 0.86))  # fmt: skip
    torso = [
        body(0.47, -0.085),
        body(0.47, 0.085),
        body(0.7, 0.115),
        body(0.82, 0.1),
        body(0.85, 0.0),
        body(0.82, -0.1),
        body(0.7, -0.115),
    ]
    canvas.face(torso, coat)
    sun = canvas.light.sun_side or 1
    canvas.face([body(0.47, -0.085 * sun), body(0.47, 0), body(0.84, 0), body(0.82, -0.1 * sun)], shaded(coat, 0.82))
    for side in (-1, 1):
        canvas.stroke([body(0.8, side * 0.11), body(0.62, side * 0.145), body(0.46, side * (0.13 + abs(stride) * 0.2))],
                      0.1, shaded(coat, 0.9))  # fmt: skip
    if chance(rng, 0.3):
        canvas.face([body(0.36, 0.12), body(0.36, 0.22), body(0.48, 0.2), body(0.48, 0.14)], pick(rng, CLOTHES))
    canvas.blob(body(0.93, 0), 0.065 * tall, hair, flat=1.2)
    if chance(rng, 0.5):
        canvas.blob(body(0.915, 0), 0.052 * tall, skin, flat=1.2)


def tree(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float = 0.0, *, height: float = 0.0) -> None:
    """A broad-leaved tree or a conifer of some season; ``yaw`` is not used."""
    height = height or uniform(rng, 4.5, 10.5)
    at = place(x, z, 0.0)
    canvas.shadow(
        [(x + 1.6 * math.cos(t), 0, z + 1.2 * math.sin(t)) for t in (0, 0.8, 1.6, 2.4, 3.1, 4, 4.8, 5.6)], 0.25
    )
    canvas.begin(Kind.VEGETATION)
    bark = pick(rng, ((84, 66, 50), (110, 98, 84), (60, 50, 44)))
    leaf = leaf_colour(rng)
    girth = 0.028 * height
    canvas.face(
        [at(0, 0, -girth), at(0, 0, girth), at(0, height * 0.6, girth * 0.5), at(0, height * 0.6, -girth * 0.5)], bark
    )
    canvas.face(
        [at(0, 0, 0), at(0, 0, girth), at(0, height * 0.6, girth * 0.5), at(0, height * 0.6, 0)], shaded(bark, 0.7)
    )
    if chance(rng, 0.2):
        _conifer(canvas, rng, at, height, leaf)
    else:
        for side in (-1, 1):
            canvas.stroke([at(0, height * 0.38, 0), at(0, height * 0.6, side * height * 0.16)], girth, bark)
        crown(canvas, rng, at(0, height * 0.68, 0), height * uniform(rng, 0.24, 0.32), height * 0.31, leaf)


def leaf_colour(rng: Rng) -> Colour:
    """Leaves of spring, summer or autumn, or a dusty dark green."""
    colours = (
        (74, 112, 46),
        (104, 138, 60),
        (52, 86, 52),
        (150, 140, 60),
        (186, 120, 46),
        (150, 70, 44),
        (96, 104, 80),
    )
    weights = (0.25, 0.2, 0.2, 0.12, 0.09, 0.06, 0.08)
    return shaded(colours[int(rng.choice(7, p=weights))], uniform(rng, 0.75, 1.15))


def crown(canvas: Canvas, rng: Rng, centre: tuple[float, float, float], wide: float, tall: float, leaf: Colour) -> None:
    """A heap of leaf clumps, dark ones first, the light ones toward the sun."""
    x, y, z = centre
    pixels = wide * canvas.camera.focal / z
    count = int(min(160, 10 + pixels * 0.9))
    angle, reach, size = rng.random(count) * math.tau, rng.random(count) ** 0.5, rng.random(count)
    sun = canvas.light.sun_side * 0.3
    for k in range(count):
        level = k / count
        shift = level * 0.35
        spread = reach[k] * (0.95 - 0.25 * level)
        cx = x + wide * (spread * math.cos(angle[k]) + sun * shift)
        cy = y + tall * (spread * math.sin(angle[k]) + 0.3 * shift)
        radius = wide * (0.34 - 0.2 * level) * (0.6 + 0.6 * size[k])
        canvas.blob((cx, cy, z), radius, shaded(leaf, 0.5 + 0.75 * level + 0.2 * (size[k] - 0.5)), flat=0.85)


def _conifer(canvas: Canvas, rng: Rng, at: Place, height: float, leaf: Colour) -> None:
    dark = mix(leaf, (30, 60, 44), 0.6)
    tiers = 6
    for k in range(tiers):
        low, top = height * (0.16 + 0.13 * k), height * (0.44 + 0.112 * k)
        half = height * (0.2 - 0.026 * k) * uniform(rng, 0.9, 1.1)
        points = [
            at(0, low, -half),
            at(0, low - height * 0.03, -half * 0.4),
            at(0, low, 0),
            at(0, low - height * 0.03, half * 0.5),
            at(0, low, half),
        ]
        canvas.face([*points, at(0, top, 0)], shaded(dark, 0.7 + 0.07 * k))
        canvas.face([at(0, low, 0), at(0, low, half), at(0, top, 0)], shaded(dark, 0.58 + 0.07 * k))


def bush(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float = 0.0) -> None:
    """A low shrub; ``yaw`` is not used."""
    canvas.begin(Kind.VEGETATION)
    size = uniform(rng, 0.5, 1.0)
    crown(canvas, rng, (x, size * 0.7, z), size * 1.3, size * 0.7, leaf_colour(rng))


def _post(canvas: Canvas, x: float, z: float, height: float, radius: float, colour: Colour) -> None:
    canvas.stroke([(x, 0, z), (x, height, z)], radius * 2, colour)
    canvas.stroke([(x - radius * 0.5, 0, z), (x - radius * 0.5, height, z)], radius * 0.5, shaded(colour, 1.25))


def pole(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float = 0.0) -> None:
    """A plain pole, a bollard or a utility pole with cross arms; ``yaw`` is not used."""
    canvas.begin(Kind.POLE)
    height = float(rng.choice((1.0, 4.5, 8.0)))
    colour = pick(rng, ((120, 122, 124), (70, 74, 76), (120, 92, 66), (200, 200, 196)))
    _post(canvas, x, z, height, 0.06 if height < 8 else 0.13, colour)
    if height == 8:
        for up in (7.0, 7.5):
            canvas.stroke([(x - 0.8, up, z), (x + 0.8, up, z)], 0.1, colour)


def street_light(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float = 0.0) -> None:
    """A lamp post whose arm reaches over the road; ``yaw`` is not used."""
    number = canvas.begin(Kind.POLE)
    height, colour = uniform(rng, 5, 8.5), pick(rng, ((110, 112, 116), (56, 60, 62), (60, 84, 74)))
    _post(canvas, x, z, height, 0.09, colour)
    inward = -1.6 if x > 0 else 1.6
    canvas.stroke([(x, height, z), (x + inward * 0.5, height + 0.35, z), (x + inward, height + 0.4, z)], 0.1, colour)
    canvas.begin(Kind.STREET_LIGHT)
    lit = canvas.light.lamps > 0.3
    end = (x + inward, height + 0.36, z)
    lamp = ((-0.4, 0.0), (0.4, 0.0), (0.25, 0.2), (-0.25, 0.2))
    shell = (255, 236, 180) if lit else shaded(colour, 0.8)
    canvas.face([(end[0] + across, end[1] + up, z) for across, up in lamp], shell)
    if lit:
        canvas.glow(end, 1.3, (255, 220, 150))
    canvas.resume(number)


def traffic_light(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float = 0.0) -> None:
    """A signal on a post, sometimes with a second head on an arm over the road; ``yaw`` is not used."""
    number = canvas.begin(Kind.POLE)
    colour = pick(rng, ((90, 92, 96), (50, 52, 54), (190, 190, 186)))
    _post(canvas, x, z, 3.2, 0.07, colour)
    heads = [(x, 2.3)]
    if chance(rng, 0.4):
        reach = -2.8 if x > 0 else 2.8
        canvas.stroke([(x, 3.2, z), (x, 5.3, z), (x + reach, 5.5, z)], 0.13, colour)
        heads.append((x + reach, 4.9))
    state = int(rng.integers(3))
    for across, up in heads:
        _signal(canvas, (across, up, z), state, pick(rng, ((24, 26, 26), (40, 52, 40), (196, 160, 40))))
    canvas.resume(number)


def _signal(canvas: Canvas, foot: tuple[float, float, float], state: int, case: Colour) -> None:
    x, up, z = foot
    canvas.begin(Kind.TRAFFIC_LIGHT)
    canvas.face([(x - 0.19, up, z), (x + 0.19, up, z), (x + 0.19, up + 1.0, z), (x - 0.19, up + 1.0, z)], case)
    lamps: tuple[Colour, ...] = ((60, 250, 130), (255, 190, 40), (255, 50, 40))
    for k, lamp in enumerate(lamps):
        canvas.blob((x, up + 0.19 + 0.31 * k, z), 0.12, lamp if k == state else shaded(lamp, 0.2))
    canvas.glow(
        (x, up + 0.19 + 0.31 * state, z), 0.3, (int(lamps[state][0]), int(lamps[state][1]), int(lamps[state][2]))
    )


def traffic_sign(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float = 0.0) -> None:
    """A round, triangular, square, octagonal or direction sign on a post; ``yaw`` is not used."""
    canvas.begin(Kind.POLE)
    _post(canvas, x, z, 2.3, 0.045, (150, 152, 154))
    canvas.begin(Kind.TRAFFIC_SIGN)
    radius, up = uniform(rng, 0.36, 0.5), 2.35
    red, blue, white = (205, 34, 38), (36, 84, 172), (238, 238, 232)
    shape = int(rng.integers(6))
    corners, turn = ((14, 0.0), (3, -math.pi / 6), (4, math.pi / 4), (8, math.pi / 8), (4, 0.0), (14, 0.0))[shape]
    outer, inner = ((red, white), (red, white), (white, blue), (white, red), (white, (240, 190, 40)), (white, blue))[
        shape
    ]
    turn += math.pi / 3 * (corners == 3)
    for share, colour in ((1.0, outer), (0.76, inner)):
        ring = [
            (math.cos(turn + math.tau * k / corners), math.sin(turn + math.tau * k / corners)) for k in range(corners)
        ]
        canvas.face([(x + radius * share * across, up + radius * share * rise, z) for across, rise in ring], colour)
    mark = (30, 30, 32) if inner in (white, (240, 190, 40)) else white
    if shape in (1, 2):
        canvas.stroke([(x, up - radius * 0.32, z), (x, up + radius * 0.3, z)], radius * 0.22, mark)
    elif shape in (0, 3):
        canvas.stroke([(x - radius * 0.45, up, z), (x + radius * 0.45, up, z)], radius * 0.3, mark)
    else:
        canvas.stroke(
            [
                (x - radius * 0.3, up + radius * 0.1, z),
                (x, up + radius * 0.4, z),
                (x + radius * 0.3, up + radius * 0.1, z),
            ],
            radius * 0.18,
            mark,
        )


def bench(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float) -> None:
    """A park bench of planks."""
    at, wood = place(x, z, yaw), pick(rng, ((150, 100, 60), (90, 62, 44), (70, 90, 74), (170, 168, 160)))
    contact_shadow(canvas, at, 1.8, 0.6)
    canvas.begin(Kind.BENCH)
    for a in (-0.75, 0.75):
        canvas.stroke([at(a, 0, 0.2), at(a, 0.45, 0.2), at(a, 0.45, -0.2), at(a, 0.9, -0.25)], 0.08, (50, 52, 54))
        canvas.stroke([at(a, 0, -0.2), at(a, 0.45, -0.2)], 0.08, (50, 52, 54))
    for up, across in ((0.92, -0.26), (0.75, -0.24), (0.58, -0.22), (0.46, -0.15), (0.46, 0.02), (0.46, 0.19)):
        plank = [at(-0.9, up, across), at(0.9, up, across), at(0.9, up + 0.1, across), at(-0.9, up + 0.1, across)]
        canvas.face(plank, shaded(wood, 0.8 + 0.3 * up))


def trash_can(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float = 0.0) -> None:
    """A wheeled bin with a lid."""
    at, paint = place(x, z, yaw), pick(rng, ((60, 66, 70), (50, 92, 60), (44, 70, 120), (190, 160, 40), (120, 74, 50)))
    contact_shadow(canvas, at, 0.6, 0.6)
    canvas.begin(Kind.TRASH_CAN)
    solid = Solid(canvas, at, [(-0.25, 0.06), (0.25, 0.06), (0.33, 0.95), (-0.33, 0.95)], 0.6)
    solid.body(paint)
    lid = Solid(canvas, at, [(-0.36, 0.95), (0.36, 0.95), (0.36, 1.03), (0.1, 1.12), (-0.36, 1.1)], 0.68)
    lid.body(shaded(paint, 0.75))


def hydrant(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float = 0.0) -> None:
    """A fire hydrant; ``yaw`` is not used."""
    canvas.begin(Kind.HYDRANT)
    paint = pick(rng, ((200, 44, 36), (226, 180, 44), (60, 100, 160), (180, 182, 184)))
    for low, high, width, shade in (
        (0, 0.08, 0.44, 0.7),
        (0.08, 0.62, 0.28, 1.0),
        (0.36, 0.5, 0.5, 0.85),
        (0.6, 0.68, 0.38, 0.8),
    ):
        canvas.stroke([(x, low, z), (x, high, z)], width, shaded(paint, shade))
    canvas.blob((x, 0.68, z), 0.14, shaded(paint, 1.1))
    canvas.blob((x, 0.43, z), 0.09, shaded(paint, 0.6))
    canvas.stroke([(x - 0.08, 0.1, z), (x - 0.08, 0.6, z)], 0.05, shaded(paint, 1.35))


def billboard(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float = 0.0) -> None:
    """A poster on two legs; ``yaw`` is not used."""
    canvas.begin(Kind.BILLBOARD)
    for side in (-0.8, 0.8):
        canvas.stroke([(x + side, 0, z), (x + side, 1.2, z)], 0.12, (80, 82, 84))
    page, print_ = pick(rng, CLOTHES), pick(rng, CLOTHES)
    canvas.face([(x - 1.5, 1.1, z), (x + 1.5, 1.1, z), (x + 1.5, 3.0, z), (x - 1.5, 3.0, z)], (226, 226, 220))
    canvas.face([(x - 1.4, 1.2, z), (x + 1.4, 1.2, z), (x + 1.4, 2.9, z), (x - 1.4, 2.9, z)], page)
    canvas.blob((x - 0.5, 2.1, z), 0.55, print_)
    for up in (2.4, 2.05, 1.7):
        canvas.stroke([(x + 0.2, up, z), (x + 1.2, up, z)], 0.14, (240, 240, 236))


def bird(canvas: Canvas, rng: Rng, x: float, z: float, yaw: float = 0.0) -> None:
    """A pigeon or a crow on the ground, about 30 cm; ``yaw`` tells left from right."""
    canvas.begin(Kind.BIRD)
    plumage = pick(rng, ((120, 124, 134), (40, 40, 46), (190, 188, 184), (130, 98, 70)))
    d = 1 if math.sin(yaw) >= 0 else -1
    for leg in (-0.03, 0.04):
        canvas.stroke([(x + leg, 0, z), (x + leg, 0.12, z)], 0.02, (190, 90, 70))
    canvas.face([(x - d * 0.3, 0.12, z), (x - d * 0.08, 0.16, z), (x - d * 0.05, 0.26, z)], shaded(plumage, 0.6))
    canvas.blob((x, 0.2, z), 0.14, plumage, flat=0.7)
    canvas.face([(x - d * 0.16, 0.17, z), (x + d * 0.08, 0.2, z), (x - d * 0.02, 0.28, z)], shaded(plumage, 0.75))
    canvas.stroke([(x + d * 0.1, 0.24, z), (x + d * 0.15, 0.34, z)], 0.09, mix(plumage, (60, 110, 90), 0.4))
    canvas.blob((x + d * 0.16, 0.36, z), 0.06, shaded(plumage, 0.85))
    canvas.face([(x + d * 0.2, 0.38, z), (x + d * 0.28, 0.35, z), (x + d * 0.2, 0.34, z)], (210, 160, 60))
