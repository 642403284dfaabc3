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
from dada.config import each_dataset
from dada.explorer.pairs import Pair, View, datasets, read_pairs
from dada.explorer.prepare import LEVELS, reduce, ways
from dada.figures.web import data_uri, page_part, script_json
from dada.files import write_whole
from dada.label_sets import LabelSet
from dada.matmul_precision import matmul_precision
from dada.parallel.device import choose_device

log = logging.getLogger(__name__)

IMAGE_SIDE = 960  # longest side of a picture in the page, in pixels
FEWEST_DIRECTIONS = 8  # of features, below which similarities say little


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
        "source": f"{source.title}, {_splits(cfg, 'source')}",
        "target": f"{target.title}, {_splits(cfg, 'target', 'TEST' if with_target_labels else 'TRAIN')}",
    }
    with matmul_precision(cfg.TRAIN.MATMUL_PRECISION, device):
        read = read_pairs(network, source, target, pairs, device)
        text = page(read, pairs, source.classes, alpha, about, megabytes)
    write_whole(Path(out), text.encode())


def _splits(cfg: Any, role: str, section: str = "TRAIN") -> str:
    return ", ".join(dict.fromkeys(one[section][f"SET_{role.upper()}"] for one in each_dataset(cfg, role)))


def page(
    pairs: Iterable[Pair], count: int, classes: LabelSet, alpha: float, about: dict[str, str], megabytes: float = 8.0
) -> str:
    """The whole document, of at most `megabytes` MB.

    Args:
        pairs: `count` of them; each is taken when the one before it is done.
        alpha: share of the aggregated target with which the network was trained. The page has the cycles there, without
            aggregation, and with nothing else.
        about: network, checkpoint, source, target: what the page calls them.
    """
    alphas = sorted({0.0, float(alpha), 1.0})
    own = {name: page_part(__package__, name) for name in ("page.html", "page.css", "view.js")}
    budget = (megabytes * 1e6 - sum(map(len, own.values())) - 20e3) / count
    scripts, names = [], []
    for number, pair in enumerate(pairs):
        log.info("pair %d of %d: %s and %s", number + 1, count, pair.source.name, pair.target.name)
        entry = _entry(pair, alphas, budget)
        drawn = len(entry["scale"]["features"]), entry["channels"], entry["error"]["features"]
        log.info("  its heat is drawn from %d directions of %d channels; no cosine is off by more than %.2g", *drawn)
        names.append([view.name for view in pair])
        scripts.append(f'<script type="application/json" id="pair-{number}">{script_json(entry)}</script>')
    meta = {
        "about": about,
        "alpha": alpha,
        "classes": [{"name": n, "color": f"#{c.tobytes().hex()}"} for n, c in zip(classes.names, classes.palette)],
        "alphas": alphas,
        "colors": _viridis(),
        "pairs": names,
    }
    scripts.append(f'<script type="application/json" id="meta">{script_json(meta)}</script>')
    document = own["page.html"]
    # Data last: nothing in it can be taken for a place to fill in.
    for place, text in (
        ("/* page.css */", own["page.css"]),
        ("/* view.js */", own["view.js"]),
        ("<!-- data -->", "\n".join(scripts)),
    ):
        before, after = document.split(place)
        document = before + text + after
    return document


def _entry(pair: Pair, alphas: Sequence[float], characters: float) -> dict[str, Any]:
    """What the page reads of a pair, in at most so many characters: as many directions of its features as fit."""
    source, target = pair
    arrays = {"labels": _ids(source.labels), "predicted": _ids(target.probabilities.argmax(dim=1))}
    if target.labels is not None:
        arrays["truth"] = _ids(target.labels)
    for level in LEVELS:
        for n, alpha in enumerate(alphas):
            arrays |= {f"{level} {n} {name}": array for name, array in ways(pair, level, alpha)._asdict().items()}
    reduced = {"classes": reduce(pair, "classes", alphas)}
    arrays["classes"] = reduced["classes"].steps
    entry = {"source": _view(source), "target": _view(target), "channels": source.features.shape[1]}
    taken = len(entry["source"]["picture"]) + len(entry["target"]["picture"]) + 4 / 3 * sum(a.nbytes for a in arrays.values())
    most = int((characters - taken - 4000) * 3 / 4 / len(arrays["classes"]))  # base64 writes 3 bytes as 4 characters
    if most < FEWEST_DIRECTIONS:
        raise ValueError(
            f"the page would have {max(most, 0)} bytes for the features of a pixel of {source.name}, too few to compare "
            f"them; expected at least {FEWEST_DIRECTIONS}: lower --pairs, raise --megabytes, or lower TEST.INPUT_SIZE_TARGET"
        )
    reduced["features"] = reduce(pair, "features", alphas, most)
    arrays["features"] = reduced["features"].steps
    return {
        **entry,
        "scale": {level: r.scale.tolist() for level, r in reduced.items()},
        "error": {level: r.error for level, r in reduced.items()},
        "arrays": {name: _packed(array) for name, array in arrays.items()},
    }


def _view(view: View) -> dict[str, Any]:
    height, width = view.probabilities.shape[2:]
    picture = Image.fromarray(view.image)
    picture.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    return {
        "name": view.name,
        "width": width,
        "height": height,
        "ratio": view.image.shape[1] / view.image.shape[0],
        "picture": data_uri(picture, "JPEG", quality=85),
    }


def _ids(labels: torch.Tensor) -> np.ndarray:
    return labels.flatten().to(torch.uint8).cpu().numpy()


def _packed(array: np.ndarray) -> tuple[str, str]:
    """Type, and the values little-endian as base64."""
    data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return array.dtype.name, base64.b64encode(data).decode()


def _viridis() -> str:
    """256 RGB colours as base64."""
    from matplotlib import colormaps

    colors = np.asarray(colormaps["viridis"](np.linspace(0, 1, 256)))[:, :3]
    return base64.b64encode((255 * colors).round().astype(np.uint8).tobytes()).decode()
