"""The overlay of a video, frame by frame."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from tqdm import tqdm

from dada.files import whole_file

if TYPE_CHECKING:
    from dada.segmenter import Segmenter

log = logging.getLogger(__name__)

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".wmv", ".mpg", ".mpeg", ".flv", ".ts", ".mts", ".3gp", ".ogv")


def predict_video(segmenter: Segmenter, video: str | Path, out: str | Path, *, alpha: float = 0.5, batch: int = 1) -> int:
    """Write the overlay of `video` to `out`, an .mp4 (MPEG-4 Part 2) of the same size and rate, without sound.

    The file appears at `out` when it is whole.

    Returns:
        The number of frames.

    Raises:
        ValueError: the video cannot be read, or OpenCV here cannot write one.
    """
    capture = cv2.VideoCapture(str(video))
    try:
        rate, said = capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        frames = _frames(capture)
        first = next(frames, None)
        if first is None:
            raise ValueError(
                f"cannot read {video} as a video: OpenCV {cv2.__version__} finds no frame in it. If "
                "other programs play it, convert it: `ffmpeg -i IN out.mp4`"
            )
        count = 0
        with whole_file(out, ".mp4") as part:
            height, width = first.shape[:2]
            writer = cv2.VideoWriter(str(part), cv2.VideoWriter_fourcc(*"mp4v"), rate or 25.0, (width, height))
            try:
                if not writer.isOpened():
                    raise ValueError(
                        f"OpenCV {cv2.__version__} cannot write MPEG-4 videos here; give the frames as images instead"
                    )
                bar = tqdm(
                    total=said if said > 0 else None, desc=Path(video).name, unit="frame", dynamic_ncols=True, disable=None
                )
                with bar:
                    group = [first]
                    while group := group + list(islice(frames, batch - len(group))):
                        for prediction in segmenter.predict(group, probabilities=False):
                            writer.write(np.ascontiguousarray(np.asarray(prediction.overlay(alpha))[..., ::-1]))
                        count += len(group)
                        bar.update(len(group))
                        group = []
            finally:
                writer.release()
        if said > count:
            log.warning("%s says that it has %d frames, but ends after %d: it may be cut short", video, said, count)
        return count
    finally:
        capture.release()


def _frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 RGB."""
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield frame[..., ::-1]
