"""Target images to label next: a list that TARGET_LABELLED takes, and a page to look at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from tqdm import tqdm

from dada.build import build_network, classes_of, images_of, on_device, unlabelled_target
from dada.config import each_dataset, in_file_names, names_apart, naming_one
from dada.dataset import SegmentationDataset
from dada.dataset.lists import read_list
from dada.domain_adaptation.losses import upsample
from dada.evaluation.next_labels import Region, best_regions, spread_choice, worth
from dada.figures.style import NUMBERS
from dada.figures.web import page_part, shown_in_page
from dada.files import write_whole
from dada.label_sets import LabelSet, colorize
from dada.model.batch_norm import TARGET, select_domain

SIDE = 480  # longest side of a picture of the page, in pixels
REGIONS = 3  # of an image
_BOX = (255, 64, 160)


class Suggestion(NamedTuple):
    """An image: its path from the dataset's folder, its mean worth, and its best regions in pixels of the file."""

    path: str
    score: float
    regions: list[Region]


class Suggested(NamedTuple):
    """What was written of a target, and the images that it names."""

    out: Path
    page: Path
    found: list[Suggestion]


def suggest_each(
    cfg: Any, checkpoint: str | Path, out: Path, page: Path, *, exclude: Sequence[Path | None] = (), **how: Any
) -> list[Suggested]:
    """`suggest` for each target, one after the other: of several, `next_CamVid.txt` in place of `next.txt`.

    Args:
        exclude: a list for each target, None for one without; empty: none.

    Raises:
        ValueError, FileNotFoundError: as `suggest`, and say which of several targets they are about; or lists for some targets.
    """
    several, done = each_dataset(cfg, "target"), []
    count, lists = len(several), len(exclude)
    if lists not in (0, count):
        raise ValueError(
            f"--exclude names {lists} list{'s' * (lists > 1)}, but TARGET names {count} dataset{'s' * (count > 1)}: "
            "give a list for each, '' for one without"
        )
    endings = [""] if count == 1 else [f"_{in_file_names(name)}" for name in names_apart(cfg, "target")]
    for number, (one, end) in enumerate(zip(several, endings), start=1):
        files = [path.with_name(f"{path.stem}{end}{path.suffix}") for path in (out, page)]
        with naming_one(several, number, "target"):
            excluded = exclude[number - 1] if exclude else None
            done.append(Suggested(*files, suggest(one, checkpoint, *files, exclude=excluded, **how)))
    return done


def suggest(
    cfg: Any, checkpoint: str | Path, out: Path, page: Path, *, count: int = 4, exclude: Path | None = None, side: int = 33
) -> list[Suggestion]:
    """Choose `count` images of the target's training split by what the network of `checkpoint` says of them.

    Args:
        out: the list file to write: the images of `exclude`, then the chosen ones, with their scores as comments.
        page: the HTML file to write.
        exclude: list of images that have labels; those chosen shall be unlike them, too.
        side: of a region, in pixels of the image as the network sees it; odd.

    Raises:
        ValueError, FileNotFoundError: weights, data or list that cannot be used, or fewer images than `count`.
    """
    if count < 1 or side < 3 or side % 2 == 0:
        raise ValueError(f"--count is {count} and --region {side}; expected at least 1, and an odd number from 3 on")
    if page.suffix not in (".html", ".htm"):
        raise ValueError(f"--page is {str(page)!r}; expected a name that ends in .html")
    cfg, *others = each_dataset(cfg, "target")
    if others:
        raise ValueError(f"TARGET names {1 + len(others)} datasets: images are suggested of one at a time, see each_dataset")
    with on_device(cfg) as device:
        network = build_network(cfg, str(checkpoint), trained=True).to(device).eval()
        dataset = unlabelled_target(cfg, network.normalization)
        if dataset.transform.pad:  # what is padded is not to be labelled
            dataset.transform.pad, dataset.transform.keep_ratio = False, True
        root = Path(cfg.DATA_DIRECTORY_TARGET)
        paths = [Path(os.path.relpath(item.image, root)).as_posix() for item in dataset.items]
        lines = read_list(exclude, "--exclude", root, lambda: paths) if exclude else []
        had = {line.image for line in lines}
        indices, scores, features = _look(cfg, network, dataset, device, side)
        new = [k for k, index in enumerate(indices) if paths[index] not in had]
        if count > len(new):
            without = f", {len(had)} of which --exclude names" if had else ""
            raise ValueError(f"--count is {count}, but there are {len(indices)} images of the target to choose from{without}")
        old = [k for k, index in enumerate(indices) if paths[index] in had]
        chosen = [new[k] for k in spread_choice(scores[new], features[new], count, features[old])]
        found, rows = [], []
        for k in chosen:
            index = indices[k]
            sample = dataset[index]
            p, _ = _predicted(network, sample.image.to(device), cfg.ALIGN_CORNERS)
            score = worth(p, side)[0].cpu()
            regions = best_regions(score, side, REGIONS)
            photo = Image.fromarray(network.normalization.pixels(sample.image))
            rows.append((photo, p[0].argmax(dim=0).cpu(), score, regions))
            found.append(Suggestion(paths[index], scores[k].item(), [_in_file(r, score.shape, sample.size) for r in regions]))
    write_whole(out, as_list(found, [line.image for line in lines]).encode())
    write_whole(page, _as_page(found, rows, classes_of(cfg), f"{dataset.title} {cfg.TRAIN.SET_TARGET}", checkpoint).encode())
    return found


