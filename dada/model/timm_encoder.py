"""Any timm encoder that gives dense maps, with a decoder that is light enough for a CPU."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dada.torchvision_compat  # noqa: F401  (timm imports torchvision)
from dada.model.batch_norm import batch_norms
from dada.model.deeplabv2 import DeepLabHead
from dada.model.depth import DepthBlock
from dada.model.outputs import Outputs
from dada.model.segmentation_model import SegmentationModel
from dada.normalization import Normalization

import timm  # isort: skip

BASE_DILATIONS = (1, 3, 6, 9)  # at output stride 16; a 512x512 image has 32x32 positions


class LightDecoder(nn.Module):
    """Context on the deep map, detail from a shallow one, after DeepLabV3+ (Chen et al., ECCV 2018).

    The deep map is reduced, summed over dilated depthwise convolutions as DeepLabV2's head sums its branches,
    brought to the size of the shallow map, and joined with it; a separable convolution and the classifier
    follow. Poles and signs, at most one position wide on the deep map of a small image, are drawn at the stride
    of the shallow map.

    Normalisation is by groups, not by batch: it is the same in training and evaluation, does not mix domains, and
    leaves the batch-norm policy to the pretrained encoder alone.

    Args:
        deep_channels, shallow_channels: of the two encoder maps.
        num_classes: K.
        width: channels inside.
        dilations: of the context branches, in positions of the deep map.
        bias: whether the classifier has one.
    """

    def __init__(
        self,
        deep_channels: int,
        shallow_channels: int,
        num_classes: int,
        *,
        width: int = 128,
        dilations: Sequence[int] = BASE_DILATIONS,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.reduce_deep = conv_norm_relu(deep_channels, width)
        self.context = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=rate, dilation=rate, groups=width, bias=False) for rate in dilations
        )
        self.mix_context = conv_norm_relu(width, width)
        self.reduce_shallow = conv_norm_relu(shallow_channels, 48)
        self.fuse = nn.Sequential(
            nn.Conv2d(width + 48, width + 48, 3, padding=1, groups=width + 48, bias=False), *conv_norm_relu(width + 48, width)
        )
        self.classifier = nn.Conv2d(width, num_classes, 1, bias=bias)
        nn.init.normal_(self.classifier.weight, 0.0, 0.01)

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        """(B, C, h, w) and (B, C', H, W) -> logits (B, K, H, W)."""
        x = self.reduce_deep(deep)
        x = self.mix_context(x + sum(branch(x) for branch in self.context))
        x = F.interpolate(x, size=shallow.shape[2:], mode="bilinear", align_corners=False)
        return self.classifier(self.fuse(torch.cat([x, self.reduce_shallow(shallow)], dim=1)))


def conv_norm_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.GroupNorm(16, out_channels), nn.ReLU(inplace=True)
    )


