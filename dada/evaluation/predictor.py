"""Class probabilities of a network, or of an ensemble, at the size of the labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dada.domain_adaptation.cycle_association import spatial_aggregation
from dada.domain_adaptation.losses import upsample
from dada.evaluation.windows import slide
from dada.matmul_precision import matmul_precision
from dada.model import SegmentationModel
from dada.model.batch_norm import TARGET, select_domain


@dataclass
class Predictor:
    """Class probabilities of an ensemble, with the test-time options of the protocols.

    Every member, flip and scale gives scores at the wanted size; their weighted mean is the prediction.

    Args:
        networks: members, in eval mode on their device. Images come normalised for the first; members that want
            another normalization get the same pixels in theirs.
        weights: of the members, any positive scale; None for equal weights.
        align_corners: how scores are upsampled.
        flip: also predict the mirrored image.
        scales: multiples of the input size to predict at.
        aggregate: PLCA's test: mix features, then probabilities, over the image with weight 0.5 each.
        average: what members, flips and scales are averaged in: "probabilities", or "logits" as ADVENT does, which
            lets the network with the larger scale decide.
        window: (height, width): predict overlapping windows of this size and average their scores (logits, or the
            probabilities of `aggregate`) at the input size; None takes the whole image at once.
        stride: (height, width) between windows; None for half a window.
        via_input: upsample scores to the input size first and from there to the wanted one, as mmsegmentation does;
            windows always do.
        autocast: run the networks in bfloat16.
        precision: of products of float32 matrices, as TRAIN.MATMUL_PRECISION has it.
    """

    networks: Sequence[SegmentationModel]
    weights: Sequence[float] | None = None
    align_corners: bool = True
    flip: bool = False
    scales: Sequence[float] = (1.0,)
    aggregate: bool = False
    average: str = "probabilities"
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    via_input: bool = False
    autocast: bool = False
    precision: str = ""
    _shares: list[float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        weights = list(self.weights) if self.weights else [1.0] * len(self.networks)
        if len(weights) != len(self.networks) or not self.networks:
            raise ValueError(f"{len(self.networks)} networks and {len(weights)} weights: give one weight to each network")
        try:
            self.scales = tuple(map(float, self.scales))
        except TypeError:
            self.scales = ()
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise ValueError("scales (TEST.SCALES) are one or more numbers above 0, such as (0.75, 1.0)")
        if self.average not in ("probabilities", "logits"):
            raise ValueError(f"average must be 'probabilities' or 'logits', not {self.average!r}")
        if self.aggregate and self.average == "logits" and len(self.networks) * self._views > 1:
            raise ValueError(
                "aggregation over the image gives probabilities, of which there are no logits to average: set "
                "TEST.WITH_AGGREGATION or LEGACY.LOGIT_ENSEMBLE to False"
            )
        if self.window is None and self.stride is not None:
            raise ValueError("TEST.SLIDE_STRIDE moves windows, but TEST.SLIDE_CROP, their size, is empty: set it too")
        if self.window is not None:
            self.stride = self.stride or tuple(max(side // 2, 1) for side in self.window)
            if any(not 1 <= step <= side for step, side in zip(self.stride, self.window)):
                raise ValueError(
                    f"windows of (height, width) {tuple(self.window)} cannot move by {tuple(self.stride)}: every step of "
                    "TEST.SLIDE_STRIDE must be from 1 to the side of TEST.SLIDE_CROP, or pixels are left out"
                )
        self._shares = [w / sum(weights) for w in weights]

    @property
    def _views(self) -> int:
        return len(self.scales) * (2 if self.flip else 1)

    @torch.inference_mode()
    def __call__(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Normalised (B, 3, H, W) -> probabilities (B, K, *size), float32."""
        with matmul_precision(self.precision, image.device):
            return self._average(image, size)

    def _average(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Over networks, scales and flips."""
        total, logits = torch.zeros(()), self.average == "logits" and not self.aggregate
        for network, share in zip(self.networks, self._shares):
            prepared = self._prepared(image, network)
            for scale in self.scales:
                height, width = image.shape[-2:]
                if scale * min(height, width) < 1:
                    raise ValueError(f"at scale {scale} nothing is left of an image of {width}x{height} pixels")
                scaled = prepared if scale == 1.0 else F.interpolate(prepared, scale_factor=scale, mode="bilinear")
                for mirrored in (False, True) if self.flip else (False,):
                    scores = self._one(network, scaled.flip(-1) if mirrored else scaled, size)
                    scores = scores if logits or self.aggregate else scores.softmax(dim=1)
                    total = total + (scores.flip(-1) if mirrored else scores) * (share / self._views)
        return total.softmax(dim=1) if logits else total

    def _prepared(self, image: Tensor, network: SegmentationModel) -> Tensor:
        first = self.networks[0].normalization
        # Test images are 8-bit pixels that were normalised, so that going back is exact.
        return image if network.normalization == first else network.normalization(first.inverse(image))

    def _one(self, network: SegmentationModel, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits, or the probabilities of `aggregate`, (B, K, *size)."""
        if self.window is not None:
            scores = slide(partial(self._scores, network), image, self.window, self.stride, self.align_corners)
        else:
            scores = self._scores(network, image)
            if self.via_input:
                scores = upsample(scores, tuple(image.shape[-2:]), self.align_corners)
        return upsample(scores, size, self.align_corners)

    def _scores(self, network: SegmentationModel, image: Tensor) -> Tensor:
        """The same at the size of the features."""
        if isinstance(network, nn.Module):
            select_domain(network, TARGET)
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            outputs = network(image)
            if not self.aggregate:
                return outputs.logits.float()
            logits = network.classify(spatial_aggregation(outputs.features), outputs.skip)
        return spatial_aggregation(logits.float().softmax(dim=1), metric="kl")
