"""Cars and buses as solids: faces with exact depth, windows and lamps as decals on them."""

import numpy as np

from dada.dataset.toycity import classes as c
from dada.dataset.toycity.canvas import Canvas
from dada.dataset.toycity.look import Look
from dada.dataset.toycity.shapes import ellipse
from dada.dataset.toycity.street import Street, pick, shade

_TYRE = np.float32([0.06, 0.06, 0.07])
_RIM = np.float32([0.5, 0.52, 0.55])
_RED = np.float32([0.85, 0.06, 0.05])
_WHITE = np.float32([0.95, 0.94, 0.85])


class _Solid:
    """Draws in a vehicle's axes: x to its right, y to its front, z up; origin on the ground below it."""

    def __init__(self, canvas: Canvas, look: Look, street: Street, position, heading: float, label: int):
        self.canvas, self.look, self.street, self.label = canvas, look, street, label
        self.position = np.array([position[0], position[1], 0.0])
        sin, cos = np.sin(heading), np.cos(heading)
        self.axes = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])

    def world(self, points) -> np.ndarray:
        return np.asarray(points, float) @ self.axes + self.position

    def face(self, points, outward, color, decals=()):
        """A face (4, 3) seen only from outside; decals are (u0, v0, u1, v1, colour) in shares of it."""
        world = self.world(points)
        normal = np.asarray(outward, float) @ self.axes
        if normal @ (world[0] - self.canvas.camera.position) >= 0:
            return
        light = shade(self.look, self.street, normal)
        self.canvas.polygon(world, (color * light).clip(0, 1), self.label)
        far = world[0, 1] > 35
        for number, (*share, paint) in enumerate(decals):
            if far and (share[2] - share[0]) * (share[3] - share[1]) < 0.06:
                continue  # smaller than a pixel or two
            bias = 0.004 * (number + 1)
            self.canvas.polygon(_inset(world, *share), (paint * (0.6 + 0.4 * light)).clip(0, 1), self.label, bias)

    def frustum(self, bottom, top, z0, z1, color, front=(), back=(), side=()):
        """A box that may taper: bottom and top are (y_back, y_front, half width).

        front, back and side hold decals as (u0, v0, u1, v1, colour) in shares of the face, seen from outside.
        """
        (a0, a1, aw), (b0, b1, bw) = bottom, top
        p = {
            (x, y, z): (x * (bw if z else aw), (b0, b1)[y] if z else (a0, a1)[y], z1 if z else z0)
            for x in (-1, 1)
            for y in (0, 1)
            for z in (0, 1)
        }
        quads = [
            ([p[1, 1, 0], p[-1, 1, 0], p[-1, 1, 1], p[1, 1, 1]], (0, z1 - z0, a1 - b1), front),
            ([p[-1, 0, 0], p[1, 0, 0], p[1, 0, 1], p[-1, 0, 1]], (0, z0 - z1, b0 - a0), back),
            ([p[1, 0, 0], p[1, 1, 0], p[1, 1, 1], p[1, 0, 1]], (z1 - z0, 0, aw - bw), side),
            ([p[-1, 1, 0], p[-1, 0, 0], p[-1, 0, 1], p[-1, 1, 1]], (z0 - z1, 0, aw - bw), None),
            ([p[-1, 0, 1], p[1, 0, 1], p[1, 1, 1], p[-1, 1, 1]], (0, 0, 1), ()),
        ]
        for quad, outward, decals in quads:
            if decals is None:  # the left side is the right one seen in a mirror
                decals = [(1 - u1, v0, 1 - u0, v1, paint) for u0, v0, u1, v1, paint in side]
            self.face(quad, outward, color, decals)

    def wheels(self, ys, half_width, radius):
        for x in (-1, 1):
            for y in ys:
                for size, paint, bias in ((radius, _TYRE, 0.012), (radius * 0.55, _RIM, 0.02)):
                    outline = ellipse(y, radius, size, size)
                    points = np.insert(outline, 0, x * half_width, axis=1)
                    world = self.world(points)
                    if (x * self.axes[0]) @ (world[0] - self.canvas.camera.position) < 0:
                        self.canvas.polygon(world, paint, self.label, bias)

    def shadow(self, half_width, half_length, opacity):
        w, h = half_width, half_length
        ground = [(-w, -h, 0.0), (w, -h, 0.0), (w, h, 0.0), (-w, h, 0.0)]
        self.canvas.polygon(self.world(ground), (0.03, 0.03, 0.04), None, bias=0.002, opacity=opacity)


def _inset(quad, u0, v0, u1, v1):
    """Part of a four-cornered face, given as shares from its lower left corner."""
    a, b, top_b, top_a = quad
    return np.array(
        [(a * (1 - u) + b * u) * (1 - v) + (top_a * (1 - u) + top_b * u) * v for u, v in ((u0, v0), (u1, v0), (u1, v1), (u0, v1))]
    )


