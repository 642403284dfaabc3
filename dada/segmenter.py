"""A trained network as one object: images in, classes out.

segmenter = dada.Segmenter.from_checkpoint("model_3000.pth")
prediction = segmenter.predict("street.jpg")
prediction.overlay(0.5).save("overlay.png")
"""

from __future__ import annotations

import copy
import json
import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from easydict import EasyDict
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dada.build import classes_of, eval_transform
from dada.config import cfg_from_dict, cfg_from_file, cfg_from_list, default_cfg, each_dataset, flat_options
from dada.dataset import EvalTransform
from dada.dataset.pictures import Picture, as_picture, is_one_picture
from dada.evaluation.predictor import Predictor
from dada.evaluation.tester import load_predictor
from dada.label_sets import LabelSet, cityscapes_id_of_class, colorize
from dada.model.weight_files import read_metadata, read_weights
from dada.parallel.device import find_device, tell
from dada.parallel.place import local_rank
from dada.publishing.hub import find_weights, push, write_folder
from dada.runs import file_hash

# Scores of larger pictures are computed at this many pixels and brought to their size by the nearest: 16 classes take 1 GB.
MOST_PIXELS = 1 << 24


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says about one image of H x W pixels.

    Args:
        image: the image, upright, PIL RGB.
        ids: (H, W) uint8, the train id of the most probable class; `names[id]` is its name.
        confidence: (H, W) float32, the probability of that class.
        probabilities: (K, H, W) float32, of every class; None if they were not asked for.
        classes: names and colours.
    """

    image: Image.Image
    ids: np.ndarray
    confidence: np.ndarray
    probabilities: np.ndarray | None
    classes: LabelSet

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their ids."""
        return self.classes.names

    def palette(self) -> Image.Image:
        """The ids as a paletted image in the classes' colours."""
        return colorize(self.ids, self.classes)

    def overlay(self, alpha: float = 0.5) -> Image.Image:
        """The image under the colours of its classes, RGB; `alpha` is the share of the colours, 0 to 1."""
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is the share of the colours, 0 to 1, not {alpha}")
        return Image.blend(self.image, self.palette().convert("RGB"), alpha)

    def cityscapes_ids(self) -> np.ndarray:
        """(H, W) uint8 labelIds, as the benchmark server of Cityscapes takes them.

        Raises:
            ValueError: there are classes that Cityscapes lacks.
        """
        return cityscapes_id_of_class(self.classes)[self.ids]