def _look(
    cfg: Any, network: nn.Module, dataset: SegmentationDataset, device: torch.device, side: int
) -> tuple[list[int], Tensor, Tensor]:
    """Of all images that can be read: number, mean worth, and mean of the features."""
    images = images_of(cfg, dataset, range(len(dataset)))
    indices, scores, features = [], [], []
    for index, image in enumerate(tqdm(images, "looking", len(dataset), unit="image", dynamic_ncols=True, disable=None)):
        if image is not None:
            p, feature = _predicted(network, image.to(device), cfg.ALIGN_CORNERS)
            indices.append(index)
            scores.append(worth(p, side).mean().cpu())
            features.append(feature.cpu())
    return indices, torch.stack(scores) if scores else torch.zeros(0), torch.stack(features) if features else torch.zeros(0, 1)


@torch.inference_mode()
def _predicted(network: nn.Module, image: Tensor, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Probabilities (1, K, H, W) at the size of the image (3, H, W), and the mean feature (C,)."""
    select_domain(network, TARGET)
    outputs = network(image[None])
    logits = upsample(outputs.logits.float(), tuple(image.shape[-2:]), align_corners)
    return logits.softmax(dim=1), outputs.features.float().mean(dim=(0, 2, 3))


def _in_file(region: Region, seen: Sequence[int], size: tuple[int, int]) -> Region:
    """A region of the image as the network sees it, (height, width) `seen`, in pixels of the file of that `size`."""
    down, across = size[0] / seen[0], size[1] / seen[1]
    corners = (region.x0 * across, region.y0 * down, region.x1 * across, region.y1 * down)
    return Region(*map(round, corners), region.score)


def as_list(found: Sequence[Suggestion], had: Sequence[str] = ()) -> str:
    """The content of a list file: the images `had` before, then the new ones, with their scores as comments."""
    lines = ["# images to label, for TARGET_LABELLED; score: mean of uncertainty times impurity, 0..1"]
    lines += ["# labelled before", *had] if had else []
    for one in found:
        boxes = "; ".join(f"{r.x0},{r.y0} to {r.x1},{r.y1} ({r.score:.3f})" for r in one.regions)
        lines += [f"# score {one.score:.4f}; regions x,y: {boxes}", one.path]
    return "\n".join(lines) + "\n"


def _as_page(found: Sequence[Suggestion], rows: Sequence[tuple], classes: LabelSet, data: str, checkpoint: str | Path) -> str:
    top = max(float(score.max()) for _, _, score, _ in rows)  # of all, so that maps compare
    figures = []
    for number, (one, (photo, prediction, score, regions)) in enumerate(zip(found, rows), start=1):
        pictures = {
            "photo": photo,
            "prediction": colorize(prediction, classes).convert("RGB"),
            "worth": _heat(score.numpy() / max(top, 1e-12)),
        }
        shown = "".join(
            f'<figure><img {_shown(picture, regions)} alt="{escape(one.path)}"><figcaption>{name}</figcaption></figure>'
            for name, picture in pictures.items()
        )
        figures.append(
            f'<h2>{number}. {escape(one.path)}</h2><div class="panels" style="--columns: 3">{shown}</div>'
            f'<p class="note">mean worth {one.score:.4f}; best regions {", ".join(f"{r.score:.3f}" for r in one.regions)}</p>'
        )
    patches = "".join(
        f'<span><i class="patch" style="background: rgb({r}, {g}, {b})"></i>{escape(name)}</span>'
        for name, (r, g, b) in zip(classes.names, classes.palette.tolist())
    )
    title = f"{len(found)} images to label next"
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{title}</title><style>{page_part('dada.report', 'report.css')}</style></head><body><h1>{title}</h1>"
        f"<p>Of {escape(data)}, by {escape(Path(checkpoint).name)}, without a label. Worth is the uncertainty of the prediction "
        "times how mixed the classes around a pixel are (bright: more); boxes are the best regions of an image. Images are "
        f'chosen to be unlike each other, too.</p><div class="classes">{patches}</div>{"".join(figures)}</body></html>\n'
    )


def _heat(values: np.ndarray) -> Image.Image:
    from matplotlib import colormaps  # takes a second

    return Image.fromarray((255 * colormaps[NUMBERS](values)[..., :3]).astype(np.uint8))


def _shown(picture: Image.Image, regions: Sequence[Region]) -> str:
    factor = min(1.0, SIDE / max(picture.size))
    small = picture.resize([max(1, round(side * factor)) for side in picture.size], Image.LANCZOS)
    draw = ImageDraw.Draw(small)
    for region in regions:
        draw.rectangle(
            [round(factor * corner) for corner in (region.x0, region.y0, region.x1 - 1, region.y1 - 1)], outline=_BOX, width=2
        )
    return shown_in_page(small, "JPEG", quality=85)
