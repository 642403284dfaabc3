"""Colour, label, instance and depth drawn together: one mask decides for all, so they always agree."""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from dada.dataset.toycity.camera import Camera
from dada.dataset.toycity.classes import SKY

NEAR = 0.5  # metres; nothing closer is drawn
FAR = 600.0  # metres; the ground ends here and the sky begins
LOWEST = 3.0  # pixels; no lower object is drawn
_SHIFT = 4  # fractional bits of cv2's polygon coordinates


class Part(NamedTuple):
    """A flat piece of a billboard: outline (N, 2) in metres (across, up), colour in 0..1, label.

    opacity below 1 lets what is behind shine through (spokes, mesh), while the label covers all of it.
    """

    outline: np.ndarray
    color: tuple
    label: int
    opacity: float = 1.0


class Canvas:
    """A picture being drawn. All of rgb (H, W, 3) float32 in 0..1, label, instance and depth (metres)."""

    def __init__(self, camera: Camera):
        shape = (camera.height_px, camera.width)
        self.camera = camera
        self.rgb = np.zeros((*shape, 3), np.float32)
        self.label = np.full(shape, SKY, np.uint8)
        self.instance = np.zeros(shape, np.uint16)
        self.depth = np.full(shape, np.inf, np.float32)
        self.current_instance = 0

    def _window(self, points):
        """Where camera points fall: (rows, columns, pixels, points beyond the near plane), or None."""
        if points[:, 2].min() < NEAR:
            points = _clip_near(points)
            if len(points) < 3:
                return None
        pixels = self.camera.to_pixels(points)
        height, width = self.label.shape
        x0, y0 = np.floor(pixels.min(0)).clip(0, (width, height)).astype(int)
        x1, y1 = (np.ceil(pixels.max(0)) + 1).clip(0, (width, height)).astype(int)
        if x0 >= x1 or y0 >= y1:
            return None
        return slice(y0, y1), slice(x0, x1), pixels, points

    def _plane_depth(self, points, rows, columns, near, far):
        """Depth of the plane through camera points over a window of pixels, within [near, far]."""
        normal, through = _plane(points)
        slope = (normal[0] * self.camera.xn[None, columns]) + (normal[1] * self.camera.yn[rows, None] + normal[2])
        slope[slope == 0] = 1e-9
        # Outlines cover pixels they only touch; there the plane is taken where the outline ends.
        return np.minimum(np.maximum(through / slope, near), far, dtype=np.float32)

    def _write(self, rows, columns, visible, depth, color, label, opacity=1.0):
        """Set the visible pixels of a window; color and opacity for all or for each, (N, 3) and (N, 1)."""
        at = np.nonzero(visible)
        rgb = self.rgb[rows, columns]
        if isinstance(opacity, float) and opacity == 1.0:
            rgb[at] = color
        else:
            rgb[at] += opacity * (color - rgb[at])
        if label is None:
            return
        self.label[rows, columns][at] = label
        self.instance[rows, columns][at] = self.current_instance
        self.depth[rows, columns][at] = depth[at]

    def polygon(self, points: np.ndarray, color, label: int | None, bias: float = 0.0, opacity: float = 1.0):
        """Draw a flat polygon, world points (N, 3).

        bias: share of its depth by which it wins against what is there, for decals on a surface.
        label None changes the colour only (a shadow).
        """
        points = self.camera.to_camera(points)
        window = self._window(points)
        if window is None:
            return
        rows, columns, pixels, clipped = window
        mask = _fill(pixels, rows, columns)
        depth = self._plane_depth(points, rows, columns, clipped[:, 2].min(), clipped[:, 2].max())
        visible = (mask > 0) & (depth * (1 - bias) < self.depth[rows, columns])
        self._write(rows, columns, visible, depth, np.float32(color), label, opacity)

    def billboard(self, base, parts: list[Part], grain: np.ndarray | None = None):
        """Draw an upright cut-out at base (3,) facing the camera; later parts cover earlier ones.

        grain: a square table of factors near 1 that modulates the colour, fixed to the object (leaves).
        An object lower than LOWEST is left out.
        """
        base = np.asarray(base, float)
        origin = self.camera.to_camera(base[None])[0]
        if origin[2] < 2 * NEAR:
            return
        edges = np.cumsum([0] + [len(part.outline) for part in parts])
        outline = np.concatenate([part.outline for part in parts])
        world = base + outline[:, :1] * self.camera.across + outline[:, 1:] * np.array([0.0, 0.0, 1.0])
        points = self.camera.to_camera(world)
        if np.ptp(outline[:, 1]) * self.camera.f / origin[2] < LOWEST or points[:, 2].min() < NEAR:
            return
        window = self._window(points)
        if window is None:
            return
        rows, columns, pixels, _ = window
        index = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
        for number, (start, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            _fill(pixels[start:stop], rows, columns, index, number + 1)
        plane = self.camera.to_camera(base + np.array([[0, 0, 0], self.camera.across, [0, 0, 1.0]]))
        depth = self._plane_depth(plane, rows, columns, points[:, 2].min(), points[:, 2].max())
        visible = (index > 0) & (depth < self.depth[rows, columns])
        part = index[visible] - 1
        color = np.float32([p.color for p in parts])[part]
        if grain is not None:
            y, x = np.nonzero(visible)
            scale = 12.0 * origin[2] / self.camera.f  # twelve cells a metre, whatever the distance
            n = len(grain)
            color = color * grain[(y * scale).astype(int) % n, (x * scale).astype(int) % n, None]
        opacity = np.float32([p.opacity for p in parts])
        opacity = 1.0 if opacity.min() == 1 else opacity[part][:, None]
        label = np.uint8([p.label for p in parts])[part]
        self._write(rows, columns, visible, depth, color, label, opacity)

    def surface(self, origin, along, up, shader: Callable):
        """Draw a textured rectangle from origin (3,) spanned by along and up (3,), in metres.

        shader(u, v, depth) takes metres along and up, (N,) each, and returns colours (N, 3), a label, and
        opacities (N, 1) if what is behind shines through.
        """
        origin, along, up = (np.asarray(v, float) for v in (origin, along, up))
        corners = np.stack([origin, origin + along, origin + along + up, origin + up])
        points = self.camera.to_camera(corners)
        window = self._window(points)
        if window is None:
            return
        rows, columns, pixels, clipped = window
        depth = self._plane_depth(points, rows, columns, clipped[:, 2].min(), clipped[:, 2].max())
        visible = (_fill(pixels, rows, columns) > 0) & (depth < self.depth[rows, columns])
        if not visible.any():
            return
        z = depth[visible]
        length, tall = np.linalg.norm(along), np.linalg.norm(up)
        start = self.camera.position - origin
        u, v = (start @ unit + z * self.camera.along_rays(unit, rows, columns)[visible] for unit in (along / length, up / tall))
        shaded = shader(np.minimum(np.maximum(u, 0), length), np.minimum(np.maximum(v, 0), tall), z)
        self._write(rows, columns, visible, depth, *shaded)


def _plane(points):
    """(normal, distance) of the plane normal @ p = distance of a convex polygon (N, 3); not scaled."""
    (ox, oy, oz), (ax, ay, az), (bx, by, bz) = points[[0, len(points) // 3, 2 * len(points) // 3]].tolist()
    ax, ay, az, bx, by, bz = ax - ox, ay - oy, az - oz, bx - ox, by - oy, bz - oz
    normal = (ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx)
    return normal, normal[0] * ox + normal[1] * oy + normal[2] * oz


def _fill(pixels, rows, columns, mask=None, value=1):
    if mask is None:
        mask = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
    # cv2 works with 32-bit fixed point, far outside positions would overflow.
    fixed = ((pixels - (columns.start, rows.start)) * (1 << _SHIFT)).clip(-(2**22), 2**22)
    cv2.fillPoly(mask, [np.rint(fixed).astype(np.int32)], value, shift=_SHIFT)
    return mask


def _clip_near(points):
    """The part of a polygon in camera axes (N, 3) in front of the near plane."""
    kept = []
    for a, b in zip(points, np.roll(points, -1, 0), strict=True):
        if a[2] >= NEAR:
            kept.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            kept.append(a + (b - a) * (NEAR - a[2]) / (b[2] - a[2]))
    return np.array(kept).reshape(-1, 3)
