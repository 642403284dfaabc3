"""Losses of one map each: segmentation, entropy, depth, discriminator and two-view consistency.

Shapes: B images, K classes, (H, W) pixels. Every loss is a scalar, takes any B, H and W, runs on the device
of its arguments and computes in float32 (float64 if given float64) whatever autocast is set to. Where several
processes train together, "the batch" is that of all of them; see `parallel/ranks.py`. Association between two domains is
in `contrastive_learning.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dada.parallel.ranks import joint_concat, joint_max, joint_mean

_Function = TypeVar("_Function", bound=Callable)


def _full_precision(loss: _Function) -> _Function:
    """Hand `loss` its float16 and bfloat16 tensors as float32.

    That is enough under autocast too: no loss uses an operation that autocast lowers (matrix products and
    convolutions), so what comes in as float32 stays float32.
    """

    def widen(value: object) -> object:
        return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value

    @functools.wraps(loss)
    def wrapped(*args: object, **kwargs: object) -> object:
        return loss(*map(widen, args), **{name: widen(value) for name, value in kwargs.items()})

    return wrapped  # type: ignore[return-value]


def _host_knows(x: Tensor) -> bool:
    """Whether looking at a value of `x` costs nothing. It would have the host wait for a GPU, and then the GPU for the host.

    So values are checked on the CPU only. In training, SegmentationDataset sees to it that labels are ids of classes.
    """
    return x.is_cpu


def _check_scores(scores: Tensor, name: str) -> None:
    if scores.dim() != 4:
        raise ValueError(f"{name} must have shape (B, K, H, W), got {tuple(scores.shape)}")


def _checked_labels(labels: Tensor, scores: Tensor, name: str, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Labels as int64 and the mask of pixels that count; refuses other shapes and ids that have no class."""
    _check_scores(scores, name)
    b, k, h, w = scores.shape
    if labels.shape != (b, h, w):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, but {name} of shape {tuple(scores.shape)} need "
            f"{(b, h, w)}; bring {name} to the label size with upsample(), or the labels to theirs by "
            "nearest neighbour"
        )
    ids = labels.long()
    valid = (ids >= 0) & (ids != ignore_index)
    if not _host_knows(labels):
        return ids, valid
    if labels.is_floating_point() and bool((labels != ids).any()):
        raise ValueError("labels hold fractions; resize label maps by nearest neighbour, never bilinearly")
    unknown = valid & (ids >= k)
    if bool(unknown.any()):
        raise ValueError(
            f"labels hold the ids {ids[unknown].unique().tolist()}, but {name} have {k} classes (0..{k - 1}, "
            f"{ignore_index} and negative ids are ignored); map the dataset's label ids to train ids first"
        )
    return ids, valid


