"""The cycle of every source pixel of one image, to the target and back, without the similarity matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from dada.domain_adaptation.association.pixels import PIXELS, Directions, Pixels
from dada.domain_adaptation.association.tiles import row_argmax, stripes
from dada.matmul_precision import full_float32_products

COLUMNS_AT_ONCE = 2048


def image_cycles(source: Pixels, target: Pixels) -> tuple[Tensor, Tensor, Tensor]:
    """(S,) j*, the target pixel most similar to i; (T,) the source pixel most similar to j, for every j that is
    some j* at least; (S,) whether i and j* are usable.
    """
    with full_float32_products():
        if isinstance(source, Directions):  # symmetric: one pass finds the maxima of rows and columns
            j_S, back_T = _most_similar(source, target)
        else:
            j_S, _ = _most_similar(source, target, columns_too=False)
            # Only the pixels that are hit need a way back. To know how many is to wait for them.
            turn_J = torch.arange(target.x_CN.shape[1], device=j_S.device)
            if not source.form.static:
                turn_J = torch.unique(j_S)
            back_T = j_S.new_zeros(target.x_CN.shape[1])
            back_T[turn_J] = _most_similar(target, source, turn_J, columns_too=False)[0]
    return j_S, back_T, source.usable_N & target.usable_N[j_S]


def cycles_by_kernel(source_BCS: Tensor, target_BCT: Tensor, metric: str) -> tuple[Tensor, Tensor, Tensor]:
    """`image_cycles` of all images of a batch, found in one or two launches."""
    from dada.domain_adaptation.association.argmax_kernel import most_similar  # needs triton

    (source, unit_BS), (target, unit_BT) = (_batch_of(x, metric) for x in (source_BCS, target_BCT))
    if metric == "cos":
        j_BS, back_BT = most_similar(source_BCS, target_BCT, unit_BS, unit_BT)
    else:
        j_BS, _ = most_similar(source_BCS, target, unit_BS, unit_BT, columns_too=False)
        back_BT, _ = most_similar(target_BCT, source, unit_BT, unit_BS, columns_too=False)
    return j_BS, back_BT, (unit_BS > 0) & (unit_BT > 0).gather(1, j_BS)


def _batch_of(x_BCN: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """What the rows are multiplied with, (B, C, N), and the factors of similarities, (B, N)."""
    images = [PIXELS[metric](x_CN) for x_CN in x_BCN]
    if metric == "cos":
        return x_BCN, torch.stack([image.unit_N for image in images if image.unit_N is not None])
    return torch.stack([image.compared_CN for image in images]), x_BCN.new_ones(x_BCN.shape[0], x_BCN.shape[2])


def _most_similar(
    rows: Pixels, columns: Pixels, index_M: Tensor | None = None, columns_too: bool = True
) -> tuple[Tensor, Tensor]:
    """The most similar column of every row (or of those in `index_M`), and row of every column, if `columns_too`."""
    count, width = (rows.x_CN.shape[1] if index_M is None else index_M.numel()), columns.x_CN.shape[1]
    column_M = torch.empty(count, dtype=torch.long, device=rows.x_CN.device)
    best_N = rows.x_CN.new_full((width,), -torch.inf)
    row_N = torch.zeros(width, dtype=torch.long, device=rows.x_CN.device)
    for part, tile_RN in stripes(count, columns):
        rows_CR = rows.rows(part if index_M is None else index_M[part])
        sim_RN = columns.product(rows_CR, out_RN=tile_RN)
        if columns.unit_N is not None:
            sim_RN.mul_(columns.unit_N)
        if columns.form.static:
            column_M[part] = sim_RN.argmax(dim=1)
            top_N, first_N = sim_RN.max(dim=0)
            row_N = torch.where(top_N > best_N, part.start + first_N, row_N)
            best_N = torch.maximum(top_N, best_N)
            continue
        column_M[part] = row_argmax(sim_RN)
        if columns_too:
            top_N = sim_RN.amax(dim=0)
            # Strictly greater: among equals the earlier stripe stays. After a few stripes hardly any column
            # finds better, so that looking for the row as well costs little.
            better = (top_N > best_N).nonzero()[:, 0]
            best_N[better] = top_N[better]
            for some in better.split(COLUMNS_AT_ONCE):  # a copy of the tile, which at first is all of it, would stay in memory
                row_N[some] = part.start + sim_RN[:, some].argmax(dim=0)
    return column_M, row_N
