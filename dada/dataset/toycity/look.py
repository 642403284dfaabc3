"""The two looks: what a computer-graphics street and a filmed one differ in, in layout and in appearance."""

from typing import NamedTuple

import cv2
import numpy as np

from dada.dataset.toycity.camera import Camera
from dada.dataset.toycity.canvas import Canvas


def _hex(colors: str) -> np.ndarray:
    return np.array([[int(c[i : i + 2], 16) / 255 for i in (0, 2, 4)] for c in colors.split()], np.float32)


class Look(NamedTuple):
    """All numbers of one look. Lengths are metres, counts are means per picture, palettes (N, 3) in 0..1."""

    palette: dict[str, np.ndarray]
    counts: dict[str, float]
    roadside: dict[str, float]  # relative frequency of what stands along the street
    texture: float  # strength of surface texture, 0..1
    ambient: float  # share of the light that has no direction; the rest makes hard shading
    jitter: float  # spread of colours around the palette
    sun_shadow: bool
    fixed_camera: bool
    street_trees: float  # metres between trees, mean
    park_rate: float  # share of parking places taken


# What, in the source and in the target.
_PALETTE = {
    "road": ("54555c 5e5e62 4a4d55", "5a5858 646160 504f52"),
    "marking": ("ffffff", "b8b6ae"),
    "sidewalk": ("c9a58f b9b4ae cdb59a", "807a76 8c8580 756f70"),
    "curb": ("e8e4dc", "9a9690"),
    "grass": ("6cae2e 8aa83a", "5f6640 6a6842"),
    "building": (
        "d9653b e0b040 c8c0b0 8fb4d8 b8452f e8dcc0 7f8fa8 c98fa0 9ab88a a8a49c 8c8680 74706c",
        "8f8578 a39a88 7a5648 8a7060 9c958c 6f6a66 b0a48a 75645c",
    ),
    "window": ("2f5f9f 27446e 5f9fd0", "363c42 2c2f34 545c62"),
    "roof": ("a03020 703828", "5a3c32 4a4446"),
    "wall": ("b0a090 a87058 c8b890", "7c766e 74584a 8a8478"),
    "fence": ("2f6f4f d8d8d8 8a5a2a 303038", "4c5450 6c6c6a 54483c 34383a"),
    "leaf": ("2f8f1f 46a52a 1f7a2a 6ab030", "3c5226 4a6030 305026 606a30"),
    "trunk": ("6a4424", "40362c"),
    "pole": ("909498 70757a b8bcc0", "6a6c6c 54585a 7e807e"),
    "lightbox": ("202020 303020", "24282a 1e2220"),
    "sign": ("1f4fd0 d01f1f f0d020 1f9f4f", "2c4a86 96342e b89c3c d0ccc4"),
    "sky": ("2f78d8 3f8fe8 5aa0e0 8cb0d4 b4c4d4", "b4bcc4 c4c6c6 a4b0be"),
    "horizon": ("a8d4f8 c0e0ff e0e8ee", "d8d8d2 e0d4c0 ccd2d6"),
    "cloud": ("ffffff", "e4e4e2 a8acb2"),
    "skin": ("f0c8a0 c08050 7a4a2a", "b8937a 8a6450 6a4c3c"),
    "clothes": (
        "e02020 2050e0 f0e020 20b050 e070c0 f0f0f0 303040 f08020 7030b0",
        "2c2e36 3c3a3a 54423a 2c3a52 6c6a66 7a2e2c 46503e 8c8a86",
    ),
    "trousers": ("203060 404040 7a6a50 202020 3060a0", "2a2e3a 262628 3c3a38 34405a"),
    "car": ("e01818 1840d0 f0f0f0 f0c010 20a040 202028 c0c8d0 e06010", "202226 8e9296 b8babc 44484e 2c3a54 6a2a28 d0d0cc 585450"),
    "bus": ("e0c020 d02020 20a0c0 f08010", "a89a4a 8c3a34 9aa4a8 5a7a86"),
    "cycle": ("d02020 2040c0 20a040 303030 f0a010", "2c2c2e 4a3430 34465a 565a58"),
    "void": ("507050 604838", "4a4f48 524a44"),
}
_COUNTS = {
    "person": (13.0, 5.0),
    "rider": (3.0, 1.1),
    "motorcycle": (1.4, 0.5),
    "bicycle": (1.8, 1.3),
    "car": (3.6, 3.2),
    "bus": (0.75, 0.36),
    "sign": (5.0, 4.0),
    "light": (3.6, 2.2),
    "lamp": (4.0, 3.0),
    "bin": (0.8, 0.7),
    "stall": (0.15, 0.15),
}
_ROADSIDE = {"building": (5.0, 6.0), "wall": (1.6, 0.7), "fence": (1.8, 0.9), "hedge": (0.8, 1.2), "park": (0.8, 1.0)}


