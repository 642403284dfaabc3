"""The way of every source pixel of one image to the target and back, without the similarity matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from dada.domain_adaptation.association.pixels import Directions, Pixels
from dada.domain_adaptation.association.tiles import maxima, row_argmax, stripes
from dada.matmul_precision import full_float32_products


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
        if columns.form.static:
            product_RN = columns.product(rows_CR, out_RN=tile_RN)
            column_M[part], top_N, first_N = columns.form.of(maxima)(product_RN, columns.unit_N)
            row_N = torch.where(top_N > best_N, part.start + first_N, row_N)
            best_N = torch.maximum(top_N, best_N)
            continue
        sim_RN = columns.similarity(rows_CR, out_RN=tile_RN)
        column_M[part] = row_argmax(sim_RN)
        if columns_too:
            top_N = sim_RN.amax(dim=0)
            # Strictly greater: among equals the earlier stripe stays. After a few stripes hardly any column
            # finds better, so that looking for the row as well costs little.
            better = (top_N > best_N).nonzero()[:, 0]
            best_N[better] = top_N[better]
            row_N[better] = part.start + sim_RN[:, better].argmax(dim=0)
    return column_M, row_N
