"""Predictions of images and videos as files: overlays, palette images, Cityscapes ids, confidence maps."""

from __future__ import annotations

import glob
import json
import logging
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from dada.commands.predict_video import VIDEOS, predict_video
from dada.dataset import storage
from dada.dataset.conventions import several_whites
from dada.dataset.pictures import as_picture
from dada.files import remove_parts, whole_file, write_whole

if TYPE_CHECKING:
    from dada.segmenter import Prediction, Segmenter

log = logging.getLogger(__name__)

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".ppm", ".pgm")
RECORD = "prediction.json"  # in the folder written to: by what its files were made

# What can be written, by the name of its folder.
KINDS: dict[str, Callable[[Prediction, float], Image.Image]] = {
    "overlay": lambda prediction, alpha: prediction.overlay(alpha),
    "palette": lambda prediction, alpha: prediction.palette(),
    "cityscapes": lambda prediction, alpha: Image.fromarray(prediction.cityscapes_ids()),
    "confidence": lambda prediction, alpha: Image.fromarray((prediction.confidence * 255).round().astype(np.uint8)),
}


class Work(NamedTuple):
    """A file to predict, and what its outputs are called: `name` has the folders below the input, and no ending."""

    path: Path
    name: Path

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS


@dataclass
class Done:
    """What became of the inputs."""

    written: int = 0
    skipped: int = 0  # that were there already
    unreadable: tuple[str, ...] = ()
    passed_over: str = ""  # files of other kinds, counted by ending

    def __str__(self) -> str:
        parts = [f"{self.written} predicted"]
        parts += [f"{self.skipped} existed already (--overwrite replaces them)"] if self.skipped else []
        parts += [f"{len(self.unreadable)} could not be read"] if self.unreadable else []
        parts += [f"passed over {self.passed_over}"] if self.passed_over else []
        return ", ".join(parts)


def find_inputs(inputs: Sequence[str | Path], out: str | Path) -> list[Work]:
    """Images and videos that `inputs` name: files, folders (all images below them), or patterns such as 'a/**/*.jpg'.

    Files in `out` are left out, so that predictions are not predicted again.

    Raises:
        FileNotFoundError: a file does not exist, a folder or pattern gives nothing.
        ValueError: two inputs would be written to one file.
    """
    out = Path(out).resolve()
    found: list[Work] = []
    for text in map(str, inputs):
        path = Path(text)
        if path.is_dir():
            # As datasets list them: no hidden files and folders, linked folders once.
            files = [path / name for name in storage.glob("**/*", path) if Path(name).suffix.lower() in IMAGES]
            root = path
        elif path.is_file():
            files, root = [path], path.parent
        elif glob.has_magic(text):
            root = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
            files = sorted(Path(name) for name in glob.glob(text, recursive=True))
            files = [f for f in files if f.is_file() and f.suffix.lower() in (*IMAGES, *VIDEOS)]
        else:
            raise FileNotFoundError(f"{text} does not exist; give images, videos, folders, or patterns in quotes")
        files = [file for file in files if out not in file.resolve().parents]
        if not files:
            others = passed_over([text], out)
            raise FileNotFoundError(
                f"{text} holds no image; images end in {', '.join(IMAGES)}" + (f"; there are {others}" if others else "")
            )
        found += [Work(file, file.relative_to(root).with_suffix("")) for file in files]
    unique: dict[Path, Work] = {}
    for work in dict.fromkeys(found):
        other = unique.setdefault(work.name, work)
        if other.path.resolve() != work.path.resolve():
            raise ValueError(
                f"{other.path} and {work.path} would both be written as {work.name}.png: rename one, or predict them into "
                "folders of their own"
            )
    return list(unique.values())


def passed_over(inputs: Sequence[str | Path], out: str | Path) -> str:
    """Files in the input folders that are not images, counted by ending: "2 .heic, 1 .mp4"; "" for nothing."""
    out = Path(out).resolve()
    files = [folder / name for folder in map(Path, inputs) if folder.is_dir() for name in storage.glob("**/*", folder)]
    endings = Counter(f.suffix.lower() or "without ending" for f in files if out not in f.resolve().parents)
    counted = ", ".join(f"{count} {ending}" for ending, count in endings.most_common() if ending not in IMAGES)
    return counted + (" (name videos to have them predicted)" if any(ending in VIDEOS for ending in endings) else "")