def _look(column: int, **numbers) -> Look:
    counts, roadside = ({what: row[column] for what, row in table.items()} for table in (_COUNTS, _ROADSIDE))
    return Look({what: _hex(row[column]) for what, row in _PALETTE.items()}, counts, roadside, **numbers)


_SOURCE = {"texture": 0.22, "ambient": 0.55, "jitter": 0.05, "sun_shadow": True, "street_trees": 22.0, "park_rate": 0.35}
_TARGET = {"texture": 0.6, "ambient": 0.82, "jitter": 0.03, "sun_shadow": False, "street_trees": 12.0, "park_rate": 0.65}
LOOKS = {"source": _look(0, **_SOURCE, fixed_camera=False), "target": _look(1, **_TARGET, fixed_camera=True)}


def make_camera(rng: np.random.Generator, look: Look, size: tuple[int, int], road_half: float) -> Camera:
    """A camera of this look: anywhere above the street, or on the bonnet of a car in the right-hand lane."""
    if look.fixed_camera:
        x, height = road_half * 0.42 + rng.normal(0, 0.25), rng.uniform(1.28, 1.36)
        pitch, yaw, roll = 0.015 + rng.normal(0, 0.006), rng.normal(0, 0.035), rng.normal(0, 0.004)
        return Camera(size, 0.95, x, height, pitch, yaw, roll)
    height = rng.choice([rng.uniform(1.2, 2.0), rng.uniform(2.0, 6.0)])
    focal, x = rng.uniform(0.62, 0.95), rng.uniform(-1.1, 1.1) * road_half
    pitch, yaw, roll = rng.uniform(0.0, 0.05) + 0.045 * (height - 1.2), rng.normal(0, 0.16), rng.normal(0, 0.015)
    return Camera(size, focal, x, height, pitch, yaw, roll)


def expose(canvas: Canvas, look: Look, rng: np.random.Generator) -> np.ndarray:
    """The canvas as a picture (H, W, 3) uint8; for the target through air, lens and sensor."""
    rgb = _film(canvas.rgb, canvas.depth, rng) if look.fixed_camera else _render(canvas.rgb, rng)
    return np.rint(rgb.clip(0, 1) * 255).astype(np.uint8)


def _render(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Seasons and hours of a rendered city: brighter or darker, more or less colourful, nothing of a lens."""
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None]
    saturation, gain = np.float32(rng.uniform(0.45, 1.0)), np.float32(rng.uniform(0.7, 1.08))
    tint = gain * rng.normal(1, 0.04, 3).astype(np.float32)
    return (rgb * saturation + grey * (1 - saturation)) * tint


def _film(rgb: np.ndarray, depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = depth.shape
    dusk = rng.random() < 0.35
    # Koschmieder: what comes from a distance z keeps exp(-beta z) of its light and gains the air's.
    beta = rng.uniform(0.003, 0.010)
    air = np.float32(rng.choice([(0.80, 0.80, 0.80), (0.82, 0.76, 0.68), (0.70, 0.74, 0.80)]))
    kept = np.exp(-beta * np.minimum(depth, 120.0), dtype=np.float32)[..., None]
    kept[np.isinf(depth)] = 0.8
    rgb = rgb * kept + air * (1 - kept)
    cast = np.float32((1.05, 0.98, 0.91) if dusk else (0.97, 1.02, 0.99)) * rng.normal(1, 0.02, 3).astype(np.float32)
    gain = np.float32(rng.uniform(0.72, 0.88) if dusk else rng.uniform(0.92, 1.08))
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * (height / width)
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    vignette = 1 - rng.uniform(0.15, 0.3) * (x * x + y * y)
    rgb = rgb * (vignette[..., None].astype(np.float32) * (cast * gain))
    rgb = cv2.GaussianBlur(rgb, (0, 0), max(0.3, rng.uniform(0.9, 1.5) * width / 1024))
    curve = np.float32(rng.uniform(-0.1, 0.15))
    rgb = rgb.clip(0, 1)
    rgb *= (1 - curve) + curve * rgb  # tone curve: near a gamma of 0.9 to 1.15
    noise = rng.standard_normal(rgb.shape, np.float32)
    noise *= np.float32(rng.uniform(0.006, 0.014)) * (0.5 + rgb)
    return rgb + noise
