"""People on foot, and bicycles and motorcycles with and without a rider."""

import numpy as np

from dada.dataset.toycity import classes as c
from dada.dataset.toycity.canvas import Part
from dada.dataset.toycity.look import Look
from dada.dataset.toycity.shapes import ellipse, limb, rectangle, squeeze
from dada.dataset.toycity.street import pick

_TYRE = (0.07, 0.07, 0.08)
_METAL = (0.55, 0.57, 0.6)


def pedestrian(rng: np.random.Generator, look: Look) -> list[Part]:
    """Head, hair, torso, arms, legs and shoes; standing or in mid-step, sometimes with a bag or a skirt."""
    coat, legs, skin = pick(rng, look, "clothes"), pick(rng, look, "trousers"), pick(rng, look, "skin")
    hair = np.float32([0.12, 0.08, 0.06]) * rng.uniform(0.5, 3)
    tall = rng.choice([rng.uniform(1.6, 1.9), rng.uniform(1.05, 1.4)], p=[0.85, 0.15])
    step, swing = rng.uniform(0.06, 0.36), rng.uniform(0.05, 0.25)
    broad = rng.uniform(0.38, 0.50)

    def part(outline, color):
        return Part(outline * (tall / 1.75), tuple(color), c.PERSON)

    parts = [
        part(limb((-0.06, 0.85), (-step - 0.04, 0.06), 0.20, 0.13), legs * 0.8),
        part(limb((0.06, 0.85), (step * 0.8 + 0.04, 0.06), 0.20, 0.13), legs),
        part(rectangle(-step - 0.12, 0.0, -step + 0.14, 0.09), (0.08, 0.07, 0.07)),
        part(rectangle(step * 0.8 - 0.04, 0.0, step * 0.8 + 0.22, 0.09), (0.08, 0.07, 0.07)),
        part(limb((-broad / 2 + 0.03, 1.38), (-broad / 2 - swing, 0.84), 0.14, 0.10), coat * 0.8),
    ]
    if rng.random() < 0.25:
        parts.append(part(np.array([(-0.17, 1.0), (0.17, 1.0), (0.27, 0.45), (-0.27, 0.45)]), legs))
    torso = np.array(
        [(-broad / 2, 1.36), (-broad / 2 + 0.1, 1.46), (broad / 2 - 0.1, 1.46), (broad / 2, 1.36), (0.19, 0.80), (-0.19, 0.80)]
    )
    parts += [
        part(torso, coat),
        part(limb((broad / 2 - 0.03, 1.38), (broad / 2 + swing * 0.7, 0.84), 0.14, 0.10), coat * 0.9),
        part(ellipse(broad / 2 + swing * 0.7, 0.80, 0.055, 0.07), skin),
        part(rectangle(-0.06, 1.42, 0.06, 1.54), skin),
        part(ellipse(0, 1.62, 0.115, 0.145), hair if rng.random() < 0.4 else skin),
        part(ellipse(-0.01, 1.69, 0.12, 0.085), hair),
    ]
    if rng.random() < 0.3:
        parts.append(part(rectangle(-broad / 2 - 0.2, 0.62, -broad / 2 + 0.06, 0.92), pick(rng, look, "cycle")))
    return parts


def bicycle(rng: np.random.Generator, look: Look, turn: float) -> list[Part]:
    """A bicycle seen from the side (turn 1) down to almost from behind (turn 0.15)."""
    paint = tuple(pick(rng, look, "cycle"))
    if turn < 0.35:
        return [
            Part(ellipse(0, 0.34, 0.06, 0.34), _TYRE, c.BICYCLE),
            Part(limb((0, 0.4), (0, 0.95), 0.07), paint, c.BICYCLE),
            Part(rectangle(-0.30, 0.96, 0.30, 1.03), _METAL, c.BICYCLE),
            Part(ellipse(0, 0.88, 0.12, 0.06), (0.1, 0.08, 0.07), c.BICYCLE),
            Part(ellipse(0, 0.62, 0.06, 0.05), (0.8, 0.1, 0.08), c.BICYCLE),
        ]
    parts = []
    for x in (-0.52, 0.52):
        parts.append(Part(ellipse(x, 0.35, 0.35, 0.35), _TYRE, c.BICYCLE))
        # Between the spokes the street shows, but the whole wheel is labelled bicycle.
        parts.append(Part(ellipse(x, 0.35, 0.27, 0.27), (0.62, 0.62, 0.62), c.BICYCLE, 0.75))
        spokes = limb((x - 0.25, 0.35), (x + 0.25, 0.35), 0.03), limb((x, 0.10), (x, 0.60), 0.03)
        parts += [Part(spoke, _TYRE, c.BICYCLE) for spoke in spokes]
    hub, pedals, seat, head = (-0.52, 0.35), (-0.05, 0.32), (-0.20, 0.80), (0.38, 0.82)
    tubes = [(hub, pedals), (hub, seat), (pedals, (-0.22, 0.90)), (seat, head), (pedals, head), ((0.52, 0.35), (0.34, 1.02))]
    parts += [Part(limb(a, b, 0.075), paint, c.BICYCLE) for a, b in tubes]
    parts.append(Part(rectangle(-0.38, 0.90, -0.10, 0.97), (0.1, 0.08, 0.07), c.BICYCLE))
    parts.append(Part(limb((0.26, 1.02), (0.48, 1.06), 0.06), _METAL, c.BICYCLE))
    return [p._replace(outline=squeeze(p.outline, turn)) for p in parts]


