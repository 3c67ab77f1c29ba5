"""Generated street scenes: a street in perspective as seen from a car.

``render`` composes a street from back to front: sky, skyline, ground, building fronts, then everything that stands on
the ground by falling distance. Light, season, paints and layout are drawn at random, so that colour alone says little
about the class.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mmseg_cli.data.sources.scenes import objects as things
from mmseg_cli.data.sources.scenes import vehicles as vehicles
from mmseg_cli.data.sources.scenes.canvas import (
    Camera,
    Canvas,
    Colour,
    Kind,
    Light,
    Rng,
    Scene,
    chance,
    mix,
    pick_hue,
    shaded,
    uniform,
)
from mmseg_cli.data.sources.scenes.parts import CAR_PAINTS, pick
from mmseg_cli.data.sources.scenes.street import (
    NEAR,
    Street,
    barrier,
    paint_fronts,
    paint_ground,
    paint_sky,
    paint_skyline,
)

__all__ = ["Kind", "Scene", "render"]

Thing = Callable[[Canvas, Rng, float, float, float], None]


def draw_light(rng: Rng) -> Light:
    """Draw a weather and a time of day."""
    skies: tuple[tuple[Colour, Colour, Colour], ...] = (
        ((66, 124, 200), (190, 214, 232), (250, 250, 250)),  # blue
        ((188, 194, 200), (214, 216, 218), (166, 172, 180)),  # overcast
        ((104, 116, 168), (250, 190, 130), (240, 150, 120)),  # sunset
        ((38, 50, 88), (150, 120, 130), (70, 66, 92)),  # dusk
        ((120, 156, 190), (228, 222, 206), (244, 238, 226)),  # hazy noon
    )
    which = int(rng.choice(5, p=(0.34, 0.24, 0.15, 0.09, 0.18)))
    zenith, skyline, cloud = (shaded(colour, uniform(rng, 0.9, 1.06)) for colour in skies[which])
    warm = uniform(rng, -0.11, 0.11) + (0.07 if which == 2 else -0.05 if which == 3 else 0.0)
    return Light(
        zenith=zenith,
        skyline=skyline,
        cloud=cloud,
        cloudiness=uniform(rng, 0.1, 0.9) if which != 1 else uniform(rng, 0.4, 1.0),
        visibility=uniform(rng, 80, 280) if which != 0 else uniform(rng, 160, 420),
        sun_side=0 if which in (1, 3) else int(rng.choice((-1, 1))),
        sun=0.0 if which in (1, 3) else uniform(rng, 0.35, 1.0),
        lamps=0.75 if which == 3 else 0.35 if which == 2 else 0.04,
        gains=(1 + warm, 1 + uniform(rng, -0.03, 0.03), 1 - warm),
        exposure=uniform(rng, 0.82, 1.22) * (0.95 if which == 3 else 1.0),
        gamma=uniform(rng, 0.84, 1.2),
    )


def draw_camera(rng: Rng, *, height: int, width: int) -> Camera:
    """Draw a dashboard camera for a picture of the given (supersampled) size."""
    return Camera(
        focal=uniform(rng, 0.62, 0.85) * max(width, 0.95 * height),
        x=width * uniform(rng, 0.4, 0.6),
        horizon=height * uniform(rng, 0.36, 0.5),
        above=uniform(rng, 1.35, 2.1),
        bend=float(rng.normal(0, 0.0006)),
    )


def draw_street(rng: Rng) -> Street:
    """Draw the street's layout and colours; the camera drives in the right half."""
    lanes = int(rng.choice((2, 3, 4), p=(0.5, 0.25, 0.25)))
    lane = uniform(rng, 3.0, 3.6)
    right = lane * uniform(rng, 0.5, 0.7)
    parking = (chance(rng, 0.6), chance(rng, 0.6))
    verge = tuple(uniform(rng, 1.0, 3.0) if chance(rng, 0.4) else 0.0 for _ in range(2))
    right_kerb, left_kerb = right + 2.1 * parking[1], -(lanes - 1) * lane - lane * 0.5 - 2.1 * parking[0]
    grey = uniform(rng, 72, 140)
    paving = mix((168, 160, 152), pick_hue(rng, 0.25, 0.65), uniform(rng, 0.0, 0.6))
    return Street(
        left_kerb=left_kerb,
        right_kerb=right_kerb,
        left_front=left_kerb - verge[0] - uniform(rng, 2.2, 5.0),
        right_front=right_kerb + verge[1] + uniform(rng, 2.2, 5.0),
        lanes=lanes,
        verge=(verge[0], verge[1]),
        parking=parking,
        rails=chance(rng, 0.22),
        road=mix((grey, grey, grey * 1.03), pick_hue(rng, 0.35, grey / 255), uniform(rng, 0.0, 0.45)),
        paving=shaded(paving, uniform(rng, 0.72, 1.1)),
        grass=mix((110, 128, 62), (166, 140, 92), float(rng.random())),
        crossing=uniform(rng, 7, 22) if chance(rng, 0.3) else 0.0,
    )


