"""One picture of the toy city: a street and all that is on it, drawn from far to near."""

from typing import NamedTuple

import cv2
import numpy as np

from dada.dataset.toycity import classes as c
from dada.dataset.toycity.canvas import Canvas
from dada.dataset.toycity.look import LOOKS, expose, make_camera
from dada.dataset.toycity.street import draw_ground, draw_roadside, draw_sky, make_street
from dada.dataset.toycity.things import Things


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
    things = Things(canvas, style, street, rng)
    things.add_vehicles()
    things.add_furniture()
    things.add_people()
    later += things.placed
    # Depth decides what hides what; the order matters only for what shines through.
    for number, (_, draw) in enumerate(sorted(later, key=lambda item: -item[0]), 1):
        canvas.current_instance = number
        draw()
    if style.fixed_camera:
        _bonnet(canvas)
    rgb = expose(canvas, style, rng)
    return Scene(rgb, canvas.label, canvas.instance, canvas.depth)


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
