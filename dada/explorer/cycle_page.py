"""The explorer's file: data of every pair, and the parts of the page, in one HTML document."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dada.build import build_network
from dada.explorer.pairs import Pair, View, datasets, read_pairs
from dada.explorer.prepare import Prepared, prepare
from dada.figures.web import data_uri, page_part, script_json
from dada.files import write_whole
from dada.label_sets import LabelSet
from dada.matmul_precision import matmul_precision
from dada.parallel.device import choose_device

log = logging.getLogger(__name__)

IMAGE_SIDE = 960  # longest side of a picture in the page, in pixels
FEWEST_PLANES = 8  # bytes a pixel below which similarities say little
EXACT_BYTES = 5  # of a source pixel: two indices of 16 bits, and whether the cycle is closed


def explore(
    cfg: Any, checkpoint: str, out: str | Path, pairs: int, megabytes: float = 8.0, with_target_labels: bool = False
) -> None:
    """Write the page for `pairs` pairs of the data in `cfg`, through the network of `checkpoint`.

    Raises:
        FileNotFoundError, ValueError: weights or data that cannot be used, or more pairs than fit into the size.
    """
    if Path(out).suffix not in (".html", ".htm"):
        raise ValueError(f"the explorer is a page, but --out is {str(out)!r}; expected a name that ends in .html")
    device = choose_device(cfg)
    network = build_network(cfg, checkpoint).to(device).eval()
    source, target = datasets(cfg, network.normalization, with_target_labels)
    alpha = cfg.TRAIN.SPAGG_ALPHA if cfg.TRAIN.APPLY_SPAGG else 0.0
    about = {
        "network": cfg.TRAIN.MODEL,
        "checkpoint": Path(checkpoint).name,
        "source": f"{source.title}, {cfg.TRAIN.SET_SOURCE}",
        "target": f"{target.title}, {cfg.TEST.SET_TARGET if with_target_labels else cfg.TRAIN.SET_TARGET}",
    }
    with matmul_precision(cfg.TRAIN.MATMUL_PRECISION, device):
        read = read_pairs(network, source, target, pairs, device)
        text = page(read, pairs, source.classes, alpha, about, megabytes)
    write_whole(Path(out), text.encode())


def page(
    pairs: Iterable[Pair], count: int, classes: LabelSet, alpha: float, about: dict[str, str], megabytes: float = 8.0
) -> str:
    """The whole document, of at most `megabytes` MB.

    Args:
        pairs: `count` of them; each is taken when the one before it is done.
        alpha: share of the aggregated target with which the network was trained. The exact cycles are computed and stored
            there, and without and with nothing but aggregation.
        about: network, checkpoint, source, target: what the page calls them.
    """
    alphas = sorted({0.0, float(alpha), 1.0})
    own = {name: page_part(__package__, name) for name in ("page.html", "page.css", "association.js", "view.js")}
    budget = (megabytes * 1e6 - sum(map(len, own.values())) - 20e3) / count
    entries, blobs = [], []
    for number, pair in enumerate(pairs):
        log.info("pair %d of %d: %s and %s", number + 1, count, pair.source.name, pair.target.name)
        pictures = [_picture(view.image) for view in pair]
        planes = _planes_that_fit(pair, budget - sum(map(len, pictures)), len(alphas))
        prepared = prepare(pair, alphas, planes)
        exact = prepared.exactness["features", float(alpha)]
        log.info(
            "  %d bytes a pixel for features; without the exact cycles the page would find %.0f %% of j* and %.0f %% of the "
            "verdicts at aggregation %g; error of the cosine at most %.2g",
            len(prepared.planes.scale),
            100 * exact.target_index,
            100 * exact.closed,
            alpha,
            exact.error,
        )
        entry, blob = _entry(prepared, alphas)
        entries.append({**entry, "pictures": pictures})
        blobs.append(blob)
    meta = {
        "about": about,
        "alpha": alpha,
        "classes": [{"name": n, "color": f"#{c.tobytes().hex()}"} for n, c in zip(classes.names, classes.palette)],
        "alphas": alphas,
        "colors": _viridis(),
        "pairs": entries,
    }
    scripts = [f'<script type="application/json" id="meta">{script_json(meta)}</script>']
    scripts += [f'<script type="text/plain" id="pair-{n}">{blob}</script>' for n, blob in enumerate(blobs)]
    document = own["page.html"]
    # Data last: nothing in it can be taken for a place to fill in.
    for place, text in (
        ("/* page.css */", own["page.css"]),
        ("/* association.js */", own["association.js"]),
        ("/* view.js */", own["view.js"]),
        ("<!-- data -->", "\n".join(scripts)),
    ):
        before, after = document.split(place)
        document = before + text + after
    return document


def _planes_that_fit(pair: Pair, characters: float, alphas: int) -> int:
    """Bytes a pixel that are left for features when all else of the pair is in."""
    sources, targets = (view.probabilities.shape[2:].numel() for view in pair)
    pixels = sources + 2 * targets
    classes = pair.source.probabilities.shape[1]
    others = 2 * classes * pixels + 2 * alphas * EXACT_BYTES * sources + 4 * targets + sources + 2 * targets
    planes = int((characters * 3 / 4 - others) / (pixels + 6))  # base64 writes 3 bytes as 4 characters
    if planes < FEWEST_PLANES:
        raise ValueError(
            f"the page would have {max(planes, 0)} bytes for the features of a pixel of {pair.source.name}, too few to compare "
            f"them; expected at least {FEWEST_PLANES}: lower --pairs, raise --megabytes, or lower TEST.INPUT_SIZE_TARGET"
        )
    return planes


def _entry(prepared: Prepared, alphas: Sequence[float]) -> tuple[dict[str, Any], str]:
    """What the page reads as JSON, and all arrays as one base64 text with their places in the former."""
    source, target = prepared.pair
    planes = prepared.planes
    arrays = {
        "values": planes.values,
        "scale": planes.scale,
        "direction": planes.direction,
        "ratio": prepared.ratio,
        "logs": prepared.logs.view(np.uint16),
        "labels": _ids(source.labels),
        "predicted": _ids(target.probabilities.argmax(dim=1)),
    }
    if target.labels is not None:
        arrays["truth"] = _ids(target.labels)
    exactness = []
    for (level, alpha), cycles in prepared.cycles.items():
        name = f"{level} {alphas.index(alpha)}"
        arrays[f"{name} target"] = cycles.target_index[0].cpu().numpy().astype(np.uint16)
        arrays[f"{name} source"] = cycles.source_index[0].cpu().numpy().astype(np.uint16)
        arrays[f"{name} closed"] = cycles.closed[0].cpu().numpy().astype(np.uint8)
        exactness.append({"level": level, "alpha": alpha, **prepared.exactness[level, alpha]._asdict()})
    blob, places = _pack(arrays)
    entry = {
        "source": _named(source),
        "target": _named(target),
        "channels": source.features.shape[1],
        "dimensions": planes.dimensions,
        "planes": len(planes.scale),
        "kept": planes.kept,
        "exactness": exactness,
        "places": places,
    }
    return entry, blob


def _named(view: View) -> dict[str, Any]:
    height, width = view.probabilities.shape[2:]
    return {"name": view.name, "width": width, "height": height, "ratio": view.image.shape[1] / view.image.shape[0]}


def _ids(labels: torch.Tensor) -> np.ndarray:
    return labels.flatten().to(torch.uint8).cpu().numpy()


def _pack(arrays: dict[str, np.ndarray]) -> tuple[str, dict[str, list]]:
    """All arrays one after the other, little-endian, each at a multiple of 4 bytes: base64, and [type, start, length] of each."""
    places, parts, start = {}, [], 0
    for name, array in arrays.items():
        data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        places[name] = [array.dtype.name, start, array.size]
        padding = -len(data) % 4
        parts += [data, b"\0" * padding]
        start += len(data) + padding
    return base64.b64encode(b"".join(parts)).decode(), places


def _picture(image: np.ndarray) -> str:
    """A JPEG as a data URI."""
    picture = Image.fromarray(image)
    picture.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    return data_uri(picture, "JPEG", quality=85)


def _viridis() -> str:
    """256 RGB colours as base64."""
    from matplotlib import colormaps

    colors = np.asarray(colormaps["viridis"](np.linspace(0, 1, 256)))[:, :3]
    return base64.b64encode((255 * colors).round().astype(np.uint8).tobytes()).decode()