class Segmenter:
    """A network, or an ensemble, with everything that prediction needs. Made by `from_checkpoint`.

    Attributes:
        names: of the classes, in the order of their ids.
        classes: names and colours.
        card: the model card of a release, Markdown; "" for other files.
        cfg: the configuration, its TEST section above all; see dada/config/table.py.
        device: where the network is.
        predictor: the network with the options of the test.
    """

    def __init__(self, cfg: Any, checkpoints: Sequence[str | Path], device: torch.device | str | None = None) -> None:
        self.cfg = cfg
        self.checkpoints = [Path(path) for path in checkpoints]
        self.device = _device(cfg, device)
        self.classes = _classes(cfg, self.checkpoints[0])
        self.predictor = load_predictor(cfg, self.checkpoints, self.device)
        self.card = read_metadata(self.checkpoints[0]).get("model_card", "")

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path | Sequence[str | Path],
        cfg: str | Path | Mapping[str, Any] | Sequence[str | Path] | None = None,
        device: torch.device | str | None = None,
        options: Mapping[str, Any] | Sequence[str] = (),
    ) -> Segmenter:
        """Read a snapshot or checkpoint of training, a safetensors release, or weights as ADVENT, DADA or PLCA published them.

        Args:
            path: the file; several are an ensemble.
            cfg: what describes the network, for files that do not say it themselves: a YAML file or a name in configs/, several
                of them, or a mapping; None takes what is in the file.
            device: "auto", "cpu", "cuda", "cuda:1" ..., as the option DEVICE; None for what that option, and GPU_ID, say.
            options: over that cfg, {"TEST.FLIP": True} or ["TEST.FLIP=True"].

        Raises:
            FileNotFoundError, ValueError: no such file; a damaged one; one without a cfg where none was given; weights that
                do not fit the cfg, or of an encoder alone; a device that is not there.
        """
        paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
        if not paths:
            raise ValueError("give at least one checkpoint")
        return cls(_fill(default_cfg(), paths[0], cfg, options), paths, device)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        device: torch.device | str | None = None,
        options: Mapping[str, Any] | Sequence[str] = (),
    ) -> Segmenter:
        """Read what `save_pretrained` or `push_to_hub` wrote: a folder, else the repository `user/name` of the Hugging Face Hub.

        Args:
            revision: branch, tag or commit of the repository.
            token: for a private repository; None takes the one of `hf auth login`.
            device, options: as in `from_checkpoint`.
        """
        return cls.from_checkpoint(find_weights(name, revision, token), device=device, options=options)

    def save_pretrained(self, folder: str | Path, *, licence: str = "") -> None:
        """Write `model.safetensors`, and the model card as README.md; see dada.publishing.hub.

        Args:
            licence: of the weights, for example "cc-by-4.0"; that of a release that was read stays.
        """
        write_folder(self.cfg, self._only_checkpoint(), folder, licence)

    def push_to_hub(self, name: str, *, licence: str = "", private: bool | None = None, token: str | bool | None = None) -> str:
        """Publish what `save_pretrained` writes as the repository `user/name`. Returns its address.

        Args:
            private: None for what the Hub does by itself: everybody can see it.
        """
        return push(self.cfg, self._only_checkpoint(), name, licence, private, token)

    def _only_checkpoint(self) -> Path:
        if len(self.checkpoints) > 1:
            raise ValueError(f"an ensemble of {len(self.checkpoints)} networks is not a single file; save each network")
        return self.checkpoints[0]

    @property
    def names(self) -> tuple[str, ...]:
        return self.classes.names

    @cached_property
    def sha256(self) -> list[str]:
        """SHA-256 of each checkpoint, to say which weights gave a result."""
        return [file_hash(path) for path in self.checkpoints]

    def predict(
        self,
        image: Picture | Sequence[Picture],
        *,
        size: tuple[int, int] | None = None,
        keep_ratio: bool | None = None,
        flip: bool | None = None,
        scales: Sequence[float] | None = None,
        window: tuple[int, int] | None = None,
        stride: tuple[int, int] | None = None,
        aggregate: bool | None = None,
        probabilities: bool = True,
    ) -> Prediction | list[Prediction]:
        """Classes of every pixel, at the image's own size; the same numbers as `dada test` works with.

        Arguments that are None follow the TEST section of the cfg. Images that the network sees at one size go through it
        together.

        Args:
            image: a path, bytes, a file object, a PIL image, an array or a tensor, see pictures.as_picture; a sequence
                of them, or an array (B, H, W, 3) or tensor (B, 3, H, W), for several.
            size: (width, height) that images are resized to for the network, TEST.INPUT_SIZE_TARGET.
            keep_ratio: they keep their shape, TEST.KEEP_RATIO; recommended for photographs of any shape.
            flip: TEST.FLIP.
            scales: TEST.SCALES.
            window, stride: (width, height), TEST.SLIDE_CROP and TEST.SLIDE_STRIDE; an empty window for none.
            aggregate: TEST.WITH_AGGREGATION.
            probabilities: False leaves Prediction.probabilities out, which saves memory and time.

        Returns:
            A Prediction, or a list of them for a sequence.
        """
        one = is_one_picture(image) or not isinstance(image, Iterable)
        given = cast("Iterable[Picture]", [image] if one else image)
        pictures = [as_picture(picture, self.white) for picture in given]
        if not pictures:
            raise ValueError("there is no image to predict: the sequence is empty")
        transform = self._transform(size, keep_ratio)
        predictor = self._predictor(flip, scales, window, stride, aggregate)
        groups: dict[tuple, list[int]] = {}
        prepared, wanted = [], []
        for index, picture in enumerate(pictures):
            # The test pads labels where it pads images: an empty one says at which size scores are wanted.
            views = transform(picture, Image.new("L", picture.size) if transform.pad else None)
            height, width = (picture.height, picture.width) if views.label is None else views.label.shape
            prepared.append(views.image)
            wanted.append((height, width))
            groups.setdefault((views.image.shape, wanted[-1], picture.size), []).append(index)
        found: dict[int, Prediction] = {}
        for members in groups.values():
            images = torch.stack([prepared[k] for k in members]).to(self.device, non_blocking=True)
            scores = predictor(images, _affordable(wanted[members[0]]))
            for k, score in zip(members, scores):
                found[k] = self._prediction(pictures[k], score, wanted[k], probabilities)
        return found[0] if one else [found[k] for k in range(len(pictures))]

    @property
    def white(self) -> float:
        """Value of white in pictures of more than 8 bits, as when the targets were read in training."""
        said = {one.FOLDER_TARGET.WHITE for one in each_dataset(self.cfg, "target") if one.TARGET == "Folder"} or {0.0}
        if len(said) > 1:
            raise ValueError(f"the targets have {sorted(said)} as white: say which is meant with one FOLDER_TARGET.WHITE")
        return said.pop()

    def _transform(self, size: tuple[int, int] | None, keep_ratio: bool | None) -> EvalTransform:
        transform = copy.copy(eval_transform(self.cfg, self.predictor.networks[0].normalization))
        transform.label_size = None
        if size is not None:
            transform.size = _sides("size", size)
        if keep_ratio is not None:
            transform.keep_ratio, transform.pad = keep_ratio, transform.pad and not keep_ratio
        return transform

    def _predictor(
        self,
        flip: bool | None,
        scales: Sequence[float] | None,
        window: tuple[int, int] | None,
        stride: tuple[int, int] | None,
        aggregate: bool | None,
    ) -> Predictor:
        given: dict[str, Any] = {"flip": flip, "scales": scales, "aggregate": aggregate}
        given = {name: value for name, value in given.items() if value is not None}
        if window is not None:
            given.update(window=None if window == () else _sides("window", window)[::-1], stride=None)
        if stride is not None:
            given["stride"] = _sides("stride", stride)[::-1]
        return replace(self.predictor, **given) if given else self.predictor

    def _prediction(self, picture: Image.Image, score: Tensor, size: tuple[int, int], with_probabilities: bool) -> Prediction:
        """The prediction from the scores (K, h, w) of an image that was padded to `size`."""
        confidence, ids = score.max(dim=0)

        def own_size(x: Tensor) -> np.ndarray:
            if x.shape[-2:] != size:
                x = F.interpolate(x[None].float(), size=size, mode="nearest-exact")[0].to(x.dtype)
            return x[..., : picture.height, : picture.width].cpu().numpy()

        return Prediction(
            picture,
            own_size(ids.to(torch.uint8)[None])[0],
            own_size(confidence[None])[0],
            own_size(score) if with_probabilities else None,
            self.classes,
        )


