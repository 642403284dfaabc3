"""Trees, bushes, poles with signs and traffic lights, street lamps, bins and stalls, as cut-outs."""

import numpy as np

from dada.dataset.toycity import classes as c
from dada.dataset.toycity.canvas import Part
from dada.dataset.toycity.look import Look
from dada.dataset.toycity.shapes import ellipse, limb, rectangle
from dada.dataset.toycity.street import pick


def tree(rng: np.random.Generator, look: Look) -> list[Part]:
    """A trunk and a crown of overlapping balls, lighter at the top."""
    leaf, trunk = pick(rng, look, "leaf"), pick(rng, look, "trunk")
    tall = rng.uniform(4.5, 9.0)
    clear, reach = tall * rng.uniform(0.28, 0.4), tall * rng.uniform(0.22, 0.36)
    middle = (clear + tall) / 2
    parts = [
        Part(limb((0, 0), (0, middle), 0.34, 0.2), tuple(trunk), c.VEGETATION),
        Part(limb((0, clear), (-reach * 0.6, middle), 0.16, 0.08), tuple(trunk), c.VEGETATION),
    ]
    balls = []
    for _ in range(13):
        angle, far = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
        x, y = reach * 0.75 * far * np.cos(angle), middle + (tall - clear) * 0.36 * far * np.sin(angle)
        balls.append((y, x, reach * rng.uniform(0.28, 0.5)))
    for y, x, size in sorted(balls):
        light = 0.62 + 0.5 * (y - clear) / (tall - clear)
        parts.append(Part(ellipse(x, y, size, size * 0.9), tuple((leaf * light).clip(0, 1)), c.VEGETATION))
    return parts


def bush(rng: np.random.Generator, look: Look) -> list[Part]:
    leaf = pick(rng, look, "leaf")
    wide = rng.uniform(0.5, 1.2)
    parts = []
    for _ in range(6):
        x, size = rng.uniform(-wide, wide), rng.uniform(0.35, 0.6)
        light = rng.uniform(0.7, 1.1)
        parts.append(Part(ellipse(x, size * 0.8, size, size * 0.8), tuple((leaf * light).clip(0, 1)), c.VEGETATION))
    return parts


def traffic_light(rng: np.random.Generator, look: Look, arm: float) -> list[Part]:
    """A pole with a three-lamp head, and a second head on an arm of that length over the road (0: none)."""
    steel, box = tuple(pick(rng, look, "pole")), tuple(pick(rng, look, "lightbox"))
    lit = rng.integers(3)
    parts = [Part(limb((0, 0), (0, 3.4 if not arm else 5.6), 0.18, 0.15), steel, c.POLE)]
    heads = [(0.28 if arm >= 0 else -0.28, 2.9)]
    if arm:
        parts.append(Part(limb((0, 5.4), (arm, 5.6), 0.15, 0.12), steel, c.POLE))
        heads.append((arm, 5.1))
    for x, y in heads:
        parts.append(Part(rectangle(x - 0.22, y - 0.55, x + 0.22, y + 0.55), box, c.LIGHT))
        for number, color in enumerate([(0.95, 0.12, 0.08), (1.0, 0.72, 0.1), (0.1, 0.95, 0.35)]):
            shown = tuple(np.float32(color) * (1.0 if number == lit else 0.22))
            parts.append(Part(ellipse(x, y + 0.34 * (1 - number), 0.14, 0.14), shown, c.LIGHT))
    return parts


def sign(rng: np.random.Generator, look: Look) -> list[Part]:
    """A pole with a round, three-cornered or square sign, or a wide board with arrows."""
    steel, paint = tuple(pick(rng, look, "pole")), pick(rng, look, "sign")
    white = tuple((pick(rng, look, "marking") * 0.95).clip(0, 1))
    tall = rng.uniform(2.3, 2.9)
    parts = [Part(limb((0, 0), (0, tall), 0.12), steel, c.POLE)]
    kind = rng.choice(["round", "triangle", "square", "board"], p=[0.4, 0.25, 0.2, 0.15])
    y, red = tall + 0.15, tuple(look.palette["sign"][1])
    if kind == "round":
        parts.append(Part(ellipse(0, y, 0.43, 0.43), red, c.SIGN))
        if rng.random() < 0.6:
            parts.append(Part(ellipse(0, y, 0.31, 0.31), white, c.SIGN))
            parts.append(Part(rectangle(-0.13, y - 0.12, 0.13, y + 0.12), (0.1, 0.1, 0.1), c.SIGN))
        else:
            parts.append(Part(rectangle(-0.28, y - 0.07, 0.28, y + 0.07), white, c.SIGN))
    elif kind == "triangle":
        outline = np.array([(-0.5, y - 0.35), (0.5, y - 0.35), (0, y + 0.5)])
        parts.append(Part(outline, red, c.SIGN))
        parts.append(Part(outline * 0.6 + (0, 0.4 * (y - 0.06)), white, c.SIGN))
    elif kind == "square":
        parts.append(Part(rectangle(-0.4, y - 0.4, 0.4, y + 0.4), tuple(paint), c.SIGN))
        parts.append(Part(limb((0, y - 0.25), (0, y + 0.15), 0.12), white, c.SIGN))
        parts.append(Part(np.array([(-0.2, y + 0.08), (0.2, y + 0.08), (0, y + 0.32)]), white, c.SIGN))
    else:
        parts.append(Part(rectangle(-0.85, y - 0.4, 0.85, y + 0.35), tuple(paint), c.SIGN))
        for line in (0.14, -0.16):
            parts.append(Part(rectangle(-0.65, y + line - 0.05, 0.55, y + line + 0.05), white, c.SIGN))
    return parts


def lamp(rng: np.random.Generator, look: Look, toward: float) -> list[Part]:
    """A street lamp whose arm reaches toward the road (-1 or 1)."""
    steel = tuple(pick(rng, look, "pole"))
    tall = rng.uniform(5.5, 8.0)
    return [
        Part(limb((0, 0), (0, tall), 0.20, 0.12), steel, c.POLE),
        Part(limb((0, tall - 0.05), (toward * 1.3, tall + 0.25), 0.10), steel, c.POLE),
        Part(limb((toward * 1.1, tall + 0.2), (toward * 1.8, tall + 0.28), 0.22), steel, c.POLE),
    ]


def bin_(rng: np.random.Generator, look: Look) -> list[Part]:
    """A rubbish bin: in no class."""
    color = pick(rng, look, "void")
    body = np.array([(-0.26, 0.0), (0.26, 0.0), (0.33, 0.95), (-0.33, 0.95)])
    lid = tuple(color * 0.7)
    return [Part(body, tuple(color), c.STATIC), Part(rectangle(-0.36, 0.93, 0.36, 1.05), lid, c.STATIC)]


def stall(rng: np.random.Generator, look: Look) -> list[Part]:
    """A market stall with a striped awning: left unlabelled."""
    color, stripe = pick(rng, look, "clothes"), pick(rng, look, "marking")
    parts = [Part(rectangle(-1.1, 0.0, 1.1, 1.0), tuple(pick(rng, look, "void")), c.CLUTTER)]
    parts += [Part(limb((x, 0.9), (x, 2.1), 0.1), (0.3, 0.25, 0.2), c.CLUTTER) for x in (-1.0, 1.0)]
    for number in range(6):
        x = -1.3 + 0.433 * number
        paint = tuple(color if number % 2 else stripe)
        parts.append(Part(rectangle(x, 1.95, x + 0.433, 2.4), paint, c.CLUTTER))
    return parts