def draw_car(canvas: Canvas, look: Look, street: Street, rng: np.random.Generator, position, heading: float) -> None:
    """A saloon, hatchback or van at (X, Y); heading in radians, 0 along the street, positive to the right."""
    paint, glass = pick(rng, look, "car"), pick(rng, look, "window") * 0.7
    kind = rng.choice(["saloon", "hatch", "van"], p=[0.4, 0.45, 0.15])
    length, width = ((rng.uniform(4.3, 4.9) if kind != "hatch" else rng.uniform(3.7, 4.2)), rng.uniform(1.7, 1.85))
    tall = 1.95 if kind == "van" else rng.uniform(1.42, 1.58)
    h, w = length / 2, width / 2
    belt = 1.1 if kind == "van" else rng.uniform(0.86, 0.95)
    solid = _Solid(canvas, look, street, position, heading, c.CAR)
    solid.shadow(w + 0.12, h + 0.1, 0.75 if look.fixed_camera else 0.55)
    plate = np.float32([0.85, 0.85, 0.8])
    dark = np.float32([0.1, 0.1, 0.11])
    solid.frustum(
        (-h, h, w),
        (-h + 0.08, h - 0.15, w - 0.04),
        0.24,
        belt,
        paint,
        front=[
            (0.03, 0.0, 0.97, 0.22, dark),
            (0.28, 0.45, 0.72, 0.72, dark),
            (0.02, 0.5, 0.22, 0.8, _WHITE),
            (0.78, 0.5, 0.98, 0.8, _WHITE),
            (0.38, 0.1, 0.62, 0.28, plate),
        ],
        back=[
            (0.03, 0.0, 0.97, 0.2, dark),
            (0.01, 0.52, 0.2, 0.86, _RED),
            (0.8, 0.52, 0.99, 0.86, _RED),
            (0.36, 0.3, 0.64, 0.5, plate),
        ],
        side=[(0.0, 0.0, 1.0, 0.08, dark), (0.495, 0.1, 0.505, 0.95, paint * 0.5)],
    )
    solid.wheels((-h * 0.62, h * 0.64), w + 0.005, 0.32)
    back, front = {"saloon": (-0.62, 0.34), "hatch": (-0.94, 0.38), "van": (-0.96, 0.62)}[kind]
    top_back, top_front = {"saloon": (-0.36, 0.06), "hatch": (-0.74, 0.08), "van": (-0.9, 0.34)}[kind]
    solid.frustum(
        (back * h, front * h, w - 0.06),
        (top_back * h, top_front * h, w - 0.24),
        belt,
        tall,
        paint,
        front=[(0.06, 0.08, 0.94, 0.92, glass)],
        back=[(0.1, 0.15, 0.9, 0.88, glass)],
        side=[(0.06, 0.1, 0.47, 0.86, glass), (0.52, 0.1, 0.92, 0.86, glass)],
    )


def draw_bus(canvas: Canvas, look: Look, street: Street, rng: np.random.Generator, position, heading: float) -> None:
    """A city bus at (X, Y): a tall box with a band of windows, doors and a destination board."""
    paint, glass = pick(rng, look, "bus"), pick(rng, look, "window") * 0.7
    h, w, tall = rng.uniform(4.6, 5.8), 1.25, rng.uniform(2.9, 3.2)
    solid = _Solid(canvas, look, street, position, heading, c.BUS)
    solid.shadow(w + 0.15, h + 0.1, 0.75 if look.fixed_camera else 0.55)
    dark = np.float32([0.1, 0.1, 0.11])
    board = np.float32([0.95, 0.6, 0.1])
    windows = [(0.03 + i * 0.138, 0.42, 0.155 + i * 0.138, 0.80, glass) for i in range(7)]
    doors = [(0.80, 0.06, 0.90, 0.80, glass), (0.40, 0.06, 0.51, 0.80, glass)]
    solid.frustum(
        (-h, h, w),
        (-h, h - 0.1, w - 0.05),
        0.28,
        tall,
        paint,
        front=[
            (0.05, 0.34, 0.95, 0.82, glass),
            (0.15, 0.86, 0.85, 0.96, dark),
            (0.3, 0.87, 0.7, 0.95, board),
            (0.04, 0.12, 0.2, 0.22, _WHITE),
            (0.8, 0.12, 0.96, 0.22, _WHITE),
            (0.0, 0.0, 1.0, 0.07, dark),
        ],
        back=[
            (0.15, 0.5, 0.85, 0.82, glass),
            (0.02, 0.16, 0.12, 0.36, _RED),
            (0.88, 0.16, 0.98, 0.36, _RED),
            (0.0, 0.0, 1.0, 0.08, dark),
            (0.3, 0.86, 0.7, 0.96, dark),
        ],
        side=[(0.0, 0.26, 1.0, 0.31, paint * 0.55), *windows, *doors],
    )
    solid.wheels((-h * 0.6, h * 0.62), w + 0.005, 0.46)