def stand(canvas: Canvas, rng: Rng, street: Street) -> None:
    """Everything that stands on the ground, from far to near."""
    plan: list[tuple[float, float, float, Thing]] = []

    def add(thing: Thing, x: float, z: float, yaw: float = 0.0) -> None:
        plan.append((z, x, yaw, thing))

    plan_traffic(rng, street, add)
    plan_pavements(rng, street, add)
    for z, x, yaw, thing in sorted(plan, key=lambda row: -row[0]):
        long = 4.5 if thing in (vehicles.bus, vehicles.truck, vehicles.train) else 1.5
        if z > NEAR + (long + 1.5 if thing in (vehicles.car, vehicles.bus, vehicles.truck, vehicles.train) else 1.6):
            thing(canvas, rng, x, z, yaw)


Add = Callable[..., None]


def plan_traffic(rng: Rng, street: Street, add: Add) -> None:
    """Driving and parked vehicles: ahead, oncoming, and at the kerbs."""
    lane = (street.right_kerb - street.left_kerb - 2.1 * sum(street.parking)) / street.lanes
    left = street.left_kerb + 2.1 * street.parking[0]
    for number in range(street.lanes):
        ahead = number >= street.lanes / 2
        z = uniform(rng, 7, 26)
        while z < 100:
            kind = int(rng.choice(6, p=(0.66, 0.1, 0.08, 0.07, 0.07, 0.02)))
            vehicle = (
                vehicles.car,
                vehicles.truck,
                vehicles.bus,
                vehicles.biker,
                vehicles.cyclist,
                vehicles.train if street.rails else vehicles.car,
            )[kind]
            offset = uniform(rng, -0.3, 0.3) + (0.8 if vehicle is vehicles.cyclist else 0)
            long = 9 if vehicle in (vehicles.bus, vehicles.truck) else 13 if vehicle is vehicles.train else 3
            add(
                vehicle,
                left + lane * (number + 0.5) + offset,
                z + long,
                (0.0 if ahead else math.pi) + uniform(rng, -0.04, 0.04),
            )
            z += long * 2 + uniform(rng, 4, 34)
    if street.rails and chance(rng, 0.6):
        add(vehicles.train, -3.3, uniform(rng, 24, 55), math.pi if street.lanes > 2 else 0.0)
    if chance(rng, 0.2):  # something crosses ahead
        crossing = (vehicles.car, vehicles.cyclist, vehicles.biker, vehicles.truck)[int(rng.integers(4))]
        add(crossing, uniform(rng, -5, 5), uniform(rng, 16, 34), math.pi / 2 * (1 if chance(rng, 0.5) else -1))
    for side, kerb, has in ((-1, street.left_kerb, street.parking[0]), (1, street.right_kerb, street.parking[1])):
        z = uniform(rng, 4, 12)
        while has and z < 75:
            if chance(rng, 0.7):
                parked = (
                    vehicles.truck if chance(rng, 0.06) else vehicles.motorcycle if chance(rng, 0.1) else vehicles.car
                )
                add(parked, kerb - side * 1.1, z, 0.0 if side > 0 else math.pi)
            z += uniform(rng, 5.6, 9)