def _sides(name: str, given: Any) -> tuple[int, int]:
    """(width, height), checked."""
    try:
        width, height = map(operator.index, given)
    except (TypeError, ValueError):
        width = height = 0
    if min(width, height) < 1:
        raise ValueError(f"{name} is (width, height) in whole pixels, got {given!r}")
    return width, height


def _affordable(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the same shape with at most MOST_PIXELS."""
    factor = math.sqrt(MOST_PIXELS / (size[0] * size[1]))
    return size if factor >= 1 else (max(int(size[0] * factor), 1), max(int(size[1] * factor), 1))


def _fill(into: EasyDict, path: str | Path, cfg: Any, options: Mapping[str, Any] | Sequence[str]) -> EasyDict:
    """Fill a cfg with that of a checkpoint, or with the given one, and with options over it."""
    if cfg is None:
        stored = read_weights(path).cfg
        if not stored:
            raise ValueError(
                f"{path} holds weights without a configuration; give a YAML file that describes its network as cfg, for example "
                "'synthia2cityscapes_dada.yml' for published weights of DADA (docs/coming-from.md says which options each needs)"
            )
        cfg_from_dict(stored, str(path), into)
    elif isinstance(cfg, Mapping):
        cfg_from_dict(cfg, "cfg", into)
    else:
        for name in [cfg] if isinstance(cfg, (str, Path)) else cfg:
            if Path(name).suffix in (".pth", ".safetensors"):
                _fill(into, name, None, ())
            else:
                cfg_from_file(name, into)
    if isinstance(options, Mapping):
        return cfg_from_dict(options, "options", into)
    return cfg_from_list(options, into)


def _device(cfg: Any, asked: torch.device | str | None) -> torch.device:
    """Chosen, but not made torch's current device: that is up to the surrounding program."""
    if asked is None:
        device, why = find_device(cfg.DEVICE, cfg.GPU_ID, local_rank())
    else:
        device, why = find_device(flat_options()["DEVICE"].read(str(asked)))
    tell(device, why)
    return device


def _classes(cfg: Any, checkpoint: Path) -> LabelSet:
    """Those that a release names; else those of the cfg."""
    said = read_metadata(checkpoint)
    if "classes" in said and "palette" in said:
        return LabelSet(tuple(json.loads(said["classes"])), np.array(json.loads(said["palette"])))
    return classes_of(cfg)
