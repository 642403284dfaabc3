"""What `dada visualize` draws: figures of checkpoints, test reports and logs; a function for each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dada.build import eval_loader
from dada.dataset.spread import spread
from dada.domain_adaptation.association_term import METRIC_OF
from dada.domain_adaptation.cycle_association import find_cycles
from dada.evaluation.reports import read_report
from dada.explorer.pairs import Pair, datasets, read_pairs
from dada.explorer.prepare import LEVELS
from dada.figures.curves import USUAL, chosen_tags, draw_curves
from dada.figures.cycle_arrows import Scene, draw_arrows, draw_class_maps, scene
from dada.figures.embedding import draw_embedding, principal_components, sample_points
from dada.figures.panels import draw_panel, predict_labels
from dada.figures.scalars import read_scalars
from dada.figures.scores import draw_classes, draw_confusion
from dada.figures.style import class_id
from dada.label_sets import LabelSet
from dada.matmul_precision import matmul_precision
from dada.segmenter import Segmenter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Read = Callable[[str | Path], Segmenter]  # Segmenter.from_checkpoint, with the cfg and the options that were given


def cycles(
    checkpoint: str, read: Read, *, pair: int | None = None, level: str = "features", count: int = 6, of: str = ""
) -> Figure:
    """Arrows of `count` cycles of one image pair, without and with aggregation; of the class `of`, if one is named."""
    segmenter = read(checkpoint)
    chosen = class_id(of, segmenter.classes) if of else None
    scenes = _scenes(segmenter, _pairs(segmenter, (pair or 0) + 1)[pair or 0], level)
    return draw_arrows(scenes, segmenter.classes, count, chosen)


def maps(checkpoint: str, read: Read, *, of: str, pair: int | None = None, level: str = "features") -> Figure:
    """Maps of all cycles that start at the class `of`, without and with aggregation, of one image pair.

    Args:
        pair: its number; None: of the first ten the one with most pixels of the class.
    """
    segmenter = read(checkpoint)
    chosen = class_id(of, segmenter.classes)
    if pair is None:
        found = max(_pairs(segmenter, None), key=lambda p: int((p.source.labels == chosen).sum()))
    else:
        found = _pairs(segmenter, pair + 1)[pair]
    if not (found.source.labels == chosen).any():
        raise ValueError(
            f"{found.source.name} has no pixel of {of} at the resolution of the features; take another --class or --pair"
        )
    return draw_class_maps(_scenes(segmenter, found, level), segmenter.classes, chosen)


def features(
    checkpoints: Sequence[str | Path], read: Read, *, names: Sequence[str] = (), pairs: int | None = None, per_class: int = 40
) -> Figure:
    """Features of both domains along the first two principal components of each network, side by side.

    The target has the classes of the test labels.

    Args:
        pairs: images of each domain; None: eight, or as many as there are.
    """
    embeddings = {}
    for name, checkpoint in zip(_names(names, checkpoints, "checkpoints"), checkpoints):
        segmenter = read(checkpoint)
        looked_at = _pairs(segmenter, pairs, with_target_labels=True)[: pairs or 8]
        views = [(domain, getattr(pair, domain)) for pair in looked_at for domain in ("source", "target")]
        points = sample_points([(domain, view.features, view.labels) for domain, view in views], per_class)
        places, shares = principal_components(points.features, 2)
        embeddings[f"{name}: components 1 and 2, {100 * shares.sum():.0f} % of the variance"] = places, points
    return draw_embedding(embeddings, segmenter.classes, "classes by its labels")


def panels(
    checkpoints: Sequence[str | Path], read: Read, *, names: Sequence[str] = (), images: int = 4, errors: bool = True
) -> Figure:
    """Evenly spaced test images: image, label, the prediction of each checkpoint, and the `errors` of the last."""
    names = _names(names, checkpoints, "checkpoints")
    predictions: dict[str, list[np.ndarray]] = {}
    labels: LabelSet | None = None
    for name, checkpoint in zip(names, checkpoints):
        segmenter = read(checkpoint)
        normalization = segmenter.predictor.networks[0].normalization
        dataset = eval_loader(segmenter.cfg, normalization).dataset
        samples = [dataset[k] for k in spread(len(dataset), images)]
        if labels is not None and segmenter.names != labels.names:
            raise ValueError(f"{checkpoint} has other classes than {checkpoints[0]}; panels need networks of the same")
        labels = segmenter.classes
        predictions[name] = predict_labels(segmenter.predictor, samples, segmenter.device)
    shapes = [{ids.shape for ids in column} for column in predictions.values()]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError("the checkpoints are tested at labels of different sizes; set TEST.OUTPUT_SIZE_TARGET with --set")
    return draw_panel(samples, predictions, normalization, labels, errors)


def confusion(report: str) -> Figure:
    """The confusion matrix of a test report."""
    found = read_report(report)
    return draw_confusion(found.confusion, found.classes)


def classes(reports: Sequence[str], *, names: Sequence[str] = ()) -> Figure:
    """IoU of every class in test reports, and the differences from the first."""
    found = [read_report(path) for path in reports]
    names = _names(names, reports, "reports")
    largest = max(found, key=lambda report: len(report.iou)).classes
    scores, means = ({n: getattr(r, what) for n, r in zip(names, found)} for what in ("iou", "means"))
    return draw_classes(scores, means, largest)


def curves(logs: Sequence[str], *, names: Sequence[str] = (), tags: Sequence[str] = USUAL) -> Figure:
    """Scalars that training logged, one line for each folder of logs."""
    names = _names(names, logs, "folders of logs")
    runs = {name: read_scalars(folder) for name, folder in zip(names, logs)}
    return draw_curves({name: [run] for name, run in runs.items()}, chosen_tags(runs, tags))


def _pairs(segmenter: Segmenter, count: int | None, with_target_labels: bool = False) -> list[Pair]:
    """The first of ten pairs that are spread over the data, or more if more are asked for; None: all ten."""
    network = segmenter.predictor.networks[0]
    source, target = datasets(segmenter.cfg, network.normalization, with_target_labels)
    most = min(len(source), len(target))
    if count is not None and count > most:
        raise ValueError(f"{count} pairs of images are asked for, but the data hold {len(source)} and {len(target)} images")
    spread_over = min(most, max(10, count or 0))
    with matmul_precision(segmenter.cfg.TRAIN.MATMUL_PRECISION, segmenter.device):
        read = read_pairs(network, source, target, spread_over, segmenter.device)
        return [pair for _, pair in zip(range(count or spread_over), read)]


@torch.no_grad()
def _scenes(segmenter: Segmenter, pair: Pair, level: str) -> dict[str, Scene]:
    x, y = ((v.features if level == "features" else v.probabilities) for v in pair)
    alpha = segmenter.cfg.TRAIN.SPAGG_ALPHA
    found = {}
    for title, aggregate in (("without aggregation", False), (f"with aggregation ({alpha:g})", True)):
        of = find_cycles(x, y, pair.source.labels, metric=METRIC_OF[LEVELS[level]], aggregate=aggregate, alpha=alpha)
        found[title] = scene(pair.source.image, pair.target.image, pair.source.labels, tuple(y.shape[-2:]), of)
    return found


def _names(given: Sequence[str], paths: Sequence[str | Path], what: str) -> list[str]:
    names = list(given) or _ends(paths)
    if len(names) != len(paths) or len(set(names)) < len(names):
        raise ValueError(f"--names are {len(names)} for {len(paths)} {what}; give each a name of its own")
    return names


def _ends(paths: Sequence[str | Path]) -> list[str]:
    """The shortest ends of the paths, without ending, that differ; runs are called by their folders."""
    parts = [Path(path).absolute().with_suffix("").parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        own = [part[-length:] for part in parts]
        if len(set(own)) == len(own):
            break
    common = 0 if len(own) == 1 else next((k for k in range(len(own[0])) if len({tuple(o[-k - 1 :]) for o in own}) > 1), 0)
    # What all end in, as model_300 of many runs, says nothing.
    return ["/".join(o[: len(o) - common]) for o in own]