def plan_pavements(rng: Rng, street: Street, add: Add) -> None:
    """People, trees, poles, lamps, signals, signs and street furniture on both pavements."""
    for side, kerb, front, verge in (
        (-1, street.left_kerb, street.left_front, street.verge[0]),
        (1, street.right_kerb, street.right_front, street.verge[1]),
    ):
        edge = kerb + side * (0.5 + verge * 0.5)
        room = abs(front - kerb) - verge

        def walk(side: int = side, kerb: float = kerb, verge: float = verge, room: float = room) -> float:
            return kerb + side * (verge + uniform(rng, 0.25, 0.85) * room)

        def row(thing: Thing, first: float, step: float, keep: float, edge: float = edge) -> None:
            for z in np.arange(uniform(rng, first, first + step), 95, step):
                if chance(rng, keep):
                    add(thing, edge + uniform(rng, -0.1, 0.1), float(z) + uniform(rng, -1, 1))

        if chance(rng, 0.75):
            row(things.tree, 8, uniform(rng, 7, 14), 0.75)
        row(things.street_light, 9, 24, 0.85)
        row(things.pole, 5, 17, 0.4)
        row(things.traffic_sign, 5, 15, 0.55)
        if chance(rng, 0.75) or street.crossing:
            add(things.traffic_light, edge, (street.crossing or uniform(rng, 8, 24)) + 0.3)
        for _ in range(int(rng.integers(2, 7))):
            add(things.person, walk(), math.exp(uniform(rng, 1.6, 4.1)))
        furniture = (
            things.bench,
            things.trash_can,
            things.hydrant,
            things.billboard,
            vehicles.bicycle,
            vehicles.motorcycle,
            things.bird,
            things.bush,
        )
        for k in rng.choice(8, size=3, p=(0.12, 0.14, 0.07, 0.08, 0.27, 0.12, 0.06, 0.14)):
            along = side * math.pi / 2 if furniture[int(k)] is not vehicles.bicycle else uniform(rng, 0, math.tau)
            add(furniture[int(k)], walk(), math.exp(uniform(rng, 1.7, 3.5)), along)
    if street.crossing:
        for _ in range(int(rng.integers(0, 4))):
            add(
                things.person,
                uniform(rng, street.left_kerb, street.right_kerb),
                street.crossing + uniform(rng, 0.4, 2.8),
            )


def paint_bonnet(canvas: Canvas, rng: Rng) -> None:
    """The camera car's own bonnet along the bottom, with a reflection of the sky."""
    canvas.begin(Kind.EGO)
    wide, high = canvas.width * canvas.factor, canvas.height * canvas.factor
    paint = pick(rng, CAR_PAINTS)
    lift, middle = high * uniform(rng, 0.05, 0.1), wide * uniform(rng, 0.42, 0.58)
    for share, colour in (
        (1.0, shaded(paint, 0.5)),
        (0.8, shaded(paint, 0.62)),
        (0.45, mix(paint, canvas.light.zenith, 0.4)),
    ):
        canvas.polygon(
            [(middle + wide * 0.62 * share * math.cos(t), high + 2 - lift * share * math.sin(t) ** 0.6)
             for t in np.linspace(0.001, math.pi - 0.001, 28)], colour, 0.0)  # fmt: skip


def paint_border(canvas: Canvas, pixels: int) -> None:
    """A black frame, ``pixels`` final pixels wide, where a rectified camera sees nothing."""
    canvas.begin(Kind.BORDER)
    wide, high, edge = canvas.width * canvas.factor, canvas.height * canvas.factor, pixels * canvas.factor
    for x0, y0, x1, y1 in (
        (0, 0, wide, edge),
        (0, high - edge, wide, high),
        (0, 0, edge, high),
        (wide - edge, 0, wide, high),
    ):
        canvas.polygon([(x0, y0), (x1 - 1, y0), (x1 - 1, y1 - 1), (x0, y1 - 1)], (0, 0, 0), 0.0)


def render(rng: Rng, *, height: int, width: int, bonnet: bool = False, border: int = 0) -> Scene:
    """Render a street.

    Args:
        rng: decides everything.
        height: rows of the picture.
        width: columns of the picture.
        bonnet: show the camera car's own bonnet.
        border: width of a black frame in pixels.

    Returns:
        The picture with its labels; all arrays are height x width.
    """
    factor = 2 if height <= 512 else 1  # large pictures have detail enough
    light, street = draw_light(rng), draw_street(rng)
    camera = draw_camera(rng, height=height * factor, width=width * factor)
    canvas = Canvas(height=height, width=width, factor=factor, camera=camera, light=light)
    paint_sky(canvas, rng)
    paint_skyline(canvas, rng)
    paint_ground(canvas, rng, street)
    paint_fronts(canvas, rng, street)
    for side, front in ((-1, street.left_front), (1, street.right_front)):
        if chance(rng, 0.5):
            start = uniform(rng, 2, 40)
            barrier(canvas, rng, side, front - side * 0.5, (start, start + uniform(rng, 8, 26)))
    stand(canvas, rng, street)
    if bonnet:
        paint_bonnet(canvas, rng)
    if border:
        paint_border(canvas, border)
    return canvas.finish(rng)