@_full_precision
def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Mean over the labelled pixels of the batch of -log softmax(logits)[label].

    Equals `F.cross_entropy(logits, labels, ignore_index=255)`, except that a batch without a labelled pixel
    gives 0 with zero gradient instead of NaN.

    Args:
        logits: (B, K, H, W).
        labels: (B, H, W) train ids, integers of any dtype (floating point too). `ignore_index` and negative
            ids are left out.

    Returns:
        Scalar in nats per labelled pixel.

    Raises:
        ValueError: shapes disagree, or an id has no class; the message lists the ids. Of a tensor on a GPU only the shape
            is checked here: to look at its values would have the host wait.
    """
    ids, valid = _checked_labels(labels, logits, "logits", ignore_index)
    total = F.cross_entropy(logits, ids.masked_fill(~valid, -100), ignore_index=-100, reduction="sum")
    count = valid.sum()
    return joint_mean(total / count.clamp(min=1), count)


# Elements that one sort may hold on an accelerator, where classes are sorted together: bounds the working memory to about 1 GB.
_SORTED_AT_ONCE = 2**24
_ONE_AS_INT = 0x3F800000  # the bits of float32 1.0


def _descending(errors: Tensor, valid: Tensor) -> Tensor:
    """Indices (R, P) that sort each row of `errors` (R, P) >= 0 from large to small, invalid pixels last."""
    if errors.is_cpu and errors.dtype == torch.float32 and len(errors) == 1:
        # Non-negative floats have the order of their bits read as integers, and a 1-D ascending sort of
        # integers is a radix sort on the CPU, 2 to 3 times faster than any sort of the floats.
        keys = (_ONE_AS_INT - errors.view(torch.int32)).masked_fill_(~valid, _ONE_AS_INT + 1)
        return torch.sort(keys[0], stable=True).indices[None]
    return torch.sort(errors.masked_fill(~valid, -1.0), dim=1, descending=True).indices


class _LovaszSoftmax(torch.autograd.Function):
    """Loss and slope in one pass: the loss is piecewise linear, so the sort weights are its slopes.

    Differentiating through sort, gather and cumsum instead would keep four more (K, P) tensors for the
    backward pass.
    """

    @staticmethod
    def forward(ctx: Any, probabilities: Tensor, ids: Tensor, valid: Tensor) -> Tensor:
        b, k, h, w = probabilities.shape
        ids = ids.reshape(-1)
        all_ids, own = joint_concat(ids, dim=0)  # all ranks' pixels are ranked together; each keeps its own slopes
        all_valid, _ = joint_concat(valid.reshape(-1), dim=0)
        if static := not _host_knows(ids):  # a class without a pixel gives zeros; no one waits to hear that it has none
            present = torch.arange(k, device=ids.device)
        else:
            present = torch.bincount(all_ids.masked_fill(~all_valid, k), minlength=k + 1)[:k].nonzero().flatten()
        count: Tensor | int = 0
        rows = 1 if probabilities.is_cpu else max(1, _SORTED_AT_ONCE // max(1, len(all_ids)))
        position = torch.arange(1, len(all_ids) + 1, dtype=torch.int32, device=ids.device)
        slope = torch.zeros_like(probabilities)
        loss = probabilities.new_zeros(())
        for classes in present.split(rows) if len(present) else ():  # R classes at a time, P = B*H*W
            predicted = probabilities[:, classes].transpose(0, 1).reshape(len(classes), -1)
            signed = predicted - (ids == classes[:, None]).to(slope.dtype)
            errors, _ = joint_concat(signed.abs(), dim=1)
            order = _descending(errors, all_valid)
            hit = (all_ids == classes[:, None]).gather(1, order)
            hits = hit.cumsum(1, dtype=torch.int32)
            size = hits[:, -1:]  # G, pixels of the class
            count = count + ((size > 0).sum() if static else len(classes))
            # After f pixels of the class and b others J = 1 - (G - f) / (G + b). With U = G + b the last
            # pixel has added 1 / U if it is of the class, else (G - f) / (U (U - 1)). Steps are of size 1/P:
            # subtracting two neighbouring J would lose most of their digits. Once all G are passed, as they
            # are when the ignored pixels come, the growth is exactly 0.
            union = (size + position - hits).to(slope.dtype)
            steps = union * (union - 1)
            if static:
                steps.clamp_(min=1)
            growth = torch.where(hit, 1 / union, (size - hits) / steps)
            weights = torch.empty_like(growth).scatter_(1, order, growth)
            loss += (weights * errors).sum()
            slope[:, classes] = (weights[:, own] * signed.sign()).view(len(classes), b, h, w).transpose(0, 1)
        count = count.clamp(min=1) if isinstance(count, Tensor) else max(1, count)
        ctx.save_for_backward(slope.div_(count))
        return loss / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None, None


@_full_precision
def lovasz_softmax(probabilities: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Lovász-Softmax over the classes present in the labels: Berman et al., CVPR 2018 (arXiv:1705.08790).

    For each class c with at least one labelled pixel in the batch, take the errors
    m_i = |1[y_i = c] - p_i(c)| of the labelled pixels, sort them from large to small, let g be 1[y = c] in
    that order and G its sum. Then

        J_k = 1 - (G - sum_{i<=k} g_i) / (G + sum_{i<=k} (1 - g_i)),   J_0 = 0
        loss_c = sum_k m_k (J_k - J_{k-1})

    and the loss is the mean of loss_c. The order and J are constants in the backward pass. All pixels of the
    batch are ranked together (`classes="present"`, `per_image=False` of the authors' code).

    Args:
        probabilities: (B, K, H, W) in [0, 1], the softmax of the logits and not the logits.
        labels: (B, H, W) train ids; `ignore_index` and negative ids are left out.

    Returns:
        Scalar in [0, 1]; 0 with zero gradient when no pixel is labelled.

    Raises:
        ValueError: shapes disagree; on the CPU also: an id has no class, or a value is not a probability.

    Numerics: the gradient at a pixel whose error is exactly 0 is 0, and where two errors are equal it depends
    on which of them the sort puts first; the loss does not.
    """
    ids, valid = _checked_labels(labels, probabilities, "probabilities", ignore_index)
    if probabilities.numel() and _host_knows(probabilities):
        low, high = torch.stack(probabilities.detach().aminmax()).tolist()
        if low < -1e-3 or high > 1 + 1e-3:  # false for NaN, which the caller sees in the loss
            raise ValueError(f"probabilities range from {low:.3g} to {high:.3g}; expected 0 to 1: pass logits.softmax(dim=1)")
    return _LovaszSoftmax.apply(probabilities, ids, valid)


