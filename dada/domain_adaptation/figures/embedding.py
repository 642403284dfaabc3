"""Features of both domains in two dimensions: principal components, and t-SNE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dada.dataset.label_sets import LabelSet
from dada.domain_adaptation.figures.style import DOMAINS, PAGE, class_colours, class_patches, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IGNORE = 255
MOST_POINTS = 5000  # t-SNE holds a few matrices of points x points


class Points(NamedTuple):
    """N pixels of either domain."""

    features: Tensor  # (N, C) directions, length 1
    labels: np.ndarray  # (N,) class ids
    domains: np.ndarray  # (N,) "source" or "target"


def sample_points(maps: Sequence[tuple[str, Tensor, Tensor]], per_class: int, seed: int = 0) -> Points:
    """As many pixels of every class and domain, at most `per_class`, at random over all maps.

    Args:
        maps: domain, features (1, C, h, w) and class ids (1, h, w) of each image; 255 is left out.
    """
    generator = np.random.default_rng(seed)
    features, labels, domains = [], [], []
    for domain in DOMAINS:
        own = [(f[0].flatten(1).mT, y.flatten()) for d, f, y in maps if d == domain]
        if not own:
            continue
        x, y = torch.cat([f for f, _ in own]).cpu(), torch.cat([y for _, y in own]).cpu().numpy()
        for k in np.unique(y[y != IGNORE]):
            chosen = np.sort(generator.permutation(np.flatnonzero(y == k))[:per_class])
            features.append(torch.nn.functional.normalize(x[torch.from_numpy(chosen)].float(), dim=1))
            labels.append(np.full(len(chosen), k))
            domains += [domain] * len(chosen)
    if not features:
        raise ValueError("no pixel of these images has a class, so there are no features to draw")
    return Points(torch.cat(features), np.concatenate(labels), np.array(domains))


def principal_components(x: Tensor, count: int = 2) -> tuple[Tensor, Tensor]:
    """(N, C) -> (N, count), the centred points along the directions in which they differ most, largest first; and each
    direction's share of the variance, (count,). Of two signs, a component has the one whose largest weight is positive.
    """
    centred = x.double() - x.double().mean(dim=0)
    _, scale, directions = torch.linalg.svd(centred, full_matrices=False)
    largest = directions.abs().argmax(dim=1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    shares = scale.square() / scale.square().sum().clamp(min=1e-300)
    return centred @ directions[:count].mT, shares[:count]


def tsne(x: Tensor, perplexity: float = 30.0, iterations: int = 500, seed: int = 0) -> Tensor:
    """t-SNE (van der Maaten & Hinton, JMLR 2008), exact: (N, C) -> (N, 2) float64.

    It starts at the first two principal components, so that clusters keep about their places; `seed` decides the rest of
    the start where points coincide. Early exaggeration 12 and momentum 0.5 for the first quarter, then 1 and 0.8, with the
    paper's adaptive gains and the learning rate max(N / 48, 50) (Belkina et al., Nature Communications 2019).

    Raises:
        ValueError: fewer points than three times the perplexity, or more than MOST_POINTS.
    """
    count = len(x)
    if not 3 * perplexity < count <= MOST_POINTS:
        raise ValueError(
            f"t-SNE with perplexity {perplexity:g} takes more than {3 * perplexity:g} and at most {MOST_POINTS} points, got {count}; "
            "change the number of points of a class, or the perplexity"
        )
    p = _neighbours(x.double(), perplexity)
    y = principal_components(x)[0]
    y = y / y[:, 0].std().clamp(min=1e-12) * 1e-4
    y = y + 1e-8 * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype)
    velocity, gains, rate = torch.zeros_like(y), torch.ones_like(y), max(count / 48, 50)
    for iteration in range(iterations):
        early = iteration < iterations // 4
        grad = tsne_gradient(p * 12 if early else p, y)
        same = grad.sign() == velocity.sign()
        gains = torch.where(same, gains * 0.8, gains + 0.2).clamp(min=0.01)
        velocity = (0.5 if early else 0.8) * velocity - rate * gains * grad
        y = y + velocity
    return y - y.mean(dim=0)


def tsne_gradient(p: Tensor, y: Tensor) -> Tensor:
    """Of sum_ij p_ij log(p_ij / q_ij) by y, (N, 2); q_ij is 1 / (1 + |y_i - y_j|^2) over its sum (Eq. 4 and 5)."""
    closeness = 1 / (1 + torch.cdist(y, y, compute_mode="donot_use_mm_for_euclid_dist").square())
    closeness.fill_diagonal_(0)
    weights = (p - closeness / closeness.sum()) * closeness
    return 4 * (weights.sum(dim=1, keepdim=True) * y - weights @ y)


def _neighbours(x: Tensor, perplexity: float) -> Tensor:
    """(N, N) symmetric probabilities, sum 1: Gaussians around each point whose entropy is log(perplexity)."""
    squared = torch.cdist(x, x).square()
    squared.fill_diagonal_(torch.inf)
    squared = squared - squared.amin(dim=1, keepdim=True)  # the same softmax, and none underflows
    low, high = x.new_zeros(len(x), 1), x.new_full((len(x), 1), torch.inf)
    beta = x.new_ones(len(x), 1)
    for _ in range(64):  # bisection on the precision
        p = torch.softmax(-beta * squared, dim=1)
        too_wide = torch.special.entr(p).sum(dim=1, keepdim=True) > np.log(perplexity)
        low, high = torch.where(too_wide, beta, low), torch.where(too_wide, high, beta)
        beta = torch.where(high.isinf(), beta * 2, (low + high) / 2)
    return (p + p.mT) / (2 * len(x))


@styled
def draw_embedding(embeddings: Mapping[str, np.ndarray], points: Points, classes: LabelSet, of_target: str = "") -> Figure:
    """One plot for each embedding: colour says the class, the marker the domain; names stand at the middle of each class.

    Args:
        embeddings: by title, (N, 2).
        of_target: where the classes of target pixels are from, for the legend.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    colours = class_colours(classes)
    present = np.unique(points.labels)
    columns = 9
    legend = 0.14 * (1 + -(-len(present) // columns)) + 0.1
    width = PAGE / len(embeddings)
    figure = Figure(figsize=(PAGE, min(width, 3.4) + legend))
    axes = figure.subplots(1, len(embeddings), squeeze=False)[0]
    for axis, (title, places) in zip(axes, embeddings.items()):
        for domain, marker in DOMAINS.items():
            own = points.domains == domain
            edge = {"edgecolors": "black", "linewidths": 0.3} if domain == "target" else {"edgecolors": "none"}
            axis.scatter(*places[own].T, s=9, c=colours[points.labels[own]], marker=marker, alpha=0.75, **edge)
        for k in present:
            middle = np.median(places[points.labels == k], axis=0)
            halo = [withStroke(linewidth=1.6, foreground="white")]
            axis.text(*middle, classes.names[k], ha="center", va="center", fontsize=6.5, path_effects=halo)
        axis.set(title=title, xticks=[], yticks=[])
    tall = figure.get_figheight()
    figure.subplots_adjust(0.01, legend / tall, 0.99, 1 - 0.2 / tall, wspace=0.04)
    style = {"loc": "lower center", "columnspacing": 1.2, "borderaxespad": 0.1, "handlelength": 1.2}
    grey = {"linestyle": "", "markerfacecolor": "0.6", "markersize": 4.5}
    names = {"source": "source", "target": f"target{of_target and f' ({of_target})'}"}
    edges = {"source": 0.0, "target": 0.4}
    handles = [
        Line2D([], [], marker=m, markeredgecolor="black", markeredgewidth=edges[d], label=names[d], **grey) for d, m in DOMAINS.items()
    ]
    figure.legend(handles=handles, ncol=2, **style)
    figure.legend(handles=class_patches(classes, present), ncol=columns, bbox_to_anchor=(0.5, 0.14 / tall), **style)
    return figure
