"""Plain vision transformers of timm, DINOv2 among them, with a decoder that is light enough for a CPU."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dada.model import timm_encoder
from dada.model.deeplabv2 import DeepLabHead
from dada.model.low_rank import LowRankLinear
from dada.model.outputs import Outputs

import timm  # isort: skip

# Modules of timm whose networks keep one grid of patches, and one width, from the first block to the last.
PLAIN_VITS = ("timm.models.vision_transformer", "timm.models.deit", "timm.models.eva")
# Products of a block in timm's names. A block that computes attention and MLP at once has `in_proj` for both.
PRODUCTS = {
    "qkv": re.compile(r"(^|\.)(qkv|[qkv]_proj|in_proj)$"),
    "proj": re.compile(r"(^|\.)(proj|out_proj|attn_out_proj)$"),
    "mlp": re.compile(r"(^|\.)(mlp\.\w+|mlp_out_proj)$"),
}
FINER = 4  # logits have this many positions along the side of a patch


def is_plain_vit(name: str) -> bool:
    """Whether timm's encoder `name` is a plain vision transformer (Dosovitskiy et al., ICLR 2021)."""
    return timm.is_model(name) and timm.model_entrypoint(name).__module__ in PLAIN_VITS


class FinerMap(nn.Module):
    """Maps of early blocks -> one map with FINER x FINER positions a patch.

    The channels of a token describe the inside of its patch. A 1x1 convolution on each map spreads them out over positions
    (pixel shuffle, Shi et al., CVPR 2016), and the maps are added up.

    Args:
        channels: of each map.
        count: number of maps.
        width: channels of the result.
    """

    def __init__(self, channels: int, count: int, width: int = 48) -> None:
        super().__init__()
        self.expand = nn.ModuleList(nn.Conv2d(channels, width * FINER**2, 1, bias=False) for _ in range(count))
        self.shuffle = nn.PixelShuffle(FINER)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, h, w) -> (B, width, FINER h, FINER w)."""
        return self.shuffle(sum(expand(x) for expand, x in zip(self.expand, maps)))


class VitSegmenter(timm_encoder.LightSegmenter):
    """A plain vision transformer of timm and the light decoder.

    Four evenly spaced blocks are read (of 12: the 3rd, 6th, 9th and 12th), each through the encoder's final norm. The last
    one is `features`, at the stride of the patches (14 pixels for DINOv2); the others together give a map four times
    finer, on which the logits lie (3.5 pixels).

    **Any image size.** An image whose sides are not multiples of the patch is enlarged to the next ones, bilinear, by less
    than a patch: features and logits then span the image exactly, as labels and upsampled logits assume, which padding
    would not achieve. Positional embeddings are interpolated to the grid of the image.

    A position is the middle of what it covers, so logits are in the right place with ALIGN_CORNERS False; with True they
    move outwards, by half a position at the border.

    There is no batch norm: every batch-norm policy is accepted, and changes nothing.

    Args:
        name: timm's name of the encoder, for example "vit_small_patch14_dinov2".
        num_classes: K.
        multi_level: add an auxiliary head on the second to last map.
        with_depth: add DADA's depth block, from its "open" start, on `features`; the decoder reads the fused map.
        head_bias: whether the classifier has a bias.
        bn_policy: see above.
        encoder_options: of timm.create_model, for example {"depth": 2}.

    Raises:
        ValueError: unknown encoder, or not a plain vision transformer.
    """

    encoder: Any  # nn.Module as far as timm says

    def __init__(
        self,
        name: str,
        num_classes: int,
        *,
        multi_level: bool = False,
        with_depth: bool = False,
        head_bias: bool = True,
        bn_policy: str = "train",
        encoder_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        timm_encoder.check_encoder_name(name)
        if not is_plain_vit(name):
            raise ValueError(f"timm encoder {name!r} is not a plain vision transformer; build it as TimmSegmenter")
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.encoder_name = name
        self.encoder = timm.create_model(name, pretrained=False, dynamic_img_size=True, **(encoder_options or {}))
        self.normalization = timm_encoder.encoder_normalization(name)
        self.multi_level = multi_level
        depth, width = len(self.encoder.blocks), self.encoder.embed_dim
        self.indices = sorted({max(0, depth * quarter // 4 - 1) for quarter in (1, 2, 3, 4)})
        if len(self.indices) < 2:
            raise ValueError(f"timm encoder {name!r} has {depth} block; the decoder reads at least two")
        self.encoder.prune_intermediate_layers(self.indices)  # takes off the classifier and its own norm
        self.patch: int = self.encoder.patch_embed.patch_size[0]
        self.finer = FinerMap(width, len(self.indices) - 1)
        dilations = timm_encoder.fitting_dilations(self.patch)
        self.decoder = timm_encoder.LightDecoder(width, 48, num_classes, dilations=dilations, bias=head_bias)
        if multi_level:
            self.aux_head = DeepLabHead(width, num_classes, bias=head_bias, dilations=dilations)
        if with_depth:
            self.add_depth_block(width)
        self.set_bn_policy(bn_policy)

    def forward(self, image: Tensor) -> Outputs:
        """(B, 3, H, W) -> Outputs; `features` (B, C, h, w) with h = ceil(H / patch), logits (B, K, 4h, 4w)."""
        self.check_image(image)
        image = timm_encoder.resized_to_multiple(image, self.patch)
        *early, last = self.encoder.forward_intermediates(image, indices=self.indices, norm=True, intermediates_only=True)
        skip = self.finer(early)
        aux = self.aux_head(early[-1]) if self.multi_level else None
        features, depth = self.fuse(last)
        return Outputs(self.classify(features, skip), features, aux, depth, skip)

    def set_recompute(self, on: bool) -> None:
        """Keep only the input of each block for the backward pass, or everything; values and gradients are the same."""
        self.encoder.set_grad_checkpointing(on)

    def add_low_rank(self, layers: Iterable[str], rank: int, alpha: float) -> None:
        """See SegmentationModel.add_low_rank; `layers` are keys of PRODUCTS, in all blocks."""
        self.freeze_backbone()
        blocks = self.encoder.blocks
        for kind in layers:
            found = [name for name, m in blocks.named_modules() if isinstance(m, nn.Linear) and PRODUCTS[kind].search(name)]
            if not found:
                raise ValueError(
                    f"no product in the blocks of {self.encoder_name!r} is called {kind}: leave it out of TRAIN.LORA_LAYERS"
                )
            for name in found:
                parent, _, own = name.rpartition(".")
                setattr(blocks.get_submodule(parent), own, LowRankLinear(blocks.get_submodule(name), rank, alpha))

    def head_modules(self) -> list[nn.Module]:
        return [self.finer, *super().head_modules()]