def predict_files(
    segmenter: Segmenter,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    kinds: Sequence[str] = ("overlay", "palette"),
    alpha: float = 0.5,
    batch: int = 1,
    overwrite: bool = False,
) -> Done:
    """Write `out/<kind>/<folders and name of the image>.png` for every image, `.mp4` for a video.

    Every file is written whole, so a second call continues where the first was stopped.

    Args:
        inputs: see `find_inputs`.
        kinds: of KINDS; of a video all but "cityscapes", whose ids would not survive its compression.
        alpha: share of the colours in overlays.
        batch: images that are predicted together.
        overwrite: predict what is there already again.

    Raises:
        FileNotFoundError: see `find_inputs`.
        ValueError: `out` holds predictions of other weights or options; an image that cannot be read, unless ON_BAD_FILE is
            skip; classes that Cityscapes lacks, for the kind "cityscapes".
    """
    if strange := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"cannot write {strange[0]!r}, only {', '.join(KINDS)}")
    if not kinds or batch < 1 or not 0 <= alpha <= 1:
        raise ValueError(f"expected something to write, batches from 1, alpha from 0 to 1; got {list(kinds)}, {batch}, {alpha}")
    if "cityscapes" in kinds:
        from dada.label_sets import cityscapes_id_of_class

        cityscapes_id_of_class(segmenter.classes)  # raises now, not after hours
    out, done = Path(out), Done(passed_over=passed_over(inputs, out))
    work = find_inputs(inputs, out)
    if "cityscapes" in kinds and any(w.is_video for w in work):
        raise ValueError("ids do not survive the compression of a video: leave cityscapes out, or give the frames as images")
    _check_record(out / RECORD, _record(segmenter, alpha), overwrite)
    for folder in {out / kind / w.name.parent for kind in kinds for w in work}:
        remove_parts(folder)

    def outputs(w: Work) -> dict[str, Path]:
        return {kind: out / kind / w.name.parent / f"{w.name.name}{'.mp4' if w.is_video else '.png'}" for kind in kinds}

    def finished(w: Work) -> bool:
        return not overwrite and all(path.is_file() for path in outputs(w).values())

    waiting = [w for w in work if not finished(w)]
    done.skipped = len(work) - len(waiting)
    images, videos = [w for w in waiting if not w.is_video], [w for w in waiting if w.is_video]
    whites: Counter[float] = Counter()  # of pictures of more than 8 bits
    for group in _read(images, batch, segmenter.cfg.ON_BAD_FILE == "skip", done, segmenter.white):
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            predictions = segmenter.predict([picture for _, picture in group], probabilities=False)
            list(pool.map(lambda pair: _write(pair[1], outputs(pair[0][0]), alpha), zip(group, predictions)))
        done.written += len(group)
        whites.update(picture.info["white"] for _, picture in group if "white" in picture.info)
    if len(whites) > 1:
        log.warning("%s", several_whites(whites, "set FOLDER_TARGET.WHITE, as --set does"))
    for w in videos:
        drawn = {path: partial(KINDS[kind], alpha=alpha) for kind, path in outputs(w).items()}
        predict_video(segmenter, w.path, drawn, batch=batch)
        done.written += 1
    return done


def _picture(path: Path, white: float) -> Image.Image:
    picture = as_picture(path, white)
    if (pages := picture.info.get("pages", 1)) > 1:
        log.warning("%s holds %d pictures, of which the first is predicted: save the others as files of their own", path, pages)
    return picture


def _read(work: Sequence[Work], batch: int, skip: bool, done: Done, white: float) -> Iterator[list[tuple[Work, Image.Image]]]:
    """Batches of images; the next ones are read while the present one is predicted."""
    group: list[tuple[Work, Image.Image]] = []
    bar = {"desc": "predicting", "unit": "image", "dynamic_ncols": True, "disable": None if work else True}
    for w, reading in tqdm(_ahead(work, 2 * batch, white), total=len(work), **bar):
        try:
            group.append((w, reading.result()))
        except (ValueError, OSError) as error:
            if not skip:
                raise ValueError(f"{error}\nWith --set ON_BAD_FILE=skip the other images are predicted.") from error
            log.warning("skipped: %s", error)
            done.unreadable += (str(w.path),)
        if len(group) == batch:
            yield group
            group = []
    if group:
        yield group


def _ahead(work: Sequence[Work], count: int, white: float) -> Iterator[tuple[Work, Future[Image.Image]]]:
    """Each file and its picture, of which `count` are read in advance."""
    waiting: deque[tuple[Work, Future[Image.Image]]] = deque()
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for w in work:
            waiting.append((w, pool.submit(_picture, w.path, white)))
            if len(waiting) > count:
                yield waiting.popleft()
        yield from waiting


def _write(prediction: Prediction, outputs: dict[str, Path], alpha: float) -> None:
    for kind, path in outputs.items():
        with whole_file(path) as part:
            KINDS[kind](prediction, alpha).save(part, format="PNG")


def _record(segmenter: Segmenter, alpha: float) -> dict[str, Any]:
    """What decides a prediction, besides the image."""
    cfg = segmenter.cfg
    keys = (
        *("INPUT_SIZE_TARGET", "KEEP_RATIO", "RESAMPLE", "UPSAMPLE_VIA_INPUT", "SLIDE_CROP", "SLIDE_STRIDE", "WITH_AGGREGATION"),
        *("FLIP", "SCALES", "MODEL_WEIGHT"),
    )
    options = {f"TEST.{key}": cfg.TEST[key] for key in keys}
    options.update({"ALIGN_CORNERS": cfg.ALIGN_CORNERS, "LEGACY.LOGIT_ENSEMBLE": cfg.LEGACY.LOGIT_ENSEMBLE})
    options.update({"FOLDER_TARGET.WHITE": segmenter.white} if segmenter.white else {})
    record = {"sha256": segmenter.sha256, "alpha": alpha, "classes": segmenter.names, "options": options}
    return json.loads(json.dumps(record))


def _check_record(path: Path, record: dict[str, Any], overwrite: bool) -> None:
    """Record what the files beside `path` were made with, or refuse to mix them with others."""
    if path.is_file() and not overwrite:
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            changed = [key for key in ("sha256", "alpha", "classes") if before[key] != record[key]]
            changed += [key for key, value in record["options"].items() if before["options"].get(key) != value]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} is not a record of predictions; choose another --out") from None
        if changed:
            names = re.sub("sha256", "the weights", ", ".join(changed))
            raise ValueError(
                f"{path.parent} holds predictions made otherwise ({names} differ): choose another --out, or replace them with "
                "--overwrite"
            )
    write_whole(path, (json.dumps(record, indent=2) + "\n").encode())
