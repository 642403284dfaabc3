"""The ground, the sky and what stands along the street: buildings, walls, fences, hedges, side streets."""

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from dada.dataset.toycity import classes as c
from dada.dataset.toycity.canvas import FAR, Canvas
from dada.dataset.toycity.look import Look


class Street(NamedTuple):
    """Straight along Y and centred on X = 0. Lengths in metres."""

    road_half: float
    front: float  # |X| of the building line; the sidewalk lies between it and the road
    crossings: list[tuple[float, float]]  # (start, end) in Y of the streets that cross
    end: float  # Y where the last row of houses closes the view
    sun: np.ndarray  # unit vector (3,) to the sun


@lru_cache(maxsize=1)
def noise_tile() -> np.ndarray:
    """A periodic (256, 256) texture, mean 0, about -1..1, with detail at every scale; always the same."""
    rng = np.random.default_rng(1907)
    spectrum = np.fft.fft2(rng.standard_normal((256, 256)))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    tile = np.fft.ifft2(spectrum / (frequency + 0.02)).real
    tile = (tile - tile.mean()) / (2 * tile.std())
    tile = np.ascontiguousarray(tile.clip(-1.5, 1.5), np.float32)
    tile.setflags(write=False)
    return tile


def sample_noise(u: np.ndarray, v: np.ndarray, cells: float) -> np.ndarray:
    """noise_tile at metres (u, v), each (N,), with so many cells a metre."""
    return noise_tile()[(v * cells).astype(np.int32) & 255, (u * cells).astype(np.int32) & 255]


def pick(rng: np.random.Generator, look: Look, name: str) -> np.ndarray:
    """A colour (3,) of the palette, a little lighter or darker and a little off."""
    colors = look.palette[name]
    first, *each = rng.standard_normal(4).tolist()
    color = colors[int(rng.random() * len(colors))].tolist()
    moved = [value * (1 + look.jitter * (first + 0.6 * other)) for value, other in zip(color, each, strict=True)]
    return np.array([min(max(value, 0.02), 1.0) for value in moved], np.float32)


def shade(look: Look, street: Street, normal) -> float:
    """Brightness of a surface with this outward normal (3,): sky light plus sun."""
    normal = np.asarray(normal, float)
    normal = normal / np.linalg.norm(normal)
    sky = look.ambient * (0.85 + 0.15 * normal[2])
    return float(sky + (1.15 - look.ambient) * max(0.0, normal @ street.sun))


def make_street(rng: np.random.Generator, look: Look) -> Street:
    road_half = rng.uniform(3.6, 7.0) if look.fixed_camera else rng.uniform(3.2, 8.0)
    front = road_half + (rng.uniform(2.2, 4.5) if look.fixed_camera else rng.uniform(2.0, 5.5))
    crossings = []
    at = rng.uniform(8, 45)
    while at < 110 and len(crossings) < 2:
        if rng.random() < 0.6:
            crossings.append((at, at + rng.uniform(6, 12)))
        at += rng.uniform(35, 60)
    azimuth = rng.uniform(-2.6, 2.6)
    sun = np.array([np.sin(azimuth) * 0.7, -np.cos(azimuth) * 0.7, 0.72])
    return Street(road_half, front, crossings, rng.uniform(90, 160), sun / np.linalg.norm(sun))


