"""One picture of the toy city: where everything stands, and the drawing of it from far to near."""

from typing import NamedTuple

import cv2
import numpy as np

from dada.dataset.toycity import classes as c
from dada.dataset.toycity.canvas import Canvas
from dada.dataset.toycity.furniture import bin_, bush, lamp, sign, stall, traffic_light, tree
from dada.dataset.toycity.look import LOOKS, Look, expose, make_camera
from dada.dataset.toycity.people import bicycle, mirrored, motorcycle, pedestrian, rider
from dada.dataset.toycity.street import Street, draw_ground, draw_roadside, draw_sky, make_street, noise_tile
from dada.dataset.toycity.vehicles import draw_bus, draw_car


class Scene(NamedTuple):
    """A drawn street. ids are the numbers of classes.py, before any data set's own numbering."""

    rgb: np.ndarray  # (H, W, 3) uint8
    ids: np.ndarray  # (H, W) uint8
    instance: np.ndarray  # (H, W) uint16, 0 for what is not counted
    depth: np.ndarray  # (H, W) float32 metres along the optical axis, inf in the sky


def draw_scene(seed, look: str, size: tuple[int, int]) -> Scene:
    """Draw one street.

    Args:
        seed: whole number or sequence of them. The same seed gives the same picture.
        look: "source" (computer graphics) or "target" (camera).
        size: (width, height) in pixels, at least 64x32.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    style = LOOKS[look]
    street = make_street(rng, style)
    canvas = Canvas(make_camera(rng, style, size, street.road_half))
    draw_sky(canvas, style, rng)
    draw_ground(canvas, style, street, rng)
    later = draw_roadside(canvas, style, street, rng)
    later += _things(canvas, style, street, rng)
    # Depth decides what hides what; the order matters only for what shines through.
    for number, (_, draw) in enumerate(sorted(later, key=lambda item: -item[0]), 1):
        canvas.current_instance = number
        draw()
    if style.fixed_camera:
        _bonnet(canvas)
    rgb = expose(canvas, style, rng)
    return Scene(rgb, canvas.label, canvas.instance, canvas.depth)


def _things(canvas: Canvas, look: Look, street: Street, rng: np.random.Generator) -> list[tuple]:
    """Everything that stands or moves, as (distance, function that draws it)."""
    things: list[tuple] = []
    taken: list[tuple[float, float, float]] = []
    camera_x = canvas.camera.position[0]
    grain = (1 + 0.30 * noise_tile()).clip(0.4, 1.6) if look.texture > 0.5 else (1 + 0.15 * noise_tile())

    def free(x, y, radius):
        if y < 3.5 and abs(x - camera_x) < radius + 1.5:
            return False
        if any((x - a) ** 2 + (y - b) ** 2 < (radius + r) ** 2 for a, b, r in taken):
            return False
        taken.append((x, y, radius))
        return True

    def put(x, y, radius, parts, with_grain=False, shadow=0.0):
        if free(x, y, radius):
            things.append((y, lambda: _cut_out(canvas, look, x, y, parts, grain if with_grain else None, shadow)))

    def vehicle(draw, x, y, heading, radius):
        if free(x, y, radius):
            child = rng.spawn(1)[0]
            things.append((y, lambda: draw(canvas, look, street, child, (x, y), heading)))

    def kerb_x(side, inside=0.45):
        return side * (street.road_half + inside)

    def sidewalk_x(side):
        return side * rng.uniform(street.road_half + 0.6, street.front - 0.4)

    def distance(near=5.0, far=60.0):
        # Even in 1 / distance half of the time: pictures show more of what is close.
        even = rng.random()
        return near * (far / near) ** even

    def count(name):
        return rng.poisson(look.counts[name])

    def open_street(y, margin=2.0):
        return all(not start - margin < y < end + margin for start, end in street.crossings)

    # Big things first: they need the room.
    for _ in range(count("bus")):
        ahead = rng.random() < 0.5
        y = rng.uniform(13, 45)
        x = street.road_half * (0.45 if ahead else -0.45)
        vehicle(draw_bus, x, y, (0.0 if ahead else np.pi) + rng.normal(0, 0.05), 3.6)
    for _ in range(count("car")):
        crossing = street.crossings and rng.random() < 0.3
        if crossing:
            start, end = street.crossings[rng.integers(len(street.crossings))]
            heading = rng.choice([-1, 1]) * np.pi / 2
            vehicle(draw_car, rng.uniform(-14, 14), start + (end - start) * rng.uniform(0.25, 0.75), heading, 2.6)
        else:
            ahead = rng.random() < 0.5
            x = street.road_half * (0.42 if ahead else -0.42) + rng.normal(0, 0.3)
            vehicle(draw_car, x, distance(9, 70), (0.0 if ahead else np.pi) + rng.normal(0, 0.06), 2.6)
    if street.road_half > 4.4:
        for side in (-1, 1):
            if rng.random() < 0.25:
                continue
            for y in np.arange(4.0 + rng.uniform(0, 3), 75, 6.0):
                if rng.random() < look.park_rate and open_street(y, 4):
                    heading = 0.0 if side > 0 else np.pi
                    vehicle(draw_car, side * (street.road_half - 1.15), y, heading + rng.normal(0, 0.03), 2.5)

    for side in (-1, 1):
        for start, _ in street.crossings:
            if rng.random() < 0.55:
                arm = -side * rng.uniform(2.2, 3.6) if rng.random() < 0.5 else 0.0
                put(kerb_x(side), start - 0.8, 0.2, traffic_light(rng, look, arm))
        y = rng.uniform(4, 14)
        planted = rng.random() < 0.7
        while planted and y < 90:
            if open_street(y, 1):
                put(kerb_x(side, 0.8), y, 0.4, tree(rng, look), True, 1.2)
            y += look.street_trees * rng.uniform(0.6, 1.5)
        for _ in range(rng.poisson(3)):  # gardens behind the building line, seen where there is a gap
            put(side * (street.front + rng.uniform(1.5, 8)), distance(8, 80), 1.0, tree(rng, look), True)
        for _ in range(rng.poisson(1.5)):
            put(side * (street.front - 0.3), distance(8, 50), 0.6, bush(rng, look), True)
    for _ in range(count("light")):
        side = rng.choice([-1, 1])
        arm = -side * rng.uniform(2.0, 3.4) if rng.random() < 0.3 else 0.0
        put(kerb_x(side), distance(8, 45), 0.3, traffic_light(rng, look, arm))
    for _ in range(count("sign")):
        side = rng.choice([-1, 1])
        put(kerb_x(side, 0.5), distance(6, 45), 0.3, sign(rng, look))
    for _ in range(count("lamp")):
        side = rng.choice([-1, 1])
        put(kerb_x(side, 0.35), distance(8, 70), 0.3, lamp(rng, look, -side))
    for _ in range(count("bin")):
        put(sidewalk_x(rng.choice([-1, 1])), distance(6, 30), 0.4, bin_(rng, look))
    for _ in range(count("stall")):
        put(rng.choice([-1, 1]) * (street.front - 0.5), distance(10, 35), 1.2, stall(rng, look))

    for _ in range(count("rider")):
        on_motorcycle = rng.random() < 0.3
        side = rng.choice([-1, 1])
        x = side * street.road_half * rng.uniform(0.3, 0.75)
        _two_wheeler(rng, look, put, x, distance(6, 35), on_motorcycle, True)
    for _ in range(count("motorcycle")):
        side = rng.choice([-1, 1])
        x = side * (street.road_half + rng.uniform(-0.9, 0.7))
        _two_wheeler(rng, look, put, x, distance(6, 28), True, rng.random() < 0.4)
    for _ in range(count("bicycle")):
        _two_wheeler(rng, look, put, sidewalk_x(rng.choice([-1, 1])), distance(6, 28), False, False)
    for _ in range(count("person")):
        if rng.random() < 0.75:
            x, y = sidewalk_x(rng.choice([-1, 1])), distance(5, 45)
        else:
            x, y = rng.uniform(-1, 1) * street.road_half, distance(8, 45)
            if street.crossings and rng.random() < 0.6:
                y = street.crossings[0][0] - rng.uniform(0.8, 3.4)  # on the zebra crossing
        put(x, y, 0.35, pedestrian(rng, look), shadow=0.35)
    return things


def _two_wheeler(rng, look, put, x, y, on_motorcycle, ridden):
    """A bicycle or motorcycle with or without its rider, turned any way."""
    turn = rng.choice([0.2, rng.uniform(0.4, 0.8), rng.uniform(0.8, 1.0)], p=[0.35, 0.3, 0.35])
    parts = motorcycle(rng, look, turn, x > 0) if on_motorcycle else bicycle(rng, look, turn)
    if ridden:
        parts = parts + rider(rng, look, turn, on_motorcycle)
    put(x, y, 0.7, mirrored(parts) if rng.random() < 0.5 else parts, shadow=0.6 * turn)


def _cut_out(canvas, look, x, y, parts, grain, shadow):
    if shadow:
        angle = np.linspace(0, 2 * np.pi, 13)[:-1]
        outline = np.stack([x + shadow * np.cos(angle), y + 0.35 * np.sin(angle), 0 * angle], 1)
        canvas.polygon(outline, (0.05, 0.05, 0.06), None, bias=0.002, opacity=0.4)
    canvas.billboard((x, y, 0.0), parts, grain)


def _bonnet(canvas: Canvas) -> None:
    """The bonnet of the camera's own car, always in the same place, and the unusable outer columns."""
    height, width = canvas.label.shape
    curve = np.array([(0.06, 1.0), (0.14, 0.945), (0.3, 0.918), (0.5, 0.908), (0.7, 0.918), (0.86, 0.945), (0.94, 1.0)])
    outline = np.rint(curve * (width, height)).astype(np.int32)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [outline], 1)
    hood = mask > 0
    rows = np.nonzero(hood)[0]
    gloss = 0.10 + 0.25 * ((height - rows) / (0.1 * height)).clip(0, 1) ** 2
    canvas.rgb[hood] = gloss[:, None] * np.float32([0.9, 0.95, 1.05])
    canvas.label[hood] = c.EGO_VEHICLE
    canvas.depth[hood] = 1.5
    canvas.instance[hood] = 0
    edge = max(1, width // 170)
    canvas.label[:, :edge] = canvas.label[:, -edge:] = c.OUT_OF_ROI
