"""What is predicted of a video, as videos, frame by frame."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from tqdm import tqdm

from dada.files import whole_file

if TYPE_CHECKING:
    from PIL import Image

    from dada.segmenter import Prediction, Segmenter

    Draw = Callable[[Prediction], Image.Image]

log = logging.getLogger(__name__)

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".wmv", ".mpg", ".mpeg", ".flv", ".ts", ".mts", ".3gp", ".ogv")

CODECS = ("vp09", "mp4v")  # VP9, MPEG-4 Part 2: the first that OpenCV has


def predict_video(segmenter: Segmenter, video: str | Path, outs: Mapping[Path, Draw], *, batch: int = 1) -> int:
    """Write what is drawn of each frame of `video` as videos of the same size and rate, .mp4 in VP9, without sound.

    VP9 plays in browsers; where OpenCV lacks it, MPEG-4 Part 2 is written, and a warning says so. Both need even sides, so the
    last row or column is repeated if necessary. The files appear when they are whole.

    Args:
        outs: files to write, and how a prediction becomes a picture for each.
        batch: frames that are predicted together.

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
        with ExitStack() as stack:
            parts = {stack.enter_context(whole_file(out, ".mp4")): draw for out, draw in outs.items()}
            writers = [(stack.enter_context(_writing(part, rate or 25.0, first.shape[:2])), draw) for part, draw in parts.items()]
            total = said if said > 0 else None
            bar = tqdm(total=total, desc=Path(video).name, unit="frame", dynamic_ncols=True, disable=None)
            with bar:
                group = [first]
                while group := group + list(islice(frames, batch - len(group))):
                    for prediction in segmenter.predict(group, probabilities=False):
                        for writer, draw in writers:
                            writer.write(_even(np.asarray(draw(prediction).convert("RGB"))[..., ::-1]))
                    count += len(group)
                    bar.update(len(group))
                    group = []
        if said > count:
            log.warning("%s says that it has %d frames, but ends after %d: it may be cut short", video, said, count)
        return count
    finally:
        capture.release()


@contextmanager
def _writing(part: Path, rate: float, size: tuple[int, int]) -> Iterator[cv2.VideoWriter]:
    """A writer of frames of (height, width) `size`, brought to even sides by `_even`."""
    height, width = (side + side % 2 for side in size)
    for codec in CODECS:
        writer = cv2.VideoWriter(str(part), cv2.VideoWriter_fourcc(*codec), rate, (width, height))
        if writer.isOpened():
            break
    else:
        raise ValueError(f"OpenCV {cv2.__version__} cannot write videos here; give the frames as images instead")
    if codec != CODECS[0]:
        log.warning(
            "OpenCV %s writes no VP9 here: videos are MPEG-4 Part 2, which browsers do not play; `ffmpeg -i IN.mp4 OUT.webm` "
            "converts them",
            cv2.__version__,
        )
    try:
        yield writer
    finally:
        writer.release()


def _even(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) with the last row and column repeated where there is an odd number of them."""
    return np.ascontiguousarray(np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge"))


def _frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 RGB."""
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield frame[..., ::-1]