def draw_sky(canvas: Canvas, look: Look, rng: np.random.Generator) -> None:
    """Sky over the whole picture, bright at the horizon, with clouds that flatten towards it."""
    up = canvas.camera.rays()[2]
    horizon, zenith, cloud = pick(rng, look, "horizon"), pick(rng, look, "sky"), pick(rng, look, "cloud")
    height, width = up.shape
    small = (max(2, width // 8), max(2, height // 8))
    rise = cv2.resize(up, small, interpolation=cv2.INTER_AREA).clip(0, 1)
    x, y = np.meshgrid(np.linspace(0, 1, small[0]), np.linspace(0, height / width, small[1]))
    moved = rng.uniform(0, 99, 2)
    cover = sample_noise(x * 3 + moved[0], y * 6 / (0.3 + rise * 2) + moved[1], 26)
    cover = cv2.resize(cover, (width, height), interpolation=cv2.INTER_CUBIC)
    cover = (cover * 1.6 + np.float32(rng.uniform(-0.6, 0.4))).clip(0, 0.85)[..., None]
    rows = np.nonzero(up.max(1) > -0.01)[0]
    rows = slice(rows[0], rows[-1] + 1) if len(rows) else slice(0, 0)
    blend = np.sqrt((up[rows] * 1.8).clip(0, 1))[..., None]
    sky = horizon + (zenith - horizon) * blend
    canvas.rgb[rows] = sky + (cloud - sky) * cover[rows]


def draw_ground(canvas: Canvas, look: Look, street: Street, rng: np.random.Generator) -> None:
    """Road, sidewalk and grass on the plane Z = 0: depth is where each ray meets it."""
    camera = canvas.camera
    dx, dy, dz = camera.rays()
    # No ray below comes with a depth beyond FAR; the others divide by a stand-in.
    depth = np.float32(-camera.position[2]) / np.minimum(dz, np.float32(-camera.position[2] / (2 * FAR)))
    ground = np.nonzero((depth < FAR).ravel())[0]
    z = depth.ravel()[ground]
    x = np.float32(camera.position[0]) + z * dx.ravel()[ground]
    y = z * dy.ravel()[ground]
    side = np.abs(x)
    half, front = street.road_half, street.front
    crossing = np.zeros(len(x), bool)
    for start, end in street.crossings:
        crossing |= (y > start) & (y < end)
    road = (side < half) | crossing
    paved = ~road & (side < front + 0.5)
    ids = np.full(len(x), c.TERRAIN, np.uint8)
    ids[road], ids[paved] = c.ROAD, c.SIDEWALK
    palette = np.empty((256, 3), np.float32)
    palette[c.TERRAIN], palette[c.ROAD] = pick(rng, look, "grass"), pick(rng, look, "road")
    palette[c.SIDEWALK] = pick(rng, look, "sidewalk")
    color = palette[ids]

    sharp = np.exp(z * z * np.float32(-3 / (camera.f * camera.position[2])))  # 1 where a pixel row covers no street
    value = 1 + look.texture * 0.16 * sample_noise(x + 50, y, 0.7)
    value += (look.texture * sharp) * (0.20 * sample_noise(x, y, 24) + 0.12 * sample_noise(x, y, 5))

    marks = _marked(street, x, y, side, road, crossing)
    wear = 0.9 - 0.45 * look.texture * (sample_noise(x[marks], y[marks], 4) > 0)
    color[marks] += (pick(rng, look, "marking") - color[marks]) * wear[:, None]

    walk = np.nonzero(paved)[0]
    color[walk[side[walk] < half + 0.22]] = pick(rng, look, "curb")
    size = rng.choice([0.35, 0.6]) if look.fixed_camera else 0.9
    joint = walk[((x[walk] + 500) % size < 0.05) | (y[walk] % size < 0.07)]
    value[joint] -= 0.25 * sharp[joint]
    if look.sun_shadow:
        # Houses on the sunny side throw their shadow onto the street.
        reach = 7.0 * np.abs(street.sun[0]) / street.sun[2]
        value[(x * np.sign(street.sun[0]) > front - reach) & ~crossing] *= 0.62
    color *= value[:, None]
    canvas.rgb.reshape(-1, 3)[ground] = color
    canvas.label.ravel()[ground] = ids
    canvas.depth.ravel()[ground] = z


def _marked(street, x, y, side, road, crossing):
    """Indices of the ground points (N,) that are painted: lanes, edges and zebra crossings."""
    half = street.road_half
    lane = (side < 0.09) | (np.abs(side - half + 0.35) < 0.07)
    if half > 5.5:
        lane |= np.abs(side - half / 2) < 0.08
    found = np.nonzero(lane & road & ~crossing)[0]
    # The middle line is dashed, the one between lanes dashed wider, the edge is not.
    dashed = np.where(side[found] < 0.09, y[found] % 6 < 3, y[found] % 9 < 3) | (side[found] > half - 0.6)
    marks = [found[dashed]]
    for start, _ in street.crossings:
        stripe = np.nonzero((y > start - 3.5) & (y < start - 0.7) & (side < half - 0.3))[0]
        marks.append(stripe[(x[stripe] + 200) % 1.1 < 0.55])
    return np.unique(np.concatenate(marks))


def draw_roadside(canvas: Canvas, look: Look, street: Street, rng: np.random.Generator) -> list[tuple]:
    """Both sides of the street and its far end.

    Returns the see-through things, which must be drawn later, from far to near: (distance, function).
    """
    later: list[tuple] = []
    kinds = list(look.roadside)
    weights = np.array([look.roadside[kind] for kind in kinds])
    for side in (-1, 1):
        y = -6.0
        nearer = 0.0  # height of the house that adjoins on the viewer's side
        while y < street.end:
            inside = [end for start, end in street.crossings if start - 2 <= y < end]
            if inside:
                y, nearer = inside[0], 0.0
            kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
            stop = y + (rng.uniform(9, 22) if kind == "building" else rng.uniform(8, 18))
            stop = min([stop] + [start for start, _ in street.crossings if start > y])
            if kind == "building":
                height = rng.uniform(7, 20) if rng.random() < 0.75 else rng.uniform(18, 34)
                _house(canvas, look, street, rng, side, side * street.front, y, stop, height, nearer)
                nearer = height
            else:
                nearer = 0.0
                _plot(canvas, look, street, rng, side, kind, y, stop, later)
            if rng.random() < 0.15:
                stop, nearer = stop + 1.5, 0.0
            y = stop
    _skyline(canvas, look, street, rng)
    return later


def _plot(canvas, look, street, rng, side, kind, y0, y1, later):
    front = side * street.front
    if rng.random() < 0.7:
        _house(canvas, look, street, rng, side, front + side * rng.uniform(6, 12), y0, y1, rng.uniform(6, 16))
    origin, along = (front, y0, 0.0), (0.0, y1 - y0, 0.0)
    light = shade(look, street, (-side, 0, 0))
    if kind == "wall":
        tall = rng.uniform(1.9, 3.2)
        shader = wall_shader(pick(rng, look, "wall") * light, tall, look, rng)
        canvas.surface(origin, along, (0, 0, tall), shader)
        canvas.surface((front, y0, 0.0), (side * 0.5, 0, 0), (0, 0, tall), shader)
    elif kind == "fence":
        tall = rng.uniform(1.3, 2.2)
        shader = fence_shader(pick(rng, look, "fence") * light, tall, rng)
        later.append((y1, lambda: canvas.surface(origin, along, (0, 0, tall), shader)))
    elif kind == "hedge":
        tall = rng.uniform(1.0, 2.4)
        shader = leaf_shader(pick(rng, look, "leaf") * light, tall)
        canvas.surface(origin, along, (0, 0, tall), shader)
        canvas.surface((front, y0, 0.0), (side * 1.5, 0, 0), (0, 0, tall), shader)


def _house(canvas, look, street, rng, side, front, y0, y1, height, nearer=0.0):
    """A house with its façade on X = front. Above a house adjoining at y0 it shows a plain fire wall."""
    color, window = pick(rng, look, "building"), pick(rng, look, "window")
    style = int(rng.integers(1 << 30))

    def draw(origin, along, normal):
        light = shade(look, street, normal)
        shader = house_shader(color * light, window * (0.5 + 0.5 * light), height, look, np.random.default_rng(style))
        canvas.surface(origin, along, (0, 0, height), shader)

    draw((front, y0, 0.0), (0.0, y1 - y0, 0.0), (-side, 0, 0))
    depth = side * 14.0
    if not nearer:
        draw((front, y0, 0.0), (depth, 0.0, 0.0), (0, -1, 0))
    elif nearer < height:
        corners = [(front, y0, nearer), (front + depth, y0, nearer), (front + depth, y0, height), (front, y0, height)]
        canvas.polygon(np.array(corners), color * 0.92 * shade(look, street, (0, -1, 0)), c.BUILDING)
    if height < 11:
        (eaves, low), (ridge, high) = (front - side * 0.4, height), (front + side * 6, height + 3.2)
        top = np.array([(eaves, y0, low), (eaves, y1, low), (ridge, y1, high), (ridge, y0, high)])
        canvas.polygon(top, pick(rng, look, "roof") * shade(look, street, (-side * 0.5, 0, 0.8)), c.BUILDING)


def _skyline(canvas, look, street, rng):
    """Rows of houses that close the view at the end and far to both sides."""
    x = -150.0
    while x < 150:
        width = rng.uniform(12, 28)
        height = rng.uniform(8, 22)
        light = shade(look, street, (0, -1, 0))
        if rng.random() < 0.25:
            shader = leaf_shader(pick(rng, look, "leaf") * light, height * 0.6)
            canvas.surface((x, street.end, 0), (width, 0, 0), (0, 0, height * 0.6), shader)
        else:
            color = pick(rng, look, "building") * light
            shader = house_shader(color, pick(rng, look, "window"), height, look, rng)
            canvas.surface((x, street.end, 0), (width, 0, 0), (0, 0, height), shader)
        x += width
    for side in (-1, 1):
        y = 0.0
        while y < street.end:
            length = rng.uniform(15, 35)
            height = rng.uniform(7, 16)
            color = pick(rng, look, "building") * shade(look, street, (-side, 0, 0))
            shader = house_shader(color, pick(rng, look, "window"), height, look, rng)
            canvas.surface((side * (street.front + 32), y, 0), (0, length, 0), (0, 0, height), shader)
            y += length


def house_shader(color, window, height, look, rng):
    """A façade: cornice, storeys with rows of windows, a ground floor with doors and shop windows."""
    storey = rng.uniform(2.8, 3.5)
    spacing = rng.uniform(1.9, 3.4)
    left, sill = rng.uniform(0.18, 0.32), rng.uniform(0.22, 0.36)
    shops = rng.random() < 0.5
    brick = look.fixed_camera and rng.random() < 0.5
    offset = rng.uniform(0, 200)
    frame = (color * 0.6 + 0.4 * color.max()).clip(0, 1)
    door = pick(rng, look, "trunk") * 0.8
    accent = pick(rng, look, "building") * 0.8

    plain, framed, glazed, banded, corniced, doored = range(6)
    palette = np.stack([color, frame, window, accent, frame * 0.9, door]).astype(np.float32)

    def shader(u, v, depth):
        kind = np.full(len(u), plain, np.uint8)
        sharp = np.exp(-depth / 18)
        value = 0.94 + (0.06 / height) * v
        value += look.texture * (0.10 * sample_noise(u + offset, v, 1.0) + 0.14 * sharp * sample_noise(u, v, 16))
        if brick:
            course = (v % 0.3 < 0.07) | ((u + 0.3 * (v // 0.3 % 2)) % 0.6 < 0.06)
            value[course] += 0.22 * sharp[course]
        column, floor = u / spacing, v / storey
        across, up = np.abs(column % 1 - 0.5), np.abs(floor % 1 - 0.5)
        outer = (v > storey) & (v < height - 0.7) & (across < 0.57 - left) & (up < 0.56 - sill)
        kind[outer] = framed
        pane = np.flatnonzero(outer & (across < 0.5 - left) & (up < 0.5 - sill))
        kind[pane] = glazed
        # Every pane differs a little: curtains, a lamp, the sky in the glass.
        which = (floor[pane].astype(int) * 7 & 255, (column[pane] + offset).astype(int) * 13 & 255)
        value[pane] *= 1 + 0.35 * noise_tile()[which]
        kind[v > height - 0.45] = corniced
        low = np.flatnonzero(v < storey)
        along, above = u[low] / 4.2 % 1, v[low]
        kind[low[above > storey - 0.18]] = banded
        if shops:
            kind[low[(above > 0.5) & (above < 2.5) & (along > 0.12) & (along < 0.72)]] = glazed
        kind[low[(above < 2.15) & (along > 0.80) & (along < 0.97)]] = doored
        return palette[kind] * value[:, None], c.BUILDING

    return shader


def wall_shader(color, tall, look, rng):
    """A free-standing wall: courses of stone, pillars, a lighter coping."""
    course, block = rng.uniform(0.3, 0.45), rng.uniform(0.7, 1.1)

    def shader(u, v, depth):
        rgb = np.repeat(np.float32(color)[None], len(u), 0)
        value = 1 + 0.6 * look.texture * 0.4 * sample_noise(u, v, 6)
        joint = (v % course < 0.06) | ((u + block / 2 * (v // course % 2)) % block < 0.07)
        value[joint] -= 0.22 * np.exp(-depth[joint] / 25)
        value[u % 4.0 < 0.45] *= 1.14
        value[v > tall - 0.18] *= 1.28
        return rgb * value[:, None], c.WALL

    return shader


def fence_shader(color, tall, rng):
    """Bars between rails: what is behind shines through, but all of it is fence, as annotators have it."""
    pitch = rng.uniform(0.3, 0.5)
    top = rng.uniform(0.1, 0.3)

    def shader(u, v, depth):
        rgb = np.repeat(np.float32(color)[None], len(u), 0)
        solid = (u % pitch < 0.1) | (np.abs(v - tall + top) < 0.06) | (np.abs(v - 0.25) < 0.06) | (u % 2.8 < 0.16)
        opacity = np.where(solid, 1.0, 0.28).astype(np.float32)
        # Far bars are thinner than a pixel: their average is drawn instead of a random one.
        far = (depth / 40).clip(0, 1)
        return rgb, c.FENCE, ((1 - far) * opacity + far * 0.55)[:, None]

    return shader


def leaf_shader(color, tall):
    def shader(u, v, depth):
        value = 0.75 + 0.35 * v / tall + 0.35 * sample_noise(u, v, 14) * np.exp(-depth / 60)
        return np.float32(color) * value[:, None], c.VEGETATION

    return shader
