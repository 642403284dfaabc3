"""What to change when a batch norm gets a single value per channel, which has no variance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def explain_single_values(cfg: Any) -> Iterator[None]:
    """Name batch, crop and stride where torch says that a batch norm has one value for each channel.

    Raises:
        ValueError: with what to change.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        train, crops = cfg.TRAIN, cfg.DATA_TRANSFORM
        size = f"DATA_TRANSFORM.CROPSIZE (now {crops.CROPSIZE})"
        if not crops.RANDOM_RESIZE_AND_CROP:
            sizes = " and ".join("x".join(map(str, size)) for size in (train.INPUT_SIZE_SOURCE, train.INPUT_SIZE_TARGET))
            size = f"TRAIN.INPUT_SIZE_SOURCE and TRAIN.INPUT_SIZE_TARGET (now {sizes})"
        stride = f", lower TRAIN.OUTPUT_STRIDE (now {train.OUTPUT_STRIDE})" if train.MODEL.startswith("timm:") else ""
        raise ValueError(
            f"a batch norm of {train.MODEL} has a single value for each channel, of which there is no variance: the images of "
            f"a step are too few and too small for it. Raise TRAIN.BATCH_SIZE_SOURCE and TRAIN.BATCH_SIZE_TARGET (now "
            f"{train.BATCH_SIZE_SOURCE} and {train.BATCH_SIZE_TARGET}) to 2 or more, raise {size}{stride}, or set "
            "TRAIN.BN_POLICY to eval"
        ) from error
