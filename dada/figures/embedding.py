"""Features of both domains along their principal components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dada.figures.style import DOMAINS, PAGE, POINTS, styled
from dada.label_sets import IGNORE_LABEL, LabelSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Points(NamedTuple):
    """N pixels of either domain."""

    features: Tensor  # (N, C) directions, length 1
    labels: np.ndarray  # (N,) class ids
    domains: np.ndarray  # (N,) "source" or "target"


def sample_points(maps: Sequence[tuple[str, Tensor, Tensor]], per_class: int, seed: int = 0) -> Points:
    """As many pixels of either domain, at most `per_class`, of each of the largest classes, at random over all maps.

    The largest are as many as there are colours that can be told apart: those with most pixels.

    Args:
        maps: domain, features (1, C, h, w) and class ids (1, h, w) of each image; 255 is left out.
    """
    generator = np.random.default_rng(seed)
    found, sizes = np.unique(np.concatenate([y.cpu().numpy().ravel() for _, _, y in maps]), return_counts=True)
    largest = [k for k in found[np.argsort(-sizes, kind="stable")] if k != IGNORE_LABEL][: len(POINTS)]
    features, labels, domains = [], [], []
    for domain in DOMAINS:
        own = [(f[0].flatten(1).mT, y.flatten()) for d, f, y in maps if d == domain]
        if not own:
            continue
        x, y = torch.cat([f for f, _ in own]).cpu(), torch.cat([y for _, y in own]).cpu().numpy()
        for k in np.intersect1d(y, largest):
            chosen = np.sort(generator.permutation(np.flatnonzero(y == k))[:per_class])
            features.append(torch.nn.functional.normalize(x[torch.from_numpy(chosen)].float(), dim=1))
            labels.append(np.full(len(chosen), k))
            domains += [domain] * len(chosen)
    if not features:
        raise ValueError("no pixel of these images has a class, so there are no features to draw")
    return Points(torch.cat(features), np.concatenate(labels), np.array(domains))


def principal_components(x: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, C) -> (N, count), the centred points along the directions in which they differ most, largest first; and each
    direction's share of the variance, (count,). Of two signs, a component has the one whose largest weight is positive.
    """
    centred = x.double() - x.double().mean(dim=0)
    _, scale, directions = torch.linalg.svd(centred, full_matrices=False)
    largest = directions.abs().argmax(dim=1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    shares = scale.square() / scale.square().sum().clamp(min=1e-300)
    return (centred @ directions[:count].mT).numpy(), shares[:count].numpy()


@styled
def draw_embedding(embeddings: Mapping[str, tuple[np.ndarray, Points]], classes: LabelSet, of_target: str = "") -> Figure:
    """One plot for each network: colour says the class, the marker the domain.

    Args:
        embeddings: by title, places (N, 2) of the points.
        of_target: where the classes of target pixels are from, for the legend.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    present = np.unique(np.concatenate([points.labels for _, points in embeddings.values()]))
    colours = dict(zip(present, POINTS))
    legend = 0.14 * 2 + 0.1
    width = PAGE / len(embeddings)
    figure = Figure(figsize=(PAGE, min(width, 3.4) + legend))
    axes = figure.subplots(1, len(embeddings), squeeze=False)[0]
    for axis, (title, (places, points)) in zip(axes, embeddings.items()):
        for domain, marker in DOMAINS.items():
            own = points.domains == domain
            edge = {"edgecolors": "black", "linewidths": 0.3} if domain == "target" else {"edgecolors": "none"}
            axis.scatter(*places[own].T, s=9, c=[colours[k] for k in points.labels[own]], marker=marker, alpha=0.75, **edge)
        axis.set(title=title, xticks=[], yticks=[])
    tall = figure.get_figheight()
    figure.subplots_adjust(0.01, legend / tall, 0.99, 1 - 0.2 / tall, wspace=0.04)
    style = {"loc": "lower center", "columnspacing": 1.2, "borderaxespad": 0.1, "handlelength": 1.2}
    grey = {"linestyle": "", "markerfacecolor": "0.6", "markersize": 4.5}
    names = {"source": "source", "target": f"target{of_target and f' ({of_target})'}"}
    edges = {"source": 0.0, "target": 0.4}
    handles = [
        Line2D([], [], marker=m, markeredgecolor="black", markeredgewidth=edges[d], label=names[d], **grey)
        for d, m in DOMAINS.items()
    ]
    figure.legend(handles=handles, ncol=2, **style)
    patches = [Patch(facecolor=colours[k], label=classes.names[k]) for k in present]
    figure.legend(handles=patches, ncol=len(patches), bbox_to_anchor=(0.5, 0.14 / tall), **style)
    return figure
