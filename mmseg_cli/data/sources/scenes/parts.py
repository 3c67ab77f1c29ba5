"""What the things of a generated street share: paints, glass, shadows and solid bodies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from mmseg_cli.data.sources.scenes.canvas import (
    Canvas,
    Colour,
    Place,
    Point,
    Rng,
    mix,
    shaded,
    uniform,
)

CAR_PAINTS: tuple[Colour, ...] = (
    (235, 235, 232), (30, 31, 34), (160, 165, 170), (95, 98, 104), (170, 30, 34), (32, 62, 130), (40, 92, 70),
    (205, 160, 60), (120, 78, 52), (70, 130, 175), (215, 205, 180), (90, 30, 60),
)  # fmt: skip
CLOTHES: tuple[Colour, ...] = (
    (40, 44, 60), (190, 60, 50), (225, 220, 210), (70, 110, 160), (205, 170, 70), (60, 100, 70), (130, 80, 120),
    (60, 56, 52), (150, 150, 155), (225, 125, 60),
)  # fmt: skip
SKINS: tuple[Colour, ...] = ((236, 196, 166), (200, 150, 116), (140, 96, 70), (92, 62, 46))


def pick(rng: Rng, colours: Sequence[Colour]) -> Colour:
    """One of the colours, a little changed."""
    colour = colours[int(rng.integers(len(colours)))]
    return shaded(colour, uniform(rng, 0.8, 1.12))


def glass(canvas: Canvas, share: float = 0.35) -> Colour:
    """What a window reflects: something dark with ``share`` of the sky."""
    return mix((24, 30, 38), canvas.light.zenith, share)


def contact_shadow(canvas: Canvas, at: Place, length: float, width: float) -> None:
    """The dark ground under and beside a thing, longer on the side away from the sun."""
    lean = -canvas.light.sun_side * canvas.light.sun * 0.9
    for grow, strength in ((0.25, 0.22), (0.05, 0.4)):
        a, w = length / 2 + grow, width / 2 + grow
        canvas.shadow([at(-a, 0, -w), at(a, 0, -w), at(a, 0, w), at(-a, 0, w)], strength)
    if lean:
        near, far = (width / 2, width / 2 + lean) if lean > 0 else (-width / 2, -width / 2 + lean)
        a = length / 2
        canvas.shadow([at(-a, 0, near), at(a, 0, near), at(a * 0.9, 0, far), at(-a * 0.9, 0, far)], 0.3)


class Solid:
    """A side profile, (along, up) metres counter-clockwise, drawn out to ``width``: the body of a vehicle.

    ``seen`` holds the edges of the profile that face the camera, the far ones first, and ``side`` the flank that does:
    -1, 1, or 0 for neither.
    """

    def __init__(self, canvas: Canvas, at: Place, profile: Sequence[Point], width: float) -> None:
        self.canvas, self.at, self.profile, self.width = canvas, at, profile, width
        x0, _, z0 = at(0, 0, 0)
        x0 += canvas.camera.bend * z0 * z0
        ax, _, az = at(1, 0, 0)
        sin, cos = ax - at(0, 0, 0)[0], az - z0
        self.eye = (-x0 * sin - z0 * cos, canvas.camera.above)
        across = -x0 * cos + z0 * sin
        self.side = 1 if across > width / 2 else -1 if across < -width / 2 else 0
        self.seen = self._seen()

    def _seen(self) -> list[int]:
        edges: list[tuple[float, int]] = []
        ring = [*self.profile, self.profile[0]]
        for number, ((a0, b0), (a1, b1)) in enumerate(pairwise(ring)):
            middle = ((a0 + a1) / 2, (b0 + b1) / 2)
            toward = (self.eye[0] - middle[0], self.eye[1] - middle[1])
            if (b1 - b0) * toward[0] - (a1 - a0) * toward[1] > 0:
                edges.append((-math.hypot(*toward), number))
        return [number for _, number in sorted(edges)]

    def edge(self, number: int) -> tuple[Point, Point]:
        """The two ends of an edge of the profile."""
        return self.profile[number], self.profile[(number + 1) % len(self.profile)]

    def band(self, number: int, colour: Colour, *, low: float = 0, high: float = 1, inner: float = 1) -> None:
        """Paint an edge's face, from ``low`` to ``high`` along the edge and ``inner`` of its width."""
        (a0, b0), (a1, b1) = self.edge(number)
        w = self.width / 2 * inner
        p = (a0 + (a1 - a0) * low, b0 + (b1 - b0) * low)
        q = (a0 + (a1 - a0) * high, b0 + (b1 - b0) * high)
        self.canvas.face([self.at(*p, -w), self.at(*p, w), self.at(*q, w), self.at(*q, -w)], colour)

    def end(self, low: float, high: float, left: float, right: float, colour: Colour, *, front: bool) -> None:
        """A patch on the front or the rear, in metres up and across, if that end is seen."""
        along = max(a for a, _ in self.profile) if front else min(a for a, _ in self.profile)
        if (self.eye[0] > along) if front else (self.eye[0] < along):
            corners = ((low, left), (low, right), (high, right), (high, left))
            self.canvas.face([self.at(along, up, across) for up, across in corners], colour)

    def flank(self, points: Sequence[Point], colour: Colour) -> None:
        """A patch on the flank that is seen, (along, up) metres."""
        if self.side:
            w = self.side * self.width / 2
            self.canvas.face([self.at(a, b, w) for a, b in points], colour)

    def wheel(self, along: float, radius: float) -> None:
        """A wheel on the flank that is seen."""
        for share, colour in ((1.0, (18.0, 18.0, 20.0)), (0.6, (140.0, 142.0, 146.0)), (0.25, (60.0, 60.0, 64.0))):
            ring = [math.tau * k / 10 for k in range(10)]
            points = [(along + radius * share * math.cos(t), radius * (1 + share * math.sin(t))) for t in ring]
            self.flank(points, colour)

    def body(self, colour: Colour, *, roof: float = 1.1) -> None:
        """Paint every face that is seen, shaded by where it points."""
        light = self.canvas.light
        for number in self.seen:
            (a0, b0), (a1, b1) = self.edge(number)
            upward = (a0 - a1) / (math.hypot(a1 - a0, b1 - b0) or 1)
            self.band(number, shaded(colour, 0.78 + (roof - 0.78) * max(0.0, upward) - 0.4 * max(0.0, -upward)))
        sunny = self.side * light.sun_side * light.sun
        self.flank(self.profile, shaded(colour, 0.86 + 0.2 * sunny))


def scaled(profile: Sequence[Point], length: float, height: float) -> list[Point]:
    """A unit profile at full size."""
    return [(a * length, b * height) for a, b in profile]
