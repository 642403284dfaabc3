"""The way of every source pixel of one image to the target and back, without the similarity matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from dada.domain_adaptation.association.pixels import PIXELS, Directions, Pixels
from dada.domain_adaptation.association.tiles import row_argmax, stripes


def stream_cycles(source: Tensor, target: Tensor, metric: str) -> tuple[Tensor, Tensor, Tensor]:
    """(B, C, Hs, Ws), (B, C, Ht, Wt) -> three (B, S), as `image_cycles`."""
    pairs = zip(source.flatten(2), target.flatten(2))
    ways = [image_cycles(PIXELS[metric](x_CS), PIXELS[metric](y_CT)) for x_CS, y_CT in pairs]
    return tuple(torch.stack(part) for part in zip(*ways))


def image_cycles(source: Pixels, target: Pixels) -> tuple[Tensor, Tensor, Tensor]:
    """Three (S,): j*, the target pixel most similar to i; i*, that most similar to j*; i and j* usable."""
    if isinstance(source, Directions):  # symmetric: one pass finds the maxima of rows and columns
        j_S, back_T = _most_similar(source, target)
        i_back_S = back_T[j_S]
    else:
        j_S, _ = _most_similar(source, target, columns_too=False)
        turn_J, place_S = torch.unique(j_S, return_inverse=True)  # only these choose a way back
        i_back_S = _most_similar(target, source, turn_J, columns_too=False)[0][place_S]
    return j_S, i_back_S, source.usable_N & target.usable_N[j_S]


def _most_similar(
    rows: Pixels, columns: Pixels, index_M: Tensor | None = None, columns_too: bool = True
) -> tuple[Tensor, Tensor | None]:
    """The most similar column of every row (or of those in `index_M`), and row of every column."""
    count, width = (rows.x_CN.shape[1] if index_M is None else index_M.numel()), columns.x_CN.shape[1]
    column_M = torch.empty(count, dtype=torch.long, device=rows.x_CN.device)
    best_N = rows.x_CN.new_full((width,), -torch.inf)
    row_N = torch.zeros(width, dtype=torch.long, device=rows.x_CN.device)
    for part, tile_RN in stripes(count, columns):
        rows_CR = rows.rows(part if index_M is None else index_M[part])
        sim_RN = columns.similarity(rows_CR, out_RN=tile_RN)
        column_M[part] = row_argmax(sim_RN)
        if columns_too:
            top_N = sim_RN.amax(dim=0)
            # Strictly greater: among equals the earlier stripe stays. After a few stripes hardly any column
            # finds better, so that looking for the row as well costs little.
            better = (top_N > best_N).nonzero()[:, 0]
            best_N[better] = top_N[better]
            row_N[better] = part.start + sim_RN[:, better].argmax(dim=0)
    return column_M, row_N if columns_too else None
