"""Writes a toy city in the folder layouts of SYNTHIA (source) and Cityscapes (target)."""

import json
import multiprocessing
import os
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from dada.dataset.loader import end_with_the_run
from dada.dataset.toycity import classes as c
from dada.dataset.toycity.scene import draw_scene

VERSION = 1  # rises whenever the same seed gives other pictures
RECORD = "toycity.json"
MIN_SIZE = (64, 32)
TRAIN_CITIES = ("adlerhain", "birkenau", "dornfeld", "eschenburg", "finkenwerd")
VAL_CITIES = ("grauhafen", "heidestadt")
SKY_DEPTH = 65535  # what SYNTHIA's 16-bit depth holds for the sky

_FAST_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]


def parse_size(text: str) -> tuple[int, int]:
    """ "512x256" as (512, 256): width, height in pixels."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if match is None:
        raise ValueError(f"size is {text!r}, expected WIDTHxHEIGHT in pixels such as 512x256")
    return int(match[1]), int(match[2])


def write_city(
    out: str | Path,
    source: int = 400,
    target: int = 300,
    val: int | None = None,
    size: tuple[int, int] = (512, 256),
    seed: int = 0,
    workers: int = 1,
    overwrite: bool = False,
) -> Path:
    """Draw a toy city and write out/SYNTHIA, out/Cityscapes and out/toycity.json.

    Args:
        out: folder to make. It appears complete or not at all: the files are written beside it and moved.
        source: number of SYNTHIA pictures.
        target: number of Cityscapes pictures, train and val together.
        val: how many of them are val, a third by default. Val cities and scenes are never in train.
        size: (width, height) in pixels, at least 64x32.
        seed: whole number, 0 or more. Picture i of a split depends on seed, split and i alone: not on
            workers, nor on how many pictures there are.
        workers: processes to draw with. 1 draws in this one.
        overwrite: replace a toy city that is there. Nothing but a toy city is ever replaced.

    Returns:
        out as an absolute path. A complete city made with the same arguments is left as it is.

    Raises:
        ValueError: an argument is out of range.
        FileExistsError: out holds something else, and what to do about it.
    """
    val = target // 3 if val is None else val
    _check(source, target, val, size, seed, workers)
    out = Path(out).resolve()  # a link is followed, not replaced; "." has a name
    parameters = {"source": source, "target": target, "val": val, "size": list(size), "seed": seed, "version": VERSION}
    jobs = _jobs(parameters)
    if _already_there(out, parameters, jobs, overwrite):
        tqdm.write(f"{out} holds this city already, complete: nothing to do")
        return out

    out.parent.mkdir(parents=True, exist_ok=True)
    partial_out = out.parent / f".{out.name}.partial-{os.getpid()}"
    shutil.rmtree(partial_out, ignore_errors=True)  # left by a killed process that had this number
    try:
        folders = {partial_out / file for job in jobs for file in job[3].values()}
        for folder in {partial_out / "SYNTHIA", partial_out / "Cityscapes", *(file.parent for file in folders)}:
            folder.mkdir(parents=True, exist_ok=True)
        write = partial(_write_picture, partial_out, seed, tuple(size))
        with tqdm(total=len(jobs), desc="toycity", unit="picture", disable=None) as progress:
            for _ in _run(write, jobs, workers):
                progress.update()
        (partial_out / RECORD).write_text(json.dumps({"toycity": parameters}, indent=2) + "\n", encoding="utf-8")
        old = out.parent / f".{out.name}.old-{os.getpid()}"
        if out.exists():
            out.rename(old)
        try:
            partial_out.rename(out)
        except BaseException:
            if old.exists():
                old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial_out, ignore_errors=True)
    return out


def _check(source, target, val, size, seed, workers):
    counts = {"source": source, "target": target, "val": val, "seed": seed, "workers": workers}
    for name, value in counts.items():
        if value < (least := int(name == "workers")):
            raise ValueError(f"{name} is {value}, expected {least} or more")
    if val > target:
        raise ValueError(f"val is {val}, expected at most target, {target}: val pictures are some of the target's")
    if len(size) != 2 or size[0] < MIN_SIZE[0] or size[1] < MIN_SIZE[1]:
        got = "x".join(str(s) for s in size)
        raise ValueError(f"size is {got}, expected WIDTHxHEIGHT of at least {MIN_SIZE[0]}x{MIN_SIZE[1]} pixels")


def _jobs(parameters):
    """Every picture as (look, split, index, {what: file below out})."""
    jobs = []
    for i in range(parameters["source"]):
        name = f"{i:07d}.png"
        files = {"rgb": f"SYNTHIA/RGB/{name}", "gt": f"SYNTHIA/GT/LABELS/{name}"}
        files |= {"labels": f"SYNTHIA/parsed_LABELS/{name}", "depth": f"SYNTHIA/Depth/{name}"}
        jobs.append(("source", 0, i, files))
    counts = {"train": parameters["target"] - parameters["val"], "val": parameters["val"]}
    for number, (split, cities) in enumerate((("train", TRAIN_CITIES), ("val", VAL_CITIES)), 1):
        for i in range(counts[split]):
            city = cities[i % len(cities)]
            stem = f"{split}/{city}/{city}_{i // len(cities):06d}_000000"
            files = {"rgb": f"Cityscapes/leftImg8bit/{stem}_leftImg8bit.png"}
            files["labels"] = f"Cityscapes/gtFine/{stem}_gtFine_labelIds.png"
            jobs.append(("target", number, i, files))
    return jobs


def _run(write, jobs, workers):
    if workers == 1 or len(jobs) < 2:
        yield from map(write, jobs)
        return
    # A fresh interpreter each: a fork of a process that already runs threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_begin)
    try:
        yield from pool.map(write, jobs, chunksize=4)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin():
    cv2.setNumThreads(1)
    end_with_the_run()


def _write_picture(root, seed, size, job):
    look, split, index, files = job
    drawn = draw_scene((seed, split, index), look, size)
    _write_png(root / files["rgb"], drawn.rgb[..., ::-1])
    if look == "target":
        _write_png(root / files["labels"], c.CITYSCAPES_IDS[drawn.ids])
        return
    ids = c.SYNTHIA_IDS[drawn.ids]
    _write_png(root / files["labels"], ids)
    # As in the archive: class, instance, nothing, in RGB order. OpenCV writes the last channel first.
    planes = [np.zeros_like(drawn.instance), drawn.instance, ids.astype(np.uint16)]
    _write_png(root / files["gt"], np.stack(planes, -1))
    centimetres = np.where(np.isinf(drawn.depth), SKY_DEPTH, np.minimum(drawn.depth * 100, SKY_DEPTH - 1))
    _write_png(root / files["depth"], np.rint(centimetres).astype(np.uint16))


def _write_png(path, image):
    _, data = cv2.imencode(".png", image, _FAST_PNG)
    path.write_bytes(data.tobytes())


def _already_there(out, parameters, jobs, overwrite):
    """Whether this very city is there. Raises FileExistsError when something else must not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not out.is_dir():
        raise FileExistsError(f"{out} is a file, expected a folder to make; choose another --out")
    strangers = sorted({p.name for p in out.iterdir()} - {RECORD, "SYNTHIA", "Cityscapes"})
    try:
        found = json.loads((out / RECORD).read_text(encoding="utf-8"))["toycity"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found is None or strangers:
        holds = f"holds {', '.join(strangers[:3])}" if strangers else f"has no readable {RECORD}"
        raise FileExistsError(
            f"{out} is not empty and {holds}: it is not (only) a toy city and will not be replaced; "
            "choose another --out, or empty it yourself"
        )
    if overwrite:
        return False
    if found != parameters:
        differ = ", ".join(f"{k} {found.get(k)} instead of {v}" for k, v in parameters.items() if found.get(k) != v)
        raise FileExistsError(f"{out} holds another toy city ({differ}); choose another --out, or add --overwrite")
    missing = [file for job in jobs for file in job[3].values() if not (out / file).is_file()]
    if missing:
        raise FileExistsError(
            f"{out} holds this toy city, but {len(missing)} of its files are missing, first {missing[0]}; "
            "add --overwrite to make it again"
        )
    return True
