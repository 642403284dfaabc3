"""Aggregation of class probabilities on a CPU, by torch's own attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dada.domain_adaptation.contrastive_learning import EPS

MOST_CHANNELS = 64  # of class probabilities; the copies of keys and values below are small
SHARES = 8


def attends(x: Tensor, metric: str) -> bool:
    """Whether `attend` can aggregate x (B, C, H, W): no contrast normalization between the similarity and its softmax."""
    return metric == "kl" and x.device.type == "cpu" and x.shape[1] <= MOST_CHANNELS


def attend(x: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) x + alpha * softmax(x . log x) x over the pixels of each image: (B, C, H, W) -> same.

    Torch keeps its tiles in the cache, and differentiates it. Its threads share the heads of a batch: so the queries of an
    image are dealt out to several heads, each with all keys and values; to as many on any machine, for the same sums.
    """
    p_BNC = x.flatten(2).mT.contiguous()
    count = p_BNC.shape[1]
    heads = min(SHARES, count)
    length = -(-count // heads)
    queries = F.pad(p_BNC, (0, 0, 0, heads * length - count)).unflatten(1, (heads, length))
    keys, values = (v[:, None].expand(-1, heads, -1, -1) for v in (torch.log(p_BNC + EPS), p_BNC))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # another one might make the matrix of all pixels
        mixed = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
    mixed_BNC = mixed.flatten(1, 2)[:, :count]
    return torch.lerp(x, mixed_BNC.mT.reshape(x.shape), alpha)