def motorcycle(rng: np.random.Generator, look: Look, turn: float, away: bool) -> list[Part]:
    """A motorcycle: fat wheels, engine block, tank, seat, lamp; from the side or from the end."""
    paint = pick(rng, look, "cycle")
    if turn < 0.35:
        lamp = (0.85, 0.08, 0.06) if away else (0.95, 0.93, 0.8)
        return [
            Part(ellipse(0, 0.32, 0.13, 0.32), _TYRE, c.MOTORCYCLE),
            Part(rectangle(-0.24, 0.34, 0.24, 0.62), (0.22, 0.22, 0.24), c.MOTORCYCLE),
            Part(ellipse(0, 0.76, 0.26, 0.26), tuple(paint), c.MOTORCYCLE),
            Part(rectangle(-0.42, 0.98, 0.42, 1.06), (0.2, 0.2, 0.22), c.MOTORCYCLE),
            Part(ellipse(0, 0.80, 0.12, 0.10), lamp, c.MOTORCYCLE),
        ]
    across = (-1.0, -0.85, -0.45, 0.35, 0.62, 0.60, 0.30, 0.02, -0.45)
    body = np.stack([across, (0.86, 0.66, 0.30, 0.30, 0.62, 0.98, 1.02, 0.84, 0.82)], 1)
    parts = [
        Part(ellipse(-0.66, 0.33, 0.33, 0.33), _TYRE, c.MOTORCYCLE),
        Part(ellipse(0.72, 0.33, 0.33, 0.33), _TYRE, c.MOTORCYCLE),
        Part(ellipse(-0.66, 0.33, 0.16, 0.16), _METAL, c.MOTORCYCLE),
        Part(ellipse(0.72, 0.33, 0.16, 0.16), _METAL, c.MOTORCYCLE),
        Part(limb((0.72, 0.33), (0.48, 1.05), 0.11), (0.4, 0.4, 0.42), c.MOTORCYCLE),
        Part(body, tuple(paint), c.MOTORCYCLE),
        Part(rectangle(-0.36, 0.24, 0.34, 0.54), (0.20, 0.20, 0.22), c.MOTORCYCLE),
        Part(rectangle(-0.80, 0.80, 0.02, 0.92), (0.08, 0.07, 0.07), c.MOTORCYCLE),
        Part(limb((0.34, 1.10), (0.60, 1.16), 0.08), (0.15, 0.15, 0.15), c.MOTORCYCLE),
        Part(ellipse(0.66, 0.92, 0.10, 0.10), (0.95, 0.93, 0.8), c.MOTORCYCLE),
        Part(limb((-0.95, 0.36), (-0.2, 0.30), 0.12), _METAL, c.MOTORCYCLE),
    ]
    return [p._replace(outline=squeeze(p.outline, turn)) for p in parts]


def rider(rng: np.random.Generator, look: Look, turn: float, on_motorcycle: bool) -> list[Part]:
    """The person on a two-wheeler, to be drawn over it: bent forward, hands on the bar, often a helmet."""
    coat, legs, skin = pick(rng, look, "clothes"), pick(rng, look, "trousers"), pick(rng, look, "skin")
    head = pick(rng, look, "clothes") if on_motorcycle or rng.random() < 0.5 else np.float32([0.15, 0.1, 0.08])
    seat = 0.88 if on_motorcycle else 0.97
    if turn < 0.35:
        shapes = [
            (limb((-0.10, seat), (-0.20, 0.35), 0.19, 0.14), legs * 0.85),
            (limb((0.10, seat), (0.20, 0.45), 0.19, 0.14), legs),
            (limb((-0.20, seat + 0.5), (-0.34, 1.05), 0.13), coat * 0.85),
            (limb((0.20, seat + 0.5), (0.34, 1.05), 0.13), coat * 0.85),
            (np.array([(-0.24, seat + 0.52), (0.24, seat + 0.52), (0.18, seat - 0.06), (-0.18, seat - 0.06)]), coat),
            (ellipse(0, seat + 0.70, 0.12, 0.15), skin),
            (ellipse(0, seat + 0.75, 0.135, 0.125), head),
        ]
        return [Part(outline, tuple(color), c.RIDER) for outline, color in shapes]
    hip, shoulder, foot, knee = np.array([(-0.25, seat), (0.06, seat + 0.50), (0.0, 0.28), (0.14, 0.66)])
    shapes = [
        (limb(hip + (0.02, 0), knee - (0.08, 0.1), 0.20, 0.16), legs * 0.75),
        (limb(hip, knee, 0.21, 0.17), legs),
        (limb(knee, foot, 0.16, 0.12), legs),
        (rectangle(-0.06, 0.2, 0.18, 0.29), np.float32([0.1, 0.08, 0.08])),
        (limb(hip - (0.02, 0.06), shoulder, 0.30, 0.34), coat),
        (limb(shoulder, (0.42, 1.08), 0.13, 0.10), coat * 0.85),
        (ellipse(0.14, seat + 0.71, 0.125, 0.15), skin),
        (ellipse(0.11, seat + 0.77, 0.15, 0.12), head),
    ]
    stretch = max(turn, 0.5)  # a body does not get as thin as a wheel
    return [Part(squeeze(outline, stretch), tuple(color), c.RIDER) for outline, color in shapes]


def mirrored(parts: list[Part]) -> list[Part]:
    """The same cut-out facing the other way."""
    return [part._replace(outline=part.outline * (-1.0, 1.0)) for part in parts]