@_full_precision
def entropy_map(probabilities: Tensor) -> Tensor:
    """Weighted self-information -p log2(p + 1e-30) / log2(K), AdvEnt: Vu et al., CVPR 2019, arXiv:1811.12833.

    Args:
        probabilities: (B, K, H, W), the softmax of the logits.

    Returns:
        (B, K, H, W), at least 0 up to rounding; its sum over K is the entropy of the pixel, 1 where all
        classes are equally likely.
    """
    _check_scores(probabilities, "probabilities")
    return -probabilities * torch.log2(probabilities + 1e-30) / _log2_classes(probabilities)


def _log2_classes(scores: Tensor) -> float:
    if scores.shape[1] < 2:
        raise ValueError(f"entropy needs at least 2 classes, got scores of shape {tuple(scores.shape)}")
    return math.log2(scores.shape[1])


@_full_precision
def entropy_loss_from_logits(logits: Tensor) -> Tensor:
    """MinEnt of Vu et al. (AdvEnt), CVPR 2019: the mean over pixels of the entropy, in [0, 1].

    Equals `entropy_map(logits.softmax(dim=1)).sum(dim=1).mean()`, and needs no epsilon.

    Args:
        logits: (B, K, H, W).
    """
    _check_scores(logits, "logits")
    log_p = F.log_softmax(logits, dim=1)
    negative = (log_p.exp() * log_p).sum(dim=1)
    return -joint_mean(negative.mean(), negative.numel()) / (_log2_classes(logits) * math.log(2))


@_full_precision
def lsr(logits: Tensor, threshold: float = 10.0) -> Tensor:
    """Label-smoothing regulariser as PLCA released it (Kang et al., NeurIPS 2020, arXiv:2011.00147).

    With s = -(1/K) sum_c log softmax(logits)_c at each pixel and sg = stop gradient,

        loss = mean over pixels of sg(s / threshold - 1) * s

    whose gradient is that of mean (s - threshold)^2 / (2 threshold): it attracts s to `threshold`, sharpening
    pixels below it and smoothing those above. The value itself is negative while s < threshold, and is no
    measure of progress. With threshold 0 the loss is the mean of s, plain smoothing.

    Args:
        logits: (B, K, H, W).
        threshold: in nats, at least 0. The least possible s is log K.
    """
    _check_scores(logits, "logits")
    if not threshold >= 0:
        raise ValueError(f"threshold must be at least 0 nats, got {threshold}")
    s = -F.log_softmax(logits, dim=1).mean(dim=1)
    if threshold > 0:
        s = (s.detach() / threshold - 1) * s
    return joint_mean(s.mean(), s.numel())