class LightSegmenter(DepthBlock, SegmentationModel):
    """What networks made of a timm `encoder` and a light `decoder` have in common; with `multi_level` also `aux_head`."""

    encoder: nn.Module
    decoder: LightDecoder
    aux_head: DeepLabHead
    multi_level: bool

    def classify(self, features: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is None:
            raise ValueError("the light decoder also reads a finer map: call classify(features, outputs.skip)")
        return self.decoder(features, skip)

    def backbone_modules(self) -> list[nn.Module]:
        return [self.encoder]

    def head_modules(self) -> list[nn.Module]:
        heads = [self.decoder, self.aux_head] if self.multi_level else [self.decoder]
        return [*heads, *self.depth_modules()]


class TimmSegmenter(LightSegmenter):
    """An encoder of timm and a decoder that gives logits at stride 4, or the next coarser one if its patches are larger.

    Args:
        name: timm's name of the encoder, for example "tf_efficientnet_lite0".
        num_classes: K.
        output_stride: image pixels per position of the deepest map, which is `features`.
        multi_level: add an auxiliary head on the second to last map.
        with_depth: add DADA's depth block, from its "open" start, on the deepest map; the decoder then reads the
            fused map.
        head_bias: whether the classifier has a bias.
        bn_policy: see dada.model.batch_norm.BN_POLICIES.

    Raises:
        ValueError: unknown encoder (the nearest names are listed), or one that cannot give the output stride or takes images
            of one size only.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        *,
        output_stride: int = 16,
        multi_level: bool = False,
        with_depth: bool = False,
        head_bias: bool = True,
        bn_policy: str = "train",
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.encoder_name = name
        self.encoder = create_encoder(name, output_stride)
        self.normalization = encoder_normalization(name)
        self.multi_level = multi_level
        dilations = fitting_dilations(output_stride)
        self.multiple = needed_multiple(name, self.encoder, output_stride)
        info: Any = self.encoder.feature_info
        channels, reductions = info.channels(), info.reduction()
        self.skip_index = next(index for index, stride in enumerate(reductions) if stride >= 4)
        self.decoder = LightDecoder(channels[-1], channels[self.skip_index], num_classes, dilations=dilations, bias=head_bias)
        if multi_level:
            self.aux_head = DeepLabHead(channels[-2], num_classes, bias=head_bias, dilations=dilations)
        if with_depth:
            self.add_depth_block(channels[-1])
        self.set_bn_policy(bn_policy)

    def forward(self, image: Tensor) -> Outputs:
        """(B, 3, H, W) -> Outputs; `features` is the deepest map, fused with depth where that is predicted.

        `skip` is the light decoder's finer map.
        """
        self.check_image(image)
        maps = self.encoder(resized_to_multiple(image, self.multiple))
        skip = maps[self.skip_index]
        aux = self.aux_head(maps[-2]) if self.multi_level else None
        features, depth = self.fuse(maps[-1])
        return Outputs(self.classify(features, skip), features, aux, depth, skip)

    def set_recompute(self, on: bool) -> None:
        """As SegmentationModel.set_recompute, with timm's own switches, which do not suit encoders with batch norm."""
        blocks: list[Any] = [m for m in self.encoder.modules() if m is not self.encoder and hasattr(m, "grad_checkpointing")]
        # timm simply computes a block twice, which would move running statistics twice.
        if on and (not blocks or next(batch_norms(self.encoder), None) is not None):
            raise ValueError(
                f"TimmSegmenter cannot recompute the blocks of {self.encoder_name!r}, only those of encoders without batch "
                "norm, such as convnext_tiny and vision transformers; set TRAIN.RECOMPUTE to False"
            )
        for block in blocks:
            block.grad_checkpointing = on


def fitting_dilations(stride: int) -> list[int]:
    """BASE_DILATIONS, which are for stride 16, in positions of a map with the given stride."""
    return [max(1, rate * 16 // stride) for rate in BASE_DILATIONS]


def needed_multiple(name: str, encoder: nn.Module, output_stride: int) -> int:
    """What the sides of images must be multiples of for the maps of `encoder` to span them, found by trying; 1: any size.

    A map spans the image if it has ceil(side / stride) positions. If a convolution or a pooling drops the rest of a side,
    as in ConvNeXt and VGG, the last position ends short of the border.

    Raises:
        ValueError: it takes images of one size only, or its maps never span them.
    """
    multiples = [1, *(m for m in (output_stride, 32, 64, 128, 256) if m % output_stride == 0)]
    reason = ""
    for multiple in dict.fromkeys(multiples):
        if reason := _misfit(
            encoder, (2 * output_stride + 1, 3 * output_stride + 1) if multiple == 1 else (multiple, 2 * multiple)
        ):
            continue
        return multiple
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    side = cfg.input_size[-1] if cfg is not None else 224
    only = "" if _misfit(encoder, (side, side)) else f" but {side}x{side}, the size that it is made for"
    raise ValueError(
        f"timm encoder {name!r} takes images of no size{only} ({reason}); use an encoder that takes any, such as "
        "tf_efficientnet_lite0, convnext_tiny or vit_small_patch14_dinov2"
    )


@torch.no_grad()
def _misfit(encoder: nn.Module, size: tuple[int, int]) -> str:
    """Why `encoder` cannot be used on images of (height, width) `size`; "" if it can."""
    info: Any = encoder.feature_info
    training = encoder.training
    try:
        maps = encoder.eval()(torch.zeros(1, 3, *size))
    except Exception as error:  # whatever a network finds wrong with a size
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        return f"{type(error).__name__} at {size[1]}x{size[0]}: {first[:200]}"
    finally:
        encoder.train(training)
    for x, channels, stride in zip(maps, info.channels(), info.reduction()):
        wanted = (channels, *(-(-side // stride) for side in size))
        if tuple(x.shape[1:]) != wanted:
            return f"of {size[1]}x{size[0]} pixels its map at stride {stride} is {tuple(x.shape[1:])}, not {wanted}"
    return ""


def resized_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """(B, 3, H, W) with both sides enlarged to the next multiple, bilinear; the image itself if they already are multiples.

    Resized images have maps that span them whole, as the upsampling of logits and the lookup of labels assume; padding, or
    dropping the rest, would shift them by up to a patch at the far border.
    """
    height, width = image.shape[2:]
    # Only positive numbers are divided: in an exported network, division truncates towards zero.
    size = ((height + multiple - 1) // multiple * multiple, (width + multiple - 1) // multiple * multiple)
    if size == (height, width):
        return image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


def check_encoder_name(name: str) -> None:
    """Raise ValueError, with the nearest names, unless timm has an encoder `name`."""
    if not timm.is_model(name):
        models = timm.list_models()
        near = difflib.get_close_matches(name, models, n=3, cutoff=0.5) or [m for m in models if name in m][:3]
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise ValueError(f"timm {timm.__version__} has no encoder {name!r}{hint}; timm.list_models() lists all")


def create_encoder(name: str, output_stride: int) -> nn.Module:
    """timm's feature extractor `name`, randomly initialised, whose deepest map has the given stride."""
    check_encoder_name(name)
    try:
        encoder = timm.create_model(name, features_only=True, pretrained=False, output_stride=output_stride)
    except (TypeError, AssertionError, NotImplementedError, RuntimeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"timm encoder {name!r} cannot give feature maps at output stride {output_stride} "
            f"({type(error).__name__}: {error}); use an encoder such as tf_efficientnet_lite0, "
            "convnext_tiny or vit_small_patch14_dinov2, or another output stride (8, 16, 32)"
        ) from error
    info: Any = encoder.feature_info
    stride = info.reduction()[-1]
    if stride != output_stride:
        raise ValueError(
            f"timm encoder {name!r} has output stride {stride}, not the requested {output_stride}; "
            f"ask for {stride}, or choose an encoder that can be dilated"
        )
    return encoder


def encoder_normalization(name: str) -> Normalization:
    """Mean and std that timm's weights of `name` were trained with, on RGB in 0..1."""
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    mean = cfg.mean if cfg is not None else (0.485, 0.456, 0.406)
    std = cfg.std if cfg is not None else (0.229, 0.224, 0.225)
    return Normalization("RGB", 255.0, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
