"""Stripes of rows of the similarity matrix, and what is done to one while it is in the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dada.domain_adaptation.association.form import (
    GPU_FEW_CHANNELS,
    GPU_FEW_TILE_ELEMENTS,
    GPU_ROWS,
    GPU_TILE_ELEMENTS,
    Softmax,
    on_gpu,
)
from dada.domain_adaptation.association.pixels import Pixels
from dada.domain_adaptation.contrastive_learning import contrast_scale

TILE_ELEMENTS = 2**21  # 8 MiB in float32: every operation on a stripe has to wake the threads, so give them much
PRODUCT_ROWS = 64  # but at least so many rows, if there are enough channels to make a matrix product of it
ROWS_AT_ONCE = 16  # a product of 127 rows may take half as long again as one of 128
CPU = torch.device("cpu")
BLOCK = 64  # values of a row that `row_argmax` compares before it looks for a place


def stripe_height(columns: int, channels: int, device: torch.device = CPU, tiles: int = 1) -> int:
    """Rows of a stripe, of which on a GPU so many `tiles` are in memory at a time.

    On a CPU every pass over a tile begins and ends with all threads, which costs as much as a pass over a
    quarter of a MiB. A GPU has units to feed and launches to save: rows for one wave of products, within memory.
    """
    if on_gpu(device):
        elements = GPU_TILE_ELEMENTS if channels > GPU_FEW_CHANNELS else GPU_FEW_TILE_ELEMENTS
        return max(1, min(GPU_ROWS, elements // tiles // columns))
    return max(1, TILE_ELEMENTS // columns, min(channels // 2, PRODUCT_ROWS))


def stripes(rows: int, columns: Pixels, tiles: int = 1) -> Iterator[tuple]:
    """Cut `rows` into stripes: yields the slice of the rows, and `tiles` tensors (R, N), not initialised.

    The next stripe reuses the same tensors: copy what you keep.
    """
    channels, width = columns.x_CN.shape
    alive = tiles + by_kernel(columns)  # a kernel writes another one
    parts = even_parts(rows, stripe_height(width, channels, columns.x_CN.device, alive))
    buffers = [columns.x_CN.new_empty(parts[0].stop * width) for _ in range(tiles)] if parts else []
    for part in parts:
        yield part, *tiles_in(buffers, part.stop - part.start, width)


def even_parts(count: int, most: int) -> list[slice]:
    """Cut 0 .. count into the fewest parts of at most `most`, about equally long: no low stripe at the end.

    All but the last are a multiple of the rows that a product takes at a time, where `most` allows that.
    """
    most = max(most - most % ROWS_AT_ONCE, min(most, ROWS_AT_ONCE))
    length = -(-count // max(-(-count // most), 1))
    length = max(1, min(most, -(-length // ROWS_AT_ONCE) * ROWS_AT_ONCE))
    return [slice(start, min(count, start + length)) for start in range(0, count, length)]


def tiles_in(buffers: list[Tensor], height: int, width: int) -> list[Tensor]:
    """The beginning of each buffer as a tile; `.data`, because it is to be a tensor of its own, not a view."""
    return [b[: height * width].view(height, width).data for b in buffers]


def by_kernel(columns: Pixels) -> bool:
    """Whether stripe_kernel.py takes stripes with these columns, if they are of cosines."""
    return columns.form.kernels and columns.x_CN.dtype is torch.float32


def softmax_(
    product_RN: Tensor, rows_CR: Tensor, columns: Pixels, chosen_R: Tensor, contrast: bool, tile: bool = True
) -> tuple[Tensor, Softmax]:
    """The softmax of each row, from `columns.product`.

    Args:
        product_RN: of rows_CR with all columns; not to be used afterwards.
        chosen_R: a place in each row, that of its greatest similarity: its probability is no rounded zero.
        contrast: contrast-normalize, that is, take 1 / std of the row as scale; otherwise the scale is 1.
        tile: whether it is wanted at all, or only what its rows are.

    Returns:
        The tile (R, N), as it is or as an operand of the next product; and what its rows are. The level is that of similarities
        without `row_constant`.
    """
    unit_N, chosen_R1 = columns.unit_N, chosen_R[:, None]
    if contrast:
        mean_R1 = mean_of_rows(rows_CR, columns)[:, None]
        if unit_N is not None and by_kernel(columns):
            from dada.domain_adaptation.association import stripe_kernel  # needs triton

            return stripe_kernel.of_rows(product_RN, unit_N, mean_R1[:, 0], chosen_R, tile)
        # Centred first, so that the sum of squares has nothing to cancel.
        if unit_N is None:
            product_RN.sub_(mean_R1)
        else:
            torch.addcmul(-mean_R1, product_RN, unit_N, out=product_RN)
        norm_R1 = torch.linalg.vector_norm(product_RN, dim=1, keepdim=True)
        std_R1 = norm_R1 / math.sqrt(max(product_RN.shape[1] - 1, 1))
        scale_R1 = contrast_scale(mean_R1 + columns.row_constant(rows_CR), std_R1)
        level_R1 = (product_RN.gather(1, chosen_R1) + mean_R1) * scale_R1
        product_RN.mul_(scale_R1)
    else:
        scale_R1 = product_RN.new_ones(product_RN.shape[0], 1)
        level_R1 = product_RN.gather(1, chosen_R1)
    tile_RN = torch.softmax(product_RN, dim=1, out=product_RN)  # the same memory: each row is read before it is written
    log_p_R1 = tile_RN.gather(1, chosen_R1).log()
    return tile_RN, Softmax(scale_R1[:, 0], (level_R1 - log_p_R1)[:, 0], log_p_R1[:, 0])


def take_one(p_RN: Tensor, chosen_R: Tensor) -> None:
    """p - onehot, in place."""
    p_RN.scatter_add_(1, chosen_R[:, None], p_RN.new_full((1, 1), -1.0).expand(len(chosen_R), 1))


def mean_of_rows(rows_CR: Tensor, columns: Pixels) -> Tensor:
    """Of the similarities of each row but for `row_constant`, (R,)."""
    return torch.mv(rows_CR.mT, columns.mean_column_C)


def row_argmax(x_RN: Tensor) -> Tensor:
    """`x_RN.argmax(dim=1)`, several times faster on a CPU: (R,) int64, the first of equal maxima.

    Maxima alone are found much faster than maxima with their place. So find them block by block, then the
    place of the best block, then the place inside it; each takes the first.
    """
    rows, columns = x_RN.shape
    if columns <= BLOCK:
        return x_RN.argmax(dim=1)
    whole = columns - columns % BLOCK
    blocks, rest = x_RN[:, :whole].unflatten(1, (-1, BLOCK)), x_RN[:, whole:]
    top, best = blocks.amax(dim=2).max(dim=1)
    place_R = best * BLOCK + blocks[torch.arange(rows, device=x_RN.device), best].argmax(dim=1)
    if whole < columns:
        place_R = torch.where(rest.amax(dim=1) > top, whole + rest.argmax(dim=1), place_R)
    return place_R
