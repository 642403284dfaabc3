"""Outlines in metres (across, up) from which the cut-outs are put together."""

import numpy as np

_TURN = np.linspace(0, 2 * np.pi, 15)[:-1]
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], 1)


def ellipse(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    """(14, 2) outline around (x, y)."""
    return _CIRCLE * (rx, ry) + (x, y)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """(4, 2) outline."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def limb(a, b, width: float, end_width: float | None = None) -> np.ndarray:
    """(4, 2) bar from point a to point b."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    along = (b - a) / max(np.linalg.norm(b - a), 1e-6)
    aside = np.array([-along[1], along[0]]) / 2
    end_width = width if end_width is None else end_width
    return np.stack([a - aside * width, b - aside * end_width, b + aside * end_width, a + aside * width])


def squeeze(outline: np.ndarray, factor: float) -> np.ndarray:
    """The outline narrowed across, as a thing looks that is turned away from the viewer."""
    return outline * (factor, 1.0)