@_full_precision
def berhu(prediction: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Reverse Huber loss for depth: Laina et al., 3DV 2016 (arXiv:1606.00373), as DADA uses it.

    With d = |prediction - target| and c = 0.2 max d over the valid pixels of the batch, c a constant in the
    backward pass, each pixel costs

        d if d <= c, else (d^2 + c^2) / (2c)

    averaged over the valid pixels. An exact prediction gives 0, where the published code divides 0 by 0.

    Args:
        prediction: (B, 1, H, W).
        target: (B, H, W), in the unit of the prediction. May be anything, NaN included, where not valid.
        valid: (B, H, W) bool, None for all; sky and missing depth belong left out, since the largest error
            sets c.

    Returns:
        Scalar in the unit of the prediction; 0 with zero gradient when no pixel is valid.

    Raises:
        ValueError: shapes disagree.
    """
    if prediction.dim() != 4 or prediction.shape[1] != 1:
        raise ValueError(f"prediction must have shape (B, 1, H, W), got {tuple(prediction.shape)}")
    prediction = prediction.squeeze(1)
    for name, other in (("target", target), ("valid", valid)):
        if other is not None and other.shape != prediction.shape:
            b, h, w = prediction.shape
            raise ValueError(f"{name} has shape {tuple(other.shape)}, but prediction {(b, 1, h, w)} needs {(b, h, w)}")
    difference = prediction - target
    if valid is not None:
        difference = torch.where(valid.bool(), difference, 0.0)  # also stops NaN, which 0 * NaN would not
    d = difference.abs()
    c = 0.2 * joint_max(d.amax())
    quadratic = (d.square() + c.square()) / (2 * torch.where(c > 0, c, 1.0))
    per_pixel = torch.where(d <= c, d, quadratic)
    if valid is None:
        return joint_mean(per_pixel.mean(), per_pixel.numel())
    count = valid.sum()
    return joint_mean(per_pixel.sum() / count.clamp(min=1), count)


def valid_depth(inverse_depth: Tensor) -> Tensor:
    """Where an inverse depth 65536 / (d + 1) was measured: bool, of the same shape.

    A 16-bit depth file holds 65535 where nothing was hit, the sky, and 0 where nothing is known; they come as exactly
    1 and 65536, and what was padded around a crop as 0. NaN and infinity are no measurements either.
    """
    return (inverse_depth > 1) & (inverse_depth < 65536)


@_full_precision
def consistency_loss(logits: Tensor, reference_logits: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor]:
    """Agreement of two views of unlabelled images: one view's prediction is the other's pseudo-label.

    With q the softmax of `reference_logits` (detached), y = argmax q, and a pixel confident if
    max q >= threshold,

        loss = -(1 / (B H W)) * sum over confident pixels of log softmax(logits)_y

    The sum is divided by all pixels, confident or not, so that an image counts by its confident share. The
    mask is FixMatch's (Sohn et al., NeurIPS 2020, arXiv:2001.07685, Eq. 4); weighting by the confident share
    is DACS's (Tranheden et al., WACV 2021, arXiv:2007.08702), which spreads it over all pixels of the image.

    Args:
        logits: (B, K, H, W) of the view that learns.
        reference_logits: (B, K, H, W) of the view that teaches; the pixels of both must correspond.
        threshold: least probability of a pseudo-label, in [0, 1]; 0 keeps every pixel.

    Returns:
        loss: scalar in nats per pixel; 0 with zero gradient when no pixel is confident.
        share: scalar without gradient, confident pixels / all pixels.

    Raises:
        ValueError: shapes disagree, or threshold is not in [0, 1].
    """
    _check_scores(logits, "logits")
    if logits.shape != reference_logits.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and reference_logits {tuple(reference_logits.shape)} must have "
            "one shape: two views of the same images, pixel for pixel"
        )
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be a probability in [0, 1], got {threshold}")
    confidence, pseudo = reference_logits.detach().softmax(dim=1).max(dim=1)
    confident = confidence >= threshold
    labels = pseudo.masked_fill(~confident, -100)
    total = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    pixels = confident.numel()
    return joint_mean(total / max(1, pixels), pixels), joint_mean(confident.to(logits.dtype).mean(), pixels)


@_full_precision
def domain_bce(discriminator_logits: Tensor, domain: int) -> Tensor:
    """Mean binary cross-entropy of a discriminator's logits against one domain for all of them.

    Args:
        discriminator_logits: any shape.
        domain: 0 or 1. AdvEnt and DADA call the source 0 and the target 1.
    """
    if domain not in (0, 1):
        raise ValueError(f"domain must be 0 or 1, got {domain!r}")
    loss = F.binary_cross_entropy_with_logits(discriminator_logits, torch.full_like(discriminator_logits, float(domain)))
    return joint_mean(loss, discriminator_logits.numel())


@_full_precision
def upsample(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Bilinear resize of (B, K, h, w) to (B, K, *size), size = (height, width).

    `align_corners` is True in ADVENT and DADA, False in PLCA; weights trained with one lose a little with the
    other.
    """
    _check_scores(logits, "logits")
    if logits.shape[2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=align_corners)
