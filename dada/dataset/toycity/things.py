"""What stands or moves on a street of the toy city, and where there is room for it."""

import numpy as np

from dada.dataset.toycity.canvas import Canvas
from dada.dataset.toycity.furniture import bin_, bush, lamp, sign, stall, traffic_light, tree
from dada.dataset.toycity.look import Look
from dada.dataset.toycity.people import bicycle, mirrored, motorcycle, pedestrian, rider
from dada.dataset.toycity.street import Street, noise_tile
from dada.dataset.toycity.vehicles import draw_bus, draw_car


class Things:
    """Places things one after the other, the big ones first, since they need the room; one that has none is left out.

    Attributes:
        placed: (distance, function that draws it) of each.
    """

    def __init__(self, canvas: Canvas, look: Look, street: Street, rng: np.random.Generator) -> None:
        self.canvas, self.look, self.street, self.rng = canvas, look, street, rng
        self.placed: list[tuple] = []
        self._taken: list[tuple[float, float, float]] = []
        self._grain = (1 + 0.30 * noise_tile()).clip(0.4, 1.6) if look.texture > 0.5 else (1 + 0.15 * noise_tile())

    def add_vehicles(self) -> None:
        """Buses and cars that drive, cross and park."""
        rng, look, street = self.rng, self.look, self.street
        for _ in range(self._count("bus")):
            ahead = rng.random() < 0.5
            y = rng.uniform(13, 45)
            x = street.road_half * (0.45 if ahead else -0.45)
            self._vehicle(draw_bus, x, y, (0.0 if ahead else np.pi) + rng.normal(0, 0.05), 3.6)
        for _ in range(self._count("car")):
            crossing = street.crossings and rng.random() < 0.3
            if crossing:
                start, end = street.crossings[rng.integers(len(street.crossings))]
                heading = rng.choice([-1, 1]) * np.pi / 2
                self._vehicle(draw_car, rng.uniform(-14, 14), start + (end - start) * rng.uniform(0.25, 0.75), heading, 2.6)
            else:
                ahead = rng.random() < 0.5
                x = street.road_half * (0.42 if ahead else -0.42) + rng.normal(0, 0.3)
                self._vehicle(draw_car, x, self._distance(9, 70), (0.0 if ahead else np.pi) + rng.normal(0, 0.06), 2.6)
        if street.road_half > 4.4:
            for side in (-1, 1):
                if rng.random() < 0.25:
                    continue
                for y in np.arange(4.0 + rng.uniform(0, 3), 75, 6.0):
                    if rng.random() < look.park_rate and self._open_street(y, 4):
                        heading = 0.0 if side > 0 else np.pi
                        self._vehicle(draw_car, side * (street.road_half - 1.15), y, heading + rng.normal(0, 0.03), 2.5)

    def add_furniture(self) -> None:
        """Traffic lights, trees, lamps, signs, bins and stalls."""
        rng, look, street = self.rng, self.look, self.street
        for side in (-1, 1):
            for start, _ in street.crossings:
                if rng.random() < 0.55:
                    arm = -side * rng.uniform(2.2, 3.6) if rng.random() < 0.5 else 0.0
                    self._put(self._kerb_x(side), start - 0.8, 0.2, traffic_light(rng, look, arm))
            y = rng.uniform(4, 14)
            planted = rng.random() < 0.7
            while planted and y < 90:
                if self._open_street(y, 1):
                    self._put(self._kerb_x(side, 0.8), y, 0.4, tree(rng, look), True, 1.2)
                y += look.street_trees * rng.uniform(0.6, 1.5)
            for _ in range(rng.poisson(3)):  # gardens behind the building line, seen where there is a gap
                self._put(side * (street.front + rng.uniform(1.5, 8)), self._distance(8, 80), 1.0, tree(rng, look), True)
            for _ in range(rng.poisson(1.5)):
                self._put(side * (street.front - 0.3), self._distance(8, 50), 0.6, bush(rng, look), True)
        for _ in range(self._count("light")):
            side = rng.choice([-1, 1])
            arm = -side * rng.uniform(2.0, 3.4) if rng.random() < 0.3 else 0.0
            self._put(self._kerb_x(side), self._distance(8, 45), 0.3, traffic_light(rng, look, arm))
        for _ in range(self._count("sign")):
            side = rng.choice([-1, 1])
            self._put(self._kerb_x(side, 0.5), self._distance(6, 45), 0.3, sign(rng, look))
        for _ in range(self._count("lamp")):
            side = rng.choice([-1, 1])
            self._put(self._kerb_x(side, 0.35), self._distance(8, 70), 0.3, lamp(rng, look, -side))
        for _ in range(self._count("bin")):
            self._put(self._sidewalk_x(rng.choice([-1, 1])), self._distance(6, 30), 0.4, bin_(rng, look))
        for _ in range(self._count("stall")):
            self._put(rng.choice([-1, 1]) * (street.front - 0.5), self._distance(10, 35), 1.2, stall(rng, look))

    def add_people(self) -> None:
        """Riders, parked motorcycles and bicycles, and pedestrians."""
        rng, look, street = self.rng, self.look, self.street
        for _ in range(self._count("rider")):
            on_motorcycle = rng.random() < 0.3
            side = rng.choice([-1, 1])
            x = side * street.road_half * rng.uniform(0.3, 0.75)
            self._two_wheeler(x, self._distance(6, 35), on_motorcycle, True)
        for _ in range(self._count("motorcycle")):
            side = rng.choice([-1, 1])
            x = side * (street.road_half + rng.uniform(-0.9, 0.7))
            self._two_wheeler(x, self._distance(6, 28), True, rng.random() < 0.4)
        for _ in range(self._count("bicycle")):
            self._two_wheeler(self._sidewalk_x(rng.choice([-1, 1])), self._distance(6, 28), False, False)
        for _ in range(self._count("person")):
            if rng.random() < 0.75:
                x, y = self._sidewalk_x(rng.choice([-1, 1])), self._distance(5, 45)
            else:
                x, y = rng.uniform(-1, 1) * street.road_half, self._distance(8, 45)
                if street.crossings and rng.random() < 0.6:
                    y = street.crossings[0][0] - rng.uniform(0.8, 3.4)  # on the zebra crossing
            self._put(x, y, 0.35, pedestrian(rng, look), shadow=0.35)

    def _free(self, x, y, radius):
        if y < 3.5 and abs(x - self.canvas.camera.position[0]) < radius + 1.5:
            return False
        if any((x - a) ** 2 + (y - b) ** 2 < (radius + r) ** 2 for a, b, r in self._taken):
            return False
        self._taken.append((x, y, radius))
        return True

    def _put(self, x, y, radius, parts, with_grain=False, shadow=0.0):
        if self._free(x, y, radius):
            grain = self._grain if with_grain else None
            self.placed.append((y, lambda: _cut_out(self.canvas, x, y, parts, grain, shadow)))

    def _vehicle(self, draw, x, y, heading, radius):
        if self._free(x, y, radius):
            child = self.rng.spawn(1)[0]
            self.placed.append((y, lambda: draw(self.canvas, self.look, self.street, child, (x, y), heading)))

    def _two_wheeler(self, x, y, on_motorcycle, ridden):
        """A bicycle or motorcycle with or without its rider, turned any way."""
        rng, look = self.rng, self.look
        turn = rng.choice([0.2, rng.uniform(0.4, 0.8), rng.uniform(0.8, 1.0)], p=[0.35, 0.3, 0.35])
        parts = motorcycle(rng, look, turn, x > 0) if on_motorcycle else bicycle(rng, look, turn)
        if ridden:
            parts = parts + rider(rng, look, turn, on_motorcycle)
        self._put(x, y, 0.7, mirrored(parts) if rng.random() < 0.5 else parts, shadow=0.6 * turn)

    def _kerb_x(self, side, inside=0.45):
        return side * (self.street.road_half + inside)

    def _sidewalk_x(self, side):
        return side * self.rng.uniform(self.street.road_half + 0.6, self.street.front - 0.4)

    def _distance(self, near=5.0, far=60.0):
        # Even in 1 / distance half of the time: pictures show more of what is close.
        return near * (far / near) ** self.rng.random()

    def _count(self, name):
        return self.rng.poisson(self.look.counts[name])

    def _open_street(self, y, margin=2.0):
        return all(not start - margin < y < end + margin for start, end in self.street.crossings)


def _cut_out(canvas, x, y, parts, grain, shadow):
    if shadow:
        angle = np.linspace(0, 2 * np.pi, 13)[:-1]
        outline = np.stack([x + shadow * np.cos(angle), y + 0.35 * np.sin(angle), 0 * angle], 1)
        canvas.polygon(outline, (0.05, 0.05, 0.06), None, bias=0.002, opacity=0.4)
    canvas.billboard((x, y, 0.0), parts, grain)
